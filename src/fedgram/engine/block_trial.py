"""Whether a backbone can train a block of clients in one pass, found by trying it on two samples before a run starts.

A block is right where every client gets what it gets alone: the losses of its samples and the gradients of its tensors.
That holds as long as an adapted layer knows which of the tokens that it gets are whose. Most models give their layers
(rows, positions, d); some put positions first, some make one axis of both, and a few mix the rows of a batch: relative
positions that all of them share, tokens that are sorted by expert. Which it is shows when a model is given the same
rows once and twice: the axis that doubles is the one that has the rows.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgram.data.tokens import TokenTable
from fedgram.engine.network import ClientNetwork
from fedgram.errors import ConfigurationError
from fedgram.seeding import torch_generator
from fedgram.state import ModelState, stack, without

__all__ = ["BlockTrial", "try_blocks"]

log = logging.getLogger(__name__)

_Shapes = Mapping[str, list[tuple[int, ...]]]
_Key = tuple[str, str]
_NOISE = 0.3
"""Of what clients are moved apart by, as a share of what keeps a product's size: enough to be seen in every answer."""


@dataclass
class BlockTrial:
    """What came of a trial.

    Attributes:
        alone: why clients must be trained one at a time; None where blocks are right.
        notes: what else a user may want to know.
    """

    alone: str | None = None
    notes: list[str] = field(default_factory=list)

    def report(self) -> None:
        """Log what a user should know."""
        for note in self.notes:
            log.warning("%s", note)
        if self.alone is not None:
            log.warning("clients are trained one at a time (clients_per_block 1): %s", self.alone)


@dataclass(frozen=True)
class _Answer:
    """What clients learn from a batch of samples.

    Attributes:
        losses: of the samples.
        gradients: of each client's tensors, by layer and field.
        shapes: of what each layer got, call by call, without the last axis.
        passed: the layers whose own weights were computed with past their adapters.
    """

    losses: Tensor
    gradients: dict[_Key, Tensor]
    shapes: _Shapes
    passed: list[str]


def try_blocks(network: ClientNetwork, table: TokenTable) -> BlockTrial:
    """Find out whether a block of clients is trained as each of them alone, and set the axis of each layer's rows.

    Where only packing is what goes wrong, the network does without it from here on.

    Args:
        network: the backbone with its client layers, before training.
        table: the training samples.

    Raises:
        ConfigurationError: the backbone goes past an adapted layer, or can't be trained with it.
    """
    packs, rows, trial = network.packs, _samples(table), BlockTrial()
    network.packs = False
    network.share(network.initial_state())
    clients = [_client(network, number) for number in range(2)]
    with _refusing(network):
        alone = _answer(network, table, rows, clients[:1])
        network.load(stack(clients[:1]))
        with torch.no_grad(), _recording(network) as twice:
            network.run(table, np.tile(rows, 2))
    _check_passed(network, alone.passed)
    trial.notes += _idle(network, alone)
    if not network.one_by_one:  # or a layer never gets rows of several clients
        trial.alone = _find_axes(network, alone.shapes, twice)
    if not alone.losses.isfinite().all():
        trial.alone = "losses of two samples that were tried are not finite"
    trial.alone = trial.alone or _trouble(network, table, rows, clients, alone)
    network.packs = packs  # for a client alone that is right, as was tried before
    if packs and trial.alone is None and (trouble := _trouble(network, table, rows, clients, alone)):
        network.packs = False
        trial.notes.append(f"batches are padded: without padding, {trouble}")
    return trial


def _samples(table: TokenTable) -> np.ndarray:
    """Return a short sample and a longer one, of eight tokens at least if there are such, so that one is padded."""
    order = np.argsort(table.lengths, kind="stable")
    order = order[min(int((table.lengths < 8).sum()), len(order) - 1) :]
    longer = np.flatnonzero(table.lengths_of(order) > 1.5 * table.lengths_of(order[:1]))
    return np.append(order[0], order[longer[0] if len(longer) else -1])


def _client(network: ClientNetwork, number: int) -> ModelState:
    """Return a model that differs from that of every other client in all that clients may train."""
    generator = torch_generator(number, "block trial")

    def moved(tensor: Tensor) -> Tensor:
        noise = _NOISE * torch.randn(tensor.shape, generator=generator) * max(tensor.shape[-1:], default=1) ** -0.5
        return tensor + noise.to(tensor)

    return without(network.initial_state(), network.shared).map(moved)


def _answer(network: ClientNetwork, table: TokenTable, rows: np.ndarray, clients: Sequence[ModelState]) -> _Answer:
    """Return what clients learn from samples, of which each has an equal part."""
    model = stack(clients)
    layers = model.adapter | model.head
    tensors = {(n, f): t.requires_grad_() for n, own in layers.items() for f, t in own.items()}
    network.load(model)
    with _standing_in(network) as weights, _recording(network) as shapes:
        losses = network.task.sample_losses(*network.run(table, rows))
    wanted = [*tensors.values(), *weights.values()]
    found = (
        torch.autograd.grad(losses.sum(), wanted, allow_unused=True) if losses.requires_grad else [None] * len(wanted)
    )
    gradients = {k: torch.zeros_like(t) if g is None else g for (k, t), g in zip(tensors.items(), found, strict=False)}
    passed = [n for n, gradient in zip(weights, found[len(tensors) :], strict=True) if gradient is not None]
    return _Answer(losses.detach(), gradients, shapes, passed)


