import json
import sys
import time

import numpy as np
import psutil
import pytest

import against_peers
from against_peers import CONTESTANTS, RunFailedError
from tiny_models import save_tiny

COMMON = """
import argparse, json
import numpy as np

def lengths(n):
    return np.full(n, 9)

def parser(name):
    p = argparse.ArgumentParser(name)
    for key in ("model", "padding", "dump-state", "peers", "precision"):
        p.add_argument("--" + key, default="")
    for key in ("clients", "rounds", "local-steps", "batch-size", "threads", "procs", "actors", "block"):
        p.add_argument("--" + key, type=int, default=0)
    p.add_argument("--mem-interval", default=2.0)
    return p

def main(seconds, value):
    a = parser("").parse_args()
    print("some", "words")
    if a.dump_state:
        np.savez(a.dump_state, weight=np.array([0.0, value]))
    seconds = seconds * (2 if a.padding == "max" else 1)
    busy = [0.0, 0.5] if seconds < 100 else [0.5, 0.5]
    line = {"peer": "some", "seconds_per_round": [seconds, 100.0], "peak_mb": 1500.0, "first_round_s": 7.25}
    print(json.dumps({**line, "other_cpu_per_round": busy}))
"""
PEER = "import common; common.main({seconds}, {value})"
OURS = "import sys; sys.path.insert(0, sys.argv[sys.argv.index('--peers') + 1]); " + PEER


@pytest.fixture
def peers(tmp_path, monkeypatch):
    """A folder of peers that only say how fast they are; pfl-research and Flower are not installed."""
    folder = tmp_path / "peers"
    folder.mkdir()
    (folder / "common.py").write_text(COMMON)
    (folder / "peft_loop.py").write_text(PEER.format(seconds=4.0, value=1.0))
    (folder / "pfl_sim.py").write_text("import sys; print('no memory'); sys.exit(1)")
    (tmp_path / "own.py").write_text(OURS.format(seconds=1.0, value=1.5))
    monkeypatch.setattr(against_peers, "FEDGRAM", tmp_path / "own.py")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "common", raising=False)
    install(tmp_path, "venv-peft")
    yield folder
    sys.modules.pop("common", None)


def install(folder, name):
    bin_ = folder / name / "bin"
    bin_.mkdir(parents=True)
    # A symbolic link would not find the packages.
    (bin_ / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bin_ / "python").chmod(0o755)


def words(peers, *more):
    model = save_tiny("bert", peers.parent / "model")
    return ["--peers", str(peers), "--model", str(model), "--threads", "1", "--clients", "2", *more]


def named(key):
    return next(c for c in CONTESTANTS if c.key == key)


def arguments(peers, *more):
    return against_peers.parse(["--peers", str(peers), "--model", "model", *more])


@pytest.fixture
def quick(monkeypatch):
    figures = {"gflop_per_step": 8.0, "float32_gflops": 160.0, "float32": 20.0, "bfloat16_gflops": 400.0}
    figures |= {"float32_linear_gflops": 80.0, "bfloat16_linear_gflops": 390.0}
    monkeypatch.setattr(against_peers, "measured_limit", lambda arguments: {**figures, "bfloat16": 50.0})


@pytest.mark.usefixtures("quick")
def test_the_tables_tell_who_is_how_fast_and_who_is_not_there(peers, tmp_path, capsys):
    target = tmp_path / "figures.json"
    only = ["--only", "peft", "flower2", "auto", "bf16"]
    against_peers.main(words(peers, "--passes", "2", *only, "--json", str(target)))
    shown = capsys.readouterr().out
    assert "| PEFT, plain loop | 5.0 | 4.0 | 1.00 | 25 % | 1,500 | 7.2 |" in shown
    assert "| **fedgram**, float32 | 20.0 | 1.0 | 4.00 | 100 % | 1,500 | 7.2 |" in shown
    assert "| **fedgram**, `bf16-true` | 20.0 | 1.0 | 4.00 | 40 % | 1,500 | 7.2 |" in shown
    assert "| PEFT, plain loop | 2.5 | 8.0 | 1.00 | 12 % | 1,500 | 7.2 |" in shown  # padded to 128
    assert "| **fedgram**, float32 | 20.0 | 1.0 | 8.00 | 100 % | 1,500 | 7.2 |" in shown
    assert "| **fedgram**, float32 | 5e-01 | 2e-01 |" in shown
    assert "Not installed here: Flower, 2 actors." in shown
    assert "left out are 8 rounds" in shown
    runs = json.loads(target.read_text())["against_peers"]["runs"]
    dynamic = [r["contestant"] for r in runs if r["padding"] == "dynamic"]
    assert dynamic == ["peft", "auto", "bf16", "auto", "bf16", "peft"]  # the second pass begins with another
    assert [r["contestant"] for r in runs if r["padding"] == "max"] == ["peft", "peft"]


