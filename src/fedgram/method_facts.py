"""What the classes of all methods state about themselves, read from their source files.

To import the methods takes seconds, as they need torch. ``fedgram methods`` shows no more than a few attributes of
their classes, which are constants: `ast` reads them without running anything.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["MethodFacts", "Paper", "read_methods"]

_PACKAGE = Path(__file__).with_name("methods")
_MAIN = "FLoRG"


@dataclass(frozen=True)
class Paper:
    """Where a method comes from.

    Attributes:
        authors: such as "Zhang et al.".
        year: of its publication, or of its first version where there is none.
        venue: such as "NeurIPS", or "arXiv".
        arxiv: its number there.
    """

    authors: str
    year: int
    venue: str
    arxiv: str


@dataclass(frozen=True)
class MethodFacts:
    """The attributes of a method's class that a list of methods shows; `Method` explains them."""

    name: str
    paper: Paper
    travels: str
    exact: bool
    heterogeneous: bool
    variants: Mapping[str, Mapping[str, Any]]


_ATTRIBUTES = {field.name for field in fields(MethodFacts)} - {"name"}


def read_methods() -> list[MethodFacts]:
    """Return the facts of every method that `fedgram.methods` exports, FLoRG first and the others by name.

    Raises:
        ValueError: a class gives one of these attributes another value than a constant.
    """
    exported = dict(_imports(_parse("__init__")))
    found = {name: dict(_attributes(module, name)) for name, module in exported.items()}
    methods = [MethodFacts(name, **facts) for name, facts in found.items() if facts.keys() == _ATTRIBUTES]
    return sorted(methods, key=lambda method: (method.name != _MAIN, method.name.lower()))


@cache
def _parse(module: str) -> ast.Module:
    path = _PACKAGE / f"{module}.py"
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield the names that a module imports from those of the methods, each with its module."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedgram.methods."):
            for alias in node.names:
                yield alias.name, str(node.module).rpartition(".")[2]


def _attributes(module: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a class, with those of the classes that it inherits from before its own."""
    tree = _parse(module)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for base in node.bases:
                if isinstance(base, ast.Name):
                    yield from _attributes(dict(_imports(tree)).get(base.id, module), base.id)
            for statement in node.body:
                yield from _assigned(statement, f"{module}.py: {name}")


def _assigned(statement: ast.stmt, place: str) -> Iterator[tuple[str, Any]]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    value = getattr(statement, "value", None)
    for target in targets:
        if isinstance(target, ast.Name) and target.id in _ATTRIBUTES and value is not None:
            yield target.id, _constant(value, f"{place}.{target.id}")


def _constant(value: ast.expr, place: str) -> Any:
    try:
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "Paper":
            given = {str(word.arg): ast.literal_eval(word.value) for word in value.keywords}
            return Paper(*map(ast.literal_eval, value.args), **given)
        return ast.literal_eval(value)
    except ValueError as error:
        raise ValueError(
            f"methods/{place} must be a constant, or Paper(...) of constants, as `fedgram methods` reads it without "
            f"importing the method; got {ast.unparse(value)}"
        ) from error
