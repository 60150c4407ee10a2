"""Which id fills the rows of a batch up: the one that the model itself takes for padding, whatever the tokenizer's is.

Models compute with it: RoBERTa and its like count positions from it, and decoders pool the last token that is not it. A
row with padding is answered as it is without only if what pads is that very id. A model that names none takes every
token of a row for a real one, so there an id pads that no token has.
"""

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["NO_TOKEN", "pad_id_of"]

NO_TOKEN = -1
"""The id that pads where a model names none."""


def pad_id_of(network: nn.Module) -> int:
    """Return the id that is to pad a network's batches, and make the network ready for it.

    Where that is no id of its vocabulary, its configuration gets it, and token 0 is embedded in its place: what stands
    where padding is has no share in anything.
    """
    config: Any = network.config
    texts = config.get_text_config()
    named = [getattr(own, "pad_token_id", None) for own in (texts, config)]
    own = next((int(pad) for pad in named if pad is not None), NO_TOKEN)
    for part, pad in zip((texts, config), named, strict=True):
        if pad is None:
            part.pad_token_id = own
    embeddings = _input_embeddings(network)
    size = getattr(embeddings, "num_embeddings", None)
    if embeddings is not None and (own < 0 or (size is not None and own >= size)):
        embeddings.register_forward_pre_hook(lambda _, args: _with_token_for(own, args))
    return own


def _input_embeddings(network: Any) -> nn.Module | None:
    """Return the layer that embeds ids; None where a model has none of the usual kind."""
    try:
        found = network.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    return found if isinstance(found, nn.Module) else None


def _with_token_for(pad: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Put token 0 where padding would be embedded."""
    if not args or not isinstance(args[0], Tensor) or args[0].is_floating_point():
        return args
    return (torch.where(args[0] == pad, 0, args[0]), *args[1:])
