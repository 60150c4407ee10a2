"""How a method looks in every picture: a pure function of its name, whatever it is compared with.

The main methods have the colours of Okabe and Ito, which people with any common colour blindness tell apart; variants
and the other methods have those of Paul Tol. No two known methods share colour, line and marker, and the main ones have
each a line and a marker of their own besides, so that they are told apart in grey.
"""

import hashlib
import re
from typing import Any

__all__ = ["style_of"]

_LONG = (0, (7, 2))
_DOTS = (0, (5, 1.5, 1, 1.5, 1, 1.5))
_LINES = ("-", "--", "-.", ":", _LONG, _DOTS)

_BLUE, _VERMILION, _PURPLE, _GREEN, _ORANGE, _BLACK = "#0072B2", "#D55E00", "#CC79A7", "#009E73", "#E69F00", "#000000"
_SKY, _INDIGO, _CYAN, _NAVY, _STEEL = "#56B4E9", "#332288", "#88CCEE", "#004488", "#6699CC"
_WINE, _FOREST, _TEAL, _OLIVE = "#882255", "#117733", "#44AA99", "#999933"
_VIOLET, _BROWN, _GREY = "#AA4499", "#661100", "#777777"

# Colour, line and marker, by the name in small letters and digits alone, so that LoRA-FAIR is LoRAFAIR.
_KNOWN: dict[str, tuple[str, Any, str]] = {
    "florg": (_BLUE, "-", "o"),
    "fedit": (_VERMILION, "--", "s"),
    "ffalora": (_GREEN, "-.", "^"),
    "fedsalora": (_ORANGE, _LONG, "v"),
    "fedexlora": (_BLACK, _DOTS, "X"),
    "federa": (_PURPLE, ":", "D"),
    # Variants are of a like colour.
    "florgnone": (_SKY, "--", "P"),
    "florgaverage": (_INDIGO, ":", "<"),
    "florgtopr": (_CYAN, "-.", ">"),
    "florgtopraligned": (_NAVY, _LONG, "*"),
    "florgkaiming": (_STEEL, "--", "h"),
    "florgsvd": (_INDIGO, "-", "d"),
    "florgidentity": (_SKY, _DOTS, "v"),
    "fedexlorafactored": (_GREY, "-", "P"),
    "federaround": (_WINE, "--", "d"),
    # Exact aggregation, and aggregation by singular values.
    "flora": (_WINE, "-", "P"),
    "flexlora": (_FOREST, "--", "*"),
    "florana": (_TEAL, "-", "<"),
    "lorafair": (_OLIVE, "-.", ">"),
    "frlora": (_VIOLET, _LONG, "h"),
    "fedloru": (_BROWN, "-", "v"),
    "pfedloru": (_BROWN, "--", "^"),
    "mfedloru": (_BROWN, ":", "d"),
    "hetlora": (_FOREST, "-", "D"),
    "fedsvd": (_VIOLET, "-", "o"),
    "fedrotlora": (_TEAL, "--", "s"),
    # Parts and turns.
    "rolora": (_OLIVE, "-", "X"),
    "fslora": (_WINE, ":", "s"),
    "flasc": (_GREY, _LONG, "*"),
    "slora": (_FOREST, ":", "h"),
    # Models of clients and of clusters.
    "celora": (_TEAL, "-.", "P"),
    "fltac": (_VIOLET, ":", "v"),
    "fedlease": (_OLIVE, "--", "o"),
    "ravan": (_GREY, "-.", "^"),
    "feddpa": (_WINE, "-.", "X"),
}
_COLOURS = (_BLUE, _VERMILION, _PURPLE, _GREEN, _ORANGE, _WINE, _FOREST, _TEAL, _OLIVE, _VIOLET, _BROWN, _GREY)
_MARKERS_OF_STRANGERS = ("p", "8", "H")  # which no known method has


def style_of(method_name: str) -> dict[str, Any]:
    """Return how a method is drawn, as matplotlib's arguments color, linestyle and marker.

    What is not known by name is drawn by a hash of it, with a marker that no known method has; a variant of a known
    method, such as FLoRG-none-svd, has that method's colour.

    >>> style_of("FLoRG")
    {'color': '#0072B2', 'linestyle': '-', 'marker': 'o'}
    """
    colour, line, marker = _KNOWN.get(_plain(method_name)) or _style_of_stranger(method_name)
    return {"color": colour, "linestyle": line, "marker": marker}


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _style_of_stranger(name: str) -> tuple[str, Any, str]:
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest())
    digest, colour = divmod(digest, len(_COLOURS))
    digest, line = divmod(digest, len(_LINES))
    base = _KNOWN.get(_plain(name.partition("-")[0]))
    marker = _MARKERS_OF_STRANGERS[digest % len(_MARKERS_OF_STRANGERS)]
    return base[0] if base else _COLOURS[colour], _LINES[line], marker
