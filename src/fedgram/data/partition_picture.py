"""How many samples of each label each client holds, as a table and as a picture."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedgram.data.partition import Shards
from fedgram.errors import DataError
from fedgram.lettering import LITERAL, LONGEST, add_legend, lettered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MOST_CLIENTS", "Lines", "counts", "draw", "draw_file", "draw_lines", "write_lines", "write_table"]

MOST_CLIENTS = 10_000
"""The most clients that a table has a row for each; of more it shows `Lines`."""
_MOST_LINES = 400
"""About the height of a picture in pixels: more lines would be merged by the screen, and badly."""


@dataclass(frozen=True, eq=False)
class Lines:
    """Clients of like data taken together: what is shown of more clients than can be shown one by one.

    Clients are sorted by the label that prevails, then by its share, the largest first, and cut into at most 400 lines
    of about equally many. No array is as large as clients times labels.

    Args:
        clients: how many clients a line stands for, int64 ``(lines,)``.
        smallest: the samples of the one of them that has the fewest, int64 ``(lines,)``.
        largest: and of the one that has the most, int64 ``(lines,)``.
        counts: samples of each label that they hold together, int64 ``(lines, num_labels)``.
        shares: mean over them of each label's share in a client's samples, float64 ``(lines, num_labels)``.
    """

    clients: np.ndarray
    smallest: np.ndarray
    largest: np.ndarray
    counts: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, shards: Shards, labels: np.ndarray, num_labels: int) -> "Lines":
        """Take the clients of a partition together.

        Args:
            shards: the samples of each client.
            labels: the class of each sample, int64 ``(samples,)`` with values in ``0..num_labels-1``.
            num_labels: how many classes there are.

        Raises:
            DataError: if a label is not a class.
        """
        cells, amounts = np.unique(_cells(shards, labels, num_labels), return_counts=True)
        return cls._of_cells(*np.divmod(cells, num_labels), amounts, shards.sizes, num_labels)

    @classmethod
    def of_counts(cls, counts: np.ndarray) -> "Lines":
        """Take the clients of a whole table together, int64 ``(clients, num_labels)``."""
        owners, labels = np.nonzero(counts)
        return cls._of_cells(owners, labels, counts[owners, labels], counts.sum(1), counts.shape[1])

    @classmethod
    def _of_cells(
        cls, owners: np.ndarray, labels: np.ndarray, amounts: np.ndarray, sizes: np.ndarray, num_labels: int
    ) -> "Lines":
        """Take clients together whose table has these cells that are not 0, row by row."""
        shares = amounts / sizes[owners]
        count = min(len(sizes), _MOST_LINES)
        starts = np.arange(count) * len(sizes) // count
        clients = np.diff(starts, append=len(sizes))
        order, lines = _by_prevailing_label(owners, labels, shares, len(sizes)), np.empty(len(sizes), np.int32)
        lines[order] = np.repeat(np.arange(count, dtype=np.int32), clients)
        places = lines[owners] * num_labels + labels

        def summed(values: np.ndarray) -> np.ndarray:
            return np.bincount(places, values, count * num_labels).reshape(count, num_labels)

        return cls(
            clients,
            np.minimum.reduceat(sizes[order], starts),
            np.maximum.reduceat(sizes[order], starts),
            summed(amounts).astype(np.int64),
            summed(shares) / clients[:, None],
        )


def _by_prevailing_label(owners: np.ndarray, labels: np.ndarray, shares: np.ndarray, clients: int) -> np.ndarray:
    """Return all clients, sorted by the label of their largest share and that share, int64 ``(clients,)``."""
    largest, prevailing = np.zeros(clients), np.zeros(clients, np.int32)
    np.maximum.at(largest, owners, shares)
    found = np.flatnonzero(shares == largest[owners])[::-1]
    prevailing[owners[found]] = labels[found]  # of equal shares the first label, which is the last to be written
    return np.lexsort((-largest, prevailing))


def counts(shards: Shards, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Count the samples of each label that each client holds, int64 ``(clients, num_labels)``.

    Args:
        shards: the samples of each client.
        labels: the class of each sample, int64 ``(samples,)`` with values in ``0..num_labels-1``.
        num_labels: how many classes there are.

    Raises:
        DataError: if a label is not a class.
    """
    cells = np.bincount(_cells(shards, labels, num_labels), minlength=len(shards) * num_labels)
    return cells.reshape(len(shards), num_labels)


def _cells(shards: Shards, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Return the cell that each sample counts in, row by row of the table: integers ``(samples,)``."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels are counted by class, but these are {labels.dtype} numbers, as for a regression")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_labels:
        raise DataError(f"labels to count must lie in 0..{num_labels - 1}, got {labels.min()}..{labels.max()}")
    cells = len(shards) * num_labels
    # Of a large partition half is much.
    rows = np.arange(0, cells, num_labels, dtype=np.dtype("i4" if cells < 2**31 else "i8"))
    return np.repeat(rows, shards.sizes) + labels.astype(rows.dtype)[shards.order]


