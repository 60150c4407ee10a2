import csv
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgram.data.partition import IID, Dirichlet, Shards
from fedgram.data.partition_picture import Lines, _cells, counts, draw, draw_file, draw_lines, write_lines, write_table
from fedgram.errors import DataError

labels_strategy = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)
LABELS = np.arange(3000) % 3


@given(labels_strategy, st.data())
def test_counts_equal_plain_loops(labels, data):
    clients = data.draw(st.integers(1, len(labels)))
    shards = Dirichlet(0.3)(labels, clients, 0)
    expected = [[int((labels[shard] == label).sum()) for label in range(5)] for shard in shards]
    assert counts(shards, labels, 5).tolist() == expected


@pytest.mark.parametrize("label", [-1, 3])
def test_counts_refuse_what_is_no_class(label):
    labels = np.array([0, 1, label])
    with pytest.raises(DataError, match=r"must lie in 0\.\.2"):
        counts(IID()(labels, 2, 0), labels, 3)


def test_counts_refuse_scores():
    with pytest.raises(DataError, match=r"regression"):
        counts(Shards.of(np.zeros(2, int), 1), np.array([0.5, 1.0]), 1)


def test_table(tmp_path):
    write_table(tmp_path / "t.csv", np.array([[3, 1], [0, 2]]), ["bad, really", "good"])
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["client", "samples", "bad, really", "good"],
            ["0", "4", "3", "1"],
            ["1", "2", "0", "2"],
        ]


def test_few_clients_are_drawn_as_stacked_bars(tmp_path):
    table = np.array([[3, 1], [0, 2], [5, 5]])
    figure = draw(table, ["bad", "good"])
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == table.T.ravel().tolist()
    assert [bar.get_x() for bar in bars] == [0, 0, 0, 3, 0, 5]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["bad", "good"]
    figure.savefig(tmp_path / "f.png")


@pytest.mark.parametrize(("clients", "lines"), [(51, 51), (3000, 400)])
def test_many_clients_are_drawn_as_sorted_shares(tmp_path, clients, lines):
    table = np.random.default_rng(0).integers(0, 30, (clients, 12))
    figure = draw(table, [f"label {label}" for label in range(12)])
    picture = figure.axes[0].images[0].get_array()
    assert picture.shape == (lines, 12)
    assert np.allclose(picture.sum(1), 1)
    assert (np.diff(picture[:, 0] == picture.max(1)).astype(int).sum()) == 1
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == clients
    figure.savefig(tmp_path / "f.png")


def test_labels_beyond_the_palette_are_drawn_as_shares(tmp_path):
    bars = draw(np.ones((3, 8), int), [str(label) for label in range(8)])
    assert len({bar.get_facecolor() for bar in bars.axes[0].patches}) == 8
    shares = draw(np.ones((3, 40), int), [str(label) for label in range(40)])
    assert shares.axes[0].images[0].get_array().shape == (3, 40)
    for number, figure in enumerate((bars, shares)):
        figure.savefig(tmp_path / f"{number}.png")


