"""``fedgram sweep`` as a user calls it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedgram.cli import main
from fedgram.cli.lightning import cost_of
from fedgram.cli.sweep import main as sweep
from fedgram.cost.tables import short
from fedgram.errors import ConfigurationError
from tiny_text import write_config

SECONDS = 300


@pytest.fixture
def folder(tiny_backbone, tiny_data, tmp_path, monkeypatch) -> Path:
    write_config(tmp_path, tiny_backbone, tiny_data, rounds=1, clients=3, clients_per_block=1)
    grid = {
        "method": {"FLoRG": {}, "FedIT": {"method": "FedIT"}, "wrong": {"method.rank": 999}},
        "trainer.seed": [0, 1],
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"base": "config.yaml", "grid": grid}, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_sweep_trains_what_can_be_trained_and_reports_the_rest(folder, capsys):
    chosen = ["--only", "method=FLoRG,wrong", "--only", "trainer.seed=0"]
    with pytest.raises(SystemExit, match="1"):
        sweep(["grid.yaml", "--jobs", "2", *chosen, "--trainer.local_steps=1"])
    printed = capsys.readouterr().out
    assert "grid: 2 runs in runs/grid" in printed
    assert "FLoRG-seed=0: done" in printed
    assert "wrong-seed=0: failed with exit code" in printed
    assert "failed: wrong-seed=0 (runs/grid/wrong-seed=0/log.txt): fedgram: " in printed
    assert "got 999" in printed
    summaries = {path.parts[-3]: json.loads(path.read_text()) for path in folder.glob("runs/*/*/*/summary.json")}
    assert {name: summary["method"] for name, summary in summaries.items()} == {"FLoRG-seed=0": "FLoRG"}
    assert all(summary["settings"]["trainer.local_steps"] == 1 for summary in summaries.values())

    sweep(["grid.yaml", "--only", "method=FLoRG", "--only", "trainer.seed=0"])  # without local_steps it is another run
    assert "1 of them have changed since they ran, and are run anew: FLoRG-seed=0" in capsys.readouterr().out
    assert (folder / "runs/grid/FLoRG-seed=0/version_1/summary.json").exists()
    sweep(["grid.yaml", "--only", "method=FLoRG", "--dry_run"])
    listed = capsys.readouterr().out
    assert rows(listed)["FLoRG-seed=0"][0] == "finished"
    assert rows(listed)["FLoRG-seed=1"][0] == "new"


def rows(listed: str) -> dict[str, list[str]]:
    """Return what stands behind each run's name in a list of runs."""
    found = [line.split() for line in listed.split("\n") if line[:3].strip().isdigit()]
    return {name: rest for _, name, *rest in found}


def test_a_dry_run_tells_what_every_run_costs(folder, capsys):
    setting = ["--trainer.local_steps", "2"]
    sweep(["grid.yaml", "--dry_run", *setting])
    listed = capsys.readouterr().out
    costs = [cost_of(["--config", "config.yaml", "--method", name, *setting]).costs[0] for name in ("FLoRG", "FedIT")]
    for cost in costs:
        for seed in (0, 1):
            told = [short(cost.all_up.bytes, "B"), short(cost.all_down.bytes, "B"), short(cost.round_flops)]
            assert " ".join(rows(listed)[f"{cost.method}-seed={seed}"]).startswith(" ".join(["new", *told]))
    sums = [2 * sum(figures) for figures in zip(*((c.all_up.bytes, c.all_down.bytes) for c in costs), strict=True)]
    assert f"what is left: {short(sums[0], 'B')} up, {short(sums[1], 'B')} down" in listed
    assert "and 2 runs of which it can't be told" in listed
    assert rows(listed)["wrong-seed=0"] == ["new", *"----"]
    assert "\nwrong-seed=0: method.rank must be at most" in listed


def test_the_array_has_a_task_for_every_run_that_is_left(folder, capsys):
    done = folder / "runs/grid/FedIT-seed=0/version_0"
    sweep(["grid.yaml", "--print_command", "2"])
    assert "--trainer.name FedIT-seed=0" in capsys.readouterr().out
    (done / "checkpoints").mkdir(parents=True)
    (done / "summary.json").write_text('{"seconds": 1}')
    sweep(["grid.yaml", "--slurm", "./out//array.sbatch", "--trainer.rounds", "2"])
    assert "6 runs: sbatch out/array.sbatch" in capsys.readouterr().out  # with two rounds it is another sweep
    sweep(["grid.yaml", "--slurm", "out/array.sbatch"])
    assert "5 runs: sbatch out/array.sbatch" in capsys.readouterr().out
    script = (folder / "out/array.sbatch").read_text()
    (words,) = [line for line in script.split("\n") if line.startswith("command=")]
    asked = words.removeprefix("command=$(").replace('"$SLURM_ARRAY_TASK_ID") || exit 1', "1")
    told = subprocess.run(shlex.split(asked), cwd=folder, capture_output=True, text=True, check=True, timeout=SECONDS)
    assert "--trainer.name FLoRG-seed=1" in told.stdout
    assert "#SBATCH --array=0-1,3-5" in script
    assert "sweep grid.yaml --default_root_dir runs --print_command" in script
    subprocess.run(["bash", "-n", "out/array.sbatch"], cwd=folder, check=True)
    sweep(["grid.yaml", "--print_command", "2"])
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigurationError, match="runs are 0 to 5"):
        sweep(["grid.yaml", "--print_command", "6"])


def test_an_array_of_nothing_is_refused(folder, capsys):
    sweep(["grid.yaml", "--only", "method=FedIT", "--only", "trainer.seed=1", "--print_command", "0"])
    done = folder / "runs/grid/FedIT-seed=1/version_0"
    done.mkdir(parents=True)
    (done / "summary.json").write_text('{"seconds": 1}')
    with pytest.raises(ConfigurationError, match="all 1 runs are finished"):
        sweep(["grid.yaml", "--only", "method=FedIT", "--only", "trainer.seed=1", "--slurm", "a.sbatch"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "there is no sweep 'nowhere.yaml'"),
        ([], "file must be given; see fedgram sweep --help"),
        (["grid.yaml", "--jobs", "0"], "expected a number of at least 1, got 0"),
        (["grid.yaml", "--small"], "no part `small`"),
        (["grid.yaml", "--only", "FedIT"], "expected an axis and labels"),
        (["grid.yaml", "--trainer.rounds"], "expected an option of fit with its value"),
        (["grid.yaml", "trainer.rounds", "5"], "expected an option of fit with its value"),
    ],
)
def test_what_can_not_be_understood_is_one_line(folder, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["fedgram", "sweep", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
