import doctest
import hashlib

import pytest
import torch

from fedgram import state as module
from fedgram.state import (
    Layout,
    ModelState,
    Payload,
    ServerMemory,
    ServerState,
    bytes_of,
    flatten,
    parameters_of,
    state_hash,
    tensors_of,
    to,
    unflatten,
    unflatten_server,
    without_numbers,
)


def make_state(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    return ModelState(
        {"v.query": {"B": draw(5, 2), "A": draw(2, 3)}, "a.value": {"A": draw(2, 4), "step": draw()}},
        {"out": {"bias": draw(3)}},
    )


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
    assert unflatten({}) == ModelState()


def make_server():
    return ServerState(make_state(), ServerMemory(make_state(1).adapter, {"cluster": torch.tensor([2, 0])}))


def test_a_servers_tensors_are_flat_with_what_it_remembers_beside_the_model():
    server = make_server()
    flat = flatten(server)
    memory = [key for key in flat if key.startswith("server|")]
    assert memory == ["server|a.value|A", "server|a.value|step", "server|v.query|A", "server|v.query|B",
                      "server||cluster"]  # fmt: skip
    assert flat.keys() - memory == flatten(server.model).keys()
    found = unflatten_server(flat)
    assert equal(found, server)
    assert found.memory.layers.keys() == server.memory.layers.keys()
    assert list(found.memory.globals) == ["cluster"]
    assert unflatten_server(flatten(server.model)).memory == unflatten_server({}).memory == ServerMemory()


def test_a_servers_adapters_are_replaced_in_a_copy():
    server, others = make_server(), make_state(2).adapter
    after = server.with_adapter(others)
    assert after.adapter is others
    assert (after.head, after.memory) == (server.head, server.memory)
    assert equal(server, make_server())


def test_only_what_a_server_remembers_of_no_layer_keeps_its_numbers():
    server = make_server()
    forms = flatten(without_numbers(server))
    for key, tensor in flatten(server).items():
        assert (forms[key].shape, forms[key].dtype) == (tensor.shape, tensor.dtype)
        assert forms[key].is_meta == (key != "server||cluster")
    assert forms["server||cluster"].tolist() == [2, 0]


def test_tensors_of_no_single_layer_travel_with_the_adapters():
    state, mask = make_state(), {"mask": torch.ones(2, dtype=torch.uint8)}
    assert Payload(state.adapter, state.head).parts == state.parts
    parts = Payload(state.adapter, state.head, mask).parts
    assert parts == {"adapter": {**state.adapter, "": mask}, "head": state.head}


def test_to_moves_every_tensor_and_keeps_the_rest():
    moved = to(make_state(), "meta")
    assert {tensor.device.type for tensor in flatten(moved).values()} == {"meta"}
    assert flatten(moved).keys() == flatten(make_state()).keys()
    assert equal(to(make_state(), "cpu"), make_state())


def test_hash_is_the_sha256_of_names_types_shapes_and_bits():
    tensor = torch.tensor([[1.0, -2.0]])
    expected = hashlib.sha256(b"adapter|q|A torch.float32 (1, 2)\n" + tensor.numpy().tobytes()).hexdigest()
    assert state_hash(ModelState({"q": {"A": tensor}})) == expected


def test_hash_ignores_insertion_order_and_memory_layout():
    def reordered(layers):
        return {
            name: {field: tensor.mT.contiguous().mT if tensor.ndim == 2 else tensor
                   for field, tensor in reversed(layer.items())}
            for name, layer in reversed(layers.items())
        }  # fmt: skip

    state = make_state()
    other = ModelState(reordered(state.adapter), reordered(state.head))
    assert state_hash(other) == state_hash(state)
    assert state_hash(make_state(1)) != state_hash(state)


@pytest.mark.parametrize(
    "other",
    [
        ModelState({"q": {"B": torch.zeros(2, 3)}}),
        ModelState({"k": {"A": torch.zeros(2, 3)}}),
        ModelState(head={"q": {"A": torch.zeros(2, 3)}}),
        ModelState({"q": {"A": torch.zeros(3, 2)}}),
        ModelState({"q": {"A": torch.zeros(2, 3, dtype=torch.int32)}}),
        ModelState({"q": {"A": torch.tensor([[0, 0, 0], [0, 0, -0.0]])}}),
        ModelState({"q": {"A": torch.zeros(2, 3), "step": torch.zeros(())}}),
    ],
)
def test_hash_sees_every_name_type_shape_and_bit(other):
    assert state_hash(other) != state_hash(ModelState({"q": {"A": torch.zeros(2, 3)}}))


def test_layout_packs_clients_as_rows_and_undoes_it():
    states = [make_state(seed) for seed in range(3)]
    layout = Layout.of(states[0])
    flat = layout.pack(states)
    assert flat.shape == (3, sum(parameters_of(layers) for layers in states[0].parts.values()))
    stacked = flatten(layout.unpack(flat))
    for key, tensor in stacked.items():
        assert torch.equal(tensor, torch.stack([flatten(state)[key] for state in states]))
    assert all(equal(row, state) for row, state in zip(layout.rows(flat), states, strict=True))


def test_layout_reads_states_by_name_not_by_insertion_order():
    state = make_state()
    layout = Layout.of(state)
    shuffled = ModelState(*(dict(reversed(layers.items())) for layers in (state.adapter, state.head)))
    assert torch.equal(layout.pack([shuffled]), layout.pack([state]))


def test_unpacked_tensors_are_views_that_carry_each_client_its_own_gradient():
    layout = Layout.of(make_state())
    leaf = layout.pack([make_state(seed) for seed in range(3)]).requires_grad_()
    unpacked = layout.unpack(leaf)
    assert {t.untyped_storage().data_ptr() for t in flatten(unpacked).values()} == {leaf.untyped_storage().data_ptr()}
    (gradient,) = torch.autograd.grad(unpacked.adapter["v.query"]["A"][1].square().sum(), leaf)
    own = layout.unpack(gradient)
    assert torch.equal(own.adapter["v.query"]["A"][1], 2 * make_state(1).adapter["v.query"]["A"])
    own.adapter["v.query"]["A"][1] = 0
    assert not gradient.any()
