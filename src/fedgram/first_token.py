"""The last layer for the first token of each sample alone, where the head reads no other.

Encoders that classify do: BERT's pooler, RoBERTa's head. Of other tokens the last layer needs keys and values; their
queries, and all that follows attention, are never looked at. So the layer is run twice: over all tokens up to its
attention, for keys and values, and over the first tokens, which attend to these.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from fedgram import attention
from fedgram.packing import end, present, showing, with_hidden

__all__ = ["install", "uninstall"]

_Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def install(layer: nn.Module) -> None:
    """Have the last layer, of a network that attends by rules, return (n, 1, d): what it says of first tokens."""
    layer.forward = partial(_forward, layer.forward)


def uninstall(layer: nn.Module) -> None:
    """Undo `install`."""
    del layer.forward


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
    packing = present()
    if packing is None:
        args, kwargs = _narrowed(lambda rows: rows[:, :1], args, kwargs)
        with attention.by(partial(_attend_padded, key, value, mask)):
            return forward(*args, **kwargs)
    starts = packing.starts()
    args, kwargs = _narrowed(lambda rows: rows.index_select(1, starts), args, kwargs)
    with showing(packing.of_starts()), attention.by(partial(_attend_packed, key, value, packing.samples)):
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


def _attend_padded(
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    module: nn.Module,
    query: Tensor,
    own_key: Tensor,
    own_value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend to keys and values that were given before, instead of the first tokens' own."""
    del own_key, own_value, attention_mask
    return attention.scaled_dot_product(module, query, key, value, None if mask is None else mask[:, :, :1], **options)


def _attend_packed(
    key: Tensor,
    value: Tensor,
    lengths: list[int],
    module: nn.Module,
    query: Tensor,
    own_key: Tensor,
    own_value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Do the same where tokens are packed; fillers, which come last, are not among the lengths."""
    del own_key, own_value
    real = sum(lengths)
    key, value = key[:, :, :real], value[:, :, :real]
    return attention.within_samples([1] * len(lengths), lengths, module, query, key, value, attention_mask, **options)
