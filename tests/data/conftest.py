import pytest

from tiny_tokenizer import make_tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    return make_tokenizer(tmp_path)


@pytest.fixture
def make_data(tmp_path, tokenizer):
    """Makes data of a kind, with the tiny tokenizer and a cache of its own."""

    def make_data(kind, *args, **settings):
        data = kind(*args, **{"cache_dir": str(tmp_path / "cache")} | settings)
        data.tokenizer = tokenizer
        return data

    return make_data


@pytest.fixture
def loaded(make):
    """Makes the data that a module's `make` makes, and reads it."""

    def loaded(*args, **settings):
        data = make(*args, **settings)
        data.prepare_data()
        data.setup()
        return data

    return loaded


@pytest.fixture
def offline(monkeypatch):
    """Cuts off the hub: the variable is read when the libraries are imported, which may have happened already."""
    import datasets
    import huggingface_hub

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
