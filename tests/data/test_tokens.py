import logging
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgram.data.tokens import TokenTable, cached, tokenise, tokenizer_state
from fedgram.errors import ConfigurationError, DataError
from tiny_tokenizer import WORDS, make_tokenizer

TEXTS = ["a good film", "bad", "the plots very goodly not", "the film"]


def table_of(samples, labels=None, types=True):
    lengths = np.array([len(sample) for sample in samples])
    ids = np.array([token for sample in samples for token in sample], np.int32)
    labels = np.arange(len(samples)) if labels is None else labels
    return TokenTable(ids, (ids % 2).astype(np.uint8) if types else None, np.append(0, np.cumsum(lengths)), labels)


def naive_batch(samples, rows, pad_id):
    """The same batch by plain loops."""
    sequences = [[pad_id] if row < 0 else samples[row] for row in rows]
    width = max(len(sequence) for sequence in sequences)
    pad = [width - len(sequence) for sequence in sequences]
    return {
        "input_ids": [sequence + [pad_id] * p for sequence, p in zip(sequences, pad, strict=True)],
        "attention_mask": [[1] * len(sequence) + [0] * p for sequence, p in zip(sequences, pad, strict=True)],
        "token_type_ids": [
            [0] * width if row < 0 else [token % 2 for token in samples[row]] + [0] * p
            for row, p in zip(rows, pad, strict=True)
        ],
        "labels": [0 if row < 0 else row for row in rows],
    }


samples_strategy = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=7), min_size=1, max_size=6)


@given(samples_strategy, st.data())
def test_batch_equals_plain_loops(samples, data):
    rows = data.draw(st.lists(st.integers(-1, len(samples) - 1), min_size=1, max_size=8))
    batch = table_of(samples).batch(np.array(rows), pad_id=7)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == naive_batch(samples, rows, 7)
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_batch_without_type_ids_has_none():
    assert "token_type_ids" not in table_of([[1, 2]], types=False).batch(np.array([0]), 0)


def test_batch_of_a_regression_has_float_labels():
    batch = table_of([[1], [2]], labels=np.array([0.5, 2.25])).batch(np.array([1, -1]), 0)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [2.25, 0.0]


@pytest.mark.parametrize("row", [-2, 3])
def test_batch_refuses_rows_that_do_not_exist(row):
    with pytest.raises(DataError, match=r"must lie in 0\.\.2"):
        table_of([[1], [2], [3]]).batch(np.array([0, row]), 0)


def test_lengths():
    table = table_of([[1, 2, 3], [4], [5, 6]])
    assert len(table) == 3
    assert table.lengths.tolist() == [3, 1, 2]
    assert table.lengths_of(np.array([2, 0, 2])).tolist() == [2, 3, 2]


@pytest.mark.parametrize("name", ["ids", "type_ids", "offsets", "labels"])
def test_fingerprint_depends_on_every_array(name):
    table = table_of([[1, 2], [3, 4]])
    arrays = {field: getattr(table, field).copy() for field in ("ids", "type_ids", "offsets", "labels")}
    assert TokenTable(**arrays).fingerprint() == table.fingerprint()
    arrays[name][1] += 1
    assert TokenTable(**arrays).fingerprint() != table.fingerprint()


def test_fingerprint_tells_regression_and_missing_type_ids_apart():
    tables = [
        table_of([[1, 2]]),
        table_of([[1, 2]], types=False),
        table_of([[1, 2]], labels=np.array([0.0])),
    ]
    assert len({table.fingerprint() for table in tables}) == 3


def test_a_table_is_hashed_once(tmp_path, monkeypatch):
    table = table_of([[1, 2], [3]])
    table.save(tmp_path / "t")
    loaded = TokenTable.load(tmp_path / "t")
    monkeypatch.setattr("hashlib.sha256", None)
    assert loaded.fingerprint() == table.fingerprint()


