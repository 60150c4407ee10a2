"""Tasks: a backbone with a head, its loss and its metrics."""

from fedgram.models.base import FederatedTask
from fedgram.models.classification import TextClassification

__all__ = ["FederatedTask", "TextClassification"]
