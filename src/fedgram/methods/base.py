"""The contract of a federated method.

A method is one class in one file. It answers three questions: what an adapter is (`Method.adapter`), what travels
(`Method.fields`), and how the server aggregates (`Method.aggregate`). The trainer, the ledger, the checkpoint and the
collectives know methods only through this class. What else happens in a round has a default, which a method may
replace; here it stands in the order in which it happens:

===================  ==================================================================================
`server_start`       what the server remembers beside the model, at the start
`describe`           client: what it tells the server about its data, once, if the method asks for it
`read_descriptions`  server: what it remembers of what all clients told
`payload_down`       server: what it sends to one client, in any round but the first
`start`              client: the model that it trains, of what it holds and what it was sent
`origin`             client: where weight decay draws it to, if that is the start of the run
`phases`             client: which fields it trains, one set after the other
`penalty`            client: what it adds to its loss
`payload_up`         client: what it sends back
`kept`               client: what stays with it
`receive`            server: how it reads what a client sent
`next_state`         server: its next model, by `aggregate` and `next_head`, and what it remembers
`answer`             server: what it sends to one client of the cohort at the end of the round
`figures`            server: what is told of the round beside `diagnose`
`model`              server: the model that is judged
===================  ==================================================================================
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters import Adapter, ClientLayer, find_targets, swap, swap_heads
from fedgram.adapters.base import layer_sizes
from fedgram.errors import ConfigurationError, require_choice
from fedgram.method_facts import Paper
from fedgram.methods.fields import Field, cut, fill_up, select
from fedgram.methods.ranks import ClientRanks, check_ranks, deal_ranks
from fedgram.seeding import torch_generator
from fedgram.state import PARTS, Layer, Layers, State, merge
from fedgram.uploads import Uploads, average

__all__ = ["Diagnostics", "HeadPolicy", "Method", "Paper", "Phase", "RoundInfo", "generator_of"]

HeadPolicy = Literal["averaged", "local", "frozen"]
Bound = Literal["least", "most"]
Diagnostics = dict[str, dict[str, float]]
"""Figures about one aggregation: layer -> name -> value."""


@dataclass(frozen=True)
class Phase:
    """A stretch of a client's local steps.

    Attributes:
        trained: the adapters' fields that are trained in it; all others are held. The head is trained in every phase.
        share: of the client's local steps.
        name: under which an optimizer that keeps its state finds it again; "" where a method has one phase, always.
        absent: fields, none of them trained, that the client's model does without meanwhile, as if it had none.
    """

    trained: frozenset[str]
    share: float = 1.0
    name: str = ""
    absent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class RoundInfo:
    """What a method may know of a round besides tensors.

    Attributes:
        number: 1 for the first.
        seed: the seed of the run, from which a method derives what it draws (see `fedgram.seeding`).
        last: every client of the cohort, ascending, with the last round that it took part in; 0 if there was none.
        clients: how many there are, in the cohort and beside it.
    """

    number: int
    seed: int
    last: Mapping[int, int]
    clients: int = 0

    @property
    def cohort(self) -> list[int]:
        """The clients of the round, ascending: the order of every stack of uploads."""
        return sorted(self.last)

    def is_new(self, client: int) -> bool:
        """Say whether a client takes part for the first time."""
        return self.last[client] == 0

    def is_up_to_date(self, client: int) -> bool:
        """Say whether a client has missed no round since the first."""
        return self.last[client] == self.number - 1


def generator_of(layer: str, seed: int) -> torch.Generator:
    """Return what draws the adapter of a layer: a method may draw again what it has given to `Method.adapter`."""
    return torch_generator(seed, f"adapter of {layer}")


class Method(ABC):
    """A federated low-rank fine-tuning method.

    Args:
        rank: r, the rank of the adapters.
        alpha: the adapter's output is scaled by alpha / rank.
        target_modules: ends of the names of the layers to adapt, such as [query, value]; by default the query and value
            projections of the architecture.
        head: what happens to the task's output layer: "averaged" (trained by the clients and averaged by the server),
            "local" (trained by each client for itself, and never sent) or "frozen" (left as it is).
        client_ranks: ranks that differ from client to client, at most r, for methods that allow it: a list with one for
            every client; shares of clients by rank, such as {8: 0.25, 4: 0.75}; or "uniform", "normal" or "heavy_tail",
            drawn from 1 to r. By default every client has rank r.

    Attributes:
        fields: the tensors of an adapted layer.
        paper: where the method comes from.
        exact: whether the server's ΔW is the weighted mean of the clients', up to rounding.
        heterogeneous: whether clients may have ranks of their own.
        catches_up: whether what a client is sent depends on which rounds it has missed; else on whether it missed any.
        travels: what is sent, in few words.
        describes_data: whether every client tells the server about its data before the first round.
        unknown: what the sizes of payloads depend on that only training can tell; "" where nothing is.
        bound: which end of it `next_form` and payloads of tensors without numbers take, so that costs are a range.
        settled: the round whose aggregation gives the server's tensors the form that they keep: the first, unless a
            method begins with others that go otherwise. Costs are told by it.
        variants: the kinds of the method that comparisons of all methods show, by name, with what each sets; none for
            one kind, with its defaults.
    """

    fields: tuple[Field, ...]
    paper: ClassVar[Paper]
    exact: ClassVar[bool] = False
    heterogeneous: ClassVar[bool] = False
    catches_up: ClassVar[bool] = False
    travels: ClassVar[str]
    describes_data: bool = False
    unknown: str = ""
    bound: Bound = "most"
    settled: int = 1
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self,
        rank: int = 4,
        alpha: float = 16.0,
        target_modules: list[str] | None = None,
        head: HeadPolicy = "averaged",
        client_ranks: ClientRanks | None = None,
    ) -> None:
        if rank < 1:
            raise ConfigurationError(f"method.rank must be at least 1, got {rank}")
        if not 0 < alpha < math.inf:
            raise ConfigurationError(f"method.alpha must be positive, got {alpha}")
        require_choice("method.head", head, HeadPolicy)
        if client_ranks is not None and not self.heterogeneous:
            raise ConfigurationError(
                f"{type(self).__name__} is not defined for ranks that differ from client to client; leave "
                "method.client_ranks out, or take a method that allows them (fedgram methods says which)"
            )
        if client_ranks is not None:
            check_ranks(client_ranks, rank)
        self.rank = rank
        self.alpha = alpha
        self.target_modules = target_modules
        self.head = head
        self.client_ranks = client_ranks

    @property
    def keeps_start(self) -> bool:
        """Whether the model that training starts with computes what the pretrained one does; a trial checks it."""
        return True

    @property
    def trained_fields(self) -> frozenset[str]:
        """The fields that clients train."""
        return frozenset(field.name for field in self.fields if field.trained)

    @property
    def shared_fields(self) -> frozenset[str]:
        """The fields that all clients hold in common."""
        return frozenset(field.name for field in self.fields if field.shared)

    @property
    def personal(self) -> bool:
        """Whether clients keep tensors, or are answered each for itself, so that each has a model of its own."""
        answers = type(self).answer is not Method.answer
        return self.head == "local" or answers or any(field.kept for field in self.fields)

    @property
    def name(self) -> str:
        """The method's name in tables and plots."""
        return type(self).__name__

    @property
    def scale(self) -> float:
        """The factor s in front of the low-rank product."""
        return self.alpha / self.rank

    @property
    def least_side(self) -> int:
        """The least that both sides of a layer must have for the method to adapt it: the rank, as a rule."""
        return self.rank

    @abstractmethod
    def adapter(self, linear: nn.Module, generator: torch.Generator) -> Adapter:
        """Return the adapter that replaces a layer of the backbone.

        Args:
            linear: the frozen layer.
            generator: for what is drawn for this layer, the same on every rank.
        """

    def install(self, backbone: nn.Module, seed: int) -> dict[str, ClientLayer]:
        """Put an adapter on every target layer of a backbone, and weights per client into its head.

        Returns:
            The layers that now hold tensors per client, by dotted name, in the order of the backbone.

        Raises:
            ConfigurationError: a target that matches nothing, or a rank that exceeds a layer.
        """

        def make(name: str, linear: nn.Module) -> ClientLayer:
            return self.adapter(linear, generator_of(name, seed))

        targets = find_targets(backbone, self.target_modules)
        narrowest = min(targets, key=lambda name: min(layer_sizes(targets[name])))
        self.check_sides(narrowest, targets[narrowest])
        swap(backbone, targets, make)
        if self.head != "frozen":
            swap_heads(backbone)
        return {name: module for name, module in backbone.named_modules() if isinstance(module, ClientLayer)}

    def check_sides(self, name: str, narrowest: nn.Module) -> None:
        """Refuse a rank that exceeds the least side of the adapted layers.

        Args:
            name: of the layer that has the least side.
            narrowest: that layer.

        Raises:
            ConfigurationError: it does.
        """
        k = min(layer_sizes(narrowest))
        if self.rank > k:
            raise ConfigurationError(
                f"method.rank must be at most min(d_in, d_out) = {k} of {name}, the narrowest adapted layer; got "
                f"{self.rank}"
            )

    def check_clients(self, clients: int) -> None:
        """Refuse a number of clients that the settings do not fit, before anything is written.

        Raises:
            ConfigurationError: `client_ranks` lists another number of ranks.
        """
        if self.client_ranks is not None:
            deal_ranks(self.client_ranks, self.rank, clients, seed=0)

    def server_start(self, model: State, clients: int) -> Layers:
        """Return what the server remembers beside the model from round to round, at the start; nothing by default.

        It is part of the server's state, under "server": all ranks have it, and checkpoints too; it is never sent, nor
        loaded into the network.

        Args:
            model: adapter and head at the start.
            clients: how many there are.

        Returns:
            Tensors by layer, or by "" where they are of no layer, and name.
        """
        return {}

    def describe(self, features: Float[Tensor, "n d"], labels: Tensor, client: int, seed: int) -> Layer:
        """Return what a client tells the server about its data, once, before the first round; nothing by default.

        Every client is asked, in the first cohort or not, where the method `describes_data`. It is a payload as all
        others are, but may differ in form from client to client.

        Args:
            features: what the pretrained backbone says of each training sample: the mean over its tokens of the last
                hidden state, float64, on the CPU.
            labels: of the samples, as the data's table has them: classes (n,), several of them (n, k), or targets.
            client: who it is.
            seed: of the run.
        """
        return {}

    def read_descriptions(self, server: State, descriptions: Mapping[int, Layer]) -> Layers:
        """Return what the server remembers once all clients have told about their data; what it does by default.

        Args:
            server: the server's state at the start.
            descriptions: what each client sent.
        """
        return server["server"]

    def download(self, layers: Layers, client: int, info: RoundInfo) -> Layers:
        """Return what the server sends to one client of the cohort: the fields that are marked as going down."""
        fields = [f.name for f in self.fields if f.down]
        return select(layers, fields) if fields else {}

    def upload(self, start: Layers, trained: Layers, client: int, info: RoundInfo) -> Layers:
        """Return what one client sends back after training: the fields that are marked as going up.

        Args:
            start: what it started from.
            trained: what it ended with.
            client: who it is.
            info: the round.
        """
        return select(trained, [f.name for f in self.fields if f.up])

    @abstractmethod
    def aggregate(self, layers: Layers, uploads: Uploads, info: RoundInfo) -> Layers:
        """Return the server's next tensors, from its present ones and the cohort's uploads.

        Runs on every rank and must give the same bits on each: all that it sees is equal on all ranks.
        """

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        """Return figures about an aggregation, per layer; none by default."""
        return {}

    def rank_of(self, server: State, client: int, info: RoundInfo) -> int:
        """Return the rank of one client's adapters: that of the server, unless `client_ranks` says otherwise."""
        if self.client_ranks is None:
            return self.rank
        return int(deal_ranks(self.client_ranks, self.rank, info.clients, info.seed)[client])

    @final
    def sent_down(self, server: State, client: int, info: RoundInfo) -> State:
        """Return what travels to a client before it trains: nothing in round 1, and then `payload_down`.

        Whatever a server holds in round 1 comes from the pretrained model and the seed, which its clients have as well.
        """
        if info.number == 1:
            return {"adapter": {name: {} for name in server["adapter"]}, "head": {}}
        return self.payload_down(server, client, info)

    def payload_down(self, server: State, client: int, info: RoundInfo) -> State:
        """Return all that the server sends to a client: the adapter's fields, and the head where it is averaged.

        It is not asked for in round 1 (see `sent_down`). What a client new in a later round knows from the seed, since
        the server has not changed it, is not sent either: such a field is not marked as going down.
        """
        head = server["head"] if self.head == "averaged" else {}
        adapters = self.download(server["adapter"], client, info)
        return {"adapter": cut(adapters, self.fields, self.rank_of(server, client, info)), "head": head}

    def start(self, server: State, held: State, payload: State, client: int, info: RoundInfo) -> State:
        """Return the tensors that a client starts its local training with, but for those that all clients share.

        All clients of a block have tensors of one shape: those of a lower rank are filled up with zeros.

        Args:
            server: the server's state. What a client knows from earlier rounds may be taken from here.
            held: what the client holds: what the seed gave it, and in its place what it has kept.
            payload: what it was sent: nothing in round 1, in which it starts from what the seed gave it.
            client: who it is.
            info: the round.
        """
        own = merge(held, self.without_shared(payload))
        rank = self.rank_of(server, client, info)
        return {**own, "adapter": fill_up(cut(own["adapter"], self.fields, rank), self.fields, self.rank)}

    def origin(self, server: State, initial: State) -> State:
        """Return the server's state with what clients train as it was at the start of the run.

        Weight decay towards the start draws each client to what it would start from by this state. A method that turns
        its factors from round to round turns those of the start likewise.

        Args:
            server: the server's state.
            initial: adapter and head that the run began with.
        """
        layers = {
            name: {f: initial["adapter"][name][f] if f in self.trained_fields else t for f, t in layer.items()}
            for name, layer in server["adapter"].items()
        }
        return {**server, "adapter": layers, "head": initial["head"]}

    def phases(self, info: RoundInfo) -> tuple[Phase, ...]:
        """Return the stretches of a client's local training; one by default, in which all that is trained is."""
        return (Phase(self.trained_fields),)

    def penalty(self, adapters: Layers) -> Float[Tensor, " C"] | None:
        """Return what is added to the loss of each client of a block, of its tensors with a leading client axis."""
        return None

    def payload_up(self, server: State, start: State, trained: State, client: int, info: RoundInfo) -> State:
        """Return all that a client sends to the server."""
        head = trained["head"] if self.head == "averaged" else {}
        adapters = self.upload(start["adapter"], trained["adapter"], client, info)
        return {"adapter": cut(adapters, self.fields, self.rank_of(server, client, info)), "head": head}

    def kept(self, trained: State) -> State:
        """Return what stays with a client until it takes part again."""
        head = trained["head"] if self.head == "local" else {}
        fields = [f.name for f in self.fields if f.kept]
        return {"adapter": select(trained["adapter"], fields) if fields else {}, "head": head}

    def receive(self, server: State, payload: State, client: int, info: RoundInfo) -> State:
        """Return what the server reads of a client's payload: tensors of one form for all clients.

        Where a client has a lower rank, what it lacks are the server's own entries: it has changed nothing there. Zeros
        would make every mean shrink the ranks that only some clients have, also where nobody trained.
        """
        return {**payload, "adapter": fill_up(payload["adapter"], self.fields, self.rank, server["adapter"])}

    def next_state(self, server: State, adapters: Uploads, heads: Uploads, info: RoundInfo) -> State:
        """Return the server's next state: the adapters aggregated, the heads averaged, and what it remembers."""
        return {
            "adapter": self.aggregate(server["adapter"], adapters, info),
            "head": self.next_head(server["head"], heads),
            "server": server["server"],
        }

    def next_form(self, server: State, info: RoundInfo) -> State:
        """Return tensors of the shapes and types of `next_state`, without uploads: by default the server's own.

        With it `fedgram cost` goes from round to round on tensors without numbers, and asks this class for the
        payloads of each; and a checkpoint is compared with it before a run goes on, which is refused where it differs.
        Methods whose server holds more or larger tensors after some rounds replace it. What it
        remembers of each client, as integers ``(clients,)`` under "", has its numbers and is set as in a run.
        """
        return server

    def next_head(self, head: Layers, uploads: Uploads) -> Layers:
        """Return the server's next head: the weighted mean of the clients' where it is averaged."""
        return average(head, uploads) if self.head == "averaged" else head

    def answer(self, server: State, client: int, info: RoundInfo) -> State | None:
        """Return what the server sends to one client of the cohort once it has aggregated; nothing by default.

        The client keeps it, beside or in the place of what `kept` says, so that its own model is that at once.
        """
        return None

    def figures(self, server: State) -> dict[str, float]:
        """Return figures about what the server remembers after a round, by name; none by default."""
        return {}

    def model(self, server: State) -> State:
        """Return the model that the server stands for: adapter and head."""
        return {part: server[part] for part in PARTS}

    def without_shared(self, state: State) -> State:
        """Return adapter and head without the fields that all clients hold in common."""
        adapters = state["adapter"]
        own = {n: {f: t for f, t in layer.items() if f not in self.shared_fields} for n, layer in adapters.items()}
        return {"adapter": own, "head": state["head"]}
