"""The callbacks of a run: what they check before it, and what checkpoints keep of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedgram.callbacks import Callback
from fedgram.data import FederatedData
from fedgram.errors import ConfigurationError
from fedgram.federation.describe import describe
from fedgram.models import FederatedTask
from fedgram.runs.folder import column_of
from fedgram.runs.monitor import Mode, Monitor, figures_of, find_monitor
from fedgram.settings import TrainerSettings

__all__ = ["own_callbacks", "recall", "set_up", "states_of", "stopping"]


def set_up(
    settings: TrainerSettings,
    announce: Callable[[Monitor, Mapping[str, Mode]], None],
    task: FederatedTask,
    data: FederatedData,
) -> Monitor:
    """Return the figure that the best checkpoint is chosen by, once callbacks have checked their settings.

    Args:
        settings: of the run.
        announce: has the callbacks set themselves up, see `Session.set_up`.
        task: of the run.
        data: of the run.

    Raises:
        ConfigurationError: there is no such figure, or a callback's settings do not fit the run.
    """
    figures, monitor = figures_of(task, data), Monitor(column_of(task.monitor), task.monitor_mode)
    if settings.monitor is not None:
        monitor = find_monitor("trainer.monitor", settings.monitor, figures)
    announce(monitor, figures)
    return monitor


def states_of(callbacks: Sequence[Callback]) -> dict[str, dict[str, Any]]:
    """Return what checkpoints keep of callbacks, by their keys; of several with one key the later ones are numbered.

    Raises:
        ConfigurationError: a state is no JSON.
    """
    states = {key: callback.state_dict() for key, callback in _keyed(callbacks).items()}
    for key, state in states.items():
        try:
            json.dumps(state)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"trainer.callbacks: what state_dict of {key} returns must be JSON, of texts, numbers, lists and dicts "
                f"({error})"
            ) from error
    return {key: state for key, state in states.items() if state}


def recall(callbacks: Sequence[Callback], states: Mapping[str, dict[str, Any]]) -> None:
    """Give callbacks back what a checkpoint has kept of them."""
    for key, callback in _keyed(callbacks).items():
        if key in states:
            callback.load_state_dict(states[key])


def stopping(callbacks: Sequence[Callback]) -> str | None:
    """Return which callbacks may end a run early, with their settings; None where none may."""
    kinds = [each for each in own_callbacks(callbacks) if type(each).reason_to_stop is not Callback.reason_to_stop]
    return "; ".join(map(_named, kinds)) or None


def own_callbacks(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return the callbacks that are fedgram's; Fabric takes any object."""
    return [callback for callback in callbacks if isinstance(callback, Callback)]


def _keyed(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    found: dict[str, Callback] = {}
    for callback in own_callbacks(callbacks):
        key, number = callback.state_key, 1
        while key in found:
            number += 1
            key = f"{callback.state_key} ({number})"
        found[key] = callback
    return found


def _named(callback: Callback) -> str:
    """Return a callback as it would be called.

    >>> from fedgram.early_stopping import EarlyStopping
    >>> _named(EarlyStopping("accuracy", patience=2))
    'EarlyStopping(monitor=accuracy, mode=None, patience=2, min_delta=0.0)'
    """
    settings = {key.partition(".")[2]: value for key, value in describe(callback, "of").items() if key != "of"}
    return f"{type(callback).__name__}({', '.join(f'{key}={value}' for key, value in settings.items())})"
