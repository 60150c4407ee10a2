import logging

import numpy as np
import pytest
from tiny_tokenizer import make_tokenizer

from fedgram.data import IID, Dirichlet, SQuAD, counts
from fedgram.errors import ConfigurationError, DataError
from tiny_squad import columns, write_split, write_squad


@pytest.fixture
def make(make_data):
    return lambda path, **settings: make_data(SQuAD, str(path), **{"max_length": 24, "doc_stride": 5} | settings)


def question(**changes):
    """A split of one question."""
    row = {
        "id": "q1",
        "title": "films",
        "context": "a good film",
        "question": "what film",
        "answers": {"text": ["good"], "answer_start": [2]},
    }
    return {name: [value] for name, value in (row | changes).items()}


def test_a_folder_of_splits(tmp_path, loaded):
    data = loaded(write_squad(tmp_path / "mine"))
    assert data.name == "mine"
    assert SQuAD().name == "squad"
    assert list(data.tables) == ["train", "validation", "test"]
    for split, table in data.tables.items():
        examples = data.examples(split)
        assert sorted(set(table.extra["example"].tolist())) == list(range(len(examples)))
        assert len(table) > len(examples)
        assert table.lengths.max() == 24
        assert table.labels.shape == (len(table), 2)
    source = columns(9, 1)
    validation = data.examples("validation")
    assert (validation.ids, validation.contexts) == (source["id"], source["context"])
    assert validation.answers == [own["text"] for own in source["answers"]]
    assert [data.is_labelled(split) for split in data.tables] == [True, True, False]


@pytest.mark.parametrize("empty", [None, {"text": [], "answer_start": []}])
def test_answers_of_a_test_split_may_be_unknown(tmp_path, loaded, empty):
    folder = write_squad(tmp_path / "mine")
    write_split(folder / "test.parquet", columns(3, 5) | {"answers": [empty] * 3})
    data = loaded(folder)
    assert (data.split("test").labels == -1).all()
    assert not data.is_labelled("test")
    assert data.examples("test").answers is None


def test_the_first_answer_that_is_in_its_place_is_the_label(tmp_path, loaded):
    answers = {"text": ["film", "film", "good"], "answer_start": [0, 7, 2]}
    write_split(tmp_path / "d" / "train.parquet", question(answers=answers))
    data = loaded(tmp_path / "d")
    assert data.examples("train").spans.tolist() == [[7, 11]]
    assert data.examples("train").answers == [["film", "film", "good"]]
    assert data.split("train").labels.tolist() == [[6, 6]]


def test_misplaced_answers_are_left_out_of_training_only(tmp_path, loaded, caplog):
    table = columns(6, 0)
    for row in (1, 4):
        table["answers"][row] = {"text": ["nowhere"], "answer_start": [0]}
    for split in ("train", "validation"):
        write_split(tmp_path / "d" / f"{split}.parquet", table)
    with caplog.at_level(logging.WARNING):
        data = loaded(tmp_path / "d")
    assert "2 of 6 train questions are left out" in caplog.text
    assert "the first is 0-1" in caplog.text
    assert data.examples("train").ids == ["0-0", "0-2", "0-3", "0-5"]
    validation = data.split("validation")
    assert len(data.examples("validation")) == 6
    assert (validation.labels[np.isin(validation.extra["example"], [1, 4])] == 0).all()
    assert data.is_labelled("validation")


def test_bytes_for_characters_are_refused(tmp_path, make):
    write_split(tmp_path / "d" / "train.parquet", question(answers={"text": ["film"], "answer_start": [9]}))
    with pytest.raises(DataError, match="no answer of the train split is in its context where answer_start says"):
        make(tmp_path / "d").setup()


def test_questions_are_dealt_whole(tmp_path, loaded):
    folder = write_squad(tmp_path / "mine", train=60)
    for partition in (None, Dirichlet(0.3)):
        data = loaded(folder, partition=partition)
        shards, example = data.shards(7, 3), data.split("train").extra["example"]
        assert sorted(shards.order.tolist()) == list(range(len(example)))
        held = [set(example[own].tolist()) for own in shards]
        assert sum(map(len, held)) == 60
        assert all(np.all(np.diff(own) > 0) for own in shards)
        table = counts(shards, data.groups("train"), len(data.group_names))
        assert table.sum() == len(example)
    assert isinstance(loaded(folder).partition, IID)
    assert {len(set(example[own])) for own in loaded(folder).shards(7, 3)} == {8, 9}
    with pytest.raises(DataError, match="61 clients cannot share 60"):
        loaded(folder).shards(61, 3)


