"""A federation in motion: the server's state, the clients' data, and the steps of a round.

`fedgram.trainer.FederatedTrainer.fit` calls these steps in the order in which the design tells them.
"""

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgram.callbacks import Callback
from fedgram.cohort import (
    Block,
    client_weights,
    cut_blocks,
    cut_steps,
    deal_blocks,
    imbalance,
    local_batches,
    local_step_count,
    mean_over_clients,
    sample,
)
from fedgram.cost.client_flops import Work
from fedgram.data import FederatedData, Shards
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads
from fedgram.engine.block import Memory, train_block
from fedgram.engine.features import features_of
from fedgram.engine.network import ClientNetwork
from fedgram.errors import located
from fedgram.federation.clients import ClientStore, Models, divergence, to_keep
from fedgram.federation.evaluation import evaluate, log_undefined
from fedgram.federation.hooks import states_of
from fedgram.federation.progress import Progress
from fedgram.federation.recorder import Recorder
from fedgram.finite import remedy, spoilt_losses, spoilt_tensor, undefined
from fedgram.ledger import Ledger
from fedgram.methods import ClientContext, Diagnostics, Method, Phase, RoundContext
from fedgram.methods.client_memory import begin, check_changes, in_order, without_padding
from fedgram.optim import ClientOptimizer
from fedgram.runs import tensorboard
from fedgram.runs.checkpoint import Checkpoint
from fedgram.runs.folder import column_of
from fedgram.seeding import numpy_generator
from fedgram.settings import TrainerSettings
from fedgram.state import Layer, ModelState, Payload, ServerState, flatten, merge, to, without

__all__ = ["Federation", "Round"]

_AFTER_FINITE_UPLOADS = (
    "all uploads were finite, so the method's aggregate overflows or errs: a lower optimizer.lr or method.alpha helps"
)


@dataclass
class Round:
    """What is known of one round so far.

    Attributes:
        number: 1 for the first.
        cohort: the clients that train, ascending.
        steps: local steps of each.
        context: what the method may know of the round.
        uploads: what this rank's clients sent.
        kept: what they keep until they take part again.
        losses: the mean training loss of each, which stay on the device until the round ends.
        work: what they trained on.
        ledger: what travelled to and from this rank's clients, and after `Federation.account` the whole cohort.
        row: the round's row of metrics.csv.
        diagnostics: figures about the aggregation.
        moved: bytes that this rank had put into collectives before.
    """

    number: int
    cohort: list[int]
    steps: list[int]
    context: RoundContext
    uploads: dict[int, Payload] = field(default_factory=dict)
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    losses: dict[int, Tensor] = field(default_factory=dict)
    work: Work = field(default_factory=Work)
    ledger: Ledger = field(default_factory=Ledger)
    row: dict[str, float] = field(default_factory=dict)
    diagnostics: Diagnostics = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    moved: int = 0


@dataclass
class Trainee:
    """A client during its local training.

    Attributes:
        client: its number.
        state: its tensors, in the shapes of its block.
        batches: the rows of the train split of each of its local steps.
        origin: the tensors that weight decay draws it to; None for zero.
        loss: the mean over its local steps so far, each divided by the number of all; it stays on the device.
        memories: what its optimizer remembers, by the name of the phase.
    """

    client: int
    state: ModelState
    batches: list[np.ndarray]
    origin: ModelState | None
    loss: Tensor
    memories: dict[str, Memory] = field(default_factory=dict)


