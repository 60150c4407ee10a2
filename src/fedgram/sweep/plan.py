"""What a sweep's file says: a base config, what is set for all runs, and a grid.

    base: ../minilm_glue.yaml                # a config of fit, relative to this file, or packaged; may hold {axis}
    set: {trainer.rounds: 8}                 # for every run
    grid:                                    # a run for every combination; a list of grids is their union
      method:                                # an axis of named variants, each with what it sets
        FLoRG: {}
        FLoRG-none: {method.projection: none}
        FedIT: {method: FedIT}
      data.task: [rte, mrpc]                 # an axis of values of one setting
      trainer.seed: [0, 1, 2]
    where:                                   # for some points only, in this order
      - if: {method: FedIT, data.task: rte}
        set: {optimizer.lr: 0.005}
    small:                                   # what --small changes: any of the above; axes of the grid one by one
      base: ../quickstart.yaml

Keys that begin with ``x-`` are left out, and may hold anchors.
"""

import itertools
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedgram.config_file import NOTHING, read_text, read_yaml
from fedgram.errors import ConfigurationError, UsageError
from fedgram.names import check_folder_name
from fedgram.packaged import configs
from fedgram.relative_paths import reading, settle

__all__ = ["Point", "Sweep", "read_sweep"]

Overrides = dict[str, Any]
Axes = Mapping[str, Mapping[str, Overrides]]
"""What each label of each axis sets."""

_KEYS = ("base", "set", "grid", "where", "small")
_PLACEHOLDER = re.compile(r"\{([\w.]+)\}")
_MOST_POINTS = 10_000
_LAST = "trainer.seed"
"""Repetitions of one run stand together in every list."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        labels: its place on every axis.
        name: what its folder is called: its labels.
        base: the config that it starts from.
        overrides: what it sets, by dotted name, the class of a thing before its options.
    """

    labels: Mapping[str, str]
    name: str
    base: Path
    overrides: Mapping[str, Any]

    @property
    def settings(self) -> list[str]:
        """What it gives ``fedgram fit``: the config and its overrides."""
        return ["--config", str(self.base), *(f"--{key}={_as_text(value)}" for key, value in self.overrides.items())]


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep.

    Attributes:
        name: what the folder of its runs is called, from the file's name.
        points: the runs, in the order of the grid.
    """

    name: str
    points: tuple[Point, ...]

    def only(self, choices: Mapping[str, Collection[str]]) -> "Sweep":
        """Return the sweep with the points alone that have one of some labels on each of some axes.

        Raises:
            ConfigurationError: no point has a label, or there is no such axis.
        """
        for axis, labels in choices.items():
            known = dict.fromkeys(point.labels[axis] for point in self.points if axis in point.labels)
            if missing := [label for label in labels if label not in known]:
                raise ConfigurationError(
                    f"--only: no run has {axis} = {missing[0]}; "
                    + (f"there is {', '.join(known)}" if known else f"the axes are {', '.join(self._axes)}")
                )
        kept = [p for p in self.points if all(p.labels.get(axis) in labels for axis, labels in choices.items())]
        return replace(self, points=tuple(kept))

    @property
    def _axes(self) -> list[str]:
        return list(dict.fromkeys(axis for point in self.points for axis in point.labels))


def read_sweep(path: Path, *, small: bool = False, further: Mapping[str, str] | None = None) -> Sweep:
    """Read a sweep's file.

    Args:
        path: the file.
        small: whether to take what it says under ``small`` over the rest.
        further: overrides for all runs, over all that the file says; as everywhere, {axis} stands for a label.

    Raises:
        ConfigurationError: it can't be read, or says something that a sweep does not know.
    """
    content = _load(path)
    if small:
        if not content.get("small"):
            raise ConfigurationError(f"{path} has no part `small`: leave --small out")
        content = _shrunk(content, _mapping(content["small"], "small"))
    common, rules = _mapping(content.get("set"), "set"), [_rule(rule) for rule in content.get("where") or []]
    grid = content.get("grid") or {}
    filling = _placeholders([content, dict(further or {})])
    grids = [_axes(one, filling) for one in (grid if isinstance(grid, list) else [grid])]
    union = _union(grids)
    _check_rules(rules, union)
    points: dict[str, Point] = {}
    for axes in grids:
        for labels in _combinations(axes):
            own = [axes[axis][label] for axis, label in labels.items()]
            ruled = [rule["set"] for rule in rules if rule["if"].items() <= labels.items()]
            said, asked = (
                _all_filled(_merged(each), labels) for each in ([common, *own, *ruled], [dict(further or {})])
            )
            with reading(path):
                filled = _merged([settle(said), asked])
            base = _base(path, str(_filled(content["base"], labels)))
            _add(points, Point(labels, _name(labels, union), base, filled))
    _check_bases(path, points.values())
    name = check_folder_name(f"{path}: the name of the sweep, from its file's,", path.stem)
    return Sweep(name + ("_small" if small else ""), tuple(points.values()))


def _all_filled(overrides: Overrides, labels: Mapping[str, str]) -> Overrides:
    return {key: _filled(value, labels) for key, value in overrides.items()}


def _base(path: Path, name: str) -> Path:
    """Return the base config: a file beside the sweep's, or one that comes with fedgram, by its name."""
    beside = path.parent / name
    return beside if beside.is_file() else configs().get(name, beside)


