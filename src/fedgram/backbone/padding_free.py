"""Real tokens only: a transformer's layers see the samples of a batch end to end, without padding between them.

Padding is the largest waste of a block: one long sample makes all others as long. Here a batch is padded as always, and
embedded; what enters the first layer are its real tokens, and a few fillers, as one row of N, and what leaves the last
layer is padded again. Within, all is done token by token but attention, which looks at each sample by itself, at its
true length. Nothing else of a model is touched, so that heads, poolings and losses see what they always
see.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedgram.backbone import attention

__all__ = ["Packing", "end", "install", "packed", "present", "showing", "stack_of_layers", "with_hidden"]

_planned: ContextVar["Packing | None"] = ContextVar("planned", default=None)
"""What the first layer of a network is to do."""
_present: ContextVar["Packing | None"] = ContextVar("present", default=None)
"""What it has done, until the last layer undoes it."""


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of a padded batch of n samples and T columns are.

    Attributes:
        shape: (n, T).
        places: (N,) where each token lies in the flattened batch: the real ones, and fillers, which stand at its start.
        real: how many of them are real.
        lengths: how many each sample has; the fillers are one more sample.
        per_client: how many each client has; their samples follow one another, and the last has the fillers.
    """

    shape: tuple[int, int]
    places: Tensor
    real: int
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
        per_client = lengths.reshape(clients, -1).sum(dim=1).tolist()
        places = mask.reshape(-1).nonzero().squeeze(1)
        real = len(places)
        fillers = -real % _step(real)
        places = functional.pad(places, (0, fillers))
        per_client[-1] += fillers
        samples = lengths.tolist() + [fillers] * bool(fillers)
        return cls((mask.shape[0], mask.shape[1]), places, real, samples, per_client)

    def pack(self, rows: Tensor) -> Tensor:
        """Return the real tokens of (n, T, ...) as (1, N, ...); (1, T, ...) is what all samples have in common."""
        if rows.shape[0] == 1 < self.shape[0]:
            return rows.index_select(1, self.places % self.shape[1])
        return rows.reshape(-1, *rows.shape[2:]).index_select(0, self.places).unsqueeze(0)

    @property
    def samples(self) -> list[int]:
        """How many tokens each of the n samples has, fillers left out."""
        return self.lengths[: self.shape[0]]

    def starts(self) -> Tensor:
        """Return where among the packed tokens the n samples begin: (n,)."""
        return torch.tensor([0, *accumulate(self.samples[:-1])], device=self.places.device)

    def of_starts(self) -> "Packing":
        """Return the packing of the first token of each sample alone, as a batch of one column."""
        count = self.shape[0]
        each = count // len(self.per_client)
        places = torch.arange(count, device=self.places.device)
        return Packing((count, 1), places, count, [1] * count, [each] * len(self.per_client))

    def unpack(self, tokens: Tensor) -> Tensor:
        """Undo `pack`: (1, N, d) becomes (n, T, d), with zeros for padding."""
        padded = tokens.new_zeros(self.shape[0] * self.shape[1], tokens.shape[-1])
        return padded.index_copy(0, self.places[: self.real], tokens[0, : self.real]).reshape(*self.shape, -1)


def _step(tokens: int) -> int:
    """Return of what the number of packed tokens is made a multiple: at most an eighth of it, a power of two.

    oneDNN prepares its kernels anew for every number, and memory for as many sizes is taken to pieces.

    >>> _step(100), _step(600), _step(1100)
    (8, 64, 128)
    """
    return 1 << max(tokens.bit_length() - 4, 0)


def present() -> Packing | None:
    """Return the packing of the batch that is on its way through the layers of a network; None outside of them."""
    return _present.get()


@contextmanager
def showing(packing: Packing) -> Iterator[None]:
    """Let layers see another packing than the present one for a while."""
    token = _present.set(packing)
    try:
        yield
    finally:
        _present.reset(token)


def end() -> None:
    """Let what the layers get from now on be padded."""
    _present.set(None)
    attention.rule.set(None)


@contextmanager
def packed(packing: Packing | None) -> Iterator[None]:
    """Have networks in which `install` was called pack their batch so, for one forward pass; None is as it comes."""
    token = _planned.set(packing)
    try:
        yield
    finally:
        _planned.reset(token)
        end()  # also where a layer has raised


def install(network: nn.Module) -> Callable[[], None] | None:
    """Make a network of Transformers ready for `packed`; return what undoes it, or None if the model can't be."""
    layers = stack_of_layers(network)
    if layers is None or not attention.install(network):
        return None
    handles = [layer.register_forward_pre_hook(_enter_layer, with_kwargs=True) for layer in layers]
    handles.append(layers[0].register_forward_pre_hook(_enter, with_kwargs=True, prepend=True))
    handles.append(layers[-1].register_forward_hook(_leave))

    def undo() -> None:
        for handle in handles:
            handle.remove()
        attention.uninstall(network)

    return undo


def stack_of_layers(network: nn.Module) -> nn.ModuleList | None:
    """Return the layers that a network consists of, one after the other."""
    config: Any = network.config
    count = getattr(
        config.get_text_config() if hasattr(config, "get_text_config") else config, "num_hidden_layers", None
    )
    stacks = [m for m in network.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return stacks[0] if len(stacks) == 1 and len({type(layer) for layer in stacks[0]}) == 1 else None


def _enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pack what enters the first layer."""
    packing = _planned.get()
    if packing is None:
        return args, kwargs
    _present.set(packing)
    attention.rule.set(partial(attention.within_samples, packing.lengths, packing.lengths))
    if args:
        return (packing.pack(args[0]), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": packing.pack(kwargs["hidden_states"])}


def _enter_layer(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give every layer the positions of its tokens, by number and rotary."""
    packing = _present.get()
    if packing is None:
        return args, kwargs
    positions, numbers = kwargs.get("position_embeddings"), kwargs.get("position_ids")
    if positions is not None:
        kwargs = kwargs | {"position_embeddings": tuple(map(packing.pack, positions))}
    if numbers is not None:
        kwargs = kwargs | {"position_ids": packing.pack(numbers)}
    return args, kwargs


def _leave(_layer: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
    """Pad what leaves the last layer."""
    packing = _present.get()
    if packing is None:
        return output
    end()
    return with_hidden(output, packing.unpack)


def with_hidden(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return what a layer returns, a tensor or a tuple that begins with it, with the tensor changed."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)
