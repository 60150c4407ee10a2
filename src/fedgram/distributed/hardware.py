"""Checks of the devices, processes and threads that a run asks for, before any of them is started.

Fabric reports what it does not have in tracebacks, and for a node that nobody started it waits.
"""

import os
import reprlib
from typing import Any

import torch

from fedgram.errors import ConfigurationError

__all__ = ["check_hardware", "check_requests"]

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
STRATEGIES = ("auto", "ddp", "ddp_spawn", "ddp_fork", "ddp_notebook", "ddp_find_unused_parameters_true")
"""Of Fabric's, those that leave a whole model on every device."""
MOST_THREADS = 1024
ALL = -1
"""What Fabric takes for all devices."""


def check_requests(accelerator: Any, devices: Any, num_nodes: Any, strategy: Any, threads: int | None) -> None:
    """Refuse what no machine has.

    Raises:
        ConfigurationError: a name that is not known, or a number that is too small or too large.
    """
    if isinstance(accelerator, str) and accelerator not in ACCELERATORS:
        raise ConfigurationError(f"trainer.accelerator must be one of {', '.join(ACCELERATORS)}; got {accelerator!r}")
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise ConfigurationError(
            f"trainer.strategy must be one of {', '.join(STRATEGIES)}, or a Strategy of Fabric's; got {strategy!r}"
        )
    if threads is not None and threads > MOST_THREADS:
        raise ConfigurationError(f"trainer.threads must be at most {MOST_THREADS}, got {threads}; leave it to torch")
    if num_nodes != "auto" and num_nodes < 1:
        raise ConfigurationError(f"trainer.num_nodes must be at least 1, or auto, got {num_nodes}")
    numbers = _numbers(devices)
    if isinstance(numbers, int) and numbers < 1 and numbers != ALL:
        raise _devices(devices)
    if isinstance(numbers, list) and (not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers)):
        raise _devices(devices)


def check_hardware(accelerator: Any, devices: Any, num_nodes: int, started: int) -> None:
    """Refuse what this machine does not have.

    Args:
        accelerator: what was chosen: cpu, or one of the names of CUDA.
        devices: likewise, of a node.
        num_nodes: on how many nodes the run is to be.
        started: on how many the launcher started this program; 1 without one.

    Raises:
        ConfigurationError: a device that is not there, or nodes that nobody starts.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator != "cpu" and not gpus:
        raise ConfigurationError(f"trainer.accelerator is {accelerator}, and torch finds no GPU here; use cpu or auto")
    numbers = _numbers(devices)
    if accelerator == "cpu":
        _check_processes(devices, numbers)
    else:
        most = max(numbers) + 1 if isinstance(numbers, list) else numbers
        if most != "auto" and most > gpus:
            raise ConfigurationError(
                f"trainer.devices is {reprlib.repr(devices)}, and torch finds {gpus} GPUs here; use at most those"
            )
    by_hand = "NODE_RANK" in os.environ or "GROUP_RANK" in os.environ  # as Lightning's own environment has it
    if num_nodes > 1 and started == 1 and not by_hand:
        raise ConfigurationError(
            f"trainer.num_nodes is {num_nodes}, and this program was started on one node: have srun or torchrun start "
            "it on all of them, or leave num_nodes at auto"
        )


def _check_processes(devices: Any, numbers: Any) -> None:
    """Refuse what is no number of processes that a CPU can run."""
    most = max(64, 16 * (os.cpu_count() or 1))
    if isinstance(numbers, list) or numbers == ALL:
        raise ConfigurationError(
            f"trainer.devices must be a number of processes on the CPU, or auto, got {reprlib.repr(devices)}"
        )
    if isinstance(numbers, int) and numbers > most:
        raise ConfigurationError(f"trainer.devices must be at most {most} on this CPU, got {numbers}")


def _numbers(devices: Any) -> Any:
    """Return how many devices, or a list of which, as Fabric reads them; auto as it is.

    Raises:
        ConfigurationError: it is neither.

    >>> _numbers("2"), _numbers("0,2"), _numbers([1]), _numbers("auto")
    (2, [0, 2], [1], 'auto')
    """
    if isinstance(devices, bool) or not isinstance(devices, int | str | list):
        raise _devices(devices)
    if not isinstance(devices, str) or devices == "auto":
        return devices
    words = [word.strip() for word in devices.split(",") if word.strip()]
    if not words or not all(word.removeprefix("-").isdecimal() and len(word) < 7 for word in words):
        raise _devices(devices)
    return [int(word) for word in words] if "," in devices else int(words[0])


def _devices(devices: Any) -> ConfigurationError:
    return ConfigurationError(
        "trainer.devices must be auto, a number of at least 1, or a list of GPUs, such as [0, 2]; got "
        f"{reprlib.repr(devices)}"
    )
