"""A federation in motion: the server's state, the clients' data, and the steps of a round.

`fedgram.trainer.FederatedTrainer.fit` calls these steps in the order in which the design tells them.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgram import tracking
from fedgram.block import Trained, train_block
from fedgram.callbacks import Callback
from fedgram.checkpoint import Checkpoint, save
from fedgram.clients import ClientStore, Models, PersonalEvaluation, divergence, to_keep
from fedgram.cohort import (
    Block,
    ClientWeights,
    client_weights,
    cohort_size,
    cut_blocks,
    cut_steps,
    deal_blocks,
    imbalance,
    local_batches,
    local_step_count,
    mean_over_clients,
    sample,
)
from fedgram.collectives import Ranks
from fedgram.compute import Compute
from fedgram.data import FederatedData, Shards
from fedgram.ending import states_of, stopping
from fedgram.errors import located
from fedgram.evaluation import evaluate, log_undefined
from fedgram.features import features_of
from fedgram.finite import remedy, spoilt_losses, spoilt_tensor, undefined
from fedgram.flops import Work
from fedgram.ledger import Ledger
from fedgram.methods import Diagnostics, Method, Phase, RoundInfo
from fedgram.monitor import LOSS, Monitor
from fedgram.network import ClientNetwork
from fedgram.optim import ClientOptimizer
from fedgram.reporting import device_kind
from fedgram.run_folder import RunFolder, column_of, is_loss
from fedgram.seeding import numpy_generator
from fedgram.state import Layer, State, flatten, merge, send, to, without
from fedgram.uploads import Uploads

__all__ = ["Federation", "Plan", "Round"]

_AFTER_FINITE_UPLOADS = (
    "all uploads were finite, so the method's aggregate overflows or errs: a lower optimizer.lr or method.alpha helps"
)


@dataclass(frozen=True)
class Plan:
    """How a federation trains; see `fedgram.trainer.FederatedTrainer` for what each setting means."""

    rounds: int
    clients: int
    participation: float
    local_epochs: int | None
    local_steps: int | None
    clients_per_block: int
    packing: bool
    client_weights: ClientWeights
    evaluate_every: int
    evaluate_at_start: bool
    personal_evaluation: PersonalEvaluation
    keep_last: int
    seed: int
    threads: int


@dataclass
class Round:
    """What is known of one round so far.

    Attributes:
        number: 1 for the first.
        cohort: the clients that train, ascending.
        steps: local steps of each.
        info: what the method may know of the round.
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
    info: RoundInfo
    uploads: dict[int, State] = field(default_factory=dict)
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    losses: dict[int, Tensor] = field(default_factory=dict)
    work: Work = field(default_factory=Work)
    ledger: Ledger = field(default_factory=Ledger)
    row: dict[str, float] = field(default_factory=dict)
    diagnostics: Diagnostics = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    moved: int = 0