@pytest.mark.parametrize(
    "changed",
    [
        {"ids": np.zeros(3, np.int64)},
        {"ids": np.zeros((1, 3), np.int32)},
        {"labels": np.zeros(2, np.float32)},
        {"offsets": np.array([0, 3])},
        {"offsets": np.array([0, 1, 2])},
        {"offsets": np.array([], np.int64)},
        {"type_ids": np.zeros(2, np.uint8)},
    ],
)
def test_a_table_that_does_not_fit_together_is_refused(changed):
    arrays = {
        "ids": np.zeros(3, np.int32),
        "type_ids": np.zeros(3, np.uint8),
        "offsets": np.array([0, 1, 3]),
        "labels": np.zeros(2, np.int64),
    }
    TokenTable(**arrays)
    with pytest.raises(DataError, match=r"token table"):
        TokenTable(**arrays | changed)


@pytest.mark.parametrize("types", [True, False])
def test_save_and_load(tmp_path, types):
    table = table_of([[1, 2], [3]], types=types)
    table.save(tmp_path / "t")
    loaded = TokenTable.load(tmp_path / "t")
    assert isinstance(loaded.ids, np.memmap)
    assert loaded.fingerprint() == table.fingerprint()
    assert (loaded.type_ids is None) == (not types)


def test_tokenise_equals_the_tokenizer_on_single_texts(tokenizer, monkeypatch):
    monkeypatch.setattr("fedgram.data.tokens._CHUNK", 3)
    table = tokenise([TEXTS], np.arange(4), tokenizer, 6)
    for row, text in enumerate(TEXTS):
        expected = tokenizer(text, truncation=True, max_length=6)
        cut = slice(table.offsets[row], table.offsets[row + 1])
        assert table.ids[cut].tolist() == expected["input_ids"]
        assert table.type_ids[cut].tolist() == expected["token_type_ids"]
    assert table.lengths.tolist() == [5, 3, 6, 4]


def test_tokenise_pairs(tokenizer):
    table = tokenise([TEXTS, TEXTS[::-1]], np.arange(4), tokenizer, 32)
    expected = tokenizer(TEXTS[1], TEXTS[2])
    assert table.ids[table.offsets[1] : table.offsets[2]].tolist() == expected["input_ids"]
    assert table.type_ids[table.offsets[1] : table.offsets[2]].tolist() == expected["token_type_ids"]
    assert table.type_ids.max() == 1


def test_tokenise_keeps_type_ids_only_if_the_model_takes_them(tmp_path):
    tokenizer = make_tokenizer(tmp_path, model_input_names=["input_ids", "attention_mask"])
    assert tokenise([TEXTS], np.arange(4), tokenizer, 16).type_ids is None


