"""Many short processes that are forked from one which has imported everything: a case costs a fraction of a second.

A case that hangs or dies takes nothing with it, and none sees what another has left behind.
"""

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

LIBRARIES = (
    "config_parsers",
    "fedgram.cli.main",
    "fedgram.trainer",
    "fedgram.data",
    "fedgram.methods",
    "fedgram.models",
    "fedgram.optim",
    "fedgram.cost.client_flops",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "pyarrow.parquet",
    "tensorboard",
    "torchmetrics",
    "torchmetrics.functional.classification",
    "transformers",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.qwen2.modeling_qwen2",
)
"""What a fit imports, at the top or on its way."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        kind: whether it returned, raised an error, died (of a signal, or by `os._exit`), or was stopped as too late.
        value: what it returned.
        errors: the names of the error's class and of its bases.
        message: the error's.
        trace: its traceback.
    """

    kind: Literal["returned", "raised", "died", "hung"]
    value: Any = None
    errors: tuple[str, ...] = ()
    message: str = ""
    trace: str = ""


class WarmParent:
    """Forks a process for every call from one that has imported some modules, and has run nothing else.

    Args:
        modules: what it imports.
        seconds: how long a call may take.
    """

    def __init__(self, modules: Sequence[str] = LIBRARIES, seconds: float = 60) -> None:
        # The server that forks takes the folder of its modules from here alone: it does not have this process's path.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(modules))
        self.seconds = 300.0
        self.call(len, ())  # the imports, which no case is charged with
        self.seconds = seconds

    def call(self, function: Callable[..., Any], *arguments: Any) -> Outcome:
        """Run a function of a module in a process of its own; what it takes and returns is pickled."""
        here, there = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_report, args=(there, function, arguments), daemon=True)
        process.start()
        there.close()
        try:
            return here.recv() if here.poll(self.seconds) else Outcome("hung", message=f"after {self.seconds} s")
        except EOFError:
            process.join()
            return Outcome("died", message=f"exit code {process.exitcode}")
        finally:
            process.kill()
            process.join()
            here.close()


def outcome_of(function: Callable[..., Any], *arguments: Any) -> Outcome:
    """Call a function in this process."""
    try:
        return Outcome("returned", function(*arguments))
    except BaseException as error:  # noqa: BLE001 (whatever a case raises is its outcome)
        names = tuple(kind.__name__ for kind in type(error).__mro__)
        return Outcome("raised", None, names, str(error), traceback.format_exc())


def _report(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    connection.send(outcome_of(function, *arguments))
