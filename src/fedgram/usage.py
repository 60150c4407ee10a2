"""What the command line says of arguments and configs that do not fit: one line, with what would."""

import difflib
import inspect
import re
from collections.abc import Iterable
from importlib import import_module
from itertools import chain
from typing import Any, NoReturn

from jsonargparse._typehints import ActionTypeHint
from lightning.pytorch.cli import LightningArgumentParser

from fedgram.errors import FedgramError
from fedgram.options import Option

__all__ = ["FedgramParser", "UsageError", "explain"]


class UsageError(FedgramError, ValueError):
    """Arguments or a config that can't be parsed."""

    exit_code = 2


class FedgramParser(LightningArgumentParser):
    """A parser that raises `UsageError` instead of printing all of its usage, and takes options by their whole names.

    jsonargparse makes its groups of arguments of `add_argument`, and the parsers of classes inside of others of this
    class, so that all of it holds for every option.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Add an option whose texts are taken as they are typed."""
        action = super().add_argument(*args, **kwargs)
        if type(action) is ActionTypeHint:
            action.__class__ = Option  # jsonargparse makes it, and asks nobody for the class
        return action

    def _check_value_key(self, action: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if value is None and isinstance(action, Option) and action.needs_text:
            action.refuse(value)  # which jsonargparse takes for a setting that was not given
        return super()._check_value_key(action, value, *args, **kwargs)

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
        hint = '; in a config, put quotes around a text that YAML reads as something else, such as "null" or "1"'
        return (
            f"{'.'.join(keys)}: expected {'one of ' if kind[0] == '[' else ''}{kind}, got {match[2]!r}"
            f"{hint if kind == 'text' else ''}"
        )
    return re.sub(r"\s+", " ", message).strip()


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    whole = [option for option in known if option.startswith(name)]  # of which it may be an abbreviation
    close = difflib.get_close_matches(name, whole, n=1, cutoff=0.0) or difflib.get_close_matches(name, known, n=1)
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
