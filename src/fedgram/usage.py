"""What the command line says of arguments and configs that do not fit: one line, with what would."""

import difflib
import inspect
import re
from collections.abc import Iterable
from importlib import import_module
from itertools import chain
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from fedgram.errors import FedgramError

__all__ = ["FedgramParser", "UsageError", "explain"]


class UsageError(FedgramError, ValueError):
    """Arguments or a config that can't be parsed."""

    exit_code = 2


class FedgramParser(LightningArgumentParser):
    """A parser that raises `UsageError` instead of printing all of its usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # a parser of one class inside another: the outermost explains
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise UsageError(explain(message, _options(parser), parser.prog.replace(" [options]", ""))) from ex


def explain(message: str, options: Iterable[str], program: str) -> str:
    """Return a parser's message as one line, with the nearest known name where a name is unknown.

    >>> explain("Subcommand 'fit' does not accept option 'trainer.roundz'", ["trainer.rounds"], "fedgram fit")
    "there is no option 'trainer.roundz'; did you mean trainer.rounds? See fedgram fit --help"
    """
    if match := re.search(r"does not accept option '([^']+)'|unrecognized arguments: -*([^ =]+)", message):
        name = match[1] or match[2]
        return f"there is no option {name!r}{_nearest(name, options)} See {program} --help"
    keys = re.findall(r'Parser key "([^"]+)"', message)
    if match := re.search(r"Option '([^']+)' is not accepted", message):
        # The innermost of the classes that are told of is the one that the option was asked of.
        bases = [name for name in re.findall(r"<class '([\w.]+)'>", message[: match.start()]) if name != "NoneType"]
        known, setting = _parameters(bases[-1] if bases else ""), ".".join(keys)
        if owners := ", ".join(sorted(name for name, own in known.items() if match[1] in own)):
            return (
                f"this {setting} has no option {match[1]!r}, {owners} has: choose that, and give --{setting} before "
                "its options"
            )
        return f"{setting} has no option {match[1]!r}{_nearest(match[1], chain(*known.values()))} See {program} --help"
    if match := re.search(r"the following arguments are required: ([\w, ]+\w)", message):
        if not keys:  # of the command itself, and of no class
            return f"{match[1]} must be given; see {program} --help"
        names = ", ".join(f"{'.'.join(keys)}.{name}" for name in match[1].split(", "))
        return f"{names} must be given; {program} --{keys[0]}.help CLASS says what it is"
    if match := re.search(r"Expected a dot import path string: (\S+)", message):
        return f"{keys[0]}: there is no class {match[1]!r}; {program} --help lists the known ones, or give module.Class"
    if "is abstract" in message:
        return (
            f"{'.'.join(keys)}: name a class before its options; {program} --{keys[0]}.help CLASS shows what there is"
        )
    if match := re.search(r"Expected an? (.+?)\. Got value: (.+?)( - |\n|$)", message):
        kind = re.sub(r"<class '(\w+)'>|typing\.Literal", r"\1", match[1])
        return f"{'.'.join(keys)}: expected {'one of ' if kind[0] == '[' else ''}{kind}, got {match[2]!r}"
    return re.sub(r"\s+", " ", message).strip()


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else "."


def _parameters(class_path: str) -> dict[str, list[str]]:
    """Return the names that the constructors of a class and of its subclasses take, by the name of the class."""
    module, _, name = class_path.rpartition(".")
    if not module:
        return {}
    classes = [getattr(import_module(module), name)]
    for known in classes:
        classes += known.__subclasses__()
    return {known.__name__: list(inspect.signature(known).parameters) for known in classes}


def _options(parser: Any) -> list[str]:
    """Return the long options of a parser and of its subcommands, without dashes."""
    subcommands = getattr(parser, "_subcommands_action", None)
    parsers = [parser, *(subcommands.choices.values() if subcommands else [])]
    return sorted({o.lstrip("-") for p in parsers for o in getattr(p, "_option_string_actions", {})})
