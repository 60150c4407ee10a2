"""The settings that make a run this run: which may be others where it goes on, and which are refused."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from fedgram.data import FederatedData
from fedgram.engine.network import ClientNetwork
from fedgram.errors import CheckpointError
from fedgram.federation.describe import describe
from fedgram.methods import Method
from fedgram.optim import ClientOptimizer
from fedgram.runs.checkpoint import Checkpoint
from fedgram.settings import TrainerSettings

__all__ = [
    "CLASSES",
    "WEIGHTS_SETTING",
    "check_same_run",
    "compare_settings",
    "dealing",
    "settings_of",
]

log = logging.getLogger(__name__)

WEIGHTS_SETTING = "model.weights"
"""The setting that is the digest of the weights that the backbone was loaded with."""
_BINDING = (
    "clients",
    "participation",
    "local_epochs",
    "local_steps",
    "clients_per_block",
    "packing",
    "client_weights",
    "seed",
    "threads",
)
"""Settings of the trainer that rounds which are done depend on, beside its precision."""
_SCHEDULE = "optimizer.schedule_rounds"
_CONFIG = "model.config"
CLASSES = "model.classes"
"""What messages call the names of the classes, which are no setting, but what the data had."""


def settings_of(
    plan: TrainerSettings,
    network: ClientNetwork,
    data: FederatedData,
    method: Method,
    optimizer: ClientOptimizer,
) -> dict[str, Any]:
    """Return what makes a run this run, flat: seed, method, data and so on.

    The number of rounds that the learning rate's schedule spans is among them where a round's depends on it.
    """
    model = network.task
    schedule = describe(optimizer, "optimizer")
    del schedule[_SCHEDULE]
    if optimizer.depends_on_rounds:
        schedule[_SCHEDULE] = optimizer.schedule_rounds or plan.rounds
    return {
        **{f"trainer.{key}": getattr(plan, key) for key in _BINDING},
        "trainer.precision": plan.precision,
        **describe(model, "model"),
        "model.dtype": str(model.weights_dtype),
        "model.monitor": model.monitor,
        WEIGHTS_SETTING: network.weights,
        "data.batch_size": data.batch_size,
        "data.fingerprint": data.fingerprint(),
        **dealing(data),
        **describe(method, "method"),
        **schedule,
    }


def dealing(data: FederatedData) -> dict[str, Any]:
    """Return what decides which samples a client gets: how they are dealt, and of what groups and units they are."""
    digest = hashlib.sha256(data.groups("train").tobytes() + data.units("train").tobytes())
    return {"data.groups": digest.hexdigest(), **describe(data.partition, "data.partition")}


def check_same_run(
    path: Path,
    checkpoint: Checkpoint,
    present: dict[str, Any],
    config: str,
    helps: str = "use the settings it has",
    partly: bool = False,
) -> None:
    """Refuse to go on with another run's checkpoint.

    What changes no round that is done may differ: the metric that checkpoints are compared by, and the paths of
    backbone and tokenizer where digests say that they are the same.

    Args:
        path: its file, for messages.
        checkpoint: what was read.
        present: the settings here, and as `CLASSES` the names of the classes, which former versions did not record.
        config: what `FederatedTask.config_digest` returns here.
        helps: what to do where they differ.
        partly: whether ``present`` has some of the settings alone, and no others are compared.

    Raises:
        CheckpointError: settings differ; the message shows each with both values.
    """
    saved = dict(checkpoint.settings)
    spanned = saved.pop("trainer.rounds", None)  # as former versions wrote it of any schedule over the run
    if spanned is not None and _SCHEDULE in present:
        saved.setdefault(_SCHEDULE, spanned)
    then = str(checkpoint.progress.get("backbone_config"))
    equal = ["model.monitor"]
    if saved.get(WEIGHTS_SETTING) == present.get(WEIGHTS_SETTING) is not None and then == config:
        equal.append("model.backbone")
    if saved.get("data.fingerprint") == present.get("data.fingerprint") is not None:
        equal.append("model.tokenizer")
    saved |= {key: present[key] for key in equal if key in present and key in saved}
    if then.partition(" ")[0] == config.partition(" ")[0]:  # another version may have entries that this one lacks
        saved, present = saved | {_CONFIG: then}, present | {_CONFIG: config}
    if CLASSES in present and "classes" in checkpoint.progress:
        saved[CLASSES] = checkpoint.progress["classes"]
    elif CLASSES in present:
        present = {key: value for key, value in present.items() if key != CLASSES}
    if partly:
        saved = {key: saved[key] for key in present if key in saved}
    compare_settings(path, saved, present, helps)


def compare_settings(
    path: Path, saved: dict[str, Any], present: dict[str, Any], helps: str = "use the settings it has"
) -> None:
    """Refuse settings that are not those of a checkpoint.

    Args:
        path: the checkpoint, for messages.
        saved: its settings; one of a version that recorded no digest of the backbone's weights has none, and a warning
            says that they are not compared.
        present: the settings here.
        helps: what to do where they differ.

    Raises:
        CheckpointError: settings differ; the message shows each with both values.
    """
    present = json.loads(json.dumps(present))  # as the saved ones went through JSON
    if WEIGHTS_SETTING in present and WEIGHTS_SETTING not in saved:
        log.warning("%s does not record the backbone's weights: whether they are the same is not checked", path)
        del present[WEIGHTS_SETTING]
    different = [key for key in sorted(saved.keys() | present.keys()) if saved.get(key) != present.get(key)]
    if different == [_SCHEDULE] and saved.keys() == present.keys():
        raise CheckpointError(_other_schedule(path, saved[_SCHEDULE], present))
    if different:
        told = (_difference(key, saved.get(key), present.get(key), present.get("model.backbone")) for key in different)
        raise CheckpointError(f"the checkpoint {path} is of another run ({'; '.join(told)}); {helps}")


def _difference(key: str, saved: Any, present: Any, backbone: Any) -> str:
    """Return in which way a setting differs."""
    if key == WEIGHTS_SETTING:
        return f"the backbone {backbone!r} has other weights than it had there"
    if key == _CONFIG:
        return f"the backbone {backbone!r} has another configuration than it had there"
    return f"{key}: {saved!r} there, {present!r} here"


def _other_schedule(path: Path, saved: int, present: dict[str, Any]) -> str:
    """Return why a run can't go on with a learning rate that is scheduled over another number of rounds."""
    rounds = present[_SCHEDULE]
    if present["optimizer.schedule"] == "constant" or rounds < saved:
        remedy = f"--{_SCHEDULE} {saved} goes on with the schedule that it has"
    else:
        remedy = (
            f"a run that may be extended to {rounds} rounds is begun with --{_SCHEDULE} {rounds}, and this one ends "
            f"with --trainer.rounds {saved}"
        )
    return (
        f"{path}: the learning rate of this run is scheduled over {saved} rounds, and here over {rounds}, with which "
        f"the rounds that are done would have been others; {remedy}"
    )