@dataclass
class Federation:
    """A server, its clients and their data.

    Attributes:
        plan: the settings of the run, with what was chosen for it: clients_per_block and threads are numbers.
        held: what every client holds from the start: it comes from the seed and is never sent.
        state: the server's tensors.
        store: what the clients keep from round to round.
        last_rounds: the last round that each client took part in, int32 ``(clients,)``; 0 where it never did.
        dealt: the samples of each client in splits that were evaluated by clients, by split.
        progress: how far the run has come.
        recorder: what the run writes.
        callbacks: whose states checkpoints keep.
        undefined: the metrics that the last evaluation had no value for.
    """

    plan: TrainerSettings
    settings: dict[str, Any]
    ranks: Ranks
    network: ClientNetwork
    data: FederatedData
    shards: Shards
    method: Method
    optimizer: ClientOptimizer
    held: ModelState
    state: ServerState
    recorder: Recorder
    progress: Progress
    callbacks: Sequence[Callback] = ()
    store: ClientStore = field(default_factory=ClientStore)
    last_rounds: np.ndarray = field(init=False)
    dealt: dict[str, Shards] = field(default_factory=dict)
    undefined: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.last_rounds = np.zeros(self.plan.clients, np.int32)

    def sample(self, number: int) -> Round:
        """Draw the cohort of a round; round 0 has none."""
        plan, cohort = self.plan, self._cohort(number)
        sizes = [len(self.shards[client]) for client in cohort]
        steps = [local_step_count(n, self.data.batch_size, plan.local_epochs, plan.local_steps) for n in sizes]
        last = dict(zip(cohort, self.last_rounds[cohort].tolist(), strict=True))
        return Round(number, cohort, steps, RoundContext(number, plan.seed, last, plan.clients), moved=self.ranks.moved)

    def _cohort(self, number: int) -> list[int]:
        plan = self.plan
        return sample(plan.seed, number, plan.clients, plan.cohort_size) if number else []

    def describe(self, current: Round) -> None:
        """Have every client tell the server about its data, once, before the first round, if the method asks for it.

        Clients take turns over the ranks. The server reads what it was told on one rank, and tells the others: that may
        be done with libraries whose last bits depend on the machine.
        """
        if current.number != 1 or not self.method.describes_data:
            return
        where, clients = "round 1", range(self.plan.clients)
        with self.ranks.apart(where):
            own = {client: self._description(current, client) for client in clients[self.ranks.rank :: self.ranks.size]}
        everyone = {client: self.ranks.first(own.get(client)) or {} for client in clients}
        with self.ranks.apart(where):
            memory = self.state.memory if self.ranks.rank else self.method.read_descriptions(self.state, everyone)
        self.state = to(ServerState(self.state.model, self.ranks.broadcast(memory)), self.network.device)
        with located(where):
            self._stop_on(spoilt_tensor(flatten(self.state)), remedy(self.network.task))

    def _description(self, current: Round, client: int) -> Layer:
        """Return what one client tells about its training data, by the model that training starts with."""
        table, rows = self.data.split("train"), self.shards[client]
        with located(f"client {client}"):
            features = features_of(
                self.network, self.state.model, table, rows, self.data.eval_batch_size, self.ranks.heed
            )
            told = self.method.describe(features, torch.from_numpy(table.labels[rows]), client, self.plan.seed)
        current.ledger.record("up", Payload(whole=told))
        return told

    def cut(self, current: Round) -> list[Block]:
        """Cut the cohort into blocks."""
        return cut_blocks(current.cohort, current.steps, int(self.plan.clients_per_block))

    def deal(self, current: Round, blocks: Sequence[Block]) -> list[Block]:
        """Return this rank's blocks, and note how unequal the ranks' work is."""
        hands = deal_blocks(blocks, self.ranks.size)
        if blocks:
            current.row["step_imbalance"] = imbalance(hands)
        return hands[self.ranks.rank]

    def download(self, current: Round, block: Block) -> list[ModelState]:
        """Send the clients of a block their payloads, and return what they start from.

        What all clients hold in common is not in it: the server's own tensors stand for it (see `Field.shared`).
        """
        starts = []
        for client in block.clients:
            with located(f"client {client}"):
                kept = to(self.store.state(client), self.network.device)
                payload, start = begin(self.method, self.state, self.held, kept, self._context(current, client))
            starts.append(start)
            current.ledger.record("down", payload)
        return starts

    def _context(self, current: Round, client: int) -> ClientContext:
        return self.method.context(self.state, client, current.context)

    def _pad(self, current: Round, states: Sequence[ModelState]) -> list[ModelState]:
        """Return the tensors of clients in the shapes that all of a block have."""
        return [in_order(self.method.pad(state, self.state, current.context), self.held) for state in states]

    def train(self, current: Round, block: Block, start: list[ModelState]) -> list[ModelState]:
        """Train the clients of a block locally; what they keep is laid aside until the round counts."""
        with located(f"client{'s' * (len(block.clients) > 1)} {', '.join(map(str, block.clients))}"):
            clients = self._trainees(current, block, start)
            self.network.share(self.state.model)
            steps = np.array(block.steps)
            phases = self.method.phases(current.number)
            begin_at, end_at = self.optimizer.span_of(current.number, self.plan.rounds)
            done = 0.0
            for phase, (first, last) in zip(phases, cut_steps(steps, [p.share for p in phases]), strict=True):
                span = (begin_at + (end_at - begin_at) * done, begin_at + (end_at - begin_at) * (done + phase.share))
                self._train_phase(phase, clients, list(map(slice, first, last)), span)
                done += phase.share
            for client in clients:
                self._lay_aside(current, client)
            return [client.state for client in clients]

    def _trainees(self, current: Round, block: Block, start: list[ModelState]) -> list["Trainee"]:
        """Return the clients of a block, ready for their first local step."""
        origins = self._origins(current, block) if self.optimizer.needs_origin else [None] * len(start)
        none = torch.zeros((), dtype=torch.float64, device=self.network.device)
        rows = zip(block.clients, self._pad(current, start), block.steps, origins, strict=True)
        return [Trainee(c, state, self._batches(current, c, steps), origin, none) for c, state, steps, origin in rows]

    def _lay_aside(self, current: Round, trained: "Trainee") -> None:
        """Note the loss of a client that has trained, what it trained on, and what it keeps."""
        current.losses[trained.client] = trained.loss
        current.work += Work.of(self.data.split("train"), trained.batches)
        memories = trained.memories if self.optimizer.keep_state else {}
        current.kept[trained.client] = to_keep(self.method.kept(trained.state), memories)

    def _origins(self, current: Round, block: Block) -> list[ModelState]:
        """Return what each client of a block would start from if the server stood where the run began.

        A client can compute it, since what the run began with comes from the seed and the pretrained weights.
        """
        server, contexts = self.method.origin(self.state, self.held), [self._context(current, c) for c in block.clients]
        nothing = ModelState(head=self.held.head)  # but the head of the start, where one would be kept or sent
        return self._pad(current, [begin(self.method, server, self.held, nothing, ctx)[1] for ctx in contexts])

    def _train_phase(
        self, phase: Phase, clients: list["Trainee"], parts: list[slice], span: tuple[float, float]
    ) -> None:
        """Train the clients of a block for one phase of their local steps.

        Of a stretch between two others a client may have more steps than one that has more in all, as shares round.

        Args:
            phase: which fields are trained.
            clients: the block's, whose tensors, losses and optimizer memories are replaced.
            parts: which of its batches each client trains on.
            span: where in the run the phase begins and ends, for the schedule of the learning rate.
        """
        order = sorted(zip(clients, parts, strict=True), key=lambda pair: pair[1].start - pair[1].stop)
        found = train_block(
            self.network,
            self.optimizer,
            [without(client.state, phase.absent) for client, _ in order],
            self.data.split("train"),
            [client.batches[part] for client, part in order],
            span,
            phase.trained,
            [self.store.memory(client.client, phase.name) for client, _ in order],
            self.ranks.heed,
            self.method.penalty,
            [client.origin for client, _ in order if client.origin is not None] or None,
        )
        results = zip(order, found.states, found.memories, found.losses, strict=True)
        for (client, part), state, memory, loss in results:
            client.state = merge(client.state, state)
            client.memories[phase.name] = memory
            client.loss = client.loss + loss * ((part.stop - part.start) / len(client.batches))

    def _batches(self, current: Round, client: int, steps: int) -> list[np.ndarray]:
        generator = numpy_generator(self.plan.seed, "batches", current.number, client)
        return local_batches(self.shards[client], steps, self.data.batch_size, generator)

    def upload(self, current: Round, block: Block, start: list[ModelState], trained: list[ModelState]) -> None:
        """Send the server what the clients of a block have trained, and have it read that."""
        for client, before, after in zip(block.clients, start, trained, strict=True):
            with located(f"client {client}"):
                ctx = self._context(current, client)
                payload = self.method.upload(before, without_padding(after, before), ctx)
                current.uploads[client] = self.method.receive(self.state, payload, ctx)
            current.ledger.record("up", payload)

    def aggregate(self, current: Round) -> None:
        """Make the server's next state of the uploads, on every rank, and check that the ranks agree on it."""
        if not current.cohort:
            return
        local_end = time.perf_counter()
        sizes = [len(self.shards[client]) for client in current.cohort]
        weights = client_weights(self.plan.client_weights, current.cohort, sizes)
        with located(f"round {current.number}"):
            helps = remedy(self.network.task)
            adapters, heads = (
                Uploads({c: payload.parts[part] for c, payload in current.uploads.items()}, weights, self.ranks, helps)
                for part in ("adapter", "head")
            )
            losses = self._everyones_losses(current)
            self._stop_on(spoilt_losses(losses), helps)
            before = self.state.adapter
            state = self.method.next_state(self.state, adapters, heads, current.context)
            check_changes(self.method, before, state.adapter, current.number)
            self._stop_on(spoilt_tensor(flatten(state)), _AFTER_FINITE_UPLOADS)
            self.state = state
            self._answer(current)
            self.ranks.stop_on(divergence(current.kept))
        self.ranks.check_agreement(flatten(self.state), f"server state after round {current.number}")
        self.store.update(current.kept, current.cohort, self.ranks)
        server_end = time.perf_counter()
        current.diagnostics = self.method.diagnose(before, self.state.adapter, adapters)
        current.row |= {
            "train_loss": mean_over_clients(losses, weights),
            "seconds_local": local_end - current.started,
            "seconds_server": server_end - local_end,
            **_means(current.diagnostics),
            **self.method.figures(self.state),
        }

    def _stop_on(self, what: str | None, helps: str) -> None:
        """Stop all ranks if something is not finite: the round does not count."""
        self.ranks.stop_on(None if what is None else f"{what}; {helps}")

    def _answer(self, current: Round) -> None:
        """Send this rank's clients what the server has for each of them at the end of the round."""
        for client, kept in current.kept.items():
            payload = self.method.answer(self.state, self._context(current, client))
            if payload is not None:
                current.ledger.record("down", payload)
                kept |= flatten(payload)

    def _everyones_losses(self, current: Round) -> dict[int, float]:
        own = sorted(current.losses)
        none = torch.zeros(0, dtype=torch.float64, device=self.ranks.device)
        values = torch.stack([current.losses[c] for c in own]) if own else none
        everyone = self.ranks.gather(values, current.cohort, own)
        return dict(zip(current.cohort, everyone.tolist(), strict=True))

    def account(self, current: Round) -> None:
        """Add up what travelled and what was computed, over all clients and rounds."""
        current.ledger, progress = self.ranks.merge(current.ledger), self.progress
        progress.totals.add(current.ledger)
        if current.cohort:
            progress.compute.add(Work(*self.ranks.add_up(astuple(current.work))), current.number)
        up, down = progress.totals.total("up"), progress.totals.total("down")
        current.row |= {
            "parameters_up": up.parameters,
            "parameters_down": down.parameters,
            "megabytes_up": up.bytes / tensorboard.MEGABYTE,
            "megabytes_down": down.bytes / tensorboard.MEGABYTE,
            **{name: float(flops) for name, flops in progress.compute.sums().items()},
        }

    def is_due(self, number: int) -> bool:
        """Return whether the model is evaluated in a round."""
        if number == 0:
            return self.plan.evaluate_at_start
        return number % self.plan.evaluate_every == 0 or number == self.plan.rounds

    def evaluate(self, current: Round) -> None:
        """Evaluate the server's model on the validation split, if the round is one to evaluate."""
        if self.is_due(current.number):
            current.row |= self._evaluate(current.number)
        if current.number == 0:
            self.progress.initial = self.progress.metrics

    def evaluate_last(self) -> None:
        """Evaluate the model after the last round that is done, unless it was, and save what is found."""
        progress, found = self.progress, {}
        if progress.evaluated_at < progress.finished:
            found = self._evaluate(progress.finished)
        with self.ranks.apart(f"the end of round {progress.finished}"):
            if found and not self.ranks.rank:
                self.recorder.amend(progress.finished, found, progress.totals, progress.metrics_of(found))
            self.checkpoint(found)

    def _evaluate(self, number: int) -> dict[str, float]:
        """Evaluate the model as of a round, and return the columns of metrics.csv."""
        self.progress.evaluated_at = number
        if "validation" not in self.data.tables:
            return {}
        how = self.plan.personal_evaluation
        with located(f"round {number}"):
            metrics = evaluate(self.network, self.models(), self.data, "validation", self.ranks, how)
        self.progress.metrics = metrics
        self._notice_undefined()
        return {column_of(key): value for key, value in metrics.items()}

    def _notice_undefined(self) -> None:
        """Log which metrics are undefined, where that is news."""
        now = frozenset(undefined(self.progress.metrics))
        if now - self.undefined and self.ranks.rank == 0:
            log_undefined(sorted(now - self.undefined), "validation")
        self.undefined = now

    def models(self) -> Models:
        """Return the models as they are now."""
        return Models(self.method.model(self.state), self.store, self.shards, self.plan.seed, self.dealt)

    def log(self, current: Round) -> None:
        """Count the round, and write it into the run's tables and loggers."""
        seconds, progress = time.perf_counter() - current.started, self.progress
        progress.seconds += seconds
        progress.seconds_training += current.row.get("seconds_local", 0.0) + current.row.get("seconds_server", 0.0)
        progress.finished = current.number
        self.last_rounds[current.cohort] = current.number
        moved = (self.ranks.moved - current.moved) / tensorboard.MEGABYTE
        current.row = {"round": current.number, **current.row, "collective_megabytes": moved, "seconds": seconds}
        if not self.ranks.rank:
            self.recorder.log(current.row, current.ledger, current.diagnostics, progress.metrics_of(current.row))

    def checkpoint(self, row: dict[str, float]) -> None:
        """Save where the run stands.

        Args:
            row: the figures of the last round, among them that by which the best checkpoint is chosen.
        """
        is_best = self.progress.note_best(row)
        if not self.ranks.rank:
            self.recorder.save(self.standing(), is_best)

    def standing(self) -> Checkpoint:
        """Return all that is needed to go on from here."""
        kept = {
            **self.progress.to_json(),
            "backbone_config": self.network.task.config_digest(),
            "classes": self.network.task.classes,
            "callbacks": states_of(self.callbacks),
        }
        return Checkpoint(self.state, self.progress.finished, self.settings, kept, self.store.tensors)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint stands."""
        self.state = to(checkpoint.state, self.network.device)
        self.store = ClientStore(checkpoint.clients)
        self.progress.resume(checkpoint.progress, checkpoint.round, self.plan.rounds)
        self._recall()

    def _recall(self) -> None:
        """Find each client's last round again, going back no further than all are known."""
        unknown = self.plan.clients
        for number in range(self.progress.finished, 0, -1):
            cohort = np.array(self._cohort(number))
            new = cohort[self.last_rounds[cohort] == 0]
            self.last_rounds[new] = number
            unknown -= len(new)
            if not unknown:
                return


def _means(figures: Diagnostics) -> dict[str, float]:
    """Return each figure's mean over the layers."""
    names = dict.fromkeys(name for layer in figures.values() for name in layer)
    return {name: float(np.mean([layer[name] for layer in figures.values()])) for name in names}
