"""How often the host waits for the device: on a GPU each wait leaves it idle until the host has caught up.

There is no GPU here. What would wait on one is known by its name: reading a number out of a tensor, asking where a
tensor is not zero, and copying one to the host.
"""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedgram.data.tokens import TokenTable
from fedgram.distributed.collectives import Ranks
from fedgram.distributed.uploads import Uploads, average
from fedgram.engine.block import train_block
from fedgram.federation.clients import divergence
from fedgram.methods import FeDeRA, FedExLoRA, FedIT, FLoRG
from fedgram.optim import SGD, AdamW
from fedgram.state import all_finite, send
from test_block import make_network
from test_trainer import fit  # noqa: F401 (a fixture)

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2", "unique_dim"}


def masks(indices):
    """Whether some index says for every element whether it is meant, so that they must be counted."""
    return any(index is not None and index.dtype == torch.bool for index in indices)


class Waits(TorchDispatchMode):
    """Counts the operations that wait for a device; `tolist` and `cpu` are seen only where ``watch`` patches them."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in WAITING or (name in ("index", "index_put_") and masks(args[1])):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits(monkeypatch):
    """A counter, which begins where it is entered."""
    counter = Waits()
    for name in ("tolist", "cpu"):
        original = getattr(torch.Tensor, name)

        def counted(tensor, *args, name=name, original=original):
            counter.names.append(name)
            return original(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    return counter


def test_the_counter_sees_what_waits(waits):
    tensor = torch.tensor([0.0, 1.0])
    for wait in (
        lambda: tensor[0].item(),
        lambda: float(tensor.max()),
        lambda: bool(torch.isfinite(tensor).all()),
        lambda: tensor[tensor > 0],
        lambda: tensor.tolist(),
        lambda: tensor.cpu(),
    ):
        waits.names.clear()
        with waits:
            wait()
        assert waits.names


def table_of(lengths):
    ids = np.arange(sum(lengths), dtype=np.int32) % 5 + 5
    return TokenTable(ids, None, np.concatenate([[0], np.cumsum(lengths)]), np.arange(len(lengths)) % 2)


def count_training(waits, network, method, table, steps, optimizer):
    start = [method.without_shared(network.initial_state())] * 2
    network.share(network.initial_state())
    batches = [[np.array([2 * i, 2 * i + 1]) for i in range(n)] for n in (steps, steps - 1)]
    waits.names.clear()
    with waits:
        train_block(network, optimizer, start, table, batches, trained=method.trained_fields)
    return list(waits.names)


@pytest.mark.parametrize("method", [FLoRG(rank=2), FedIT(rank=2), FedExLoRA(rank=2), FeDeRA(rank=2)])
@pytest.mark.parametrize("optimizer", [AdamW(max_grad_norm=1.0, schedule="cosine", warmup=0.1), SGD(lr=0.1)])
def test_no_local_step_waits(tiny_backbone, tiny_data, waits, method, optimizer):
    network, _ = make_network(tiny_backbone, tiny_data, method)
    assert not network.packs
    assert count_training(waits, network, method, table_of([9] * 20), 5, optimizer) == []


def test_of_a_batch_with_padding_transformers_asks_once_whether_it_has_some(tiny_backbone, tiny_data, waits):
    network, _ = make_network(tiny_backbone, tiny_data, FedIT(rank=2))
    names = count_training(waits, network, FedIT(rank=2), table_of([9, 7] * 10), 5, AdamW())
    assert len(names) <= 5


def test_a_batch_without_padding_has_no_mask(tiny_backbone, tiny_data, monkeypatch):
    """And says what it says with one of ones."""
    network, _ = make_network(tiny_backbone, tiny_data, FLoRG(rank=2))
    network.load_one(network.initial_state())
    table, outputs, seen = table_of([9, 9, 4]), network.task.outputs, []

    def look(batch):
        seen.append("attention_mask" in batch)
        ones = torch.ones_like(batch["input_ids"])
        return outputs({"attention_mask": ones} | batch), outputs(batch)

    monkeypatch.setattr(network.task, "outputs", look)
    (with_ones, without), _ = network.run(table, np.array([0, 1]))
    assert torch.equal(with_ones["logits"], without["logits"])
    network.run(table, np.array([0, 2]))
    network.run(table, np.array([0, -1]))  # a filler has padding
    assert seen == [False, True, True]


@pytest.mark.parametrize("clients", [2, 9])
def test_an_average_waits_once_for_each_tensor_however_many_clients_there_are(waits, clients):
    payloads = {c: {n: {"A": torch.rand(2, 5), "B": torch.rand(5, 2)} for n in "qv"} for c in range(clients)}
    waits.names.clear()
    with waits:
        uploads = Uploads(payloads, dict.fromkeys(range(clients), 1 / clients), Ranks())
    assert len(waits.names) == 1
    waits.names.clear()
    with waits:
        average(payloads[0], uploads)
    assert waits.names.count("_local_scalar_dense") == 4
    assert len(waits.names) == 4


def test_what_clients_keep_is_checked_with_one_question(waits):
    kept = {c: {"head|w|bias": torch.rand(3), "optimizer|step": torch.tensor(7)} for c in range(5)}
    with waits:
        assert divergence(kept) is None
    assert len(waits.names) == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_number_among_all_is_seen(bad):
    groups = [[torch.zeros(2, 3), torch.ones(4)], [], [torch.tensor(1.0), torch.zeros(0)]]
    assert all_finite(groups)
    for group in groups:
        for tensor in group:
            if tensor.numel():
                before = tensor.view(-1)[-1].clone()
                tensor.view(-1)[-1] = bad
                assert not all_finite(groups)
                tensor.view(-1)[-1] = before
    assert all_finite(groups)
    assert all_finite([])


def test_losses_stay_on_the_device_until_the_round_ends(fit, monkeypatch):  # noqa: F811
    import fedgram.federation.rounds

    seen, train = [], fedgram.federation.rounds.Federation.train

    def look(self, current, block, start):
        states = train(self, current, block, start)
        seen.extend(current.losses[client] for client in block.clients)
        return states

    monkeypatch.setattr(fedgram.federation.rounds.Federation, "train", look)
    fit(rounds=1)
    assert len(seen) == 5
    assert all(isinstance(loss, torch.Tensor) and loss.dtype == torch.float64 for loss in seen)


class Pinned(torch.Tensor):
    """A tensor that notes how it is copied."""

    @staticmethod
    def __new__(cls, values, calls):
        self = torch.Tensor._make_subclass(cls, values)
        self.calls = calls
        return self

    def pin_memory(self):
        self.calls.append("pinned")
        return self

    def to(self, device, non_blocking=False):
        self.calls.append((str(device), non_blocking))
        return self


@pytest.mark.parametrize(
    ("device", "calls"), [("cuda:1", ["pinned", ("cuda:1", True)]), ("cpu", [("cpu", False)])], ids=["cuda", "cpu"]
)
def test_what_goes_to_a_gpu_is_pinned_and_not_waited_for(device, calls):
    tensor = Pinned(torch.zeros(3), [])
    send(tensor, torch.device(device))
    assert tensor.calls == calls
