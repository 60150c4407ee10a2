"""Classification and regression of sentences and of pairs of sentences: from a source to token tables."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedgram.data.base import FederatedData, positive
from fedgram.data.columns import Columns, Place
from fedgram.data.labels import LabelScheme
from fedgram.data.partition import Dirichlet, Partition, quantile_edges, quantile_groups, quantile_names
from fedgram.data.reading import SPLITS, SUFFIXES, RawSplit, raw_split, read_file, read_source
from fedgram.data.tokens import TokenTable, cached, tokenise, tokenizer_state
from fedgram.errors import ConfigurationError, DataError
from fedgram.files import expand_home
from fedgram.names import check_path

__all__ = ["TextClassificationData"]

# Part of every cache key: to be raised when tables made by an older version must not be used any more.
MOST_LABELS = 100_000
"""The model's configuration, and the summary of a run, name every one of them."""
_FORMAT = 2


class TextClassificationData(FederatedData):
    """Labelled sentences, or pairs of sentences, from your own files or from the Hugging Face hub.

    Labels are whole numbers, names, truth values, or with num_labels 1 the scores of a regression; a test split may be
    unlabelled. The classes are those that occur in the train split. A local file may be .csv, .tsv, .json, .jsonl or
    .parquet. A subclass for another source overrides `read` alone.

    Args:
        path: a file (the train split), a folder with files such as train.csv, validation.csv (or dev, val, valid) and
            test.csv, or the name of a data set on the hub.
        config_name: the configuration of the hub's data set, such as qnli of nyu-mll/glue.
        validation_path: a file to use as the validation split.
        test_path: a file to use as the test split.
        text: the column of the sentences, or the two columns of a pair.
        label: the column of the labels.
        num_labels: how many labels there are: those that occur in the train split if not given; more where they are
            numbers within 0..num_labels-1 or 1..num_labels of which some do not occur; 1 for a regression.
        max_length: the most tokens of a sample; longer ones are cut.
        batch_size: sentences of one local step.
        eval_batch_size: sentences of one evaluation step.
        validation_fraction: hold out this share of the train split as the validation split, in the place of one that is
            there: where there is none, and to choose a learning rate without a look at what is reported. A hash of the
            text decides, so equal texts stay together and the choice depends on nothing else.
        max_train_samples: train on no more than this many samples, chosen by the same hash.
        label_quantiles: how many groups of about equal size a partition makes of the scores of a regression.
        partition: how samples are dealt to clients; Dirichlet(rho=0.5) if not given.
        cache_dir: where tokenised data is kept; ``$FEDGRAM_CACHE`` or ``~/.cache/fedgram`` if not given.

    Attributes:
        label_names: what the labels are called, known after `setup`.
        metrics: the metrics that this data is judged by, the most important one first.
    """

    validation_remedy = (
        "hold some rows out with --data.validation_fraction 0.1, or give --data.validation_path, or a file such as"
        " validation.csv in the folder"
    )
    source_splits: Mapping[str, Sequence[str]] = SPLITS
    """The splits that are read, and what the source may call each of them."""

    def __init__(
        self,
        path: str,
        config_name: str | None = None,
        validation_path: str | None = None,
        test_path: str | None = None,
        text: str | list[str] = "text",
        label: str = "label",
        num_labels: int | None = None,
        max_length: int = 128,
        batch_size: int = 8,
        eval_batch_size: int = 64,
        validation_fraction: float = 0.0,
        max_train_samples: int | None = None,
        label_quantiles: int = 5,
        partition: Partition | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(max_length, batch_size, eval_batch_size, partition or Dirichlet(), cache_dir)
        for key, given in {"path": path, "validation_path": validation_path, "test_path": test_path}.items():
            check_path(f"data.{key}", given or "")
        self.path, self.config_name = path, config_name
        self.name = config_name or _name_of(path)
        self.extra_paths = {"validation": validation_path, "test": test_path}
        self.text, self.label = _columns(text), label
        self.given_num_labels = positive("num_labels", num_labels)
        for key, value in {"num_labels": num_labels, "label_quantiles": label_quantiles}.items():
            if (value or 1) > MOST_LABELS:
                raise ConfigurationError(f"{key} must be at most {MOST_LABELS:,}, got {value}")
        self.validation_fraction = _fraction(validation_fraction)
        self.max_train_samples = positive("max_train_samples", max_train_samples)
        self.label_quantiles = positive("label_quantiles", label_quantiles)
        self.label_names: list[str] = []
        self._dealt: tuple[np.ndarray, str] | None = None
        self._origins: dict[str, tuple[str, np.ndarray]] = {}  # the source's split, and its rows
        self.metrics: tuple[str, ...] = ("pearson", "spearman") if num_labels == 1 else ("accuracy", "macro_f1")

    @property
    def num_labels(self) -> int:
        """How many labels there are, known after `setup` at the latest; 1 for a regression."""
        if self.label_names:
            return len(self.label_names)
        if self.given_num_labels is None:
            raise ConfigurationError("num_labels is not known before the data is read; set it, or call setup first")
        return self.given_num_labels

    def _kept_of(self, samples: int) -> int:
        """Return about how many training samples are left of some."""
        kept = round(samples * (1 - self.validation_fraction))
        return kept if self.max_train_samples is None else min(kept, self.max_train_samples)

    def read(self) -> dict[str, RawSplit]:
        """Read the splits: ``train``, and as far as there are such, ``validation`` and ``test``."""
        sources = read_source(self.path, self.config_name, self.text, self.source_splits)
        for name, path in self.extra_paths.items():
            if path is not None:
                sources[name] = read_file(expand_home(path), self.text)
        return {name: raw_split(self.arranged(source), self.text, self.label, name) for name, source in sources.items()}

    def arranged(self, source: Columns) -> Columns:
        """Return a source with the columns that the settings name, where it has others; by default as it is."""
        return source

    def groups(self, split: str) -> np.ndarray:
        labels = np.asarray(self.split(split).labels)
        return labels if self.num_labels > 1 else quantile_groups(labels, self._edges(self.split("train").labels))

    def _edges(self, scores: np.ndarray) -> np.ndarray:
        return quantile_edges(scores, self.label_quantiles)

    def dealt(self) -> tuple[np.ndarray, str]:
        return self._dealt or super().dealt()

    def inputs(self, split: str) -> dict[str, list[Any]]:
        """Return all columns that the source has, which is read again, with classes by their names."""
        self.split(split)
        origin, rows = self._origins[split]
        raw = self.read()[origin]
        if raw.source is None:
            return {name: [texts[row] for row in rows] for name, texts in zip(self.text, raw.texts, strict=True)}
        return {name: raw.source.shown(name, rows.tolist()) for name in raw.source.column_names}

    def load_tables(self) -> dict[str, TokenTable]:
        raws = self.read()
        samples = len(raws["train"])
        scheme = LabelScheme.of(raws["train"], self.given_num_labels)
        splits = {name: _encoded(raw, scheme, name) for name, raw in raws.items()}
        if self.validation_fraction:
            others = {name: split for name, split in splits.items() if not name.startswith("validation")}
            splits = others | _held_out(splits["train"], self.validation_fraction)
        if self.max_train_samples is not None:
            splits["train"] = _limited(splits["train"], self.max_train_samples)
        self._origins = {name: (name if name in raws else "train", split.rows) for name, split in splits.items()}
        self._dealt = (rows := splits["train"].rows), _counted(len(rows), samples)
        self.label_names = self.group_names = list(scheme.names)
        if scheme.kind == "score":
            scores = splits["train"].labels
            self.group_names = quantile_names(scores, self._edges(scores))
        state = tokenizer_state(self.tokenizer)
        return {name: self._table(split, state) for name, split in splits.items()}

    def _table(self, split: "_Encoded", state: str) -> TokenTable:
        parts = [str(_FORMAT), state, str(self.max_length), split.digest()]
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        make = partial(tokenise, split.texts, split.labels, self.tokenizer, self.max_length, split.name_row)
        return cached(self.cache / "tokens", key, make)


def _counted(kept: int, samples: int) -> str:
    others = f" (of {samples:,} in the train split, the others are held out or beyond max_train_samples)"
    return f"{kept:,} training samples" + (others if kept < samples else "")


def _name_of(path: str) -> str:
    """Return the last part of a path or of a hub's name, without the suffix of a file."""
    resolved = expand_home(path).resolve()
    return resolved.stem if resolved.suffix in SUFFIXES else resolved.name


@dataclass(frozen=True, eq=False)
class _Encoded:
    """The samples of one split, with labels as numbers.

    Args:
        texts: one or two lists of sentences, each ``(samples,)``.
        labels: int64 or float64 ``(samples,)``.
        rows: the row of the source that each sample was, int64 ``(samples,)``.
        place: the source.
    """

    texts: tuple[list[str], ...]
    labels: np.ndarray
    rows: np.ndarray
    place: Place

    def take(self, rows: np.ndarray) -> "_Encoded":
        texts = tuple([column[row] for row in rows] for column in self.texts)
        return _Encoded(texts, self.labels[rows], self.rows[rows], self.place)

    def name_row(self, index: int) -> str:
        """Say where a sample comes from, for messages."""
        return self.place.rows([int(self.rows[index])])

    def digest(self) -> str:
        """Return the SHA-256 of texts and labels."""
        digest = hashlib.sha256(f"{len(self.texts)}:{self.labels.dtype.str}:{self.labels.shape};".encode())
        digest.update(self.labels.tobytes())
        for column in self.texts:
            # With the lengths, no two ways to cut the same characters into texts are alike.
            digest.update(np.array([len(text) for text in column], np.int64).tobytes())
            digest.update("".join(column).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def hashes(self) -> np.ndarray:
        """Return a number in [0, 1) for each sample, decided by its texts, float64 ``(samples,)``."""
        return np.array([_unit_hash(texts) for texts in zip(*self.texts, strict=True)])


def _encoded(raw: RawSplit, scheme: LabelScheme, name: str) -> _Encoded:
    return _Encoded(raw.texts, scheme.encode(raw, name), np.arange(len(raw)), raw.place or Place(name))


def _unit_hash(texts: Sequence[str]) -> float:
    digest = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()
    # 53 bits, so that the quotient is exact and never rounds up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def _held_out(train: _Encoded, fraction: float) -> dict[str, _Encoded]:
    """Cut a validation split out of the train split."""
    held = train.hashes() < fraction
    if held.all() or not held.any():
        raise DataError(
            f"validation_fraction {fraction} of {len(held)} train samples leaves {held.sum()} for validation and"
            f" {(~held).sum()} for training; choose another fraction, or give a validation split"
        )
    return {"train": train.take(np.flatnonzero(~held)), "validation": train.take(np.flatnonzero(held))}


def _limited(train: _Encoded, most: int) -> _Encoded:
    """Keep the samples with the smallest hashes, in their order, so that a larger limit only adds samples."""
    return train.take(np.sort(np.argsort(train.hashes(), kind="stable")[:most]))


def _columns(text: str | list[str]) -> list[str]:
    columns = [text] if isinstance(text, str) else list(text)
    if len(columns) not in (1, 2):
        raise ConfigurationError(f"text must name one column, or the two columns of a pair; got {text}")
    return columns


def _fraction(value: float) -> float:
    if not 0 <= value < 1:
        raise ConfigurationError(f"validation_fraction must lie in [0, 1), got {value}")
    return value
