"""Finished runs, read from their folders, and which of them are repetitions of one another.

Runs that differ in nothing but the seed form a group, and tables and pictures speak of groups. Groups that may be held
against each other form a slice: they share the data, the task, the partition's settings and the backbone.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedgram.errors import DataError

__all__ = ["Group", "Run", "check_comparable", "group_runs", "read_runs", "slices"]

Settings = Mapping[str, Any]

_EXECUTION = ("trainer.seed", "trainer.threads", "trainer.clients_per_block", "trainer.packing")
"""Settings that make no two runs different ones: repetitions have seeds of their own, the others are about speed."""
_SHARED = ("data.fingerprint", "data.groups", "data.partition", "model.pretrained", "model.monitor")
"""Beginnings of the settings that runs must share to be held against each other, besides how many clients there are."""
_SHORT = {"data.partition.rho": "rho", "method.rank": "rank", "trainer.participation": "participation"}
"""Settings with a name of their own on the command line and in labels."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        folder: where it is.
        summary: what its summary.json says.
        rounds: the columns of its metrics.csv, float64 with one entry a round, nan where a round has no such figure.
    """

    folder: Path
    summary: Mapping[str, Any]
    rounds: Mapping[str, np.ndarray]

    @property
    def method(self) -> str:
        """The method's name in tables and pictures."""
        return str(self.summary["method"])

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.summary["seed"])

    @property
    def metric(self) -> str:
        """What runs of its task are judged by: the first metric that is no loss."""
        return next((key for key in self.summary["final"] if "loss" not in key), "loss")

    @property
    def is_personal(self) -> bool:
        """Whether its models belong to clients and each answered its client's share of the split."""
        return self.summary.get("personal_evaluation") == "own"

    def setting(self, key: str) -> Any:
        """Return one of its settings by the full or the short name, or task, method, seed or backbone."""
        full = next((known for known, short in _SHORT.items() if short == key), key)
        return self.settings[full] if full in self.settings else self.summary.get(full)

    @property
    def settings(self) -> Settings:
        """Its settings, by dotted name."""
        return self.summary.get("settings", {})

    def final(self, metric: str | None = None) -> float:
        """Return a metric, by default the one that counts, after the last round; nan where it was not evaluated."""
        return float(self.summary["final"].get(metric or self.metric, np.nan))


@dataclass(frozen=True, eq=False)
class Group:
    """Repetitions of one run with several seeds.

    Attributes:
        method: the method's name, which decides the colour.
        label: the method's name, with what else tells the group from others of its slice.
        at: the values of the settings that a comparison goes by, in their order; empty where it goes by none.
        runs: the repetitions, ascending by seed.
    """

    method: str
    label: str
    at: tuple[Any, ...]
    runs: tuple[Run, ...]


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Return the finished runs in some folders and below them; of equal settings and seed, the newest alone.

    Raises:
        DataError: there is none, or the files of one are damaged.
    """
    paths = list(paths)
    files = dict.fromkeys(file for path in paths for file in sorted(path.rglob("summary.json"), key=_age))
    if not files:
        raise DataError(
            f"no finished run below {', '.join(map(str, paths))}: there is no summary.json; run fedgram fit"
        )
    newest: dict[tuple[Any, ...], Run] = {}
    for run in map(_read, files):
        newest[_identity(run), run.seed, None if run.settings else run.folder] = run
    return list(newest.values())


def _age(file: Path) -> tuple[str, int]:
    """Sort runs of one name by the number of their version, which counts up."""
    number = file.parent.name.removeprefix("version_")
    return str(file.parent.parent), int(number) if number.isdigit() else -1


def _read(file: Path) -> Run:
    try:
        summary = dict(json.loads(file.read_text()))
        with (file.parent / "metrics.csv").open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        columns = {key: np.array([float(row[key] or "nan") for row in rows]) for key in (rows[0] if rows else {})}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file.parent} is damaged ({error}); run it again, or leave its folder out") from error
    return Run(file.parent, summary, columns)


def _identity(run: Run) -> str:
    """Return a text that repetitions of one run have in common."""
    kept = {key: value for key, value in run.settings.items() if key not in _EXECUTION}
    rest = {key: run.summary.get(key) for key in ("method", "task", "rounds", "personal_evaluation")}
    return json.dumps([kept, rest], sort_keys=True, default=str)


def group_runs(runs: Sequence[Run], by: Sequence[str] = ()) -> list[Group]:
    """Return the groups of some runs, in the order of the settings that the comparison goes by, then of first sight.

    Args:
        runs: the runs.
        by: settings that differ on purpose, by full or short name, such as rank, data.partition.rho or task.
    """
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        found.setdefault((*(_plain(run.setting(key)) for key in by), _identity(run)), []).append(run)
    groups = [
        Group(members[0].method, members[0].method, at, tuple(sorted(members, key=lambda run: run.seed)))
        for (*at_list, _), members in found.items()
        for at in [tuple(at_list)]
    ]
    groups.sort(key=lambda group: [_sortable(value) for value in group.at])
    return [_labelled(group, groups) for group in groups]


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _sortable(value: Any) -> tuple[float, str]:
    return (float(value), "") if isinstance(value, int | float) else (float("inf"), str(value))


def _labelled(group: Group, groups: Sequence[Group]) -> Group:
    """Add to a label what tells a group from the others of its method in its slice."""
    twins = [other for other in groups if other.method == group.method and other.at == group.at]
    settings = [_settings_of(twin) for twin in twins]
    keys = [key for key in dict.fromkeys(key for own in settings for key in own) if _differs(key, settings)]
    own = _settings_of(group)
    told = ", ".join(f"{_SHORT.get(key, key.rpartition('.')[2])} {own[key]}" for key in keys if key in own)
    return replace(group, label=f"{group.method} ({told})" if told else group.method)


def _settings_of(group: Group) -> dict[str, Any]:
    run = group.runs[0]
    known = {key: value for key, value in run.settings.items() if key not in _EXECUTION}
    return known | {"rounds": run.summary.get("rounds")}


def _differs(key: str, settings: Sequence[Settings]) -> bool:
    return len({json.dumps(own.get(key), default=str) for own in settings}) > 1


def slices(groups: Iterable[Group]) -> dict[tuple[Any, ...], list[Group]]:
    """Return the groups by the values of the settings that the comparison goes by."""
    found: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        found.setdefault(group.at, []).append(group)
    return found


def check_comparable(groups: Sequence[Group]) -> None:
    """Refuse to hold runs against each other that had other data, another task, partition or backbone.

    Raises:
        DataError: with the first difference, and how to ask for the comparison nevertheless.
    """
    for members in slices(groups).values():
        first, *others = (run for group in members for run in group.runs)
        for other in others:
            if difference := _difference(first, other):
                key, one, two = difference
                raise DataError(
                    f"{first.folder} and {other.folder} can't be compared: {key} is {one!r} in the one and {two!r} in "
                    f"the other; give folders of like runs, --by {_SHORT.get(key, key)} to compare along it, or --force"
                )


def _difference(one: Run, two: Run) -> tuple[str, Any, Any] | None:
    """Return the first thing that two runs would have to share and do not."""
    keys = [key for key in dict.fromkeys((*one.settings, *two.settings)) if key.startswith(_SHARED)]
    for key in ("task", "backbone", "trainer.clients", *keys, "data_fingerprint"):
        values = [run.settings.get(key, run.summary.get(key)) for run in (one, two)]
        if values[0] != values[1]:
            return key, values[0], values[1]
    return None
