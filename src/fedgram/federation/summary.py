"""What a run writes about itself: its settings, its partition, its predictions and its summary."""

import csv
import io
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedgram.data import FederatedData, Shards, partition_picture
from fedgram.engine.block_size import peak_megabytes
from fedgram.files import atomic_write, writing
from fedgram.runs.checkpoint import fingerprint
from fedgram.state import tensor_hash

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

    from fedgram.federation.rounds import Federation

__all__ = ["device_kind", "evaluated_samples", "summarise", "write_partition", "write_predictions"]


def write_partition(folder: Path, data: FederatedData, shards: Shards) -> "Figure":
    """Write partition.csv and partition.png: how many samples of each group, such as a label, each client holds.

    Of more than `partition_picture.MOST_CLIENTS` clients, those of like data are taken together.
    """
    groups, names, path = data.groups("train"), data.group_names, folder / "partition.csv"
    if len(shards) <= partition_picture.MOST_CLIENTS:
        table = partition_picture.counts(shards, groups, len(names))
        with writing(path):
            partition_picture.write_table(path, table, names)
        figure = partition_picture.draw(table, names)
    else:
        lines = partition_picture.Lines.of(shards, groups, len(names))
        with writing(path):
            partition_picture.write_lines(path, lines, names)
        figure = partition_picture.draw_lines(lines, shards.sizes, names)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    atomic_write(folder / "partition.png", image.getbuffer())
    return figure


def write_predictions(path: Path, inputs: Mapping[str, list[Any]], predictions: Mapping[str, list[Any]]) -> None:
    """Write a table of predictions, one row per sample, in the order of the data.

    A column of the data that has the name of one of the table's own is called ``input NAME``, and where the data has a
    column of that name too, ``input input NAME``.

    Args:
        path: the file.
        inputs: columns of the data.
        predictions: columns of what is predicted.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sample", *_distinct(["sample", *predictions], inputs), *predictions])
    rows = zip(*inputs.values(), *predictions.values(), strict=True)
    writer.writerows([index, *row] for index, row in enumerate(rows))
    atomic_write(path, text.getvalue().encode())


def _distinct(own: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return names for columns beside a table's own: ``input NAME`` for those whose name the table has itself."""
    own, names = list(own), list(names)
    taken, found = {*own, *names}, []
    for name in names:
        unique = name
        while name in own and unique in taken:
            unique = f"input {unique}"
        taken.add(unique)
        found.append(unique)
    return found


def summarise(federation: "Federation", stopping: str | None) -> dict[str, Any]:
    """Return the contents of summary.json for a finished run.

    Args:
        federation: the run's.
        stopping: which callbacks may end it early; None where none may.
    """
    progress = federation.progress
    up, down = progress.totals.total("up"), progress.totals.total("down")
    return {
        "method": federation.method.name,
        "task": federation.data.name,
        "backbone": federation.network.task.backbone,
        "seed": federation.plan.seed,
        "rounds": progress.finished,
        "planned_rounds": federation.plan.rounds,
        "stopped": progress.stopped,
        "stopping": stopping,
        "monitor": progress.monitor.key,
        "initial": progress.initial,
        "final": progress.metrics,
        "best": progress.best,
        "parameters_up": up.parameters,
        "parameters_down": down.parameters,
        "bytes_up": up.bytes,
        "bytes_down": down.bytes,
        "client_flops": progress.compute.sums().get("client_flops"),
        "server_flops": progress.compute.sums().get("server_flops"),
        "evaluated_samples": evaluated_samples(federation.data, "validation") if progress.metrics else 0,
        "personal_evaluation": federation.plan.personal_evaluation if federation.method.personal else None,
        "seconds": progress.seconds,
        "seconds_training": progress.seconds_training,
        "peak_megabytes": peak_megabytes(federation.network.device),
        "devices": progress.devices,
        "ranks": federation.ranks.size,
        "collective_bytes_of_rank_0": federation.ranks.moved,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "lightning", "fedgram")},
        },
        "git_commit": _git_commit(),
        "settings": federation.settings,
        "settings_fingerprint": fingerprint(federation.settings),
        "data_fingerprint": federation.data.fingerprint(),
        "state_hash": tensor_hash(federation.standing().tensors()),
    }


def evaluated_samples(data: FederatedData, split: str) -> int:
    """Return how many answers the metrics of a split are about: its samples, or of SQuAD its questions."""
    return len(np.unique(data.units(split)))


def device_kind(device: "torch.device") -> str:
    """Return the kind of a device, within which equal bits are promised: a GPU's model, a CPU's instructions."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _git_commit() -> str | None:
    """Return the commit of the repository that the run was started in, if it is one."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
