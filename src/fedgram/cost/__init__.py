"""What a run will cost, told before it: what is sent, what is computed, and how much memory a block takes."""

from fedgram.cost.estimation import Announce, estimate, every_method, find_payloads, silent
from fedgram.cost.figures import Cost, Estimate, Memory, Payloads, Setting, Size

__all__ = [
    "Announce",
    "Cost",
    "Estimate",
    "Memory",
    "Payloads",
    "Setting",
    "Size",
    "estimate",
    "every_method",
    "find_payloads",
    "silent",
]
