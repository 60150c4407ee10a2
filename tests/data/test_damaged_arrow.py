"""Files in the cache of the datasets library that are damaged: made anew, or refused with the folder to delete."""

import logging

import pytest

from fedgram.data.reading import read_hub
from fedgram.errors import DataError

# The datasets library before 5.2 leaves the source's files for Python to close.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set that is loaded through a cache of its own; returns its files there, and a switch of the network."""
    import datasets

    source, cache, real = tmp_path / "source", tmp_path / "cache", datasets.load_dataset
    source.mkdir()
    for split, count in {"train": 300, "validation": 20}.items():
        lines = "".join(f"sentence {i} é,{i % 2}\n" for i in range(count))
        (source / f"{split}.csv").write_text(f"sentence,label\n{lines}")
    online = [True]

    def load(name, config_name, **options):
        if options and not online[0]:
            raise ConnectionError("the hub can't be reached")
        return real(str(source), config_name, cache_dir=str(cache), **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    read_hub("owner/name")
    return {path.stem.rpartition("-")[2]: path for path in cache.rglob("*.arrow")}, online


def cut(content):
    return content[: len(content) // 2]


def emptied(content):
    return b""


def zeroed(content):
    return bytes(len(content))


def of_no_language(content):
    """A byte of a text becomes one that no text in UTF-8 has."""
    place = content.index(b"sentence 7 ")
    return content[:place] + b"\xff" + content[place + 1 :]


DAMAGES = (cut, emptied, zeroed, of_no_language)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_damaged_files_of_the_cache_are_made_anew(hub, caplog, damage, split):
    file = hub[0][split]
    content = file.read_bytes()
    file.write_bytes(damage(content))
    with caplog.at_level(logging.WARNING, "fedgram"):
        found = read_hub("owner/name")
    assert "the data set 'owner/name' was damaged in the cache of the datasets library (" in caplog.text
    assert [found["train"]["sentence"][7], len(found["validation"])] == ["sentence 7 é", 20]
    caplog.clear()
    assert read_hub("owner/name")["train"]["sentence"] == found["train"]["sentence"]
    assert not caplog.text
    assert file.read_bytes() == content


@pytest.mark.parametrize("damage", DAMAGES)
def test_without_a_network_the_folder_to_delete_is_named(hub, tmp_path, damage):
    files, online = hub
    files["train"].write_bytes(damage(files["train"].read_bytes()))
    online[0] = False
    said = (
        r"'owner/name' is damaged in the cache of the datasets library \(.+\), and can't be loaded anew \(the hub can't"
    )
    with pytest.raises(DataError, match=said) as caught:
        read_hub("owner/name")
    assert f"; delete {tmp_path / 'cache' / 'owner___name'} and start again where there is a network" in str(
        caught.value
    )
