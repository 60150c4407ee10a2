"""The paper's numbers beside those of runs: cell by cell, in order, and in what each of its tables is about."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedgram.comparison.figures import flops_text, interval_text, is_share, p_text, seconds_text
from fedgram.comparison.overview import PERSONAL_NOTE
from fedgram.comparison.paper import Match, PaperRow, PaperTable, measured_by_seed
from fedgram.comparison.runs import Group, short_name
from fedgram.comparison.selection import leading
from fedgram.comparison.statistics import Estimate, Interval, estimate, paired_difference, rank_agreement
from fedgram.comparison.tables import Cell, Column, Table

__all__ = ["paper_tables"]

_OURS = "FLoRG"
"""The paper's own method."""
_LEADS = {"table3": "Gain from Procrustes alignment", "table6": "Lead of semi-orthogonal L and R over the best other"}
"""What FLoRG's lead over the best other of a table is, where that is no other method."""
_CALLED = {
    "exact_match": "exact match",
    "f1": "F1",
    "client_flops": "client FLOPs",
    "server_flops": "server FLOPs",
    "peak_megabytes": "memory, MB",
}
_CONDITIONS = ("rounds", "trainer.clients", "trainer.local_epochs", "trainer.local_steps", "data.batch_size")


@dataclass(frozen=True)
class _Place:
    """A column that says where in the paper's table a row is, and what it says of a row of the paper's."""

    column: Column
    text: Callable[[PaperRow], str]


@dataclass(frozen=True)
class _Entry:
    """One of the paper's numbers, nan for a dash, and what a group, called by its name, has for it."""

    method: str
    name: str
    group: Group | None
    paper: float
    ours: Estimate

    @property
    def is_personal(self) -> bool:
        return self.group is not None and self.group.is_personal


def paper_tables(table: PaperTable, matches: Sequence[Match], interval: Interval = "t") -> list[Table]:
    """Return a table of the paper beside what runs have for it; then the orders, and what it is about.

    Args:
        table: the paper's.
        matches: its numbers that there are groups for.
        interval: how intervals over seeds are made.
    """
    tables = []
    for backbone in dict.fromkeys(match.backbone for match in matches):
        own = [match for match in matches if match.backbone == backbone]
        made = {"cells": _cells(table, own, interval), "orders": _orders(table, own)}
        if table.is_of_metrics:
            made["leads"] = _leads(table, own)
        if table.along is not None:
            made["changes"] = _changes(table, own, table.along)
        for part, one in made.items():
            tables += [replace(one, keys={"table": table.name, "part": part, "backbone": backbone})] * bool(one.rows)
    return tables


def _is_of_shares(table: PaperTable) -> bool:
    return is_share(table.rows[0].quantity)


def _places(table: PaperTable) -> list[_Place]:
    """Return the columns that tell the rows of a table apart."""
    places = [
        _Place(Column("model", words=True), lambda paper_row: paper_row.backbone),
        _Place(Column("task", words=True), lambda paper_row: paper_row.task or ""),
        _Place(Column("of", words=True), lambda paper_row: _CALLED.get(paper_row.quantity, paper_row.quantity)),
        _Place(Column("target"), lambda paper_row: "" if paper_row.target is None else f"{100 * paper_row.target:g} %"),
    ]
    if table.along is not None:
        places.append(_Place(Column(table.along), lambda paper_row: f"{paper_row.settings[str(table.along)]:g}"))
    return [place for place in places if len({place.text(paper_row) for paper_row in table.rows}) > 1]


def _row(
    paper_row: PaperRow, places: Sequence[_Place], cells: Sequence[Cell], repeated: bool = False
) -> tuple[Cell, ...]:
    """Return a row: where it is, which is not said again of numbers that the row above is of, and its cells."""
    where = {
        "model": paper_row.backbone,
        "task": paper_row.task,
        "quantity": paper_row.quantity,
        "target": paper_row.target,
    }
    first = replace(cells[0], values={**where, **paper_row.settings, **cells[0].values})
    return (*(Cell("" if repeated else place.text(paper_row)) for place in places), first, *cells[1:])


# Cell by cell


def _cells(table: PaperTable, matches: Sequence[Match], interval: Interval) -> Table:
    """Return a row for each of the paper's numbers, with ours beside it."""
    places = _places(table)
    rows = [
        _row(match.paper_row, places, cells, repeated=index > 0)
        for match in matches
        for index, cells in enumerate(_entry_cells(match, interval))
    ]
    difference = "difference" if _is_of_shares(table) else "ours / paper"
    columns = (
        *(place.column for place in places),
        Column("method", words=True),
        Column("seeds", rank=1),
        Column("± 95 %" if interval == "t" else "[95 %]", "ours"),
        Column("", "paper"),
        Column(difference),
    )
    backbone = f", here with {matches[0].backbone}" if matches[0].backbone else ""
    number = table.name.removeprefix("table")
    return Table(f"Table {number} of the paper: {table.title}{backbone}", columns, tuple(rows), _notes(table, matches))


