import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgram.data import TokenTable
from fedgram.errors import DataError
from fedgram.models.spans import best_answers, best_spans


def made(seed, windows, questions, context):
    """Logits and a table of windows with `context` tokens at most, each after a question of one to three tokens."""
    generator = np.random.default_rng(seed)
    lead = generator.integers(1, 4, windows)
    own = generator.integers(0, context + 1, windows)
    lengths = lead + own
    example = np.sort(generator.integers(0, questions, windows))
    starts, ends = [], []
    for before, tokens in zip(lead, own, strict=True):
        shift = int(generator.integers(5))
        places = np.arange(tokens) * 3 + shift
        starts += [-1] * before + places.tolist()
        ends += [-1] * before + (places + 2).tolist()
    extra = {"example": example, "char_starts": np.array(starts, np.int32), "char_ends": np.array(ends, np.int32)}
    offsets = np.append(0, np.cumsum(lengths))
    table = TokenTable(np.zeros(offsets[-1], np.int32), None, offsets, np.zeros((windows, 2), np.int64), extra)
    logits = torch.from_numpy(generator.normal(size=(2, windows, int(lengths.max()))))
    for row, length in enumerate(lengths):
        logits[:, row, length:] = -torch.inf
    return logits[0], logits[1], table


def every_span(start, end, table, question, longest):
    """All spans of a question, best first, by plain loops."""
    found = []
    for row in np.flatnonzero(table.extra["example"] == question):
        begin, stop = table.offsets[row], table.offsets[row + 1]
        starts, ends = table.extra["char_starts"][begin:stop], table.extra["char_ends"][begin:stop]
        found += [
            (float(start[row, i] + end[row, j]), int(starts[i]), int(ends[j]))
            for i in range(stop - begin)
            for j in range(i, min(i + longest, stop - begin))
            if starts[i] >= 0 and starts[j] >= 0
        ]
    return sorted(found, reverse=True)


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 10**6),
    st.integers(1, 7),
    st.integers(1, 4),
    st.integers(0, 9),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_answers_equal_a_search_by_loops(seed, windows, questions, context, n_best, longest):
    start, end, table = made(seed, windows, questions, context)
    answers = best_answers(start, end, table, questions, n_best, longest)
    for question in range(questions):
        spans = every_span(start, end, table, question, longest)[:n_best]
        found = (answers.starts[question], answers.ends[question])
        if not spans:
            assert (*found, answers.probabilities[question]) == (0, 0, 0)
            continue
        assert found == spans[0][1:]
        weights = np.exp([score for score, *_ in spans])
        same = [(first, last) == found for _, first, last in spans]
        assert answers.probabilities[question] == pytest.approx(weights[same].sum() / weights.sum())


@pytest.mark.parametrize("longest", [1, 3, 50])
def test_spans_of_more_windows_than_are_scored_at_once(longest):
    start, end, table = made(0, 300, 90, 6)
    answers = best_answers(start, end, table, 90, 5, longest)
    for question in range(90):
        spans = every_span(start, end, table, question, longest)
        assert (answers.starts[question], answers.ends[question]) == (spans[0][1:] if spans else (0, 0))


def test_best_spans_are_the_best_of_all():
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 3, 8, generator=generator)
    allowed = torch.rand(3, 8, generator=generator) < 0.6
    scores, first, last = best_spans(start, end, allowed, 4, 3)
    for row in range(3):
        every = [
            (float(start[row, i] + end[row, j]), i, j)
            for i in range(8)
            for j in range(i, min(i + 3, 8))
            if allowed[row, i] and allowed[row, j]
        ]
        found = list(zip(scores[row].tolist(), first[row].tolist(), last[row].tolist(), strict=True))
        assert found == sorted(every, reverse=True)[:4]


def test_a_network_that_says_nan_has_no_answer():
    start, end, table = made(0, 3, 2, 5)
    answers = best_answers(start * torch.nan, end, table, 2, 5, 5)
    assert answers.ends.tolist() == [0, 0]


def test_a_table_of_something_else_is_refused():
    table = TokenTable(np.zeros(2, np.int32), None, np.array([0, 2]), np.zeros(1, np.int64))
    with pytest.raises(DataError, match="no char_ends, char_starts, example"):
        best_answers(torch.zeros(1, 2), torch.zeros(1, 2), table, 1, 5, 5)
