"""The tables that compare methods: how good each is, how sure that is, and what it cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fedgram.comparison.figures import (
    count_text,
    difference_text,
    estimate_text,
    flops_text,
    is_share,
    mean_text,
    metric_text,
    p_text,
    seconds_text,
    size_text,
    target_text,
)
from fedgram.comparison.runs import Group, Run, short_name, slices
from fedgram.comparison.statistics import (
    LEVEL,
    Estimate,
    Interval,
    PairedDifference,
    best,
    estimate,
    paired_difference,
    winners,
)
from fedgram.comparison.tables import Cell, Column, Table
from fedgram.comparison.targets import COSTS, ToTarget, group_cost_to_target
from fedgram.run_folder import is_loss

__all__ = ["PERSONAL_NOTE", "View", "by_seed", "group_tables", "run_table"]

_PERCENT = f"{100 * LEVEL:g} %"
PERSONAL_NOTE = (
    "* models of clients, each on its own share of the split: not to be compared with one model's, and so neither the "
    "best nor the best other"
)


@dataclass(frozen=True)
class View:
    """What is asked of a comparison.

    Attributes:
        metric: what methods are judged by; None for what counts in their task.
        target: the metric to be reached, if what that took is asked for.
        interval: how intervals over seeds are made.
        by: the settings that the groups were sliced by.
    """

    metric: str | None = None
    target: float | None = None
    interval: Interval = "t"
    by: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Entry:
    """What is known of a group among those of its slice.

    Attributes:
        group: the group.
        metric: what it is judged by.
        final: that after the last round.
        rival: the label of the best other group; empty where there is none.
        difference: to that.
        target: what it took to reach the target, if there is one.
        leads: where it is the best, out of "final" and `COSTS`.
    """

    group: Group
    metric: str
    final: Estimate
    rival: str
    difference: PairedDifference
    target: ToTarget | None
    leads: frozenset[str]

    def mean(self, key: str) -> float:
        """Return the mean over seeds of a figure of summary.json; nan where a run does not tell."""
        return float(np.mean([run.figure(key) for run in self.group.runs]))

    @property
    def before(self) -> float:
        """The mean over seeds of the metric before training."""
        return float(np.mean([run.initial(self.metric) for run in self.group.runs]))


_Made = tuple[Column, Callable[[_Entry], Cell]]
"""A column, and what makes its cells."""


def group_tables(groups: Sequence[Group], view: View) -> list[Table]:
    """Return a table for each slice, a row for each group; what the figures mean stands below the last."""
    tables: list[Table] = []
    notes: dict[str, None] = {}
    for at, members in slices(groups).items():
        metric = view.metric or members[0].runs[0].metric
        columns = [*_judged(view, metric), *_to_target(view, metric), *_costs(), _before(metric, rank=10)]
        keys = dict(zip(view.by, at, strict=True))
        tables.append(_table(_title(members, keys), columns, _entries(members, metric, view), keys))
        notes |= dict.fromkeys(_notes(members, metric, view))
    return [*tables[:-1], *(replace(last, notes=tuple(notes)) for last in tables[-1:])]


def run_table(runs: Sequence[Run], metric: str | None = None) -> Table:
    """Return a table with a row for each run: the metric before and after, and what it cost."""
    groups = [Group(run.method, _label(run), (), (run,)) for run in runs]
    metric = metric or runs[0].metric
    entries = _entries(groups, metric, View(metric))
    after: _Made = (Column("after", _headed(metric)), partial(_final, "t"))
    seed: _Made = (Column("seed", rank=1), lambda entry: Cell(str(entry.group.runs[0].seed)))
    columns = [(Column("run", words=True), _name), seed, _before(metric, rank=0), after, *_costs()]
    notes = (PERSONAL_NOTE,) if any(run.is_personal for run in runs) else ()
    return replace(_table(_title(groups, {}), columns, entries, {}), notes=notes)


def _label(run: Run) -> str:
    """Return the last two parts of a run's folder, behind its method where they do not name that."""
    path = f"{run.folder.parent.name}/{run.folder.name}"
    return path if run.method in path else f"{run.method} {path}"


def _headed(metric: str) -> str:
    return f"{metric} %" if is_share(metric) else metric


