"""Odd configurations: every key blank, values of other types, extremes, nesting, and slips of the keyboard."""

import copy
import inspect
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from fedgram import AdamW, FederatedTrainer, FLoRG, TextClassification, TextClassificationData
from fedgram.methods import Method
from fedgram.models import FederatedTask
from fedgram.optim import ClientOptimizer

SECTIONS: dict[str, tuple[type, ...]] = {
    "trainer": (FederatedTrainer,),
    "method": (FLoRG, Method),
    "model": (TextClassification, FederatedTask),
    "data": (TextClassificationData,),
    "optimizer": (AdamW, ClientOptimizer),
}
"""The classes whose constructors name the keys of each section."""

ENDLESS = {"trainer.rounds", "trainer.local_steps", "trainer.local_epochs"}
"""Keys of which a large value is a wish for a long run."""
LARGE = 2**62

ODD: tuple[Any, ...] = (
    *(True, False, 0, -1, 1.5, -0.5, 10**20, -(10**20), LARGE, 1e308, 1e-300, math.nan, math.inf, -math.inf),
    *("", " ", "x", "null", "nan", "inf", "1e3", "0x10", "auto", "all", "..", "../x", "/", "/dev/null", "/etc/passwd"),
    *(
        "os.system",
        "os",
        "FLoRG",
        "fedgram.FLoRG",
        "a\0b",
        "a\nb",
        "n" * 300,
        "n" * 5000,
        "ünï ✓",
        "{a: b}",
        "%s %d {x}",
    ),
    *([], [None], [0], [-1], [1, 1], ["x"], [[1]], [{}], [10**400], [math.nan], [math.inf, 1], ["a\0"] * 2),
    *({}, {"a": 1}, {"class_path": "os.system"}, {"class_path": "FLoRG"}, {"class_path": 3}, {"class_path": None}),
    *({"class_path": "IID", "init_args": None}, {"class_path": "IID", "x": 1}, {"init_args": {"x": 1}}, {1: math.nan}),
    *(b"bytes", {"class_path": "Dirichlet", "init_args": {"rho": math.nan}}, {"class_path": "Partition"}),
)


@dataclass(frozen=True)
class Case:
    """A configuration.

    Attributes:
        note: what is odd in it.
        settings: the content of its file.
        names: words of which the error must hold one; none where it may also run.
        must_fail: whether it can't be meant.
    """

    note: str
    settings: Any
    names: tuple[str, ...]
    must_fail: bool = False


def keys() -> Iterator[tuple[str, bool]]:
    """Yield every key, and whether null is a value of it: where its type says so, or where it stands by default."""
    for section, classes in SECTIONS.items():
        found: dict[str, bool] = {}
        for kind in classes:
            hints = get_type_hints(kind.__init__)
            for name, parameter in inspect.signature(kind.__init__).parameters.items():
                if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                    found.setdefault(name, type(None) in get_args(hints[name]) or parameter.default is None)
        yield from ((f"{section}.{name}", takes) for name, takes in found.items())


def with_value(base: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return a configuration with one setting changed."""
    settings = copy.deepcopy(base)
    section, _, name = key.partition(".")
    part = settings.setdefault(section, {})
    inside = part if section == "trainer" else part.setdefault("init_args", {})
    inside[name] = value
    return settings


def null_cases(base: dict[str, Any]) -> Iterator[Case]:
    """Yield every key and every section with null."""
    for key, takes_null in keys():
        name = key.rpartition(".")[2]
        yield Case(f"{key}: null", with_value(base, key, None), (name,), must_fail=not takes_null)
    for section in SECTIONS:
        yield Case(f"{section}: null", {**base, section: None}, (section,), must_fail=True)


def odd_cases(base: dict[str, Any], count: int, seed: int) -> Iterator[Case]:
    """Yield keys with odd values, drawn without repetition."""
    pairs = [(key, value) for key, _ in keys() for value in ODD if not (key in ENDLESS and value == LARGE)]
    for key, value in random.Random(seed).sample(pairs, count):
        yield Case(f"{key}: {value!r:.60}", with_value(base, key, value), _names(key, value))


def _names(key: str, value: Any) -> tuple[str, ...]:
    """Return what an error may name: the key, or the file or data set that the value is the name of."""
    return (key.rpartition(".")[2], *([value] if isinstance(value, str) and value.strip() else []))


def typo_cases(base: dict[str, Any]) -> Iterator[Case]:
    """Yield keys and sections with a letter left out, options beside a class, and sections of other types."""
    for number, (key, _) in enumerate(keys()):
        section, _, name = key.partition(".")
        slip = name[: number % len(name)] + name[number % len(name) + 1 :] or "x"
        yield Case(f"{section}.{slip}", with_value(base, f"{section}.{slip}", 1), (slip,), must_fail=True)
    for section, part in base.items():
        yield Case(section[:-1], {**base, section[:-1]: part}, (section[:-1],), must_fail=True)
        for value in (3, "x", [], [part], {"class_path": "os.system"}, {"class_path": "Nothing", "init_args": {}}):
            yield Case(f"{section}: {value!r:.40}", {**base, section: value}, (section, "class_path"), must_fail=True)
        if section != "trainer":
            beside = {**base, section: {**part, "rank": 3}}
            yield Case(f"{section}: an option beside the class", beside, ("rank",), must_fail=True)


def make_cases(base: dict[str, Any], odd: int, seed: int) -> list[Case]:
    """Return all cases."""
    return [*null_cases(base), *odd_cases(base, odd, seed), *typo_cases(base)]
