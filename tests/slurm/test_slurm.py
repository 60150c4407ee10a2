"""fedgram in real SLURM jobs, submitted with the scripts that are shipped."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.cluster import Cluster, obstacle
from tiny_text import sentences, write_config

SCRIPTS = Path(__file__).parents[2] / "scripts" / "slurm"
TESTS = Path(__file__).parents[1]
ROUNDS = 4
PREEMPTED = "75:0"

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster():
    reason = obstacle()
    if reason is not None:
        pytest.skip(reason)
    with Cluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def environment(cluster):
    """SLURM's, where the fedgram of these tests is on the path, and jobs find the callbacks of `slurm.hooks`."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    programs = os.pathsep.join([str(Path(sys.executable).parent), cluster.environment["PATH"]])
    return {**cluster.environment, "PATH": programs, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(scope="module")
def folder(tiny_backbone, tmp_path_factory):
    """A folder with data and a config: every round has 5 of 7 clients, in blocks of 2, 2 and 1."""
    folder = tmp_path_factory.mktemp("jobs")
    for split, count in {"train": 60, "validation": 16}.items():
        rows = zip(*sentences(count, seed=count), strict=True)
        (folder / f"{split}.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    trainer = {"rounds": ROUNDS, "clients": 7, "participation": 5, "clients_per_block": 2, "client_weights": "samples"}
    write_config(folder, tiny_backbone, folder, **trainer)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder, environment):
    """The state_hash of the run in one plain process."""
    command = ["fedgram", "fit", "--config", "config.yaml", "--trainer.name", "plain"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return summary_of(folder / "runs" / "plain" / "version_0")["state_hash"]


@pytest.fixture
def submit(cluster, folder, environment):
    """Submits a shipped script in the folder, with options for sbatch and for fedgram; returns the job's id."""

    def submit(script, name, *arguments, sbatch=(), **variables):
        fedgram = ["--config", "config.yaml", "--trainer.name", name, *arguments]
        return cluster.submit(*sbatch, str(SCRIPTS / script), *fedgram, cwd=folder, env={**environment, **variables})

    return submit


@pytest.fixture
def reached(cluster, folder):
    """Waits until the ranks of a job are in the middle of round 2, and returns the run's folder."""

    def reached(job, name, ranks=2):
        def files():
            assert cluster.job(job)["JobState"] in ("PENDING", "RUNNING"), said(folder, job)
            found = list((folder / "runs" / name).glob("*/reached-*"))
            return found if len(found) == ranks else None

        run = cluster.until(files, 180, f"{name} to be in round 2")[0].parent
        assert rounds_of(run) == [0, 1]
        return run

    return reached


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def rounds_of(run):
    with (run / "metrics.csv").open(newline="") as table:
        return [int(row["round"]) for row in csv.DictReader(table)]


def said(folder, job):
    return (folder / f"slurm-{job}.out").read_text()


@pytest.mark.parametrize(
    ("script", "options", "ranks"), [("one_node.sbatch", [], 2), ("several_nodes.sbatch", ["--ntasks-per-node=1"], 2)]
)
def test_a_job_has_the_bits_of_one_process(cluster, folder, submit, undisturbed, script, options, ranks):
    name = script.removesuffix(".sbatch")
    job = submit(script, name, sbatch=options)
    assert cluster.wait(job)["JobState"] == "COMPLETED", said(folder, job)
    summary = summary_of(folder / "runs" / name / "version_0")
    assert (summary["ranks"], summary["state_hash"]) == (ranks, undisturbed)


def test_the_early_signal_requeues_a_job_which_goes_on_by_itself(cluster, folder, submit, reached, undisturbed):
    job = submit("one_node.sbatch", "signalled", "--trainer.callbacks+=slurm.hooks.WaitForSignal")
    run = reached(job, "signalled")
    cluster.run("scancel", "--signal=USR1", job)
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), said(folder, job)
    assert rounds_of(run) == list(range(ROUNDS + 1))
    assert summary_of(run)["state_hash"] == undisturbed
    assert "goes on after round 1" in said(folder, job)
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]


def test_the_early_signal_does_not_kill_a_job_that_is_just_starting(cluster, folder, submit, undisturbed):
    job = submit("one_node.sbatch", "early", "--trainer.callbacks+=slurm.hooks.StartSlowly")
    cluster.until(lambda: len(list(folder.glob("starting-*"))) == 2, 180, "early to start")
    cluster.run("scancel", "--signal=USR1", job)
    (folder / "signalled").touch()
    assert cluster.wait(job)["JobState"] == "COMPLETED", said(folder, job)
    assert summary_of(folder / "runs" / "early" / "version_0")["state_hash"] == undisturbed


