"""The methods that the package has."""

import inspect

import fedgram.methods
from fedgram.methods.base import Method
from fedgram.methods.florg import FLoRG

__all__ = ["known_methods"]


def known_methods() -> list[type[Method]]:
    """Return the classes of all methods, FLoRG first and the others by name."""
    found = [kind for kind in vars(fedgram.methods).values() if inspect.isclass(kind) and issubclass(kind, Method)]
    return sorted(
        (kind for kind in found if not inspect.isabstract(kind)),
        key=lambda kind: (kind is not FLoRG, kind.__name__.lower()),
    )
