"""What fedgram raises for input that it cannot work with.

Every message says what was expected, what came, and the remedy. The command line prints it as one line and exits with
``exit_code``; anything that is not a `FedgramError` is a bug and keeps its traceback.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args


class FedgramError(Exception):
    """Base of the errors that a user can mend.

    Attributes:
        exit_code: of the command that ends with it.
        label: what the command line calls it.
        reported_elsewhere: whether every rank raises it, and this is not the one that is to report it.
    """

    exit_code = 1
    label = "error"
    reported_elsewhere = False


class ConfigurationError(FedgramError, ValueError):
    """A setting, or a combination of settings, that makes no sense."""


class UsageError(ConfigurationError):
    """Arguments or a config that can't be parsed."""

    exit_code = 2


class DataError(FedgramError, ValueError):
    """Data that is missing, malformed or does not fit the task."""


class CheckpointError(FedgramError, RuntimeError):
    """A checkpoint that is missing, damaged, or of another run."""


class OutputError(FedgramError, OSError):
    """A file or folder that can't be written: no such place, no permission, or a full disk."""


class LockedError(FedgramError, RuntimeError):
    """A folder that another process works in, or that can't be locked against others."""


class TrainingError(FedgramError, RuntimeError):
    """Local training or aggregation that broke down, with the round, client or layer where it did."""


class Preempted(FedgramError, RuntimeError):  # noqa: N818 (nothing is wrong)
    """A signal asked the run to stop: it can go on, and only its unfinished round is lost.

    Args:
        message: what happened where.
        signal: the signal's name.
    """

    exit_code = 75
    """EX_TEMPFAIL of sysexits.h: try again."""
    label = "stopped"

    def __init__(self, message: str, signal: str) -> None:
        super().__init__(message)
        self.signal = signal


@contextmanager
def located(place: str) -> Iterator[None]:
    """Note on an error that passes where it happened; the innermost place comes first."""
    try:
        yield
    except Exception as error:
        error.add_note(place)
        raise


def explain(error: BaseException) -> str:
    """Return an error's message behind the places that were noted on it, the outermost first.

    >>> try:
    ...     with located("round 3"), located("client 7"):
    ...         raise TrainingError("out of luck")
    ... except TrainingError as error:
    ...     explain(error)
    'round 3, client 7: out of luck'
    """
    places = ", ".join(reversed(getattr(error, "__notes__", [])))
    kind = "" if isinstance(error, FedgramError) else f"{type(error).__name__}: "
    return f"{places}: {kind}{error}" if places else f"{kind}{error}"


def require_choice(setting: str, value: str, choices: Any) -> None:
    """Check a setting that Python callers may misspell (the command line checks it by its type).

    Args:
        setting: its dotted name.
        value: what it was set to.
        choices: the ``Literal`` of what it may be.

    Raises:
        ConfigurationError: it is none of them.
    """
    if value not in get_args(choices):
        raise ConfigurationError(f"{setting} must be one of {', '.join(get_args(choices))}; got {value!r}")
