"""Floating-point operations of the server's part of a round.

The method's own `Method.aggregate` is run on random uploads and counted: matrix products as torch counts them,
decompositions by the formulas of `fedgram.cost.flop_counter`, and for every weighted mean over N clients 2 N operations
a number. What else is done entry by entry counts nothing. Neither do figures about an aggregation, which no method
needs, nor what happens once at the start, such as decompositions of weights.

One layer of each shape is enough. And the operations are a polynomial of degree 3 in the size of a layer, as long as
that is larger than the rows that all clients send together: so a large layer is counted at five small sizes of its
proportions, of which four give the polynomial and one checks it.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from fedgram.adapters import ClientLayer
from fedgram.cost.flop_counter import FlopCounter, countable
from fedgram.distributed.uploads import Uploads
from fedgram.methods import ClientContext, Method, RoundContext
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.seeding import isolated, torch_generator
from fedgram.state import Layer, Layers, ModelState, Payload, ServerState, split

__all__ = ["Aggregation", "aggregation", "server_flops"]

_LAYER = "layer"
"""The name of the one layer that stands for all of its shape."""


@dataclass(frozen=True)
class Aggregation:
    """What one aggregation of one layer costs, and what it leaves.

    Attributes:
        flops: its operations; a fraction, as some formulas have thirds.
        shapes: of the server's tensors afterwards, by part and field: those of the layer in its model, and those that
            it remembers of the layer.
    """

    flops: Fraction
    shapes: Mapping[tuple[str, str], tuple[int, ...]]

    @property
    def numbers(self) -> list[Fraction]:
        """All that depends on the size of the layer."""
        return [self.flops, *(Fraction(size) for shape in self.shapes.values() for size in shape)]

    def with_numbers(self, numbers: Sequence[Fraction]) -> "Aggregation":
        """Return the aggregation of another layer, whose tensors have as many dimensions."""
        flops, *sizes = numbers
        left: Iterator[int] = iter(map(int, sizes))
        return Aggregation(flops, {key: tuple(next(left) for _ in shape) for key, shape in self.shapes.items()})


def server_flops(method: Method, layers: Mapping[str, ClientLayer], clients: int, cohort: int) -> int:
    """Count what the server computes in a round.

    Args:
        method: the method.
        layers: those with tensors per client, the head's among them; their tensors may be fake.
        clients: how many there are.
        cohort: N, how many of them take part in a round.
    """
    sizes = Counter((layer.d_in, layer.d_out) for layer in layers.values() if layer.part == "adapter")
    head = {name: layer.initial() for name, layer in layers.items() if layer.part == "head"}
    with countable(f"the server of {method.name}"):
        adapters = sum(count * aggregation(method, *size, clients, cohort).flops for size, count in sizes.items())
        return round(adapters + _of_head(method, head, cohort))


_counted_before: dict[str, Aggregation] = {}
"""By all that it depends on: the traffic of a method and its operations both ask for it."""


def aggregation(method: Method, d_in: int, d_out: int, clients: int, cohort: int) -> Aggregation:
    """Count the aggregation of one layer, on small layers of its proportions where that is exact."""
    key = repr([type(method), vars(method), d_in, d_out, clients, cohort])
    if key not in _counted_before:
        _counted_before[key] = _aggregation(method, d_in, d_out, clients, cohort)
    return _counted_before[key]


def _aggregation(method: Method, d_in: int, d_out: int, clients: int, cohort: int) -> Aggregation:
    unit = math.gcd(d_in, d_out)
    a, b = d_in // unit, d_out // unit
    # From here on all sides of a layer are well beyond the rows of all clients, near which formulas change their form.
    first = math.ceil(2 * max((cohort + 1) * method.rank, method.least_side) / min(a, b))
    scales = [*range(first, first + 4), 2 * first + 3]
    if scales[-1] < unit:
        small = [_counted(method, scale * a, scale * b, clients, cohort) for scale in scales]
        columns = zip(*(each.numbers for each in small), strict=True)
        numbers = [_extrapolated(list(zip(scales, column, strict=True)), unit) for column in columns]
        if None not in numbers:
            return small[0].with_numbers([number for number in numbers if number is not None])
    return _counted(method, d_in, d_out, clients, cohort)


def _extrapolated(points: Sequence[tuple[int, Fraction]], at: int) -> Fraction | None:
    """Return the value of the polynomial through all points but the last; None if that one is not on it."""
    *given, (x, y) = points
    return _interpolated(given, at) if _interpolated(given, x) == y else None


def _interpolated(points: Sequence[tuple[int, Fraction]], at: int) -> Fraction:
    """Return the value of the polynomial of least degree through some points (Lagrange).

    >>> _interpolated([(0, Fraction(1)), (1, Fraction(2)), (2, Fraction(5))], 10)  # x² + 1
    Fraction(101, 1)
    """
    return sum(
        (y * math.prod(Fraction(at - other, x - other) for other, _ in points if other != x) for x, y in points),
        Fraction(0),
    )


def _counted(method: Method, d_in: int, d_out: int, clients: int, cohort: int) -> Aggregation:
    """Run a round of one layer on random tensors, but for local training, and count the server's part."""
    after, flops = _round(method, d_in, d_out, clients, cohort)
    shapes = {
        (part, field): tuple(tensor.shape)
        for part, layers in (("adapter", after.adapter), ("server", after.memory.layers))
        for field, tensor in layers.get(_LAYER, {}).items()
    }
    return Aggregation(flops, shapes)


