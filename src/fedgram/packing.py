"""Real tokens only: a transformer's layers see the samples of a batch end to end, without padding between them.

Padding is the largest waste of a block: one long sample makes all others as long. Here a batch is padded as always, and
embedded; what enters the first layer are its N real tokens as one row of N, and what leaves the last layer is padded
again. Within, all is done token by token but attention, which looks at each sample by itself, at its true length.
Nothing else of a model is touched, so that heads, poolings and losses see what they always see.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Packing", "install", "packed", "present"]

_NAME = "fedgram"
"""Of the attention function, among those that Transformers' models can be told to use."""
_planned: ContextVar["Packing | None"] = ContextVar("planned", default=None)
"""What the first layer of a network is to do."""
_present: ContextVar["Packing | None"] = ContextVar("present", default=None)
"""What it has done, until the last layer undoes it."""


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of a padded batch of n samples and T columns are.

    Attributes:
        shape: (n, T).
        places: (N,) where each real token lies in the flattened batch.
        lengths: how many real tokens each sample has.
        per_client: how many each client has; their samples follow one another.
    """

    shape: tuple[int, int]
    places: Tensor
    lengths: list[int]
    per_client: list[int]

    @classmethod
    def of(cls, mask: Tensor, clients: int) -> "Packing":
        """Return the packing of a batch of the samples of some clients, as many of each.

        Args:
            mask: (n, T), 1 where a token is real.
            clients: C.
        """
        lengths = mask.sum(dim=1)
        per_client = lengths.reshape(clients, -1).sum(dim=1)
        places = mask.reshape(-1).nonzero().squeeze(1)
        return cls((mask.shape[0], mask.shape[1]), places, lengths.tolist(), per_client.tolist())

    def pack(self, rows: Tensor) -> Tensor:
        """Return the real tokens of (n, T, ...) as (1, N, ...); (1, T, ...) is what all samples have in common."""
        if rows.shape[0] == 1 < self.shape[0]:
            return rows.index_select(1, self.places % self.shape[1])
        return rows.reshape(-1, *rows.shape[2:]).index_select(0, self.places).unsqueeze(0)

    def unpack(self, tokens: Tensor) -> Tensor:
        """Undo `pack`: (1, N, d) becomes (n, T, d), with zeros for padding."""
        padded = tokens.new_zeros(self.shape[0] * self.shape[1], tokens.shape[-1])
        return padded.index_copy(0, self.places, tokens[0]).reshape(*self.shape, -1)


def present() -> Packing | None:
    """Return the packing of the batch that is on its way through the layers of a network; None outside of them."""
    return _present.get()


@contextmanager
def packed(packing: Packing | None) -> Iterator[None]:
    """Have networks in which `install` was called pack their batch so, for one forward pass; None is as it comes."""
    token = _planned.set(packing)
    try:
        yield
    finally:
        _planned.reset(token)
        _present.set(None)  # also where a layer has raised


def install(network: nn.Module) -> bool:
    """Make a network of Transformers ready for `packed`, and say whether it could be: not all models allow it."""
    layers = _layers(network)
    if layers is None or not getattr(network, "_supports_attention_backend", False):
        return False
    if not _register_attention():
        return False
    for module in network.modules():  # a base model that was loaded by itself has a configuration of its own
        config: Any = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = _NAME
    for layer in layers:
        layer.register_forward_pre_hook(_enter_layer, with_kwargs=True)
    layers[0].register_forward_pre_hook(_enter, with_kwargs=True, prepend=True)
    layers[-1].register_forward_hook(_leave)
    return True


def _layers(network: nn.Module) -> nn.ModuleList | None:
    """Return the layers that a network consists of, one after the other."""
    count = getattr(network.config, "num_hidden_layers", None)
    stacks = [m for m in network.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return stacks[0] if len(stacks) == 1 and len({type(layer) for layer in stacks[0]}) == 1 else None


def _enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pack what enters the first layer."""
    packing = _planned.get()
    if packing is None:
        return args, kwargs
    _present.set(packing)
    if args:
        return (packing.pack(args[0]), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": packing.pack(kwargs["hidden_states"])}


def _enter_layer(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give every layer the rotary positions of its tokens."""
    packing, positions = _present.get(), kwargs.get("position_embeddings")
    if packing is not None and positions is not None:
        kwargs = kwargs | {"position_embeddings": tuple(map(packing.pack, positions))}
    return args, kwargs


def _leave(_layer: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
    """Pad what leaves the last layer."""
    packing = _present.get()
    if packing is None:
        return output
    _present.set(None)
    if isinstance(output, tuple):
        return (packing.unpack(output[0]), *output[1:])
    return packing.unpack(output)


def _register_attention() -> bool:
    """Add the attention within samples to those of Transformers, and say whether its version lets one."""
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    except ImportError:  # before 4.53
        return False

    def mask(*args: Any, **kwargs: Any) -> Tensor | None:
        return sdpa_mask(*args, **kwargs) if _planned.get() is None else None

    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, mask)
    return True


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend within each sample: (1, heads, N, d) to (1, N, heads, d)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    packing = _present.get()
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    # In single precision: the kernels for half precision are several times slower on a CPU, above all backwards.
    parts = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in (query, key, value))
    samples = zip(*(part.split(packing.lengths, dim=2) for part in parts), strict=True)
    with torch.autocast(query.device.type, enabled=False):
        attended = [sdpa_attention_forward(module, *sample, None, **options)[0] for sample in samples]
        return torch.cat(attended, dim=1).to(query.dtype), None
