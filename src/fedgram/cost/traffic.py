"""What a run's payloads are: a method's own code, run from round to round on tensors without numbers."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np
import torch

from fedgram.cost.figures import Setting, Size
from fedgram.flop_counter import NotCountableError
from fedgram.forms import BOUNDS, bounded
from fedgram.methods import Method, RoundInfo
from fedgram.methods.ranks import deal_ranks
from fedgram.network import ClientNetwork
from fedgram.server_flops import aggregation
from fedgram.state import PARTS, Layers, State, without_numbers

__all__ = ["BOUNDS", "Traffic", "bounded"]

_NOTHING: State = {"adapter": {}, "head": {}}


class _JoinedLayersError(Exception):
    """A payload has numbers of no single layer."""


@dataclass(frozen=True)
class Traffic:
    """What a method's payloads are, in the rounds of a run.

    Attributes:
        method: the method.
        start: what the server holds at first: tensors without numbers, but what it remembers of no layer.
        alike: for how many layers each of the server's stands.
        setting: of the run.
        seed: of the run.
    """

    method: Method
    start: State
    alike: Mapping[str, int]
    setting: Setting
    seed: int

    @classmethod
    def of(cls, method: Method, network: ClientNetwork, setting: Setting, seed: int) -> "Traffic":
        """Return the traffic of a method whose adapters a network has.

        Raises:
            NotCountableError: the server's tensors change otherwise than the method says.
        """
        model = network.initial_state()
        start = without_numbers({**model, "server": method.server_start(model, setting.clients)})
        found = cls(method, start, {}, setting, seed)
        if not method.unknown:
            found._check_form(network)
        return found

    def usual(self) -> dict[str, Size]:
        """Return what one client sends and is sent, if the first clients take part in every round.

        Returns:
            ``up_first`` and ``down_first`` of round 1; ``up`` and ``down`` of a later one: the mean of two, as methods
            take turns, once the server has settled.
        """
        cohort = [np.arange(self.setting.cohort)] * (self.method.settled + 2)
        rounds = list(self._rounds(_with_last(cohort, self.setting.clients)))

        def mean(sizes: list[Size]) -> Size:
            return Size(
                *(
                    round(sum(column) / len(sizes) / self.setting.cohort)
                    for column in zip(*map(astuple, sizes), strict=True)
                )
            )

        first, later = rounds[:1], rounds[-2:]
        return {
            f"{way}{mark}": mean([each[index] for each in some])
            for mark, some in (("_first", first), ("", later))
            for index, way in enumerate(("up", "down"))
        }

    def of_all(self, cohorts: Iterable[np.ndarray]) -> tuple[Size, Size]:
        """Return what all clients send in all rounds, and what they are sent.

        Args:
            cohorts: the clients of every round.
        """
        cohorts = list(cohorts)
        try:
            rounds = list(self._of_each_kind._rounds(_with_last(cohorts, self.setting.clients)))
        except _JoinedLayersError:
            rounds = list(self._rounds(_with_last(cohorts, self.setting.clients)))
        up, down = ([each[index] for each in rounds] for index in range(2))
        return sum(up, Size()), sum(down, Size())

    @cached_property
    def _of_each_kind(self) -> "Traffic":
        """The same with one adapted layer of each form, which stands for all of it."""
        kinds: dict[str, list[str]] = {}
        for name, layer in self.start["adapter"].items():
            kinds.setdefault(repr({f: (t.shape, t.dtype) for f, t in layer.items()}), []).append(name)
        alike = {names[0]: len(names) for names in kinds.values()}
        left_out = self.start["adapter"].keys() - alike.keys()
        start = {
            part: {name: layer for name, layer in layers.items() if name not in left_out}
            for part, layers in self.start.items()
        }
        return Traffic(self.method, start, alike, self.setting, self.seed)

    def _rounds(self, cohorts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[Size, Size]]:
        """Yield what all clients of a round send, and are sent, for one round after the other.

        Args:
            cohorts: for every round its clients, and the round in which each has last taken part.
        """
        server = self.start
        for number, (clients, last) in enumerate(cohorts, 1):
            info = RoundInfo(
                number, self.seed, dict(zip(clients.tolist(), last.tolist(), strict=True)), self.setting.clients
            )
            after = self.method.next_form(server, info)
            up, down = Size(), Size()
            for client, count in self._kinds(server, number, clients, last):
                sent, received = self._client(server, after, client, info)
                up, down = up + sent * count, down + received * count
            yield up, down
            server = after

    def _client(self, server: State, after: State, client: int, info: RoundInfo) -> tuple[Size, Size]:
        """Return what one client sends in a round, and is sent before and after it trains."""
        method, held = self.method, self.method.without_shared(self.start)
        payload = method.sent_down(server, client, info)
        start = method.start(server, held, payload, client, info)
        up = self._size(method.payload_up(server, start, start, client, info))
        return up, self._size(payload) + self._size(method.answer(after, client, info) or _NOTHING)

    def _size(self, payload: State) -> Size:
        if not self.alike:
            return Size.of(payload)
        total = Size()
        for part in PARTS:
            for name, layer in payload[part].items():
                if name not in self.start[part] and any(t.is_floating_point() for t in layer.values()):
                    raise _JoinedLayersError
                total += Size.of({**_NOTHING, part: {name: layer}}) * self.alike.get(name, 1)
        return total

    def _kinds(self, server: State, number: int, clients: np.ndarray, last: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield clients of a cohort of which others send and are sent as much, and how many those are with them.

        It depends on a client's rank, on what the server remembers of it, and on when it has last taken part: to most
        methods it matters whether it comes new, has missed no round, or some.
        """
        known = last if self.method.catches_up else np.where(last == number - 1, 2, np.minimum(last, 1))
        marks = [known]
        if self.method.client_ranks is not None:
            ranks = deal_ranks(self.method.client_ranks, self.method.rank, self.setting.clients, self.seed)
            marks.append(ranks[clients])
        remembered = server["server"].get("", {}).values()
        of_clients = [t for t in remembered if t.shape == (self.setting.clients,) and not t.is_floating_point()]
        marks += [tensor.numpy()[clients] for tensor in of_clients]
        _, first, counts = np.unique(np.stack(marks), axis=1, return_index=True, return_counts=True)
        yield from zip(clients[first].tolist(), counts.tolist(), strict=True)

    def _check_form(self, network: ClientNetwork) -> None:
        """Compare what the method says of the server's tensors with those that an aggregation leaves."""
        setting, number = self.setting, self.method.settled + 1
        info = RoundInfo(number, 0, dict.fromkeys(range(setting.cohort), number - 1), setting.clients)
        after = self.method.next_form(self.start, info)
        checked = set()
        for name, layer in network.layers.items():
            if layer.part != "adapter" or (layer.d_in, layer.d_out) in checked:
                continue
            checked.add((layer.d_in, layer.d_out))
            real = aggregation(self.method, layer.d_in, layer.d_out, setting.clients, setting.cohort).shapes
            told = {(part, f): tuple(t.shape) for part in ("adapter", "server") for f, t in _of(after[part], name)}
            if told != dict(real):
                different = sorted(set(told.items()) ^ set(real.items()))
                raise NotCountableError(
                    f"after a round of {self.method.name} the server holds other tensors than "
                    f"{type(self.method).__name__}.next_form returns: {different[:4]}; the method needs that hook"
                )


def _of(layers: Layers, name: str) -> Iterable[tuple[str, torch.Tensor]]:
    return layers.get(name, {}).items()


def _with_last(cohorts: Iterable[np.ndarray], clients: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield cohorts, ascending, and the round in which each of their clients has last taken part; 0 for none."""
    last = np.zeros(clients, np.int32)
    for number, cohort in enumerate(cohorts, 1):
        yield cohort, last[cohort]
        last[cohort] = number
