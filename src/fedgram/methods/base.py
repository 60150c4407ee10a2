"""The contract of a federated method.

A method is one class in one file. It answers three questions: what an adapter is (`Method.adapter`), what travels
(`Method.fields`), and how the server aggregates (`Method.aggregate`). The trainer, the ledger, the checkpoint and the
collectives know methods only through this class. What else happens in a round has a default, which a method may
replace; here it stands in the order in which it happens:

===================  ==================================================================================
`server_start`       what the server remembers beside the model, at the start
`describe`           client: what it tells the server about its data, once, if the method asks for it
`read_descriptions`  server: what it remembers of what all clients told
`download`           server: what it sends to one client, in any round but the first: what `changes` says it lacks
`start`              client: the model that it trains, of what it holds and what it was sent
`origin`             client: where weight decay draws it to, if that is the start of the run
`phases`             client: which fields it trains, one set after the other
`penalty`            client: what it adds to its loss
`upload`             client: what it sends back
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedgram.adapters import Adapter, ClientLayer, find_targets, swap, swap_heads
from fedgram.adapters.base import layer_sizes
from fedgram.distributed.uploads import LayerUploads, Uploads, average
from fedgram.errors import ConfigurationError, require_choice
from fedgram.method_facts import Paper
from fedgram.methods.client_ranks import ClientRanks, check_ranks, deal_ranks
from fedgram.methods.context import ClientContext, RoundContext
from fedgram.methods.fields import Field, cut, fill_up, select
from fedgram.seeding import torch_generator
from fedgram.settings import check
from fedgram.state import Layer, Layers, ModelState, Payload, ServerMemory, ServerState

__all__ = ["Diagnostics", "HeadPolicy", "Method", "Paper", "Phase", "generator_of"]

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
        check("method.rank", rank, at_least=1)
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
    def increments(self) -> frozenset[str]:
        """The fields of the server's that are sent in the place of others, and that clients do not hold."""
        return frozenset(name for field in self.fields for name in field.increments)

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

    def server_start(self, model: ModelState, clients: int) -> ServerMemory:
        """Return what the server remembers beside the model from round to round, at the start; nothing by default.

        All processes have it, and checkpoints too; it is never sent as such, nor loaded into the network.

        Args:
            model: adapter and head at the start.
            clients: how many there are.
        """
        return ServerMemory()

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

    def read_descriptions(self, server: ServerState, descriptions: Mapping[int, Layer]) -> ServerMemory:
        """Return the server's memory after the clients' data summaries; unchanged by default.

        Args:
            server: the server's state at the start.
            descriptions: what each client sent.
        """
        return server.memory

    def aggregate(self, layers: Layers, uploads: Uploads, ctx: RoundContext) -> Layers:
        """Return the server's next adapters, from its present ones and the cohort's uploads: layer by layer by default.

        Runs on every process and must give the same bits on each: all that it sees is equal on all processes. A method
        that looks at all layers at once replaces it, any other `aggregate_layer`.
        """
        return {
            name: {**layer, **self._cast(self.aggregate_layer(layer, LayerUploads(name, layer, uploads), ctx), layer)}
            for name, layer in layers.items()
        }

    @staticmethod
    def _cast(found: Layer, layer: Layer) -> Layer:
        return {field: tensor.to(layer[field]) for field, tensor in found.items()}

    @abstractmethod
    def aggregate_layer(self, layer: Layer, sent: LayerUploads, ctx: RoundContext) -> Layer:
        """Return the server's next tensors of one layer, in any type; fields that are left out stay as they are.

        Args:
            layer: its present ones.
            sent: what the cohort sent for the layer: `LayerUploads.mean` and `LayerUploads.stack` of a field.
            ctx: the round.
        """

    def __init_subclass__(cls, **keywords: Any) -> None:
        """Ask for `aggregate_layer` only of a method that leaves `aggregate` as it is."""
        super().__init_subclass__(**keywords)
        if cls.aggregate is not Method.aggregate and getattr(cls.aggregate_layer, "__isabstractmethod__", False):
            cls.aggregate_layer = _not_by_layer  # type: ignore[method-assign]

    def diagnose(self, before: Layers, after: Layers, uploads: Uploads) -> Diagnostics:
        """Return figures about an aggregation, per layer; none by default."""
        return {}

    def dealt_rank(self, client: int, ctx: RoundContext) -> int:
        """Return the rank that a client's adapters begin with: the server's, unless `client_ranks` gives another."""
        if self.client_ranks is None:
            return self.rank
        return int(deal_ranks(self.client_ranks, self.rank, ctx.clients, ctx.seed)[client])

    def rank_of(self, server: ServerState, client: int, ctx: RoundContext) -> int:
        """Return the rank of a client's adapters in a round; the dealt one by default, as it never changes."""
        return self.dealt_rank(client, ctx)

    def context(self, server: ServerState, client: int, ctx: RoundContext) -> ClientContext:
        """Return what one client of a cohort knows of its round."""
        return ClientContext(ctx, client, self.rank_of(server, client, ctx))

    def changes(self, number: int) -> frozenset[str]:
        """Return the server's fields that the aggregation of a round changes; by default those that the clients train.

        From it follows what a client lacks that has last been there in some round. Fields that go down and that no
        client trains change in every round, unless a method says otherwise. What is not returned must stay as it was.

        Args:
            number: of the round, 1 for the first.
        """
        trained = frozenset().union(*(phase.trained for phase in self.phases(number)))
        return frozenset(f.name for f in self.fields if f.down and (f.name in trained or not f.trained))

    def redrawn(self, number: int) -> frozenset[str]:
        """Return the fields that are drawn anew from the seed once a round is over; none by default.

        Clients draw them too, by `redraw`, so that they are not sent.
        """
        return frozenset()

    def redraw(self, name: str, layer: Layer, number: int, seed: int) -> Layer:
        """Return what the fields are that are drawn anew from the seed after a round.

        Args:
            name: of the layer.
            layer: its tensors before, from which shapes and types are taken.
            number: of the round.
            seed: of the run.
        """
        return {}

    def download(self, server: ServerState, ctx: ClientContext) -> Payload:
        """Return all that the server sends to a client of the cohort: what it lacks, and the head where it is averaged.

        It is not asked for in round 1: whatever a server holds then comes from the pretrained model and the seed, which
        its clients have as well. Of a field with `Field.increments` those that the client lacks are sent, one after the
        other along their first axis, or the whole field where that is fewer numbers.
        """
        missed = self.missed_changes(ctx.last_round, ctx.round.number)
        lacking = {name: self._lacking(layer, missed) for name, layer in server.adapter.items()}
        head = server.head if self.head == "averaged" else {}
        return Payload(cut(lacking, self.fields, ctx.rank), head)

    def missed_changes(self, last_round: int, number: int) -> dict[Field, int]:
        """Return how many changes of each field that goes down a client lacks, counted up to 1 without increments.

        Args:
            last_round: in which the client last took part; 0 for none.
            number: of the present round, before which it is asked.
        """
        return {field: self._missed(field, max(1, last_round), number) for field in self.fields if field.down}

    def _missed(self, field: Field, first: int, number: int) -> int:
        count = 0
        for past in range(number - 1, first - 1, -1):
            if field.name in self.redrawn(past) or (count and not field.increments):
                break
            count += field.name in self.changes(past)
        return count

    @staticmethod
    def _lacking(layer: Layer, missed: Mapping[Field, int]) -> Layer:
        """Return what brings a client's fields of one layer to the server's."""
        sent: Layer = {}
        for field, count in missed.items():
            if not count:
                continue
            steps = {f: layer[f][-count:] for f in field.increments if len(layer[f]) >= count}
            whole = layer[field.name]
            fewer = steps and sum(tensor.numel() for tensor in steps.values()) < whole.numel()
            sent |= steps if fewer else {field.name: whole}
        return sent

    def derived(self, held: Layer, sent: Layer) -> Mapping[str, Callable[[], Tensor]]:
        """Return how a client computes fields of a layer from others that it was sent, by field; none by default.

        Args:
            held: what the client held of the layer before.
            sent: what it was sent of it.
        """
        return {}

    def start(self, held: ModelState, payload: Payload, ctx: ClientContext) -> ModelState:
        """Return the tensors that a client starts its local training with: by default what it holds, cut to its rank.

        A client knows nothing else: neither the server's state nor other clients. Fields that all clients share are
        left out of what is returned.

        Args:
            held: what the client holds once it has read its payload: what it was ever sent; what it has kept; and else
                what the seed gave it. A value that it has in an older version than the server is NaN here.
            payload: what it was sent: nothing in round 1, in which it starts from what the seed gave it.
            ctx: the client and the round.
        """
        return replace(held, adapter=cut(held.adapter, self.fields, ctx.rank))

    def pad(self, start: ModelState, server: ServerState, ctx: RoundContext) -> ModelState:
        """Return what a client starts with in the shape that all clients of a block have, filled up with zeros.

        This is a simulation's, which trains clients in blocks; what a client sends is cut back to its own shape.
        """
        return replace(start, adapter=fill_up(start.adapter, self.fields, self.rank))

    def upload(self, start: ModelState, trained: ModelState, ctx: ClientContext) -> Payload:
        """Return all that a client sends: of its fields that go up those that the round trains, and an averaged head.

        Args:
            start: what it started its training from.
            trained: what it ended with.
            ctx: the client and the round.
        """
        active = frozenset().union(*(phase.trained for phase in self.phases(ctx.round.number)))
        fields = [f.name for f in self.fields if f.up and f.name in active]
        head = trained.head if self.head == "averaged" else {}
        return Payload(select(trained.adapter, fields) if fields else {}, head)

    def origin(self, server: ServerState, initial: ModelState) -> ServerState:
        """Return the server's state with what clients train as it was at the start of the run.

        Weight decay towards the start draws each client to what it would start from by this state. A method that turns
        its factors from round to round turns those of the start likewise.

        Args:
            server: the server's state.
            initial: adapter and head that the run began with.
        """
        layers = {
            name: {f: initial.adapter[name][f] if f in self.trained_fields else t for f, t in layer.items()}
            for name, layer in server.adapter.items()
        }
        return replace(server, model=ModelState(layers, initial.head))

    def phases(self, number: int) -> tuple[Phase, ...]:
        """Return the stretches of a client's local training in a round; one by default, of all trained fields."""
        return (Phase(self.trained_fields),)

    def penalty(self, adapters: Layers) -> Float[Tensor, " C"] | None:
        """Return what is added to the loss of each client of a block, of its tensors with a leading client axis."""
        return None

    def kept(self, trained: ModelState) -> ModelState:
        """Return what stays with a client until it takes part again."""
        head = trained.head if self.head == "local" else {}
        fields = [f.name for f in self.fields if f.kept]
        return ModelState(select(trained.adapter, fields) if fields else {}, head)

    def receive(self, server: ServerState, payload: Payload, ctx: ClientContext) -> Payload:
        """Return what the server reads of a client's payload: tensors of one form for all clients.

        Where a client has a lower rank, what it lacks are the server's own entries: it has changed nothing there. Zeros
        would make every mean shrink the ranks that only some clients have, also where nobody trained.
        """
        return replace(payload, adapter=fill_up(payload.adapter, self.fields, self.rank, server.adapter))

    def next_state(self, server: ServerState, adapters: Uploads, heads: Uploads, ctx: RoundContext) -> ServerState:
        """Return the server's next state: the adapters aggregated, the heads averaged, and what it remembers."""
        model = ModelState(self.aggregate(server.adapter, adapters, ctx), self.next_head(server.head, heads))
        return replace(server, model=model)

    def next_form(self, server: ServerState, ctx: RoundContext) -> ServerState:
        """Return tensors of the shapes and types of `next_state`, without uploads: by default the server's own.

        With it `fedgram cost` goes from round to round on tensors without numbers, and asks this class for the
        payloads of each; and a checkpoint is compared with it before a run goes on, which is refused where it differs.
        Methods whose server holds more or larger tensors after some rounds replace it. What it remembers of each
        client, as integers ``(clients,)`` in `ServerMemory.globals`, has its numbers and is set as in a run.
        """
        return server

    def next_head(self, head: Layers, uploads: Uploads) -> Layers:
        """Return the server's next head: the weighted mean of the clients' where it is averaged."""
        return average(head, uploads) if self.head == "averaged" else head

    def answer(self, server: ServerState, ctx: ClientContext) -> Payload | None:
        """Return what the server sends to one client of the cohort once it has aggregated; nothing by default.

        The client keeps it, beside or in the place of what `kept` says, so that its own model is that at once.
        """
        return None

    def figures(self, server: ServerState) -> dict[str, float]:
        """Return figures about what the server remembers after a round, by name; none by default."""
        return {}

    def model(self, server: ServerState) -> ModelState:
        """Return the model that the server stands for: adapter and head."""
        return server.model

    def without_shared(self, state: ModelState) -> ModelState:
        """Return adapter and head without the fields that all clients hold in common."""
        adapters = state.adapter
        own = {n: {f: t for f, t in layer.items() if f not in self.shared_fields} for n, layer in adapters.items()}
        return ModelState(own, state.head)


def _not_by_layer(self: Method, layer: Layer, sent: LayerUploads, ctx: RoundContext) -> Layer:
    """Stands for `Method.aggregate_layer` in methods that aggregate all layers at once."""
    raise NotImplementedError(f"{type(self).__name__} aggregates all layers at once")
