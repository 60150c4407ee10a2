"""A partition of one's own is checked: every sample to exactly one client, and the rows it deals are the file's."""

import numpy as np
import pytest

from fedgram.data import FederatedData, Partition, Samples, Shards, TokenTable
from fedgram.errors import ConfigurationError, DataError


class Rows(FederatedData):
    """A train split that is there already, of a file of which some rows were held out."""

    name = "rows"

    def __init__(self, partition, kept=8, unit=1):
        super().__init__(8, 2, 2, partition, None)
        self.rows, self.unit = np.flatnonzero(np.arange(10) % 5 > 0)[:kept], unit
        ids = np.zeros(kept * unit, np.int32)
        self.tables = {"train": TokenTable(ids, None, np.arange(kept * unit + 1), np.arange(kept * unit) // unit % 2)}

    def load_tables(self):
        return self.tables

    def groups(self, split):
        return self.split(split).labels

    def units(self, split):
        return np.arange(len(self.split(split))) // self.unit

    def dealt(self):
        return self.rows, f"{len(self.rows)} training samples (of 10 rows, 2 are held out)"


class Returning(Partition):
    """Returns what it was made with, whatever it is asked."""

    def __init__(self, owners):
        self.returned = owners

    def owners(self, labels, clients, seed):
        return self.returned


class Whole(Partition):
    """Makes the shards itself."""

    def __init__(self, shards):
        self.shards = shards

    def __call__(self, labels, clients, seed):
        return self.shards


class ByUser(Partition):
    """Looks up who wrote each row of the file."""

    users = np.array([2, 0, 0, 1, 1, 0, 2, 2, 1, 0])

    def owners_of(self, samples: Samples, clients, seed):
        return self.users[samples.rows]


@pytest.mark.parametrize("unit", [1, 3])
def test_the_rows_of_the_file_are_seen(unit):
    shards = Rows(ByUser(), unit=unit).shards(3, 0)
    units = [set((own // unit).tolist()) for own in shards]
    kept = [1, 2, 3, 4, 6, 7, 8, 9]  # rows of the file
    assert [{kept[u] for u in own} for own in units] == [{1, 2, 9}, {3, 4, 8}, {6, 7}]


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda o: np.array(o, np.uint8)])
def test_owners_may_be_any_vector_of_whole_numbers(kind):
    shards = Rows(Returning(kind([1, 0, 0, 1, 1, 1, 0, 2]))).shards(3, 0)
    assert [own.tolist() for own in shards] == [[1, 2, 6], [0, 3, 4, 5], [7]]
    assert shards.order.dtype == np.int64


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        ([0, 1] * 5, r"returned the clients of 10 samples, but 8 training samples \(of 10 rows, 2 are held out\)"),
        ([0, 1] * 3, "returned the clients of 6 samples, but 8 training"),
        ([], "float64"),
        ([0, 1, 2, 3] * 2, r"gives 2 of 8 samples to clients that there are not, the first, sample 3, to 3; .* 0\.\.2"),
        ([0, 1, 2, -1] * 2, "gives 2 of 8 samples to clients that there are not, the first, sample 3, to -1"),
        ([0, 0, 2, 2] * 2, r"leaves 1 of 3 clients without a sample \(1\)"),
        ([0.0, 1.0, 2.0, 0.0] * 2, r"vector of whole numbers, got list of float64 \(8,\)"),
        ([True, False] * 4, "got list of bool"),
        (["a", "b", "c", "a"] * 2, "vector of whole numbers, got list of <U1"),
        ([[0, 1, 2, 3], [4, 5], [6, 7]], "vector of whole numbers, got list of"),  # the rows of each client
        ([[0], [1]] * 4, r"got list of int64 \(8, 1\)"),
        (None, "vector of whole numbers, got NoneType"),
    ],
)
def test_owners_that_are_not_one_client_a_sample_are_refused(owners, message):
    with pytest.raises(DataError, match=rf"the partition Returning .*{message}"):
        Rows(Returning(owners)).shards(3, 0)


def shards(order, offsets):
    return Shards(np.array(order), np.array(offsets))


def test_shards_of_ones_own_are_taken_where_they_deal_every_sample_once():
    dealt = Rows(Whole(shards([0, 2, 4, 6, 1, 3, 5, 7], [0, 4, 8])), unit=2).shards(2, 0)
    assert [own.tolist() for own in dealt] == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]


@pytest.mark.parametrize(
    ("dealt", "message"),
    [
        (shards([0, 2, 4, 6, 1, 3, 5, 5], [0, 4, 8]), "1 samples more than once and 1 to nobody.* sample 5, dealt 2 t"),
        (shards([0, 2, 4, 1, 3, 5], [0, 3, 6]), "0 samples more than once and 2 to nobody.* sample 6, dealt 0 times"),
        (shards(range(10), [0, 5, 10]), r"deals samples 0\.\.9, but 8 training samples \(of 10 rows"),
        (shards([-1, *range(7)], [0, 4, 8]), r"deals samples -1\.\.6"),
        (shards(range(8), [0, 8, 8]), r"leaves 1 of 2 clients without a sample \(1\)"),
        (shards(range(8), [0, 9, 8]), "offsets do not rise"),
        (shards(range(8), [0, 4, 7]), "offsets do not rise from 0 to 8"),
        (shards(range(8), [0, 2, 4, 8]), "must return the Shards of 2 clients, got those of 3"),
        ([[0, 1], [2, 3]], "must return the Shards of 2 clients, got list"),
    ],
)
def test_shards_that_do_not_deal_every_sample_once_are_refused(dealt, message):
    with pytest.raises(DataError, match=rf"the partition Whole .*{message}"):
        Rows(Whole(dealt)).shards(2, 0)


def test_a_partition_without_a_rule_is_refused():
    class Nothing(Partition):
        pass

    with pytest.raises(ConfigurationError, match="Nothing must define owners"):
        Rows(Nothing()).shards(2, 0)


def test_too_many_clients_are_refused_with_why_there_are_so_few_samples():
    with pytest.raises(DataError, match=r"9 clients cannot share 8 training samples \(of 10 rows, 2 are held out\)"):
        Rows(ByUser()).shards(9, 0)
