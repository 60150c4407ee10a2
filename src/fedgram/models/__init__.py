"""Tasks: a backbone with a head, its loss and its metrics."""

from fedgram.models.base import FederatedTask
from fedgram.models.classification import TextClassification
from fedgram.models.question_answering import QuestionAnswering

__all__ = ["FederatedTask", "QuestionAnswering", "TextClassification"]
