"""Errors about the values of options: one sentence with the key, what was expected, and what came."""

import difflib
import reprlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import Namespace
from jsonargparse._util import NestedArg

__all__ = ["OptionError", "UnknownOption", "collected", "deepest", "expected", "members", "nearest", "record", "shown"]

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
_PLURALS = {int: "whole numbers", float: "numbers", bool: "truth values", str: "texts"}

_found: ContextVar[list["OptionError"] | None] = ContextVar("option_errors", default=None)
"""What options inside of the one that is being read could not take; jsonargparse forgets these where it has choices."""


class OptionError(TypeError):
    """A value that an option can't take. As a TypeError, jsonargparse hands it to its parser's ``error``.

    Args:
        keys: the option's name and, before it, those of the options that it stands in.
        sentence: returns the message, of the dotted key and the program's name.
    """

    def __init__(self, keys: tuple[str, ...], sentence: Callable[[str, str], str]) -> None:
        super().__init__(sentence(".".join(keys), "fedgram COMMAND"))
        self.keys = keys
        self.sentence = sentence

    @classmethod
    def of(cls, problem: str) -> "OptionError":
        """Return an error of the option that raises it; its key stands before the problem."""
        return cls((), lambda key, _: f"{key}: {problem}")

    def below(self, key: str) -> "OptionError":
        """Return the same error as one of an option inside of another."""
        return type(self)((key, *self.keys), self.sentence)

    def explain(self, program: str) -> str:
        """Return its message."""
        return self.sentence(".".join(self.keys), program)


class UnknownOption(OptionError):  # noqa: N818 (what is wrong)
    """An option that a class does not have.

    Args:
        name: the option's.
        known: those that the class has.
        owners: the names of other classes of the kind that have it.
    """

    def __init__(self, name: str, known: Iterable[str], owners: Iterable[str] = (), keys: tuple[str, ...] = ()) -> None:
        self.name, self.known, self.owners = name, list(known), list(owners)
        super().__init__(keys, self._sentence)

    def _sentence(self, key: str, program: str) -> str:
        if self.owners:
            return (
                f"this {key} has no option {self.name!r}, {', '.join(self.owners)} has: choose that, and give --{key} "
                "before its options"
            )
        return f"{key} has no option {self.name!r}{nearest(self.name, self.known)} See {program} --help"

    def below(self, key: str) -> "UnknownOption":
        """Return the same error as one of an option inside of another."""
        return UnknownOption(self.name, self.known, self.owners, (key, *self.keys))


@contextmanager
def collected() -> Iterator[list[OptionError]]:
    """Collect what options inside of this one can't take."""
    errors: list[OptionError] = []
    token = _found.set(errors)
    try:
        yield errors
    finally:
        _found.reset(token)


def record(error: OptionError) -> OptionError:
    """Note an error for the option outside, and return it."""
    errors = _found.get()
    if errors is not None:
        errors.append(error)
    return error


def deepest(errors: Iterable[OptionError]) -> OptionError | None:
    """Return the error of the innermost option, the first of several: the others only follow from it."""
    return max(errors, key=lambda error: len(error.keys), default=None)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a question for the nearest known name, or a full stop where none is near."""
    known = [option for option in known if option != name]
    whole = [option for option in known if option.startswith(name)]  # of which it may be an abbreviation
    close = difflib.get_close_matches(name, whole, n=1, cutoff=0.0) or difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else "."


def members(typehint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one that it is."""
    return get_args(typehint) if get_origin(typehint) in (Union, UnionType) else (typehint,)


def expected(typehint: Any) -> str:
    """Return in words what a type takes.

    >>> expected(list[str] | None), expected(int | Literal["auto"]), expected(tuple[float, float])
    ('a list of texts, or null', 'a whole number, or auto', 'a list of 2 numbers')
    """
    kinds = members(typehint)
    if float in kinds:
        kinds = tuple(kind for kind in kinds if kind is not int)
    ordered = sorted(kinds, key=lambda kind: kind is type(None))
    return ", or ".join(dict.fromkeys(_words(kind, len(kinds) == 1) for kind in ordered))


def _words(kind: Any, alone: bool = False) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        values = ", ".join(map(str, inner))
        return f"one of {values}" if alone or len(inner) > 1 else values
    if origin is tuple:
        return f"a list of {len(inner)} {_plural(inner[0])}"
    if origin in (list, set, frozenset) or str(origin).startswith("<class 'collections.abc"):
        return f"a list of {_plural(inner[0])}" if inner else "a list"
    if origin is dict:
        return f"a mapping of {_plural(inner[0])} to {_plural(inner[1])}"
    name = getattr(kind, "__name__", str(kind))
    return _WORDS.get(kind) or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _plural(kind: Any) -> str:
    return _PLURALS.get(kind) or f"{getattr(kind, '__name__', kind)}s"


def shown(value: Any) -> str:
    """Return a value as an error shows it: short, whatever it is."""
    if isinstance(value, NestedArg):
        value = value.val
    if isinstance(value, Namespace):
        value = value.as_dict()
    if value == "null":
        value = None
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    short.maxlevel, short.maxlist, short.maxdict = 2, 4, 3
    return short.repr(value)
