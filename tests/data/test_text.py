import inspect
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgram.data import IID, Dirichlet, Quickstart, RawSplit, TextClassificationData
from fedgram.errors import ConfigurationError, DataError
from tiny_tokenizer import WORDS, make_tokenizer

TEXTS = ["a good film", "NA", 'the "plot", not', "007", "very bad", "film"]
LABELS = [1, 0, 1, 0, 0, 1]
ROWS = {"text": TEXTS, "label": LABELS}
SUFFIXES = [".csv", ".tsv", ".json", ".jsonl", ".parquet"]


def write(path: Path, columns: dict) -> Path:
    """Write columns as a file of the kind that the suffix says."""
    import pandas

    frame = pandas.DataFrame(columns)
    path.parent.mkdir(exist_ok=True)
    match path.suffix:
        case ".csv" | ".tsv":
            frame.to_csv(path, index=False, sep="," if path.suffix == ".csv" else "\t")
        case ".json":
            path.write_text(json.dumps(frame.to_dict("records")))
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, frame.to_dict("records"))))
        case ".parquet":
            frame.to_parquet(path)
    return path


@pytest.fixture
def make(make_data):
    return lambda path, **settings: make_data(TextClassificationData, str(path), **settings)


def texts_of(data, split):
    table = data.split(split)
    return [
        data.tokenizer.decode(table.ids[start:end], skip_special_tokens=True)
        for start, end in zip(table.offsets[:-1], table.offsets[1:], strict=True)
    ]


def expected_ids(tokenizer, texts):
    return [token for text in texts for token in tokenizer(text)["input_ids"]]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_file_gives_the_same_table(tmp_path, loaded, tokenizer, suffix):
    data = loaded(write(tmp_path / f"mine{suffix}", ROWS))
    assert list(data.tables) == ["train"]
    assert data.split("train").ids.tolist() == expected_ids(tokenizer, TEXTS)
    assert data.split("train").labels.tolist() == LABELS
    assert (data.num_labels, data.label_names) == (2, ["0", "1"])


def test_text_in_a_file_is_literal(tmp_path, make):
    data = make(write(tmp_path / "a.csv", {"text": ["NA", "007", "null"], "label": ["None", "NA", "None"]}))
    assert data.read()["train"] == RawSplit((["NA", "007", "null"],), ["None", "NA", "None"], typed=False)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_folder_with_a_file_for_each_split(tmp_path, loaded, suffix):
    for name, labels in {"train": [0, 1], "validation": [1, 1], "test": [0, 0]}.items():
        write(tmp_path / "data" / f"{name}{suffix}", {"text": ["good", "bad"], "label": labels})
    data = loaded(tmp_path / "data")
    assert {name: table.labels.tolist() for name, table in data.tables.items()} == {
        "train": [0, 1],
        "validation": [1, 1],
        "test": [0, 0],
    }


def test_paths_of_further_splits(tmp_path, loaded):
    train = write(tmp_path / "train.csv", ROWS)
    other = write(tmp_path / "other.jsonl", {"text": ["good"], "label": [1]})
    unlabelled = write(tmp_path / "unlabelled.csv", {"text": ["good", "bad"]})
    data = loaded(train, validation_path=str(other), test_path=str(unlabelled))
    assert data.split("validation").labels.tolist() == [1]
    assert data.split("test").labels.tolist() == [-1, -1]


def test_pairs_of_texts_and_columns_of_other_names(tmp_path, loaded, tokenizer):
    path = write(tmp_path / "a.csv", {"question": ["good", "bad"], "sentence": ["the film", "a plot"], "y": ["n", "e"]})
    data = loaded(path, text=["question", "sentence"], label="y")
    assert data.split("train").ids.tolist()[:6] == tokenizer("good", "the film")["input_ids"]
    assert data.label_names == ["e", "n"]
    assert data.split("train").labels.tolist() == [1, 0]


def test_regression(tmp_path, loaded):
    data = loaded(write(tmp_path / "a.csv", {"text": ["good", "bad"], "label": [0.5, 3]}), num_labels=1)
    assert data.num_labels == 1
    assert data.split("train").batch(np.array([0, 1]), 0)["labels"].dtype == torch.float32


