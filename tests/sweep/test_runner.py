import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import psutil
import pytest

from fedgram.sweep import Point, runner
from fedgram.sweep.runner import Progress, expected_seconds, run_all
from fedgram.sweep.status import command, lock, look, stand

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
        points(tmp_path, "fail", "work", "work"), tmp_path / "runs", 1, lambda progress, ended: said.append(ended)
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
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda process: list(range(8)))
    run_all(points(tmp_path, "work"), tmp_path / "two", 2, silent)
    assert (tmp_path / "two/work-0/version_0/threads").read_text() == "4"
    run_all(points(tmp_path, "work"), tmp_path / "one", 1, silent)
    assert (tmp_path / "one/work-0/version_0/threads").read_text() == "-"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run_all(points(tmp_path, "work"), tmp_path / "set", 2, silent)
    assert (tmp_path / "set/work-0/version_0/threads").read_text() == "3"


def test_the_progress_says_what_is_done_and_how_long_the_rest_takes(tmp_path, scripted):
    seen = []

    def tell(progress, ended):
        seen.append((progress.finished, progress.failed, len(progress.waiting), len(progress.running)))
        seen.append(progress.seconds_left(0.0))

    everything = points(tmp_path, "work", "fail", "work")
    run_all(everything[:1], tmp_path / "runs", 1, silent)
    run_all(everything, tmp_path / "runs", 1, tell)
    assert seen[0] == (1, 0, 1, 1)  # the first was done before
    assert seen[-2:] == [(2, 1, 0, 0), 0]


def test_a_run_that_takes_longer_than_expected_takes_no_time_from_the_others(tmp_path):
    slow, *others = points(tmp_path, *["work"] * 10)
    progress = Progress(11, 1, running={slow.name: (slow, 0.0)}, waiting=deque(others), seconds=[({}, 10.0)], jobs=1)
    assert progress.seconds_left(100.0) == 90
    assert progress.seconds_left(4.0) == 96
    progress.jobs = 20
    assert progress.seconds_left(100.0) == 10  # no faster than the longest
    progress.seconds.clear()
    assert progress.seconds_left(100.0) is None


def test_time_left_goes_by_the_runs_that_are_most_alike():
    known = [({"task": "rte", "method": "A"}, 60.0), ({"task": "rte", "method": "B"}, 80.0), ({"task": "sst2"}, 10.0)]
    assert expected_seconds({"task": "rte", "method": "C"}, known) == 70
    assert expected_seconds({"task": "rte", "method": "B"}, known) == 80
    assert expected_seconds({"task": "qnli"}, known) == 50


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_runs_and_they_go_on_later(tmp_path, scripted, number):
    before = signal.getsignal(number)
    everything = points(tmp_path, "fail", "wait", "wait", "work")
    marker = tmp_path / "runs/wait-2/version_0/waits"

    def interrupt():
        while not marker.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    outcomes, stopped = run_all(everything, tmp_path / "runs", 2, silent)
    assert stopped == signal.Signals(number).name
    assert [(o.point.name, o.exit_code, o.has_failed) for o in outcomes] == [
        ("fail-0", 1, True), ("wait-1", -signal.SIGTERM, False), ("wait-2", -signal.SIGTERM, False)
    ]  # fmt: skip
    assert signal.getsignal(number) is before


def test_what_a_run_was_started_with_decides_whether_it_is_done(tmp_path, scripted):
    (point,) = points(tmp_path, "work")
    root = tmp_path / "runs"
    assert look(point, root).state == "new"
    run_all([point], root, 1, silent)
    assert look(point, root).state == "finished"
    assert look(point, root).summary == {"seconds": 1.5}
    point.base.write_text("# remarks\na: 1   # change nothing\n")
    assert look(point, root).state == "finished"
    point.base.write_text("a: 2\n")  # another base config is another run, in a version of its own
    assert look(point, root).state == "changed"
    assert look(point, root).first_version == 1
    run_all([point], root, 1, silent)
    assert look(point, root).folder == root / "work-0" / "version_1"


def test_the_order_of_overrides_makes_no_other_run(tmp_path, scripted):
    base = tmp_path / "base.yaml"
    base.write_text("a: 1\n")
    one, two = (
        Point({}, "run", base, dict(pairs)) for pairs in ([("what", "work"), ("x", 1)], [("x", 1), ("what", "work")])
    )
    run_all([one], tmp_path / "runs", 1, silent)
    assert look(two, tmp_path / "runs").state == "finished"


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path, scripted):
    everything, root = points(tmp_path, "work", "work"), tmp_path / "runs"
    held = lock(everything[0], root)
    assert lock(everything[0], root) is None
    assert look(everything[0], root).state == "running"
    told = []
    outcomes, _ = run_all(
        everything, root, 1, lambda progress, ended: told.append((progress.ended, progress.elsewhere))
    )
    assert [o.point.name for o in outcomes] == ["work-1"]
    assert told[-1] == (2, 1)
    held.close()
    assert look(everything[0], root).state == "new"


def test_a_run_keeps_its_lock_when_its_sweep_is_killed(tmp_path, scripted):
    (point,), root = points(tmp_path, "wait"), tmp_path / "runs"
    held = lock(point, root)
    job = runner._start(point, root, stand(point, root), held, 1)
    os.close(held.descriptor)  # as the end of a process does
    assert look(point, root).state == "running"
    job.process.kill()
    job.process.wait()
    job.log.close()
    assert look(point, root).state == "new"


def test_an_error_in_between_leaves_no_run_behind(tmp_path, scripted):
    root = tmp_path / "runs"

    def tell(progress, ended):
        while not (root / "wait-0/version_0/waits").exists():
            time.sleep(0.05)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run_all(points(tmp_path, "wait"), root, 1, tell)
    assert look(points(tmp_path, "wait")[0], root).state == "new"


def test_a_run_that_says_nothing_is_not_given_the_words_of_its_last_start(tmp_path, scripted):
    (point,), root = points(tmp_path, "wait"), tmp_path / "runs"
    (root / point.name).mkdir(parents=True)
    (root / point.name / "log.txt").write_text("fedgram: an old error\n")
    job = runner._start(point, root, stand(point, root), lock(point, root), 1)
    job.process.kill()
    assert runner._outcome(job, root).reason == "it said nothing"


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