def _notes(table: PaperTable, matches: Sequence[Match]) -> tuple[str, ...]:
    groups = [group for match in matches for found in match.groups.values() for group in found]
    notes = [*table.notes, f"ours: {_conditions(groups)}", *_ambiguities(matches)]
    if len(matches) < len(table.rows):
        notes.append(f"no run fits {len(table.rows) - len(matches)} of the paper's {len(table.rows)} rows")
    if table.name == "table8":
        notes.append("ours: FLOPs of one client, and of the server, in one round")
    return (*notes, *[PERSONAL_NOTE.partition(":")[0]] * any(group.is_personal for group in groups))


def _ambiguities(matches: Sequence[Match]) -> list[str]:
    """Say which groups share cells, where none stands, and what to do about it."""
    labels: dict[str, dict[str, None]] = {}
    for match in matches:
        for twins in match.ambiguous:
            labels.setdefault(twins[0].method, {}).update(dict.fromkeys(twin.marked_label for twin in twins))
    return [
        f"{name}: '-' where several runs fit one cell, of which none is chosen ({', '.join(own)}); give the folders of "
        "one of them alone"
        for name, own in labels.items()
    ]


def _conditions(groups: Sequence[Group]) -> str:
    """Say under what conditions groups were run."""
    told = []
    for key in _CONDITIONS:
        values = dict.fromkeys(str(group.runs[0].setting(key)) for group in groups)
        if set(values) != {"None"}:
            told.append(f"{short_name(key)} {' or '.join(values)}")
    return ", ".join(told)


def _entry_cells(match: Match, interval: Interval) -> list[list[Cell]]:
    """Return the cells of each entry: method, seeds, ours, the paper's, and how they differ."""
    paper_row, entries = match.paper_row, _entries(match, interval)
    ours = _leading([np.nan if entry.is_personal else entry.ours.mean for entry in entries], paper_row)
    papers = _leading([entry.paper for entry in entries], paper_row)
    return [
        [
            _name(entry),
            _seeds(entry),
            _ours(entry, paper_row, interval, index in ours),
            Cell(_text(entry.paper, paper_row), index in papers, {"paper": entry.paper}),
            _against(entry.ours.mean, entry.paper, paper_row),
        ]
        for index, entry in enumerate(entries)
    ]


def _leading(figures: Sequence[float], paper_row: PaperRow) -> frozenset[int]:
    return leading(figures, [_text(figure, paper_row) for figure in figures], paper_row.lowest_is_best)


def _entries(match: Match, interval: Interval) -> list[_Entry]:
    """Return an entry for each name of each method, without a group where none, or more than one, has it."""
    entries = []
    for method, number in match.paper_row.values.items():
        paper = np.nan if number is None else number
        owners = {twins[0].method: twins[0] if len(twins) == 1 else None for twins in match.by_name(method)}
        for name, group in (owners or {method: None}).items():
            entries.append(_Entry(method, name, group, paper, _estimate(group, match.paper_row, interval)))
    return entries


def _name(entry: _Entry) -> Cell:
    label = entry.name if entry.group is None else entry.group.marked_label
    return Cell(label, values={"method": entry.method, "label": entry.group.label if entry.group else ""})


def _seeds(entry: _Entry) -> Cell:
    count = len(entry.group.runs) if entry.group else 0
    return Cell(str(count or "-"), values={"seeds": count})


def _estimate(group: Group | None, paper_row: PaperRow, interval: Interval = "t") -> Estimate:
    """Return ours, which is nothing where a seed did not reach the target."""
    values = [] if group is None else list(measured_by_seed(group, paper_row).values())
    return estimate([] if paper_row.target is not None and any(np.isnan(values)) else values, interval)


def _ours(entry: _Entry, paper_row: PaperRow, interval: Interval, bold: bool) -> Cell:
    found = entry.ours
    text = _text(found.mean, paper_row)
    if not np.isnan(found.low):
        bounds = (0.0, 100.0) if is_share(paper_row.quantity) else (0.0, np.inf)
        text = interval_text(found, lambda value: _text(value, paper_row), bounds, interval)
    elif entry.group is not None and paper_row.target is not None and np.isnan(found.mean):
        values = list(measured_by_seed(entry.group, paper_row).values())
        text = f"- ({np.count_nonzero(~np.isnan(values))}/{len(values)})"
    return Cell(text, bold, {"mean": found.mean, "low": found.low, "high": found.high})


