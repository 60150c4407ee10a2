"""Arguments of the commands that need no trainer, and so neither torch nor lightning to be understood."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from fedgram.errors import UsageError

__all__ = ["OneLineParser"]


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises an error of one line instead of its usage, and takes options by their whole names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_own(self, given: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Return the arguments of this command, and those left over, which are options of fit.

        Raises:
            UsageError: one that is left over is the beginning of an option of this command.
        """
        own, further = self.parse_known_args(given)
        for argument in further:
            name = argument.partition("=")[0]
            if name.startswith("--") and any(option.startswith(name) for option in self._option_string_actions):
                self.error(f"unrecognized arguments: {name}")
        return own, further

    def error(self, message: str) -> NoReturn:
        from fedgram.cli.usage import explain  # which imports lightning

        raise UsageError(explain(message, [option.lstrip("-") for option in self._option_string_actions], self.prog))
