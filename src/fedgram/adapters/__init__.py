"""Low-rank adapters with a leading client axis, and the head."""

from fedgram.adapters.base import Adapter, ClientLayer, add_low_rank
from fedgram.adapters.gram import GramAdapter, make_bases
from fedgram.adapters.head import HeadLinear
from fedgram.adapters.inject import find_targets, head_linears, swap, swap_heads
from fedgram.adapters.lora import LoraAdapter, draw_rows, lora_start
from fedgram.adapters.lora_pair import LoraPairAdapter, lora_pair_start
from fedgram.adapters.nested_lora import NestedLoraAdapter, nested_start, outer_factors

__all__ = [
    "Adapter",
    "ClientLayer",
    "GramAdapter",
    "HeadLinear",
    "LoraAdapter",
    "LoraPairAdapter",
    "NestedLoraAdapter",
    "add_low_rank",
    "draw_rows",
    "find_targets",
    "head_linears",
    "lora_pair_start",
    "lora_start",
    "make_bases",
    "nested_start",
    "outer_factors",
    "swap",
    "swap_heads",
]
