"""Floating-point operations of local training.

What is counted are matrix products and attention, forwards and backwards, as torch's FlopCounterMode counts them: 2 m n
p for the product of m x n by n x p. It is the plain network's work on real tokens: no padding, no fillers, and none of
fedgram's shortcuts (`fedgram.backbone`); frozen weights get no gradient, as in torch; attention is its two products
over all pairs of tokens of a sample, also where a decoder masks half of them; weights are in single precision. What is
done entry by entry (norms, softmax, losses, the optimizer) counts nothing.

One local step of samples of T₁, T₂, … tokens is exactly

    step + Σᵢ (sample + token Tᵢ + squared_token Tᵢ²)

since most products grow with the tokens of a sample, attention's with their square, those of some heads with neither;
``step`` is what a method does once for all samples, such as FLoRG's A R. These four numbers come of one step on fake
tensors (`fedgram.cost.fake_network`), of as many samples and tokens as are primes that divide no size of the network:
the operations of a product then show which powers of both they have. Another step checks them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedgram.cost.fake_network import batch_of, client_start, cut, equal_layers, form_of, skeleton
from fedgram.cost.flop_counter import FlopCounter, NotCountableError, countable
from fedgram.data.tokens import TokenTable
from fedgram.engine.network import ClientNetwork
from fedgram.methods import Method, Phase
from fedgram.models import FederatedTask
from fedgram.models.loading import positions
from fedgram.state import Layout, ModelState, merge, split, stack, without

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["TrainingFlops", "Work", "flops_by_round", "training_flops"]

_SAMPLES = 10_007
"""A prime that is no factor of any size of a network."""
_PRIMES = (61, 59, 53, 47, 43, 41, 37, 31, 29, 23, 19, 17, 13, 11, 7, 5)
_counted_before: dict[str, "TrainingFlops"] = {}
"""By all that it depends on: a process that trains often counts once."""


@dataclass(frozen=True)
class Work:
    """What was trained on.

    Attributes:
        steps: local steps.
        samples: of all steps, each as often as it was seen.
        tokens: Σ T over these samples.
        squared_tokens: Σ T².
    """

    steps: int = 0
    samples: int = 0
    tokens: int = 0
    squared_tokens: int = 0

    @classmethod
    def of(cls, table: TokenTable, batches: Iterable[np.ndarray]) -> "Work":
        """Return the work of local steps on these samples."""
        lengths = [table.lengths_of(rows).astype(np.int64) for rows in batches]
        everything = np.concatenate([np.zeros(0, np.int64), *lengths])
        return cls(len(lengths), len(everything), int(everything.sum()), int((everything**2).sum()))

    def __add__(self, other: "Work") -> "Work":
        return Work(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class TrainingFlops:
    """What local steps cost, in operations: of each step, and of each sample, token and squared number of tokens."""

    step: int
    sample: int
    token: int
    squared_token: int

    def of(self, work: Work) -> int:
        """Return the operations of some work.

        >>> TrainingFlops(step=5, sample=1, token=10, squared_token=100).of(Work(1, 2, 7, 25))
        2577
        """
        return sum(cost * count for cost, count in zip(astuple(self), astuple(work), strict=True))


def flops_by_round(
    task: FederatedTask, config: "PretrainedConfig", method: Method, longest: int, clients: int, rounds: int
) -> list[TrainingFlops]:
    """Return what local steps cost in each of some rounds, as `training_flops` counts them.

    Rounds in which clients train the same fields are counted once.
    """
    kinds: dict[tuple[Phase, ...], TrainingFlops] = {}
    found = []
    for number in range(1, rounds + 1):
        phases = tuple(method.phases(number))
        if phases not in kinds:
            kinds[phases] = training_flops(task, config, method, longest, clients, (number,))
        found.append(kinds[phases])
    return found


def training_flops(
    task: FederatedTask,
    config: "PretrainedConfig",
    method: Method,
    longest: int = 64,
    clients: int = 1,
    rounds: tuple[int, ...] = (2, 3),
) -> TrainingFlops:
    """Count what local steps cost; no weights are needed, and none are made.

    It takes some tenths of a second, whatever the backbone: equal layers are counted once. Of a method that trains
    other fields in other steps it is the mean over some rounds; adapters of lower rank count as those that they are
    filled up to.

    Args:
        task: the task.
        config: of its network with the head.
        method: the method.
        longest: tokens of the samples that the result is checked on.
        clients: how many there are.
        rounds: which rounds, by their numbers.

    Raises:
        NotCountableError: the network can't be run on fake tensors, or the formula does not hold for it.
        ConfigurationError: the method does not fit the network.
    """
    key = repr([type(task), task.settings, config.to_dict(), type(method), vars(method), longest, clients, rounds])
    if key not in _counted_before:
        parts = _parts(method, rounds)
        found = []
        for part in parts:
            with countable(f"{method.name} on {task.backbone!r}"), skeleton(task, config, method) as network:
                found.append(_counted_once(_Steps(network, method, part, clients), longest))
        _counted_before[key] = _mean(found, parts)
    return _counted_before[key]


@dataclass(frozen=True)
class _Part:
    """Local steps that are all alike.

    Attributes:
        phase: what they are steps of.
        number: a round that has such steps.
        share: of the local steps of all rounds that are counted.
    """

    phase: Phase
    number: int
    share: Fraction


def _parts(method: Method, rounds: Sequence[int]) -> list[_Part]:
    """Return the kinds of local steps of some rounds, by the fields that clients train and do without."""
    found: dict[tuple[frozenset[str], frozenset[str]], _Part] = {}
    for number in rounds:
        for phase in method.phases(number):
            share = Fraction(phase.share).limit_denominator(10**6) / len(rounds)
            known = found.get((phase.trained, phase.absent), _Part(phase, number, Fraction(0)))
            found[phase.trained, phase.absent] = replace(known, share=known.share + share)
    return list(found.values())


def _mean(found: Sequence[TrainingFlops], parts: Sequence[_Part]) -> TrainingFlops:
    columns = zip(*map(astuple, found), strict=True)
    return TrainingFlops(
        *(round(sum(cost * part.share for cost, part in zip(column, parts, strict=True))) for column in columns)
    )


@dataclass(frozen=True)
class _Steps:
    """Local steps of one client that can be counted.

    Attributes:
        network: of fake tensors.
        method: whose adapters it has.
        part: which of its steps.
        clients: how many there are.
    """

    network: ClientNetwork
    method: Method
    part: _Part
    clients: int


_forms: dict[Any, TrainingFlops] = {}
"""What was counted before, by the forms of the network and of what is trained: many methods have LoRA's."""


