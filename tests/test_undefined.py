"""Metrics that have no value are nan: never the best, a gap in curves, "undefined" where people read."""

import csv
import json
import logging
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedgram import AdamW, FederatedTrainer, FedIT, TextClassification, TextClassificationData
from fedgram.cli import main


def write_scores(folder, splits):
    """Write sentences with scores as JSON lines, by split."""
    folder.mkdir()
    words = ["good", "fine", "great", "bad", "poor", "dull"]
    for split, scores in splits.items():
        lines = [json.dumps({"text": f"the film was {words[i % 6]}", "label": s}) for i, s in enumerate(scores)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def run(tiny_backbone, tmp_path, caplog):
    """Fits a regression whose validation scores are all equal; returns its summary, trainer and what was logged."""
    caplog.set_level(logging.INFO, "fedgram")
    varied = [0.5 * (i % 6) for i in range(24)]
    splits = {"train": varied, "validation": [2.5] * 8, "test": varied[:8]}
    folder = write_scores(tmp_path / "scores", splits)
    data = TextClassificationData(str(folder), num_labels=1, cache_dir=str(tmp_path / "cache"))
    trainer = FederatedTrainer(
        rounds=2, clients=3, local_steps=1, accelerator="cpu", default_root_dir=str(tmp_path / "runs")
    )
    task, method = TextClassification(tiny_backbone), FedIT(rank=2)
    summary = trainer.fit(task, data, method, AdamW())
    return summary, trainer, caplog.text, (task, data, method)


def test_an_undefined_metric_is_nan_with_a_word_and_never_the_best(run, tmp_path, caplog, capsys, monkeypatch):
    summary, trainer, logged, (task, data, method) = run
    assert math.isnan(summary["final"]["pearson"])
    assert math.isfinite(summary["final"]["loss"])
    assert summary["best"] == {}
    assert logged.count("all 8 scores are 2.5") == 1
    assert logged.count("pearson, spearman of the validation split: undefined") == 1  # not once a round
    assert "pearson undefined" in logged

    folder = trainer.folder.path
    saved = json.loads((folder / "summary.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert saved["final"]["pearson"] is None
    with (folder / "metrics.csv").open() as file:
        assert [row["pearson"] for row in csv.DictReader(file)] == ["nan"] * 3
    board = EventAccumulator(str(next(folder.rglob("events.out*")))).Reload()
    assert "val_loss" in board.Tags()["scalars"]
    assert not [tag for tag in board.Tags()["scalars"] if "pearson" in tag]
    assert not (folder / "checkpoints" / "best.safetensors").exists()

    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.argv", ["fedgram", "compare", str(tmp_path / "runs")])
    main()
    shown = capsys.readouterr().out
    assert "undefined" in shown
    assert "pearson is undefined after the last round, and in no mean" in shown

    caplog.clear()
    metrics = trainer.test(TextClassification(task.backbone), data, method)  # of the last round, as there is no best
    assert math.isfinite(metrics["pearson"])
    assert "round_000002.safetensors, after round 2" in caplog.text
    assert math.isnan(trainer.validate(TextClassification(task.backbone), data, method)["spearman"])


def test_the_best_is_the_first_that_is_defined(run):
    _, trainer, _, _ = run
    federation = trainer.federation
    for value, better in [(math.nan, False), (-0.5, True), (math.nan, False), (-0.75, False), (0.25, True)]:
        assert federation.progress.monitor.is_better(value, federation.progress.best.get("pearson", math.nan)) is better
        if better:
            federation.progress.best = {"round": federation.progress.finished, "pearson": value}
    assert federation.progress.monitor.is_better(0.25, math.nan) is True  # as older checkpoints may have it
