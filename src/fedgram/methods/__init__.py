"""Federated methods, one file each."""

from fedgram.methods.base import Diagnostics, Method, Paper, Phase
from fedgram.methods.ce_lora import CELoRA
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.feddpa import FedDPA
from fedgram.methods.federa import FeDeRA
from fedgram.methods.fedex_lora import FedExLoRA
from fedgram.methods.fedit import FedIT
from fedgram.methods.fedlease import FedLEASE
from fedgram.methods.fedloru import FedLoRU, MFedLoRU, PFedLoRU
from fedgram.methods.fedrot_lora import FedRotLoRA
from fedgram.methods.fedsa_lora import FedSALoRA
from fedgram.methods.fedsvd import FedSVD
from fedgram.methods.ffa_lora import FFALoRA
from fedgram.methods.fields import Field
from fedgram.methods.fl_tac import FLTAC
from fedgram.methods.flasc import FLASC
from fedgram.methods.flexlora import FlexLoRA
from fedgram.methods.flora import FLoRA
from fedgram.methods.flora_na import FLoRANA
from fedgram.methods.florg import FLoRG
from fedgram.methods.frlora import FRLoRA
from fedgram.methods.fslora import FSLoRA
from fedgram.methods.hetlora import HetLoRA
from fedgram.methods.lora import LoRAMethod
from fedgram.methods.lora_fair import LoRAFAIR
from fedgram.methods.ravan import RAVAN
from fedgram.methods.rolora import RoLoRA
from fedgram.methods.slora import SLoRA

__all__ = [
    "FLASC",
    "FLTAC",
    "RAVAN",
    "CELoRA",
    "ClientContext",
    "Diagnostics",
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
    "Field",
    "FlexLoRA",
    "HetLoRA",
    "LoRAFAIR",
    "LoRAMethod",
    "MFedLoRU",
    "Method",
    "PFedLoRU",
    "Paper",
    "Phase",
    "RoLoRA",
    "RoundContext",
    "SLoRA",
]