@pytest.mark.usefixtures("quick")
def test_a_peer_that_fails_is_named_and_the_others_go_on(peers, tmp_path, capsys):
    install(tmp_path, "venv-pfl")
    against_peers.main(words(peers, "--passes", "1", "--padding", "dynamic", "--only", "pfl2", "auto", "--no-check"))
    shown = capsys.readouterr().out
    assert "pfl-research, 2 processes: no line of figures, but: no memory" in shown
    assert "Failed: pfl-research, 2 processes." in shown
    assert "| **fedgram**, float32 | 20.0 | 1.0 | - |" in shown


@pytest.mark.usefixtures("quick")
def test_passes_end_in_time(peers, tmp_path, monkeypatch, capsys):
    clock = iter(range(0, 10_000, 25))  # by it a pass takes 50 s; the fourth would begin at 300
    monkeypatch.setattr(against_peers.time, "monotonic", lambda: next(clock))
    target = tmp_path / "figures.json"
    only = ["--only", "peft", "--no-check", "--json", str(target)]
    against_peers.main(words(peers, "--passes", "9", "--minutes", "5", "--padding", "dynamic", *only))
    assert "interleaved passes: 3;" in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_a_run_that_would_go_past_the_end_is_cut_and_what_was_measured_is_shown(peers, capsys):
    (peers / "peft_loop.py").write_text("import time; time.sleep(60)")
    start = time.monotonic()
    only = ["--only", "peft", "auto", "--no-check"]
    against_peers.main(words(peers, "--passes", "2", "--minutes", "0.05", "--padding", "dynamic", *only))
    assert time.monotonic() - start < 30
    shown = capsys.readouterr().out
    assert "PEFT, plain loop: no end within 3 s" in shown
    assert "Failed: PEFT, plain loop." in shown


@pytest.mark.usefixtures("quick")
def test_what_was_measured_before_a_signal_is_shown(peers, capsys, monkeypatch):
    measure = against_peers.run

    def run(contestant, *rest):
        if contestant.key == "auto":
            raise SystemExit(143)  # as the handler of SIGTERM does
        return measure(contestant, *rest)

    monkeypatch.setattr(against_peers, "run", run)
    with pytest.raises(SystemExit, match="143"):
        against_peers.main(words(peers, "--padding", "dynamic", "--only", "peft", "auto", "--no-check"))
    assert "| PEFT, plain loop | 5.0 | 4.0 | 1.00 | 25 % | 1,500 | 7.2 |" in capsys.readouterr().out


def test_a_run_without_a_quiet_round_is_repeated(peers, monkeypatch):
    (peers / "peft_loop.py").write_text(PEER.format(seconds=100.0, value=1.0))
    given = arguments(peers, "--retries", "2")
    runs = list(against_peers.repeated(named("peft"), given, "dynamic", 0, float("inf")))
    assert [r["attempt"] for r in runs] == [0, 1, 2]
    assert against_peers.summarise(runs, "dynamic", "dynamic", 10) == {}
    assert "PEFT, plain loop" in against_peers.missing(runs)["Without a round that counts, as others used the machine"]


def test_a_peer_does_not_see_the_modules_of_fedgram_nor_a_number_of_threads(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "here")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert not {"PYTHONPATH", "OMP_NUM_THREADS"} & against_peers.environment(named("peft")).keys()
    assert against_peers.environment(named("auto"))["PYTHONPATH"] == "here"
    assert "OMP_NUM_THREADS" not in against_peers.environment(named("auto"))


def test_a_run_that_does_not_end_is_ended_with_its_children(tmp_path):
    script = tmp_path / "hangs.sh"
    pids = tmp_path / "pids"
    script.write_text(f"sleep 60 & echo $! > {pids}; sleep 60")
    with pytest.raises(RunFailedError, match="no end within 1 s"):
        against_peers.run(named("peft"), ["sh", str(script)], seconds=1)
    assert ends(int(pids.read_text()), within=30)


def ends(pid, within):
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_results_are_compared_tensor_by_tensor(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3), y=np.ones(1))
    np.savez(tmp_path / "b.npz", x=np.array([0.0, -0.5, 0.0]), y=np.ones(1, np.float32))
    np.savez(tmp_path / "c.npz", x=np.zeros(3))
    assert against_peers.difference(tmp_path / "a.npz", tmp_path / "b.npz") == {"max": 0.5, "mean": 0.125}
    with pytest.raises(ValueError, match="is it the same workload"):
        against_peers.difference(tmp_path / "a.npz", tmp_path / "c.npz")


def test_the_speed_against_the_best_peer_is_paired_by_pass():
    summary = {
        "peft": {"seconds": 3.0, "by_pass": {0: 3.0, 1: 30.0, 2: 3.0}},
        "peft2": {"seconds": 9.0, "by_pass": {0: 1.0, 1: 9.0, 2: 9.0}},
        "auto": {"seconds": 1.0, "by_pass": {0: 1.0, 1: 15.0, 3: 9.0}},
    }
    assert against_peers.best_peer(summary) == "peft"
    assert against_peers.against(summary, "auto", "peft") == 2.5
