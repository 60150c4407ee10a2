"""fedgram: federated low-rank fine-tuning, simulated: accuracy, communication, compute and memory of many methods."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedgram.data import IID, Dirichlet, Quickstart, TextClassificationData
    from fedgram.methods import FeDeRA, FedExLoRA, FedIT, FedSALoRA, FFALoRA, FLoRG, Method
    from fedgram.models import TextClassification
    from fedgram.optim import SGD, AdamW
    from fedgram.trainer import FederatedTrainer

__version__ = version("fedgram")

_HOMES = {
    "AdamW": "optim",
    "Dirichlet": "data",
    "FFALoRA": "methods",
    "FLoRG": "methods",
    "FeDeRA": "methods",
    "FedExLoRA": "methods",
    "FedIT": "methods",
    "FedSALoRA": "methods",
    "FederatedTrainer": "trainer",
    "IID": "data",
    "Method": "methods",
    "Quickstart": "data",
    "SGD": "optim",
    "TextClassification": "models",
    "TextClassificationData": "data",
}
__all__ = [
    "IID",
    "SGD",
    "AdamW",
    "Dirichlet",
    "FFALoRA",
    "FLoRG",
    "FeDeRA",
    "FedExLoRA",
    "FedIT",
    "FedSALoRA",
    "FederatedTrainer",
    "Method",
    "Quickstart",
    "TextClassification",
    "TextClassificationData",
]


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for, so that ``import fedgram`` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedgram' has no attribute {name!r}")
    return getattr(import_module(f"fedgram.{_HOMES[name]}"), name)
