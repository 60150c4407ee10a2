"""Pictures over groups of runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedgram.comparison.runs import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_curves", "write_pictures"]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw_curves(groups: Sequence[Group], metric: str | None = None, by: Sequence[str] = ()) -> "Figure":  # noqa: ARG001
    """Return a picture of a metric against the round and against the megabytes sent, one line per run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for number, group in enumerate(groups):
        for repetition, run in enumerate(group.runs):
            rows, values = run.history(metric)
            megabytes = run.rounds["megabytes_up"] + run.rounds["megabytes_down"]
            label = group.label if not repetition else None
            for axis, positions in zip(axes, (run.rounds["round"], megabytes), strict=True):
                axis.plot(positions[rows], values, color=_COLOURS[number % len(_COLOURS)], marker=".", label=label)
    axes[0].set(xlabel="round", ylabel=metric or groups[0].runs[0].metric)
    axes[1].set(xlabel="megabytes sent, up and down, all clients")
    axes[0].legend()
    return figure


def write_pictures(
    groups: Sequence[Group], folder: Path, metric: str | None = None, by: Sequence[str] = ()
) -> list[Path]:
    """Write all pictures into a folder, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"curves.{kind}" for kind in ("png", "svg")]
    for path in paths:
        draw_curves(groups, metric, by).savefig(path, dpi=120)
    return paths