def _round(method: Method, d_in: int, d_out: int, clients: int, cohort: int) -> tuple[ServerState, Fraction]:
    """Run a round of one layer without a head, and return what the server then holds, and its operations."""
    ctx = RoundContext(method.settled + 1, 0, dict.fromkeys(range(cohort), method.settled), clients)
    with isolated(0, "server flops"):
        adapter = method.adapter(nn.Linear(d_in, d_out), torch_generator(0, "server flops"))
        model = ModelState({_LAYER: _drawn(adapter.initial())})
        server = ServerState(model, method.server_start(model, clients))
        sent = [_sent(method, server, method.context(server, c, ctx)).parts["adapter"] for c in range(cohort)]
    uploads = _Cohort(sent)
    with torch.no_grad(), FlopCounter() as counter:
        after = method.next_state(server, uploads, _Cohort([{}] * cohort), ctx)
    return after, counter.total + uploads.flops_of_means


def _sent(method: Method, server: ServerState, ctx: ClientContext) -> Payload:
    """Return what the server reads of a client whose training has added random tensors to what it started from."""
    _, start = begin(method, server, server.model, NOTHING, ctx)
    drawn = {
        name: start.adapter[name] | {field: tensor + torch.randn_like(tensor) for field, tensor in own.items()}
        for name, own in _trained(method, start).items()
    }
    return method.receive(server, method.upload(start, ModelState(drawn, start.head), ctx), ctx)


def _trained(method: Method, start: ModelState) -> Layers:
    return split(start, method.trained_fields)[0].adapter


def _drawn(layer: Layer) -> Layer:
    """Return tensors of a layer's shapes that are of full rank."""
    return {field: torch.randn_like(tensor) for field, tensor in layer.items()}


def _of_head(method: Method, head: Layers, clients: int) -> int:
    """Count the aggregation of the head; no numbers are needed, as it is averaged at most."""
    shapes = {name: {f: torch.empty(t.shape, device="meta") for f, t in layer.items()} for name, layer in head.items()}
    uploads = _Cohort([shapes] * clients)
    method.next_head(shapes, uploads)
    return uploads.flops_of_means


class _Cohort(Uploads):
    """The uploads of clients of equal weight, without ranks, which notes what means cost.

    Attributes:
        flops_of_means: 2 N for every number of every mean so far.
    """

    def __init__(self, payloads: Sequence[Layers]) -> None:
        # Not the parent's: that looks for what is not finite, and meta tensors hold nothing to look at.
        self.clients = list(range(len(payloads)))
        self.weights = torch.full((len(payloads),), 1 / len(payloads), dtype=torch.float64)
        self.flops_of_means = 0
        self._sent = payloads

    def mean(self, layer: str, of: Callable[[Layer], Tensor], like: Tensor) -> Tensor:
        self.flops_of_means += 2 * len(self.clients) * like.numel()
        total = like.new_zeros(like.shape, dtype=torch.float64)
        for payload in self._sent:
            total += of(payload[layer]) / len(self._sent)
        return total

    def stack(self, layer: str, field: str, like: Tensor) -> Tensor:
        return torch.stack([payload[layer][field] for payload in self._sent])
