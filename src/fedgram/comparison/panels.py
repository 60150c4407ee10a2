"""How pictures are drawn: panels in rows with one legend, in a look that no user's settings change; and their files."""

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from fedgram.comparison.colours import style_of
from fedgram.comparison.curves import Curve
from fedgram.comparison.figures import PAIR
from fedgram.comparison.runs import Group
from fedgram.errors import DataError
from fedgram.files import atomic_write
from fedgram.lettering import add_legend, lettered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "LETTER",
    "PANEL",
    "PICTURE_TYPES",
    "Panel",
    "draw_panels",
    "look",
    "save_picture",
    "seeds_of",
    "styles_of",
    "svg_of",
]

PANEL = (3.5, 2.6)
"""Width and height of a panel in inches: two fill the width of a page, one that of a column."""
LETTER = 0.075
"""Width of a letter in inches."""
PICTURE_TYPES = (".png", ".svg", ".pdf")
"""The endings of files that a picture can be written to."""

_LOOK = {
    "font.size": 10,
    "axes.titlesize": 10,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with dollar signs is no formula
    "svg.hashsalt": "fedgram",  # or the ids in a file would be others each time
}
_DOTS_PER_INCH = 200
_UNDATED: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".svg": dict.fromkeys(("Creator", "Date", "Format", "Type")),
    ".pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
}
"""What the files would say of their making: without it, equal pictures are equal files."""
_MOST_MARKERS = 12
"""Markers on one line; more would run into one another."""
_LETTERS_OF_A_NOTE = 36
_NARROW = 100
"""A log scale whose ends differ by less than this factor has more numbers than the powers of ten."""
_MOST_BELOW = 6
"""Groups whose legend stands below the panels; that of more stands beside them."""
_LINE = 0.19
"""Height of a line of a legend or a note, in inches."""
_FILLS = ("none", "left", "top", "right", "bottom")
_PALES = (0.3, 0.5, 0.15, 0.4)
"""What tells further groups of one method from its first: the part of the marker that is filled, and how pale it is."""


@dataclass(frozen=True, eq=False)
class Panel:
    """What one pair of axes shows.

    Attributes:
        curves: its lines, at least one.
        x: the label of the horizontal axis.
        y: the label of the vertical axis.
        log: the axes that have a log scale: "x", "y" or none.
        ticks: what stands at 0, 1, ... of the horizontal axis, where there are points with error bars; none where
            there are lines with bands over numbers.
        is_joined: whether a line joins the points.
        note: what is said below it.
    """

    curves: Sequence[Curve]
    x: str
    y: str
    log: str = ""
    ticks: Sequence[str] = ()
    is_joined: bool = True
    note: str = ""


@contextmanager
def look() -> Iterator[None]:
    """Make matplotlib draw and write as all pictures here are, whatever the user's settings are."""
    from matplotlib import style

    with style.context(_LOOK, after_reset=True):
        yield