def _union(grids: Sequence[Axes]) -> dict[str, list[str]]:
    """Return the labels that an axis has in all grids together."""
    known: dict[str, list[str]] = {}
    for axes in grids:
        for axis, labels in axes.items():
            known[axis] = list(dict.fromkeys([*known.get(axis, []), *labels]))
    return known


def _add(points: dict[str, Point], new: Point) -> None:
    """Add a run, once where several grids have it; two that differ must not share a name, and so a folder."""
    known = points.setdefault(new.name, new)
    if (known.base, known.overrides) != (new.base, new.overrides):
        places = " and ".join(str(dict(point.labels)) for point in (known, new))
        raise ConfigurationError(f"two runs would be called {new.name!r}: {places}; name their labels apart")


def _load(path: Path) -> dict[str, Any]:
    content = read_yaml(read_text(path), str(path))
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if not str(key).startswith("x-")}  # for anchors
    if not isinstance(content, dict) or "base" not in content or (unknown := set(content) - set(_KEYS)):
        found = (
            f"found {sorted(map(str, unknown))}"
            if isinstance(content, dict) and "base" in content
            else "there is no base"
        )
        raise ConfigurationError(f"{path}: a sweep has a base, and may have {', '.join(_KEYS[1:])}; {found}")
    _check_forms(content, str(path))
    if content.get("small") is not None:
        _check_forms(_mapping(content["small"], "small"), f"{path}: small")
    return content


def _check_forms(content: Mapping[str, Any], where: str) -> None:
    """Refuse parts of a sweep that are no texts, mappings or lists where these are needed."""
    if not isinstance(content.get("base", ""), str):
        raise ConfigurationError(f"{where}: base: expected the path of a config, got {content['base']!r}")
    if not isinstance(content.get("where") or [], list):
        raise ConfigurationError(f"{where}: where: expected a list of rules, got {content['where']!r}")
    grid = content.get("grid") or {}
    for part in ("set", "grid"):
        for one in grid if part == "grid" and isinstance(grid, list) else [content.get(part)]:
            _mapping(one, f"{where}: {part}")


def _shrunk(content: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, Any]:
    """Lay what ``small`` says over the rest: rules are replaced, settings and axes one by one, null takes one away."""
    grid = content.get("grid") or {}
    changed = _mapping(small.get("grid"), "small.grid")
    grids = [_without_null({**one, **changed}) for one in (grid if isinstance(grid, list) else [grid])]
    return {
        "base": small.get("base", content["base"]),
        "set": _without_null({**(content.get("set") or {}), **_mapping(small.get("set"), "small.set")}),
        "grid": grids if isinstance(grid, list) else grids[0],
        "where": small.get("where", content.get("where")),
    }


