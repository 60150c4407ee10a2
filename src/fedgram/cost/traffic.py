"""What a method's payloads are, of its own code run on tensors without numbers."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch

from fedgram.cost.figures import Setting, Size
from fedgram.methods import Method, RoundInfo
from fedgram.methods.ranks import deal_ranks
from fedgram.network import ClientNetwork
from fedgram.server_flops import aggregation, remembered_of_head
from fedgram.state import State

__all__ = ["Traffic"]

_NOTHING: State = {"adapter": {}, "head": {}}


def _after_a_round(method: Method, network: ClientNetwork, start: State, setting: Setting) -> State:
    """Return what the server holds once it has aggregated, in tensors without numbers."""
    adapters = {name: layer for name, layer in network.layers.items() if layer.part == "adapter"}
    sizes = {name: (layer.d_in, layer.d_out) for name, layer in adapters.items()}
    found = {size: aggregation(method, *size, setting.clients, setting.cohort) for size in set(sizes.values())}
    after: State = {"adapter": {}, "head": _without_numbers(start)["head"], "server": {}}
    for name, size in sizes.items():
        for (part, field), shape in found[size].shapes.items():
            tensor = torch.empty(shape, dtype=network.dtype, device="meta")
            after[part].setdefault(name, {})[field] = tensor
    after["server"] |= remembered_of_head(method, start["head"], setting.clients, setting.cohort)
    for each in found.values():
        after["server"].setdefault("", each.remembered)
    return after


def _without_numbers(state: State) -> State:
    """Return tensors without numbers; what the server remembers of no layer, which may say who is sent what, as is."""
    return {
        part: {
            name: {f: torch.empty(t.shape, dtype=t.dtype, device="meta") if name else t for f, t in layer.items()}
            for name, layer in layers.items()
        }
        for part, layers in state.items()
    }


@dataclass(frozen=True)
class Traffic:
    """What a method's payloads are: those of its own code, of tensors without numbers.

    Attributes:
        method: the method.
        start: what the server holds in the first round, and until it has settled.
        later: what it holds in all others.
        setting: of the run.
        seed: of the run.
    """

    method: Method
    start: State
    later: State
    setting: Setting
    seed: int

    @classmethod
    def of(cls, method: Method, network: ClientNetwork, setting: Setting, seed: int) -> "Traffic":
        """Return the traffic of a method whose adapters a network has."""
        start = network.initial_state()
        first = {**start, "server": method.server_start(start, setting.clients)}
        return cls(method, _without_numbers(first), _after_a_round(method, network, start, setting), setting, seed)

    def usual(self) -> tuple[Size, Size]:
        """Return what a client sends and is sent in a round after the first: the mean of two, as methods take turns.

        It is a client that has missed no round, and the server has settled.
        """
        settled = self.method.settled
        rounds = settled + 1, settled + 2
        up, down = (_mean([way(number, number - 1) for number in rounds]) for way in (self.up, self.down))
        return up, down

    def of_all(self, cohorts: Sequence[Mapping[int, int]]) -> tuple[Size, Size]:
        """Return what all clients send in all rounds, and what they are sent.

        Args:
            cohorts: for every round, its clients with the round that each has last taken part in.
        """
        up, down = Size(), Size()
        for number, cohort in enumerate(cohorts, 1):
            kinds = Counter((self._like(client), self._told_apart(number, last)) for client, last in cohort.items())
            for (client, last), count in kinds.items():
                up += self._up(client, number, last) * count
                down += self._down(client, number, last) * count
        return up, down

    def down(self, number: int, last: int) -> Size:
        """Return what a client is sent in a round, that has last taken part in another: the mean over clients."""
        return self._over_clients(lambda client: self._down(client, number, last))

    def up(self, number: int, last: int) -> Size:
        """Return what it sends."""
        return self._over_clients(lambda client: self._up(client, number, last))

    def _down(self, client: int, number: int, last: int) -> Size:
        """Return what one client is sent, before it trains and at the end of the round."""
        server, info = self._held(number), self._info(client, number, last)
        answer = self.method.answer(self.later, client, info) or _NOTHING
        return Size.of(self.method.payload_down(server, client, info)) + Size.of(answer)

    def _up(self, client: int, number: int, last: int) -> Size:
        """Return what one client sends."""
        server, info = self._held(number), self._info(client, number, last)
        held, payload = self.method.without_shared(self.start), self.method.payload_down(server, client, info)
        start = self.method.start(server, held, payload, client, info)
        return Size.of(self.method.payload_up(server, start, start, client, info))

    def _over_clients(self, size: Callable[[int], Size]) -> Size:
        """Return the mean over as many clients as a round has, the first ones."""
        kinds = Counter(map(self._like, range(self.setting.cohort)))
        return _mean([each for client, count in kinds.items() for each in [size(client)] * count])

    def _like(self, client: int) -> int:
        """Return the first client whose payloads are as large as those of another: one of its rank."""
        if self.method.client_ranks is None:
            return 0
        ranks = deal_ranks(self.method.client_ranks, self.method.rank, self.setting.clients, self.seed)
        return int(np.flatnonzero(ranks == ranks[client])[0])

    def _told_apart(self, number: int, last: int) -> int:
        """Return a last round that stands for all after which a client is sent as much.

        To most methods it matters whether a client comes new, has missed no round, or some: then it is 1.
        """
        return last if self.method.catches_up or last == number - 1 else min(last, 1)

    def _held(self, number: int) -> State:
        return self.start if number <= self.method.settled else self.later

    def _info(self, client: int, number: int, last: int) -> RoundInfo:
        cohort = dict.fromkeys(range(self.setting.cohort), last) | {client: last}
        return RoundInfo(number, self.seed, cohort, self.setting.clients)


def _mean(sizes: Sequence[Size]) -> Size:
    return Size(*(round(sum(column) / len(sizes)) for column in zip(*map(astuple, sizes), strict=True)))
