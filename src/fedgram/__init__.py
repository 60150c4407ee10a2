"""fedgram: federated low-rank fine-tuning, simulated: accuracy, communication, compute and memory of many methods."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedgram.data import GLUE, IID, Dirichlet, Quickstart, TextClassificationData
    from fedgram.methods import FedIT, FLoRG, Method
    from fedgram.models import TextClassification
    from fedgram.optim import SGD, AdamW
    from fedgram.trainer import FederatedTrainer

__version__ = version("fedgram")

_HOMES = {
    "AdamW": "optim",
    "Dirichlet": "data",
    "FLoRG": "methods",
    "FedIT": "methods",
    "FederatedTrainer": "trainer",
    "GLUE": "data",
    "IID": "data",
    "Method": "methods",
    "Quickstart": "data",
    "SGD": "optim",
    "TextClassification": "models",
    "TextClassificationData": "data",
}
__all__ = [
    "GLUE",
    "IID",
    "SGD",
    "AdamW",
    "Dirichlet",
    "FLoRG",
    "FedIT",
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