def _without_null(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise ConfigurationError(f"{where}: expected settings by name, such as {{trainer.rounds: 8}}, got {value!r}")
    if odd := [key for key in value or {} if not isinstance(key, str)]:
        raise ConfigurationError(f"{where}: expected the name of a setting, got {odd[0]!r}")
    return dict(value or {})


def _placeholders(content: Any) -> set[str]:
    """Return the axes that stand in braces somewhere, whose labels fill texts."""
    return set(_PLACEHOLDER.findall(json.dumps(content, default=str)))


def _axes(grid: Any, filling: Collection[str]) -> Axes:
    """Return the axes of a grid."""
    return {name: _axis(name, values, name in filling) for name, values in _mapping(grid, "grid").items()}


def _axis(name: str, values: Any, fills: bool) -> dict[str, Overrides]:
    """Return what each label of an axis sets.

    Named variants say it. Of values it is the setting that the axis is called after, but where they fill a text.
    """
    if isinstance(values, dict) and values:
        return {str(label): _mapping(overrides, f"grid.{name}.{label}") for label, overrides in values.items()}
    if isinstance(values, list) and values:
        return {_label(value): {} if fills and "." not in name else {name: value} for value in values}
    raise ConfigurationError(
        f"grid.{name}: expected a list of values, such as [0, 1, 2], or variants by name, such as "
        f"{{FedIT: {{method: FedIT}}}}; got {values!r}"
    )


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _combinations(axes: Axes) -> Iterator[dict[str, str]]:
    """Return every choice of a label on each axis; seeds change fastest."""
    names = sorted(axes, key=lambda name: name == _LAST)
    count = math.prod(map(len, axes.values()))
    if count > _MOST_POINTS:
        raise ConfigurationError(f"grid: asks for {count:,} runs, and a sweep has at most {_MOST_POINTS:,}")
    for labels in itertools.product(*(axes[name] for name in names)):
        yield dict(zip(names, labels, strict=True))


def _rule(rule: Any) -> dict[str, dict[str, Any]]:
    if not isinstance(rule, dict) or set(rule) != {"if", "set"}:
        raise ConfigurationError(f"where: expected {{if: {{axis: label}}, set: {{setting: value}}}}, got {rule!r}")
    condition = {axis: _label(label) for axis, label in _mapping(rule["if"], "where.if").items()}
    return {"if": condition, "set": _mapping(rule["set"], "where.set")}


def _check_rules(rules: Iterable[Mapping[str, Any]], known: Mapping[str, Sequence[str]]) -> None:
    """Refuse rules for points that there are none of: they are misspelt."""
    for axis, label in (condition for rule in rules for condition in rule["if"].items()):
        if label not in known.get(axis, ()):
            what = f"has {', '.join(known[axis])}" if axis in known else f"is none of {', '.join(known)}"
            raise ConfigurationError(f"where: no run has {axis} = {label}; the axis {axis} {what}")


def _merged(overrides: Iterable[Overrides]) -> Overrides:
    """Return all settings, later ones over earlier ones, and every class before its options."""
    merged: Overrides = {}
    for settings in overrides:
        merged |= settings
    return dict(sorted(merged.items(), key=lambda item: item[0].count(".")))


def _filled(value: Any, labels: Mapping[str, str]) -> Any:
    """Put labels in the place of {axis} in a text."""
    if not isinstance(value, str):
        return value

    def label(match: re.Match[str]) -> str:
        if match[1] not in labels:
            raise ConfigurationError(f"{value!r}: there is no axis {match[1]!r}; there are {', '.join(labels)}")
        return labels[match[1]]

    return _PLACEHOLDER.sub(label, value)


def _name(labels: Mapping[str, str], union: Mapping[str, Sequence[str]]) -> str:
    """Return a run's name: words stand for themselves, others after the last part of their setting's name.

    An axis on which there is one place only is not told of.
    """
    told = {axis: label for axis, label in labels.items() if len(union[axis]) > 1 or axis in (_LAST, "method")}
    parts = [
        label if axis == "method" or not _is_value(label) else f"{axis.rpartition('.')[2]}={label}"
        for axis, label in told.items()
    ]
    name = re.sub(r"[^\w.=+,-]+", "_", "-".join(parts)) or "run"
    return check_folder_name("grid: the name of a run, from its labels,", name)


def _is_value(label: str) -> bool:
    """Say whether a label is no word: a number, a truth value, a list and so on, which say nothing by themselves.

    >>> [_is_value(label) for label in ("0.5", "1e-3", "true", "[1, 2]", "rte")]
    [True, True, True, True, False]
    """
    try:
        return not isinstance(read_yaml(label, "label"), str)
    except UsageError:
        return False


def _check_bases(path: Path, points: Iterable[Point]) -> None:
    for base in dict.fromkeys(point.base for point in points):
        if not base.is_file():
            raise ConfigurationError(
                f"{path}: there is no base config {base}; its path is relative to the sweep's file, or it is the "
                "name of a config that comes with fedgram, such as quickstart"
            )


def _as_text(value: Any) -> str:
    """Return a setting as the command line reads it.

    >>> [_as_text(value) for value in ("a", 1e-3, True, None, math.inf)]
    ['a', '0.001', 'true', '!!null', '.inf']
    """
    if value is None:
        return NOTHING
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    return value if isinstance(value, str) else json.dumps(value, default=str)