def _table(title: str, columns: Sequence[_Made], entries: Sequence[_Entry], keys: Mapping[str, object]) -> Table:
    rows = tuple(tuple(make(entry) for _, make in columns) for entry in entries)
    return Table(title, tuple(column for column, _ in columns), rows, keys=keys)


def _title(groups: Sequence[Group], keys: Mapping[str, object]) -> str:
    runs = [run for group in groups for run in group.runs]
    tasks = ", ".join(dict.fromkeys(str(run.summary["task"]) for run in runs))
    rounds = " or ".join(dict.fromkeys(str(run.summary.get("rounds")) for run in runs))
    spent = "1 round" if rounds == "1" else f"{rounds} rounds"
    told = [f"{short_name(key)} {value}" for key, value in keys.items() if key != "task"]
    return ", ".join([tasks, spent, *told])


def _notes(groups: Sequence[Group], metric: str, view: View) -> list[str]:
    share = is_share(metric)
    how = f"± {_PERCENT} t interval" if view.interval == "t" else f"[{_PERCENT} percentile bootstrap interval]"
    notes = [
        f"{metric}{', in per cent' if share else ''}: after the last round, mean over seeds {how}; the best in bold",
        f"difference: to the best other row, over the seeds that both have{', in points' if share else ''}; p: of a "
        "paired t test, not adjusted for choosing the best",
    ]
    if view.target is not None:
        notes.append(
            f"to {target_text(view.target, metric)}: what all clients took until the first evaluated round that "
            "reaches it, up and down, mean over seeds; '- (1/3)' where only 1 of 3 seeds did"
        )
    return notes + [PERSONAL_NOTE] * any(group.is_personal for group in groups)


def _entries(groups: Sequence[Group], metric: str, view: View) -> list[_Entry]:
    finals = [estimate(by_seed(group, metric).values(), view.interval) for group in groups]
    targets = [None if view.target is None else group_cost_to_target(g, metric, view.target) for g in groups]
    leads = {"final": _best(groups, [final.mean for final in finals], is_loss(metric))}
    for cost in COSTS:
        leads[cost] = _best(groups, [np.nan if t is None else t.means[cost] for t in targets], True)
    entries = []
    for index, group in enumerate(groups):
        rival = _rival(index, groups, finals, is_loss(metric))
        theirs = {} if rival is None else by_seed(groups[rival], metric)
        entries.append(
            _Entry(
                group,
                metric,
                finals[index],
                "" if rival is None else groups[rival].label,
                paired_difference(by_seed(group, metric), theirs),
                targets[index],
                frozenset(key for key, winners in leads.items() if index in winners),
            )
        )
    return entries


def by_seed(group: Group, metric: str) -> dict[int, float]:
    """Return a group's metric after the last round, by seed."""
    return {run.seed: run.final(metric) for run in group.runs}


def _best(groups: Sequence[Group], figures: Sequence[float], lowest: bool) -> frozenset[int]:
    """Return where the best groups stand; models of clients are of no race, and where all are alike none has won."""
    racing = [np.nan if g.is_personal else value for g, value in zip(groups, figures, strict=True)]
    return winners(racing, lowest)


def _rival(index: int, groups: Sequence[Group], finals: Sequence[Estimate], lowest: bool) -> int | None:
    """Return where the best other group stands that a group can be held against."""
    personal = groups[index].is_personal
    racing = [
        final.mean if other != index and groups[other].is_personal == personal else np.nan
        for other, final in enumerate(finals)
    ]
    return min(best(racing, lowest), default=None)


def _judged(view: View, metric: str) -> list[_Made]:
    """Return who is judged, and how good each is."""
    interval = f"± {_PERCENT}" if view.interval == "t" else f"[{_PERCENT}]"
    return [
        (Column("method", words=True), _name),
        (Column("seeds"), _seeds),
        (Column(interval, _headed(metric)), partial(_final, view.interval)),
        (Column("to best", "difference", rank=1), _difference),
        (Column("p", rank=1), lambda entry: Cell(p_text(entry.difference.p), values={"p": entry.difference.p})),
    ]


