"""Checkpoints hold the names of their classes, and a model is asked about data whose classes have those names alone."""

import csv
import logging
from dataclasses import replace

import numpy as np
import pytest

from fedgram import FederatedTrainer, FedIT, TextClassification, TextClassificationData
from fedgram.data.classes import places_of
from fedgram.errors import CheckpointError, DataError
from fedgram.runs.checkpoint import load, save
from tiny_text import sentences


class Ordered(TextClassificationData):
    """Data whose source lists its classes in some order."""

    order = ("bad", "good")

    def read(self):
        return {name: replace(raw, label_names=self.order) for name, raw in super().read().items()}


def write(folder, words=("bad", "good"), scores=False):
    """Write splits whose labels are words, or scores."""
    folder.mkdir()
    for split, count in {"train": 24, "validation": 12, "test": 12}.items():
        texts, labels = sentences(count, seed=count)
        shown = [f"{label + 0.5}" if scores else words[label] for label in labels]
        with (folder / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *zip(texts, shown, strict=True)])
    return folder


@pytest.fixture
def call(tiny_backbone, tmp_path, caplog):
    """Calls a command of a trainer with the data of a folder, and returns what comes of it."""
    caplog.set_level(logging.INFO, "fedgram")

    def run(command, folder, order=None, num_labels=None, **options):
        trainer = FederatedTrainer(
            rounds=2,
            clients=3,
            local_steps=2,
            accelerator="cpu",
            threads=1,
            loggers=False,
            progress_bar=False,
            default_root_dir=str(tmp_path / "runs"),
            name="run",
        )
        kind = TextClassificationData if order is None else type("Data", (Ordered,), {"order": order})
        data = kind(str(folder), batch_size=3, num_labels=num_labels, cache_dir=str(tmp_path / "cache"))
        if command != "fit":
            options.setdefault("ckpt_path", "last")
        caplog.clear()
        return getattr(trainer, command)(TextClassification(tiny_backbone), data, FedIT(rank=2), **options)

    return run


def predictions(path):
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_a_model_is_asked_by_the_names_of_its_classes_whatever_their_order_in_the_data(call, tmp_path, caplog):
    own, other = write(tmp_path / "own"), write(tmp_path / "other", words=("BAD", "Good"))
    call("fit", own)
    assert load(tmp_path / "runs/run/version_0/checkpoints/best.safetensors").progress["classes"] == ["bad", "good"]
    right = call("test", own)
    table = predictions(call("predict", own, output=str(tmp_path / "own.csv")))
    assert "numbered" not in caplog.text
    assert call("test", own, order=("good", "bad")) == right
    told = "the classes of the data, 'good', 'bad', are numbered as the model's: 'bad', 'good'"
    assert caplog.text.count(told) == 1
    assert predictions(call("predict", own, order=("good", "bad"), output=str(tmp_path / "other.csv"))) == table
    assert call("test", other) == right  # but for the case


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_classes_of_other_names_are_refused_with_both(call, tmp_path, command):
    call("fit", write(tmp_path / "own"))
    others = {"other": ("negative", "positive"), "numbered": ("0", "1")}
    for name, words in others.items():
        message = rf"for the classes 'bad', 'good', and the data has '{words[0]}', '{words[1]}'; give data whose"
        with pytest.raises(DataError, match=message):
            call(command, write(tmp_path / name, words))
    with pytest.raises(DataError, match="and the data has none"):
        call(command, write(tmp_path / "scores", scores=True), num_labels=1)
    call("test", tmp_path / "other", ckpt_path="none")


def test_data_may_lack_a_class_that_the_model_knows_but_have_none_besides(call, tmp_path):
    three = write(tmp_path / "three", words=("2", "3"))
    with (three / "train.csv").open("a") as file:
        file.write("the film was dull,1\n")
    call("fit", three)
    assert load(tmp_path / "runs/run/version_0/checkpoints/best.safetensors").progress["classes"] == ["1", "2", "3"]
    two = write(tmp_path / "two", words=("2", "3"))
    assert call("test", two)["accuracy"] == call("test", three)["accuracy"]
    with pytest.raises(DataError, match="for the classes '1', '2', '3', and the data has '3', '4'"):
        call("test", write(tmp_path / "others", words=("3", "4")))


def test_a_run_goes_on_with_classes_of_the_same_names_alone(call, tmp_path):
    call("fit", write(tmp_path / "own"))
    renamed = write(tmp_path / "renamed", words=("negative", "positive"))
    with pytest.raises(CheckpointError, match=r"model.classes: .*'good'\] there, .*'positive'\] here"):
        call("fit", renamed, ckpt_path="last")
    call("fit", tmp_path / "own", ckpt_path="last")


def test_a_checkpoint_without_names_is_taken_with_a_word(call, tmp_path, caplog):
    call("fit", write(tmp_path / "own"))
    renamed = write(tmp_path / "renamed", words=("negative", "positive"))
    right = call("test", tmp_path / "own")
    for path in (tmp_path / "runs/run/version_0/checkpoints").iterdir():
        old = load(path)
        del old.progress["classes"]
        save(path, old)
    assert call("test", renamed) == right
    assert "does not record the names of its classes" in caplog.text
    call("fit", tmp_path / "own", ckpt_path="last")


def test_a_regression_has_no_classes(call, tmp_path, caplog):
    folder = write(tmp_path / "scores", scores=True)
    call("fit", folder, num_labels=1)
    assert load(tmp_path / "runs/run/version_0/checkpoints/round_000002.safetensors").progress["classes"] is None
    call("test", folder, num_labels=1)
    assert "classes" not in caplog.text


@pytest.mark.parametrize(
    ("names", "classes", "places"),
    [
        (["a", "b"], ["b", "c", "a"], [2, 0]),
        (["A", "b "], ["b", "a"], [1, 0]),
        (["A", "a"], ["a", "A"], [1, 0]),
        (["A", "a"], ["a", "b"], None),
        (["A", "b"], ["a", "a ", "b"], None),
        (["a", "c"], ["a", "b"], None),
        ([], ["a", "b"], None),
    ],
)
def test_names_are_found_among_others_to_the_letter_or_but_for_case_and_spaces(names, classes, places):
    assert places_of(names, classes) == places


def test_unlabelled_samples_stay_so(tmp_path, call):
    folder = write(tmp_path / "own")
    rows = (folder / "test.csv").read_text().splitlines()
    (folder / "test.csv").write_text("\n".join(row.rpartition(",")[0] for row in rows) + "\n")
    call("fit", folder)
    table = predictions(call("predict", folder, output=str(tmp_path / "p.csv")))
    assert len(table) == 12
    assert {row["label"] for row in table} <= {"bad", "good"}
    assert all(np.isclose(float(row["probability of bad"]) + float(row["probability of good"]), 1) for row in table)
