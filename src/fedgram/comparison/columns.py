"""The columns of the tables that compare methods, and what makes their cells."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

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
from fedgram.comparison.judgement import Judgement
from fedgram.comparison.runs import Group, Run
from fedgram.comparison.statistics import LEVEL, Estimate, Interval, PairedDifference
from fedgram.comparison.tables import Cell, Column
from fedgram.comparison.targets import ToTarget
from fedgram.runs.folder import is_loss

__all__ = ["PERCENT", "Entry", "Made", "View", "columns_of_groups", "columns_of_runs"]

PERCENT = f"{100 * LEVEL:g} %"
"""How often an interval should cover what it estimates, as it is written."""


@dataclass(frozen=True)
class View:
    """What is asked of a comparison.

    Attributes:
        metric: what methods are judged by; None for what counts in their task.
        target: the metric to be reached, if what that took is asked for.
        interval: how intervals over seeds are made.
        by: the settings that the groups were sliced by.
        judgement: what the metric is of.
    """

    metric: str | None = None
    target: float | None = None
    interval: Interval = "t"
    by: tuple[str, ...] = ()
    judgement: Judgement = field(default_factory=Judgement)


@dataclass(frozen=True)
class Entry:
    """What is known of a group among those of its slice.

    Attributes:
        group: the group.
        metric: what it is judged by.
        final: that after the last round.
        rival: the label of the best other group; empty where there is none.
        difference: to that.
        target: what it took to reach the target, if there is one.
    """

    group: Group
    metric: str
    final: Estimate
    rival: str
    difference: PairedDifference
    target: ToTarget | None

    def mean(self, figure: Callable[[Run], float]) -> float:
        """Return the mean over seeds of a figure of a run; nan where one lacks it."""
        return float(np.mean([figure(run) for run in self.group.runs]))


Made = tuple[Column, Callable[[Entry], Cell]]
"""A column, and what makes its cells."""


def columns_of_groups(view: View, metric: str) -> list[Made]:
    """Return the columns of a table with a row for each group."""
    return [*_judged(view, metric), *_to_target(view, metric), *_costs(), *_validated(view, metric, rank=10)]


def columns_of_runs(view: View, metric: str) -> list[Made]:
    """Return the columns of a table with a row for each run."""
    header = "after" if view.judgement.split == "validation" else view.judgement.at
    after = Column(header, _headed(metric, view.judgement), keys=("after", metric, "metric"), best=_better(metric))
    seed: Made = (Column("seed", rank=1, keys=("seed",)), _seed)
    run: Made = (Column("run", words=True, keys=("run",)), _name)
    return [run, seed, *_validated(view, metric, rank=0), (after, partial(_final, view)), *_costs()]


def _headed(metric: str, judgement: Judgement) -> str:
    name = metric if judgement.split == "validation" else f"{judgement.split} {metric}"
    return f"{name} %" if is_share(metric) else name


def _better(metric: str) -> Literal["highest", "lowest"]:
    return "lowest" if is_loss(metric) else "highest"


def _judged(view: View, metric: str) -> list[Made]:
    """Return who is judged, and how good each is."""
    interval = f"± {PERCENT}" if view.interval == "t" else f"[{PERCENT}]"
    return [
        (Column("method", words=True, keys=("method",)), _name),
        (Column("seeds", keys=("seeds",)), _seeds),
        (
            Column(interval, _headed(metric, view.judgement), keys=(metric, "metric"), best=_better(metric)),
            partial(_final, view),
        ),
        (Column("to best", "difference", rank=1, keys=("difference",)), _difference),
        (Column("p", rank=1, keys=("p",)), _p),
    ]


def _name(entry: Entry) -> Cell:
    group = entry.group
    values = {
        "label": group.label,
        "method": group.method,
        "personal": group.is_personal,
        "seeds": " ".join(str(run.seed) for run in group.runs),
        "folders": " ".join(str(run.folder) for run in group.runs),
    }
    return Cell(group.marked_label, values=values, value=group.marked_label)


def _seeds(entry: Entry) -> Cell:
    return Cell(str(entry.final.count), values={"count": entry.final.count}, value=float(entry.final.count))


def _seed(entry: Entry) -> Cell:
    seed = entry.group.runs[0].seed
    return Cell(str(seed), value=float(seed))


def _p(entry: Entry) -> Cell:
    p = entry.difference.p
    return Cell(p_text(p), values={"p": p}, value=p)


def _final(view: View, entry: Entry) -> Cell:
    final, how = entry.final, view.interval
    values = {"metric": entry.metric, "split": view.judgement.split, "at": view.judgement.at, "mean": final.mean}
    values |= {"low": final.low, "high": final.high, "interval": how}
    text = estimate_text(final, entry.metric, how)
    if np.isnan(final.mean) and any(run.is_undefined(entry.metric) for run in entry.group.runs):
        text = "undefined"
    return Cell(text, values=values, value=final.mean, shown=metric_text(final.mean, entry.metric))


def _validated(view: View, metric: str, rank: int) -> list[Made]:
    """Return the metric on the validation split: before training, and where another split is judged also after it."""
    split, at = view.judgement.split, view.judgement.at
    header = _headed(metric, Judgement()) if split == "validation" else f"validation {_headed(metric, Judgement())}"

    def column(name: str, key: str, figure: Callable[[Run], float]) -> Made:
        def make(entry: Entry) -> Cell:
            mean = entry.mean(figure)
            return Cell(metric_text(mean, metric), values={key: mean}, value=mean)

        best = _better(metric) if key == "validation" else None
        return Column(name, header, rank=rank, keys=(key,), best=best), make

    before = column("before", "before", lambda run: run.initial(metric))
    if split == "validation":
        return [before]
    return [before, column(at, "validation", lambda run: run.validated(metric, best=at == "best"))]


def _difference(entry: Entry) -> Cell:
    found = entry.difference
    values = {"difference": found.mean, "difference_to": entry.rival, "shared_seeds": found.count}
    return Cell(difference_text(found.mean, entry.metric), values=values, value=found.mean)


def _to_target(view: View, metric: str) -> list[Made]:
    """Return what it took to reach the target, if one is asked for."""
    if view.target is None:
        return []
    to = f"to {target_text(view.target, metric)}"
    return [
        _cost_column("rounds", to, 0, "round", mean_text, partial(_rounds, view.target)),
        _cost_column("MB", to, 2, "megabytes_both", size_text),
        _cost_column("parameters", to, 3, "parameters_both", count_text),
        _cost_column("client FLOPs", to, 4, "client_flops", flops_text),
        _cost_column("up", f"MB {to}", 11, "megabytes_up", size_text),
        _cost_column("down", f"MB {to}", 11, "megabytes_down", size_text),
        _cost_column("up", f"parameters {to}", 11, "parameters_up", count_text),
        _cost_column("down", f"parameters {to}", 11, "parameters_down", count_text),
    ]


def _cost_column(
    header: str,
    group: str,
    rank: int,
    cost: str,
    form: Callable[[float], str],
    make: Callable[[Entry], Cell] | None = None,
) -> Made:
    """Return a column of one of `COSTS` until the target was reached."""
    column = Column(header, group, rank=rank, keys=(f"{cost}_to_target",), best="lowest")
    return column, make or partial(_cost, cost, form)


def _rounds(target: float, entry: Entry) -> Cell:
    """Return how many rounds it took, or how many seeds got there."""
    found = entry.target
    if found is None:
        return Cell()
    mean = found.means["round"]
    text = f"- ({found.reached}/{found.seeds})" if np.isnan(mean) else mean_text(mean)
    values = {"target": target, "target_reached": found.reached, "round_to_target": mean}
    return Cell(text, values=values, value=mean)


def _cost(key: str, form: Callable[[float], str], entry: Entry) -> Cell:
    if entry.target is None:
        return Cell()
    mean = entry.target.means[key]
    return Cell(form(mean), values={f"{key}_to_target": mean}, value=mean)


def _costs() -> list[Made]:
    """Return what whole runs cost."""
    return [
        _figure_column("up", "MB", 5, "megabytes_up", size_text, _figure("bytes_up", 1e-6)),
        _figure_column("down", "MB", 5, "megabytes_down", size_text, _figure("bytes_down", 1e-6)),
        _figure_column("up", "parameters", 6, "parameters_up", count_text),
        _figure_column("down", "parameters", 6, "parameters_down", count_text),
        _figure_column("in all", "seconds", 7, "seconds", seconds_text),
        _figure_column("training/round", "seconds", 7, "seconds_per_round", size_text, _seconds_per_round),
        _figure_column("client", "FLOPs", 8, "client_flops", flops_text),
        _figure_column("server", "FLOPs", 8, "server_flops", flops_text),
        _figure_column("peak MB", "", 9, "peak_megabytes", seconds_text),
    ]


def _figure_column(
    header: str,
    group: str,
    rank: int,
    name: str,
    form: Callable[[float], str],
    figure: Callable[[Run], float] | None = None,
) -> Made:
    """Return a column of the mean over seeds of a figure of a run, by default that of the column's name."""

    def make(entry: Entry) -> Cell:
        mean = entry.mean(figure or _figure(name))
        return Cell(form(mean), values={name: mean}, value=mean)

    return Column(header, group, rank=rank, keys=(name,), best="lowest"), make


def _figure(key: str, scale: float = 1) -> Callable[[Run], float]:
    """Return what reads a figure of summary.json, with another unit."""
    return lambda run: run.figure(key) * scale


def _seconds_per_round(run: Run) -> float:
    """Return how long local training and the server took, of the mean round, without evaluations."""
    return run.figure("seconds_training") / (run.figure("rounds") or np.nan)
