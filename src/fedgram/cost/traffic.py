"""What a run's payloads are: a method's own code, run from round to round on tensors without numbers."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from functools import cached_property

import numpy as np
import torch

from fedgram.cost.figures import Setting, Size
from fedgram.cost.flop_counter import NotCountableError
from fedgram.cost.server_flops import aggregation
from fedgram.engine.network import ClientNetwork
from fedgram.methods import Method, RoundContext
from fedgram.methods.bounds import BOUNDS, bounded
from fedgram.methods.client_memory import NOTHING, begin
from fedgram.methods.client_ranks import deal_ranks
from fedgram.state import Layers, ModelState, ServerState, flatten, merge, without_numbers

__all__ = ["BOUNDS", "Traffic", "bounded"]


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
    start: ServerState
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
        start = without_numbers(ServerState(model, method.server_start(model, setting.clients)))
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
        for name, layer in self.start.adapter.items():
            kinds.setdefault(repr({f: (t.shape, t.dtype) for f, t in layer.items()}), []).append(name)
        alike = {names[0]: len(names) for names in kinds.values()}
        left_out = self.start.adapter.keys() - alike.keys()

        def kept(layers: Layers) -> Layers:
            return {name: layer for name, layer in layers.items() if name not in left_out}

        model = ModelState(kept(self.start.adapter), kept(self.start.head))
        start = ServerState(model, replace(self.start.memory, layers=kept(self.start.memory.layers)))
        return Traffic(self.method, start, alike, self.setting, self.seed)

    def _rounds(self, cohorts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[Size, Size]]:
        """Yield what all clients of a round send, and are sent, for one round after the other.

        Args:
            cohorts: for every round its clients, and the round in which each has last taken part.
        """
        server, kept = self.start, _Kept.nothing(self.setting.clients)
        for number, (clients, last) in enumerate(cohorts, 1):
            ctx = RoundContext(
                number, self.seed, dict(zip(clients.tolist(), last.tolist(), strict=True)), self.setting.clients
            )
            after = self.method.next_form(server, ctx)
            up, down = Size(), Size()
            for members in list(self._kinds(server, kept, clients, ctx)):
                sent, received, keeps = self._client(server, after, kept.of(members[0]), int(members[0]), ctx)
                up, down = up + sent * len(members), down + received * len(members)
                kept.put(members, keeps)
            yield up, down
            server = after

    def _client(
        self, server: ServerState, after: ServerState, kept: ModelState, client: int, ctx: RoundContext
    ) -> tuple[Size, Size, ModelState]:
        """Return what one client sends in a round, what it is sent before and after it trains, and what it keeps."""
        method = self.method
        context = method.context(server, client, ctx)
        payload, start = begin(method, server, self.start.model, kept, context)
        answer = method.answer(after, method.context(after, client, ctx)) or NOTHING
        keeps = merge(method.kept(method.pad(start, server, ctx)), answer)
        return self._size(method.upload(start, start, context)), self._size(payload) + self._size(answer), keeps

    def _size(self, payload: ModelState) -> Size:
        if not self.alike:
            return Size.of(payload)
        total = Size()
        for part, layers in payload.parts.items():
            for name, layer in layers.items():
                if not name and any(t.is_floating_point() for t in layer.values()):
                    raise _JoinedLayersError
                own = {name: layer}
                size = Size.of(ModelState(own) if part == "adapter" else ModelState(head=own))
                total += size * self.alike.get(name, 1)
        return total

    def _kinds(
        self, server: ServerState, kept: "_Kept", clients: np.ndarray, ctx: RoundContext
    ) -> Iterator[np.ndarray]:
        """Yield the clients of a cohort in groups that send and are sent as much.

        That depends on a client's rank, on what the server remembers of it, on what it keeps, and on what it has missed
        since it last took part: to some methods it also matters whether it is new, or missed no round.
        """
        last = np.array([ctx.last_rounds[client] for client in clients.tolist()], np.int64)
        rounds, places = np.unique(last, return_inverse=True)
        missed = [list(self.method.missed_changes(int(number), ctx.number).values()) for number in rounds]
        marks = [np.unique(missed, axis=0, return_inverse=True)[1].reshape(-1)[places]] if missed[0] else []
        marks += [np.where(last == ctx.number - 1, 2, np.minimum(last, 1)), kept.forms_of(clients)]
        if self.method.client_ranks is not None:
            ranks = deal_ranks(self.method.client_ranks, self.method.rank, self.setting.clients, self.seed)
            marks.append(ranks[clients])
        remembered = server.memory.globals.values()
        of_clients = [t for t in remembered if t.shape == (self.setting.clients,) and not t.is_floating_point()]
        marks += [tensor.numpy()[clients] for tensor in of_clients]
        _, kinds = np.unique(np.stack(marks), axis=1, return_inverse=True)
        order = np.argsort(kinds.reshape(-1), kind="stable")
        yield from np.split(clients[order], np.flatnonzero(np.diff(kinds.reshape(-1)[order])) + 1)

    def _check_form(self, network: ClientNetwork) -> None:
        """Compare what the method says of the server's tensors with those that an aggregation leaves."""
        setting, number = self.setting, self.method.settled + 1
        ctx = RoundContext(number, 0, dict.fromkeys(range(setting.cohort), number - 1), setting.clients)
        after = self.method.next_form(self.start, ctx)
        checked, parts = set(), {"adapter": after.adapter, "server": after.memory.layers}
        for name, layer in network.layers.items():
            if layer.part != "adapter" or (layer.d_in, layer.d_out) in checked:
                continue
            checked.add((layer.d_in, layer.d_out))
            real = aggregation(self.method, layer.d_in, layer.d_out, setting.clients, setting.cohort).shapes
            told = {(part, f): tuple(t.shape) for part, layers in parts.items() for f, t in _of(layers, name)}
            if told != dict(real):
                different = sorted(set(told.items()) ^ set(real.items()))
                raise NotCountableError(
                    f"after a round of {self.method.name} the server holds other tensors than "
                    f"{type(self.method).__name__}.next_form returns: {different[:4]}; the method needs that hook"
                )


