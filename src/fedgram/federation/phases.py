"""Whether the clients make enough local steps for each phase of a method's local training."""

import logging
from collections.abc import Mapping

import numpy as np

from fedgram.cohort import cut_steps
from fedgram.errors import ConfigurationError
from fedgram.methods import Method, Phase

__all__ = ["check_phases"]

log = logging.getLogger(__name__)

_REMEDY = "set trainer.local_steps or trainer.local_epochs to more, or data.batch_size to less"


def check_phases(method: Method, rounds: int, steps: np.ndarray) -> None:
    """Look for phases whose share of the local steps rounds to none, and say which clients they are missing for.

    Args:
        method: whose phases.
        rounds: of the run.
        steps: local steps of every client in a round.

    Raises:
        ConfigurationError: what stays with the clients is trained by none of them in any round.
    """
    numbers = _steps_of_phases(method, rounds, steps)
    kept = {field.name for field in method.fields if field.kept}
    ever = {field for phase, count in numbers.items() if count.any() for field in phase.trained}
    for phase, count in numbers.items():
        missing, fields = int((count == 0).sum()), _list(phase.trained)
        if not missing:
            continue
        where = f"{method.name} trains {fields} in {phase.share:g} of a client's local steps"
        if kept & phase.trained - ever:
            raise ConfigurationError(
                f"{where}, which is none of the {int(steps.max())} that a client makes at most in a round: {fields} "
                f"stay with the clients and would never be trained; {_REMEDY}"
            )
        log.warning(
            "%s, which rounds to none for %d of %d clients, that never train them so; %s",
            where, missing, len(steps), _REMEDY,
        )  # fmt: skip


def _steps_of_phases(method: Method, rounds: int, steps: np.ndarray) -> Mapping[Phase, np.ndarray]:
    """Return every phase of the run that has a share, with how many steps of it each client makes in a round."""
    found: dict[Phase, np.ndarray] = {}
    for phases in dict.fromkeys(method.phases(n) for n in range(1, rounds + 1)):
        edges = cut_steps(steps, [phase.share for phase in phases])
        found |= {phase: last - first for phase, (first, last) in zip(phases, edges, strict=True) if phase.share > 0}
    return found


def _list(fields: frozenset[str]) -> str:
    return " and ".join(sorted(fields))