def write_table(path: Path, counts: np.ndarray, label_names: Sequence[str]) -> None:
    """Write the samples of each client, in all and by label, as a CSV file.

    Args:
        path: the file.
        counts: int64 ``(clients, labels)``.
        label_names: one name for each label.
    """
    rows = ([client, sum(row), *row] for client, row in enumerate(counts.tolist()))
    _write(path, ["client", "samples", *label_names], rows)


def write_lines(path: Path, lines: Lines, label_names: Sequence[str]) -> None:
    """Write how many clients a line stands for, what they hold, in all and by label, as a CSV file.

    Args:
        path: the file.
        lines: clients taken together.
        label_names: one name for each label.
    """
    columns = (lines.clients, lines.counts.sum(1), lines.smallest, lines.largest, *lines.counts.T)
    header = ["clients", "samples", "smallest_client", "largest_client", *label_names]
    _write(path, header, zip(*(column.tolist() for column in columns), strict=True))


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[int]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


# Okabe and Ito's palette, whose colours are told apart with every common kind of colour blindness.
_PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
# More bars than this cannot be told apart on a page.
_MOST_BARS = 50


def draw(counts: np.ndarray, label_names: Sequence[str]) -> "Figure":
    """Draw how labels are spread over clients.

    Few clients with few labels are drawn as stacked bars, others as `draw_lines` has them.

    Args:
        counts: int64 ``(clients, labels)``.
        label_names: one name for each label.
    """
    from matplotlib.figure import Figure

    if len(counts) > _MOST_BARS or len(label_names) > len(_PALETTE):
        return draw_lines(Lines.of_counts(counts), counts.sum(1), label_names)
    figure = Figure(figsize=(7, 1.5 + 0.2 * len(counts)), layout="constrained")
    _draw_bars(figure.subplots(), counts, label_names)
    return figure


def draw_file(path: Path) -> "Figure":
    """Draw what `write_table` or `write_lines` wrote; of lines the shares alone, as they tell no client's size."""
    from matplotlib.figure import Figure

    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    table = np.array(rows, dtype=np.int64)
    if header[0] == "client":
        return draw(table[:, 2:], header[2:])
    clients, sizes, _, _, *amounts = table.T
    figure = Figure(figsize=(6, 6), layout="constrained")
    shares = np.stack(amounts, axis=1) / np.maximum(sizes, 1)[:, None]
    _draw_shares(figure.subplots(), shares, int(clients.sum()), header[4:])
    return figure


def draw_lines(lines: Lines, sizes: np.ndarray, label_names: Sequence[str]) -> "Figure":
    """Draw a heat map of label shares, beside a histogram of the clients' sizes.

    Args:
        lines: clients taken together.
        sizes: the samples of each client, int64 ``(clients,)``.
        label_names: one name for each label.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_shares(left, lines.shares, len(sizes), label_names)
    _draw_sizes(right, sizes)
    return figure


def _draw_bars(axes: "Axes", counts: np.ndarray, label_names: Sequence[str]) -> None:
    clients = np.arange(len(counts))
    starts = np.cumsum(counts, axis=1) - counts
    bars = [
        axes.barh(clients, counts[:, label], left=starts[:, label], color=_PALETTE[label])
        for label in range(len(label_names))
    ]
    axes.set(xlabel="samples", ylabel="client", ylim=(len(counts) - 0.5, -0.5))
    axes.set_yticks(clients)
    names = [lettered(name, LONGEST) for name in label_names]
    add_legend(axes, bars, names, title="label", loc="upper left", bbox_to_anchor=(1, 1))


def _draw_shares(axes: "Axes", shares: np.ndarray, clients: int, label_names: Sequence[str]) -> None:
    picture = axes.imshow(
        shares,
        aspect="auto",
        interpolation="nearest",
        cmap="cividis",
        vmin=0,
        vmax=1,
        extent=(-0.5, len(label_names) - 0.5, clients, 0),
    )
    # Beyond some twenty names the axis is unreadable; every n-th is named instead.
    ticks = range(0, len(label_names), 1 + len(label_names) // 20)
    named = [lettered(label_names[tick], LONGEST) for tick in ticks]
    axes.set_xticks(list(ticks), named, rotation=30 if len(ticks) > 4 else 0, **LITERAL)
    axes.set(xlabel="label", ylabel="clients, sorted by prevailing label")
    axes.figure.colorbar(picture, ax=axes, label="share of the client's samples")


def _draw_sizes(axes: "Axes", sizes: np.ndarray) -> None:
    axes.hist(sizes, bins=min(50, int(np.ptp(sizes)) + 1), color=_PALETTE[0])
    axes.set(xlabel="samples of a client", ylabel="clients", yscale="log", title=f"{len(sizes):,} clients")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("")
