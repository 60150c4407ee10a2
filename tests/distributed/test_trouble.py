"""Runs on several processes, as a user starts them, of which one gets into trouble."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tiny_text import write_config

SECONDS = 60
"""Within these, all ranks must have stopped."""

BUG = """
from fedgram.methods import FedIT


class Bug(FedIT):
    def start(self, server, held, payload, client, info):
        if client == 1:  # the first of the second process
            raise IndexError("a bug of mine")
        return super().start(server, held, payload, client, info)
"""


@pytest.fixture
def folder(tiny_backbone, tiny_data, tmp_path) -> Path:
    (tmp_path / "bug.py").write_text(BUG)
    write_config(tmp_path, tiny_backbone, tiny_data, clients=4, clients_per_block=1, local_steps=4, name="run")
    return tmp_path


@pytest.fixture
def start(folder):
    """Starts a fit; whatever is left of it is killed at the end."""
    started = []

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "fedgram", "fit", "--config", "config.yaml", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_round(folder, number):
    table = folder / "runs" / "run" / "version_0" / "metrics.csv"
    for _ in range(20 * SECONDS):
        if table.exists() and table.read_text().count("\n") >= number + 2:  # header and round 0
            return
        time.sleep(0.05)
    pytest.fail(f"round {number} was not reached")


def test_a_bug_on_one_rank_calls_the_others_away_from_long_work(nursery, material, tmp_path):
    """Every client has more local steps than anybody could wait for."""
    arguments = {"material": material, "root": str(tmp_path), "local_steps": 20_000}
    outcome = nursery.ranks(2, "distributed.fits:fit_with_a_bug", rank=1, **arguments)
    assert not outcome.stuck
    assert all(outcome.codes)
    assert re.search(r"rank 1, round 1, client \d: IndexError: a bug of mine", nursery.output())


@pytest.mark.slow
def test_a_bug_on_one_rank_is_the_error_of_the_program(start):
    process = start("--method=bug.Bug", "--trainer.devices=2", "--trainer.local_steps=1000000")
    output, _ = process.communicate(timeout=2 * SECONDS)
    assert process.returncode not in (0, None)
    assert "rank 1, round 1, client 1: IndexError: a bug of mine" in output


def test_a_signal_to_one_rank_stops_all(nursery, material, tmp_path):
    arguments = {"material": material, "root": str(tmp_path), "rounds": 4000}
    outcome = nursery.ranks(2, "distributed.fits:fit_until_a_signal", rank=1, **arguments)
    assert not outcome.stuck
    assert outcome.codes == [75, 75], nursery.output()


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_the_program(start, folder):
    process = start("--trainer.devices=2", "--trainer.rounds=4000")
    wait_for_round(folder, 2)
    (child,) = [c for c in psutil.Process(process.pid).children() if "fedgram" in " ".join(c.cmdline())]
    child.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 75, output
    assert output.count("fedgram: stopped: SIGUSR1 came in ") == 1
    assert "and goes on there with --ckpt_path last" in output
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_where_the_first_process_is_killed_the_others_end(start, folder):
    process = start("--trainer.devices=3", "--trainer.rounds=400")
    wait_for_round(folder, 1)
    children = [c for c in psutil.Process(process.pid).children() if "fedgram" in " ".join(c.cmdline())]
    assert len(children) == 2
    process.kill()
    _, alive = psutil.wait_procs(children, timeout=SECONDS)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
