"""Federated methods, one file each."""

from fedgram.methods.base import Diagnostics, Field, Method
from fedgram.methods.fedit import FedIT
from fedgram.methods.florg import FLoRG

__all__ = ["Diagnostics", "FLoRG", "FedIT", "Field", "Method"]
