"""Low-rank adapters with a leading client axis, and the head."""

from fedgram.adapters.base import Adapter, ClientLayer, add_low_rank
from fedgram.adapters.experts import ExpertsAdapter
from fedgram.adapters.gram import GramAdapter, make_bases
from fedgram.adapters.head import HeadLinear
from fedgram.adapters.inject import find_targets, head_linears, swap, swap_heads
from fedgram.adapters.lora import LoraAdapter, lora_start, random_rows
from fedgram.adapters.lora_pair import LoraPairAdapter, lora_pair_start
from fedgram.adapters.multi_head import MultiHeadAdapter
from fedgram.adapters.nested_lora import NestedLoraAdapter, nested_start, outer_factors
from fedgram.adapters.sparse import SparseLoraAdapter, draw_positions
from fedgram.adapters.tri import TriAdapter, tri_start

__all__ = [
    "Adapter",
    "ClientLayer",
    "ExpertsAdapter",
    "GramAdapter",
    "HeadLinear",
    "LoraAdapter",
    "LoraPairAdapter",
    "MultiHeadAdapter",
    "NestedLoraAdapter",
    "SparseLoraAdapter",
    "TriAdapter",
    "add_low_rank",
    "draw_positions",
    "find_targets",
    "head_linears",
    "lora_pair_start",
    "lora_start",
    "make_bases",
    "nested_start",
    "outer_factors",
    "random_rows",
    "swap",
    "swap_heads",
    "tri_start",
]
