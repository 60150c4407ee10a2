"""From settings, data and a model to a federation that can start, or go on."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.fabric.loggers.logger import Logger

from fedgram import frozen, tracking
from fedgram.adapters.inject import linear_layers
from fedgram.block_trial import BlockTrial, try_blocks
from fedgram.checkpoint import Checkpoint
from fedgram.cohort import cohort_size, local_step_count
from fedgram.collectives import Ranks
from fedgram.compute import Compute, find_prices
from fedgram.data import FederatedData, Shards
from fedgram.data.classes import renumber
from fedgram.ending import recall, set_up
from fedgram.errors import ConfigurationError
from fedgram.federation import Federation, Plan
from fedgram.forms import check_tensors
from fedgram.launch import launch
from fedgram.memory import choose_clients_per_block
from fedgram.methods import Method
from fedgram.models import FederatedTask
from fedgram.models.loading import positions
from fedgram.models.tokenizers import check_unknown
from fedgram.monitor import TRAIN_LOSS
from fedgram.network import ClientNetwork
from fedgram.optim import ClientOptimizer
from fedgram.phases import check_phases
from fedgram.reporting import write_partition
from fedgram.resuming import checkpoint_to_go_on_from, folder_of, lock_run_that_goes_on, start_of
from fedgram.run_folder import RunFolder
from fedgram.run_settings import CLASSES, check_same_run, settings_of
from fedgram.shortcuts import shorten
from fedgram.slurm import current_job
from fedgram.state import State, flatten, to
from fedgram.trial import Trial, rows_to_try, try_adapted

if TYPE_CHECKING:
    from fedgram.trainer import FederatedTrainer

__all__ = ["WEIGHTS", "assemble", "begin", "build", "check_steps", "connect", "trained_type"]

log = logging.getLogger(__name__)

WEIGHTS = {"64-true": torch.float64, "bf16-true": torch.bfloat16}
"""The type of the frozen weights, where the precision changes it."""


def connect(trainer: "FederatedTrainer", data: FederatedData, method: Method) -> Ranks:
    """Launch the processes of a run, and settle its name."""
    launch(trainer.fabric, trainer.num_nodes)
    if trainer.threads is not None:
        torch.set_num_threads(trainer.threads)  # after the launch, which sets a share of the cores
    trainer.run_name = trainer.name or f"{data.name}-{method.name}"
    return Ranks(trainer.fabric, lambda: trainer.stop_signals.received)


def assemble(
    trainer: "FederatedTrainer",
    ranks: Ranks,
    model: FederatedTask,
    data: FederatedData,
    method: Method,
    classes: Sequence[str] | None = None,
) -> ClientNetwork:
    """Make the network on each process, for the data's classes, or for those of a run that was trained before."""
    network = build(trainer, ranks, model, data, method, trainer.fabric.autocast, classes)
    with ranks.apart():
        if trainer.packing and not network.one_by_one:
            reason = shorten(network, rows_to_try(data.tables.values(), 7), trainer.precision)
            if reason is not None and ranks.rank == 0:
                log.info("batches of %r are padded: %s", model.backbone, reason)
    _check_ways(ranks, network)
    return network


def _check_ways(ranks: Ranks, network: ClientNetwork) -> None:
    """Stop if processes compute rows in different ways, as trials on unlike machines may have it: bits would differ."""
    own = (network.packs, network.one_by_one, network.masks_all)
    first = ranks.broadcast(own)
    ranks.stop_on(
        f"process {ranks.rank} computes rows (padding-free, one by one, all masked: {own}) otherwise than process 0 "
        f"({first}); are hardware and versions of all processes equal? trainer.packing false leaves padding in on all"
        if own != first
        else None
    )


