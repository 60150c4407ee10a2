"""The figures that an estimate of costs consists of."""

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

from fedgram.state import ModelState, bytes_of, parameters_of

__all__ = ["Cost", "Estimate", "Memory", "Payloads", "Setting", "Size"]


@dataclass(frozen=True)
class Setting:
    """What the costs are about.

    Attributes:
        backbone: as it was given.
        shape: the shape that stands for it, where its own configuration is not at hand.
        data: what the data is called.
        labels: of the head.
        tokens: of every sample.
        batch_size: samples of one local step.
        samples: of the train split; None where that is not known.
        clients: N.
        cohort: clients of a round.
        rounds: of the run.
        local_steps: of a client in a round; None where it takes the samples, which are not known, to tell.
        clients_per_block: for which memory is told.
        auto: whether a run would choose that itself.
        precision: as the trainer's.
    """

    backbone: str
    shape: str | None
    data: str
    labels: int
    tokens: int
    batch_size: int
    samples: int | None
    clients: int
    cohort: int
    rounds: int
    local_steps: int | None
    clients_per_block: int
    auto: bool
    precision: str


@dataclass(frozen=True)
class Size:
    """Parameters and their bytes, of the adapters and of the head."""

    adapter: int = 0
    head: int = 0
    adapter_bytes: int = 0
    head_bytes: int = 0

    @classmethod
    def of(cls, state: ModelState) -> "Size":
        """Return the size of a payload."""
        parts = state.parts.values()
        return cls(*map(parameters_of, parts), *map(bytes_of, parts))

    @property
    def parameters(self) -> int:
        """Of both parts."""
        return self.adapter + self.head

    @property
    def bytes(self) -> int:
        """Of both parts."""
        return self.adapter_bytes + self.head_bytes

    def __mul__(self, count: int) -> "Size":
        return Size(*(count * number for number in astuple(self)))

    def __add__(self, other: "Size") -> "Size":
        return Size(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Payloads:
    """What is sent with one method, by the names of `Cost`'s attributes.

    Attributes:
        most: the most that it can be, which is what is sent where all is known.
        least: the least of all that is not known.
        unknown: what they differ by; "" where all is known.
    """

    most: Mapping[str, Size]
    least: Mapping[str, Size]
    unknown: str

    def bounds(self, name: str) -> tuple[Size, Size]:
        """Return the least and the most of one of them."""
        return self.least.get(name, self.most[name]), self.most[name]


@dataclass(frozen=True)
class Memory:
    """Bytes that one rank needs, besides what libraries, kernels and evaluation take.

    Attributes:
        held: frozen weights, and what all clients share, such as FLoRG's bases.
        per_client: of a block: its parameters, their gradient and AdamW's two moments, and what the forward pass of a
            batch keeps for the backward pass, where attention keeps no probabilities.
        uploads: what the cohort has sent, until it is aggregated.
        clients: of a block.
    """

    held: int
    per_client: int
    uploads: int
    clients: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.held + self.clients * self.per_client + self.uploads


@dataclass(frozen=True)
class Cost:
    """What one method costs.

    What is sent is exact, but for what only training can tell (`unknown`): there these are the most that it can be, and
    `least` has the least.

    Attributes:
        method: its name.
        trained: what a client trains.
        up_first: what it sends in the first round.
        up: what it sends later, if it has missed no round; the mean of two rounds, as methods may take turns.
        down_first: what it is sent in the first round: nothing, but for methods that answer what was sent up.
        down: what it is sent later, likewise.
        all_up: what all clients send in all rounds.
        all_down: what they are sent, those that have missed rounds or come new among them.
        step_flops: of one local step of one client: the mean over rounds, in which it may train other fields.
        round_flops: of all clients of a round, likewise; None where the number of their steps is not known.
        server_flops: of the server in a round.
        memory: of a rank.
        once: what a client tells about its data before the first round, if it has enough samples of every class.
        all_flops: of all clients in all rounds.
        unknown: what the least and the most that is sent differ by; "" where all is known.
        least: by the name of its attribute, the least of all that is not known; empty where all is.
    """

    method: str
    trained: Size
    up_first: Size
    up: Size
    down_first: Size
    down: Size
    all_up: Size
    all_down: Size
    step_flops: int
    round_flops: int | None
    server_flops: int
    memory: Memory
    once: Size = Size()
    all_flops: int | None = None
    unknown: str = ""
    least: Mapping[str, Size] = field(default_factory=dict)

    def bounds(self, name: str) -> tuple[Size, Size]:
        """Return the least and the most of what is sent, by the name of the attribute; equal where it is known."""
        most: Size = getattr(self, name)
        return self.least.get(name, most), most


@dataclass(frozen=True)
class Estimate:
    """The costs of one or more methods in one setting."""

    setting: Setting
    costs: tuple[Cost, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain types, the sum of each memory with it."""
        costs = [asdict(cost) for cost in self.costs]
        for cost, plain in zip(self.costs, costs, strict=True):
            plain["memory"]["total"] = cost.memory.total
        return {"setting": asdict(self.setting), "costs": costs}
