"""The settings of methods, optimizers, tasks and callbacks, as checkpoints and tables keep them."""

from typing import Any

from fedgram.models import FederatedTask

__all__ = ["describe"]


def describe(thing: object, prefix: str) -> dict[str, Any]:
    """Return the class of an object and its settings of plain types, under dotted keys.

    The settings are its public attributes; of a task, which has others besides, those that it says itself.

    >>> from fedgram.data import Dirichlet
    >>> describe(Dirichlet(rho=0.5), "partition")
    {'partition': 'Dirichlet', 'partition.rho': 0.5, 'partition.min_samples': 1}
    """
    known = thing.settings if isinstance(thing, FederatedTask) else vars(thing)
    settings = {f"{prefix}.{k}": v for k, v in known.items() if _is_plain(v) and not k.startswith("_")}
    return {prefix: type(thing).__name__, **settings}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | dict | None)
