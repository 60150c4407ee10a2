"""What a method's payloads are, of its own code run on tensors without numbers."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import torch

from fedgram.cost.figures import Setting, Size
from fedgram.methods import Method, RoundInfo
from fedgram.network import ClientNetwork
from fedgram.server_flops import aggregation
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
        start: what the server holds in the first round.
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

        It is a client that has missed no round.
        """
        up, down = (_mean([way(number, number - 1) for number in (2, 3)]) for way in (self.up, self.down))
        return up, down

    def down(self, number: int, last: int) -> Size:
        """Return what a client is sent in a round, that has last taken part in another: the mean over clients."""
        server, info = self._held(number), self._info(number, last)
        sent = self._mean_size(info, lambda client: self.method.payload_down(server, client, info))
        return sent + self._mean_size(info, lambda client: self.method.answer(self.later, client, info) or _NOTHING)

    def up(self, number: int, last: int) -> Size:
        """Return what it sends."""
        server, info = self._held(number), self._info(number, last)
        return self._mean_size(info, lambda client: self._sent(server, client, info))

    def _sent(self, server: State, client: int, info: RoundInfo) -> State:
        held, payload = self.method.without_shared(self.start), self.method.payload_down(server, client, info)
        start = self.method.start(server, held, payload, client, info)
        return self.method.payload_up(server, start, start, client, info)

    def _mean_size(self, info: RoundInfo, payload: Callable[[int], State]) -> Size:
        """Return the mean size of some payload over the clients of a round, where they are not all alike."""
        if self.method.client_ranks is None:
            return Size.of(payload(0))
        return _mean([Size.of(payload(client)) for client in info.cohort])

    def of_all(self, cohorts: Sequence[Counter[int]]) -> tuple[Size, Size]:
        """Return what all clients send in all rounds, and what they are sent."""
        up, down = Size(), Size()
        for number, cohort in enumerate(cohorts, 1):
            for last, count in cohort.items():
                up += self.up(number, last) * count
                down += self.down(number, last) * count
        return up, down

    def _held(self, number: int) -> State:
        return self.start if number == 1 else self.later

    def _info(self, number: int, last: int) -> RoundInfo:
        return RoundInfo(number, self.seed, dict.fromkeys(range(self.setting.cohort), last), self.setting.clients)


def _mean(sizes: Sequence[Size]) -> Size:
    return Size(*(round(sum(column) / len(sizes)) for column in zip(*map(astuple, sizes), strict=True)))
