"""Small changes of Python sources, one at a time: each is a mistake that a test should notice.

Other operators, comparisons, conditions and constants, constants off by one, swapped arguments, and statements that are
left out. Only bodies of functions are changed, and neither annotations, messages of errors nor the log.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

_OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}
_COMPARISONS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_LEFT_OUT = {"annotation", "returns", "decorator_list", "args", "type_params"}
"""What of a function and of an assignment is no computation."""
_Place = tuple[ast.AST, str, int | None]
"""A node's parent, the parent's field that it stands in, and where it does so in a list."""


@dataclass
class Change:
    """One change of a parsed source.

    Attributes:
        path: the file.
        line: where it is.
        function: the function, with its class.
        before: what stands there.
        after: what is put in its place.
        tree: the parsed source.
    """

    path: Path
    line: int
    function: str
    before: str
    after: str
    tree: ast.Module
    _place: _Place
    _old: ast.AST
    _new: ast.AST

    @property
    def name(self) -> str:
        """What it is called wherever its line may be: file, function, and what it does."""
        return f"{self.path.as_posix()}::{self.function}: {self.before} -> {self.after}"

    def code(self, filename: str) -> CodeType:
        """Return the compiled module with this change."""
        _put(self._place, self._new)
        try:
            return compile(ast.fix_missing_locations(self.tree), filename, "exec")
        finally:
            _put(self._place, self._old)


def find(path: Path) -> list[Change]:
    """Return all changes of a file."""
    tree = ast.parse(path.read_text())
    return [
        Change(path, old.lineno, function, *_texts(place, old, new), tree, place, old, ast.copy_location(new, old))
        for function, place, old in _nodes(tree, [])
        for new in _instead(old)
    ]


def _texts(place: _Place, old: ast.AST, new: ast.AST) -> tuple[str, str]:
    """Return what is changed and what it becomes; of a constant, with what it stands in."""
    if not isinstance(old, ast.Constant):
        return _text(old), _text(new)
    told = []
    for node in (new, old):
        _put(place, node)
        told.append(_text(place[0]))
    return told[1], told[0]


def _put(place: _Place, node: ast.AST) -> None:
    """Put a node in its place in the tree."""
    parent, field, index = place
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.If) and isinstance(node.test, ast.Constant):
        return "pass"
    return " ".join(ast.unparse(node).split())


def _nodes(node: ast.AST, names: list[str]) -> Iterator[tuple[str, _Place, ast.AST]]:
    """Yield every expression and statement in a function, with the function's name and its place in the tree."""
    in_function = bool(names) and not names[-1].startswith("class ")
    for field, value in ast.iter_fields(node):
        if field in _LEFT_OUT and (isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.AnnAssign, ast.Lambda))):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST):
                continue
            if in_function and isinstance(child, ast.expr | ast.stmt):
                yield ".".join(name.removeprefix("class ") for name in names), (node, field, index), child
            if not _is_message(child):
                yield from _nodes(child, names + _name(child))


def _name(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ClassDef):
        return [f"class {node.name}"]
    return [node.name] if isinstance(node, _FUNCTIONS) else []


def _is_message(node: ast.AST) -> bool:
    """Say whether a node only says something: a text with values, an error, or a line of the log."""
    if isinstance(node, ast.Expr):
        node = node.value
    is_log = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] in ("log", "warnings")
    return isinstance(node, ast.JoinedStr | ast.Raise) or is_log


def _instead(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what may be put in the place of a node."""
    match node:
        case ast.BinOp(left, ast.MatMult(), right):
            yield ast.BinOp(right, node.op, left)
        case ast.BinOp(left, op, right) if type(op) in _OPERATORS:
            yield ast.BinOp(left, _OPERATORS[type(op)](), right)
        case ast.Compare(left, [op], rights):
            yield ast.Compare(left, [_COMPARISONS[type(op)]()], rights)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() as value):
            yield ast.Constant(value + 1)
        case ast.Constant(float() as value):
            yield ast.Constant(value * 2 or 1.0)
        case ast.Call(func, [first, second, *rest], keywords) if _may_be_mixed_up(func, first, second):
            yield ast.Call(func, [second, first, *rest], keywords)
        case ast.If(ast.Name() | ast.Attribute() | ast.Call() as test, body, rest):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, rest)
        case ast.IfExp(ast.Name() | ast.Attribute() | ast.Call() as test, body, rest):
            yield ast.IfExp(ast.UnaryOp(ast.Not(), test), body, rest)
        case ast.Expr(ast.Call()) if not _is_message(node):
            yield _never(node)
        case ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield _never(node)
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield _never(node)


def _never(statement: ast.stmt) -> ast.If:
    """Leave a statement out, but what it names: a function must have the same closure as before."""
    return ast.If(ast.Constant(False), [statement], [])


def _may_be_mixed_up(func: ast.expr, first: ast.expr, second: ast.expr) -> bool:
    """Say whether arguments are such that their order may be mistaken, and matters."""
    is_plain = not any(isinstance(argument, ast.Constant | ast.Starred | ast.JoinedStr) for argument in (first, second))
    return is_plain and _text(func) not in ("min", "max") and _text(first) != _text(second)
