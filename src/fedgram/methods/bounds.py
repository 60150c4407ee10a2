"""A method as it is asked for what it sends where only training can tell: at least, and at most."""

import copy

from fedgram.methods.base import Method

__all__ = ["BOUNDS", "bounded"]

BOUNDS = ("least", "most")


def bounded(method: Method) -> dict[str, Method]:
    """Return a method as it is asked for what it sends: once at least and once at most, where that can't be known."""
    if not method.unknown:
        return {"most": method}
    found = {bound: copy.copy(method) for bound in BOUNDS}
    for bound, own in found.items():
        own.bound = bound  # type: ignore[assignment]
    return found
