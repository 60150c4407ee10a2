"""What a checkpoint says beside its tensors: whether every entry is there, of its type, and agrees with the others."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fedgram.settings import MOST_CLIENTS
from fedgram.state import PARTS

__all__ = ["CLIENT", "wrong_facts", "wrong_names"]

CLIENT = "client "
"""How the names of tensors begin that clients keep."""
_LARGEST = 2**62
"""No count of a run is larger: sums of two fit into 64 bits."""
_Check = Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST


def _is_positive(value: Any) -> bool:
    return _is_count(value) and value > 0


def _is_crowd(value: Any) -> bool:
    return _is_positive(value) and value <= MOST_CLIENTS


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    )


def _is_time(value: Any) -> bool:
    return _is_number(value) and 0 <= value < math.inf


def _is_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(figure) for figure in value.values())


def _is_totals(value: Any) -> bool:
    if not isinstance(value, list) or not all(isinstance(row, dict) and row.keys() == _ROW.keys() for row in value):
        return False
    keys = [(row["direction"], row["part"]) for row in value]
    return all(_ROW[key](row[key]) for row in value for key in _ROW) and len(set(keys)) == len(keys)


def _is_classes(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value) and 1 < len(value) == len({*value})


def _is_stop(value: Any) -> bool:
    fits = isinstance(value, dict) and value.keys() == {"reason", "rounds"}
    return fits and isinstance(value["reason"], str) and _is_positive(value["rounds"])


def _is_states(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(state, dict) for state in value.values())


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) and name for name in value)


_ROW: dict[str, _Check] = {
    "direction": lambda value: value in ("up", "down"),
    "part": lambda value: value in PARTS,
    "clients": _is_positive,
    "parameters": _is_count,
    "bytes": _is_count,
}
_FACTS: dict[str, tuple[str, _Check]] = {
    "round": ("a whole number from 0 on", _is_count),
    "settings": ("a mapping", lambda value: isinstance(value, dict)),
    "fingerprint": ("a text", lambda value: isinstance(value, str)),
    "progress": ("a mapping", lambda value: isinstance(value, dict)),
}
_SETTINGS: dict[str, tuple[str, _Check]] = {
    "trainer.clients": ("a whole number from 1 to 2^24", _is_crowd),
    "trainer.participation": ("a share or number of clients", lambda value: _is_time(value) and value > 0),
    "trainer.seed": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "trainer.clients_per_block": ("a whole number from 1 on", _is_positive),
    "trainer.threads": ("a whole number from 1 on", _is_positive),
    "model.monitor": ("a text", lambda value: isinstance(value, str)),
}
_PROGRESS: dict[str, tuple[str, _Check]] = {
    "totals": ("rows of direction, part, clients, parameters and bytes", _is_totals),
    "seconds": ("a number from 0 on", _is_time),
    "seconds_training": ("a number from 0 on", _is_time),
    "initial": ("numbers by name", _is_metrics),
    "metrics": ("numbers by name", _is_metrics),
    "best": ("numbers by name", _is_metrics),
    "devices": ("names of devices", _is_names),
}
_OPTIONAL: dict[str, tuple[str, _Check]] = {
    "classes": ("null or the names of at least two classes", lambda value: value is None or _is_classes(value)),
    **dict.fromkeys(("backbone_config", "monitor"), ("a text", lambda value: isinstance(value, str))),
    "evaluated": ("a whole number from -1 on", lambda value: _is_count(value) or (_is_number(value) and value == -1)),
    "stopped": ("null, or a reason and rounds", lambda value: value is None or _is_stop(value)),
    "callbacks": ("states by name", _is_states),
}
"""Entries of progress that may be missing."""
_FLOPS = ("client_flops", "server_flops")


def wrong_facts(facts: Mapping[str, Any], named: str) -> str | None:
    """Return what is wrong with what a checkpoint says; None where it is as a run has written it.

    Args:
        facts: what it says.
        named: the file's name without its ending; ``round_000003`` holds round 3.
    """
    wrong = _misfit(facts, _FACTS, "")
    wrong = wrong or _misfit(facts["settings"], _SETTINGS, "settings.")
    given = {key: check for key, check in _OPTIONAL.items() if key in facts["progress"]} if wrong is None else {}
    return wrong or _misfit(facts["progress"], _PROGRESS | given, "progress.") or _contradiction(facts, named)


def _misfit(found: Mapping[str, Any], expected: Mapping[str, tuple[str, _Check]], where: str) -> str | None:
    """Return the first entry that is missing or of another type."""
    for key, (what, is_right) in expected.items():
        if key not in found:
            return f"{where}{key} is missing, which should be {what}"
        if not is_right(found[key]):
            return f"{where}{key} should be {what}, and is {_short(found[key])}"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _contradiction(facts: Mapping[str, Any], named: str) -> str | None:
    """Return which entries do not agree with each other."""
    number, settings, progress = facts["round"], facts["settings"], facts["progress"]
    by_name = re.fullmatch(r"round_(\d{1,18})", named)
    if by_name is not None and int(by_name[1]) != number:
        return f"its name says round {int(by_name[1])}, but it holds round {number}"
    if settings["trainer.participation"] > settings["trainer.clients"]:
        return f"{settings['trainer.participation']} of {settings['trainer.clients']} clients take part in a round"
    flops = [progress.get(key) for key in _FLOPS]
    if not (all(map(_is_count, flops)) or flops == [None, None]):
        return (
            f"progress.client_flops and progress.server_flops should be whole numbers or both missing, and are {flops}"
        )
    if progress.get("evaluated", number) > number:
        return f"progress.evaluated should be at most round {number}, and is {progress['evaluated']}"
    if not number and (progress["totals"] or any(flops)):
        return "it holds round 0, before which nothing is sent or trained, but progress counts what was"
    return _wrong_best(progress["best"], number, progress.get("monitor", settings["model.monitor"]))


def _wrong_best(best: Mapping[str, Any], number: int, monitor: str) -> str | None:
    if best and not (monitor in best and _is_count(best.get("round")) and best["round"] <= number):
        return f"progress.best should have {monitor} and a round of at most {number}, and is {_short(dict(best))}"
    return None


def wrong_names(names: Collection[str], number: int) -> str | None:
    """Return what is wrong with the names of a checkpoint's tensors.

    Args:
        names: ``part|layer|field``; of what clients keep ``client N|part|layer|field`` or ``client N|optimizer…|name``.
        number: the round that it holds.
    """
    for name in names:
        own = re.fullmatch(rf"{CLIENT}(0|[1-9]\d{{0,8}})\|(.+)", name, re.DOTALL)
        if own is not None and not number:
            return f"it holds round 0, before which no client keeps anything, but has the tensor {name!r}"
        part, *rest = (name if own is None else own[2]).split("|")
        is_memory = own is not None and part.partition(":")[0] == "optimizer" and len(rest) == 1
        is_state = part in (PARTS if own is not None else (*PARTS, "server")) and len(rest) == 2
        if not (is_memory or is_state):
            return f"it has a tensor of the name {_short(name)}, which is none that fedgram gives"
    return None
