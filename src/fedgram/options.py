"""Options of the command line whose type is a text take what was typed as it stands.

jsonargparse reads every value as YAML first, and an option of a class inside another twice: a column that is called
``null`` becomes nothing, and a file ``part: one.csv`` a mapping. Here YAML is asked only where the type of an option
wants more than a text, as a number or a list does.
"""

from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin

import yaml
from jsonargparse._typehints import ActionTypeHint
from jsonargparse._util import NestedArg

__all__ = ["Option"]


class Typed(str):
    """A text that was typed on the command line and that nobody has read as YAML yet."""

    __slots__ = ()


class Option(ActionTypeHint):
    """An option of any type; jsonargparse's own, with texts left as they are."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Read a value from the command line."""
        parser, config, value, option = args
        return super().__call__(parser, config, Typed(value) if isinstance(value, str) else value, option, **kwargs)

    def _check_type(self, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
        typed = isinstance(value, Typed)
        if typed:
            value = str(value)
        elif isinstance(value, NestedArg) and not self.is_subclass_typehint(self._typehint, all_subtypes=False):
            value = NestedArg(
                value.key, str(value.val)
            )  # an entry of a mapping; those of a class are read by its parser
        kinds = _kinds_of_text(self._typehint)
        if not kinds or append:
            return super()._check_type(value, append=append, cfg=cfg, mode=mode)
        if isinstance(value, str):
            return _read_text(value, kinds) if typed else value
        if not _fits(value, kinds):
            self.refuse(value)
        return value

    @property
    def needs_text(self) -> bool:
        """Whether it is of a text, has one by default, and so can't be nothing."""
        kinds = _kinds_of_text(self._typehint)
        return bool(kinds) and type(None) not in kinds and isinstance(self.default, str)

    def refuse(self, value: Any) -> NoReturn:
        """Refuse what YAML has made of a text in a config.

        Raises:
            TypeError: with the name of the setting, in the words of jsonargparse's own errors.
        """
        raise TypeError(f'Parser key "{self.dest}":\n  Expected a text. Got value: {value}')


def _kinds_of_text(typehint: Any) -> frozenset[Any]:
    """Return what a type of texts takes, of ``str``, ``list[str]`` and ``NoneType``; nothing for any other type.

    >>> sorted(map(str, _kinds_of_text(str | None))), _kinds_of_text(int | str)
    (["<class 'NoneType'>", "<class 'str'>"], frozenset())
    """
    kinds = frozenset(get_args(typehint) if get_origin(typehint) in (Union, UnionType) else (typehint,))
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
    if list[str] in kinds and text.startswith("["):
        try:
            found = yaml.load(text, yaml.BaseLoader)  # of which every word is a text
        except yaml.YAMLError:
            return text
        if isinstance(found, list) and all(isinstance(each, str) for each in found):
            return found
    return text