@dataclass
class _Kept:
    """The forms of what clients keep: few, as many clients keep tensors of the same shapes.

    Attributes:
        forms: all that there are; the first is nothing.
        keys: what tells them apart, in their order.
        of_client: which of them each client has, int32 ``(clients,)``.
    """

    forms: list[ModelState]
    keys: list[str]
    of_client: np.ndarray

    @classmethod
    def nothing(cls, clients: int) -> "_Kept":
        """Return what clients keep before the first round."""
        return cls([NOTHING], [_key(NOTHING)], np.zeros(clients, np.int32))

    def of(self, client: int) -> ModelState:
        """Return the form of what a client keeps."""
        return self.forms[self.of_client[client]]

    def forms_of(self, clients: np.ndarray) -> np.ndarray:
        """Return which form each of some clients has."""
        return self.of_client[clients]

    def put(self, clients: np.ndarray, form: ModelState) -> None:
        """Set what some clients keep."""
        key = _key(form)
        if key not in self.keys:
            self.forms.append(form)
            self.keys.append(key)
        self.of_client[clients] = self.keys.index(key)


def _key(state: ModelState) -> str:
    return repr([(key, tensor.shape, tensor.dtype) for key, tensor in flatten(state).items()])


def _of(layers: Layers, name: str) -> Iterable[tuple[str, torch.Tensor]]:
    return layers.get(name, {}).items()


def _with_last(cohorts: Iterable[np.ndarray], clients: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield cohorts, ascending, and the round in which each of their clients has last taken part; 0 for none."""
    last = np.zeros(clients, np.int32)
    for number, cohort in enumerate(cohorts, 1):
        yield cohort, last[cohort]
        last[cohort] = number
