"""Attention as the layers of a Transformers model are told to compute it, while a batch is on its way through them.

A model for which `install` was called attends as Transformers' scaled dot products do, unless a rule is set:
`fedgram.packing` sets one by which each sample is looked at by itself.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Rule", "by", "install", "rule", "scaled_dot_product", "within_samples"]

_NAME = "fedgram"
"""Of the function, among those that Transformers' models can be told to use."""
_LONG = 256
"""From this many tokens on, the probabilities that `_Within` keeps for its backward pass cost more than they save."""

Rule = Callable[..., tuple[Tensor, None]]
"""Takes what Transformers' attention functions take: the module, query, key, value, mask, and options by name."""
rule: ContextVar[Rule | None] = ContextVar("rule", default=None)
"""How to attend; None is as Transformers' scaled dot products do."""


@contextmanager
def by(other: Rule) -> Iterator[None]:
    """Have networks attend by another rule for a while."""
    token = rule.set(other)
    try:
        yield
    finally:
        rule.reset(token)


def install(network: nn.Module) -> bool:
    """Have a network of Transformers attend by rules, and say whether it could be: not all models allow it."""
    if not getattr(network, "_supports_attention_backend", False) or not _register():
        return False
    for module in network.modules():  # a base model that was loaded by itself has a configuration of its own
        config: Any = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = _NAME
    return True


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
        attention_mask: of the padded batch, which has no meaning here.
        scaling: of the products; 1/√d by default.
        is_causal: whether a token sees those after it; as the module says by default.
        options: what else Transformers' functions are given.
    """
    del attention_mask
    wide = [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (query, key, value)]
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    with torch.autocast(query.device.type, enabled=False):
        if max(lengths) < _LONG:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            heads = [_repeated(tensor[0], query.shape[1]) for tensor in wide]
            attended: Tensor = _Within.apply(*heads, asked, lengths, scale, causal)
            attended = attended.unsqueeze(0)
        else:
            options |= {"scaling": scaling, "is_causal": causal}
            samples = zip(*_cut(wide, asked, lengths, lengths), strict=True)
            attended = torch.cat([scaled_dot_product(module, *s, None, **options)[0] for s in samples], dim=1)
    return attended.to(query.dtype), None


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
    ) -> Float[Tensor, "N heads d_v"]:
        attended = query.new_empty(query.shape[1], query.shape[0], value.shape[2])
        future = torch.ones(max(lengths), max(lengths), dtype=torch.bool, device=query.device).triu(1)
        kept = []
        rows = [query, key, value, attended.transpose(0, 1)]
        for q, k, v, place in zip(*_cut(rows, asked, lengths, lengths, asked), strict=True):
            scores = _scaled_product(scale, q, k.mT)
            if causal:
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
        return (*grads, None, None, None, None)


def _scaled_product(scale: float, left: Float[Tensor, "heads m n"], right: Float[Tensor, "heads n p"]) -> Tensor:
    """Return ``scale * left right`` in one pass."""
    return torch.baddbmm(left.new_empty(1, 1, 1), left, right, beta=0, alpha=scale)
