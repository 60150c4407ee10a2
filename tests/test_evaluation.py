import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedgram.distributed.collectives import Ranks
from fedgram.engine.block import train_block
from fedgram.federation.evaluation import evaluate, infer
from fedgram.methods import FedExLoRA, FLoRG
from fedgram.optim import AdamW
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
    networks = [copy.deepcopy(network) for _ in range(size)]  # each rank loads models into its own
    for outputs in on_ranks(size, lambda ranks: infer(networks[ranks.rank], all_by(state, table), table, 5, ranks)):
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


def adapters(network):
    return [layer for layer in network.layers.values() if layer.part == "adapter"]


def copies(network):
    """How many matrices of the size of their weights the adapted layers hold, residuals left out."""
    counts = {len(list(layer.held_once())) - len(layer.shared) for layer in adapters(network)}
    assert len(counts) == 1
    return counts.pop()


@pytest.mark.parametrize(("samples", "merged"), [(1, 0), (16, 1)])
@pytest.mark.parametrize("method", [FLoRG(rank=2), FedExLoRA(rank=2)], ids=lambda method: method.name)
def test_adapters_are_merged_for_a_model_that_answers_many_tokens(
    tiny_backbone, tiny_data, monkeypatch, method, samples, merged
):
    network, data = make_network(tiny_backbone, tiny_data, method)
    state, table, run, seen = network.initial_state(), data.split("validation"), network.run, []
    rows = np.argsort(table.lengths)[:samples]
    for layer in adapters(network):
        pays_from = layer.d_in * layer.d_out / (layer.d_in + layer.d_out)
        assert (table.lengths[rows].sum() >= pays_from) == merged
    monkeypatch.setattr(network, "run", lambda *arguments: seen.append(copies(network)) or run(*arguments))
    infer(network, [(state, rows), (state, np.setdiff1d(np.arange(len(table)), rows))], table, 4, Ranks())
    assert set(seen[: -(-samples // 4)]) == {merged}
    assert copies(network) == 0


def test_whether_adapters_are_merged_does_not_depend_on_the_ranks(trained):
    """Two samples, one for each of two ranks: merging pays for both together, and for neither alone."""
    network, state, data = trained
    table = data.split("validation")
    rows = np.argsort(table.lengths, kind="stable")[:2]
    pays_from = max(layer.d_in * layer.d_out / (layer.d_in + layer.d_out) for layer in adapters(network))
    assert table.lengths[rows].max() < pays_from <= table.lengths[rows].sum()
    rest = (state, np.setdiff1d(np.arange(len(table)), rows))
    seen = []

    def work(ranks):
        own = copy.deepcopy(network)
        run = own.run

        def look(table, batch):
            if set(batch) <= set(rows):
                seen.append((ranks.rank, copies(own)))
            return run(table, batch)

        own.run = look
        return infer(own, [(state, rows), rest], table, 1, ranks)["logits"]

    alone = work(Ranks())
    assert seen == [(0, 1), (0, 1)]
    seen.clear()
    assert all(torch.equal(logits, alone) for logits in on_ranks(2, work))
    assert sorted(seen) == [(0, 1), (1, 1)]


def test_the_merged_weights_are_gone_when_a_batch_failed(trained, monkeypatch):
    network, state, data = trained
    table = data.split("validation")

    def fail(*arguments):
        assert copies(network) == 1
        raise RuntimeError("out of luck")

    monkeypatch.setattr(network, "run", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        infer(network, all_by(state, table), table, 4, Ranks())
    assert copies(network) == 0


@pytest.mark.parametrize("method", [FLoRG(rank=2), FedExLoRA(rank=2)], ids=lambda method: method.name)
def test_training_after_an_evaluation_is_what_it_is_without_one(tiny_backbone, tiny_data, method):
    ends = []
    for evaluated in (False, True):
        network, data = make_network(tiny_backbone, tiny_data, method)
        state = network.initial_state()
        for layer in state.adapter.values():
            if "residual" in layer:
                layer["residual"] += 0.1
        network.share(state)
        start = [method.without_shared(state)] * 2
        batches = [[np.arange(3 * i, 3 * i + 3) for i in range(2)], [np.arange(9, 12)]]
        parts = [batches, batches]
        for part in parts:
            table, fields = data.split("train"), method.trained_fields
            start = train_block(network, AdamW(lr=0.01), start, table, part, trained=fields).states
            if evaluated:
                infer(network, all_by(state, data.split("validation")), data.split("validation"), 4, Ranks())
        ends.append([flatten(own) for own in start])
    for without, with_one in zip(*ends, strict=True):
        assert without.keys() == with_one.keys()
        assert all(torch.equal(tensor, with_one[key]) for key, tensor in without.items())
