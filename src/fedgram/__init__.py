"""fedgram: federated low-rank fine-tuning, simulated: accuracy, communication, compute and memory of many methods."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedgram.data import GLUE, IID, Dirichlet, Quickstart, SQuAD, TextClassificationData
    from fedgram.methods import (
        FLASC,
        FeDeRA,
        FedExLoRA,
        FedIT,
        FedSALoRA,
        FFALoRA,
        FLoRG,
        FSLoRA,
        Method,
        RoLoRA,
        SLoRA,
    )
    from fedgram.models import QuestionAnswering, TextClassification
    from fedgram.optim import SGD, AdamW
    from fedgram.trainer import FederatedTrainer

__version__ = version("fedgram")

_HOMES = {
    "AdamW": "optim",
    "Dirichlet": "data",
    "FFALoRA": "methods",
    "FLASC": "methods",
    "FLoRG": "methods",
    "FSLoRA": "methods",
    "FeDeRA": "methods",
    "FedExLoRA": "methods",
    "FedIT": "methods",
    "FedSALoRA": "methods",
    "FederatedTrainer": "trainer",
    "GLUE": "data",
    "IID": "data",
    "Method": "methods",
    "QuestionAnswering": "models",
    "Quickstart": "data",
    "RoLoRA": "methods",
    "SGD": "optim",
    "SLoRA": "methods",
    "SQuAD": "data",
    "TextClassification": "models",
    "TextClassificationData": "data",
}
__all__ = [
    "FLASC",
    "GLUE",
    "IID",
    "SGD",
    "AdamW",
    "Dirichlet",
    "FFALoRA",
    "FLoRG",
    "FSLoRA",
    "FeDeRA",
    "FedExLoRA",
    "FedIT",
    "FedSALoRA",
    "FederatedTrainer",
    "Method",
    "QuestionAnswering",
    "Quickstart",
    "RoLoRA",
    "SLoRA",
    "SQuAD",
    "TextClassification",
    "TextClassificationData",
]


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for, so that ``import fedgram`` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedgram' has no attribute {name!r}")
    return getattr(import_module(f"fedgram.{_HOMES[name]}"), name)
