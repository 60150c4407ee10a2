import sys

import numpy as np
import pytest
import torch

from fedgram.engine import block_size as memory
from fedgram.engine.block_size import choose_clients_per_block, peak_megabytes, saved_bytes
from fedgram.errors import ConfigurationError
from fedgram.methods import FedExLoRA, FedIT, FLoRG
from fedgram.state import flatten, parameters_of
from test_block import make_network


@pytest.fixture
def ready(tiny_backbone, tiny_data):
    network, data = make_network(tiny_backbone, tiny_data, FedIT(rank=2))
    return network, network.initial_state(), data.split("train")


def test_what_is_saved_grows_with_the_batch_and_is_no_frozen_weight(ready):
    network, state, table = ready
    row = int(np.argmax(table.lengths))
    one, two, four = (saved_bytes(network, state, table, np.full(n, row)) for n in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)
    own = sum(parameters_of(layers) for layers in state.parts.values()) * 8
    # Nothing but a client's own tensors, and indices such as positions, is kept once for all samples.
    assert 0 <= 2 * one - two <= own + 4096


def test_what_all_clients_share_is_not_counted_for_each(tiny_backbone, tiny_data):
    """A residual of 16 x 16 beside four layers, and the weights with it added."""
    saved = {}
    for method in (FedIT(rank=1), FedExLoRA(rank=1)):
        network, data = make_network(tiny_backbone, tiny_data, method)
        state, table = network.initial_state(), data.split("train")
        saved[method.name] = saved_bytes(network, state, table, np.array([0]))
    assert saved["FedExLoRA"] == saved["FedIT"]


def test_what_is_saved_is_no_fixed_basis(tiny_backbone, tiny_data):
    """The bases of a layer of 16 x 16 are buffers, which all clients share."""
    rows = {}
    for basis in ("identity", "kaiming"):
        network, data = make_network(tiny_backbone, tiny_data, FLoRG(rank=1, basis=basis))
        rows[basis] = saved_bytes(network, network.initial_state(), data.split("train"), np.array([0]))
    small = 4 * 2 * 16 * 8 * 4  # A R and A Lᵀ of four layers, and the start's
    assert rows["kaiming"] - rows["identity"] <= small


@pytest.mark.parametrize(("free", "expected"), [(0.0, 1), (1.0, 1), (4.0, 2), (7.9, 3), (8.0, 4), (1e9, 5)])
def test_a_block_fills_half_of_the_free_memory(ready, monkeypatch, free, expected):
    network, state, table = ready
    monkeypatch.setattr(memory, "_CPU_TOKEN_BYTES", 10**9)
    longest = np.argsort(table.lengths)[-3:]
    parameters = sum(parameters_of(layers) for layers in state.parts.values())
    per_client = saved_bytes(network, state, table, longest) + 4 * 4 * parameters
    monkeypatch.setattr(memory, "_free_bytes", lambda device: free * per_client)
    assert choose_clients_per_block(network, state, table, 3, cohort=20) == expected


@pytest.mark.parametrize(("dtype", "busy"), [(torch.float64, 256), (torch.float32, 512), (torch.bfloat16, 1024)])
@pytest.mark.parametrize(("batch_size", "cohort"), [(3, 20), (3, 1000), (60, 20), (20, 20)])
def test_on_a_cpu_a_block_has_no_more_tokens_than_keep_it_busy(ready, batch_size, cohort, dtype, busy):
    network, state, table = ready
    network.task.cast(dtype)
    tokens = batch_size * table.lengths.mean()
    expected = max(1, min(round(busy / tokens), -(-cohort // 4)))
    assert choose_clients_per_block(network, state, table, batch_size, cohort) == expected


def test_a_backbone_that_mixes_rows_is_trained_one_client_at_a_time(ready, monkeypatch):
    network, state, table = ready
    run = network.run

    def refuse_two(table, rows):
        clients = next(iter(next(iter(network.layers.values())).clients.values())).shape[0]
        if clients > 1:
            raise ConfigurationError("rows can't be cut")
        return run(table, rows)

    monkeypatch.setattr(network, "run", refuse_two)
    assert choose_clients_per_block(network, state, table, 3, cohort=20) == 1


def test_the_network_trains_after_it_was_measured(ready):
    network, state, table = ready
    saved_bytes(network, state, table, np.arange(2))
    assert not any(tensor.requires_grad for tensor in flatten(state).values())
    network.load_one(state)
    assert not network.run(table, np.arange(2))[0]["logits"].requires_grad


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_is_that_of_this_process_in_megabytes():
    with open("/proc/self/status") as status:  # noqa: PTH123 (no file, but a view of the kernel's)
        high_water = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert peak_megabytes(torch.device("cpu")) == pytest.approx(high_water * 1024 / 1e6, rel=0.05)
