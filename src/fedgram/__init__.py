"""fedgram: federated low-rank fine-tuning, simulated: accuracy, communication, compute and memory of many methods."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedgram.data import GLUE, IID, Dirichlet, Quickstart, SQuAD, TextClassificationData
    from fedgram.early_stopping import EarlyStopping
    from fedgram.methods import (
        FLASC,
        FLTAC,
        RAVAN,
        CELoRA,
        FedDPA,
        FeDeRA,
        FedExLoRA,
        FedIT,
        FedLEASE,
        FedLoRU,
        FedRotLoRA,
        FedSALoRA,
        FedSVD,
        FFALoRA,
        FlexLoRA,
        FLoRA,
        FLoRANA,
        FLoRG,
        FRLoRA,
        FSLoRA,
        HetLoRA,
        LoRAFAIR,
        Method,
        MFedLoRU,
        PFedLoRU,
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
    "EarlyStopping": "early_stopping",
    "FederatedTrainer": "trainer",
    "GLUE": "data",
    "IID": "data",
    "QuestionAnswering": "models",
    "Quickstart": "data",
    "SGD": "optim",
    "SQuAD": "data",
    "TextClassification": "models",
    "TextClassificationData": "data",
}
"""The modules of what is no method; all other names are those of `fedgram.methods`."""
__all__ = [
    "FLASC",
    "FLTAC",
    "GLUE",
    "IID",
    "RAVAN",
    "SGD",
    "AdamW",
    "CELoRA",
    "Dirichlet",
    "EarlyStopping",
    "FFALoRA",
    "FLoRA",
    "FLoRANA",
    "FLoRG",
    "FRLoRA",
    "FSLoRA",
    "FeDeRA",
    "FedDPA",
    "FedExLoRA",
    "FedIT",
    "FedLEASE",
    "FedLoRU",
    "FedRotLoRA",
    "FedSALoRA",
    "FedSVD",
    "FederatedTrainer",
    "FlexLoRA",
    "HetLoRA",
    "LoRAFAIR",
    "MFedLoRU",
    "Method",
    "PFedLoRU",
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
    if name not in __all__:
        raise AttributeError(f"module 'fedgram' has no attribute {name!r}")
    return getattr(import_module(f"fedgram.{_HOMES.get(name, 'methods')}"), name)
