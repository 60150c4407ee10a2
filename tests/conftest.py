"""Tiny models and data, made on the fly: no test needs a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import logging
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from hypothesis import settings

from browser import Browser, obstacle
from tiny_text import WORDS, sentences

if not sys.platform.startswith("linux"):  # ranks end with the process that forked them, which is a call of Linux
    collect_ignore = ["distributed"]

settings.register_profile("fedgram", max_examples=40, deadline=None)  # each run draws other ones
settings.load_profile("fedgram")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--board-runs", help="runs of two methods, for test_tensorboard.py instead of its own")
    parser.addoption("--record", action="store_true", help="record anew what tests/golden compares fits with")
    parser.addoption("--board-picture", help="where test_tensorboard.py leaves a picture of TensorBoard")


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark cases as slow of tests that have more than ``make test`` runs: it has some, spread evenly over all."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("quick_cases"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for alike in cases.values():
        (count,) = alike[0].get_closest_marker("quick_cases").args
        quick = {len(alike) * place // count for place in range(count)}
        for place, item in enumerate(alike):
            if place not in quick:
                item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, bool | None, bool | None]:
    """Give the next test the environment, and the handlers of fedgram's log, that this one found.

    In whatever order its fixtures tidied up; and the command line leaves a handler that writes into captured output.
    What a process says but once, each test may hear.
    """
    if columns := sys.modules.get("fedgram.data.columns"):
        columns.notice.cache_clear()
    log = logging.getLogger("fedgram")
    found = log.handlers, log.level
    with mock.patch.dict(os.environ):
        try:
            return (yield)
        finally:
            log.handlers, log.level = found


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random BERT of 2 layers, hidden 16, with a word-level tokenizer, in a folder."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tiny_data(tiny_sentences: Path, tmp_path: Path) -> Path:
    """A copy of the sentences, which a test may change."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_sentences, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv (60 rows), validation.csv and test.csv (16 rows each), which no test changes."""
    folder = tmp_path_factory.mktemp("sentences") / "data"
    folder.mkdir()
    for split, count in {"train": 60, "validation": 16, "test": 16}.items():
        texts, labels = sentences(count, seed=count)
        rows = "\n".join(f"{text},{label}" for text, label in zip(texts, labels, strict=True))
        (folder / f"{split}.csv").write_text(f"text,label\n{rows}\n")
    return folder


@pytest.fixture
def config(tiny_backbone: str, tiny_data: Path, tmp_path: Path) -> Path:
    """A config of a small run on the tiny data."""
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "method": {"class_path": "FLoRG", "init_args": {"rank": 2}},
                "model": {"class_path": "TextClassification", "init_args": {"backbone": tiny_backbone}},
                "data": {
                    "class_path": "TextClassificationData",
                    "init_args": {"path": str(tiny_data), "batch_size": 3, "cache_dir": str(tmp_path / "cache")},
                },
                "trainer": {"rounds": 2, "clients": 4, "local_steps": 2, "accelerator": "cpu", "loggers": False},
            }
        )
    )
    return path


@pytest.fixture
def fedgram(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs ``fedgram ...`` in an empty working directory; returns exit code, stdout and stderr."""
    from fedgram.cli import main

    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedgram", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(autouse=True)
def no_partition_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves a run's picture of its partition empty, as it takes as long as a small run, but for whom it is marked."""
    if request.node.get_closest_marker("partition_picture") is None:
        from blank_pictures import partition_picture

        monkeypatch.setattr("fedgram.federation.summary.partition_picture", partition_picture)


@pytest.fixture(autouse=True)
def rough_operations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has operations be round numbers, as to count them takes as long as to fit, but for whom it is marked."""
    if request.node.get_closest_marker("flops") is None:
        from rough_operations import rough_flops_by_round, rough_prices

        monkeypatch.setattr("fedgram.federation.setup.find_prices", rough_prices)
        monkeypatch.setattr("fedgram.cost.estimation.flops_by_round", rough_flops_by_round)


@pytest.fixture(autouse=True)
def known_trials(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has runs on the tiny backbone know what its trials find, but for whom it is marked."""
    if request.node.get_closest_marker("trials") is None:
        from known_trials import trouble, try_blocks

        monkeypatch.setattr("fedgram.federation.setup.try_blocks", try_blocks)
        monkeypatch.setattr("fedgram.engine.shortcuts._trouble", trouble)


@pytest.fixture
def browser() -> Iterator[Browser]:
    """A headless Chromium; the test is skipped where one is missing."""
    reason = obstacle()
    if reason is not None:
        pytest.skip(reason)
    with Browser() as chromium:
        yield chromium