def _name(entry: _Entry) -> Cell:
    group = entry.group
    values = {
        "label": group.label,
        "method": group.method,
        "personal": group.is_personal,
        "seeds": " ".join(str(run.seed) for run in group.runs),
        "folders": " ".join(str(run.folder) for run in group.runs),
    }
    return Cell(group.marked_label, values=values)


def _seeds(entry: _Entry) -> Cell:
    return Cell(str(entry.final.count), values={"count": entry.final.count})


def _final(how: Interval, entry: _Entry) -> Cell:
    final = entry.final
    values = {"metric": entry.metric, "mean": final.mean, "low": final.low, "high": final.high, "interval": how}
    text = estimate_text(final, entry.metric, how)
    if np.isnan(final.mean) and any(run.is_undefined(entry.metric) for run in entry.group.runs):
        text = "undefined"
    return Cell(text, "final" in entry.leads, values)


def _before(metric: str, rank: int) -> _Made:
    """Return the metric before training."""

    def make(entry: _Entry) -> Cell:
        return Cell(metric_text(entry.before, metric), values={"before": entry.before})

    return Column("before", _headed(metric), rank=rank), make


def _difference(entry: _Entry) -> Cell:
    found = entry.difference
    values = {"difference": found.mean, "difference_to": entry.rival, "shared_seeds": found.count}
    return Cell(difference_text(found.mean, entry.metric), values=values)


def _to_target(view: View, metric: str) -> list[_Made]:
    """Return what it took to reach the target, if one is asked for."""
    if view.target is None:
        return []
    to = f"to {target_text(view.target, metric)}"
    return [
        (Column("rounds", to), partial(_rounds, view.target)),
        (Column("MB", to, rank=2), partial(_cost, "megabytes_both", size_text)),
        (Column("parameters", to, rank=3), partial(_cost, "parameters_both", count_text)),
        (Column("client FLOPs", to, rank=4), partial(_cost, "client_flops", flops_text)),
        (Column("up", f"MB {to}", rank=11), partial(_cost, "megabytes_up", size_text)),
        (Column("down", f"MB {to}", rank=11), partial(_cost, "megabytes_down", size_text)),
        (Column("up", f"parameters {to}", rank=11), partial(_cost, "parameters_up", count_text)),
        (Column("down", f"parameters {to}", rank=11), partial(_cost, "parameters_down", count_text)),
    ]


def _rounds(target: float, entry: _Entry) -> Cell:
    """Return how many rounds it took, or how many seeds got there."""
    found = entry.target
    if found is None:
        return Cell()
    mean = found.means["round"]
    text = f"- ({found.reached}/{found.seeds})" if np.isnan(mean) else mean_text(mean)
    values = {"target": target, "target_reached": found.reached, "round_to_target": mean}
    return Cell(text, "round" in entry.leads, values)


def _cost(key: str, form: Callable[[float], str], entry: _Entry) -> Cell:
    if entry.target is None:
        return Cell()
    mean = entry.target.means[key]
    return Cell(form(mean), key in entry.leads, {f"{key}_to_target": mean})


def _costs() -> list[_Made]:
    """Return what whole runs cost."""
    return [
        (Column("up", "MB", rank=5), partial(_figure, "bytes_up", "megabytes_up", size_text, 1e-6)),
        (Column("down", "MB", rank=5), partial(_figure, "bytes_down", "megabytes_down", size_text, 1e-6)),
        (Column("up", "parameters", rank=6), partial(_figure, "parameters_up", "parameters_up", count_text, 1)),
        (Column("down", "parameters", rank=6), partial(_figure, "parameters_down", "parameters_down", count_text, 1)),
        (Column("seconds", rank=7), partial(_figure, "seconds", "seconds", seconds_text, 1)),
        (Column("client", "FLOPs", rank=8), partial(_figure, "client_flops", "client_flops", flops_text, 1)),
        (Column("server", "FLOPs", rank=8), partial(_figure, "server_flops", "server_flops", flops_text, 1)),
        (Column("peak MB", rank=9), partial(_figure, "peak_megabytes", "peak_megabytes", seconds_text, 1)),
    ]


def _figure(key: str, name: str, form: Callable[[float], str], scale: float, entry: _Entry) -> Cell:
    """Return the mean over seeds of a figure of summary.json, under a name for programs."""
    mean = entry.mean(key) * scale
    return Cell(form(mean), values={name: mean})
