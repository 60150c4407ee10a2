import numpy as np
import pytest
import torch
from torch.nn import functional

from fedgram.collectives import Ranks
from fedgram.evaluation import evaluate, infer
from fedgram.methods import FLoRG
from fedgram.state import flatten, unflatten
from test_block import make_network
from thread_ranks import on_ranks
from whole_models import all_by, models_of


@pytest.fixture
def trained(tiny_backbone, tiny_data):
    """A network, data with 16 validation samples, and a server state far from the start."""
    network, data = make_network(tiny_backbone, tiny_data, FLoRG(rank=2))
    state = network.initial_state()
    generator = torch.Generator().manual_seed(0)
    for tensor in flatten(state).values():
        tensor += 0.5 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return network, state, data


def one_by_one(network, state, table):
    """The logits of every sample, alone in its batch, in the order of the data."""
    network.load_one(state)
    with torch.no_grad():
        return torch.cat([network.run(table, np.array([i]))[0]["logits"] for i in range(len(table))])


@pytest.mark.parametrize("batch_size", [1, 3, 5, 16, 100])
def test_outputs_come_in_the_order_of_the_data(trained, batch_size):
    network, state, data = trained
    table = data.split("validation")
    assert np.any(np.diff(table.lengths) < 0)  # so that the batches are not in that order
    outputs = infer(network, all_by(state, table), table, batch_size, Ranks())
    expected = one_by_one(network, state, table)
    assert expected.std(dim=0).min() > 1e-3
    torch.testing.assert_close(outputs["logits"], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_rank_gets_the_bits_of_one_process(trained, size):
    """16 samples in batches of 5 are four batches: a fifth rank has none."""
    network, state, data = trained
    table = data.split("validation")
    alone = infer(network, all_by(state, table), table, 5, Ranks())["logits"]
    for outputs in on_ranks(size, lambda ranks: infer(network, all_by(state, table), table, 5, ranks)):
        assert torch.equal(outputs["logits"], alone)


def test_metrics_are_those_of_all_samples_each_counted_once(trained):
    network, state, data = trained
    data.eval_batch_size = 3
    metrics, table = evaluate(network, models_of(state, data), data, "validation", Ranks()), data.split("validation")
    logits, labels = one_by_one(network, state, table), torch.tensor(table.labels)
    assert metrics["loss"] == pytest.approx(float(functional.cross_entropy(logits, labels)), abs=1e-12)
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(dim=1) == labels).double().mean()), abs=1e-6)
    assert set(metrics) == {"loss", "accuracy", "macro_f1"}


def test_evaluation_leaves_no_gradient_and_training_goes_on(trained):
    network, state, data = trained
    table = data.split("validation")
    for tensor in flatten(state).values():
        tensor.requires_grad_()
    assert not infer(network, all_by(state, table), table, 4, Ranks())["logits"].requires_grad
    flat = {key: tensor.detach().unsqueeze(0).requires_grad_() for key, tensor in flatten(state).items()}
    leaf = unflatten(flat)
    network.load(leaf)
    network.run(table, np.arange(4))[0]["logits"].sum().backward()
    assert all(tensor.grad is not None for tensor in flat.values())
