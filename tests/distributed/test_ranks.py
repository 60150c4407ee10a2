"""Whole runs on several processes over gloo, started as a user starts them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_text import write_config

SECONDS = 300
"""Far more than it takes: ranks that wait for each other for ever must not hang the tests."""
FEDGRAM = ("-m", "fedgram", "fit", "--config", "config.yaml")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2")


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=SECONDS)


def fit(folder: Path, name: str, *arguments: str, launcher: tuple[str, ...] = ()) -> dict:
    result = python(folder, *launcher, *FEDGRAM, f"--trainer.name={name}", *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "runs" / name / "version_0" / "summary.json").read_text())


@pytest.fixture
def folder(tiny_backbone, tiny_data, tmp_path) -> Path:
    trainer = {"rounds": 4, "clients": 7, "participation": 5, "clients_per_block": 2, "client_weights": "samples"}
    write_config(tmp_path, tiny_backbone, tiny_data, **trainer, evaluate_every=2)
    return tmp_path


@pytest.mark.slow
def test_a_run_is_the_same_whoever_starts_its_ranks_and_however_many(folder):
    whole = fit(folder, "whole")
    begun = fit(folder, "parts", "--trainer.rounds=2", launcher=TORCHRUN)
    parts = fit(folder, "parts", "--ckpt_path=last", "--trainer.devices=2")
    assert [summary["ranks"] for summary in (whole, begun, parts)] == [1, 2, 2]
    assert parts["state_hash"] == whole["state_hash"]
    assert parts["final"] == whole["final"]


@pytest.mark.slow
def test_an_error_of_one_rank_stops_all_with_its_message(folder):
    result = python(folder, *FEDGRAM, "--trainer.devices=2", "--data.text=no")
    assert result.returncode != 0
    assert "no column 'no'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "runs").exists()
