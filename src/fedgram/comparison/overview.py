"""The tables that compare methods: how good each is, how sure that is, and what it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedgram.comparison.columns import PERCENT, Entry, Made, View, columns_of_groups, columns_of_runs
from fedgram.comparison.figures import bounds_of, is_cut, is_share, shows_points, target_text
from fedgram.comparison.judgement import Judgement
from fedgram.comparison.runs import Group, Run, short_name, slices
from fedgram.comparison.selection import embolden
from fedgram.comparison.statistics import Estimate, best, estimate, paired_difference
from fedgram.comparison.tables import Table
from fedgram.comparison.targets import group_cost_to_target
from fedgram.runs.folder import is_loss

__all__ = ["PERSONAL_NOTE", "View", "by_seed", "group_tables", "run_table"]

PERSONAL_NOTE = (
    "* models of clients, each on its own share of the split: not to be compared with one model's, and so neither the "
    "best nor the best other"
)


def group_tables(groups: Sequence[Group], view: View) -> list[Table]:
    """Return a table for each slice, a row for each group, the best first; what figures mean stands below the last."""
    tables: list[Table] = []
    notes: dict[str, None] = {}
    for at, members in slices(groups).items():
        metric = view.metric or members[0].runs[0].metric
        keys, entries = dict(zip(view.by, at, strict=True)), _entries(members, metric, view)
        columns = columns_of_groups(view, metric)
        tables.append(_table(_title(members, keys), columns, sorted(entries, key=_place), keys))
        notes |= dict.fromkeys(_notes(members, metric, view, entries))
    tied = frozenset(["difference", "seconds", *(note.partition(":")[0] for note in notes if note.startswith("to "))])
    return [*tables[:-1], *(replace(last, notes=tuple(notes), tied=tied) for last in tables[-1:])]


def run_table(runs: Sequence[Run], metric: str | None = None, judgement: Judgement | None = None) -> Table:
    """Return a table with a row for each run: the metric before and after, and what it cost."""
    groups = [Group(run.method, _label(run), (), (run,)) for run in runs]
    metric = metric or runs[0].metric
    view = View(metric, judgement=judgement or Judgement())
    entries = _entries(groups, metric, view)
    notes = (PERSONAL_NOTE,) if any(run.is_personal for run in runs) else ()
    return replace(_table(_title(groups, {}), columns_of_runs(view, metric), entries, {}), notes=notes)


def _label(run: Run) -> str:
    """Return the last two parts of a run's folder, behind its method where they do not name that."""
    path = f"{run.folder.parent.name}/{run.folder.name}"
    return path if run.method in path else f"{run.method} {path}"


def _table(title: str, columns: Sequence[Made], entries: Sequence[Entry], keys: Mapping[str, object]) -> Table:
    rows = tuple(tuple(make(entry) for _, make in columns) for entry in entries)
    table = Table(title, tuple(column for column, _ in columns), rows, keys=keys)
    return embolden(table, [not entry.group.is_personal for entry in entries])


def _title(groups: Sequence[Group], keys: Mapping[str, object]) -> str:
    runs = [run for group in groups for run in group.runs]
    tasks = ", ".join(dict.fromkeys(str(run.summary["task"]) for run in runs))
    rounds = " or ".join(dict.fromkeys(str(run.summary.get("rounds")) for run in runs))
    spent = "1 round" if rounds == "1" else f"{rounds} rounds"
    told = [f"{short_name(key)} {value}" for key, value in keys.items() if key != "task"]
    return ", ".join([tasks, spent, *told])


def _place(entry: Entry) -> tuple[bool, bool, float]:
    """Return by what groups are sorted: the best first, then those without a figure, and models of clients apart."""
    mean = entry.final.mean
    return entry.group.is_personal, bool(np.isnan(mean)), mean if is_loss(entry.metric) else -mean


def _notes(groups: Sequence[Group], metric: str, view: View, entries: Sequence[Entry]) -> list[str]:
    share = is_share(metric)
    how = f"± {PERCENT} t interval" if view.interval == "t" else f"[{PERCENT} percentile bootstrap interval]"
    notes = [
        f"{metric}{', in per cent' if share else ''}: {view.judgement}, mean over seeds {how}; the best "
        "of a column in bold",
        *_notes_on_intervals(metric, view, [entry.final for entry in entries]),
        f"difference: to the best other row, over the seeds that both have{', in points' if share else ''}; p: of a "
        "paired t test, not adjusted for choosing the best",
    ]
    if view.target is not None:
        where = "" if view.judgement.split == "validation" else "on the validation split, "
        notes.append(
            f"to {target_text(view.target, metric)}: {where}what all clients took until the first evaluated round that "
            "reaches it, up and down, mean over seeds; '- (1/3)' where only 1 of 3 seeds did"
        )
    notes.append("seconds: of a whole run with its evaluations, and of one round's training without them")
    return notes + [PERSONAL_NOTE] * any(group.is_personal for group in groups)


def _notes_on_intervals(metric: str, view: View, finals: Sequence[Estimate]) -> list[str]:
    """Return notes on what stands where there is no ± behind a mean of several seeds."""
    if view.interval != "t":
        return []
    cut = any(is_cut(final, bounds_of(metric)) and not shows_points(final) for final in finals)
    return [
        *["(a, b): the figures of two seeds, whose interval would be far wider"] * any(map(shows_points, finals)),
        *[f"[a, b]: the ends of an interval that is cut where it goes beyond what {metric} can be"] * cut,
    ]


def _entries(groups: Sequence[Group], metric: str, view: View) -> list[Entry]:
    finals = [estimate(by_seed(group, metric).values(), view.interval) for group in groups]
    targets = [None if view.target is None else group_cost_to_target(g, metric, view.target) for g in groups]
    entries = []
    for index, group in enumerate(groups):
        rival = _rival(index, groups, finals, is_loss(metric))
        theirs = {} if rival is None else by_seed(groups[rival], metric)
        entries.append(
            Entry(
                group,
                metric,
                finals[index],
                "" if rival is None else groups[rival].label,
                paired_difference(by_seed(group, metric), theirs),
                targets[index],
            )
        )
    return entries


def by_seed(group: Group, metric: str) -> dict[int, float]:
    """Return a group's metric that it is judged by, by seed."""
    return {run.seed: run.final(metric) for run in group.runs}


def _rival(index: int, groups: Sequence[Group], finals: Sequence[Estimate], lowest: bool) -> int | None:
    """Return where the best other group stands that a group can be held against."""
    personal = groups[index].is_personal
    racing = [
        final.mean if other != index and groups[other].is_personal == personal else np.nan
        for other, final in enumerate(finals)
    ]
    return min(best(racing, lowest), default=None)