def test_tokenise_refuses_a_sample_without_token(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(DataError, match=r"row 2 \(counted from 1\) has no token"):
        tokenise([["film", "", "bad"]], np.arange(3), tokenizer, 8)


@pytest.mark.parametrize(("columns", "least"), [(1, 3), (2, 5)])
def test_max_length_must_hold_the_special_tokens_and_more(tokenizer, columns, least):
    assert tokenise([TEXTS] * columns, np.arange(4), tokenizer, least).lengths.max() == least
    with pytest.raises(ConfigurationError, match=rf"at least {least}"):
        tokenise([TEXTS] * columns, np.arange(4), tokenizer, least - 1)


def test_max_length_must_not_exceed_the_positions_of_the_model(tokenizer):
    tokenise([TEXTS], np.arange(4), tokenizer, 512)
    with pytest.raises(ConfigurationError, match=r"set max_length to 512"):
        tokenise([TEXTS], np.arange(4), tokenizer, 513)


def test_tokenizer_state_ignores_earlier_calls_and_sees_the_vocabulary(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    before = tokenizer_state(tokenizer)
    tokenizer(TEXTS, truncation=True, max_length=5, padding="max_length")
    assert tokenizer_state(tokenizer) == before
    assert tokenizer_state(make_tokenizer(tmp_path, WORDS[::-1])) != before
    assert tokenizer_state(make_tokenizer(tmp_path, truncation_side="left")) != before


def test_tokenizer_state_of_a_tokenizer_without_backend():
    class Slow:
        def __init__(self, vocabulary, path):
            self.vocabulary, self.init_kwargs = vocabulary, {"do_lower_case": True, "name_or_path": path}

        def get_vocab(self):
            return self.vocabulary

    assert tokenizer_state(Slow({"a": 0}, "x")) == tokenizer_state(Slow({"a": 0}, "y"))
    assert tokenizer_state(Slow({"a": 0}, "x")) != tokenizer_state(Slow({"a": 1}, "x"))


class Maker:
    def __init__(self, table):
        self.table, self.calls = table, 0

    def __call__(self):
        self.calls += 1
        return self.table


def test_cache_makes_once_and_leaves_nothing_else(tmp_path):
    make = Maker(table_of([[1, 2], [3]]))
    tables = [cached(tmp_path / "c", "key", make) for _ in range(3)]
    assert make.calls == 1
    assert {table.fingerprint() for table in tables} == {make.table.fingerprint()}
    assert isinstance(tables[0].ids, np.memmap)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["key"]


def _truncate(entry):
    (entry / "ids.npy").write_bytes((entry / "ids.npy").read_bytes()[:-4])


def _flip(entry):
    content = bytearray((entry / "ids.npy").read_bytes())
    content[-1] ^= 1
    (entry / "ids.npy").write_bytes(content)


def _replace_by_file(entry):
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    entry.write_text("")


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _flip,
        _replace_by_file,
        lambda entry: (entry / "labels.npy").unlink(),
        lambda entry: (entry / "type_ids.npy").unlink(),
        lambda entry: (entry / "digest.json").unlink(),
        lambda entry: (entry / "digest.json").write_text("[]"),
        lambda entry: (entry / "ids.npy").write_bytes(b""),
    ],
)
def test_damaged_cache_entry_is_made_anew_with_a_warning(tmp_path, damage, caplog):
    make = Maker(table_of([[1, 2], [3]]))
    cached(tmp_path, "key", make)
    damage(tmp_path / "key")
    with caplog.at_level(logging.WARNING):
        assert cached(tmp_path, "key", make).fingerprint() == make.table.fingerprint()
    assert "made anew" in caplog.text
    assert make.calls == 2
    assert TokenTable.load(tmp_path / "key", "key").fingerprint() == make.table.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_an_absent_entry_is_no_reason_to_warn(tmp_path, caplog):
    cached(tmp_path, "key", Maker(table_of([[1]])))
    assert not caplog.records


def test_an_interrupted_write_leaves_no_entry(tmp_path, monkeypatch):
    def interrupted(self, folder, key):
        folder.mkdir(parents=True)
        (folder / "ids.npy").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TokenTable, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cached(tmp_path, "key", Maker(table_of([[1]])))
    assert not list(tmp_path.iterdir())


def test_the_winner_of_a_race_is_used(tmp_path):
    winner, loser = table_of([[1, 2], [3]]), table_of([[1, 2], [4]])

    def make():
        winner.save(tmp_path / "key", "key")
        return loser

    assert cached(tmp_path, "key", make).fingerprint() == winner.fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_many_threads_at_once(tmp_path):
    table, barrier, found = table_of([[1, 2], [3]]), threading.Barrier(4), []

    def make():
        barrier.wait(timeout=10)
        return table

    workers = [
        threading.Thread(target=lambda: found.append(cached(tmp_path, "k", make).fingerprint())) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [table.fingerprint()] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "c").write_text("a file, not a folder")
    with pytest.raises(DataError, match=r"set cache_dir"):
        cached(tmp_path / "c", "key", Maker(table_of([[1]])))
