"""Where randomness is born.

Every random draw of a run comes from a generator made here, by hashing (seed, purpose, indices). So a draw depends on
what it is for and never on what was drawn before it, on the rank that draws, or on the order of the clients; and a
resumed run draws what the undisturbed run would have drawn, with nothing to save. No global generator is used; a
library that insists on one is called inside `isolated`, which seeds it and puts its state back.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["derive", "isolated", "numpy_generator", "torch_generator"]


def derive(seed: int, purpose: str, *indices: int) -> int:
    """Return a 63-bit seed for one purpose.

    Args:
        seed: the seed of the run.
        purpose: what the draw is for, such as ``"cohort"`` or ``"batches"``.
        indices: what tells draws of one purpose apart, such as (round, client).

    >>> derive(0, "cohort", 1) == derive(0, "cohort", 1)
    True
    >>> derive(0, "cohort", 1) == derive(1, "cohort", 1)
    False
    """
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Return a NumPy generator for draws over data: cohorts, partitions, batch order."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, *indices)))


def torch_generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """Return a torch generator on the CPU, so that tensors start equal on every kind of device."""
    return torch.Generator("cpu").manual_seed(derive(seed, purpose, *indices))


@contextmanager
def isolated(seed: int, purpose: str, *indices: int) -> Iterator[None]:
    """Seed torch's global generator of the CPU for library code that draws from it, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive(seed, purpose, *indices))
        yield
