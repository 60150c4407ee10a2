"""Which layers of a backbone are adapted, and how they are swapped for adapters."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional

from fedgram.adapters.base import ClientLayer
from fedgram.adapters.head import HeadLinear
from fedgram.backbone.base_model import base_name
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
    ("q_b_proj", "kv_b_proj"),  # DeepSeek, MiniCPM3, Mistral 4
    ("q_proj", "kv_b_proj"),  # DeepSeek-V2-Lite
    ("qkv_proj",),  # Phi-3
    ("q_head", "v_head"),  # Funnel
    ("Wq", "Wv"),  # CTRL
    ("in_proj",),  # DeBERTa
)
"""What carries the query and value projections in the architectures that are known: the first row found is taken."""
_NO_TEXT = ("vision", "visual", "audio", "multi_modal_projector")
"""How parts of a model begin that no text goes through."""


def linear_layers(backbone: nn.Module) -> dict[str, nn.Module]:
    """Return every ``nn.Linear`` and ``Conv1D`` of the base model, the head's left out, by dotted name.

    A subclass that computes something else, as the router of Phi-3.5-MoE does, is none of them; nor are the layers of a
    vision tower, which texts do not go through.
    """
    heads = {name for name, _ in backbone.named_children() if name != base_name(backbone)}
    return {
        name: module
        for name, module in backbone.named_modules()
        if _is_linear(module)
        and name.split(".")[0] not in heads
        and not any(part.startswith(_NO_TEXT) for part in name.split("."))
    }


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D) or (isinstance(module, nn.Linear) and _computes_linear(type(module), module))


_known: dict[type[nn.Linear], bool] = {}


def _computes_linear(kind: type[nn.Linear], module: nn.Linear) -> bool:
    """Say whether a subclass of ``nn.Linear`` computes what that does: by its forward, or by trying it."""
    if kind.forward is nn.Linear.forward:
        return True
    if kind not in _known:
        _known[kind] = _agrees(module)
    return _known[kind]


def _agrees(module: nn.Linear) -> bool:
    """Return whether a layer's forward, with a small weight in the place of its own, gives ``x Wᵀ + b``."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily(), torch.no_grad():  # where costs are estimated, tensors have no numbers
        generator = torch.Generator().manual_seed(0)
        weight, bias, x = (torch.randn(*shape, generator=generator) for shape in ((5, 3), (5,), (2, 4, 3)))
        small = copy.copy(module)
        small._parameters = {
            "weight": nn.Parameter(weight),
            "bias": None if module.bias is None else nn.Parameter(bias),
        }
        try:
            found = type(module).forward(small, x)
        except Exception:  # noqa: BLE001 - whatever it wants, it is not a layer that takes x alone
            return False
        expected = functional.linear(x, weight, small.bias)
        return (
            isinstance(found, torch.Tensor)
            and found.shape == expected.shape
            and torch.allclose(found, expected, atol=1e-5)
        )


def head_linears(backbone: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of the head: of all that a Transformers model holds beside its base model.

    Raises:
        ConfigurationError: the head has parameters that are not in a linear layer.
    """
    found: dict[str, nn.Linear] = {}
    for child_name, child in backbone.named_children():
        if child_name == base_name(backbone):
            continue
        linears = {
            n: m for n, m in child.named_modules(prefix=child_name) if isinstance(m, nn.Linear) and _is_linear(m)
        }
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
            ``["attention.output.dense"]``; None takes the query and value projections of a known architecture. The
            pooler, which stands behind the layers, is meant only where it is named: ``["pooler.dense"]``.

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
    found = {name: module for name, module in layers.items() if name == suffix or name.endswith("." + suffix)}
    return found if "pooler" in suffix else {name: module for name, module in found.items() if "pooler" not in name}


def _candidates(layers: dict[str, nn.Module]) -> str:
    last = {".".join(name.split(".")[-2 if "pooler" in name else -1 :]) for name in layers}
    return f"choose among {', '.join(sorted(last))}" if last else "it has no linear layers that can be adapted"


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
