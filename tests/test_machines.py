"""Machines that lack what Linux has: macOS, Windows, and torch without oneDNN."""

import ast
import enum
import resource
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import psutil
import pytest
import torch

import fedgram
from fedgram.backbone import frozen_linear as frozen
from fedgram.distributed.launch import choose_accelerator, without_srun_hint
from fedgram.distributed.slurm import StopSignals
from fedgram.engine import block_size as memory
from fedgram.engine.block_size import peak_megabytes
from fedgram.errors import ConfigurationError
from test_trainer import fit  # noqa: F401

CPU = torch.device("cpu")

WITHOUT_UNIX = """
import builtins, os, signal, sys

real_import = builtins.__import__


def hiding_import(name, globals=None, *arguments, **keywords):
    if name in ("fcntl", "resource", "pwd", "grp") and (globals or {}).get("__name__", "").startswith("fedgram"):
        raise ModuleNotFoundError(name)  # for fedgram's own modules: Python's for Linux need some of them
    return real_import(name, globals, *arguments, **keywords)


builtins.__import__ = hiding_import
for module in (os, signal):
    for name in ("sched_getaffinity", "killpg", "SIGUSR1", "SIGUSR2", "SIGHUP"):
        vars(module).pop(name, None)

from fedgram.cli import main

for command in sys.argv[1].split("|"):
    sys.argv = ["fedgram", *command.split(";")]
    main()
"""


def test_memory_is_counted_in_the_units_of_the_system(monkeypatch):
    class Usage:
        ru_maxrss = 5_000_000

    monkeypatch.setattr(resource, "getrusage", lambda who: Usage)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_megabytes(CPU) == 5.0
    monkeypatch.setattr(sys, "platform", "linux")
    assert peak_megabytes(CPU) == 5120.0


def test_memory_is_known_without_the_resource_module(monkeypatch):
    real = peak_megabytes(CPU)
    monkeypatch.setitem(sys.modules, "resource", None)
    resident = psutil.Process().memory_info().rss / 1e6
    assert resident / 2 < peak_megabytes(CPU) <= max(real, 2 * resident)

    class Info:
        rss, peak_wset = 1_000_000, 7_000_000

    monkeypatch.setattr(memory.psutil.Process, "memory_info", lambda process: Info)
    assert peak_megabytes(CPU) == 7.0


@pytest.mark.parametrize(("has_cuda", "expected"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_cuda_or_the_cpu_and_no_apple_gpu(monkeypatch, has_cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_accelerator("auto") == expected
    assert choose_accelerator("cpu") == "cpu"
    for asked in ["mps", *(["gpu"] if not has_cuda else [])]:
        with pytest.raises(ConfigurationError, match=rf"trainer.accelerator is {asked}: .*no float64.*use cpu or auto"):
            choose_accelerator(asked)
    if has_cuda:
        assert choose_accelerator("gpu") == "gpu"


def test_a_signal_that_the_system_lacks_is_left_out_where_nobody_asked_for_it(monkeypatch):
    class Windows:
        SIGTERM = signal.SIGTERM
        Signals = enum.IntEnum("Signals", {"SIGTERM": 15})
        signal = signal.signal

    monkeypatch.setattr("fedgram.distributed.slurm.signal", Windows)
    with StopSignals("SIGUSR1") as signals:
        assert signals.received is None
    with pytest.raises(ConfigurationError, match="preempt_signal must name a signal that can be caught"):
        StopSignals("SIGUSR2")


def test_the_hint_of_srun_is_silenced():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with without_srun_hint():
            warnings.warn("The `srun` command is available on your system but is not used. HINT", stacklevel=1)
            warnings.warn("another", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["another"]


@pytest.mark.slow
def test_fit_and_compare_where_unix_lacks(config, tmp_path):
    commands = f"fit;--config;{config};--trainer.rounds;1|compare;runs"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:fedgram", "-c", WITHOUT_UNIX, commands],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "curves: tensorboard --logdir runs" in done.stdout
    assert len(list(tmp_path.glob("runs/*/version_0/summary.json"))) == 1
    assert "srun" not in done.stderr


@pytest.mark.parametrize("precision", ["32-true", pytest.param("bf16-mixed", marks=pytest.mark.flops)])
def test_a_torch_without_onednn_runs_every_path(fit, monkeypatch, precision):  # noqa: F811
    expected, _ = fit(rounds=1, precision=precision)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    found, _ = fit(rounds=1, precision=precision)
    assert found["final"]["loss"] == pytest.approx(expected["final"]["loss"], rel=2e-2 if "bf16" in precision else 1e-4)
    assert found["client_flops"] == expected["client_flops"]


def test_a_torch_whose_onednn_lacks_the_product(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    assert torch.equal(frozen.linear(x, weight, None), torch.full((2, 4), 3.0))


@pytest.mark.parametrize("path", sorted(Path(fedgram.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_no_module_needs_a_module_of_unix_to_be_imported(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in statements for alias in node.names}
    names |= {node.module for node in statements if isinstance(node, ast.ImportFrom)}
    assert not names & {"fcntl", "grp", "pwd", "resource", "termios"}
