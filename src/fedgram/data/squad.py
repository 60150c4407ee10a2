"""Questions about paragraphs, answered by a stretch of the paragraph: from a source to token tables."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedgram.data.base import FederatedData, positive
from fedgram.data.columns import Columns, check_columns, check_texts
from fedgram.data.partition import IID, Partition
from fedgram.data.reading import read_source
from fedgram.data.tokens import TokenTable, cached, tokenizer_state
from fedgram.data.windows import cut_windows
from fedgram.errors import ConfigurationError, DataError
from fedgram.files import expand_home

__all__ = ["Questions", "SQuAD"]

logger = logging.getLogger(__name__)

# Part of every cache key: to be raised when tables made by an older version must not be used any more.
_FORMAT = 2
_TEXT = ("context", "question")
_SQUAD = "rajpurkar/squad"
_QUESTIONS = 87_599
"""Of its train split."""
_MOST_MISPLACED = 0.01
"""Offsets in bytes, or of another text, are wrong in more of the questions; published sets have a few slips."""


@dataclass(frozen=True, eq=False)
class Questions:
    """The questions of one split.

    Args:
        ids: what each question is known by.
        questions: what is asked.
        contexts: the paragraph that each is asked about.
        answers: all answers to each that are right; None if they are not known.
        spans: the characters of the context that the first answer starts at and ends before, int64 ``(questions, 2)``,
            -1 where no answer stands where the source says; None if the answers are not known.
        rows: the row of the source that each was, int64 ``(questions,)``; by default the source has no others.
    """

    ids: list[str]
    questions: list[str]
    contexts: list[str]
    answers: list[list[str]] | None
    spans: np.ndarray | None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Sequence[int]) -> "Questions":
        """Return some of the questions."""
        return Questions(
            [self.ids[row] for row in rows],
            [self.questions[row] for row in rows],
            [self.contexts[row] for row in rows],
            None if self.answers is None else [self.answers[row] for row in rows],
            None if self.spans is None else self.spans[list(rows)],
            self.numbers[list(rows)],
        )

    @property
    def numbers(self) -> np.ndarray:
        """The row of the source that each question was, int64 ``(questions,)``."""
        return np.arange(len(self)) if self.rows is None else self.rows

    @property
    def misplaced(self) -> np.ndarray:
        """The questions none of whose answers is in the context where the source says, int64 ``(n,)``."""
        return np.flatnonzero(np.zeros(0) if self.spans is None else self.spans[:, 0] < 0)

    def digest(self) -> str:
        """Return the SHA-256 of all that decides the table of tokens."""
        spans = None if self.spans is None else self.spans.tolist()
        return hashlib.sha256(json.dumps([self.questions, self.contexts, spans]).encode()).hexdigest()


class SQuAD(FederatedData):
    """Questions about paragraphs as in SQuAD v1.1, where every answer is a stretch of its paragraph.

    Paragraphs that do not fit are cut into overlapping windows: a sample is one window with its question, and a batch
    and the weight of a client count windows. Yet the partition deals questions, all windows of one to the same client.

    The columns are id, question, context and answers, of which the last holds the lists text and answer_start; a test
    split may be without answers. Questions without an answer, as SQuAD 2.0 has them, are refused. So are splits where
    of more than 1 % of the questions no answer is in the context where answer_start says; fewer are left out of the
    train split with a warning, and in another split are scored like any other. An answer longer than a window lies in
    none, which is counted in a warning. Spaces around a question and what exceeds 64 tokens of it are dropped.

    Args:
        path: a folder with files such as train.parquet and validation.parquet, a file (the train split), or the name of
            a data set on the hub.
        max_length: the most tokens of a window, question and special tokens included.
        doc_stride: tokens of the paragraph that neighbouring windows share.
        batch_size: windows of one local step.
        eval_batch_size: windows of one evaluation step.
        max_train_samples: train on no more than this many questions, chosen by a hash of the id.
        partition: how questions are dealt to clients; IID if not given. All are of one group.
        cache_dir: where tokenised data is kept; ``$FEDGRAM_CACHE`` or ``~/.cache/fedgram`` if not given.
    """

    validation_remedy = "add a file such as validation.parquet to the folder that data.path names"

    def __init__(
        self,
        path: str = _SQUAD,
        max_length: int = 384,
        doc_stride: int = 128,
        batch_size: int = 8,
        eval_batch_size: int = 32,
        max_train_samples: int | None = None,
        partition: Partition | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(max_length, batch_size, eval_batch_size, partition or IID(), cache_dir)
        if doc_stride < 0:
            raise ConfigurationError(f"doc_stride must be at least 0, got {doc_stride}")
        self.path = path
        self.name = expand_home(path).resolve().stem
        self.doc_stride = doc_stride
        self.max_train_samples = positive("max_train_samples", max_train_samples)
        self.group_names = ["windows"]
        self.questions: dict[str, Questions] = {}
        self._left_out = 0

    @property
    def known_samples(self) -> int | None:
        """Questions of SQuAD v1.1, where that is asked for: a few of them have more windows than one."""
        if self.path != _SQUAD:
            return None
        return _QUESTIONS if self.max_train_samples is None else min(_QUESTIONS, self.max_train_samples)

    def read(self) -> dict[str, Questions]:
        """Read the splits: ``train``, and as far as there are such, ``validation`` and ``test``."""
        sources = read_source(self.path, None, _TEXT)
        return {name: _questions(source, name) for name, source in sources.items()}

    def load_tables(self) -> dict[str, TokenTable]:
        splits = self.read()
        for name, split in splits.items():
            _check_places(split, name)
        asked = len(splits["train"])
        splits["train"] = _limited(_placed(splits["train"]), self.max_train_samples)
        self.questions, self._left_out = splits, asked - len(splits["train"])
        state = tokenizer_state(self.tokenizer)
        tables = {name: self._table(split, state) for name, split in splits.items()}
        for name, table in tables.items():
            self._check_windows(splits[name], table, name)
        return tables

    def _check_windows(self, split: Questions, table: TokenTable, name: str) -> None:
        """Warn of answers that lie in no window, and refuse a train split of no others."""
        if split.spans is None:
            return
        found = np.zeros(len(split), bool)
        found[table.extra["example"][table.labels.any(axis=1)]] = True
        lost = np.setdiff1d(np.flatnonzero(~found), split.misplaced)
        if not len(lost):
            return
        message = (
            f"the answer to {_share(len(lost), len(split))} {name} questions lies whole in no window, the first to"
            f" {split.ids[lost[0]]}: windows have {self.max_length} tokens with the question, and share"
            f" {self.doc_stride}; raise data.max_length or data.doc_stride"
        )
        if name == "train" and len(lost) == len(split):
            raise DataError(message)
        effect = "they train the model to find no answer" if name == "train" else "the model can't find them"
        logger.warning("%s (%s)", message, effect)

    def dealt(self) -> tuple[np.ndarray, str]:
        train = self.questions["train"]
        note = f"{len(train):,} training questions"
        if self._left_out:
            note += f" (of {len(train) + self._left_out:,} in the train split, the others are left out)"
        return train.numbers, note

    def _table(self, split: Questions, state: str) -> TokenTable:
        parts = ["windows", str(_FORMAT), state, str(self.max_length), str(self.doc_stride), split.digest()]
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        sources = (split.questions, split.contexts, split.spans)
        make = partial(cut_windows, *sources, self.tokenizer, self.max_length, self.doc_stride)
        return cached(self.cache / "tokens", key, make)

    def examples(self, split: str) -> Questions:
        """Return the questions of a split, which ``extra["example"]`` of its table refers to by number.

        Raises:
            DataError: if there is no such split.
        """
        self.split(split)
        return self.questions[split]

    def groups(self, split: str) -> np.ndarray:
        return np.zeros(len(self.split(split)), np.int64)

    def units(self, split: str) -> np.ndarray:
        return np.asarray(self.split(split).extra["example"])


def _questions(source: Columns, split: str) -> Questions:
    """Take the columns out of a source."""
    needed = ["id", *_TEXT] if split == "test" else ["id", *_TEXT, "answers"]
    check_columns(source, needed, split, "give it the columns id, context, question and answers")
    contexts, questions = (check_texts(source[column], column, source.place(split)) for column in _TEXT)
    if blank := [row for row, question in enumerate(questions) if not question.strip()]:
        raise DataError(
            f"{_share(len(blank), len(questions))} {split} questions are empty, in {_rows(blank)}; fill them in or"
            " remove the rows"
        )
    ids = [str(identity) for identity in source["id"]]
    cells = source["answers"] if "answers" in source.column_names else [None] * len(source)
    pairs = _pairs(cells, split)
    if split == "test" and not any(pairs):
        return Questions(ids, questions, contexts, None, None)
    if without := [row for row, own in enumerate(pairs) if not own]:
        raise DataError(
            f"{_share(len(without), len(pairs))} {split} questions have no answer, in {_rows(without)}: SQuAD 2.0 has"
            " such questions, but here every answer is a stretch of the paragraph; remove these rows"
            + (" (only a test split may be without any answers)" if split == "test" else "")
        )
    spans = [_span(context, own) for context, own in zip(contexts, pairs, strict=True)]
    return Questions(ids, questions, contexts, [[text for text, _ in own] for own in pairs], np.array(spans, np.int64))


def _pairs(cells: Sequence[Any], split: str) -> list[list[tuple[str, int]]]:
    """Return the text and the first character of each answer to each question."""
    found = [_answers(cell) for cell in cells]
    if bad := [row for row, pairs in enumerate(found) if pairs is None]:
        raise DataError(
            f"the answers to {_share(len(bad), len(cells))} {split} questions, in {_rows(bad)}, do not hold a list text"
            " of strings and a list answer_start of as many numbers, as those of rajpurkar/squad do; the first are"
            f" {cells[bad[0]]!r:.200}"
        )
    return [pairs or [] for pairs in found]


def _answers(cell: Any) -> list[tuple[str, int]] | None:
    """Return the text and the first character of each answer; None if the cell holds something else."""
    if cell is None:
        return []
    try:
        pairs = list(zip(cell["text"], cell["answer_start"], strict=True))
    except (TypeError, KeyError, ValueError):
        return None
    whole = all(isinstance(text, str) and isinstance(start, int) for text, start in pairs)
    return pairs if whole and not any(isinstance(start, bool) for _, start in pairs) else None


def _span(context: str, answers: list[tuple[str, int]]) -> tuple[int, int]:
    """Return the characters of the first answer that is where it is said to be; -1 if none is."""
    for text, start in answers:
        if text.strip() and start >= 0 and context.startswith(text, start):
            return start, start + len(text)
    return -1, -1


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({part / whole:.1%})"


def _rows(rows: Sequence[int], most: int = 5) -> str:
    """List the first rows of some, as they are counted in messages."""
    named = ", ".join(str(row + 1) for row in rows[:most]) + (", ..." if len(rows) > most else "")
    return f"row{'s' * (len(rows) > 1)} {named} (counted from 1)"


def _check_places(split: Questions, name: str) -> None:
    """Refuse a split with many answers that are not where they are said to be; of few, warn."""
    misplaced = split.misplaced
    if not len(misplaced):
        return
    message = (
        f"no answer to {_share(len(misplaced), len(split))} {name} questions is in the context at its answer_start, in"
        f" {_rows(misplaced.tolist())}"
    )
    if len(misplaced) > _MOST_MISPLACED * len(split):
        raise DataError(
            f"{message}: answer_start must count characters (not bytes) from 0; correct or remove these rows"
        )
    logger.warning("%s; %s", message, "they are left out" if name == "train" else "they are scored by their text alone")


def _placed(train: Questions) -> Questions:
    """Leave out the questions whose answers are not where they are said to be."""
    return train.take(np.setdiff1d(np.arange(len(train)), train.misplaced).tolist())


def _limited(train: Questions, most: int | None) -> Questions:
    """Keep the questions with the smallest hashes, in their order, so that a larger limit only adds questions."""
    hashes = [hashlib.sha256(identity.encode()).digest() for identity in train.ids]
    return train.take(sorted(sorted(range(len(train)), key=hashes.__getitem__)[:most]))