def brute_lines(table, most=400):
    """Clients by prevailing label and its share, cut into lines of (clients, smallest, largest, counts, shares)."""
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    order = sorted(range(len(table)), key=lambda c: (shares[c].argmax(), -shares[c].max(), c))
    count = min(len(table), most)
    cuts = [line * len(table) // count for line in range(count + 1)]
    groups = [order[start:end] for start, end in pairwise(cuts)]
    sizes = table.sum(1)
    return [(len(g), sizes[g].min(), sizes[g].max(), table[g].sum(0), shares[g].mean(0)) for g in groups]


def assert_lines(lines, expected):
    found = zip(lines.clients, lines.smallest, lines.largest, lines.counts, lines.shares, strict=True)
    for line, other in zip(found, expected, strict=True):
        for value, wanted in zip(line, other, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12)


@given(labels_strategy, st.integers(0, 99), st.data())
def test_clients_are_taken_together_as_plain_loops_would(labels, seed, data):
    clients = data.draw(st.integers(1, len(labels)))
    shards = Dirichlet(0.3)(labels, clients, seed)
    table = counts(shards, labels, 5)
    assert_lines(Lines.of(shards, labels, 5), brute_lines(table))
    assert_lines(Lines.of_counts(table), brute_lines(table))


def test_lines_stand_for_several_clients_where_there_are_many():
    labels = np.random.default_rng(0).integers(0, 3, 5000)
    shards = Dirichlet(0.5)(labels, 1001, 0)
    lines = Lines.of(shards, labels, 3)
    assert_lines(lines, brute_lines(counts(shards, labels, 3)))
    assert set(lines.clients.tolist()) == {2, 3}


def test_clients_without_samples_are_shown_too():
    table = np.array([[0, 0], [0, 3], [2, 0]])
    lines = Lines.of_counts(table)
    assert_lines(lines, brute_lines(table))
    assert lines.counts.tolist() == [[2, 0], [0, 0], [0, 3]]


@pytest.mark.parametrize("label", [-1, 3])
def test_lines_refuse_what_is_no_class(label):
    labels = np.array([0, 1, label])
    with pytest.raises(DataError, match=r"must lie in 0\.\.2"):
        Lines.of(IID()(labels, 2, 0), labels, 3)


def test_cells_beyond_32_bits_are_told_apart():
    labels = np.array([2**30, 5, 2**30 + 1])
    shards = Shards.of(np.array([2, 0, 2]), 3)
    assert _cells(shards, labels, 2**30 + 2).tolist() == [5, 2 * (2**30 + 2) + 2**30, 2 * (2**30 + 2) + 2**30 + 1]


def test_table_of_lines(tmp_path):
    lines = Lines.of_counts(np.array([[3, 1], [0, 2]]))
    write_lines(tmp_path / "t.csv", lines, ["bad, really", "good"])
    with (tmp_path / "t.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["clients", "samples", "smallest_client", "largest_client", "bad, really", "good"],
            ["1", "4", "4", "4", "3", "1"],
            ["1", "2", "2", "2", "0", "2"],
        ]


def test_lines_are_drawn_with_the_sizes_of_all_clients(tmp_path):
    labels = np.arange(20_000) % 3
    shards = Dirichlet(0.5)(labels, 15_000, 0)
    figure = draw_lines(Lines.of(shards, labels, 3), shards.sizes, ["a", "b", "c"])
    assert figure.axes[0].images[0].get_array().shape == (400, 3)
    assert figure.axes[0].get_ylim() == (15_000, 0)
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == 15_000
    figure.savefig(tmp_path / "f.png")


def test_a_table_that_was_written_is_drawn_as_it_would_have_been(tmp_path):
    table = np.array([[3, 1], [0, 2], [5, 5]])
    write_table(tmp_path / "t.csv", table, ["bad, really", "good"])
    drawn, expected = draw_file(tmp_path / "t.csv"), draw(table, ["bad, really", "good"])
    widths = [[bar.get_width() for bar in figure.axes[0].patches] for figure in (drawn, expected)]
    names = [[text.get_text() for text in f.axes[0].get_legend().get_texts()] for f in (drawn, expected)]
    assert widths[0] == widths[1]
    assert names[0] == names[1]


def test_lines_that_were_written_are_drawn_as_shares_of_their_samples(tmp_path):
    table = np.random.default_rng(0).integers(0, 30, (801, 3))
    lines = Lines.of_counts(table)
    write_lines(tmp_path / "t.csv", lines, ["a", "b", "c"])
    figure = draw_file(tmp_path / "t.csv")
    shares, _ = figure.axes  # the second is of the colours
    expected = lines.counts / lines.counts.sum(1, keepdims=True)
    assert np.allclose(shares.images[0].get_array(), expected)
    assert shares.get_ylim() == (801, 0)
    assert [tick.get_text() for tick in shares.get_xticklabels()] == ["a", "b", "c"]
    figure.savefig(tmp_path / "f.png")
