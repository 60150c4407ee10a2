"""Arguments of the commands that need no trainer, and so neither torch nor lightning to be understood."""

import argparse
from typing import NoReturn

__all__ = ["OneLineParser"]


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises an error of one line instead of printing all of its usage."""

    def error(self, message: str) -> NoReturn:
        from fedgram.usage import UsageError, explain  # which imports lightning

        raise UsageError(explain(message, [option.lstrip("-") for option in self._option_string_actions], self.prog))
