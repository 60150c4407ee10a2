import doctest
import hashlib

import pytest
import torch

from fedgram import state as module
from fedgram.state import Layout, bytes_of, flatten, parameters_of, state_hash, tensors_of, to, unflatten


def make_state(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    return {
        "adapter": {"v.query": {"B": draw(5, 2), "A": draw(2, 3)}, "a.value": {"A": draw(2, 4), "step": draw()}},
        "head": {"out": {"bias": draw(3)}},
    }


def equal(one, other):
    one, other = flatten(one), flatten(other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_examples_of_the_docstrings_hold():
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted
    assert not result.failed


def test_parameters_and_bytes_are_counted_from_the_tensors():
    layers = {"q": {"A": torch.zeros(2, 3), "B": torch.zeros(5, dtype=torch.float16)}, "v": {"n": torch.zeros(())}}
    assert [tuple(tensor.shape) for tensor in tensors_of(layers)] == [(2, 3), (5,), ()]
    assert parameters_of(layers) == 6 + 5 + 1
    assert bytes_of(layers) == 6 * 4 + 5 * 2 + 4
    assert bytes_of({"q": {"A": torch.zeros(1, 3).expand(4, 3)}}) == 4 * 3 * 4  # what travels, not what is stored
    assert parameters_of({}) == bytes_of({}) == 0


def test_flatten_sorts_by_name_and_unflatten_undoes_it():
    state = make_state()
    flat = flatten(state)
    assert list(flat) == ["adapter|a.value|A", "adapter|a.value|step", "adapter|v.query|A", "adapter|v.query|B",
                          "head|out|bias"]  # fmt: skip
    assert equal(unflatten(flat), state)
    assert unflatten({}) == {"adapter": {}, "head": {}}


def test_to_moves_every_tensor_and_keeps_the_rest():
    moved = to(make_state(), "meta")
    assert {tensor.device.type for tensor in flatten(moved).values()} == {"meta"}
    assert flatten(moved).keys() == flatten(make_state()).keys()
    assert equal(to(make_state(), "cpu"), make_state())


def test_hash_is_the_sha256_of_names_types_shapes_and_bits():
    tensor = torch.tensor([[1.0, -2.0]])
    expected = hashlib.sha256(b"adapter|q|A torch.float32 (1, 2)\n" + tensor.numpy().tobytes()).hexdigest()
    assert state_hash({"adapter": {"q": {"A": tensor}}, "head": {}}) == expected


def test_hash_ignores_insertion_order_and_memory_layout():
    state = make_state()
    reordered = {
        part: {
            name: {field: tensor.mT.contiguous().mT if tensor.ndim == 2 else tensor
                   for field, tensor in reversed(layer.items())}
            for name, layer in reversed(layers.items())
        }
        for part, layers in reversed(state.items())
    }  # fmt: skip
    assert state_hash(reordered) == state_hash(state)
    assert state_hash(make_state(1)) != state_hash(state)


@pytest.mark.parametrize(
    "other",
    [
        {"adapter": {"q": {"B": torch.zeros(2, 3)}}, "head": {}},
        {"adapter": {"k": {"A": torch.zeros(2, 3)}}, "head": {}},
        {"adapter": {}, "head": {"q": {"A": torch.zeros(2, 3)}}},
        {"adapter": {"q": {"A": torch.zeros(3, 2)}}, "head": {}},
        {"adapter": {"q": {"A": torch.zeros(2, 3, dtype=torch.int32)}}, "head": {}},
        {"adapter": {"q": {"A": torch.tensor([[0, 0, 0], [0, 0, -0.0]])}}, "head": {}},
        {"adapter": {"q": {"A": torch.zeros(2, 3), "step": torch.zeros(())}}, "head": {}},
    ],
)
def test_hash_sees_every_name_type_shape_and_bit(other):
    assert state_hash(other) != state_hash({"adapter": {"q": {"A": torch.zeros(2, 3)}}, "head": {}})


def test_layout_packs_clients_as_rows_and_undoes_it():
    states = [make_state(seed) for seed in range(3)]
    layout = Layout.of(states[0])
    flat = layout.pack(states)
    assert flat.shape == (3, sum(parameters_of(layers) for layers in states[0].values()))
    stacked = flatten(layout.unpack(flat))
    for key, tensor in stacked.items():
        assert torch.equal(tensor, torch.stack([flatten(state)[key] for state in states]))
    assert all(equal(row, state) for row, state in zip(layout.rows(flat), states, strict=True))


def test_layout_reads_states_by_name_not_by_insertion_order():
    state = make_state()
    layout = Layout.of(state)
    shuffled = {part: dict(reversed(state[part].items())) for part in ("head", "adapter")}
    assert torch.equal(layout.pack([shuffled]), layout.pack([state]))


def test_unpacked_tensors_are_views_that_carry_each_client_its_own_gradient():
    layout = Layout.of(make_state())
    leaf = layout.pack([make_state(seed) for seed in range(3)]).requires_grad_()
    unpacked = layout.unpack(leaf)
    assert {t.untyped_storage().data_ptr() for t in flatten(unpacked).values()} == {leaf.untyped_storage().data_ptr()}
    (gradient,) = torch.autograd.grad(unpacked["adapter"]["v.query"]["A"][1].square().sum(), leaf)
    own = layout.unpack(gradient)
    assert torch.equal(own["adapter"]["v.query"]["A"][1], 2 * make_state(1)["adapter"]["v.query"]["A"])
    own["adapter"]["v.query"]["A"][1] = 0
    assert not gradient.any()
