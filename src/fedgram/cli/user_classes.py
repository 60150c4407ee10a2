"""Classes that options name, the project's and users' own: whether there is one, and of the kind that is needed."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, get_type_hints

from jsonargparse._typehints import get_all_subclass_paths, resolve_class_path_by_name
from jsonargparse._util import import_object

from fedgram.option_errors import nearest, shown

__all__ = ["class_problem", "known_classes", "options_of_subclasses"]


def class_problem(name: Any, bases: Sequence[type]) -> str | None:
    """Return why a name is of no class of a kind; nothing where it is.

    Args:
        name: of a class, or its module.Class, or that of a function that returns one.
        bases: the kind: the class must be of one of them.
    """
    kind = " or ".join(base.__name__ for base in bases)
    if not isinstance(name, str):
        return f"expected the name of a {kind}, got {shown(name)}"
    try:
        path = resolve_class_path_by_name(tuple(bases), name)  # type: ignore[arg-type]  # of any length
    except ValueError as error:  # several classes of one name
        return str(error)
    if "." not in path:
        return f"there is no class {shown(name)} of the kind {kind}{nearest(name, known_classes(bases)).rstrip('.')}"
    try:
        found = import_object(path)
    except (ImportError, AttributeError, ValueError) as error:
        return f"there is no class {shown(name)}: {str(error).partition(chr(10))[0]}"
    except Exception as error:  # noqa: BLE001 (whatever the module of a user raises when it is imported)
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return f"the module of {shown(name)} can't be imported: {reason}"
    if not _is_of_kind(found, tuple(bases)):
        return f"{shown(name)} is no {kind}"
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        return f"{shown(name)} is an abstract {kind}, without {missing}"
    return None


def _is_of_kind(found: Any, bases: tuple[type, ...]) -> bool:
    if inspect.isclass(found):
        return issubclass(found, bases)
    if not callable(found) or not getattr(found, "__annotations__", None):
        return False
    returned = get_type_hints(found).get("return")
    return inspect.isclass(returned) and issubclass(returned, bases)


def known_classes(bases: Sequence[type]) -> list[str]:
    """Return the names of the classes of a kind that have been imported, without the kind's own."""
    names: set[str] = {path.rpartition(".")[2] for base in bases for path in get_all_subclass_paths(base)}
    return sorted(names - {base.__name__ for base in bases})


def options_of_subclasses(bases: Sequence[type]) -> dict[str, list[str]]:
    """Return the names that the constructors of classes and of their subclasses take, by the name of the class."""
    classes: list[type] = [known for base in bases for known in _tree(base)]
    return {known.__name__: list(inspect.signature(known).parameters) for known in classes}


def _tree(base: type) -> Iterator[type]:
    yield base
    subclasses: list[type] = type.__subclasses__(base)
    for known in subclasses:
        yield from _tree(known)
