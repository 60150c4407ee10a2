"""What to know before believing a comparison."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedgram.comparison.figures import is_share
from fedgram.comparison.judgement import Judgement
from fedgram.comparison.overview import View, by_seed
from fedgram.comparison.runs import Group, Run, short_name, slices
from fedgram.comparison.statistics import estimate

__all__ = ["caveats"]

_FEWEST_SEEDS = 3
_COARSE = 0.1
"""Points that one sample of the evaluation split may count without a word."""
_CONDITIONS = (
    "rounds",
    "trainer.participation",
    "trainer.local_epochs",
    "trainer.local_steps",
    "trainer.client_weights",
    "trainer.precision",
    "data.batch_size",
    "model.dtype",
    "method.head",
    "method.rank",
    "method.target_modules",
)
"""Settings that a method is hardly to be praised or blamed for."""


def caveats(groups: Sequence[Group], view: View) -> list[str]:
    """Return what weakens a comparison, a sentence each: seeds, the size of the split, and unequal conditions."""
    found: dict[str, list[str]] = {}
    sliced = slices(groups)
    telling = [index for index in range(len(view.by)) if len({at[index] for at in sliced}) > 1]
    for at, members in sliced.items():
        place = ", ".join(f"{short_name(view.by[index])} {at[index]}" for index in telling)
        metric = view.metric or members[0].runs[0].metric
        for sentence in _of_slice(members, metric, view):
            found.setdefault(sentence, []).append(place)
    return [
        sentence if len(places) == len(sliced) else f"{'; '.join(places)}: {sentence}"
        for sentence, places in found.items()
    ]


def _of_slice(groups: Sequence[Group], metric: str, view: View) -> Iterable[str]:
    yield from _few_seeds(groups)
    yield from _other_seeds(groups)
    yield from _ended_early(groups)
    yield from _not_evaluated(groups, metric, view.judgement)
    yield from _coarse(groups, metric, view)
    yield from _other_conditions(groups)


def _few_seeds(groups: Sequence[Group]) -> Iterable[str]:
    few = {group.label: str(len(group.runs)) for group in groups if len(group.runs) < _FEWEST_SEEDS}
    if few:
        who = "every method" if len(few) == len(groups) else _list(few)
        yield f"fewer than {_FEWEST_SEEDS} seeds ({who}): chance may decide who is ahead"


def _other_seeds(groups: Sequence[Group]) -> Iterable[str]:
    seeds = {group.label: " ".join(str(run.seed) for run in group.runs) for group in groups}
    if len(set(seeds.values())) > 1:
        yield f"other seeds ({_list(seeds)}): means are over other seeds too, differences over shared ones alone"


def _ended_early(groups: Sequence[Group]) -> Iterable[str]:
    """Yield a caveat that names the runs which a callback has ended."""
    ended = [(group.label, run) for group in groups for run in group.runs if run.summary.get("stopped")]
    if ended:
        each = (f"{name}, seed {run.seed}: {run.summary['rounds']} of {run.planned_rounds}" for name, run in ended)
        yield f"ended early by a callback, so that costs are of unlike rounds ({'; '.join(each)})"


def _not_evaluated(groups: Sequence[Group], metric: str, judgement: Judgement) -> Iterable[str]:
    runs = [run for group in groups for run in group.runs]
    without = [run for run in runs if np.isnan(run.final(metric)) and (run.scores is None or run.scores.metrics)]
    if missing := [str(run.folder) for run in without if not run.is_undefined(metric)]:
        yield f"no {metric} {judgement}: {', '.join(missing)}"
    if unknown := [str(run.folder) for run in without if run.is_undefined(metric)]:
        yield f"{metric} is undefined {judgement}, and in no mean: {', '.join(unknown)}"


def _coarse(groups: Sequence[Group], metric: str, view: View) -> Iterable[str]:
    """Say what one sample counts, where that is much, or more than the spread over seeds."""
    counts = {run.samples for group in groups for run in group.runs}
    known = sorted(count for count in counts if count > 0)
    if not known or not is_share(metric):
        return
    sample = 1 / known[0]
    widths = {group.label: estimate(by_seed(group, metric).values(), view.interval).half_width for group in groups}
    narrow = [label for label, half_width in widths.items() if half_width < sample]
    if 100 * sample >= _COARSE or narrow:
        less = f", and half the interval of {', '.join(narrow)} is less" if narrow else ""
        yield f"one of the {known[0]:,.0f} evaluated samples is {100 * sample:.3g} points{less}"


def _other_conditions(groups: Sequence[Group]) -> Iterable[str]:
    for key in _CONDITIONS:
        values = {group.label: json.dumps(_condition(group.runs[0], key)) for group in groups}
        if len(set(values.values())) > 1:
            yield f"other {short_name(key)} ({_list(values)}): not under the same conditions"


def _condition(run: Run, key: str) -> Any:
    return run.planned_rounds if key == "rounds" else run.setting(key)


def _list(values: Mapping[str, str]) -> str:
    """Return labels by the value that they have."""
    labels: dict[str, list[str]] = {}
    for label, value in values.items():
        labels.setdefault(value, []).append(label)
    return "; ".join(f"{value}: {', '.join(of_value)}" for value, of_value in labels.items())