def _text(value: float, paper_row: PaperRow) -> str:
    """Return a figure in the paper's unit."""
    if is_share(paper_row.quantity):
        return "-" if np.isnan(value) else f"{value:.2f}"
    return seconds_text(value) if paper_row.quantity == "peak_megabytes" else flops_text(value)


def _against(ours: float, paper: float, paper_row: PaperRow) -> Cell:
    """Return by how many points ours is above the paper's, or how many times as much a cost is."""
    if is_share(paper_row.quantity):
        return Cell(_points(ours - paper), values={"difference": ours - paper})
    return Cell("-" if np.isnan(ours / paper) else f"{ours / paper:.3g}", values={"ratio": ours / paper})


def _points(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:+.2f}"


# In order


def _orders(table: PaperTable, matches: Sequence[Match]) -> Table:
    """Return which place each method takes in the paper and here, of those that both have."""
    places = _places(table)
    rows = [
        _row(match.paper_row, places, _order(match, pairs, table.methods))
        for match in matches
        if len(pairs := _pairs(match)) > 1
    ]
    columns = (
        *(place.column for place in places),
        *(Column(method.removesuffix("-LoRA")) for method in table.methods),
        Column("Spearman"),
        Column("Kendall", rank=1),
    )
    notes = ["Spearman's and Kendall's correlation of the two orders: 1 where they are the same, -1 where reversed"]
    known = [value for row in rows if not np.isnan(value := row[-2].values["spearman"])]
    if known:
        notes.append(f"mean of Spearman's over {len(known)} rows: {np.mean(known):+.2f}")
    if several := sorted({method for match in matches for method in match.groups if len(match.by_name(method)) > 1}):
        notes.append(f"runs of several names fit {', '.join(several)}: that of the first row above counts")
    if any(group.is_personal for match in matches for found in match.groups.values() for group in found):
        notes.append("models of clients (*) take no place and are nobody's best other, in the paper's order neither")
    return Table("Order of the methods: place in the paper / place here", columns, tuple(rows), tuple(notes))


def _order(match: Match, pairs: Mapping[str, tuple[float, float]], methods: Sequence[str]) -> list[Cell]:
    """Return the two places of each method, and how far the two orders agree."""
    paper, ours = ([pair[side] for pair in pairs.values()] for side in (0, 1))
    texts = {
        method: f"{_rank(own[0], paper, match.paper_row)}/{_rank(own[1], ours, match.paper_row)}"
        for method, own in pairs.items()
    }
    agreement = zip(("spearman", "kendall"), rank_agreement(paper, ours), strict=True)
    return [
        *(Cell(texts.get(method, "-"), values={f"rank {method}": texts.get(method)}) for method in methods),
        *(Cell("-" if np.isnan(value) else f"{value:+.2f}", values={name: value}) for name, value in agreement),
    ]


def _pairs(match: Match) -> dict[str, tuple[float, float]]:
    """Return the paper's figure and ours of each method that both have, and whose models are not those of clients."""
    found = {}
    for method, value in match.paper_row.values.items():
        group = match.chosen(method)
        ours = _estimate(group, match.paper_row).mean
        if group is not None and not group.is_personal and value is not None and not np.isnan(ours):
            found[method] = (value, ours)
    return found


def _rank(value: float, figures: Sequence[float], paper_row: PaperRow) -> int:
    """Return which place a figure takes; equal ones take the same."""
    return 1 + sum(other < value if paper_row.lowest_is_best else other > value for other in figures)


# What the table is about


def _leads(table: PaperTable, matches: Sequence[Match]) -> Table:
    """Return by how much FLoRG is ahead of the best other in the paper and here, of the methods that both have."""
    places = _places(table)
    rows: list[tuple[Cell, ...]] = []
    ahead = [0, 0]
    for match in matches:
        pairs = _pairs(match)
        if _OURS not in pairs or len(pairs) < 2:
            continue
        leads = [_lead({method: pair[side] for method, pair in pairs.items()}, match.paper_row) for side in (0, 1)]
        for side, (lead, _) in enumerate(leads):
            ahead[side] += lead > (0 if is_share(match.paper_row.quantity) else 1)
        rows.append(_row(match.paper_row, places, _lead_cells(match, leads)))
    columns = (
        *(place.column for place in places),
        Column("lead", "paper"),
        Column("over", "paper", words=True),
        Column("lead", "here"),
        Column("p", "here"),
        Column("over", "here", words=True),
    )
    title = _LEADS.get(table.name, f"Lead of {_OURS} over the best other method")
    unit = "points" if _is_of_shares(table) else "how many times as much the other takes"
    notes = [f"lead: {unit}; p: of a paired t test over shared seeds", _tally(ahead, len(rows))]
    if any(np.isinf(cell.values.get("lead", np.nan)) for row in rows for cell in row):
        notes.append(f"inf: {_OURS} was at the target before anything was sent")
    return Table(title, columns, tuple(rows), tuple(notes))