def test_a_job_that_gives_way_to_another_goes_on_after_it(cluster, folder, submit, reached, undisturbed):
    alone = ["--ntasks-per-node=1", "--exclusive"]
    job = submit("several_nodes.sbatch", "ousted", "--trainer.callbacks+=slurm.hooks.WaitForSignal", sbatch=alone)
    run = reached(job, "ousted")
    urgent = cluster.submit("--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    assert cluster.wait(urgent)["JobState"] == "COMPLETED"
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), said(folder, job)
    assert rounds_of(run) == list(range(ROUNDS + 1))
    assert summary_of(run)["state_hash"] == undisturbed


def test_a_cancelled_job_stays_away_and_can_be_resumed_by_hand(cluster, folder, submit, reached, undisturbed):
    job = submit("one_node.sbatch", "cancelled", "--trainer.callbacks+=slurm.hooks.WaitForSignal")
    run = reached(job, "cancelled")
    cluster.run("scancel", job)
    ended = cluster.wait(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    assert rounds_of(run) == [0, 1]
    again = submit("one_node.sbatch", "cancelled", "--ckpt_path=last", sbatch=["--ntasks-per-node=1"])
    assert cluster.wait(again)["JobState"] == "COMPLETED", said(folder, again)
    assert rounds_of(run) == list(range(ROUNDS + 1))
    assert summary_of(run)["state_hash"] == undisturbed


def test_one_rank_that_dies_ends_the_job(cluster, folder, submit, reached):
    job = submit("one_node.sbatch", "dying", "--trainer.callbacks+=slurm.hooks.Die")
    run = reached(job, "dying")
    ended = cluster.wait(job, 60)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), said(folder, job)
    assert not (run / "summary.json").exists()


def test_a_layout_that_is_not_the_jobs_is_one_clear_error(cluster, folder, submit):
    job = submit("one_node.sbatch", "misfit", "--trainer.devices=2", sbatch=["--ntasks-per-node=1"])
    assert cluster.wait(job)["JobState"] == "FAILED"
    output = said(folder, job)
    assert output.count("fedgram: error:") == 1
    assert "devices" in output
    assert "Traceback" not in output
    assert not (folder / "runs" / "misfit").exists()


@pytest.fixture
def sweep(folder, environment):
    """Writes a job array of two methods and two seeds, and returns its path."""
    content = {"base": "config.yaml", "grid": {"method": ["FLoRG", "FFALoRA"], "trainer.seed": [0, 1]}}
    (folder / "grid.yaml").write_text(json.dumps(content))
    command = ["fedgram", "sweep", "grid.yaml", "--trainer.callbacks+=slurm.hooks.WaitForSignal", "--slurm", "grid.sh"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder / "grid.sh"


def test_a_sweep_is_an_array_of_which_one_task_requeues_alone(cluster, folder, environment, reached, sweep):
    job = cluster.submit("--cpus-per-task=1", str(sweep), cwd=folder, env=environment)
    reached(f"{job}_2", "grid/FFALoRA-seed=0", ranks=1)
    cluster.run("scancel", "--signal=USR1", f"{job}_2")
    ended = [cluster.wait(f"{job}_{index}") for index in range(4)]
    log = (folder / "runs" / "grid" / f"slurm-{job}_2.out").read_text()
    assert [own["JobState"] for own in ended] == ["COMPLETED"] * 4, log
    assert [own["Restarts"] for own in ended] == ["0", "0", "1", "0"]
    runs = {path.name: path / "version_0" for path in (folder / "runs" / "grid").iterdir() if path.is_dir()}
    assert sorted(runs) == ["FFALoRA-seed=0", "FFALoRA-seed=1", "FLoRG-seed=0", "FLoRG-seed=1"]
    assert all(rounds_of(run) == list(range(ROUNDS + 1)) for run in runs.values())
    again = ["fedgram", "sweep", "grid.yaml", "--trainer.callbacks+=slurm.hooks.WaitForSignal", "--slurm", "grid.sh"]
    result = subprocess.run(again, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert "all 4 runs are finished" in result.stderr


def test_fits_of_several_ranks_run_side_by_side_in_one_job(cluster, folder, environment):
    fit = "srun --exact -K --ntasks=2 fedgram fit --config config.yaml --trainer.name steps --trainer.seed"
    script = f"for seed in 0 1; do {fit} $seed & done; wait"
    options = ["--nodes=1", "--ntasks=4", "--output=slurm-%j.out"]
    job = cluster.submit(*options, "--wrap", script, cwd=folder, env=environment)
    assert cluster.wait(job)["JobState"] == "COMPLETED", said(folder, job)
    runs = [summary_of(run) for run in (folder / "runs" / "steps").iterdir()]
    assert sorted((run["settings"]["trainer.seed"], run["ranks"]) for run in runs) == [(0, 2), (1, 2)]


def test_srun_in_an_interactive_job_is_one_run(cluster, folder, environment):
    fit = ["srun", "-K", "fedgram", "fit", "--config", "config.yaml", "--trainer.name", "interactive"]
    cluster.run("salloc", "--ntasks=2", *fit, cwd=folder, env=environment)
    (run,) = (folder / "runs" / "interactive").iterdir()
    assert summary_of(run)["ranks"] == 2