def _counted_once(steps: _Steps, longest: int) -> TrainingFlops:
    network, task = steps.network, steps.network.task
    loaded: Any = task.loaded()
    backbone = repr([type(task), task.settings, loaded.config.to_dict(), longest])
    form = backbone, form_of(network.layers), form_of(network.shared), form_of([state.parts for state in _start(steps)])
    if form not in _forms:
        _forms[form] = _counted(steps, longest)
    return _forms[form]


def _start(steps: _Steps) -> tuple[ModelState, ModelState]:
    """Return what a client trains, and what it holds meanwhile."""
    state = steps.network.initial_state()
    steps.network.share(state)
    start = client_start(steps.method, state, steps.clients, steps.part.number)
    return split(without(start, steps.part.phase.absent), steps.part.phase.trained)


def _counted(steps: _Steps, longest: int) -> TrainingFlops:
    """Count by one layer and by two, where all are equal: every further one costs what the second does."""
    network = steps.network
    layers = equal_layers(network)
    if layers is None or len(layers) <= 3:
        found = _told_apart(steps)
        _check(found, _step(steps, 2, longest), longest)
        return found
    depth = len(layers)
    cut(network, layers, 3)
    third = _step(steps, 2, longest)
    cut(network, layers, 2)
    two = _told_apart(steps)
    cut(network, layers, 1)
    one = _told_apart(steps)
    _check(_deeper(one, two, 3), third, longest)
    return _deeper(one, two, depth)


def _deeper(one: TrainingFlops, two: TrainingFlops, depth: int) -> TrainingFlops:
    """Return what a backbone of some layers costs, from those of one layer and of two."""
    pairs = zip(astuple(one), astuple(two), strict=True)
    return TrainingFlops(*(first + (depth - 1) * (second - first) for first, second in pairs))


def _told_apart(steps: _Steps) -> TrainingFlops:
    """Count one step, product by product."""
    tokens = _telling_length(steps.network)
    found = {(0, 0): 0, (1, 0): 0, (1, 1): 0, (1, 2): 0}
    for flops in _step(steps, _SAMPLES, tokens):
        powers = _power(flops, _SAMPLES), _power(flops, tokens)
        if powers not in found:
            raise NotCountableError(
                f"a product has {flops} operations for {_SAMPLES} samples of {tokens} tokens, which no formula in the "
                "samples, their tokens and the squares of these has: they can't be summed over samples of all lengths"
            )
        found[powers] += flops // (_SAMPLES ** powers[0] * tokens ** powers[1])
    return TrainingFlops(*found.values())


def _power(number: int, prime: int) -> int:
    """Return how often a prime divides a positive number.

    >>> _power(18, 3)
    2
    """
    return 0 if number % prime else 1 + _power(number // prime, prime)


def _telling_length(network: ClientNetwork) -> int:
    """Return the largest prime that divides no size of the network, and is no more tokens than it can read."""
    backbone: Any = network.task.loaded()
    sizes = {size for tensor in (*backbone.parameters(), *backbone.buffers()) for size in tensor.shape}
    limit = positions(backbone)
    for prime in _PRIMES:
        if (limit is None or prime <= limit) and all(size % prime for size in sizes):
            return prime
    raise NotCountableError(f"a network of {limit} positions is too small to count the operations of its steps")


def _check(found: TrainingFlops, counted: Sequence[int], tokens: int) -> None:
    """Compare the formula with a count of its own."""
    expected = found.of(Work(1, 2, 2 * tokens, 2 * tokens**2))
    if expected != sum(counted):
        raise NotCountableError(
            f"two samples of {tokens} tokens take {sum(counted)} operations, and not {expected}, as a formula in the "
            "samples, their tokens and the squares of these has it: they can't be summed over samples of all lengths"
        )


def _step(steps: _Steps, samples: int, tokens: int) -> list[int]:
    """Count one local step of one client, product by product."""
    network = steps.network
    own, held = _start(steps)
    layout, fixed = Layout.of(own), stack([held])
    trained = layout.pack([own]).requires_grad_()
    table, rows = batch_of(network, samples, tokens)
    network.load(merge(layout.unpack(trained), fixed))  # what is made once and kept is made here
    with FlopCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        network.load(merge(layout.unpack(trained), fixed))
        outputs, _ = network.run(table, rows)
        torch.autograd.grad([tensor.sum() for tensor in outputs.values()], trained)
    return [int(flops) for flops in counter.calls if flops]