def _tally(ahead: Sequence[int], rows: int) -> str:
    return f"{_OURS} is ahead in {ahead[0]} of {rows} rows in the paper, and in {ahead[1]} here"


def _lead(figures: Mapping[str, float], paper_row: PaperRow) -> tuple[float, str]:
    """Return FLoRG's lead over the best other method, and which that is."""
    others = {method: value for method, value in figures.items() if method != _OURS}
    rival = (min if paper_row.lowest_is_best else max)(others, key=lambda method: others[method])
    own, other = figures[_OURS], others[rival]
    return (own - other if is_share(paper_row.quantity) else _times_as_much(other, own)), rival


def _times_as_much(other: float, own: float) -> float:
    """Return a cost as a multiple of another: of nothing, infinitely much, or where both are nothing, as much."""
    if own > 0:
        return other / own
    return np.inf if other > 0 else 1.0


def _lead_cells(match: Match, leads: Sequence[tuple[float, str]]) -> list[Cell]:
    (papers, over), (ours, here_over) = leads
    one, other = (match.chosen(method) for method in (_OURS, here_over))
    p = np.nan
    if one is not None and other is not None:
        p = paired_difference(*(measured_by_seed(group, match.paper_row) for group in (one, other))).p
    text = _points if is_share(match.paper_row.quantity) else _times
    return [
        Cell(text(papers), values={"paper_lead": papers}),
        Cell(over, values={"paper_over": over}),
        Cell(text(ours), values={"lead": ours}),
        Cell(p_text(p), values={"p": p}),
        Cell("" if other is None else other.marked_label, values={"over": here_over}),
    ]


def _times(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3g}"


def _changes(table: PaperTable, matches: Sequence[Match], along: str) -> Table:
    """Return how each method changes from the lowest value of a setting to the highest, in the paper and here."""
    places = [place for place in _places(table) if place.column.header != along]
    by_place: dict[tuple[str, ...], list[Match]] = {}
    for match in matches:
        by_place.setdefault(tuple(place.text(match.paper_row) for place in places), []).append(match)
    rows: list[tuple[Cell, ...]] = []
    same, first, last = 0, np.inf, -np.inf
    for own in by_place.values():
        low, high = (pick(own, key=lambda match: match.paper_row.settings[along]) for pick in (min, max))
        first, last = min(first, low.paper_row.settings[along]), max(last, high.paper_row.settings[along])
        for method in table.methods if low is not high else ():
            if cells := _change(method, low, high):
                rows.append(_row(low.paper_row, places, cells))
                same += np.sign(cells[1].values["paper_change"]) == np.sign(cells[2].values["change"])
    columns = (
        *(place.column for place in places),
        Column("method", words=True),
        Column("paper"),
        Column("here"),
        Column("p"),
    )
    title = f"Change from {along} {first:g} to {last:g}, in points"
    notes = (f"in the same direction in {same} of {len(rows)} rows", "p: of a paired t test over shared seeds")
    return Table(title, columns, tuple(rows), notes)


def _change(method: str, low: Match, high: Match) -> list[Cell]:
    """Return how a method changes, in the paper and here; nothing where one of the two does not tell."""
    groups = [match.chosen(method) for match in (high, low)]
    papers = [match.paper_row.values[method] for match in (high, low)]
    if groups[0] is None or groups[1] is None or papers[0] is None or papers[1] is None:
        return []
    figures = [
        measured_by_seed(group, match.paper_row) for group, match in zip(groups, (high, low), strict=True) if group
    ]
    means = [estimate(own.values()).mean for own in figures]
    paper, ours, p = papers[0] - papers[1], means[0] - means[1], paired_difference(*figures).p
    if np.isnan(ours):
        return []
    return [
        Cell(groups[0].marked_label, values={"method": method}),
        Cell(_points(paper), values={"paper_change": paper}),
        Cell(_points(ours), values={"change": ours}),
        Cell(p_text(p), values={"p": p}),
    ]
