"""Options of the command line whose type is a text take what was typed as it stands.

jsonargparse reads every value as YAML first, and an option of a class inside another twice: a column that is called
``null`` becomes nothing, and a file ``part: one.csv`` a mapping. Here YAML is asked only where the type of an option
wants more than a text, as a number or a list does.
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import yaml
from jsonargparse import Namespace
from jsonargparse._actions import _ActionConfigLoad
from jsonargparse._loaders_dumpers import get_yaml_default_loader, load_basic
from jsonargparse._typehints import ActionTypeHint, adapt_class_type, is_subclass_spec
from jsonargparse._util import NestedArg

from fedgram.cli.user_classes import class_problem, known_classes, options_of_subclasses
from fedgram.config_file import NOTHING, check_yaml, read_config, read_yaml
from fedgram.errors import UsageError
from fedgram.option_errors import (
    OptionError,
    UnknownOption,
    collected,
    deepest,
    expected,
    members,
    record,
    shown,
)
from fedgram.relative_paths import reading, settle

__all__ = ["Option", "Section", "refuse_nothing"]

LARGEST = 2**63 - 1
"""The largest whole number: samples, clients and seeds are counted in int64."""
LONGEST = 4096
"""Characters of a text: of a path on Linux, and more than any name has."""
_QUOTES = '; in a config, put quotes around a text that YAML reads as something else, such as "null" or "1"'


class Typed(str):
    """A text that was typed on the command line and that nobody has read as YAML yet."""

    __slots__ = ()


class Option(ActionTypeHint):
    """An option of any type: jsonargparse's own, with texts left as they are and errors of one sentence."""

    is_section = False
    """Whether it is a section of its own, such as ``method``; jsonargparse has the type of these take null."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Read a value from the command line."""
        parser, config, value, option = args
        return super().__call__(parser, config, Typed(value) if isinstance(value, str) else value, option, **kwargs)

    def _check_type(self, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
        with collected() as errors:
            try:
                return self._checked(value, append, cfg, mode)
            except UsageError:  # of a file that the value names
                raise
            except (TypeError, ValueError) as error:
                inner = error if isinstance(error, OptionError) else deepest(errors)
                own = (inner or self._misfit(value)).below(self.dest)
                if isinstance(own, UnknownOption) and len(own.keys) == 1:
                    owners = options_of_subclasses(self._bases)
                    own.owners = [name for name, names in owners.items() if own.name in names] if own.name else []
                cause = error
        raise record(own) from cause

    def _checked(self, value: Any, append: bool, cfg: Any, mode: Any) -> Any:
        typed = isinstance(value, Typed)
        if typed:
            value = None if value == NOTHING else str(value)
        elif isinstance(value, NestedArg) and not self.is_subclass_typehint(self._typehint, all_subtypes=False):
            # an entry of a mapping; those of a class are read by its parser
            value = NestedArg(value.key, str(value.val))
        kinds = _kinds_of_text(self._typehint)
        if kinds and not append:
            if isinstance(value, str):
                return _read_text(value, kinds) if typed else _bounded(value)
            if not _fits(value, kinds):
                raise self._misfit(value)
            return value
        if (value is None or value == "null") and not self.takes_nothing:
            raise self._misfit(None)
        value = self._read(value)
        self._check_class(value, cfg)
        found = super()._check_type(value, append=append, cfg=cfg, mode=mode)
        for number in _numbers(found):
            if isinstance(number, int) and abs(number) > LARGEST:
                raise OptionError.of(f"expected a whole number of at most {LARGEST}, got {shown(number)}")
            if math.isnan(number):
                raise OptionError.of(f"expected {expected(self._typehint)}, got nan")
        return found

    def _read(self, value: Any) -> Any:
        """Return a value, with the file that it names read, and with YAML on the command line of bounded size."""
        if type(value) is not str:
            return value
        classes = self._bases or self._item_bases
        if classes and self._enable_path and _is_file(value):
            return _read_file(value)
        if classes and value.lstrip().startswith(("{", "[")):
            return read_yaml(value, self.dest, get_yaml_default_loader())
        with suppress(yaml.YAMLError):  # it may be a text
            check_yaml(_bounded(value), self.dest)
        return value

    @property
    def _bases(self) -> tuple[type, ...]:
        """The classes of which its value may be one."""
        return tuple(kind for kind in members(self._typehint) if self.is_subclass_typehint(kind))

    @property
    def _item_bases(self) -> tuple[type, ...]:
        """The classes of which its value may be a list."""
        lists = [kind for kind in members(self._typehint) if not self.is_subclass_typehint(kind)]
        inner = [item for kind in lists for item in get_args(kind)]
        return tuple(item for item in inner if inspect.isclass(item) and self.is_subclass_typehint(item))

    @property
    def takes_nothing(self) -> bool:
        """Whether null is a value of it: where its type says so, and where it stands for no value by default."""
        return self.default is None or (type(None) in members(self._typehint) and not self.is_section)

    def instantiate_classes(self, value: Any) -> Any:
        """Make what a value names, without jsonargparse's choice between types, which hides what constructors raise.

        Raises:
            OptionError: a class needs a package that is missing.
        """
        if is_subclass_spec(value):
            return self._made(value)
        if isinstance(value, list) and self._item_bases:
            return [self._made(item) if is_subclass_spec(item) else item for item in value]
        return super().instantiate_classes(value)

    def _made(self, value: Any) -> Any:
        name = value["class_path"]
        try:
            return adapt_class_type(value, False, True, getattr(self, "sub_add_kwargs", {}))
        except OptionError as error:  # of a class inside
            raise error.below(self.dest) from error
        except ImportError as error:
            problem = f"{name} can't be made, a package is missing: {str(error).strip().partition(chr(10))[0]}"
            raise OptionError.of(problem).below(self.dest) from error

    def _check_class(self, value: Any, cfg: Any) -> None:
        """Refuse what names no class of the kind that is needed, which jsonargparse says in many words.

        Raises:
            OptionError: with what was expected.
        """
        bases = self._bases
        if isinstance(value, list):
            for item in value if self._item_bases else ():
                _check_class(item, self._item_bases)
        elif isinstance(value, NestedArg) and bases:
            chosen = cfg.get(self.dest) if cfg else None
            if chosen is None and self.default is None and all(map(inspect.isabstract, bases)):
                raise OptionError((), _no_class_yet)
        elif bases and not (isinstance(value, str) and self._takes_word(value)):
            _check_class(value, bases)

    def _takes_word(self, text: str) -> bool:
        """Return whether a text need not name a class: the type takes texts, or it is a truth value or null."""
        kinds = members(self._typehint)
        read = load_basic(text)
        return str in kinds or (isinstance(read, bool) and bool in kinds) or (read is None and type(None) in kinds)

    def _misfit(self, value: Any) -> OptionError:
        """Return the error of a value of another type."""
        wanted, got, kinds = expected(self._typehint), shown(value), members(self._typehint)
        hint = _QUOTES if _kinds_of_text(self._typehint) and not isinstance(value, str) else ""
        if isinstance(value, NestedArg):
            hint = f"; it has no options of its own, such as {value.key}"
        if (self._item_bases or list[str] in kinds) and isinstance(value, str) and value.strip()[:1] not in ("[", "{"):
            hint = f"; write [{value[:60]}]"
        if self.is_section:
            wanted = wanted.removesuffix(", or null")
        if self._bases:
            wanted += f" ({_where('', self._bases)})" if len(known_classes(self._bases)) <= 8 else ""
        return OptionError.of(f"expected {wanted}, got {got}{hint}")


class Section(_ActionConfigLoad):
    """A section of settings, such as ``trainer``, which may be given as a file."""

    def _load_config(self, value: Any, parser: Any) -> Any:
        if isinstance(value, str):
            value = _read_file(value) if _is_file(value) else read_yaml(value, self.dest)
        if not isinstance(value, dict | Namespace):
            raise record(_no_section(value).below(self.dest))
        return super()._load_config(value, parser)


def _no_section(value: Any) -> OptionError:
    return OptionError.of(f"expected settings by name, such as {{rounds: 10}}, or a file of them, got {shown(value)}")


def _no_class_yet(key: str, program: str) -> str:
    return f"{key}: name a class before its options; {program} --{key}.help CLASS shows what there is"


def refuse_nothing(action: Any) -> None:
    """Refuse null for a setting that has a value by default and whose type is not one of those that take null.

    Raises:
        OptionError: with what was expected.
    """
    if isinstance(action, Section):
        raise record(_no_section(None).below(action.dest))
    if isinstance(action, Option) and not action.takes_nothing:
        raise record(action._misfit(None).below(action.dest))


def _check_class(value: Any, bases: Sequence[type]) -> None:
    """Refuse the name of a class, or a class with its options, that is none of a kind.

    Raises:
        OptionError: with what was expected.
    """
    options = value.as_dict() if isinstance(value, Namespace) else value
    if isinstance(value, str):
        name = value
    elif not isinstance(options, dict) or "class_path" not in options:
        return
    else:
        name = options["class_path"]
        beside = [key for key in options if key not in ("class_path", "init_args", "dict_kwargs") and key[:2] != "__"]
        if beside:
            raise OptionError.of(f"expected the options of {shown(name)} below init_args, got {beside[0]} beside it")
        for key in ("init_args", "dict_kwargs"):
            if not isinstance(options.get(key, {}), dict | Namespace):
                raise OptionError.of(f"expected options by name in {key}, got {shown(options[key])}")
    problem = class_problem(name, bases)
    if problem is not None:
        raise OptionError((), lambda key, program: f"{key}: {problem}; {_where(program, bases)}")


def _where(program: str, bases: Sequence[type]) -> str:
    """Return where to find classes of a kind."""
    known = known_classes(bases)
    if len(known) > 8:
        return f"{program} --help lists the known ones, or give module.Class"
    return f"known are {', '.join(known)}, or give module.Class" if known else "give module.Class"


def _numbers(value: Any) -> Iterator[int | float]:
    """Return the numbers in a value, but for those in classes, whose own options they are."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_numbers, value))
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_numbers, chain.from_iterable(value.items())))


def _is_file(text: str) -> bool:
    """Return whether a text names something that can be read as a file, were it a device."""
    try:
        return Path(text).expanduser().exists() and not Path(text).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a home of nobody
        return False


def _read_file(text: str) -> dict[str, Any]:
    """Return the settings in a file."""
    with reading(Path(text)):
        settings: dict[str, Any] = settle(read_config(Path(text)))
    return settings


def _bounded(text: str) -> str:
    """Return a text that a path or a name can be.

    Raises:
        OptionError: no file, column or folder is called so.
    """
    if len(text) > LONGEST:
        raise OptionError.of(f"expected a text of at most {LONGEST} characters, got {len(text)}")
    if "\0" in text:
        raise OptionError.of("expected a text without NUL characters, got one with it")
    return text


def _kinds_of_text(typehint: Any) -> frozenset[Any]:
    """Return what a type of texts takes, of ``str``, ``list[str]`` and ``NoneType``; nothing for any other type.

    >>> sorted(map(str, _kinds_of_text(str | None))), _kinds_of_text(int | str)
    (["<class 'NoneType'>", "<class 'str'>"], frozenset())
    """
    kinds = frozenset(members(typehint))
    return kinds if str in kinds and kinds <= {str, list[str], type(None)} else frozenset()


def _fits(value: Any, kinds: frozenset[Any]) -> bool:
    """Return whether a value that is no text is nothing, or a list of texts, where the type takes such."""
    if isinstance(value, list):
        return list[str] in kinds and all(isinstance(each, str) for each in value)
    return value is None and type(None) in kinds


def _read_text(text: str, kinds: frozenset[Any]) -> str | list[str] | None:
    """Return what was typed: a text, nothing where ``null`` may mean that, or a list of texts in brackets.

    >>> texts = frozenset({str, list[str]})
    >>> _read_text("null", texts), _read_text("null", frozenset({str, type(None)})), _read_text("[yes, 'a, b']", texts)
    ('null', None, ['yes', 'a, b'])
    """
    if text == "null" and type(None) in kinds:
        return None
    _bounded(text)
    if list[str] in kinds and text.startswith("["):
        try:
            check_yaml(text, "a list on the command line")
            found = yaml.load(text, yaml.BaseLoader)  # of which every word is a text
        except yaml.YAMLError:
            return text
        if isinstance(found, list) and all(isinstance(each, str) for each in found):
            return found
    return text
