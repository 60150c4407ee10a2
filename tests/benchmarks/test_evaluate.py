import json
from dataclasses import replace

import pytest
import torch

import evaluate
from fedgram.state import map_layers

COMMON = ["--samples", "40", "--longest", "40", "--passes", "2", "--batch-size", "7"]


@pytest.fixture
def threads():
    """The benchmark sets threads of its own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("<!-- evaluate:begin -->\n<!-- evaluate:end -->\n")
    return path


def test_it_measures_both_and_says_that_they_agree(tiny_backbone, document, tmp_path, capsys, threads):
    saved = tmp_path / "figures.json"
    options = [*COMMON, "--threads", "1", "--json", str(saved), "--write", str(document)]
    evaluate.main(["--model", tiny_backbone, *options])
    figures = json.loads(saved.read_text())["evaluate"]
    assert figures["samples"] == 40
    assert set(figures["seconds"]) == {evaluate.OURS, evaluate.THEIRS, evaluate.GROUPED}
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in figures["seconds"].values())
    assert figures["agreement"]["logits"] < 1e-5
    assert figures["agreement"]["loss"] < 1e-5
    assert figures["agreement"]["accuracy"] < 1e-6
    shown = capsys.readouterr().out
    for row in ("| **fedgram** |", "| transformers.Trainer.evaluate |", "| transformers.Trainer.evaluate, grouped"):
        assert shown.count(row) == document.read_text().count(row) == 1


def test_it_would_tell_of_another_model(tiny_backbone, monkeypatch, threads):
    """The Trainer's model without the adapters says something else, and the benchmark sees it."""
    plain_model = evaluate.plain_model

    def without_adapters(model, network, state):
        none = map_layers(state.adapter, torch.zeros_like)
        return plain_model(model, network, replace(state, adapter=none))

    monkeypatch.setattr(evaluate, "plain_model", without_adapters)
    figures = evaluate.measure(evaluate.parse(["--model", tiny_backbone, *COMMON, "--threads", "1"]))
    assert figures["agreement"]["logits"] > 1e-5


def test_the_passes_begin_with_another_each():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = evaluate.time_in_turn(calls, 4)
    assert "".join(order) == "abcbcacababc"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_ratios_are_those_of_each_pass():
    seconds = {evaluate.OURS: [1.0, 2.0, 10.0], evaluate.THEIRS: [2.0, 4.0, 30.0], evaluate.GROUPED: [1.5, 3.0, 15.0]}
    figures = {"tokens": 2000, "samples": 10, "seconds": seconds}
    figures["agreement"] = dict.fromkeys(("logits", "loss", "accuracy"), 0.0)
    lines = evaluate.lines_of(evaluate.parse(COMMON), figures)
    assert f"| {evaluate.THEIRS} | 500 | 4.00 | 2.00 |" in lines
    assert f"| {evaluate.GROUPED} | 667 | 3.00 | 1.50 |" in lines