def test_max_train_samples_counts_questions(tmp_path, loaded):
    folder = write_squad(tmp_path / "mine")
    ids = {most: loaded(folder, max_train_samples=most).examples("train").ids for most in (5, 10, 99)}
    assert [len(own) for own in ids.values()] == [5, 10, 24]
    assert set(ids[5]) < set(ids[10])
    assert ids[10] == [own for own in ids[99] if own in set(ids[10])]
    assert ids[10] != ids[99][:10]
    assert len(loaded(folder, max_train_samples=5).examples("validation")) == 9


# --- the cache ---


@pytest.fixture
def calls(monkeypatch):
    """Counts how often something is tokenised."""
    from fedgram.data import squad

    made, real = [], squad.cut_windows
    monkeypatch.setattr(squad, "cut_windows", lambda *arguments: made.append(arguments) or real(*arguments))
    return made


def test_setup_uses_what_prepare_data_made(tmp_path, make, calls):
    data = make(write_squad(tmp_path / "mine"))
    data.prepare_data()
    assert not data.tables
    data.setup()
    make(tmp_path / "mine").setup()
    assert len(calls) == 3
    assert isinstance(data.split("train").extra["char_starts"], np.memmap)


def test_all_that_matters_makes_another_table(tmp_path, make):
    folder = tmp_path / "d"
    write_split(folder / "train.parquet", question())

    def fingerprint(words=("good", "film"), **settings):
        data = make(folder, **settings)
        data.tokenizer = make_tokenizer(tmp_path, list(words))
        data.setup()
        return data.fingerprint()

    long = question(context="a good film " * 9)
    found = [fingerprint(), fingerprint(words=("film", "good"))]
    for table in (long, question(question="good film"), question(answers={"text": ["film"], "answer_start": [7]})):
        write_split(folder / "train.parquet", table)
        found.append(fingerprint())
    write_split(folder / "train.parquet", long)
    found += [fingerprint(max_length=20), fingerprint(doc_stride=6)]
    assert len(set(found)) == len(found)


# --- what is refused ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"doc_stride": -1}, "doc_stride must be at least 0, got -1"),
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"max_train_samples": 0}, "max_train_samples must be at least 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        SQuAD("x", **settings)


def test_a_stride_that_leaves_no_room(tmp_path, make):
    write_split(tmp_path / "d" / "train.parquet", question())
    with pytest.raises(ConfigurationError, match="set max_length to more than 25, or lower doc_stride"):
        make(tmp_path / "d", doc_stride=20).setup()


@pytest.mark.parametrize("column", ["id", "context", "question", "answers"])
def test_missing_column(tmp_path, make, column):
    table = question()
    del table[column]
    write_split(tmp_path / "d" / "train.parquet", table)
    message = rf"the train split has no column '{column}'; it has .*'title'.*: give it the columns id, context"
    with pytest.raises(DataError, match=message):
        make(tmp_path / "d").setup()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "  "}, "the question is empty"),
        ({"context": None}, "'context' is missing"),
        ({"answers": {"text": [], "answer_start": []}}, r"no answer, which SQuAD v1\.1 does not know of"),
        ({"answers": None}, r"no answer, which SQuAD v1\.1 does not know of"),
        ({"answers": {"text": ["good", "film"], "answer_start": [2]}}, "answers must hold a list text"),
        ({"answers": {"text": ["good"], "start": [2]}}, "answers must hold a list text"),
        ({"answers": {"text": [3], "answer_start": [2]}}, "answers must hold a list text"),
        ({"answers": "good"}, "answers must hold a list text .* got 'good'"),
    ],
)
def test_malformed_rows(tmp_path, make, changes, message):
    write_split(tmp_path / "d" / "train.parquet", question())
    bad = {name: [question()[name][0], value[0]] for name, value in question(**changes).items()}
    if "answers" in changes:
        bad["answers"] = bad["answers"][1:] * 2
    write_split(tmp_path / "d" / "validation.parquet", bad)
    row = 0 if "answers" in changes else 1
    with pytest.raises(DataError, match=rf"validation split, row {row} \(counted from 0\): .*{message}"):
        make(tmp_path / "d").setup()


def test_a_test_split_is_labelled_wholly_or_not_at_all(tmp_path, make):
    table = columns(3, 0)
    write_split(tmp_path / "d" / "train.parquet", table)
    table["answers"][1] = {"text": [], "answer_start": []}
    write_split(tmp_path / "d" / "test.parquet", table)
    with pytest.raises(DataError, match=r"test split, row 1 .*only a test split may be without any answers"):
        make(tmp_path / "d").setup()


def test_hub_out_of_reach(offline, make):
    with pytest.raises(DataError, match=r"cannot load the data set 'rajpurkar/squad' from the hub"):
        make("rajpurkar/squad").setup()


def test_no_such_split(tmp_path, loaded):
    write_split(tmp_path / "d" / "train.parquet", question())
    with pytest.raises(DataError, match="there is no validation split"):
        loaded(tmp_path / "d").examples("validation")
