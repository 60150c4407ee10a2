import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgram.methods.sparse import densify, join, part, sparsify
from fedgram.state import ModelState, bytes_of, flatten

numbers = st.lists(st.integers(-4, 4), min_size=1, max_size=70)
"""Few of them differ, so that ties are the rule."""


@given(numbers, st.data())
def test_the_largest_are_kept_and_of_equals_the_first(values, data):
    count = data.draw(st.integers(1, len(values)))
    vector = torch.tensor(values, dtype=torch.float64)
    kept = np.argsort(-np.abs(np.array(values)), kind="stable")[:count]
    expected = np.zeros(len(values))
    expected[kept] = np.array(values)[kept]
    sent = sparsify(vector, count)
    assert sent["values"].shape == (count,)
    np.testing.assert_array_equal(densify(sent, len(values)).numpy(), expected)


@given(st.integers(1, 300), st.data())
def test_places_travel_in_the_form_of_fewer_bytes(size, data):
    count = data.draw(st.integers(1, size))
    vector = torch.arange(1.0, size + 1)
    sent = sparsify(vector, count)
    cheapest = 0 if count == size else min(4 * count, -(-size // 8))
    assert bytes_of({"": sent}) == 4 * count + cheapest


def test_both_forms_and_neither():
    vector = torch.arange(100.0)
    forms = [set(sparsify(vector, count)) for count in (3, 4, 100)]
    assert forms == [{"values", "indices"}, {"values", "bitmap"}, {"values"}]
    assert sparsify(vector, 3)["indices"].dtype == torch.int32
    assert sparsify(vector, 4)["bitmap"].dtype == torch.uint8
    assert sparsify(vector, 4)["bitmap"].shape == (13,)


@pytest.mark.parametrize("count", [3, 40, 100])
def test_tensors_without_numbers_take_the_same_way(count):
    real, meta = (sparsify(torch.arange(100.0, device=device), count) for device in ("cpu", "meta"))
    assert {f: (t.shape, t.dtype) for f, t in meta.items()} == {f: (t.shape, t.dtype) for f, t in real.items()}
    assert densify(meta, 100).shape == (100,)


def test_what_is_not_finite_is_kept():
    vector = torch.tensor([1.0, torch.nan, 5.0])
    assert sparsify(vector, 1)["values"].isnan().all()


def test_the_order_of_layers_does_not_matter():
    """A checkpoint gives them back in the order of their names."""
    layer = {"B": torch.tensor([[1.0, 2.0]]), "A": torch.tensor([3.0])}
    state = ModelState({"v": layer, "q": {"A": torch.tensor([4.0])}}, {"out": {"weight": torch.tensor([5.0])}})
    resumed = ModelState(dict(sorted(state.adapter.items())), state.head)
    assert join(state).tolist() == join(resumed).tolist() == [4, 3, 1, 2, 5]
    back = part(join(state) * 2, state)
    assert list(back.adapter) == ["v", "q"]
    assert {key: t.tolist() for key, t in flatten(back).items()} == {
        key: (2 * t).tolist() for key, t in flatten(state).items()
    }
