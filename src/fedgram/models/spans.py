"""From what a network says of every token to the answer of every question: pure functions."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from fedgram.data.tokens import TokenTable
from fedgram.errors import DataError

__all__ = ["Answers", "best_answers", "best_spans"]

_CHUNK = 128
"""Windows whose spans are scored at once: some six megabytes for 384 tokens and answers of up to 30."""


class Answers(NamedTuple):
    """The best answer to each question.

    Attributes:
        starts: its first character in the context, int64 ``(questions,)``; 0 with ``ends`` 0 where there is none.
        ends: the character after its last, int64 ``(questions,)``.
        probabilities: its share among the best spans, float64 ``(questions,)``; 0 where there is none.
    """

    starts: np.ndarray
    ends: np.ndarray
    probabilities: np.ndarray


class _Spans(NamedTuple):
    """Candidates, sorted by question and by falling score: vectors of one length."""

    questions: np.ndarray
    scores: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def best_spans(
    start: Float[Tensor, "W T"], end: Float[Tensor, "W T"], allowed: Bool[Tensor, "W T"], n_best: int, longest: int
) -> tuple[Float[Tensor, "W n"], Tensor, Tensor]:
    """Return the spans of each window with the largest sums of start and end logit, out of all that there are.

    Args:
        start: logits of the first token, ``(windows, T)``.
        end: logits of the last token, ``(windows, T)``.
        allowed: where an answer may start and end, ``(windows, T)``.
        n_best: how many spans.
        longest: the most tokens of a span.

    Returns:
        scores, -inf where there are fewer spans, and positions of the first and last token, each
        ``(windows, min(n_best, T * min(longest, T)))``.

    >>> logits = torch.tensor([[9.0, 1.0, 3.0]])
    >>> scores, first, last = best_spans(logits, logits, torch.tensor([[False, True, True]]), 2, 2)
    >>> scores.tolist(), first.tolist(), last.tolist()
    ([[6.0, 4.0]], [[2, 1]], [[2, 2]])
    """
    tokens = start.shape[1]
    start, end = (logits.masked_fill(~allowed, -torch.inf) for logits in (start, end))
    # Row d of the band holds the spans of d + 1 tokens, by their first.
    ends = [functional.pad(end[:, d:], (0, d), value=-torch.inf) for d in range(min(longest, tokens))]
    band = start[:, None] + torch.stack(ends, dim=1)
    scores, cells = band.flatten(1).topk(min(n_best, band.shape[1] * tokens))
    first = cells % tokens
    return scores, first, first + cells // tokens


def best_answers(start: Tensor, end: Tensor, table: TokenTable, questions: int, n_best: int, longest: int) -> Answers:
    """Return each question's best answer over all of its windows.

    Args:
        start: logits of the first token, ``(windows, T)``.
        end: logits of the last token, ``(windows, T)``.
        table: the windows, as `fedgram.data.windows.cut_windows` makes them.
        questions: how many questions there are.
        n_best: the spans of a question among which the probability of its answer is shared out.
        longest: the most tokens of an answer.

    Raises:
        DataError: the table has no windows of questions.
    """
    spans = _leading(_candidates(start, end, table, n_best, longest), n_best)
    answered, top = np.unique(spans.questions, return_index=True)
    best = np.zeros(questions, np.int64)
    best[answered] = top
    best = best[spans.questions]
    weights = np.exp(spans.scores - spans.scores[best])
    # Neighbouring windows share tokens, and so propose the same characters.
    same = (spans.starts == spans.starts[best]) & (spans.ends == spans.ends[best])
    total = np.bincount(spans.questions, weights, questions)
    share = np.bincount(spans.questions, weights * same, questions) / np.maximum(total, 1)
    starts, ends = np.zeros(questions, np.int64), np.zeros(questions, np.int64)
    starts[answered], ends[answered] = spans.starts[top], spans.ends[top]
    return Answers(starts, ends, share)


def _candidates(start: Tensor, end: Tensor, table: TokenTable, n_best: int, longest: int) -> _Spans:
    """Return the best possible spans of every window, in the order of questions and falling scores."""
    missing = {"example", "char_starts", "char_ends"} - set(table.extra)
    if missing:
        raise DataError(
            f"the table of tokens has no {', '.join(sorted(missing))}, which says what part of which context a token"
            " is; use data of questions and contexts, such as SQuAD"
        )
    starts, ends = (
        _rectangle(table.extra[name], table.offsets, start.shape[1]) for name in ("char_starts", "char_ends")
    )
    allowed = torch.from_numpy(starts >= 0)
    chunks = [
        best_spans(start[i : i + _CHUNK], end[i : i + _CHUNK], allowed[i : i + _CHUNK], n_best, longest)
        for i in range(0, len(start), _CHUNK)
    ]
    scores, first, last = (torch.cat(pieces).numpy() for pieces in zip(*chunks, strict=True))
    window, place = np.nonzero(np.isfinite(scores))
    example, score = table.extra["example"][window], scores[window, place].astype(np.float64)
    order = np.lexsort((-score, example))
    window, place = window[order], place[order]
    found = starts[window, first[window, place]], ends[window, last[window, place]]
    return _Spans(example[order], score[order], *found)


def _leading(spans: _Spans, most: int) -> _Spans:
    """Keep the best spans of each question."""
    _, first, sizes = np.unique(spans.questions, return_index=True, return_counts=True)
    rank = np.arange(len(spans.questions)) - np.repeat(first, sizes)
    return _Spans(*(column[rank < most] for column in spans))


def _rectangle(values: np.ndarray, offsets: np.ndarray, width: int) -> np.ndarray:
    """Lay the values of windows out in rows, filled up with -1."""
    cells = np.full((len(offsets) - 1, width), -1, np.int64)
    cells[np.arange(width) < np.diff(offsets)[:, None]] = values
    return cells
