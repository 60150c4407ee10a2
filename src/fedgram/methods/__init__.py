"""Federated methods, one file each."""

from fedgram.methods.base import Diagnostics, Method, Paper, Phase, RoundInfo
from fedgram.methods.federa import FeDeRA
from fedgram.methods.fedex_lora import FedExLoRA
from fedgram.methods.fedit import FedIT
from fedgram.methods.fedloru import FedLoRU, MFedLoRU, PFedLoRU
from fedgram.methods.fedsa_lora import FedSALoRA
from fedgram.methods.ffa_lora import FFALoRA
from fedgram.methods.fields import Field
from fedgram.methods.florg import FLoRG
from fedgram.methods.frlora import FRLoRA
from fedgram.methods.lora import LoRAMethod

__all__ = [
    "Diagnostics",
    "FFALoRA",
    "FLoRG",
    "FRLoRA",
    "FeDeRA",
    "FedExLoRA",
    "FedIT",
    "FedLoRU",
    "FedSALoRA",
    "Field",
    "LoRAMethod",
    "MFedLoRU",
    "Method",
    "PFedLoRU",
    "Paper",
    "Phase",
    "RoundInfo",
]