def test_metrics_that_suit_the_labels():
    assert TextClassificationData("x").metrics == TextClassificationData("x", num_labels=3).metrics
    assert TextClassificationData("x").metrics == ("accuracy", "macro_f1")
    assert TextClassificationData("x", num_labels=1).metrics == ("pearson", "spearman")


def test_scores_are_dealt_by_quantile(tmp_path, loaded):
    texts = [f"film {number}" for number in range(100)]
    path = write(tmp_path / "a.csv", {"text": texts, "label": [number / 10 for number in range(100)]})
    data = loaded(path, num_labels=1, label_quantiles=4)
    assert data.group_names == ["0.00 to 2.50", "2.50 to 5.00", "5.00 to 7.50", "7.50 to 9.90"]
    assert np.bincount(data.groups("train")).tolist() == [25] * 4
    assert len(data.shards(10, 0)) == 10


def test_class_labels_of_parquet_bring_their_names(tmp_path, loaded):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes", "perhaps"])}
    )
    source = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [1, 0]}, features=features)
    source.to_parquet(tmp_path / "a.parquet")
    data = loaded(tmp_path / "a.parquet")
    assert data.label_names == ["no", "yes", "perhaps"]
    assert data.num_labels == 3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_classes_are_those_that_occur_in_training(tmp_path, loaded, suffix):
    """They keep their names in the head's order, whatever the numbers are."""
    write(tmp_path / "d" / f"train{suffix}", {"text": TEXTS, "stars": [4, 10, 2, 4, 10, 2]})
    write(tmp_path / "d" / f"validation{suffix}", {"text": ["good", "bad"], "stars": [10, 4]})
    data = loaded(tmp_path / "d", label="stars")
    assert (data.label_names, data.group_names, data.num_labels) == (["2", "4", "10"], ["2", "4", "10"], 3)
    assert data.split("train").labels.tolist() == [1, 2, 0, 1, 2, 0]
    assert data.split("validation").labels.tolist() == [2, 1]
    assert np.bincount(data.groups("train")).tolist() == [2, 2, 2]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_num_labels_adds_classes_that_do_not_occur(tmp_path, loaded, suffix):
    path = write(tmp_path / f"a{suffix}", {"text": TEXTS, "label": [1, 3, 1, 3, 5, 5]})
    assert loaded(path, num_labels=5).label_names == ["1", "2", "3", "4", "5"]
    assert loaded(path, num_labels=6).split("train").labels.tolist() == [1, 3, 1, 3, 5, 5]
    with pytest.raises(DataError, match=r"num_labels is 4, but .* the 3 labels 1, 3, 5, which are neither within"):
        loaded(path, num_labels=4)


def test_a_file_is_the_same_in_whatever_format_and_encoding(tmp_path, loaded):
    """With two texts, of which some look like other things, and with a regression."""
    import pandas

    rows = {"a": ["null", "01", 'a "b"', "café"], "b": ["x", "NaN", "y", "1e5"], "label": [0.5, 2.25, 3, 1]}
    frame, prints = pandas.DataFrame(rows), set()
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        for sign, suffix in ((",", ".csv"), ("\t", ".tsv")):
            frame.to_csv(tmp_path / f"a{suffix}", sep=sign, index=False, encoding=encoding)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in frame.to_dict("records"))
        (tmp_path / "a.jsonl").write_bytes(lines.encode(encoding))
        for suffix in (".csv", ".tsv", ".jsonl"):
            prints.add(loaded(tmp_path / f"a{suffix}", text=["a", "b"], num_labels=1).fingerprint())
    frame.to_parquet(tmp_path / "a.parquet")
    prints.add(loaded(tmp_path / "a.parquet", text=["a", "b"], num_labels=1).fingerprint())
    assert len(prints) == 1


def test_a_path_is_no_pattern(tmp_path, loaded):
    write(tmp_path / "reviews1.csv", {"text": ["wrong"] * 4, "label": [0, 1, 0, 1]})
    for name in ("reviews[1].csv", "reviews?.csv", "part::1.csv"):
        data = loaded(write(tmp_path / name, ROWS), validation_path=str(tmp_path / name))
        assert len(data.split("train")) == len(data.split("validation")) == 6


