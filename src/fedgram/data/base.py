"""What data is to the trainer: tables of tokens by split, dealt to clients."""

import hashlib
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from lightning.pytorch import LightningDataModule

from fedgram.data.partition import Partition, Shards, deal_like
from fedgram.data.shards import Samples, checked_shards
from fedgram.data.tokens import TokenTable
from fedgram.errors import ConfigurationError, DataError
from fedgram.files import expand_home
from fedgram.names import check_path

__all__ = ["FederatedData", "positive"]

_Count = TypeVar("_Count", int, int | None)


class FederatedData(LightningDataModule, ABC):
    """Samples of a task, tokenised, and how they are dealt to clients.

    A new kind of data says how its tables come about (`load_tables`) and which groups of samples a partition tells
    apart (`groups`). A split is ``train``, ``validation`` or ``test``; a further part of one has its name and a suffix,
    such as MNLI's ``validation_mismatched``.

    Args:
        max_length: the most tokens of a sample; longer ones are cut.
        batch_size: samples of one local step.
        eval_batch_size: samples of one evaluation step.
        partition: how samples are dealt to clients.
        cache_dir: where tokenised data is kept; ``$FEDGRAM_CACHE`` or ``~/.cache/fedgram`` if not given.

    Attributes:
        tokenizer: the backbone's, to be set before `prepare_data` and `setup`.
        tables: the samples of each split, known after `setup`.
        group_names: what the groups are called in tables and pictures, known after `setup`.
    """

    name: str
    """What the data is called in the names of runs."""
    validation_remedy: str = "add a validation split to the data"
    """How to give the data a validation split, for the warning that there is none."""

    def __init__(
        self, max_length: int, batch_size: int, eval_batch_size: int, partition: Partition, cache_dir: str | None
    ) -> None:
        super().__init__()
        self.max_length = positive("max_length", max_length)
        self.batch_size = positive("batch_size", batch_size)
        self.eval_batch_size = positive("eval_batch_size", eval_batch_size)
        self.partition = partition
        check_path("data.cache_dir", cache_dir or "")
        self.cache_dir = cache_dir
        self.tokenizer: Any = None
        self.tables: dict[str, TokenTable] = {}
        self.group_names: list[str] = []

    @property
    def cache(self) -> Path:
        """The folder of everything that is kept between runs."""
        return expand_home(self.cache_dir or os.environ.get("FEDGRAM_CACHE") or "~/.cache/fedgram")

    @abstractmethod
    def load_tables(self) -> dict[str, TokenTable]:
        """Read, check and tokenise all splits, from the cache where they are in it."""

    @abstractmethod
    def groups(self, split: str) -> np.ndarray:
        """Return what a partition goes by: the group of each sample of a split, int64 ``(samples,)``.

        Groups are numbered from 0 as in `group_names`; an unlabelled sample has -1.
        """

    def prepare_data(self) -> None:
        """Read, check and tokenise the data into the cache."""
        self._load()

    def setup(self, stage: str | None = None) -> None:
        """Open the tables of all splits, from the cache where `prepare_data` has filled it."""
        del stage  # every stage needs the labels, and opening a table costs nothing
        self.tables = self._load()

    def _load(self) -> dict[str, TokenTable]:
        if self.tokenizer is None:
            raise ConfigurationError("the data has no tokenizer yet; set data.tokenizer before prepare_data and setup")
        return self.load_tables()

    @property
    def known_samples(self) -> int | None:
        """How many training samples there are, where that is known without reading them."""
        return None

    def split(self, name: str) -> TokenTable:
        """Return the table of a split.

        Raises:
            DataError: if there is no such split.
        """
        if name not in self.tables:
            available = ", ".join(self.tables) or "none before setup"
            others = "; fedgram validate, and predict --split validation, need none" if name == "test" else ""
            raise DataError(f"there is no {name} split (available: {available}); add its file to the data{others}")
        return self.tables[name]

    def parts(self, name: str) -> dict[str, str]:
        """Return the splits that are evaluated together, by the suffix that the metrics of each bear.

        Of MNLI's validation these are ``{"": "validation", "_mismatched": "validation_mismatched"}``.

        Raises:
            DataError: if there is no such split.
        """
        self.split(name)
        return {
            split.removeprefix(name): split for split in self.tables if split == name or split.startswith(f"{name}_")
        }

    def is_labelled(self, name: str) -> bool:
        """Say whether every sample of a split has a label to compare with."""
        labels = self.split(name).labels
        return not bool(np.isnan(labels).any() if labels.dtype.kind == "f" else (labels < 0).any())

    def inputs(self, split: str) -> dict[str, list[Any]]:
        """Return the columns of the data that a split's table of predictions repeats, in its order; none by default."""
        return {}

    def units(self, split: str) -> np.ndarray:
        """Return which samples go to one client only together: the number of each sample's unit, int64 from 0.

        By default every sample is one. The samples of a unit stand next to each other, and are of one group.
        """
        return np.arange(len(self.split(split)))

    def shards(self, clients: int, seed: int) -> Shards:
        """Deal the samples of the train split to clients.

        Raises:
            DataError: if the partition does not deal every sample to exactly one client, and some to every client.
        """
        samples = Samples(_first_of_each(self.units("train"), self.groups("train")), *self.dealt())
        if type(self.partition).__call__ is Partition.__call__:
            shards = self.partition.deal(samples, clients, seed)
        else:  # a rule of one's own that makes the shards itself
            dealt = self.partition(samples.labels, clients, seed)
            shards = checked_shards(dealt, samples, clients, type(self.partition).__name__)
        return shards.expanded(self.units("train"))

    def dealt(self) -> tuple[np.ndarray, str]:
        """Return the row of the train split's source that each unit was, and how many there are, for messages.

        By default the source is as the table has it.
        """
        count = len(np.unique(self.units("train")))
        return np.arange(count), f"{count:,} training samples"

    def shares(self, shards: Shards, split: str, seed: int) -> Shards:
        """Deal the samples of another split, so that each client has of every group what it has in training."""
        groups = _first_of_each(self.units(split), self.groups(split))
        return deal_like(shards, self.groups("train"), groups, seed).expanded(self.units(split))

    def fingerprint(self) -> str:
        """Return the SHA-256 over the tables of all splits."""
        prints = [f"{name}:{table.fingerprint()}" for name, table in sorted(self.tables.items())]
        return hashlib.sha256("\n".join(prints).encode()).hexdigest()


def _first_of_each(units: np.ndarray, groups: np.ndarray) -> np.ndarray:
    return groups[np.unique(units, return_index=True)[1]]


def positive(name: str, value: _Count) -> _Count:
    """Return a setting that must be at least 1, or may be None where that is allowed."""
    if value is not None and value < 1:
        raise ConfigurationError(f"{name} must be at least 1, got {value}")
    return value
