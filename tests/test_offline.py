"""Runs on a machine without a network, after `prepare` on one with it: the real programs, and a hub of our own."""

import os
import subprocess
import sys
import time

import pytest

from fake_hub import running
from tiny_glue import SPLITS, dataset_of
from tiny_models import save_tiny

GLUE_CARD = """---
configs:
- config_name: rte
  data_files:
{files}
---
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """The hub's: a random model with its tokenizer, and a task of GLUE in parquet files."""
    root = tmp_path_factory.mktemp("hub")
    save_tiny("bert", root / "models" / "tiny" / "bert")
    glue = root / "datasets" / "nyu-mll" / "glue"
    (glue / "rte").mkdir(parents=True)
    for split, samples in SPLITS.items():
        dataset_of("rte", split, samples).to_parquet(glue / "rte" / f"{split}-00000-of-00001.parquet")
    files = "\n".join(f"  - split: {split}\n    path: rte/{split}-*" for split in SPLITS)
    (glue / "README.md").write_text(GLUE_CARD.format(files=files))
    return root


@pytest.fixture
def machine(tmp_path):
    """Runs fedgram in a process of its own, with a home and caches of its own; returns exit code, stdout and stderr."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_HOME": str(tmp_path / "hf"), "FEDGRAM_CACHE": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}
    own["PYTHONWARNINGS"] = "ignore"  # Lightning's, where it finds SLURM installed

    def run(*arguments, **environment):
        result = subprocess.run(
            [sys.executable, "-m", "fedgram", *map(str, arguments)],
            cwd=tmp_path,
            env=inherited | own | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return result.returncode, result.stdout, result.stderr

    return run


def options(*data):
    model = ["--method", "FLoRG", "--model", "TextClassification", "--model.backbone", "tiny/bert"]
    trainer = {"accelerator": "cpu", "clients": 3, "rounds": 1, "loggers": "false", "progress_bar": "false"}
    return [*model, *data, *(f"--trainer.{name}={value}" for name, value in trainer.items())]


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_what_was_prepared_runs_without_a_network(machine, repositories, tiny_data, tmp_path):
    arguments = options("--data", "TextClassificationData", "--data.path", tiny_data)
    with running(repositories) as server:
        online = {"HF_ENDPOINT": server.endpoint}
        code, out, err = machine("fit", *arguments, HF_HUB_OFFLINE="1", **online)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "fedgram: error: model.backbone: 'tiny/bert' is no folder or reachable hub model" in err
        assert f"HF_HUB_OFFLINE is set, so that it has to be in the cache {tmp_path / 'hf' / 'hub'}" in err
        assert "run fedgram prepare with the same options" in err
        assert not server.requests
        code, out, err = machine("prepare", *arguments, **online)
        assert code == 0, err
        assert any("/model.safetensors" in request for request in server.requests)
    assert str(tmp_path / "hf" / "hub" / "models--tiny--bert" / "snapshots") in out
    before = snapshot(tmp_path / "cache" / "tokens")
    code, out, err = machine("fit", *arguments, HF_HUB_OFFLINE="1", **online)
    assert code == 0, err
    assert "can't be reached" not in err
    assert (tmp_path / "runs" / "data-FLoRG" / "version_0" / "summary.json").exists()
    assert snapshot(tmp_path / "cache" / "tokens") == before


@pytest.mark.slow
def test_data_of_the_hub_is_prepared_as_well(machine, repositories, tmp_path):
    arguments = options("--data", "GLUE", "--data.task", "rte")
    with running(repositories) as server:
        online = {"HF_ENDPOINT": server.endpoint}
        small = options("--data", "TextClassificationData", "--data.path", tmp_path / "absent.csv")
        assert "absent.csv" in machine("prepare", *small, **online)[2]  # the tokenizer is in the cache now
        code, out, err = machine("fit", *arguments, HF_HUB_OFFLINE="1", **online)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "fedgram: error: cannot load the data set 'nyu-mll/glue' (rte) from the hub" in err
        assert "run fedgram prepare with the same options" in err
        code, out, err = machine("prepare", *arguments, **online)
        assert code == 0, err
    assert "rte: train 30, validation 12, test 6 samples" in out
    before = snapshot(tmp_path / "cache" / "tokens")
    # The hub is not switched off, and is not there: every file that the libraries tried would cost half a minute.
    start = time.monotonic()
    code, out, err = machine("fit", *arguments, **online)
    assert code == 0, err
    assert time.monotonic() - start < 60
    warning, unknown, started = err.splitlines()
    assert warning.startswith(f"the hub can't be reached at {online['HF_ENDPOINT']}")
    assert "tokens of the train split are unknown" in unknown  # the words of GLUE's sentences
    assert "a new run" in started
    assert snapshot(tmp_path / "cache" / "tokens") == before


@pytest.mark.slow
def test_without_network_and_cache_the_error_comes_soon(machine, tiny_data):
    arguments = options("--data", "TextClassificationData", "--data.path", tiny_data)
    start = time.monotonic()
    code, out, err = machine("fit", *arguments, HF_ENDPOINT="http://127.0.0.1:9")
    assert time.monotonic() - start < 60
    assert (code, out) == (1, "")
    warning, error = err.splitlines()
    assert warning.startswith("the hub can't be reached at http://127.0.0.1:9")
    assert error.startswith("fedgram: error: model.backbone: 'tiny/bert' is no folder or reachable hub model")
    assert "run fedgram prepare" in error