@pytest.mark.parametrize("stem", ["validation", "dev", "val", "valid"])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_names_of_the_validation_file(tmp_path, loaded, stem, suffix, caplog):
    write(tmp_path / "d" / f"train{suffix}", ROWS)
    write(tmp_path / "d" / f"{stem}{suffix}", {"text": ["good"], "label": [1]})
    with caplog.at_level("INFO", logger="fedgram"):
        assert len(loaded(tmp_path / "d").split("validation")) == 1
    assert not caplog.records


def test_files_of_a_folder_that_are_not_read_are_mentioned(tmp_path, loaded, caplog):
    for name in ("train.csv", "evaluation.csv", "more.jsonl"):
        write(tmp_path / "d" / name, ROWS)
    (tmp_path / "d" / "notes.txt").write_text("no data")
    with caplog.at_level("INFO", logger="fedgram"):
        loaded(tmp_path / "d")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "read are train.csv as train; not read: evaluation.csv, more.jsonl" in caplog.text


def test_two_files_of_one_split(tmp_path, make):
    for name in ("train.csv", "dev.csv", "validation.csv"):
        write(tmp_path / "d" / name, ROWS)
    with pytest.raises(DataError, match=r"several files for the validation split: validation\.csv, dev\.csv; keep one"):
        make(tmp_path / "d").setup()


def test_the_row_of_a_sample_without_token_is_that_of_the_file(tmp_path, make):
    texts = [f"film {number}" for number in range(40)]
    texts[29] = "\u200b"
    data = make(write(tmp_path / "a.csv", {"text": texts, "label": [0, 1] * 20}), validation_fraction=0.4)
    data.tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(
        DataError, match=r"\(a\.csv\), row 30 \(counted from 1 without the header; line 31\) has no token"
    ):
        data.setup()


def test_hub(monkeypatch, loaded):
    import datasets

    asked = []
    split = datasets.Dataset.from_dict(ROWS)
    hub = datasets.DatasetDict({"train": split, "validation": split.select([1]), "unsupervised": split})
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments: asked.append(arguments) or hub)
    data = loaded("some/set", config_name="qnli")
    assert set(asked) == {("some/set", "qnli")}
    assert {name: len(table) for name, table in data.tables.items()} == {"train": 6, "validation": 1}


