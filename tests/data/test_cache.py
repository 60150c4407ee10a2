"""The cache of tokens: what is damaged or swapped is made anew, and who may not write to it can still read it."""

import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from fedgram.data.tokens import TokenTable, cached
from fedgram.errors import DataError


def table_of(*numbers):
    ids = np.array(numbers, np.int32)
    return TokenTable(ids, None, np.arange(len(ids) + 1), np.zeros(len(ids), np.int64))


def fill(folder, **tables):
    return {key: cached(folder, key, lambda table=table: table) for key, table in tables.items()}


def test_entries_that_were_swapped_are_made_anew(tmp_path, caplog):
    one, two = table_of(1, 2, 3), table_of(4, 5, 6)
    fill(tmp_path, one=one, two=two)
    (tmp_path / "one").rename(tmp_path / "three")
    (tmp_path / "two").rename(tmp_path / "one")
    (tmp_path / "three").rename(tmp_path / "two")
    with caplog.at_level(logging.WARNING):
        found = fill(tmp_path, one=one, two=two)
    assert {key: table.ids.tolist() for key, table in found.items()} == {"one": [1, 2, 3], "two": [4, 5, 6]}
    assert caplog.text.count("a cache entry is made anew") == 2
    caplog.clear()
    fill(tmp_path, one=one, two=two)
    assert not caplog.records


CONTENTS = {
    "empty": b"",
    "zip": b"PK\3\4" + bytes(100),
    "header": b"\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'fortran_order': False, 'shape': (9" + b"9" * 60,
    "nested": b"[" * 100_000,
    "null": b"null",
    "page": b"<!DOCTYPE html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "pipe": None,
}


@pytest.mark.parametrize("name", ["ids.npy", "offsets.npy", "labels.npy", "digest.json"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_damaged_files_of_every_kind_are_made_anew_with_one_warning(tmp_path, caplog, name, content):
    table = table_of(1, 2, 3)
    fill(tmp_path, key=table)
    path = tmp_path / "key" / name
    path.unlink()
    os.mkfifo(path) if content is None else path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert fill(tmp_path, key=table)["key"].fingerprint() == table.fingerprint()
    assert [record.getMessage()[:27] for record in caplog.records] == ["a cache entry is made anew:"]
    assert isinstance(fill(tmp_path, key=table)["key"].ids, np.memmap)


def test_bytes_all_over_an_entry_are_checked(tmp_path):
    fill(tmp_path, key=table_of(1, 2, 3))
    for path in sorted((tmp_path / "key").iterdir()):
        content = path.read_bytes()
        for place in range(0, len(content), 3):
            changed = bytearray(content)
            changed[place] ^= 1
            path.write_bytes(changed)
            try:
                found = TokenTable.load(tmp_path / "key", "key")
            except DataError:
                continue
            assert found.fingerprint() == table_of(1, 2, 3).fingerprint()  # what is unused in a header
        path.write_bytes(content)


def refuse(number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    return refused


def test_a_complete_cache_that_nobody_may_write_to_is_used(tmp_path, monkeypatch, caplog):
    table = table_of(1, 2, 3)
    fill(tmp_path, key=table)
    for name in ("mkdir", "rename", "replace", "unlink", "touch"):
        monkeypatch.setattr(Path, name, refuse(errno.EROFS))
    monkeypatch.setattr(np, "save", refuse(errno.EROFS))
    assert fill(tmp_path, key=table)["key"].fingerprint() == table.fingerprint()
    assert not caplog.records


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, number):
    monkeypatch.setattr(np, "save", refuse(number))
    with pytest.raises(DataError) as caught:
        fill(tmp_path / "tokens", key=table_of(1))
    assert str(caught.value) == (
        f"cannot write the cache {tmp_path / 'tokens'} ({os.strerror(number)}); set cache_dir, or FEDGRAM_CACHE, to a "
        "folder with space that you may write to"
    )
    assert not list((tmp_path / "tokens").iterdir())