def styles_of(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """Return the style of each label: that of the method, varied for groups of one method that differ in settings."""
    styles: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(group.method for group in groups):
        labels = dict.fromkeys(group.marked_label for group in groups if group.method == method)
        styles |= {label: _twin(style_of(method), number) for number, label in enumerate(labels)}
    return {label: styles[label] for label in dict.fromkeys(group.marked_label for group in groups)}


def _twin(style: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return a method's style for the first of its groups, and variations of it for the others."""
    from matplotlib.colors import to_hex, to_rgb

    if number == 0:
        return dict(style)
    pale = _PALES[(number - 1) % len(_PALES)]
    red, green, blue = (channel + pale * (1 - channel) for channel in to_rgb(style["color"]))
    return {**style, "color": to_hex((red, green, blue)), "fillstyle": _FILLS[(number - 1) % len(_FILLS)]}


def seeds_of(groups: Sequence[Group]) -> str:
    """Say over how many seeds groups are: one seed, 3 seeds, 2 to 5 seeds."""
    counts = sorted({len(group.runs) for group in groups})
    if counts == [1]:
        return "one seed"
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def draw_panels(
    rows: Sequence[Sequence[Panel | None]], titles: Sequence[str], groups: Sequence[Group], share_y: bool = False
) -> "Figure | None":
    """Draw panels in rows, with one legend; None if there is no panel.

    Args:
        rows: panels of one slice each; None where there is nothing to show.
        titles: what is said above each row.
        groups: all groups that may be in them, for the styles and the legend.
        share_y: whether the panels of a row have one vertical axis.
    """
    from matplotlib.figure import Figure

    kept = [(title, [panel for panel in row if panel]) for title, row in zip(titles, rows, strict=True) if any(row)]
    if not kept:
        return None
    shown = {curve.label for _, panels in kept for panel in panels for curve in panel.curves}
    styles = {label: style for label, style in styles_of(groups).items() if label in shown}
    with look():
        figure = Figure(figsize=_size([panels for _, panels in kept], [*styles]), layout="constrained")
        grid = figure.add_gridspec(len(kept), max(len(panels) for _, panels in kept))
        for number, (title, panels) in enumerate(kept):
            first = None
            for column, panel in enumerate(panels):
                axes = figure.add_subplot(grid[number, column], sharey=first if share_y else None)
                _draw_panel(axes, panel, styles, panels if share_y else [panel])
                axes.set_title("" if column else lettered(title), loc="left", fontweight="bold")
                if first is not None and share_y:
                    axes.tick_params(labelleft=False)
                    axes.set_ylabel("")
                first = first or axes
        _add_legend(figure, styles, [group for group in groups if group.marked_label in shown])
    return figure


def _size(rows: Sequence[Sequence[Panel]], labels: Sequence[str]) -> tuple[float, float]:
    """Return width and height of a figure in inches, with room for notes and the legend."""
    lines = sum(max(len(_wrapped(panel.note)) for panel in row) for row in rows)
    width, height = PANEL[0] * max(map(len, rows)), PANEL[1] * len(rows) + _LINE * lines
    if len(labels) > _MOST_BELOW:
        return width + 0.7 + LETTER * max(map(len, labels)), max(height, _LINE * (len(labels) + 6))
    return width, height + _LINE * (2 + math.ceil(len(labels) / _legend_columns(width, labels)))


def _wrapped(note: str) -> list[str]:
    return textwrap.wrap(note, _LETTERS_OF_A_NOTE)


def _legend_columns(width: float, labels: Sequence[str]) -> int:
    """Return into how many columns of a legend of some width labels go, of about equally many."""
    fitting = max(1, int(width / (0.7 + LETTER * max(map(len, labels)))))
    return math.ceil(len(labels) / math.ceil(len(labels) / fitting))


def _add_legend(figure: "Figure", styles: Mapping[str, Mapping[str, Any]], groups: Sequence[Group]) -> None:
    """Name the lines, and say what lines and bands are."""
    from matplotlib.lines import Line2D

    is_beside = len(styles) > _MOST_BELOW
    legend = add_legend(
        figure,
        [Line2D([], [], **style) for style in styles.values()],
        [*styles],
        handlelength=4,
        title="\n".join(_legend_title(groups, max(28, *map(len, styles)) if is_beside else 60)),
        loc="outside right upper" if is_beside else "outside lower center",
        alignment="left" if is_beside else "center",
        ncols=1 if is_beside else _legend_columns(figure.get_figwidth(), [*styles]),
    )
    legend.get_title().set_multialignment("left" if is_beside else "center")


def _legend_title(groups: Sequence[Group], width: int) -> list[str]:
    """Return the lines that say what is drawn, and what a star means."""
    seeds, most = seeds_of(groups), max(len(group.runs) for group in groups)
    bands = ", 95 % interval (t)" if most > PAIR else ""
    said = [seeds if most == 1 else f"mean of {seeds} (points){bands}"]
    if any(group.is_personal for group in groups):
        said.append("*: models of clients, each on its own share")
    return [line for sentence in said for line in textwrap.wrap(sentence, width)]


def _draw_panel(axes: "Axes", panel: Panel, styles: Mapping[str, Mapping[str, Any]], row: Sequence[Panel]) -> None:
    """Draw the curves of a panel, whose vertical axis is that of some panels."""
    for number, curve in enumerate(panel.curves):
        if panel.ticks:
            style = styles[curve.label] if panel.is_joined else {**styles[curve.label], "linestyle": "none"}
            _draw_points(axes, curve, style, number - (len(panel.curves) - 1) / 2)
        else:
            _draw_line(axes, curve, styles[curve.label], 0.6 / max(4, len(panel.curves)))
    axes.set(xlabel="\n".join([panel.x, *_wrapped(panel.note)]), ylabel=panel.y)
    if panel.ticks:
        axes.set_xticks(range(len(panel.ticks)), [lettered(tick) for tick in panel.ticks])
        axes.set_xlim(-0.5, len(panel.ticks) - 0.5)
    else:
        axes.set_ylim(_limits([curve for other in row for curve in other.curves], panel.log == "y"))
        if panel.log != "x":  # which starts where training does
            right = max(float(curve.x[-1]) for curve in panel.curves) or 1.0
            axes.set_xlim(-0.04 * right, 1.04 * right)
    _set_scales(axes, panel)
    axes.grid(visible=True)


def _set_scales(axes: "Axes", panel: Panel) -> None:
    """Set log scales, whose ticks have plain numbers, and whole numbers for rounds."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if panel.x == "round":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if panel.log:
        axes.set(**{f"{panel.log}scale": "log"})
        axis = axes.xaxis if panel.log == "x" else axes.yaxis
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < _NARROW * low else (1,)))
        axis.set_minor_locator(LogLocator(subs=range(2, 10)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _draw_line(axes: "Axes", curve: Curve, style: Mapping[str, Any], alpha: float) -> None:
    """Draw a line, with the points of several seeds, and a band where there are more than two."""
    every = math.ceil(len(curve.x) / _MOST_MARKERS)
    axes.plot(curve.x, curve.mean, markevery=every, label=curve.label, **style)
    _draw_seeds(axes, curve.x[::every], curve.points[::every], style)
    if np.isfinite(curve.lower).any():
        axes.fill_between(curve.x, curve.lower, curve.upper, color=style["color"], alpha=alpha, linewidth=0)


def _draw_points(axes: "Axes", curve: Curve, style: Mapping[str, Any], place: float) -> None:
    """Draw points with error bars, beside those of other curves by their place among these, whose middle is 0."""
    x, half = curve.x + 0.07 * place, curve.upper - curve.mean
    axes.errorbar(x, curve.mean, half, capsize=2.5, elinewidth=1, label=curve.label, **style)
    _draw_seeds(axes, x, curve.points, style)


def _draw_seeds(
    axes: "Axes", x: Float[np.ndarray, " n"], points: Float[np.ndarray, "n seeds"], style: Mapping[str, Any]
) -> None:
    """Draw the figures of several seeds as points, under bands and lines."""
    if points.shape[1] > 1:
        places = np.repeat(x, points.shape[1])
        axes.plot(places, points.ravel(), ".", markersize=5, alpha=0.6, color=style["color"], zorder=0.9, mew=0)


def _limits(curves: Sequence[Curve], is_log: bool) -> tuple[float, float]:
    """Return limits that hold every seed; the intervals of few seeds may go beyond, and would flatten the lines."""
    ends = np.array([curve.extent for curve in curves])
    low, high = (np.log(ends) if is_log else ends)[:, 0].min(), (np.log(ends) if is_log else ends)[:, 1].max()
    margin = 0.05 * (high - low) or 0.02 * abs(high) or 0.05
    limits = np.array([low - margin, high + margin])
    low, high = np.exp(limits) if is_log else limits
    return float(low), float(high)


def save_picture(figure: "Figure", path: Path) -> None:
    """Write a figure to a file, whose bytes depend on nothing but what it shows.

    Raises:
        DataError: the file's ending is none of `PICTURE_TYPES`.
        OutputError: the file can't be written.
    """
    if path.suffix not in PICTURE_TYPES:
        raise DataError(f"{path}: the name of a picture must end in one of {', '.join(PICTURE_TYPES)}")
    atomic_write(path, _bytes_of(figure, path.suffix))


def svg_of(figure: "Figure") -> str:
    """Return a figure as an SVG element."""
    text = _bytes_of(figure, ".svg").decode()
    return text[text.index("<svg") :]


def _bytes_of(figure: "Figure", ending: str) -> bytes:
    file = io.BytesIO()
    with look():
        figure.savefig(file, format=ending[1:], dpi=_DOTS_PER_INCH, metadata=_UNDATED[ending])
    return file.getvalue()
