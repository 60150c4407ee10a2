"""Pictures over groups of runs: how good by round, by what was sent and by what was computed, and why.

Every function takes groups and returns a matplotlib figure, or None where there is nothing to show: a panel without
data is left out. Groups of several slices have a row of panels each, in one figure with one legend. A line is the mean
over the seeds, which are points; a band or an error bar is its 95 % interval by Student's t, from three seeds on.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from fedgram.comparison.curves import (
    ROUNDING,
    Against,
    Curve,
    curve_of,
    log_curve_of,
    loss_curve_of,
    point_of,
)
from fedgram.comparison.figures import PAIR, is_share
from fedgram.comparison.judgement import Judgement
from fedgram.comparison.panels import LETTER, PANEL, Panel, draw_panels, look, save_picture, seeds_of, styles_of
from fedgram.comparison.runs import Group, Run, short_name, slices
from fedgram.comparison.summaries import undamaged
from fedgram.errors import DataError
from fedgram.lettering import LITERAL, lettered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Picture",
    "all_pictures",
    "draw_communication",
    "draw_curves",
    "draw_diagnostics",
    "draw_partition",
    "draw_setting",
    "draw_training_loss",
    "slice_name",
    "write_pictures",
]

_WIDE = 20
"""Costs that differ by more than this are on a log scale, or the cheap methods would all stand at the left edge."""
_COSTS = {
    "megabytes": (1e6, "B", "sent up and down, all clients"),
    "client_flops": (1.0, "FLOP", "computed, all clients"),
}
"""The unit of a column, what it is called, and what was done."""
_PARTITION = "partition.csv"
_GREY = "#BBBBBB"
_COMMUNICATION = (
    "What all clients of a cohort together send (up) and are sent (down) in a round: adapters in colour, heads in grey."
)
_TRAINING_LOSS = "By round: the mean of the losses that the clients of the round's cohort trained with."
_AGGREGATION = "What the server's step misses of the clients' aggregate, and how far it moves the server's matrix."
_LOGARITHMS = f"Means and intervals are those of the logarithms; what is below {ROUNDING:g} is rounding."
_Sent = dict[str, Float[np.ndarray, "2 2"]]
"""By label, the bytes of adapters and of heads: up in the first row, down in the second."""
_DIAGNOSTICS = {
    "aggregation_error": "aggregation error,\nrelative to the aggregate",
    "update_error": "aggregation error,\nrelative to the update",
    "drift": "drift of the server's A,\nrelative to A",
}


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure with what is said about it.

    Attributes:
        name: the name of its files, without an ending.
        caption: what it shows.
        figure: the figure.
    """

    name: str
    caption: str
    figure: "Figure"


def draw_curves(
    groups: Sequence[Group],
    metric: str | None = None,
    by: Sequence[str] = (),
    against: Sequence[Against] = ("round", "megabytes"),
) -> "Figure":
    """Draw a metric by round and by what was sent, side by side.

    Args:
        groups: the groups.
        metric: as it is called in summary.json; by default the one that counts for the task.
        by: the settings that the slices are named by.
        against: what the panels of a row have on their horizontal axes.

    Raises:
        DataError: no group has such a metric.
    """
    figure = _draw_curves(groups, metric, by, against)
    if figure is None:
        known = sorted({key for group in groups for run in group.runs for key in run.summary["final"]})
        wanted = _metric_of(groups[0], metric)
        raise DataError(
            f"no run has {wanted} to draw by {' or '.join(against)}; metrics here: {', '.join(known) or '-'}"
        )
    return figure


def _draw_curves(
    groups: Sequence[Group], metric: str | None, by: Sequence[str], against: Sequence[Against]
) -> "Figure | None":
    rows = [[_metric_panel(row, metric, cost) for cost in against] for row in slices(groups).values()]
    return draw_panels(rows, _titles(groups, by), groups, share_y=True)


def _titles(groups: Sequence[Group], by: Sequence[str]) -> list[str]:
    """Return what each slice is called."""
    return [slice_name(by, at) for at in slices(groups)]


def slice_name(keys: Sequence[str], values: Sequence[Any]) -> str:
    """Return what a slice is called: by the values of its settings, with their names where these are given."""
    names = [f"{short_name(key)} " for key in keys] or [""] * len(values)
    return ", ".join(f"{name}{_text(value)}" for name, value in zip(names, values, strict=True))