def build(
    trainer: "FederatedTrainer",
    ranks: Ranks,
    model: FederatedTask,
    data: FederatedData,
    method: Method,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    classes: Sequence[str] | None = None,
) -> ClientNetwork:
    """Read the data, and put the method's adapters into the backbone."""
    with ranks.apart():
        data.tokenizer = model.load_tokenizer()
        if ranks.rank == 0 and ranks.size > 1:
            data.prepare_data()
    with ranks.apart():
        data.setup()
        if classes is not None and (note := renumber(data, classes)) and ranks.rank == 0:
            log.info("%s", note)
        check_unknown(data.tokenizer, data.split("train").ids)
        model.configure_for(data.tokenizer, data, trainer.seed)
        digest = ""
        if ranks.rank == 0:
            model.head_start.report(model.backbone, frozen=method.head == "frozen")
            digest = model.weights_digest()  # by one rank: it reads all weights
        if trainer.precision in WEIGHTS:
            model.cast(WEIGHTS[trainer.precision])
        _check_lengths(model, data)
        model.loaded().to(ranks.device)
        trial = Trial.of(model, data.tables.values(), ranks.device, trainer.precision, autocast)
        frozen.install(linear_layers(model.loaded()).values())
        layers = method.install(model.loaded(), trainer.seed)  # after the weights' type is set: L, R and A₁ keep theirs
        model.loaded().to(ranks.device)
        dtype = trained_type(trainer.precision)
        network = ClientNetwork(model, layers, ranks.device, dtype, autocast, model.pad_id, method.shared_fields)
        try_adapted(network, trial, method.keeps_start)
    network.weights = ranks.broadcast(digest)
    return network


def trained_type(precision: str | None) -> torch.dtype:
    """Return the type of adapters and heads."""
    return torch.float64 if precision == "64-true" else torch.float32


def _check_lengths(model: FederatedTask, data: FederatedData) -> None:
    """Refuse samples that are longer than the backbone has positions for."""
    limit, longest = positions(model.loaded()), max(int(table.lengths.max()) for table in data.tables.values())
    if limit is not None and longest > limit:
        raise ConfigurationError(
            f"data.max_length is {data.max_length} and a sample has {longest} tokens, but {model.backbone!r} has "
            f"{limit} positions; set data.max_length to that"
        )


def begin(
    trainer: "FederatedTrainer",
    model: FederatedTask,
    data: FederatedData,
    method: Method,
    optimizer: ClientOptimizer,
    ckpt_path: str | None,
    held: ExitStack,
) -> Federation:
    """Set a federation up, at its start or where a checkpoint stands; nothing is written before that worked.

    The run's folder is locked until `held` is closed: one that goes on before its checkpoints are looked for.
    """
    method.check_clients(trainer.clients)
    optimizer.check_rounds(trainer.rounds)
    ranks = connect(trainer, data, method)
    goes_on_from = lock_run_that_goes_on(trainer, ranks, ckpt_path, held)
    network = assemble(trainer, ranks, model, data, method)
    with ranks.apart():
        set_up(trainer, model, data)
        shards, start = data.shards(trainer.clients, trainer.seed), network.initial_state()
        start = to({**start, "server": method.server_start(start, trainer.clients)}, ranks.device)
        if ranks.rank == 0:  # or every process would warn
            check_steps(trainer, method, data, shards)
        path, checkpoint = checkpoint_to_go_on_from(trainer, goes_on_from)
        trial = try_blocks(network, data.split("train"))
        clients_per_block = _clients_per_block(trainer, network, start, data, checkpoint, trial)
        cohort, longest = cohort_size(trainer.participation, trainer.clients), int(data.split("train").lengths.max())
        # Told by one rank to all: to find them takes some tenths of a second of every core that does.
        prices = None
        if not ranks.rank:
            prices = find_prices(network, method, trainer.clients, cohort, longest, trainer.rounds)
    compute = Compute(ranks.broadcast(prices))
    _check_start(ranks, network, start)
    chosen = {"clients_per_block": ranks.broadcast(clients_per_block), "threads": _threads(trainer, checkpoint)}
    plan = Plan(**{key: chosen.get(key, getattr(trainer, key)) for key in Plan.__dataclass_fields__})
    settings = settings_of(trainer, plan, network, data, method, optimizer)
    with ranks.apart():
        if ranks.rank == 0:
            trial.report()
        if path is not None and checkpoint is not None:
            present = settings | {CLASSES: network.task.classes}
            check_same_run(path, checkpoint, present, network.task.config_digest())
            check_tensors(path, checkpoint, start, method, optimizer)
        own = folder_of(trainer, ranks, path, held)
    trainer.folder, trainer.plan = RunFolder(Path(ranks.broadcast(str(own.path)))), plan
    loggers = _loggers(trainer, trainer.folder, method) if ranks.rank == 0 else []
    tracker = tracking.Tracker(loggers, {"task": data.name, "trainer.rounds": trainer.rounds, **settings})
    federation = Federation(
        plan, settings, ranks, network, data, shards, method, optimizer, trainer.folder, tracker, start, start, compute
    )
    federation.monitor, federation.callbacks = trainer.monitored, trainer.callbacks
    if checkpoint is not None:
        federation.resume(checkpoint)
    with ranks.apart():
        if checkpoint is not None:
            recall(trainer.callbacks, checkpoint.progress.get("callbacks", {}))
        if ranks.rank == 0:
            _open_folder(federation)
    return federation


