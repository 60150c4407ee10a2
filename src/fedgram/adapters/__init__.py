"""Low-rank adapters with a leading client axis, and the head."""

from fedgram.adapters.base import Adapter, ClientLayer, add_low_rank
from fedgram.adapters.gram import GramAdapter, make_bases
from fedgram.adapters.head import HeadLinear
from fedgram.adapters.inject import find_targets, head_linears, swap, swap_heads
from fedgram.adapters.lora import LoraAdapter, lora_start
from fedgram.adapters.sparse import SparseLoraAdapter, draw_positions

__all__ = [
    "Adapter",
    "ClientLayer",
    "GramAdapter",
    "HeadLinear",
    "LoraAdapter",
    "SparseLoraAdapter",
    "add_low_rank",
    "draw_positions",
    "find_targets",
    "head_linears",
    "lora_start",
    "make_bases",
    "swap",
    "swap_heads",
]
