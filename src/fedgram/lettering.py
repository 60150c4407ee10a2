r"""Names that users chose, such as those of classes, as text in pictures: every name is shown as it is written.

Matplotlib reads a dollar sign as the start of a formula, leaves labels that begin with an underscore out of legends,
and draws boxes for characters that its font lacks.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.container import Container
    from matplotlib.legend import Legend

__all__ = ["LITERAL", "LONGEST", "add_legend", "lettered"]

LITERAL: dict[str, Any] = {"parse_math": False, "usetex": False}
"""The properties of a matplotlib text that is shown as it is written."""
LONGEST = 60
"""The most letters of a name of one's own that fit beside a plot."""


def lettered(name: str, longest: int | None = None) -> str:
    r"""Return a name in characters that can be drawn in one line: others, such as line ends, are escaped.

    Args:
        name: as the user wrote it.
        longest: the most letters to show; of a longer name the middle is left out.

    >>> lettered("good\nor $fine$")
    'good\\nor $fine$'
    """
    missing = _lacking({letter for letter in name if letter.isprintable()})
    drawn = "".join(letter if letter.isprintable() and letter not in missing else _escaped(letter) for letter in name)
    if longest is None or len(drawn) <= longest:
        return drawn
    half = (longest - 3) // 2
    return f"{drawn[:half]}...{drawn[-half:]}"


def add_legend(place: Any, handles: "Sequence[Artist | Container]", names: Sequence[str], **options: Any) -> "Legend":
    """Add a legend that shows every name as it is written.

    Args:
        place: the axes or the figure that it belongs to.
        handles: what the names stand for.
        names: as many.
        options: of matplotlib's ``legend``.
    """
    # Made with names that every version takes, which are then replaced: some drop those with an underscore in front.
    legend: Legend = place.legend(list(handles), [str(number) for number in range(len(names))], **options)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=lettered(name), **LITERAL)
    return legend


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def _lacking(letters: set[str]) -> set[str]:
    """Return the letters that no font of matplotlib's settings has."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties, findfont, get_font

    missing = {letter for letter in letters if not letter.isascii()}
    for family in rcParams["font.family"]:
        if not missing:
            break
        font = get_font(findfont(FontProperties(family=[family])))
        missing = {letter for letter in missing if not font.get_char_index(ord(letter))}
    return missing
