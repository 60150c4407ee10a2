"""Questions about contexts, which are cut into overlapping windows where they are long: pure functions.

A window is the special tokens, the question and a stretch of the context, the question first whatever the tokenizer:
a decoder then reads the context knowing the question, and position 0 never is a token of a context. It stands for "the
answer is not here".
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from fedgram.data.tokens import TokenTable, check_max_length
from fedgram.errors import ConfigurationError

__all__ = ["MAX_QUESTION_TOKENS", "answer_labels", "cut_questions", "cut_windows"]

MAX_QUESTION_TOKENS = 64
"""Longer questions lose their end, as in the code that was published with BERT."""
# Large enough that the tokenizer's threads are busy, small enough that its Python lists stay at some tens of megabytes.
_CHUNK = 1024


class _Part(NamedTuple):
    """The windows of some questions: token-wise arrays, and per window its question and number of tokens."""

    ids: np.ndarray
    type_ids: np.ndarray | None
    chars: np.ndarray
    examples: np.ndarray
    lengths: np.ndarray


def cut_windows(
    questions: Sequence[str],
    contexts: Sequence[str],
    spans: np.ndarray | None,
    tokenizer: Any,
    max_length: int,
    doc_stride: int,
) -> TokenTable:
    """Tokenise questions with their contexts, a row of the table for each window.

    Args:
        questions: what is asked, ``(questions,)``.
        contexts: where the answers are to be found, ``(questions,)``.
        spans: the characters of each context that the answer starts at and ends before, int64 ``(questions, 2)``; -1
            where there is none; None if the answers are not known at all.
        tokenizer: a fast tokenizer of transformers.
        max_length: the most tokens of a window.
        doc_stride: tokens of the context that neighbouring windows share.

    Returns:
        a table with labels as `answer_labels` says (-1 if the answers are not known), and with the vectors ``example``,
        the question of each window, and ``char_starts`` and ``char_ends``, the characters of the context that each
        token stands for, -1 for tokens of no context.

    Raises:
        ConfigurationError: if the tokenizer does not say where its tokens come from, or the window has no room.
    """
    _check_tokenizer(tokenizer)
    check_max_length(tokenizer, max_length, sentences=2)
    questions = cut_questions(questions, tokenizer)
    _check_room(questions, tokenizer, max_length, doc_stride)
    parts = [
        _cut_chunk(questions, contexts, start, tokenizer, max_length, doc_stride)
        for start in range(0, len(questions), _CHUNK)
    ]
    ids, chars, examples, lengths = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "chars", "examples", "lengths")
    )
    types = [part.type_ids for part in parts if part.type_ids is not None]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    starts, ends = np.ascontiguousarray(chars.T)
    unknown = np.full((len(lengths), 2), -1, np.int64)
    labels = unknown if spans is None else answer_labels(starts, ends, offsets, examples, spans)
    extra = {"example": examples, "char_starts": starts, "char_ends": ends}
    return TokenTable(ids, np.concatenate(types) if types else None, offsets, labels, extra)


def answer_labels(
    starts: np.ndarray, ends: np.ndarray, offsets: np.ndarray, examples: np.ndarray, spans: np.ndarray
) -> np.ndarray:
    """Find the first and last token of the answer in each window that has all of its tokens.

    Args:
        starts: first character of each token, ``(tokens,)``, -1 for tokens of no context.
        ends: the character after the last of each token, ``(tokens,)``.
        offsets: where each window starts and ends, ``(windows + 1,)``.
        examples: the question of each window, ``(windows,)``.
        spans: first character of each question's answer and the one after its last, ``(questions, 2)``, -1 if none.

    Returns:
        positions in the window, int64 ``(windows, 2)``; (0, 0) where the answer is not, or not wholly, in the window.

    >>> starts, ends = np.array([-1, 0, 3, -1, 3, 6]), np.array([-1, 2, 5, -1, 5, 8])
    >>> answer_labels(starts, ends, np.array([0, 3, 6]), np.array([0, 0]), np.array([[3, 8]])).tolist()
    [[0, 0], [1, 2]]
    """
    windows = np.repeat(np.arange(len(examples)), np.diff(offsets))
    begin, end = spans[examples[windows]].T
    # A token may stand for more than the answer, such as a leading space, or for a part of a character.
    tokens = np.flatnonzero((starts >= 0) & (ends > begin) & (starts < end))
    found, index = np.unique(windows[tokens], return_index=True)
    first, last = tokens[index], tokens[np.append(index[1:], len(tokens)) - 1] if len(index) else tokens
    questions = examples[found]
    earliest, latest = np.full(len(spans), np.iinfo(np.int64).max), np.full(len(spans), -1)
    np.minimum.at(earliest, questions, starts[first])
    np.maximum.at(latest, questions, ends[last])
    whole = (starts[first] == earliest[questions]) & (ends[last] == latest[questions])
    labels = np.zeros((len(examples), 2), np.int64)
    labels[found[whole]] = (np.stack([first, last], axis=1) - offsets[found][:, None])[whole]
    return labels


def cut_questions(questions: Sequence[str], tokenizer: Any) -> list[str]:
    """Return the questions without spaces around them and with at most 64 tokens."""
    stripped = [question.strip() for question in questions]
    cut = []
    for start in range(0, len(stripped), _CHUNK):
        chunk = stripped[start : start + _CHUNK]
        encoding = tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for question, offsets in zip(chunk, encoding["offset_mapping"], strict=True):
            long = len(offsets) > MAX_QUESTION_TOKENS
            cut.append(question[: offsets[MAX_QUESTION_TOKENS - 1][1]] if long else question)
    return cut


def _check_tokenizer(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigurationError(
            f"question answering needs to know which characters a token stands for, and only a fast tokenizer says so;"
            f" got {type(tokenizer).__name__}: use a backbone with a tokenizer.json"
        )


def _check_room(questions: Sequence[str], tokenizer: Any, max_length: int, doc_stride: int) -> None:
    """Refuse windows that would not go forward through the context of the longest question."""
    special = int(tokenizer.num_special_tokens_to_add(pair=True))
    longest = max(
        len(ids)
        for start in range(0, len(questions), _CHUNK)
        for ids in tokenizer(questions[start : start + _CHUNK], add_special_tokens=False, verbose=False)["input_ids"]
    )
    room = max_length - special - longest
    if room <= doc_stride:
        raise ConfigurationError(
            f"max_length {max_length} leaves {max(0, room)} tokens for the context, beside the longest question of"
            f" {longest} tokens and {special} special ones, and neighbouring windows are to share {doc_stride}:"
            f" set max_length to more than {special + longest + doc_stride}, or lower doc_stride"
        )


def _cut_chunk(
    questions: Sequence[str], contexts: Sequence[str], start: int, tokenizer: Any, max_length: int, doc_stride: int
) -> _Part:
    """Cut the contexts of some questions, from number ``start`` on."""
    encoding = tokenizer(
        list(questions[start : start + _CHUNK]),
        list(contexts[start : start + _CHUNK]),
        truncation="only_second",
        max_length=max_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding=False,
        return_attention_mask=False,
        verbose=False,
    )
    examples = np.array(encoding["overflow_to_sample_mapping"], np.int64) + start
    lengths = np.array([len(ids) for ids in encoding["input_ids"]], np.int64)
    tokens = int(lengths.sum())
    ids = np.fromiter(chain.from_iterable(encoding["input_ids"]), np.int32, tokens)
    pairs = chain.from_iterable(chain.from_iterable(encoding["offset_mapping"]))
    chars = np.fromiter(pairs, np.int32, 2 * tokens).reshape(-1, 2)
    sequences = chain.from_iterable(encoding.sequence_ids(window) for window in range(len(lengths)))
    in_context = np.fromiter((sequence == 1 for sequence in sequences), bool, tokens)
    types = None
    if "token_type_ids" in encoding:
        types = np.fromiter(chain.from_iterable(encoding["token_type_ids"]), np.uint8, tokens)
    return _Part(ids, types, np.where(in_context[:, None], chars, np.int32(-1)), examples, lengths)
