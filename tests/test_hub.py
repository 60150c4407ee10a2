import socket
import sys
import time

import pytest

from fake_hub import running
from fedgram import hub
from fedgram.hub import is_hub_name, remedy


@pytest.fixture
def online(monkeypatch):
    """Takes the hub to be at an address, with a second to answer, and returns what `why_offline` says."""
    import datasets
    import huggingface_hub

    def online(endpoint, switched_off=False):
        monkeypatch.setenv("HF_HUB_OFFLINE", str(int(switched_off)))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", switched_off)
        settings = {"HF_HUB_OFFLINE": switched_off, "ENDPOINT": endpoint, "HF_HUB_ETAG_TIMEOUT": 1}
        for name, value in settings.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        hub.why_offline.cache_clear()
        return hub.why_offline()

    yield online
    hub.why_offline.cache_clear()


def off_switches():
    import os

    import huggingface_hub

    datasets = sys.modules["datasets"]
    return os.environ["HF_HUB_OFFLINE"], huggingface_hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE


@pytest.fixture
def silent():
    """An address that takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def closed():
    """An address that nobody listens at."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def test_no_test_asks_the_hub():
    """The switch is read when the library is imported, which must not be before conftest.py is."""
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_asked(online, tmp_path):
    with running(tmp_path) as server:
        assert online(server.endpoint) is None
        assert hub.why_offline() is None
        assert server.requests == ["HEAD /"]  # once
    assert remedy("cache") is None
    assert off_switches() == ("0", False, False)


def test_a_hub_that_is_switched_off_is_not_tried(online, tmp_path):
    with running(tmp_path) as server:
        assert online(server.endpoint, switched_off=True) == "HF_HUB_OFFLINE is set"
        assert not server.requests


@pytest.mark.parametrize("address", ["closed", "silent"])
def test_a_hub_that_does_not_answer_is_switched_off(online, address, request, caplog):
    endpoint, before = request.getfixturevalue(address), time.monotonic()
    why = online(endpoint)
    assert time.monotonic() - before < 30
    assert why.startswith(f"the hub can't be reached at {endpoint} (")
    assert off_switches() == ("1", True, True)
    assert [record.message for record in caplog.records] == [f"{why}: only what is in its cache is used"]
    assert remedy("some/cache").startswith(f"{why}, so that it has to be in the cache some/cache: run fedgram prepare")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("roberta-base", True),
        ("meta-llama/Llama-3.2-3B", True),
        ("a/b/c", False),
        ("./a", False),
        ("/a/b", False),
        ("~/a", False),
        ("here/folder", False),
    ],
)
def test_names_of_the_hub_are_told_from_paths(tmp_path, monkeypatch, place, expected):
    (tmp_path / "here" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_hub_name(place) == expected