def test_hub_without_train_split(monkeypatch, make):
    import datasets

    hub = datasets.DatasetDict({"test": datasets.Dataset.from_dict(ROWS)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments: hub)
    with pytest.raises(DataError, match=r"'some/set' has no train split, only test"):
        make("some/set").setup()


def test_hub_out_of_reach(offline, make):
    with pytest.raises(DataError, match=r"cannot load the data set 'some/set' \(x\).*network, or give a local file"):
        make("some/set", config_name="x").setup()


def test_held_out_validation(tmp_path, loaded):
    texts = [f"{word} {number}" for word in WORDS for number in range(60)]
    path = write(tmp_path / "a.parquet", {"text": texts, "label": [0, 1] * 300})
    data = loaded(path, validation_fraction=0.2)
    train, held = data.split("train"), data.split("validation")
    assert len(train) + len(held) == 600
    assert 85 < len(held) < 155
    again = loaded(path, validation_fraction=0.2)
    assert again.fingerprint() == data.fingerprint()
    assert loaded(path).fingerprint() != data.fingerprint()


def test_held_out_texts_do_not_occur_in_training(tmp_path, make):
    texts = [f"film {number % 50}" for number in range(200)]
    data = make(write(tmp_path / "a.csv", {"text": texts, "label": [0, 1] * 100}), validation_fraction=0.3)
    # Every text is another length in tokens, so that tables can be compared by it.
    data.tokenizer = make_tokenizer(tmp_path, [f"{number}" for number in range(50)] + ["film"])
    data.setup()
    train, held = set(texts_of(data, "train")), set(texts_of(data, "validation"))
    assert len(train | held) == 50
    assert not train & held


def test_what_is_held_out_takes_the_place_of_a_validation_split(tmp_path, loaded):
    train = write(tmp_path / "a.csv", ROWS)
    other = write(tmp_path / "b.csv", {"text": ["good", "bad"], "label": [0, 1]})
    assert len(loaded(train, validation_path=str(other)).split("validation")) == 2
    data = loaded(train, validation_path=str(other), validation_fraction=0.5)
    assert len(data.split("train")) + len(data.split("validation")) == 6
    alone = loaded(train, validation_fraction=0.5)
    assert data.fingerprint() == alone.fingerprint()


def test_what_is_dealt_is_told_by_the_rows_of_the_file(tmp_path, loaded):
    texts = [f"film {number}" for number in range(100)]
    path = write(tmp_path / "a.csv", {"text": texts, "label": [0, 1] * 50})
    assert loaded(path).dealt()[1] == "100 training samples"
    data = loaded(path, validation_fraction=0.3, max_train_samples=40)
    rows, note = data.dealt()
    assert (
        note == "40 training samples (of 100 in the train split, the others are held out or beyond max_train_samples)"
    )
    assert (rows % 2).tolist() == data.split("train").labels.tolist()
    assert len(set(rows.tolist())) == 40
    assert rows.max() >= 60


def test_nothing_to_hold_out(tmp_path, make):
    with pytest.raises(DataError, match=r"leaves 0 for validation and 6 for training"):
        make(write(tmp_path / "a.csv", ROWS), validation_fraction=1e-9).setup()


def test_max_train_samples(tmp_path, loaded):
    texts = [f"film {number}" for number in range(50)]
    path = write(tmp_path / "a.csv", {"text": texts, "label": list(range(10)) * 5})
    labels = {most: loaded(path, max_train_samples=most).split("train").labels.tolist() for most in (10, 20, 99)}
    assert [len(found) for found in labels.values()] == [10, 20, 50]
    remaining = iter(labels[20])
    assert all(label in remaining for label in labels[10])
    assert labels[20] != (list(range(10)) * 5)[:20]
    assert loaded(path, max_train_samples=10).num_labels == 10


def test_shards(tmp_path, loaded):
    path = write(tmp_path / "a.csv", ROWS)
    partitions = [loaded(path, partition=partition).partition for partition in (IID(), None)]
    assert [type(partition) for partition in partitions] == [IID, Dirichlet]
    assert partitions[1].rho == 0.5
    shards = loaded(path, partition=IID()).shards(3, 0)
    assert shards.sizes.tolist() == [2, 2, 2]
    assert shards.order.tolist() != loaded(path, partition=IID()).shards(3, 1).order.tolist()


def test_split_that_is_absent(tmp_path, make, loaded):
    path = write(tmp_path / "a.csv", ROWS)
    with pytest.raises(DataError, match=r"no validation split \(available: train\)"):
        loaded(path).split("validation")
    with pytest.raises(DataError, match=r"none before setup"):
        make(path).split("train")


def test_num_labels_before_setup(tmp_path, make):
    path = write(tmp_path / "a.csv", ROWS)
    assert make(path, num_labels=2).num_labels == 2
    with pytest.raises(ConfigurationError, match=r"call setup first"):
        _ = make(path).num_labels


def test_name():
    assert TextClassificationData("nyu-mll/glue", config_name="qnli").name == "qnli"
    assert TextClassificationData("folder/mine.csv").name == "mine"
    assert Quickstart().name == "quickstart"


def test_no_tokenizer(tmp_path, make):
    data = make(write(tmp_path / "a.csv", ROWS))
    data.tokenizer = None
    for step in (data.prepare_data, data.setup):
        with pytest.raises(ConfigurationError, match=r"set data\.tokenizer"):
            step()


# --- the cache ---


@pytest.fixture
def calls(monkeypatch):
    """Counts how often something is tokenised."""
    from fedgram.data import text

    made, real = [], text.tokenise
    monkeypatch.setattr(text, "tokenise", lambda *arguments: made.append(arguments) or real(*arguments))
    return made


def test_setup_uses_what_prepare_data_made(tmp_path, make, calls):
    data = make(write(tmp_path / "a.csv", ROWS))
    data.prepare_data()
    assert not data.tables
    data.setup()
    data.setup("test")
    assert len(calls) == 1
    assert isinstance(data.split("train").ids, np.memmap)


def test_setup_alone_is_enough(tmp_path, make):
    data = make(write(tmp_path / "a.csv", ROWS))
    data.setup()
    assert len(data.split("train")) == 6


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_altered_file_is_never_served_from_the_cache(tmp_path, loaded, suffix):
    """Not even if it has the size and the time stamp of its predecessor."""
    path = write(tmp_path / f"a{suffix}", {"text": ["good film", "bad film"], "label": [0, 1]})
    stamp, first = path.stat(), loaded(path)
    write(path, {"text": ["good plot", "bad plot"], "label": [0, 1]})
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    second = loaded(path)
    assert texts_of(first, "train") == ["good film", "bad film"]
    assert texts_of(second, "train") == ["good plot", "bad plot"]
    assert first.fingerprint() != second.fingerprint()


def test_altered_labels_are_never_served_from_the_cache(tmp_path, loaded):
    path = write(tmp_path / "a.csv", {"text": ["good", "bad"], "label": [0, 1]})
    loaded(path)
    write(path, {"text": ["good", "bad"], "label": [1, 0]})
    assert loaded(path).split("train").labels.tolist() == [1, 0]


def test_texts_cut_elsewhere_are_other_texts(tmp_path, loaded):
    first = loaded(write(tmp_path / "a.csv", {"text": ["goodfilm", "bad"], "label": [0, 1]}))
    second = loaded(write(tmp_path / "a.csv", {"text": ["good", "filmbad"], "label": [0, 1]}))
    assert first.fingerprint() != second.fingerprint()


def test_another_tokenizer_or_length_has_its_own_table(tmp_path, make, calls):
    path = write(tmp_path / "a.csv", ROWS)
    tables = []
    for words, length in ((WORDS, 128), (WORDS[::-1], 128), (WORDS, 4)):
        data = make(path, max_length=length)
        data.tokenizer = make_tokenizer(tmp_path, words)
        data.setup()
        tables.append(data.fingerprint())
    assert len(set(tables)) == len(calls) == 3


def test_place_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDGRAM_CACHE", str(tmp_path / "from_environment"))
    assert TextClassificationData("x").cache == tmp_path / "from_environment"
    assert TextClassificationData("x", cache_dir=str(tmp_path / "given")).cache == tmp_path / "given"
    monkeypatch.delenv("FEDGRAM_CACHE")
    assert TextClassificationData("x").cache == Path.home() / ".cache" / "fedgram"


# --- what is refused ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"eval_batch_size": -1}, "eval_batch_size must be at least 1"),
        ({"num_labels": 0}, "num_labels must be at least 1"),
        ({"label_quantiles": 0}, "label_quantiles must be at least 1"),
        ({"max_train_samples": 0}, "max_train_samples must be at least 1"),
        ({"validation_fraction": 1.0}, r"validation_fraction must lie in \[0, 1\)"),
        ({"validation_fraction": -0.1}, r"validation_fraction must lie in \[0, 1\)"),
        ({"text": []}, "text must name one column"),
        ({"text": ["a", "b", "c"]}, "text must name one column"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        TextClassificationData("x", **settings)


def test_configuration_of_a_local_file(tmp_path, make):
    with pytest.raises(ConfigurationError, match=r"config_name 'qnli' is for a data set of the hub"):
        make(write(tmp_path / "a.csv", ROWS), config_name="qnli").setup()


@pytest.mark.parametrize("name", ["nothing.csv", "./nothing", "~/no/such/folder/at/all"])
def test_file_that_is_absent(make, name):
    with pytest.raises(DataError, match=r"there is no data file .*correct the path"):
        make(name).setup()


def test_further_file_that_is_absent(tmp_path, make):
    with pytest.raises(DataError, match=r"there is no data file .*nothing\.csv"):
        make(write(tmp_path / "a.csv", ROWS), test_path=str(tmp_path / "nothing.csv")).setup()


def test_file_of_another_kind(tmp_path, make):
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"cannot read .*a\.xlsx.*\.csv, \.tsv"):
        make(tmp_path / "a.xlsx").setup()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\ngood,1\na, b, c,0\n"),
        ("a.csv", "text,label\na,b,1\nc,d,0\n"),
        ("a.csv", 'text,label\n"good,1\n'),
        ("a.tsv", "text\tlabel\ngood\n"),
        ("a.json", '{"text": '),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"'),
        ("a.parquet", "no parquet at all"),
        ("a.csv", b"text,label\n\xff\xfe\xfa,1\n"),
    ],
)
def test_malformed_file(tmp_path, make, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=rf"cannot read .*{name}: .+; (expected|correct|close|save)"):
        make(tmp_path / name).setup()


