"""How many samples of each label each client holds, as a table and as a picture."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedgram.data.partition import Shards
from fedgram.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["counts", "draw", "write_table"]


def counts(shards: Shards, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Count the samples of each label that each client holds, int64 ``(clients, num_labels)``.

    Args:
        shards: the samples of each client.
        labels: the class of each sample, int64 ``(samples,)`` with values in ``0..num_labels-1``.
        num_labels: how many classes there are.

    Raises:
        DataError: if a label is not a class.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels are counted by class, but these are {labels.dtype} numbers, as for a regression")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_labels:
        raise DataError(f"labels to count must lie in 0..{num_labels - 1}, got {labels.min()}..{labels.max()}")
    clients = np.repeat(np.arange(len(shards)), shards.sizes)
    cells = np.bincount(clients * num_labels + labels[shards.order], minlength=len(shards) * num_labels)
    return cells.reshape(len(shards), num_labels)


def write_table(path: Path, counts: np.ndarray, label_names: Sequence[str]) -> None:
    """Write the samples of each client, in all and by label, as a CSV file.

    Args:
        path: the file.
        counts: int64 ``(clients, labels)``.
        label_names: one name for each label.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["client", "samples", *label_names])
        writer.writerows([client, sum(row), *row] for client, row in enumerate(counts.tolist()))


# Okabe and Ito's palette, whose colours are told apart with every common kind of colour blindness.
_PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
# More bars than this cannot be told apart on a page.
_MOST_BARS = 50
# About the height of the picture in pixels: more rows would be merged by the screen, and badly.
_MOST_ROWS = 400


def draw(counts: np.ndarray, label_names: Sequence[str]) -> "Figure":
    """Draw how labels are spread over clients.

    Few clients with few labels are drawn as stacked bars. Others are drawn as a heat map of label shares, sorted by the
    label that prevails and with neighbours averaged where there are more clients than lines, beside a histogram of
    their sizes.

    Args:
        counts: int64 ``(clients, labels)``.
        label_names: one name for each label.
    """
    from matplotlib.figure import Figure

    if len(counts) <= _MOST_BARS and len(label_names) <= len(_PALETTE):
        figure = Figure(figsize=(7, 1.5 + 0.2 * len(counts)), layout="constrained")
        _draw_bars(figure.subplots(), counts, label_names)
        return figure
    figure = Figure(figsize=(10, 6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_shares(left, counts, label_names)
    _draw_sizes(right, counts.sum(1))
    return figure


def _draw_bars(axes: "Axes", counts: np.ndarray, label_names: Sequence[str]) -> None:
    clients = np.arange(len(counts))
    starts = np.cumsum(counts, axis=1) - counts
    for label, (name, colour) in enumerate(zip(label_names, _PALETTE, strict=False)):
        axes.barh(clients, counts[:, label], left=starts[:, label], color=colour, label=name)
    axes.set(xlabel="samples", ylabel="client", ylim=(len(counts) - 0.5, -0.5))
    axes.set_yticks(clients)
    axes.legend(title="label", loc="upper left", bbox_to_anchor=(1, 1))


def _shares(counts: np.ndarray) -> np.ndarray:
    """Return label shares by client, sorted by prevailing label and its share, ``(at most 400 lines, labels)``."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shares = shares[np.lexsort((-shares.max(1), shares.argmax(1)))]
    groups = np.array_split(np.arange(len(shares)), min(len(shares), _MOST_ROWS))
    return np.stack([shares[group].mean(0) for group in groups])


def _draw_shares(axes: "Axes", counts: np.ndarray, label_names: Sequence[str]) -> None:
    picture = axes.imshow(
        _shares(counts),
        aspect="auto",
        interpolation="nearest",
        cmap="cividis",
        vmin=0,
        vmax=1,
        extent=(-0.5, len(label_names) - 0.5, len(counts), 0),
    )
    # Beyond some twenty names the axis is unreadable; every n-th is named instead.
    ticks = range(0, len(label_names), 1 + len(label_names) // 20)
    axes.set_xticks(list(ticks), [label_names[tick] for tick in ticks], rotation=30 if len(ticks) > 4 else 0)
    axes.set(xlabel="label", ylabel="clients, sorted by prevailing label")
    axes.figure.colorbar(picture, ax=axes, label="share of the client's samples")


def _draw_sizes(axes: "Axes", sizes: np.ndarray) -> None:
    axes.hist(sizes, bins=min(50, int(np.ptp(sizes)) + 1), color=_PALETTE[0])
    axes.set(xlabel="samples of a client", ylabel="clients", yscale="log", title=f"{len(sizes):,} clients")