@dataclass
class Federation:
    """A server, its clients and their data.

    Attributes:
        held: what every client holds from the start: it comes from the seed and is never sent.
        state: the server's tensors.
        store: what the clients keep from round to round.
        last_rounds: the last round that each client took part in, int32 ``(clients,)``; 0 where it never did.
        dealt: the samples of each client in splits that were evaluated by clients, by split.
        finished: the last round that is done; 0 is the evaluation before training, -1 that nothing is.
        totals: all traffic so far.
        compute: all operations so far.
        seconds: time spent in rounds so far, over all starts of the run.
        seconds_training: of these, those of local training and of the server, without evaluation and figures.
        initial: the evaluation before training.
        metrics: the last evaluation.
        monitor: the figure that the best checkpoint is chosen by.
        callbacks: whose states checkpoints keep.
        evaluated_at: the last round that was evaluated; -1 where none was.
        stopped: why the run ends with the round that is done; None where it does not.
        stop_is_kept: whether that holds, where the run goes on, until it is given more rounds.
        best: the evaluation with the best monitored figure, with its round; empty where that was never defined.
        undefined: the metrics that the last evaluation had no value for.
        devices: the kinds of devices that the run has had so far, in the order of their first use.
    """

    plan: Plan
    settings: dict[str, Any]
    ranks: Ranks
    network: ClientNetwork
    data: FederatedData
    shards: Shards
    method: Method
    optimizer: ClientOptimizer
    folder: RunFolder
    tracker: tracking.Tracker
    held: State
    state: State
    compute: Compute = field(default_factory=Compute)
    store: ClientStore = field(default_factory=ClientStore)
    last_rounds: np.ndarray = field(init=False)
    dealt: dict[str, Shards] = field(default_factory=dict)
    finished: int = -1
    totals: Ledger = field(default_factory=Ledger)
    seconds: float = 0.0
    seconds_training: float = 0.0
    initial: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    undefined: frozenset[str] = frozenset()
    monitor: Monitor = LOSS
    callbacks: Sequence[Callback] = ()
    evaluated_at: int = -1
    stopped: str | None = None
    stop_is_kept: bool = False
    devices: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.last_rounds = np.zeros(self.plan.clients, np.int32)
        self.devices = [device_kind(self.network.device)]

    def sample(self, number: int) -> Round:
        """Draw the cohort of a round; round 0 has none."""
        plan, cohort = self.plan, self._cohort(number)
        sizes = [len(self.shards[client]) for client in cohort]
        steps = [local_step_count(n, self.data.batch_size, plan.local_epochs, plan.local_steps) for n in sizes]
        last = dict(zip(cohort, self.last_rounds[cohort].tolist(), strict=True))
        return Round(number, cohort, steps, RoundInfo(number, plan.seed, last, plan.clients), moved=self.ranks.moved)

    def _cohort(self, number: int) -> list[int]:
        plan = self.plan
        size = cohort_size(plan.participation, plan.clients)
        return sample(plan.seed, number, plan.clients, size) if number else []

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
            memory = {} if self.ranks.rank else self.method.read_descriptions(self.state, everyone)
        self.state = to({**self.state, "server": self.ranks.broadcast(memory)}, self.network.device)
        with located(where):
            self._stop_on(spoilt_tensor(flatten(self.state)), remedy(self.network.task))

    def _description(self, current: Round, client: int) -> Layer:
        """Return what one client tells about its training data, by the model that training starts with."""
        table, rows = self.data.split("train"), self.shards[client]
        with located(f"client {client}"):
            features = features_of(self.network, self.state, table, rows, self.data.eval_batch_size, self.ranks.heed)
            told = self.method.describe(features, torch.from_numpy(table.labels[rows]), client, self.plan.seed)
        current.ledger.record("up", {"adapter": {"": told}, "head": {}})
        return told

    def cut(self, current: Round) -> list[Block]:
        """Cut the cohort into blocks."""
        return cut_blocks(current.cohort, current.steps, self.plan.clients_per_block)

    def deal(self, current: Round, blocks: Sequence[Block]) -> list[Block]:
        """Return this rank's blocks, and note how unequal the ranks' work is."""
        hands = deal_blocks(blocks, self.ranks.size)
        if blocks:
            current.row["step_imbalance"] = imbalance(hands)
        return hands[self.ranks.rank]

    def download(self, current: Round, block: Block) -> list[State]:
        """Send the clients of a block their payloads, and return what they start from.

        What all clients hold in common is not in it: the server's own tensors stand for it (see `Field.shared`).
        """
        starts, held, info = [], self.method.without_shared(self.held), current.info
        for client in block.clients:
            with located(f"client {client}"):
                payload = self.method.sent_down(self.state, client, info)
                own = merge(held, to(self.store.state(client), self.network.device))
                starts.append(self.method.start(self.state, own, payload, client, info))
            current.ledger.record("down", payload)
        return starts

    def train(self, current: Round, block: Block, start: list[State]) -> list[State]:
        """Train the clients of a block locally; what they keep is laid aside until the round counts."""
        with located(f"client{'s' * (len(block.clients) > 1)} {', '.join(map(str, block.clients))}"):
            return self._train(current, block, start)

    def _train(self, current: Round, block: Block, start: list[State]) -> list[State]:
        batches = [
            self._batches(current, client, steps) for client, steps in zip(block.clients, block.steps, strict=True)
        ]
        span = self.optimizer.span_of(current.number, self.plan.rounds)
        self.network.share(self.state)
        origins = self._origins(current, block) if self.optimizer.needs_origin else None
        steps = np.array(block.steps)
        losses, memories = torch.zeros(len(start), dtype=torch.float64, device=self.network.device), {}
        done, phases = 0.0, self.method.phases(current.info)
        for phase, (first, last) in zip(phases, cut_steps(steps, [phase.share for phase in phases]), strict=True):
            part = [own[a:b] for own, a, b in zip(batches, first, last, strict=True)]
            width = span[1] - span[0]
            within = span[0] + width * done, span[0] + width * (done + phase.share)
            left = [without(own, phase.absent) for own in start]
            trained = self._train_phase(phase, block, left, part, within, origins)
            start, done = list(map(merge, start, trained.states)), done + phase.share
            losses += trained.losses * send(torch.from_numpy((last - first) / steps), losses.device)
            memories[phase.name] = trained.memories
        current.losses |= dict(zip(block.clients, losses, strict=True))
        current.work += Work.of(self.data.split("train"), chain(*batches))
        for row, (client, state) in enumerate(zip(block.clients, start, strict=True)):
            own = {name: rows[row] for name, rows in memories.items()} if self.optimizer.keep_state else {}
            current.kept[client] = to_keep(self.method.kept(state), own)
        return start

    def _origins(self, current: Round, block: Block) -> list[State]:
        """Return what each client of a block would start from if the server stood where the run began.

        A client can tell by itself, since what the run began with comes from the seed and the pretrained weights.
        """
        server, held = self.method.origin(self.state, self.held), self.method.without_shared(self.held)
        payloads = [self.method.payload_down(server, client, current.info) for client in block.clients]
        return [
            self.method.start(server, held, payload, client, current.info)
            for client, payload in zip(block.clients, payloads, strict=True)
        ]

    def _train_phase(
        self,
        phase: Phase,
        block: Block,
        start: list[State],
        batches: list[list[np.ndarray]],
        span: tuple[float, float],
        origins: list[State] | None,
    ) -> Trained:
        """Train the clients of a block for one phase of their local steps.

        Of a stretch between two others a client may have more steps than one that has more in all, as shares round.
        """
        order = sorted(range(len(batches)), key=lambda row: -len(batches[row]))
        found = train_block(
            self.network,
            self.optimizer,
            [start[row] for row in order],
            self.data.split("train"),
            [batches[row] for row in order],
            span,
            phase.trained,
            [self.store.memory(block.clients[row], phase.name) for row in order],
            self.ranks.heed,
            self.method.penalty,
            None if origins is None else [origins[row] for row in order],
        )
        places = sorted(range(len(order)), key=order.__getitem__)
        losses = found.losses[send(torch.tensor(places), found.losses.device)]
        return Trained([found.states[p] for p in places], losses, [found.memories[p] for p in places])

    def _batches(self, current: Round, client: int, steps: int) -> list[np.ndarray]:
        generator = numpy_generator(self.plan.seed, "batches", current.number, client)
        return local_batches(self.shards[client], steps, self.data.batch_size, generator)

    def upload(self, current: Round, block: Block, start: list[State], trained: list[State]) -> None:
        """Send the server what the clients of a block have trained, and have it read that."""
        for client, before, after in zip(block.clients, start, trained, strict=True):
            with located(f"client {client}"):
                payload = self.method.payload_up(self.state, before, after, client, current.info)
                current.uploads[client] = self.method.receive(self.state, payload, client, current.info)
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
                Uploads({c: payload[part] for c, payload in current.uploads.items()}, weights, self.ranks, helps)
                for part in ("adapter", "head")
            )
            losses = self._everyones_losses(current)
            self._stop_on(spoilt_losses(losses), helps)
            before = self.state["adapter"]
            state = self.method.next_state(self.state, adapters, heads, current.info)
            self._stop_on(spoilt_tensor(flatten(state)), _AFTER_FINITE_UPLOADS)
            self.state = state
            self._answer(current)
            self.ranks.stop_on(divergence(current.kept))
        self.ranks.check_agreement(flatten(self.state), f"server state after round {current.number}")
        self.store.update(current.kept, current.cohort, self.ranks)
        server_end = time.perf_counter()
        current.diagnostics = self.method.diagnose(before, self.state["adapter"], adapters)
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
            payload = self.method.answer(self.state, client, current.info)
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
        current.ledger = self.ranks.merge(current.ledger)
        self.totals.add(current.ledger)
        if current.cohort:
            self.compute.add(Work(*self.ranks.add_up(astuple(current.work))), current.number)
        up, down = self.totals.total("up"), self.totals.total("down")
        current.row |= {
            "parameters_up": up.parameters,
            "parameters_down": down.parameters,
            "megabytes_up": up.bytes / tracking.MEGABYTE,
            "megabytes_down": down.bytes / tracking.MEGABYTE,
            **{name: float(flops) for name, flops in self.compute.sums().items()},
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
            self.initial = self.metrics

    def evaluate_last(self) -> dict[str, float]:
        """Evaluate the model after the last round that is done, and return what that adds to its row of metrics.csv."""
        return self._evaluate(self.finished)

    def _evaluate(self, number: int) -> dict[str, float]:
        """Evaluate the model as of a round, and return the columns of metrics.csv."""
        self.evaluated_at = number
        if "validation" not in self.data.tables:
            return {}
        how = self.plan.personal_evaluation
        with located(f"round {number}"):
            self.metrics = evaluate(self.network, self.models(), self.data, "validation", self.ranks, how)
        self._notice_undefined()
        return {column_of(key): value for key, value in self.metrics.items()}

    def _notice_undefined(self) -> None:
        """Log which metrics are undefined, where that is news."""
        now = frozenset(undefined(self.metrics))
        if now - self.undefined and self.ranks.rank == 0:
            log_undefined(sorted(now - self.undefined), "validation")
        self.undefined = now

    @property
    def stopping(self) -> str | None:
        """Which callbacks may end the run early."""
        return stopping(self.callbacks)

    def models(self) -> Models:
        """Return the models as they are now."""
        return Models(self.method.model(self.state), self.store, self.shards, self.plan.seed, self.dealt)

    def evaluated(self, row: dict[str, float]) -> dict[str, float]:
        """Return the task's metrics, without losses, that a round's row has; none where it was not evaluated."""
        return {key: row[key] for key in self.metrics if not is_loss(key) and key in row}

    def log(self, current: Round) -> None:
        """Write the round into the run's tables and tell the loggers."""
        seconds = time.perf_counter() - current.started
        self.seconds += seconds
        self.seconds_training += current.row.get("seconds_local", 0.0) + current.row.get("seconds_server", 0.0)
        self.finished = current.number
        self.last_rounds[current.cohort] = current.number
        moved = (self.ranks.moved - current.moved) / tracking.MEGABYTE
        current.row = {"round": current.number, **current.row, "collective_megabytes": moved, "seconds": seconds}
        if self.ranks.rank:
            return
        self.folder.reopen()
        self.folder.metrics.extend([current.row])
        self.folder.communication.extend({"round": current.number, **row} for row in current.ledger.rows())
        self.folder.diagnostics.extend(
            {"round": current.number, "layer": name, **figures} for name, figures in current.diagnostics.items()
        )
        self.tracker.log_round(current.row, self.evaluated(current.row), current.diagnostics)

    def amend(self, found: dict[str, float]) -> None:
        """Write what was evaluated after the last round was logged, and tell the loggers."""
        if self.ranks.rank or not found:
            return
        sent = {f"megabytes_{way}": self.totals.total(way).bytes / tracking.MEGABYTE for way in ("up", "down")}
        row = {"round": self.finished, **sent, **found}
        self.folder.metrics.amend(self.finished, found)
        self.tracker.log_round(row, self.evaluated(row), {})

    def checkpoint(self, row: dict[str, float]) -> None:
        """Save where the run stands, and as ``best`` as well if the monitored figure has never been better.

        Args:
            row: the figures of the last round.
        """
        figure, key = row.get(self.monitor.column, math.nan), self.monitor.key
        better = self.monitor.is_better(figure, self.best.get(key, math.nan))
        if better:
            evaluated = self.metrics if self.evaluated_at == self.finished else {}
            self.best = {"round": self.finished, **evaluated, key: figure}
        if self.ranks.rank:
            return
        now = self.standing()
        if better:  # before the last, which says that it is there
            save(self.folder.checkpoint("best"), now)
        save(self.folder.round_checkpoint(self.finished), now)
        self.folder.keep_checkpoints(self.plan.keep_last)

    def standing(self) -> Checkpoint:
        """Return all that is needed to go on from here."""
        return Checkpoint(self.state, self.finished, self.settings, self.progress(), self.store.tensors)

    def progress(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside the tensors."""
        return {
            "totals": self.totals.rows(),
            **self.compute.sums(),
            "seconds": self.seconds,
            "seconds_training": self.seconds_training,
            "initial": self.initial,
            "metrics": self.metrics,
            "best": self.best,
            "devices": self.devices,
            "backbone_config": self.network.task.config_digest(),
            "classes": self.network.task.classes,
            "monitor": self.monitor.key,
            "evaluated": self.evaluated_at,
            "stopped": {"reason": self.stopped, "rounds": self.plan.rounds} if self.stop_is_kept else None,
            "callbacks": states_of(self.callbacks),
        }

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint stands."""
        self.state = to({"server": {}, **checkpoint.state}, self.network.device)
        self.store = ClientStore(checkpoint.clients)
        self.finished = checkpoint.round
        self._recall()
        self.totals = Ledger.of(checkpoint.progress["totals"])
        self.compute.resume(checkpoint.progress)
        self.seconds = checkpoint.progress["seconds"]
        self.seconds_training = checkpoint.progress["seconds_training"]
        self.initial = checkpoint.progress["initial"]
        self.metrics = checkpoint.progress["metrics"]
        self.best = checkpoint.progress["best"]
        if self.monitor.key not in self.best:  # it was chosen by another figure
            self.best = {}
        self.evaluated_at = checkpoint.progress.get("evaluated", self.finished)
        stopped = checkpoint.progress.get("stopped")
        if stopped is not None and self.plan.rounds <= stopped["rounds"]:
            self.stopped, self.stop_is_kept = stopped["reason"], True
        self.devices = list(dict.fromkeys([*checkpoint.progress["devices"], *self.devices]))

    def _recall(self) -> None:
        """Find each client's last round again, going back no further than all are known."""
        unknown = self.plan.clients
        for number in range(self.finished, 0, -1):
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
