import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fedgram.sweep import Point, runner
from fedgram.sweep.runner import expected_seconds, run_all
from fedgram.sweep.standing import command, look

RUN = """
import json, os, sys, time
from pathlib import Path
folder, what = Path(sys.argv[1]), sys.argv[2]
folder.mkdir(parents=True, exist_ok=True)
(folder / "threads").write_text(os.environ.get("OMP_NUM_THREADS", "-"))
if what == "fail":
    sys.exit("fedgram: training: client 3 diverged")
if what == "wait":
    (folder / "waits").touch()
    time.sleep(60)
(folder / "summary.json").write_text(json.dumps({"seconds": 1.5}))
"""


def points(folder: Path, *whats: str) -> list[Point]:
    base = folder / "base.yaml"
    base.write_text("a: 1\n")
    return [Point({"what": what}, f"{what}-{n}", base, {"what": what}) for n, what in enumerate(whats)]


@pytest.fixture
def scripted(monkeypatch):
    """Have runs be a script that does what their point says."""

    def build(point, root, standing):
        folder = root / point.name / f"version_{standing.first_version}"
        return [sys.executable, "-c", RUN, str(folder), point.overrides["what"]]

    monkeypatch.setattr(runner, "command", build)


def silent(*_: object) -> None:
    pass


def test_a_failed_run_does_not_stop_the_others_and_says_why(tmp_path, scripted):
    said = []
    outcomes, stopped = run_all(
        points(tmp_path, "fail", "work", "work"), tmp_path / "runs", 1, lambda p, left, ended: said.append(ended)
    )
    assert stopped is None
    assert {o.point.name: o.exit_code for o in outcomes} == {"fail-0": 1, "work-1": 0, "work-2": 0}
    assert outcomes[0].reason == "fedgram: training: client 3 diverged"
    assert [ended.point.name for ended in said if ended] == ["fail-0", "work-1", "work-2"]


def test_a_second_call_runs_what_is_left_alone(tmp_path, scripted):
    everything = points(tmp_path, "fail", "work")
    run_all(everything, tmp_path / "runs", 2, silent)
    outcomes, _ = run_all(everything, tmp_path / "runs", 2, silent)
    assert [o.point.name for o in outcomes] == ["fail-0"]


def test_runs_at_a_time_share_the_cores_unless_threads_are_set(tmp_path, scripted, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    run_all(points(tmp_path, "work"), tmp_path / "two", 2, silent)
    assert (tmp_path / "two/work-0/version_0/threads").read_text() == "4"
    run_all(points(tmp_path, "work"), tmp_path / "one", 1, silent)
    assert (tmp_path / "one/work-0/version_0/threads").read_text() == "-"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run_all(points(tmp_path, "work"), tmp_path / "set", 2, silent)
    assert (tmp_path / "set/work-0/version_0/threads").read_text() == "3"


def test_the_progress_says_what_is_done_and_how_long_the_rest_takes(tmp_path, scripted):
    seen = []

    def tell(progress, left, ended):
        seen.append((progress.finished, progress.failed, len(left), progress.seconds_left(left)))

    everything = points(tmp_path, "work", "fail", "work")
    run_all(everything[:1], tmp_path / "runs", 1, silent)
    run_all(everything, tmp_path / "runs", 1, tell)
    assert seen[0][:3] == (1, 0, 2)  # the first was done before
    assert seen[0][3] == pytest.approx(2 * 1.5)  # as long as that one took, by its summary
    assert seen[-1] == (2, 1, 0, 0)


def test_time_left_goes_by_the_runs_that_are_most_alike():
    known = [({"task": "rte", "method": "A"}, 60.0), ({"task": "rte", "method": "B"}, 80.0), ({"task": "sst2"}, 10.0)]
    assert expected_seconds({"task": "rte", "method": "C"}, known) == 70
    assert expected_seconds({"task": "rte", "method": "B"}, known) == 80
    assert expected_seconds({"task": "qnli"}, known) == 50


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_runs_and_they_go_on_later(tmp_path, scripted, number):
    everything = points(tmp_path, "wait", "work")
    marker = tmp_path / "runs/wait-0/version_0/waits"

    def interrupt():
        while not marker.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    outcomes, stopped = run_all(everything, tmp_path / "runs", 1, silent)
    assert stopped == signal.Signals(number).name
    assert [(o.point.name, o.exit_code) for o in outcomes] == [("wait-0", -signal.SIGTERM)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_a_run_was_started_with_decides_whether_it_is_done(tmp_path, scripted):
    (point,) = points(tmp_path, "work")
    root = tmp_path / "runs"
    assert look(point, root).state == "new"
    run_all([point], root, 1, silent)
    assert look(point, root).state == "finished"
    assert look(point, root).summary == {"seconds": 1.5}
    point.base.write_text("a: 2\n")  # another base config is another run, in a version of its own
    assert look(point, root).state == "changed"
    assert look(point, root).first_version == 1
    run_all([point], root, 1, silent)
    assert look(point, root).folder == root / "work-0" / "version_1"


def test_a_run_that_was_cut_off_goes_on_with_its_own_checkpoint(tmp_path, scripted):
    (point,) = points(tmp_path, "fail")
    root = tmp_path / "runs"
    run_all([point], root, 1, silent)
    assert look(point, root).state == "new"  # there is no checkpoint to go on from
    assert "--ckpt_path" not in command(point, root, look(point, root))
    folder = root / "fail-0" / "version_0"
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "round_000001.safetensors").touch()
    standing = look(point, root)
    assert standing.state == "cut off"
    assert command(point, root, standing)[-2:] == ["--ckpt_path", str(folder)]
    (folder / "summary.json").write_text(json.dumps({"seconds": 2.0}))
    assert look(point, root).state == "finished"


def test_a_command_is_one_that_a_shell_can_run(tmp_path):
    (point,) = points(tmp_path, "work")
    line = command(point, tmp_path / "runs", look(point, tmp_path / "runs"))
    assert line[1:4] == ["-m", "fedgram", "fit"]
    assert line[-4:] == ["--trainer.default_root_dir", str(tmp_path / "runs"), "--trainer.name", "work-0"]
    assert subprocess.run([*line[:3], "--version"], capture_output=True, check=True, timeout=60).returncode == 0
