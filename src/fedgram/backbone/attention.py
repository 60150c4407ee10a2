"""Attention as the layers of a Transformers model are told to compute it, while a batch is on its way through them.

A model for which `install` was called attends as Transformers' scaled dot products do, unless a rule is set:
`fedgram.backbone.padding_free` sets one by which each sample is looked at by itself.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = [
    "Rule",
    "UnknownAttentionError",
    "by",
    "install",
    "rule",
    "scaled_dot_product",
    "uninstall",
    "within_samples",
]

_NAME = "fedgram"
"""Of the function, among those that Transformers' models can be told to use."""
_REPLACED = "sdpa"
"""The function that stands in its place before, and does the same where no rule is set."""
_WITHOUT_EFFECT = frozenset(
    {"cache_position", "output_attentions", "output_hidden_states", "position_ids", "return_dict", "use_cache"}
)
"""Options of Transformers' attention that change nothing of what is attended to."""
_IN_THE_MASK = frozenset({"sliding_window"})
"""Options that the mask has in it already, where scaled dot products are asked for."""
_LONG = 256
"""From this many tokens on, the probabilities that `_Within` keeps for its backward pass cost more than they save."""

Rule = Callable[..., tuple[Tensor, None]]
"""Takes what Transformers' attention functions take: the module, query, key, value, mask, and options by name."""
rule: ContextVar[Rule | None] = ContextVar("rule", default=None)
"""How to attend; None is as Transformers' scaled dot products do."""


class UnknownAttentionError(Exception):
    """A model's attention is given something that this module does not know how to heed for samples without padding."""


@contextmanager
def by(other: Rule) -> Iterator[None]:
    """Have networks attend by another rule for a while."""
    token = rule.set(other)
    try:
        yield
    finally:
        rule.reset(token)


def install(network: nn.Module) -> bool:
    """Have a network of Transformers attend by rules, and return whether it can: it must use scaled dot products.

    Others, such as those with sinks or soft caps, compute attention by themselves, and go on to do so.
    """
    configs = _configs(network)
    if not getattr(network, "_supports_attention_backend", False) or not _register():
        return False
    if any(config._attn_implementation != _REPLACED for config in configs):
        return False
    _set_implementation(configs, _NAME)
    return True


def uninstall(network: nn.Module) -> None:
    """Undo `install`."""
    _set_implementation(_configs(network), _REPLACED)


def _configs(network: nn.Module) -> list[Any]:
    """Return the configurations of all parts; a base model that was loaded by itself has one of its own."""
    found = {id(config): config for module in network.modules() if (config := getattr(module, "config", None))}
    return [config for config in found.values() if hasattr(config, "_attn_implementation")]


def _set_implementation(configs: Iterable[Any], name: str) -> None:
    for config in configs:
        config._attn_implementation = name


def _register() -> bool:
    """Add the function to those of Transformers, and say whether its version lets one."""
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    except ImportError:  # before 4.53
        return False
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    return True


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend as the present rule says: (n, heads, T, d) to (n, T, heads, d)."""
    return (rule.get() or scaled_dot_product)(module, query, key, value, attention_mask, **options)


def scaled_dot_product(*inputs: Any, **options: Any) -> tuple[Tensor, None]:
    """Attend as Transformers' models do where they are told nothing."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    attended, nothing = sdpa_attention_forward(*inputs, **options)
    return attended, nothing


def within_samples(
    asked: Sequence[int],
    lengths: Sequence[int],
    module: nn.Module,
    query: Float[Tensor, "1 heads N d"],
    key: Float[Tensor, "1 kv_heads M d"],
    value: Float[Tensor, "1 kv_heads M d"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Float[Tensor, "1 N heads d"], None]:
    """Attend within each sample of some that follow one another.

    In single precision at least: the kernels for half precision are several times slower on a CPU, above all backwards.

    Args:
        asked: how many queries each sample has.
        lengths: how many keys each sample has.
        module: the attention's module.
        query: of all samples.
        key: of all samples; each of its heads serves as many of the query's.
        value: of all samples.
        attention_mask: of the padded batch: bool ``(n, 1, queries, keys)``, true for the keys that a query sees, such
            as those in a window. As for scaled dot products, it replaces what the module says.
        scaling: of the products; 1/√d by default.
        is_causal: whether a token sees those after it; as the module says by default.
        dropout: of the probabilities: there is none.
        options: what else Transformers' functions are given.

    Raises:
        UnknownAttentionError: one of the options, or the mask, is none that can be heeded here.
    """
    _check_options({**options, "dropout": dropout})
    wide = [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (query, key, value)]
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    seen = _seen(attention_mask, asked, lengths, causal)
    with torch.autocast(query.device.type, enabled=False):
        if max(lengths) < _LONG:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            heads = [_repeated(tensor[0], query.shape[1]) for tensor in wide]
            attended: Tensor = _Within.apply(*heads, asked, lengths, scale, causal, seen)
            attended = attended.unsqueeze(0)
        else:
            given = {"scaling": scaling, "is_causal": causal}
            masks = [None] * len(lengths) if seen is None else [own[None, None] for own in seen]
            samples = zip(*_cut(wide, asked, lengths, lengths), masks, strict=True)
            attended = torch.cat([scaled_dot_product(module, *sample, **given)[0] for sample in samples], dim=1)
    return attended.to(query.dtype), None


def _check_options(options: dict[str, Any]) -> None:
    """Refuse what would be dropped without a word, such as sinks (``s_aux``) and soft caps."""
    given = {name for name, value in options.items() if isinstance(value, Tensor) or value not in (None, False, 0)}
    unknown = sorted(given - _WITHOUT_EFFECT - _IN_THE_MASK)
    if unknown:
        raise UnknownAttentionError(f"its attention is given {', '.join(unknown)}")


def _seen(
    mask: Tensor | None, asked: Sequence[int], lengths: Sequence[int], causal: bool
) -> list[Bool[Tensor, "queries keys"]] | None:
    """Return which keys each query of a sample sees; None where these are all, or of a causal one all up to its own.

    The longest sample is looked at: a window that it does not feel, no other one does.
    """
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1] != 1 or mask.shape[3] < max(lengths[: len(mask)]):
        raise UnknownAttentionError(f"its attention has a mask of its own, {mask.dtype} of shape {tuple(mask.shape)}")
    samples = min(len(mask), len(lengths))
    longest = max(range(samples), key=lambda sample: lengths[sample])
    usual = _cells(mask, longest, asked, lengths)
    if torch.equal(usual, torch.ones_like(usual).tril()) if causal else bool(usual.all()):
        return None
    own = [_cells(mask, sample, asked, lengths) for sample in range(samples)]
    rest = zip(asked[samples:], lengths[samples:], strict=True)  # fillers
    return own + [mask.new_ones(queries, keys) for queries, keys in rest]


