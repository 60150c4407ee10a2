"""Whether a run ends before its last round: who asks for it, and what all processes agree on."""

import logging
from typing import TYPE_CHECKING

from fedgram.federation.hooks import own_callbacks

if TYPE_CHECKING:
    from fedgram.federation.progress import Progress
    from fedgram.federation.rounds import Federation

__all__ = ["is_over"]

log = logging.getLogger(__name__)

_FLAG = "a callback set trainer.should_stop"


def is_over(federation: "Federation", should_stop: bool) -> bool:
    """Return whether the run ends with the round that is done, on every process if one of them asks for it.

    Args:
        federation: the run's.
        should_stop: whether a callback has set ``trainer.should_stop`` in this process.
    """
    progress = federation.progress
    if progress.finished < 0:
        return False
    if progress.stopped is None:
        with federation.ranks.apart(f"the end of round {progress.finished}"):
            reasons = (callback.reason_to_stop() for callback in own_callbacks(federation.callbacks))
            own = next((reason for reason in reasons if reason), None)
        flag = own is None and should_stop
        agreed = federation.ranks.first((_FLAG if flag else own, flag) if own or flag else None)
        if agreed is None:
            return False
        progress.stopped, is_kept = agreed
        progress.stopped_for_rounds = federation.plan.rounds if is_kept else None
    if federation.ranks.rank == 0:
        where = f"after round {progress.finished} of {federation.plan.rounds}"
        log.info("%s ends %s: %s; %s", federation.recorder.folder.path, where, progress.stopped, _remedy(progress))
    return True


def _remedy(progress: "Progress") -> str:
    if progress.stopped_for_rounds is not None:
        return f"--trainer.rounds of more than {progress.stopped_for_rounds} has it go on with --ckpt_path last"
    return "--ckpt_path last has it go on once the callback no longer asks for that"
