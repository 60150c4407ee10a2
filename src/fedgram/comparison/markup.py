"""Texts and rows of tables in Markdown and LaTeX."""

import re
from collections.abc import Iterable

__all__ = ["latex_row", "latex_text", "markdown_row", "markdown_text", "sentence"]

_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "|": r"\textbar{}",
    "^": r"\textasciicircum{}",
    **{sign: f"${sign}$" for sign in "<>"},
    "±": r"$\pm$",
}


def markdown_row(texts: Iterable[str]) -> str:
    """Return a row of a table of Markdown, of texts that are escaped."""
    return f"| {' | '.join(texts)} |"


def markdown_text(text: str) -> str:
    """Return a text with what Markdown reads as commands escaped."""
    return re.sub(r"([\\|*<])", r"\\\1", text)


def latex_row(texts: Iterable[str]) -> str:
    """Return a row of a table of LaTeX, of texts that are escaped."""
    return rf"    {' & '.join(texts)} \\"


def latex_text(text: str) -> str:
    """Return a text with what LaTeX reads as commands escaped, minus signs and powers of ten in mathematics."""
    escaped = "".join(_LATEX.get(character, character) for character in text)
    escaped = re.sub(r"(?<![\w.])-(?=\d)", "$-$", escaped)
    return re.sub(r"\b(\d+(?:\.\d+)?)e(-?\d+)\b", r"$\1\\times10^{\2}$", escaped)


def sentence(text: str) -> str:
    """Return a text that ends in a full stop."""
    return text if text.endswith(".") else f"{text}."
