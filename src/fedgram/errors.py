"""What fedgram raises for input that it cannot work with.

Every message says what was expected, what came, and the remedy. The command line prints it as one line and exits with
``exit_code``; anything that is not a `FedgramError` is a bug and keeps its traceback.
"""

from typing import Any, get_args


class FedgramError(Exception):
    """Base of the errors that a user can mend."""

    exit_code = 1


class ConfigurationError(FedgramError, ValueError):
    """A setting, or a combination of settings, that makes no sense."""


class DataError(FedgramError, ValueError):
    """Data that is missing, malformed or does not fit the task."""


class CheckpointError(FedgramError, RuntimeError):
    """A checkpoint that is missing, damaged, or of another run."""


class TrainingError(FedgramError, RuntimeError):
    """Local training or aggregation that broke down, with the round, client or layer where it did."""


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
