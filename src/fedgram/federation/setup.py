"""From settings, data and a model to a federation that can start, or go on."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightning.fabric.loggers.logger import Logger

from fedgram.adapters.inject import linear_layers
from fedgram.backbone import frozen_linear
from fedgram.cohort import local_step_count
from fedgram.cost.compute import Compute, Prices, find_prices
from fedgram.data import FederatedData, Shards
from fedgram.data.classes import renumber
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.slurm import current_job
from fedgram.engine.block_size import choose_clients_per_block
from fedgram.engine.block_trial import BlockTrial, try_blocks
from fedgram.engine.network import ClientNetwork
from fedgram.engine.precision import WEIGHTS, trained_type
from fedgram.engine.shortcuts import shorten
from fedgram.engine.trial import Trial, rows_to_try, try_adapted
from fedgram.errors import ConfigurationError
from fedgram.federation.forms import check_tensors
from fedgram.federation.hooks import recall, set_up
from fedgram.federation.phases import check_phases
from fedgram.federation.progress import Progress
from fedgram.federation.recorder import Recorder
from fedgram.federation.resuming import checkpoint_to_go_on_from, folder_of, lock_run_that_goes_on, start_of
from fedgram.federation.rounds import Federation
from fedgram.federation.run_settings import CLASSES, check_same_run, settings_of
from fedgram.federation.session import Session
from fedgram.federation.summary import device_kind, write_partition
from fedgram.methods import Method
from fedgram.models import FederatedTask
from fedgram.models.loading import positions
from fedgram.models.tokenizers import check_unknown
from fedgram.optim import ClientOptimizer
from fedgram.runs import tensorboard
from fedgram.runs.checkpoint import Checkpoint
from fedgram.runs.folder import RunFolder
from fedgram.runs.monitor import TRAIN_LOSS
from fedgram.settings import TrainerSettings
from fedgram.state import ModelState, ServerState, flatten, to

__all__ = ["assemble", "begin", "build", "check_steps"]

log = logging.getLogger(__name__)


def assemble(
    session: Session, model: FederatedTask, data: FederatedData, method: Method, classes: Sequence[str] | None = None
) -> ClientNetwork:
    """Make the network on each process, for the data's classes, or for those of a run that was trained before."""
    settings, ranks = session.settings, session.ranks
    network = build(settings, ranks, model, data, method, session.fabric.autocast, classes)
    with ranks.apart():
        if settings.packing and not network.one_by_one:
            reason = shorten(network, rows_to_try(data.tables.values(), 7), settings.precision)
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
    settings: TrainerSettings,
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
        model.configure_for(data.tokenizer, data, settings.seed)
        digest = ""
        if ranks.rank == 0:
            model.head_start.report(model.backbone, frozen=method.head == "frozen")
            digest = model.weights_digest()  # by one rank: it reads all weights
        if settings.precision in WEIGHTS:
            model.cast(WEIGHTS[settings.precision])
        _check_lengths(model, data)
        model.loaded().to(ranks.device)
        trial = Trial.of(model, data.tables.values(), ranks.device, settings.precision, autocast)
        frozen_linear.install(linear_layers(model.loaded()).values())
        layers = method.install(
            model.loaded(), settings.seed
        )  # after the weights' type is set: L, R and A₁ keep theirs
        model.loaded().to(ranks.device)
        dtype = trained_type(settings.precision)
        network = ClientNetwork(model, layers, ranks.device, dtype, autocast, model.pad_id, method.shared_fields)
        try_adapted(network, trial, method.keeps_start)
    network.weights = ranks.broadcast(digest)
    return network


def _check_lengths(model: FederatedTask, data: FederatedData) -> None:
    """Refuse samples that are longer than the backbone has positions for."""
    limit, longest = positions(model.loaded()), max(int(table.lengths.max()) for table in data.tables.values())
    if limit is not None and longest > limit:
        raise ConfigurationError(
            f"data.max_length is {data.max_length} and a sample has {longest} tokens, but {model.backbone!r} has "
            f"{limit} positions; set data.max_length to that"
        )