def _text(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _metric_of(group: Group, metric: str | None) -> str:
    return metric or group.runs[0].metric


def _metric_label(groups: Sequence[Group], metric: str | None) -> str:
    """Return what metrics are called, with their unit, and with the task unless they are of several."""
    names = dict.fromkeys(_metric_of(group, metric) for group in groups)
    metrics = " or ".join(f"{name} (%)" if is_share(name) else name for name in names)
    tasks = {str(group.runs[0].summary["task"]) for group in groups}
    return f"{metrics} on {lettered(tasks.pop())}" if len(tasks) == 1 else metrics


def _metric_panel(groups: Sequence[Group], metric: str | None, against: Against) -> Panel | None:
    curves = _there(curve_of(group, _metric_of(group, metric), against) for group in groups)
    y = _metric_label(groups, metric)
    if against == "round" or not curves:
        return Panel(curves, "round", y) if curves else None
    unit, name, done = _COSTS[against]
    totals = [unit * float(curve.x[-1]) for curve in curves]
    is_wide = max(totals) > _WIDE * min(totals) > 0
    factor, prefix = _prefix(min(totals) if is_wide else max(totals))
    scaled = [curve.scaled(unit / factor) for curve in curves]
    shown = [curve.after_start() for curve in scaled] if is_wide else scaled
    return Panel(shown, f"{prefix}{name} {done}", y, log="x" if is_wide else "")


def _there(curves: Iterable[Curve | None]) -> list[Curve]:
    return [curve for curve in curves if curve is not None]


def _prefix(largest: float) -> tuple[float, str]:
    """Return the largest SI prefix that a figure is at least one of.

    >>> _prefix(2.5e7)
    (1000000.0, 'M')
    """
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    power = min(max(int(np.log10(largest) // 3), 0), len(prefixes) - 1) if largest > 0 else 0
    return 1000.0**power, prefixes[power]


def draw_training_loss(groups: Sequence[Group], by: Sequence[str] = ()) -> "Figure | None":
    """Draw the training loss by round, as Figure 2 of FLoRG's paper does."""
    rows = [[_loss_panel(row)] for row in slices(groups).values()]
    return draw_panels(rows, _titles(groups, by), groups)


def _loss_panel(groups: Sequence[Group]) -> Panel | None:
    curves = _there(map(loss_curve_of, groups))
    return Panel(curves, "round", "training loss") if curves else None


def draw_diagnostics(groups: Sequence[Group], by: Sequence[str] = ()) -> "Figure | None":
    """Draw by round, on log scales, what aggregation misses, and how far the server's matrix moves."""
    rows = [[_diagnostic_panel(row, column) for column in _DIAGNOSTICS] for row in slices(groups).values()]
    return draw_panels(rows, _titles(groups, by), groups)


def _diagnostic_panel(groups: Sequence[Group], column: str) -> Panel | None:
    curves = {group.marked_label: log_curve_of(group, column) for group in groups}
    exact = [group.marked_label for group in groups if curves[group.marked_label] is None and _has(group, column)]
    note = f"below {ROUNDING:g}: {', '.join(exact)}" if exact else ""
    shown = _there(curves.values())
    return Panel(shown, "round", _DIAGNOSTICS[column], log="y", note=note) if shown else None


def _has(group: Group, column: str) -> bool:
    return all(np.isfinite(run.rounds.get(column, np.zeros(0))).any() for run in group.runs)


def draw_setting(groups: Sequence[Group], metric: str | None, by: Sequence[str], key: str) -> "Figure | None":
    """Draw a metric after the last round against the values of a setting that the comparison goes by.

    Slices that differ in another setting as well have a row for each of its values. None if the setting has one value.
    """
    place = list(by).index(key)
    values = list(dict.fromkeys(group.at[place] for group in groups))
    if len(values) < 2:
        return None
    rows: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        rows.setdefault((*group.at[:place], *group.at[place + 1 :]), []).append(group)
    others = [name for name in by if name != key]
    panels = [
        [_setting_panel(row, metric, key, [values.index(group.at[place]) for group in row], values)]
        for row in rows.values()
    ]
    return draw_panels(panels, [slice_name(others, at) for at in rows], groups)


def _setting_panel(
    groups: Sequence[Group], metric: str | None, key: str, places: Sequence[int], values: Sequence[Any]
) -> Panel | None:
    points = _there(
        point_of(group, _metric_of(group, metric), place) for group, place in zip(groups, places, strict=True)
    )
    labels = dict.fromkeys(point.label for point in points)
    curves = [Curve.joined([point for point in points if point.label == label]) for label in labels]
    if not curves:
        return None
    is_joined = all(isinstance(value, int | float) for value in values)  # between words there is nothing
    y = _metric_label(groups, metric)
    return Panel(curves, short_name(key), y, ticks=[*map(_text, values)], is_joined=is_joined)


def draw_communication(groups: Sequence[Group], by: Sequence[str] = ()) -> "Figure | None":
    """Draw what all clients of a cohort together send and are sent in a round, adapters and head apart.

    Slices that send the same share a row.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows: dict[str, tuple[_Sent, list[str]]] = {}
    for row, title in zip(slices(groups).values(), _titles(groups, by), strict=True):
        sent = {group.marked_label: _sent_per_round(group) for group in row if _tells_bytes(group)}
        if sent:
            rows.setdefault(str(sent), (sent, []))[1].append(title)
    if not rows:
        return None
    heights = [1.0 + 0.28 * len(sent) for sent, _ in rows.values()]
    width = 1.8 * PANEL[0] + LETTER * max(len(label) for sent, _ in rows.values() for label in sent)
    with look():
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        grid = figure.add_gridspec(len(rows), 2, height_ratios=heights)
        for number, (sent, titles) in enumerate(rows.values()):
            left = figure.add_subplot(grid[number, 0])
            right = figure.add_subplot(grid[number, 1], sharex=left, sharey=left)
            left.set_title(lettered("; ".join(titles)) if len(rows) > 1 else "", loc="left", fontweight="bold")
            _draw_bars((left, right), sent, styles_of(groups))
        figure.legend(handles=[Patch(color=_GREY, label="of it the head")], loc="outside lower right")
    return figure


def _draw_bars(panels: "tuple[Axes, Axes]", sent: "_Sent", styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw a bar per group, up and down: in the method's colour what adapters take, in grey what the head takes."""
    factor, prefix = _prefix(max(float(both.sum(axis=1).max()) for both in sent.values()))
    for axes, way, number in zip(panels, ("up", "down"), (0, 1), strict=True):
        adapters, heads = np.array([both[number] for both in sent.values()]).T / factor
        places = range(len(sent))
        axes.barh(places, adapters, color=[styles[label]["color"] for label in sent], height=0.7)
        bars = axes.barh(places, heads, left=adapters, color=_GREY, height=0.7)
        axes.bar_label(bars, [f"{total:.3g}" for total in adapters + heads], padding=3, fontsize=9)
        axes.set(xlabel=f"{prefix}B {way} per round, all clients", ylim=(len(sent) - 0.5, -0.5))
        axes.set_yticks(places, [lettered(label) for label in sent])
        axes.margins(x=0.2)
        axes.grid(visible=True, axis="x")
        axes.tick_params(axis="y", length=0)
    panels[1].tick_params(labelleft=False)


def _tells_bytes(group: Group) -> bool:
    figures = ("bytes_up", "bytes_down", "rounds")
    return all(run.figure(name) >= 0 for run in group.runs for name in figures) and all(
        run.figure("rounds") for run in group.runs
    )


def _sent_per_round(group: Group) -> Float[np.ndarray, "2 2"]:
    """Return the bytes of adapters and of heads, up and down, in the mean round of the mean seed."""
    sent = [[_sent(run, way) for way in ("up", "down")] / np.array(run.summary["rounds"]) for run in group.runs]
    return np.mean(sent, axis=0)


def _sent(run: Run, direction: str) -> tuple[float, float]:
    """Return the bytes of adapters and of heads over all rounds; all as adapters' where nothing tells them apart."""
    total, table = float(run.summary[f"bytes_{direction}"]), run.folder / "communication.csv"
    if not table.exists():
        return total, 0.0
    with undamaged(run.folder), table.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["direction"] == direction and row["part"] == "head"]
        heads = sum(float(row["bytes"]) for row in rows)
    return total - heads, heads


def draw_partition(run: Run) -> "Figure | None":
    """Draw how many samples of each label each client of a run held; None where its partition.csv is missing."""
    from fedgram.data import partition_picture  # which imports torch

    path = run.folder / _PARTITION
    if not path.exists():
        return None
    with look(), undamaged(run.folder):
        return partition_picture.draw_file(path)


def all_pictures(
    groups: Sequence[Group],
    metric: str | None = None,
    by: Sequence[str] = (),
    judgement: Judgement = Judgement(),  # noqa: B008 (it can't be changed)
) -> list[Picture]:
    """Return every picture that has something to show.

    Args:
        groups: the groups.
        metric: as it is called in summary.json; by default the one that counts for the task.
        by: the settings that the comparison goes by, in the order of `Group.at`.
        judgement: what runs are judged by; curves are of the validation split always.
    """
    where = "" if judgement.split == "validation" else " on the validation split"
    what, lines = _metric_label(groups, metric), _what_lines_are(groups)
    by_round, by_compute = (
        _draw_curves(groups, metric, by, against) for against in (("round", "megabytes"), ("client_flops",))
    )
    drawn = [
        *(_by_setting(groups, metric, by, key, judgement) for key in by),
        ("curves", f"By round and by what was sent{where}: {what}. {lines}", by_round),
        ("training_loss", f"{_TRAINING_LOSS} {lines}", draw_training_loss(groups, by)),
        ("compute", f"By what was computed{where}: {what}. {lines}", by_compute),
        ("aggregation", f"{_AGGREGATION} {lines} {_LOGARITHMS}", draw_diagnostics(groups, by)),
        ("communication", _COMMUNICATION, draw_communication(groups, by)),
    ]
    return [
        *(Picture(name, caption, figure) for name, caption, figure in drawn if figure is not None),
        *_partitions(groups, by),
    ]


def _by_setting(
    groups: Sequence[Group], metric: str | None, by: Sequence[str], key: str, judgement: Judgement
) -> "tuple[str, str, Figure | None]":
    name, what = short_name(key), _metric_label(groups, metric)
    caption = f"By {name}, {judgement}: {what}. {_what_lines_are(groups)}"
    return f"by_{name}", caption, draw_setting(groups, metric, by, key)


def _what_lines_are(groups: Sequence[Group]) -> str:
    star = (
        " *: models of clients, each on its own share of the split."
        if any(group.is_personal for group in groups)
        else ""
    )
    seeds = seeds_of(groups)
    if seeds == "one seed":
        return f"One seed: there are no intervals.{star}"
    if max(len(group.runs) for group in groups) <= PAIR:
        return f"Means over {seeds}, which are the points.{star}"
    which = "" if all(len(group.runs) > PAIR for group in groups) else f", where there are {PAIR + 1} or more"
    return (
        f"Means over {seeds}, which are the points, with their 95 % intervals by Student's t{which}: these may reach "
        f"beyond the panel.{star}"
    )


def _partitions(groups: Sequence[Group], by: Sequence[str]) -> list[Picture]:
    """Return the partitions of the slices, each once."""
    pictures: dict[bytes, Picture] = {}
    for at, row in slices(groups).items():
        run = row[0].runs[0]
        figure = draw_partition(run)
        if figure is None:
            continue
        name = f"partition_{len(pictures) + 1}" if pictures else "partition"
        told = ", ".join(filter(None, (slice_name(by, at), f"seed {run.seed}")))
        figure.axes[0].set_title(lettered(told), loc="left", **LITERAL)
        picture = Picture(name, f"The samples of each label that each client holds ({told}).", figure)
        pictures.setdefault((run.folder / _PARTITION).read_bytes(), picture)
    return list(pictures.values())


def write_pictures(
    groups: Sequence[Group],
    folder: Path,
    metric: str | None = None,
    by: Sequence[str] = (),
    judgement: Judgement = Judgement(),  # noqa: B008 (it can't be changed)
) -> list[Path]:
    """Write every picture that has something to show as PNG and as SVG, and return their files."""
    files = []
    for picture in all_pictures(groups, metric, by, judgement):
        for ending in (".png", ".svg"):
            save_picture(picture.figure, folder / f"{picture.name}{ending}")
            files.append(folder / f"{picture.name}{ending}")
    return files