def test_folder_without_train_file(tmp_path, make):
    write(tmp_path / "d" / "test.csv", ROWS)
    with pytest.raises(DataError, match=r"no file for the train split"):
        make(tmp_path / "d").setup()


def test_folder_with_two_files_for_a_split(tmp_path, make):
    for suffix in (".csv", ".json"):
        write(tmp_path / "d" / f"train{suffix}", ROWS)
    with pytest.raises(DataError, match=r"several files for the train split: train\.csv, train\.json; keep one"):
        make(tmp_path / "d").setup()


@pytest.mark.parametrize(
    ("settings", "missing"),
    [({"text": "sentence"}, "'sentence'"), ({"label": "y"}, "'y'"), ({"text": ["text", "b"]}, "'b'")],
)
def test_missing_column(tmp_path, make, settings, missing):
    with pytest.raises(DataError, match=rf"train split \(a\.csv\) has no column {missing}; it has 'text', 'label'"):
        make(write(tmp_path / "a.csv", ROWS), **settings).setup()


def test_validation_needs_labels(tmp_path, make):
    train = write(tmp_path / "a.csv", ROWS)
    other = write(tmp_path / "b.csv", {"text": ["good"]})
    with pytest.raises(DataError, match=r"validation split \(b\.csv\) has no column 'label'"):
        make(train, validation_path=str(other)).setup()


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_missing_text(tmp_path, make, suffix):
    path = write(tmp_path / f"a{suffix}", {"text": ["good", None], "label": [0, 1]})
    with pytest.raises(DataError, match=r"train split \(a\..*\), row 2 \(counted from 1.*'text' is missing"):
        make(path).setup()


