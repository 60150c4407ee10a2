import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import gpu

QUICK = ["--quick", "--passes", "1"]


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def federation(without_gpu, tmp_path):
    return gpu.build(gpu.parse(QUICK), "32-true", ragged=True, folder=tmp_path)


@pytest.mark.slow
def test_a_try_runs_on_a_cpu_and_prints_its_table_last(without_gpu, tmp_path, capsys):
    saved, document = tmp_path / "figures.json", tmp_path / "page.md"
    document.write_text("<!-- gpu:begin -->\n<!-- gpu:end -->\n")
    gpu.main([*QUICK, "--json", str(saved), "--write", str(document)])
    shown = capsys.readouterr().out
    assert shown.startswith("no GPU: a tiny run on the CPU")
    assert shown.rstrip().endswith("ms.")
    figures = json.loads(saved.read_text())["gpu"]
    cases = [name for name in figures if name != "florg_seconds"]
    assert len(cases) == 3
    for name in cases:
        assert {"sequential loop", "blocks of 4"} <= set(figures[name]["training"])
        assert figures[name]["client_steps"] == 8
        assert shown.count(f"| {name} | sequential loop |") == document.read_text().count(f"| {name} | sequential") == 1
        assert figures[name]["gap"] < 1e-2 * figures[name]["moved"]
    assert figures["float32, one length"]["gap"] < 1e-5


def test_without_a_gpu_it_says_so(without_gpu):
    with pytest.raises(gpu.NoGpuError, match=r"no GPU: this benchmark needs one.*--quick"):
        gpu.main([])


def test_the_operations_are_those_that_are_done(federation, monkeypatch):
    """Of one sequence, in the loop's model, with torch's own products, also in attention, which its counter sees."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    loop = gpu.Loop(federation)
    network = loop.task.loaded()
    network.set_attn_implementation("eager")
    table, config = federation.data.split("train"), network.config
    for row in (0, 3):
        batch = table.batch(np.array([row]), 1)
        labels = batch.pop("labels")
        with FlopCounterMode(display=False) as counter:
            loop.task.sample_losses(loop.task.outputs(batch), labels).mean().backward()
        d = config.hidden_size
        head = 3 * 2 * (d * d + 2 * d)  # of one token: forward, and for the gradients of inputs and weights
        counted = gpu.operations(config, table.lengths[[row]], gpu.RANK) + head
        assert counter.get_total_flops() == pytest.approx(counted, rel=1e-9)


def test_blocks_of_any_size_and_the_loop_train_the_same(federation):
    loop, start, ends = gpu.Loop(federation), federation.state, []
    for size in (1, 3, 4):
        federation.state = start
        federation.aggregate(gpu.train_blocks(federation, size))
        ends.append(federation.state)
    mean = loop.train()
    assert all(gpu.gap(mean, end) < 1e-6 for end in ends)
    assert gpu.gap(mean, start) > 1e-3
    assert gpu.gap(loop.train(), ends[0]) < 1e-6  # it starts anew each time


def test_times_are_read_when_the_device_is_done(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("wait"))
    seconds = []
    with gpu.timed(torch.device("cuda", 0), seconds):
        calls.append("work")
    assert calls == ["wait", "work", "wait"]
    assert len(seconds) == 1


def test_memory_is_what_is_taken_beside_what_was_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000)
    measured = gpu.Measured()
    with gpu.memory_of(torch.device("cuda", 0), measured):
        pass
    assert measured.peak == 300
    with gpu.memory_of(torch.device("cpu"), gpu.Measured()) as nothing:
        assert nothing is None


def test_ratios_and_shares_are_those_of_the_seconds():
    training = {gpu.LOOP: {"seconds": [8.0, 4.0, 6.0], "peak": 0}, "blocks of 5": {"seconds": [2, 1, 1], "peak": 3e9}}
    figures = {"training": training, "client_steps": 100, "operations": 6e12, "rate": 12e12, "auto": 5}
    loop, block = gpu.rows_of("bfloat16", figures)
    assert loop == ["bfloat16", "sequential loop", "16.7", "1.00", "8 %", "-"]
    assert block == ["bfloat16", "blocks of 5 (auto)", "100.0", "4.00", "50 %", "3.0"]