@contextmanager
def _standing_in(network: ClientNetwork) -> Iterator[dict[str, Tensor]]:
    """Give models that ask a layer for its weight one that shows in the gradients if they compute with it."""
    for layer in network.layers.values():
        layer.stand_in = layer.weight.detach().requires_grad_()
    try:
        yield {n: layer.stand_in for n, layer in network.layers.items() if layer.stand_in is not None}
    finally:
        for layer in network.layers.values():
            layer.stand_in = None


@contextmanager
def _recording(network: ClientNetwork) -> Iterator[dict[str, list[tuple[int, ...]]]]:
    """Note what shapes each layer gets."""
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in network.layers}

    def note(name: str) -> Any:
        return lambda _layer, args: shapes[name].append(tuple(args[0].shape[:-1]))

    handles = [layer.register_forward_pre_hook(note(name)) for name, layer in network.layers.items()]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _refusing(network: ClientNetwork) -> Iterator[None]:
    """Make a line of what a backbone raises that can't be trained with adapters where they are."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ConfigurationError(
            f"{network.task.backbone!r} can't be trained with {_some(list(network.layers))} adapted ({_line(error)}); "
            "name other layers in method.target_modules"
        ) from error


def _check_passed(network: ClientNetwork, names: list[str]) -> None:
    """Refuse a backbone that computes with the weights of layers itself, so that adapters there would do nothing."""
    if names:
        head = network.layers[names[0]].part == "head"
        raise ConfigurationError(
            f"{network.task.backbone!r} computes with the weights of {_some(names)} itself, past what clients train "
            "there; "
            f"{'set method.head to frozen' if head else 'name other layers in method.target_modules'}"
        )


def _idle(network: ClientNetwork, answer: _Answer) -> list[str]:
    """Return a line about adapters that change no answer, if there are such.

    Raises:
        ConfigurationError: none changes an answer.
    """
    moved = {name for (name, _), gradient in answer.gradients.items() if gradient.any()}
    adapters = [name for name, layer in network.layers.items() if layer.part == "adapter"]
    idle = [name for name in adapters if name not in moved]
    if not idle:
        return []
    if idle == adapters:
        raise ConfigurationError(
            f"{network.task.backbone!r} gives the adapters on {_some(idle)} no gradient: nothing would be trained; "
            "name other layers in method.target_modules"
        )
    return [f"adapters on {_some(idle)} got no gradient from two samples that were tried, but are counted and sent"]


def _find_axes(network: ClientNetwork, once: _Shapes, twice: _Shapes) -> str | None:
    """Set which axis has the rows of each layer, by what it got of some rows and of the same rows twice.

    Returns:
        None, or why there is a layer without such an axis.
    """
    for name, layer in network.layers.items():
        if not once[name]:
            return f"{name} was not used by two samples that were tried"
        axes = {_doubled(*shapes) for shapes in zip_longest(once[name], twice[name], fillvalue=())}
        if len(axes) > 1 or None in axes:
            return f"{name} gets tokens in which the rows of a batch are not kept apart"
        layer.rows_axis = axes.pop() or 0
    return None


def _doubled(once: tuple[int, ...], twice: tuple[int, ...]) -> int | None:
    """Return the one axis of which there is twice as much.

    >>> _doubled((7, 2), (7, 4)), _doubled((14,), (28,)), _doubled((5, 2), (5, 2))
    (1, 0, None)
    """
    axes = [axis for axis, (a, b) in enumerate(zip(once, twice, strict=False)) if a != b]
    return axes[0] if len(axes) == 1 and len(once) == len(twice) and twice[axes[0]] == 2 * once[axes[0]] else None


def _trouble(
    network: ClientNetwork, table: TokenTable, rows: np.ndarray, clients: Sequence[ModelState], alone: _Answer
) -> str | None:
    """Return what is wrong with what the first client gets from one pass for all of them; None where nothing is."""
    try:
        together = _answer(network, table, np.tile(rows, len(clients)), clients)
    except torch.OutOfMemoryError:
        return "there is no memory for two clients at a time"
    except (RuntimeError, ConfigurationError) as error:
        return f"a block of clients fails ({_line(error)})"
    share, rounding = _tolerance(network)
    losses = together.losses.view(len(clients), -1)
    apart, off = ((losses[0] - other).abs().max() for other in (losses[1], alone.losses))
    largest = max(gradient.norm() for gradient in alone.gradients.values())
    right = off <= share * apart + rounding * alone.losses.abs().max() and all(
        (together.gradients[key][:1] - own).norm() <= share * (own.norm() + 1e-3 * largest)
        for key, own in alone.gradients.items()
    )
    return None if right else "a client of a block does not get the losses and gradients that it gets alone"


def _tolerance(network: ClientNetwork) -> tuple[float, float]:
    """Return what share of the difference between clients, and of an answer, rounding may make.

    A layer that mixes clients is off by about as much as they differ.
    """
    with network.autocast():
        low = torch.is_autocast_enabled(network.device.type) or network.task.weights_dtype.itemsize < 4
    if network.dtype == torch.float64:
        return 1e-6, 1e-10
    return (0.2, 2e-2) if low else (2e-2, 1e-5)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} layers, such as {names[0]},"


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