def begin(
    session: Session,
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
    settings, ranks = session.settings, session.ranks
    goes_on_from = lock_run_that_goes_on(session, ckpt_path, held)
    network = assemble(session, model, data, method)
    with ranks.apart():
        monitor = set_up(settings, session.set_up, model, data)
        shards, initial = data.shards(settings.clients, settings.seed), network.initial_state()
        start = to(ServerState(initial, method.server_start(initial, settings.clients)), ranks.device)
        if ranks.rank == 0:  # or every process would warn
            check_steps(settings, method, data, shards)
        path, checkpoint = checkpoint_to_go_on_from(session, goes_on_from)
        trial = try_blocks(network, data.split("train"))
        clients_per_block = _clients_per_block(settings, network, start.model, data, checkpoint, trial)
        rates = None if ranks.rank else _flop_rates(settings, network, data, method)
    compute = Compute(ranks.broadcast(rates))
    _check_start(ranks, network, start)
    threads = _threads(settings, checkpoint)
    plan = replace(settings, clients_per_block=ranks.broadcast(clients_per_block), threads=threads)
    recorded = settings_of(plan, network, data, method, optimizer)
    with ranks.apart():
        if ranks.rank == 0:
            trial.report()
        if path is not None and checkpoint is not None:
            present = recorded | {CLASSES: network.task.classes}
            check_same_run(path, checkpoint, present, network.task.config_digest())
            check_tensors(path, checkpoint, start, method, optimizer)
        own = folder_of(session, path, held)
    folder = RunFolder(Path(ranks.broadcast(str(own.path))))
    loggers = _loggers(session, folder, method) if ranks.rank == 0 else []
    tracker = tensorboard.Tracker(loggers, {"task": data.name, "trainer.rounds": settings.rounds, **recorded})
    federation = Federation(
        plan=plan,
        settings=recorded,
        ranks=ranks,
        network=network,
        data=data,
        shards=shards,
        method=method,
        optimizer=optimizer,
        held=start.model,
        state=start,
        recorder=Recorder(folder, tracker, settings.keep_last),
        progress=Progress(monitor, compute, [device_kind(ranks.device)]),
        callbacks=session.callbacks,
    )
    if checkpoint is not None:
        federation.resume(checkpoint)
    with ranks.apart():
        if checkpoint is not None:
            recall(session.callbacks, checkpoint.progress.get("callbacks", {}))
        if ranks.rank == 0:
            _open_folder(federation)
    return federation


def _flop_rates(
    settings: TrainerSettings, network: ClientNetwork, data: FederatedData, method: Method
) -> Prices | None:
    """Return what steps and rounds cost, found by one process: it takes some tenths of a second of every core."""
    longest = int(data.split("train").lengths.max())
    return find_prices(network, method, settings.clients, settings.cohort_size, longest, settings.rounds)


def check_steps(settings: TrainerSettings, method: Method, data: FederatedData, shards: Shards) -> None:
    """Refuse local training that is too short for what a method has each client train in turns.

    Raises:
        ConfigurationError: see `fedgram.federation.phases.check_phases`.
    """
    steps = [
        local_step_count(int(n), data.batch_size, settings.local_epochs, settings.local_steps) for n in shards.sizes
    ]
    check_phases(method, settings.rounds, np.array(steps))


def _check_start(ranks: Ranks, network: ClientNetwork, start: ServerState) -> None:
    """Stop if ranks start from different tensors, as decompositions on unlike machines may give them."""
    bases = {f"{n}|{b}": t for n, layer in network.layers.items() for b, t in layer.named_buffers(recurse=False)}
    ranks.check_agreement(flatten(start) | bases, "what training starts from")


def _open_folder(federation: Federation) -> None:
    """Say where the run is written and what was chosen for it, drop rounds that did not count, show the partition."""
    folder, plan, progress = federation.recorder.folder, federation.plan, federation.progress
    what = "a new run" if progress.finished < 0 else f"goes on after round {progress.finished}"
    network = federation.network
    packed, alone, padded = "nothing computed on padding", "one text at a time", "texts padded to one length"
    rows = packed if network.packs else alone if network.one_by_one else padded
    log.info(
        "%s: %s; clients_per_block %d, threads %d, %s", folder.path, what, plan.clients_per_block, plan.threads, rows
    )
    if "validation" not in federation.data.tables:
        log.warning(
            "there is no validation split: this run is not evaluated%s; %s",
            "" if progress.monitor.column == TRAIN_LOSS else ", and no checkpoint is its best",
            federation.data.validation_remedy,
        )
    if len(progress.devices) > 1:
        log.warning(
            "this run has been on %s: equal bits are promised on one kind of device only",
            " and ".join(progress.devices),
        )
    folder.rewind(progress.finished)
    tensorboard.rewind(folder.path, progress.finished, sum(progress.totals.total(way).bytes for way in ("up", "down")))
    job = current_job()
    if job is not None:
        folder.remember_start(start_of(job))
    figure = write_partition(folder.path, federation.data, federation.shards)
    federation.recorder.tracker.start(figure, progress.metrics_of(progress.metrics))


def _clients_per_block(
    settings: TrainerSettings,
    network: ClientNetwork,
    state: ModelState,
    data: FederatedData,
    checkpoint: Checkpoint | None,
    trial: BlockTrial,
) -> int:
    """Return the size of the blocks: as set, as the run that goes on had it, or as memory and the backbone allow.

    Raises:
        ConfigurationError: more clients at a time are asked for than the backbone can train.
    """
    if trial.alone is not None:
        if settings.clients_per_block not in ("auto", 1):
            raise ConfigurationError(
                f"trainer.clients_per_block is {settings.clients_per_block}, but clients of {network.task.backbone!r} "
                f"can only be trained one at a time: {trial.alone}; set it to 1"
            )
        return 1
    if isinstance(settings.clients_per_block, int):
        return settings.clients_per_block
    if checkpoint is not None:
        return int(checkpoint.settings["trainer.clients_per_block"])
    return choose_clients_per_block(network, state, data.split("train"), data.batch_size, settings.cohort_size)


def _threads(settings: TrainerSettings, checkpoint: Checkpoint | None) -> int:
    """Return the CPU threads of a rank: as set, as the run that goes on had them, or as torch chose."""
    if settings.threads is None and checkpoint is not None:
        torch.set_num_threads(int(checkpoint.settings["trainer.threads"]))
    return torch.get_num_threads()


def _loggers(session: Session, folder: RunFolder, method: Method) -> list[Logger]:
    if isinstance(session.loggers, bool):
        return tensorboard.default_loggers(folder.path, method.name) if session.loggers else []
    return session.loggers if isinstance(session.loggers, list) else [session.loggers]
