"""Federated methods, one file each."""

from fedgram.methods.base import Diagnostics, Method, Paper, Phase, RoundInfo
from fedgram.methods.federa import FeDeRA
from fedgram.methods.fedex_lora import FedExLoRA
from fedgram.methods.fedit import FedIT
from fedgram.methods.fedsa_lora import FedSALoRA
from fedgram.methods.ffa_lora import FFALoRA
from fedgram.methods.fields import Field
from fedgram.methods.flasc import FLASC
from fedgram.methods.florg import FLoRG
from fedgram.methods.fslora import FSLoRA
from fedgram.methods.lora import LoRAMethod
from fedgram.methods.rolora import RoLoRA
from fedgram.methods.slora import SLoRA

__all__ = [
    "FLASC",
    "Diagnostics",
    "FFALoRA",
    "FLoRG",
    "FSLoRA",
    "FeDeRA",
    "FedExLoRA",
    "FedIT",
    "FedSALoRA",
    "Field",
    "LoRAMethod",
    "Method",
    "Paper",
    "Phase",
    "RoLoRA",
    "RoundInfo",
    "SLoRA",
]
