"""From settings, data and a model to a federation that can start, or go on."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.loggers.logger import Logger

from fedgram import tracking
from fedgram.checkpoint import Checkpoint, compare_settings, load
from fedgram.cohort import cohort_size
from fedgram.collectives import Ranks
from fedgram.data import TextClassificationData
from fedgram.errors import ConfigurationError
from fedgram.federation import Federation, Plan
from fedgram.memory import choose_clients_per_block
from fedgram.methods import Method
from fedgram.models import FederatedTask
from fedgram.network import ClientNetwork
from fedgram.optim import ClientOptimizer
from fedgram.reporting import describe, write_partition
from fedgram.run_folder import RunFolder, find_checkpoint
from fedgram.state import State

if TYPE_CHECKING:
    from fedgram.trainer import FederatedTrainer

__all__ = ["assemble", "begin", "trained_state"]

_WEIGHTS = {"64-true": torch.float64, "bf16-true": torch.bfloat16}
"""The type of the frozen weights, where the precision changes it."""


def trained_state(trainer: "FederatedTrainer", network: ClientNetwork, method: Method, ckpt_path: str | None) -> State:
    """Return the server state of a checkpoint, or the one that training would start from."""
    initial = network.initial_state()
    if ckpt_path is None:
        return initial
    path = find_checkpoint(ckpt_path, trainer.default_root_dir, trainer.run_name)
    checkpoint = load(path)
    present = {**describe(method, "method"), "model.backbone": network.task.backbone, "trainer.seed": trainer.seed}
    compare_settings(path, {key: checkpoint.settings.get(key) for key in present}, present)
    return checkpoint.state


def assemble(
    trainer: "FederatedTrainer", model: FederatedTask, data: TextClassificationData, method: Method
) -> tuple[ClientNetwork, Ranks]:
    """Launch the ranks, read the data, and put the method's adapters into the backbone."""
    if trainer.threads is not None:
        torch.set_num_threads(trainer.threads)
    trainer.fabric.launch()
    ranks = Ranks(trainer.fabric)
    trainer.run_name = trainer.name or f"{data.name}-{method.name}"
    data.tokenizer = model.load_tokenizer()
    if ranks.rank == 0:
        data.prepare_data()
    ranks.barrier()
    data.setup()
    model.configure_for(data.tokenizer, data, trainer.seed)
    model.loaded().to(_WEIGHTS.get(trainer.precision))
    layers = method.install(model.loaded(), trainer.seed)  # after the weights' type is set: L, R and A₁ keep theirs
    model.loaded().to(trainer.fabric.device)
    dtype = torch.float64 if trainer.precision == "64-true" else torch.float32
    pad_id = int(data.tokenizer.pad_token_id)
    return ClientNetwork(model, layers, trainer.fabric.device, dtype, trainer.fabric.autocast, pad_id), ranks


def begin(
    trainer: "FederatedTrainer",
    model: FederatedTask,
    data: TextClassificationData,
    method: Method,
    optimizer: ClientOptimizer,
    ckpt_path: str | None,
) -> Federation:
    """Set a federation up, at its start or where a checkpoint stands; nothing is written before that worked."""
    network, ranks = assemble(trainer, model, data, method)
    shards = data.shards(trainer.clients, trainer.seed)
    state = network.initial_state()
    path = None if ckpt_path is None else find_checkpoint(ckpt_path, trainer.default_root_dir, trainer.run_name)
    checkpoint = None if path is None else load(path)
    trainer.clients_per_block = ranks.broadcast(_clients_per_block(trainer, network, state, data, checkpoint))
    plan = Plan(**{key: getattr(trainer, key) for key in Plan.__dataclass_fields__})
    settings = _settings(trainer, plan, model, data, method, optimizer)
    if path is not None and checkpoint is not None:
        compare_settings(path, checkpoint.settings, settings)
        if checkpoint.round > trainer.rounds:
            raise ConfigurationError(
                f"trainer.rounds is {trainer.rounds}, but {path} stands at round {checkpoint.round}; set it to more"
            )
    folder = RunFolder(Path(ranks.broadcast(str(_folder(trainer, ranks, path).path))))
    trainer.folder = folder
    loggers = _loggers(trainer, folder) if ranks.rank == 0 else []
    federation = Federation(plan, settings, ranks, network, data, shards, method, optimizer, folder, loggers, state)
    if checkpoint is not None:
        federation.resume(checkpoint)
    if ranks.rank == 0:
        folder.rewind(federation.finished)
        tracking.log_figure(loggers, "partition", write_partition(folder.path, data, shards))
    return federation


def _clients_per_block(
    trainer: "FederatedTrainer",
    network: ClientNetwork,
    state: State,
    data: TextClassificationData,
    checkpoint: Checkpoint | None,
) -> int:
    """Return the size of the blocks: as set, as the run that goes on had it, or as memory allows."""
    if isinstance(trainer.clients_per_block, int):
        return trainer.clients_per_block
    if checkpoint is not None:
        return int(checkpoint.settings["trainer.clients_per_block"])
    cohort = cohort_size(trainer.participation, trainer.clients)
    return choose_clients_per_block(network, state, data.split("train"), data.batch_size, cohort)


def _settings(
    trainer: "FederatedTrainer",
    plan: Plan,
    model: FederatedTask,
    data: TextClassificationData,
    method: Method,
    optimizer: ClientOptimizer,
) -> dict[str, Any]:
    """Return what makes a run this run: a checkpoint is refused where one of these differs."""
    free = ("rounds", "evaluate_every")
    kept = {f"trainer.{key}": value for key, value in asdict(plan).items() if key not in free}
    if optimizer.span == "run":
        kept["trainer.rounds"] = plan.rounds
    return {
        **kept,
        "trainer.precision": trainer.precision,
        "model.backbone": model.backbone,
        "data.batch_size": data.batch_size,
        "data.fingerprint": data.fingerprint(),
        **describe(data.partition, "data.partition"),
        **describe(method, "method"),
        **describe(optimizer, "optimizer"),
    }


def _folder(trainer: "FederatedTrainer", ranks: Ranks, checkpoint: Path | None) -> RunFolder:
    """Return the folder of the run that goes on, or a new one."""
    if checkpoint is not None and checkpoint.parent.name == "checkpoints":
        return RunFolder(checkpoint.parent.parent)
    if ranks.rank:
        return RunFolder(trainer.default_root_dir)  # rank 0 makes one and tells
    return RunFolder.create(trainer.default_root_dir, trainer.run_name)


def _loggers(trainer: "FederatedTrainer", folder: RunFolder) -> list[Logger]:
    if isinstance(trainer.loggers, bool):
        return tracking.default_loggers(folder.path) if trainer.loggers else []
    return trainer.loggers if isinstance(trainer.loggers, list) else [trainer.loggers]
