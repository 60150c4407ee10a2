"""How a run ends before its last round: who asks for it, what all processes agree on, and what is done then."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedgram.callbacks import Callback
from fedgram.data import FederatedData
from fedgram.errors import ConfigurationError
from fedgram.models import FederatedTask
from fedgram.monitor import Monitor, figures_of, find_monitor
from fedgram.reporting import describe
from fedgram.run_folder import column_of

if TYPE_CHECKING:
    from fedgram.federation import Federation
    from fedgram.trainer import FederatedTrainer

__all__ = ["conclude", "is_over", "recall", "set_up", "states_of", "stopping"]

log = logging.getLogger(__name__)

_FLAG = "a callback set trainer.should_stop"


def set_up(trainer: "FederatedTrainer", task: FederatedTask, data: FederatedData) -> None:
    """Find the figure that the best checkpoint is chosen by, and have callbacks check their settings.

    Raises:
        ConfigurationError: there is no such figure, or a callback's settings do not fit the run.
    """
    trainer.should_stop, figures = False, figures_of(task, data)
    trainer.monitored = Monitor(column_of(task.monitor), task.monitor_mode)
    if trainer.monitor is not None:
        trainer.monitored = find_monitor("trainer.monitor", trainer.monitor, figures)
    for callback in _own(trainer.callbacks):
        callback.on_setup(trainer, figures)


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
    kinds = [each for each in _own(callbacks) if type(each).reason_to_stop is not Callback.reason_to_stop]
    return "; ".join(map(_named, kinds)) or None


def is_over(trainer: "FederatedTrainer", federation: "Federation") -> bool:
    """Return whether the run ends with the round that is done, on every process if one of them asks for it."""
    if federation.finished < 0:
        return False
    if federation.stopped is None:
        with federation.ranks.apart(f"the end of round {federation.finished}"):
            reasons = (callback.reason_to_stop() for callback in _own(trainer.callbacks))
            own = next((reason for reason in reasons if reason), None)
        flag = own is None and trainer.should_stop
        agreed = federation.ranks.first((_FLAG if flag else own, flag) if own or flag else None)
        if agreed is None:
            return False
        federation.stopped, federation.stop_is_kept = agreed
    if federation.ranks.rank == 0:
        where = f"after round {federation.finished} of {federation.plan.rounds}"
        log.info("%s ends %s: %s; %s", federation.folder.path, where, federation.stopped, _remedy(federation))
    return True


def conclude(federation: "Federation") -> None:
    """Evaluate the model that a stopped run ends with, unless its last round was, and keep that it was stopped."""
    if federation.stopped is None:
        return
    found = federation.evaluate_last() if federation.evaluated_at < federation.finished else {}
    with federation.ranks.apart(f"the end of round {federation.finished}"):
        federation.amend(found)
        federation.checkpoint(found)


def _remedy(federation: "Federation") -> str:
    if federation.stop_is_kept:
        return f"--trainer.rounds of more than {federation.plan.rounds} has it go on with --ckpt_path last"
    return "--ckpt_path last has it go on once the callback no longer asks for that"


def _own(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return the callbacks that are fedgram's; Fabric takes any object."""
    return [callback for callback in callbacks if isinstance(callback, Callback)]


def _keyed(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    found: dict[str, Callback] = {}
    for callback in _own(callbacks):
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
