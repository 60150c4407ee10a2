"""Finished runs, read from their folders, and which of them are repetitions of one another.

Runs that differ in nothing but the seed form a group, and tables and pictures speak of groups. Groups that may be held
against each other form a slice: they share the data, the task, the partition's settings and the backbone.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedgram.comparison.run import Run, Settings, known_name, short_name
from fedgram.comparison.summaries import read_columns, read_summary, undamaged
from fedgram.errors import DataError

__all__ = [
    "Group",
    "Run",
    "check_comparable",
    "find_difference",
    "group_runs",
    "read_runs",
    "short_name",
    "slices",
]

_EXECUTION = ("trainer.seed", "trainer.threads", "trainer.clients_per_block", "trainer.packing")
"""Settings that make no two runs different ones: repetitions have seeds of their own, the others are about speed."""
_SHARED = ("data.fingerprint", "data.groups", "data.partition", "model.pretrained", "model.monitor")
"""Beginnings of the settings that runs must share to be held against each other, besides how many clients there are."""
_DIGESTS = ("data.fingerprint", "data.groups")
"""Settings that tell a reader nothing; a label has them only where nothing else tells two groups apart."""
_SWEEP = "sweep.json"
"""Where a sweep notes, beside the versions of a run, which of them is the first that its file still speaks of."""


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

    @property
    def is_personal(self) -> bool:
        """Whether its models belong to clients and each answered its client's share of the split."""
        return self.runs[0].is_personal

    @property
    def marked_label(self) -> str:
        """The label, with a star where its models belong to clients."""
        return f"{self.label}{'*' * self.is_personal}"


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Return the finished runs in some folders and below them.

    Of runs of equal settings and seed the last counts: the highest version of a name, and of several names the one that
    was given last, or comes last in the alphabet. Runs of settings that their sweep no longer has do not count.

    Raises:
        DataError: there is none in one of the folders, or the files of one are damaged.
    """
    files = dict.fromkeys(file for own in _found(paths).values() for file in own)
    newest: dict[tuple[Any, ...], Run] = {}
    for run in map(_read, files):
        newest[_identity(run), run.seed, None if run.settings else run.folder] = run
    return list(newest.values())


def _found(paths: Iterable[Path]) -> dict[Path, list[Path]]:
    """Return the summaries of the finished runs of each folder, the oldest first."""
    there = {path: sorted(path.rglob("summary.json"), key=_age) for path in paths}
    if empty := [str(path) for path, own in there.items() if not own]:
        raise DataError(f"no finished run below {', '.join(empty)}: there is no summary.json; run fedgram fit")
    found = {path: [file for file in own if not _is_superseded(file)] for path, own in there.items()}
    if old := [str(path) for path, own in found.items() if not own]:
        raise DataError(
            f"no finished run below {', '.join(old)}: all there are of settings that its sweep no longer has; run the "
            "sweep, or delete its sweep.json to have them count"
        )
    return found


def _is_superseded(file: Path) -> bool:
    """Say whether a run is of settings that its sweep no longer has, as `fedgram.sweep.status` notes beside it."""
    file = file.absolute()
    try:
        first = json.loads((file.parent.parent / _SWEEP).read_text())["first_version"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
    return isinstance(first, int) and 0 <= _age(file)[1] < first


def _age(file: Path) -> tuple[str, int]:
    """Sort runs of one name by the number of their version, which counts up."""
    number = file.parent.name.removeprefix("version_")
    return str(file.parent.parent), int(number) if number.isdigit() else -1


def _read(file: Path) -> Run:
    with undamaged(file.parent):
        return Run(file.parent, read_summary(file), read_columns(file.parent / "metrics.csv"))


def _identity(run: Run) -> str:
    """Return a text that repetitions of one run have in common."""
    return json.dumps(_told_apart_by(run), sort_keys=True, default=str)


def _told_apart_by(run: Run) -> dict[str, Any]:
    """Return all that makes two runs different ones, and not repetitions of one."""
    # Of the two ways to tell the rounds, every run has the summary's.
    kept = {key: value for key, value in run.settings.items() if key not in (*_EXECUTION, "trainer.rounds")}
    told = {key: run.summary.get(key) for key in ("method", "task", "stopping")}
    # Repetitions may be ended early after unlike rounds.
    return kept | told | {"personal_evaluation": run.personal_evaluation, "rounds": run.planned_rounds}


def group_runs(runs: Sequence[Run], by: Sequence[str] = ()) -> list[Group]:
    """Return the groups of some runs, in the order of the settings that the comparison goes by, then of first sight.

    Args:
        runs: the runs.
        by: settings that differ on purpose, by full or short name, such as rank, data.partition.rho or task.

    Raises:
        DataError: no run has such a setting.
    """
    for key in by:
        _check_setting(key, runs)
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


def _check_setting(key: str, runs: Sequence[Run]) -> None:
    if all(run.setting(key) is None for run in runs):
        known = sorted({own.rpartition(".")[2] for run in runs for own in run.settings if own not in _DIGESTS})
        raise DataError(f"--by {key}: no run has such a setting, or several end so; there are task, {', '.join(known)}")


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _sortable(value: Any) -> tuple[float, str]:
    return (float(value), "") if isinstance(value, int | float) else (float("inf"), str(value))


def _labelled(group: Group, groups: Sequence[Group]) -> Group:
    """Add to a label what tells a group from the others of its method in its slice."""
    twins = [other for other in groups if other.method == group.method and other.at == group.at]
    settings = [_told_apart_by(twin.runs[0]) for twin in twins]
    keys = [key for key in dict.fromkeys(key for own in settings for key in own) if _differs(key, settings)]
    keys = [key for key in keys if key not in _DIGESTS] or keys
    own = _told_apart_by(group.runs[0])
    told = ", ".join(f"{short_name(key)} {own[key]}" for key in keys if key in own)
    return replace(group, label=f"{group.method} ({told})" if told else group.method)


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
    if difference := find_difference(groups):
        raise DataError(
            f"{difference}; give folders of like runs, --by KEY to compare along a setting, --each to list them, or "
            "--force to compare them all the same"
        )


def find_difference(groups: Sequence[Group]) -> str | None:
    """Say of the first two runs of a slice that can't be held against each other what they differ in."""
    for members in slices(groups).values():
        first, *others = (run for group in members for run in group.runs)
        for other in others:
            if key := _difference(first, other):
                one, two = (run.setting(key) for run in (first, other))
                return (
                    f"{first.folder} and {other.folder} can't be compared: {known_name(key)} is {one!r} in the "
                    f"one and {two!r} in the other"
                )
        if difference := _other_samples(members):
            return difference
    return None


def _other_samples(groups: Sequence[Group]) -> str | None:
    """Return a sentence that names the first two runs that were judged on unlike samples."""
    scored = [(run, run.scores.fingerprint) for group in groups for run in group.runs if run.scores is not None]
    known = [(run, digest) for run, digest in scored if digest is not None]
    for run, digest in known[1:]:
        if digest != known[0][1]:
            return f"{known[0][0].folder} and {run.folder} can't be compared: they were judged on other samples"
    return None


def _difference(one: Run, two: Run) -> str | None:
    """Return the first thing that two runs would have to share and do not; what one of them does not tell is none."""
    keys = [key for key in one.settings if key.startswith(_SHARED)]
    for key in ("task", "backbone", "trainer.clients", *keys, "data_fingerprint"):
        values = [run.settings.get(key, run.summary.get(key)) for run in (one, two)]
        if None not in values and values[0] != values[1]:
            return key
    return None