def _cells(mask: Tensor, sample: int, asked: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Return the part of a mask that is a sample's, without padding."""
    own = mask[sample, 0]
    rows = own if mask.shape[2] > 1 else own.expand(asked[sample], -1)  # all queries may see the same
    return rows[: asked[sample], : lengths[sample]]


def _repeated(tensor: Float[Tensor, "kv_heads M d"], heads: int) -> Float[Tensor, "heads M d"]:
    """Give each head of the queries its key or value, of which fewer heads may be there."""
    times = heads // tensor.shape[0]
    return tensor if times == 1 else tensor.repeat_interleave(times, dim=0)


def _cut(tensors: Sequence[Tensor], *sizes: Sequence[int]) -> list[Iterable[Tensor]]:
    """Cut tensors of (..., tokens, d) into samples."""
    return [tensor.split(list(own), dim=-2) for tensor, own in zip(tensors, sizes, strict=True)]


class _Within(torch.autograd.Function):
    """Attention within each sample, of all samples in one node: with P = softmax(s q kᵀ), o = P v.

    Flash attention's kernel does without P, which costs it more than it saves where P is as small as here.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "heads N d"],
        key: Float[Tensor, "heads M d"],
        value: Float[Tensor, "heads M d_v"],
        asked: Sequence[int],
        lengths: Sequence[int],
        scale: float,
        causal: bool,
        seen: Sequence[Bool[Tensor, "queries keys"]] | None = None,
    ) -> Float[Tensor, "N heads d_v"]:
        attended = query.new_empty(query.shape[1], query.shape[0], value.shape[2])
        future = torch.ones(max(lengths), max(lengths), dtype=torch.bool, device=query.device).triu(1)
        kept = []
        rows = [query, key, value, attended.transpose(0, 1)]
        for sample, (q, k, v, place) in enumerate(zip(*_cut(rows, asked, lengths, lengths, asked), strict=True)):
            scores = _scaled_product(scale, q, k.mT)
            if seen is not None:
                scores.masked_fill_(~seen[sample], -torch.inf)
            elif causal:
                scores.masked_fill_(future[: q.shape[1], : k.shape[1]], -torch.inf)
            probabilities = scores.softmax(dim=-1)
            place.copy_(torch.bmm(probabilities, v))
            if any(ctx.needs_input_grad):
                kept.append(probabilities)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.asked, ctx.lengths, ctx.scale = asked, lengths, scale
        return attended

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        grads = [torch.empty_like(t.transpose(0, 1)).transpose(0, 1) for t in (query, key, value)]
        rows = [gradients[0].transpose(0, 1), query, key, value, *grads]
        sizes = (ctx.asked, ctx.asked, ctx.lengths, ctx.lengths, ctx.asked, ctx.lengths, ctx.lengths)
        for p, do, q, k, v, dq, dk, dv in zip(kept, *_cut(rows, *sizes), strict=True):
            dp = torch.bmm(do, v.mT)
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)  # P ∘ (∂P - Σ P ∘ ∂P)
            dq.copy_(_scaled_product(ctx.scale, ds, k))
            dk.copy_(_scaled_product(ctx.scale, ds.mT, q))
            dv.copy_(torch.bmm(p.mT, do))
        return (*grads, None, None, None, None, None)


def _scaled_product(scale: float, left: Float[Tensor, "heads m n"], right: Float[Tensor, "heads n p"]) -> Tensor:
    """Return ``scale * left right`` in one pass."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale)
