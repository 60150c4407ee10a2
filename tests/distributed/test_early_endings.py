"""Runs on two processes, as a user starts them, which a callback ends early."""

import json
import subprocess
import sys

import pytest

from tiny_text import write_config

pytestmark = pytest.mark.slow

ONE_ASKS = """
from fedgram.callbacks import Callback


class OneAsks(Callback):
    def __init__(self, process: int):
        self.process = process

    def on_round_end(self, trainer, row):
        if trainer.fabric.global_rank == self.process and row["round"] == 2:
            trainer.should_stop = True
"""


@pytest.mark.parametrize("process", [None, 1])
def test_two_processes_end_together_with_the_bits_of_one(tiny_backbone, tiny_data, tmp_path, process):
    """After round 2, which is none to evaluate; by EarlyStopping, or where one process alone asks for it."""
    (tmp_path / "asking.py").write_text(ONE_ASKS)
    write_config(tmp_path, tiny_backbone, tiny_data, clients=4, clients_per_block=1, local_steps=2, threads=1)
    found = []
    for processes in (1, 2):
        asks = f"asking.OneAsks, init_args: {{process: {0 if processes == 1 else process}}}"
        stops = "EarlyStopping, init_args: {monitor: train_loss, min_delta: 100, patience: 1}"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "fedgram", "fit", "--config", "config.yaml", "--trainer.rounds", "6"),
                *(
                    "--trainer.evaluate_every",
                    "3",
                    "--trainer.devices",
                    str(processes),
                    "--trainer.name",
                    f"on{processes}",
                ),
                f"--trainer.callbacks=[{{class_path: {stops if process is None else asks}}}]",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (summary,) = (json.loads(path.read_text()) for path in tmp_path.glob(f"runs/on{processes}/*/summary.json"))
        found.append({key: summary[key] for key in ("rounds", "stopped", "state_hash", "final")})
    assert found[0] == found[1]
    assert found[0]["rounds"] == 2
    assert ("EarlyStopping" if process is None else "should_stop") in found[0]["stopped"]