def check_steps(trainer: "FederatedTrainer", method: Method, data: FederatedData, shards: Shards) -> None:
    """Refuse local training that is too short for what a method has each client train in turns.

    Raises:
        ConfigurationError: see `fedgram.phases.check_phases`.
    """
    steps = [local_step_count(int(n), data.batch_size, trainer.local_epochs, trainer.local_steps) for n in shards.sizes]
    check_phases(method, trainer.rounds, trainer.seed, np.array(steps))


def _check_start(ranks: Ranks, network: ClientNetwork, start: State) -> None:
    """Stop if ranks start from different tensors, as decompositions on unlike machines may give them."""
    bases = {f"{n}|{b}": t for n, layer in network.layers.items() for b, t in layer.named_buffers(recurse=False)}
    ranks.check_agreement(flatten(start) | bases, "what training starts from")


def _open_folder(federation: Federation) -> None:
    """Say where the run is written and what was chosen for it, drop rounds that did not count, show the partition."""
    folder, plan = federation.folder, federation.plan
    what = "a new run" if federation.finished < 0 else f"goes on after round {federation.finished}"
    network = federation.network
    packed, alone, padded = "nothing computed on padding", "one text at a time", "texts padded to one length"
    rows = packed if network.packs else alone if network.one_by_one else padded
    log.info(
        "%s: %s; clients_per_block %d, threads %d, %s", folder.path, what, plan.clients_per_block, plan.threads, rows
    )
    if "validation" not in federation.data.tables:
        log.warning(
            "there is no validation split: this run is not evaluated%s; %s",
            "" if federation.monitor.column == TRAIN_LOSS else ", and no checkpoint is its best",
            federation.data.validation_remedy,
        )
    if len(federation.devices) > 1:
        log.warning(
            "this run has been on %s: equal bits are promised on one kind of device only",
            " and ".join(federation.devices),
        )
    folder.rewind(federation.finished)
    tracking.rewind(folder.path, federation.finished, sum(federation.totals.total(way).bytes for way in ("up", "down")))
    job = current_job()
    if job is not None:
        folder.remember_start(start_of(job))
    figure = write_partition(folder.path, federation.data, federation.shards)
    federation.tracker.start(figure, federation.evaluated(federation.metrics))


def _clients_per_block(
    trainer: "FederatedTrainer",
    network: ClientNetwork,
    state: State,
    data: FederatedData,
    checkpoint: Checkpoint | None,
    trial: BlockTrial,
) -> int:
    """Return the size of the blocks: as set, as the run that goes on had it, or as memory and the backbone allow.

    Raises:
        ConfigurationError: more clients at a time are asked for than the backbone can train.
    """
    if trial.alone is not None:
        if trainer.clients_per_block not in ("auto", 1):
            raise ConfigurationError(
                f"trainer.clients_per_block is {trainer.clients_per_block}, but clients of {network.task.backbone!r} "
                f"can only be trained one at a time: {trial.alone}; set it to 1"
            )
        return 1
    if isinstance(trainer.clients_per_block, int):
        return trainer.clients_per_block
    if checkpoint is not None:
        return int(checkpoint.settings["trainer.clients_per_block"])
    cohort = cohort_size(trainer.participation, trainer.clients)
    return choose_clients_per_block(network, state, data.split("train"), data.batch_size, cohort)


def _threads(trainer: "FederatedTrainer", checkpoint: Checkpoint | None) -> int:
    """Return the CPU threads of a rank: as set, as the run that goes on had them, or as torch chose."""
    if trainer.threads is None and checkpoint is not None:
        torch.set_num_threads(int(checkpoint.settings["trainer.threads"]))
    return torch.get_num_threads()


def _loggers(trainer: "FederatedTrainer", folder: RunFolder, method: Method) -> list[Logger]:
    if isinstance(trainer.loggers, bool):
        return tracking.default_loggers(folder.path, method.name) if trainer.loggers else []
    return trainer.loggers if isinstance(trainer.loggers, list) else [trainer.loggers]
