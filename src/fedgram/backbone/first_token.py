"""The last layer for the first token of each sample alone, where the head reads no other.

Encoders that classify do: BERT's pooler, RoBERTa's head. Of other tokens the last layer needs keys and values; their
queries, and all that follows attention, are never looked at. So the layer is run twice: over all tokens up to its
attention, for keys and values, and over the first tokens, which attend to these.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from fedgram.backbone import attention
from fedgram.backbone.attention import Rule
from fedgram.backbone.padding_free import end, present, showing, with_hidden

__all__ = ["install", "uninstall", "whole"]

_Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def install(layer: nn.Module) -> None:
    """Have the last layer, of a network that attends by rules, return (n, 1, d): what it says of first tokens."""
    layer.forward = partial(_forward, layer.forward)


def uninstall(layer: nn.Module) -> None:
    """Undo `install`."""
    del layer.forward


@contextmanager
def whole(layer: nn.Module) -> Iterator[None]:
    """Have a layer say what it says of all tokens for a while, whether `install` was called for it or not."""
    own = vars(layer).pop("forward", None)
    try:
        yield
    finally:
        if own is not None:
            layer.forward = own


class _AtAttention(Exception):  # noqa: N818 - no error, but the way out of a layer
    """Carries what a layer's attention was given."""

    def __init__(self, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        self.given = key, value, mask


def _leave_at_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    del module, query, options
    raise _AtAttention(key, value, attention_mask)


def _forward(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Stand in for the layer's own forward."""
    try:
        with attention.by(_leave_at_attention):
            return forward(*args, **kwargs)  # this layer follows no rules
    except _AtAttention as way_out:
        key, value, mask = way_out.given
    packing, first = present(), None if mask is None else mask[:, :, :1]
    if packing is None:
        args, kwargs = _narrowed(lambda rows: rows[:, :1], args, kwargs)
        with attention.by(_instead(attention.scaled_dot_product, key, value, first)):
            return forward(*args, **kwargs)
    starts = packing.starts()
    args, kwargs = _narrowed(lambda rows: rows.index_select(1, starts), args, kwargs)
    attend = partial(attention.within_samples, [1] * len(packing.samples), packing.samples)
    rule = _instead(attend, key[:, :, : packing.real], value[:, :, : packing.real], first)  # fillers come last
    with showing(packing.of_starts()), attention.by(rule):
        output = forward(*args, **kwargs)
    end()
    return with_hidden(output, lambda tokens: tokens.transpose(0, 1))


def _narrowed(take: Callable[[Tensor], Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Inputs:
    """Take first tokens of what a layer gets of every token: its hidden states, and rotary positions."""
    if args:
        args = (take(args[0]), *args[1:])
    else:
        kwargs = kwargs | {"hidden_states": take(kwargs["hidden_states"])}
    positions = kwargs.get("position_embeddings")
    if positions is not None:
        kwargs = kwargs | {"position_embeddings": tuple(map(take, positions))}
    return args, kwargs


def _instead(attend: Rule, key: Tensor, value: Tensor, mask: Tensor | None) -> Rule:
    """Return the rule by which first tokens attend to these keys and values, and not to their own."""

    def rule(
        module: nn.Module,
        query: Tensor,
        own_key: Tensor,
        own_value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        del own_key, own_value, attention_mask
        return attend(module, query, key, value, mask, **options)

    return rule