def test_text_that_is_none(tmp_path, make):
    with pytest.raises(DataError, match=r"row 1 .*'text' is 5, not a string"):
        make(write(tmp_path / "a.jsonl", {"text": [5, 6], "label": [0, 1]})).setup()


def test_missing_label(tmp_path, make):
    with pytest.raises(DataError, match=r"train split \(a\.csv\), row 2 .*line 3\): the label is missing"):
        make(write(tmp_path / "a.csv", {"text": ["good", "bad"], "label": [1, None]})).setup()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["train", "test"])
def test_empty_split(tmp_path, make, name, suffix):
    for split in ("train", "test"):
        rows = {key: value[: 0 if split == name else 6] for key, value in ROWS.items()}
        write(tmp_path / "d" / f"{split}{suffix}", rows)
    with pytest.raises(DataError, match=rf"{name}{suffix}.* (is empty|has no samples); expected .*at least one sample"):
        make(tmp_path / "d").setup()


def test_empty_split_of_the_hub(monkeypatch, make):
    import datasets

    split = datasets.Dataset.from_dict(ROWS)
    hub = datasets.DatasetDict({"train": split, "validation": split.select([])})
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments: hub)
    with pytest.raises(DataError, match=r"the validation split is empty"):
        make("some/set").setup()


def test_local_files_need_no_network(tmp_path, monkeypatch, loaded):
    def connect(*arguments, **settings):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.getaddrinfo", connect)
    monkeypatch.setattr("datasets.load.increase_load_count", connect)
    assert len(loaded(write(tmp_path / "a.csv", ROWS)).split("train")) == 6


@pytest.mark.parametrize("label", [-1, 7])
def test_label_out_of_range(tmp_path, make, label):
    other = write(tmp_path / "b.csv", {"text": ["good", "bad"], "label": [0, label]})
    with pytest.raises(DataError, match=rf"validation split \(b\.csv\), row 2 .*label '{label}' does not occur"):
        make(write(tmp_path / "a.csv", ROWS), validation_path=str(other)).setup()


# --- the command line ---


def test_settings_parse_and_are_explained():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(TextClassificationData, "data")
    arguments = ["--data.path=x", "--data.text=[a, b]", "--data.partition=Dirichlet", "--data.partition.rho=0.3"]
    data = parser.instantiate(parser.parse_args(arguments)).data
    assert data.text == ["a", "b"]
    assert (type(data.partition), data.partition.rho) == (Dirichlet, 0.3)
    explained = {action.dest: action.help for action in parser._actions}
    for setting in inspect.signature(TextClassificationData).parameters:
        assert len(explained[f"data.{setting}"].split()) > 3, f"--data.{setting} has no help"
