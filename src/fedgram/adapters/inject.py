"""Which layers of a backbone are adapted, and how they are swapped for adapters."""

from collections.abc import Callable, Iterable

from torch import nn

from fedgram.adapters.base import ClientLayer
from fedgram.adapters.head import HeadLinear
from fedgram.errors import ConfigurationError

__all__ = ["DEFAULT_TARGETS", "find_targets", "head_linears", "linear_layers", "swap", "swap_heads"]

DEFAULT_TARGETS: tuple[tuple[str, ...], ...] = (
    ("query", "value"),  # BERT, RoBERTa, XLM-R, ELECTRA
    ("q_proj", "v_proj"),  # OPT, Llama, Mistral, Qwen, Gemma, Phi
    ("query_proj", "value_proj"),  # DeBERTa-v2 and v3
    ("q_lin", "v_lin"),  # DistilBERT, XLM
    ("q", "v"),  # T5
    ("Wqkv",),  # ModernBERT, MPT
    ("query_key_value",),  # BLOOM, Falcon, GPT-NeoX
    ("c_attn",),  # GPT-2
)
"""What carries the query and value projections in the architectures that are known: the first row found is taken."""


def linear_layers(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return every ``nn.Linear`` and ``Conv1D`` of the base model, the head's left out, by dotted name."""
    from transformers.pytorch_utils import Conv1D

    heads = {name for name, _ in backbone.named_children() if name != base_name(backbone)}
    return {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and name.split(".")[0] not in heads
    }


def base_name(backbone: nn.Module) -> str:
    """Return the name under which a Transformers model holds its base model, such as ``"bert"``."""
    return str(getattr(backbone, "base_model_prefix", ""))


def head_linears(backbone: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of the head: of all that a Transformers model holds beside its base model.

    Raises:
        ConfigurationError: the head has parameters that are not in a linear layer.
    """
    found: dict[str, nn.Linear] = {}
    for child_name, child in backbone.named_children():
        if child_name == base_name(backbone):
            continue
        linears = {n: m for n, m in child.named_modules(prefix=child_name) if isinstance(m, nn.Linear)}
        if sum(p.numel() for m in linears.values() for p in m.parameters()) != sum(
            p.numel() for p in child.parameters()
        ):
            raise ConfigurationError(
                f"the head {child_name!r} ({type(child).__name__}) has parameters outside of linear layers, which "
                "clients can't train in one pass; set method.head to frozen"
            )
        found |= linears
    return found


def find_targets(backbone: nn.Module, suffixes: Iterable[str] | None) -> dict[str, nn.Module]:
    """Return the layers whose last names are among ``suffixes``, by dotted name.

    Args:
        backbone: a Transformers model with a head.
        suffixes: last parts of dotted names, such as ``["query", "value"]``, or longer ends of them, such as
            ``["attention.output.dense"]``; None takes the query and value projections of a known architecture.

    Raises:
        ConfigurationError: a suffix matches no linear layer; the message lists the candidates.
    """
    layers = linear_layers(backbone)
    if suffixes is None:
        suffixes = next((row for row in DEFAULT_TARGETS if all(_matching(layers, s) for s in row)), None)
        if suffixes is None:
            raise ConfigurationError(f"no default target_modules for {type(backbone).__name__}: {_candidates(layers)}")
    found: dict[str, nn.Module] = {}
    for suffix in suffixes:
        matching = _matching(layers, suffix)
        if not matching:
            raise ConfigurationError(f"target_modules: {suffix!r} matches no linear layer: {_candidates(layers)}")
        found |= matching
    return {name: layers[name] for name in layers if name in found}


def _matching(layers: dict[str, nn.Module], suffix: str) -> dict[str, nn.Module]:
    return {name: module for name, module in layers.items() if name == suffix or name.endswith("." + suffix)}


def _candidates(layers: dict[str, nn.Module]) -> str:
    return f"choose among {', '.join(sorted({name.rsplit('.', 1)[-1] for name in layers}))}"


def swap(backbone: nn.Module, names: Iterable[str], make: Callable[[str, nn.Module], ClientLayer]) -> None:
    """Replace the named modules of a backbone by what ``make(name, module)`` returns."""
    for name in names:
        parent_name, _, child = name.rpartition(".")
        parent = backbone.get_submodule(parent_name)
        setattr(parent, child, make(name, parent.get_submodule(child)))


def swap_heads(backbone: nn.Module) -> None:
    """Give the layers of the head weights per client."""
    heads = head_linears(backbone)
    swap(backbone, heads, lambda _, linear: HeadLinear(linear))
