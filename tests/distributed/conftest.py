import fcntl
import os
from contextlib import contextmanager

import pytest

from distributed.nursery import Nursery
from tiny_squad import write_squad


@pytest.fixture(scope="session")
def nursery(tmp_path_factory):
    """Runs jobs on any number of ranks."""
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def material(tiny_backbone, tiny_sentences, tmp_path_factory):
    """The folders that a fit needs; none of them is changed by it."""
    folder = tmp_path_factory.mktemp("material")
    return {
        "backbone": tiny_backbone,
        "sentences": str(tiny_sentences),
        "questions": str(write_squad(folder / "questions")),
        "cache": str(folder / "cache"),
    }


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Makes what is the same in all workers of a test run in one of them: ``with once(name) as (folder, is_there)``."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    @contextmanager
    def turn(name):
        folder, done = base / name, base / f"{name}.done"
        with (base / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            folder.mkdir(exist_ok=True)
            yield folder, done.exists()
            done.touch()

    return turn
