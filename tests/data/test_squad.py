import logging
import re

import numpy as np
import pytest

from fedgram.data import IID, Dirichlet, SQuAD, counts
from fedgram.errors import ConfigurationError, DataError
from tiny_squad import columns, write_split, write_squad
from tiny_tokenizer import make_tokenizer


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


def test_a_few_misplaced_answers_are_left_out_of_training_only(tmp_path, loaded, caplog):
    table = columns(206, 0, longest=6)
    for row in (1, 4):
        table["answers"][row] = {"text": ["nowhere"], "answer_start": [0]}
    for split in ("train", "validation"):
        write_split(tmp_path / "d" / f"{split}.parquet", table)
    with caplog.at_level(logging.WARNING):
        data = loaded(tmp_path / "d")
    for split, effect in {"train": "they are left out", "validation": "they are scored by their text alone"}.items():
        assert f"no answer to 2 of 206 (1.0%) {split} questions is in the context" in caplog.text
        assert f"in rows 2, 5 (counted from 1); {effect}" in caplog.text
    assert data.examples("train").ids == [f"0-{row}" for row in range(206) if row not in (1, 4)]
    rows, note = data.dealt()
    assert rows.tolist() == [row for row in range(206) if row not in (1, 4)]
    assert note == "204 training questions (of 206 in the train split, the others are left out)"
    validation = data.split("validation")
    assert len(data.examples("validation")) == 206
    assert (validation.labels[np.isin(validation.extra["example"], [1, 4])] == 0).all()
    assert data.is_labelled("validation")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_many_misplaced_answers_are_refused_with_their_rows(tmp_path, make, split):
    """Offsets in bytes, as they come of encoded texts."""
    for name in ("train", "validation"):
        table = columns(40, 3)
        if name == split:
            for answers, context in zip(table["answers"], table["context"], strict=True):
                answers["answer_start"] = [len(context[:start].encode()) for start in answers["answer_start"]]
                answers["text"], answers["answer_start"] = answers["text"][:1], answers["answer_start"][:1]
        write_split(tmp_path / "d" / f"{name}.parquet", table)
    shifted = [
        row
        for row, (own, context) in enumerate(zip(table["answers"], table["context"], strict=True))
        if split == "validation" and not context.startswith(own["text"][0], own["answer_start"][0])
    ]
    message = rf"{split} questions is in the context at its answer_start, in rows .*must count characters \(not bytes\)"
    with pytest.raises(DataError, match=message) as error:
        make(tmp_path / "d").setup()
    if split == "validation":
        assert f"no answer to {len(shifted)} of 40 (" in str(error.value)
        assert f"in rows {', '.join(str(row + 1) for row in shifted[:5])}, ... (" in str(error.value)


def long_answers(questions, longest):
    """A split whose answers have from 1 word on, up to some number."""
    table = columns(questions, 0, longest=6)
    for row in range(questions):
        words = ["film", "plot"] * 30
        table["context"][row] = " ".join(words)
        table["answers"][row] = {"text": [" ".join(words[: 1 + row % longest])], "answer_start": [0]}
    return table


def test_answers_that_no_window_holds_are_counted(tmp_path, loaded, caplog):
    for split in ("train", "validation"):
        write_split(tmp_path / "d" / f"{split}.parquet", long_answers(40, 20))
    with caplog.at_level(logging.WARNING):
        data = loaded(tmp_path / "d", max_length=20)
    table, lost = data.split("train"), []
    for question in range(40):
        starts, ends = table.extra["char_starts"], table.extra["char_ends"]
        _, last = data.examples("train").spans[question]
        windows = np.flatnonzero(table.extra["example"] == question)
        tokens = [slice(table.offsets[w], table.offsets[w + 1]) for w in windows]
        if not any((starts[own] == 0).any() and (ends[own] >= last).any() for own in tokens):
            lost.append(question)
    assert 0 < len(lost) < 40
    for split, effect in {"train": "train the model to find no answer", "validation": "can't find them"}.items():
        message = rf"the answer to {len(lost)} of 40 \({len(lost) / 40:.1%}\) {split} questions lies whole in no window"
        assert re.search(rf"{message}, the first to 0-{lost[0]}: windows have 20 tokens .*{effect}", caplog.text)


def test_a_train_split_whose_answers_no_window_holds_is_refused(tmp_path, make):
    table = long_answers(6, 1)
    for answers, context in zip(table["answers"], table["context"], strict=True):
        answers["text"] = [context]
    write_split(tmp_path / "d" / "train.parquet", table)
    with pytest.raises(DataError, match=r"the answer to 6 of 6 \(100\.0%\) train questions .*raise data\.max_length"):
        make(tmp_path / "d").setup()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("empty", [None, {"text": [], "answer_start": []}])
def test_unanswerable_questions_are_counted_in_one_error(tmp_path, make, split, empty):
    for name in ("train", "validation", "test"):
        table = columns(30, 1)
        if name == split:
            for row in range(2, 30, 4):
                table["answers"][row] = empty
        write_split(tmp_path / "d" / f"{name}.parquet", table)
    message = (
        rf"7 of 30 \(23\.3%\) {split} questions have no answer, in rows 3, 7, 11, 15, 19, \.\.\. .*SQuAD 2\.0 .*rem"
    )
    with pytest.raises(DataError, match=message):
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
    message = rf"\(train\.parquet\) has no column '{column}'; it has .*'title'.*: give it the columns id, context"
    with pytest.raises(DataError, match=message):
        make(tmp_path / "d").setup()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "  "}, r"1 of 3 \(33\.3%\) validation questions are empty, in row 2 "),
        ({"context": None}, "'context' is missing"),
        ({"answers": {"text": ["good", "film"], "answer_start": [2]}}, "do not hold a list text"),
        ({"answers": {"text": ["good"], "start": [2]}}, "do not hold a list text"),
        ({"answers": {"text": [3], "answer_start": [2]}}, "do not hold a list text"),
        ({"answers": {"text": ["good"], "answer_start": [True]}}, "do not hold a list text"),
        ({"answers": "good"}, "do not hold a list text .*the first are 'good'"),
    ],
)
def test_malformed_rows(tmp_path, make, changes, message):
    write_split(tmp_path / "d" / "train.parquet", question())
    bad = {name: [question()[name][0], value[0], question()[name][0]] for name, value in question(**changes).items()}
    if "answers" in changes:
        bad["answers"] = [changes["answers"]] * 3  # of one kind, as a Parquet file must be
        message = rf"the answers to 3 of 3 .* in rows 1, 2, 3 \(counted from 1\), {message}"
    write_split(tmp_path / "d" / "validation.parquet", bad)
    with pytest.raises(DataError, match=message):
        make(tmp_path / "d").setup()


def test_hub_out_of_reach(offline, make):
    with pytest.raises(DataError, match=r"cannot load the data set 'rajpurkar/squad' from the hub"):
        make("rajpurkar/squad").setup()


def test_no_such_split(tmp_path, loaded):
    write_split(tmp_path / "d" / "train.parquet", question())
    with pytest.raises(DataError, match="there is no validation split"):
        loaded(tmp_path / "d").examples("validation")
