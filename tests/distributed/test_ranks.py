"""Whole runs on several processes over gloo, started as a user starts them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def fit(folder: Path, name: str, *arguments: str) -> dict:
    command = [sys.executable, "-m", "fedgram", "fit", "--config", "config.yaml", f"--trainer.name={name}", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "runs" / name / "version_0" / "summary.json").read_text())


@pytest.fixture
def folder(tiny_backbone, tiny_data, tmp_path) -> Path:
    (tmp_path / "config.yaml").write_text(
        f"""
method: {{class_path: FLoRG, init_args: {{rank: 2}}}}
model: {{class_path: TextClassification, init_args: {{backbone: {tiny_backbone}}}}}
data:
  class_path: TextClassificationData
  init_args:
    path: {tiny_data}
    batch_size: 3
    cache_dir: {tmp_path / "cache"}
    partition: {{class_path: Dirichlet, init_args: {{rho: 0.5}}}}
trainer:
  {{rounds: 2, clients: 7, participation: 5, clients_per_block: 2, client_weights: samples, threads: 1,
    accelerator: cpu, loggers: false, evaluate_every: 2}}
"""
    )
    return tmp_path


@pytest.mark.parametrize(
    "method",
    [
        ["--method.solver=polar"],
        ["--method.solver=eigh"],
        ["--method=FedIT"],
        ["--method=FeDeRA"],
        ["--method=FeDeRA", "--method.when=round"],
        ["--method=FFALoRA"],
        ["--method=FedExLoRA", "--method.residual=factored"],
    ],
)
def test_the_same_bits_on_one_and_three_ranks(folder, method):
    """Three blocks of 2, 2 and 1 clients of unequal sizes; three ranks show rounding that two would hide."""
    one, three = fit(folder, "one", *method), fit(folder, "three", *method, "--trainer.devices=3")
    assert (one["ranks"], three["ranks"]) == (1, 3)
    for key in ("state_hash", "final", "best", "bytes_up", "bytes_down", "parameters_up"):
        assert one[key] == three[key], key
    assert three["collective_bytes_of_rank_0"] > 0 == one["collective_bytes_of_rank_0"]
    tables = [(folder / "runs" / run / "version_0" / "communication.csv").read_text() for run in ("one", "three")]
    assert tables[0] == tables[1]


def test_a_run_goes_on_with_other_ranks(folder):
    whole = fit(folder, "whole", "--trainer.rounds=4")
    fit(folder, "parts", "--trainer.devices=2")
    parts = fit(folder, "parts", "--trainer.rounds=4", "--ckpt_path=last")
    assert parts["state_hash"] == whole["state_hash"]


def test_an_error_of_one_rank_stops_all_with_its_message(folder):
    command = [
        sys.executable,
        "-m",
        "fedgram",
        "fit",
        "--config",
        "config.yaml",
        "--trainer.devices=2",
        "--data.text=no",
    ]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode != 0
    assert "no column 'no'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "runs").exists()


def test_threads_are_those_of_each_rank(folder):
    assert fit(folder, "two", "--trainer.devices=2", "--trainer.threads=2")["settings"]["trainer.threads"] == 2
