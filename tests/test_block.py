import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedgram.data import IID, TextClassificationData
from fedgram.engine.block import train_block
from fedgram.engine.network import ClientNetwork
from fedgram.methods import FeDeRA, FedExLoRA, FedIT, FFALoRA, FLoRG, Method
from fedgram.models import TextClassification
from fedgram.optim import SGD, AdamW
from fedgram.state import ModelState, flatten, map_layers


def make_network(backbone: str, folder: Path, method: Method) -> tuple[ClientNetwork, TextClassificationData]:
    task = TextClassification(backbone)
    data = TextClassificationData(str(folder), batch_size=3, partition=IID(), cache_dir=str(folder / "cache"))
    data.tokenizer = task.load_tokenizer()
    data.setup()
    task.configure_for(data.tokenizer, data, seed=0)
    layers = method.install(task.loaded(), seed=0)
    task.loaded().double()
    network = ClientNetwork(task, layers, torch.device("cpu"), torch.float64, contextlib.nullcontext, 0)
    network.shared = method.shared_fields
    return network, data


class NaiveLora(nn.Module):
    """(W + E) x + s B A x for one client, ΔW multiplied out: the textbook, not the code under test."""

    def __init__(self, base: nn.Linear, A: torch.Tensor, B: torch.Tensor, scale: float, E: torch.Tensor) -> None:
        super().__init__()
        self.base, self.scale, self.E = base, scale, E
        self.A, self.B = nn.Parameter(A.clone()), nn.Parameter(B.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ (self.E + self.scale * self.B @ self.A).mT


class NaiveGram(nn.Module):
    """W x + s L (AᵀA - A₁ᵀA₁) R x for one client, ΔW multiplied out."""

    def __init__(self, adapter: nn.Module, A: torch.Tensor, scale: float) -> None:
        super().__init__()
        k = A.shape[1]
        self.base, self.scale = adapter.base, scale
        self.L = torch.eye(k).double() if adapter.L is None else adapter.L.double()
        self.R = torch.eye(k).double() if adapter.R is None else adapter.R.double()
        self.start, self.A = adapter.start["A"].double(), nn.Parameter(A.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gram = self.A.mT @ self.A - self.start.mT @ self.start
        return self.base(x) + x @ (self.scale * self.L @ gram @ self.R).mT


def train_alone(network, method, start: ModelState, table, batches, make_optimizer, clip) -> dict[str, torch.Tensor]:
    """One client on its own: plain modules, torch's optimizer, the mean loss of each batch."""
    model = network.task.loaded()
    swapped = {}
    for name, layer in network.layers.items():
        tensors = {f: t.double() for f, t in start.parts[layer.part][name].items()}
        if layer.part == "head":
            plain = nn.Linear(layer.d_in, layer.d_out).double()
            plain.load_state_dict(tensors)
        elif isinstance(method, FLoRG):
            plain = NaiveGram(layer, tensors["A"], method.scale)
        else:
            E = layer.shared.get("residual", torch.zeros(()))  # what a server has added to W
            if layer.preserve_start:  # what the start has taken out of it
                E = E - method.scale * layer.start["B"].double() @ layer.start["A"].double()
            plain = NaiveLora(layer.base, tensors["A"], tensors["B"], method.scale, E)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, plain)
        swapped[name] = plain
    fields = [
        (f"{layer.part}|{name}|{field}", dict(swapped[name].named_parameters())[field])
        for name, layer in network.layers.items()
        for field in start.parts[layer.part][name]
        if layer.part == "head" or field in method.trained_fields
    ]
    optimizer = make_optimizer([p for _, p in fields])
    for rows in batches:
        batch = table.batch(rows, 0)
        labels = batch.pop("labels")
        loss = functional.cross_entropy(model(**batch).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_([p for _, p in fields], clip)
        optimizer.step()
    for name, layer in network.layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    return {key: parameter.detach() for key, parameter in fields}


METHODS = {
    "FedIT": FedIT(rank=2),
    "FLoRG": FLoRG(rank=2, init_std=0.3),
    "FLoRG-kaiming": FLoRG(rank=3, basis="kaiming"),
    "FFALoRA": FFALoRA(rank=2, head="averaged"),
    "FeDeRA": FeDeRA(rank=2),
    "FedExLoRA": FedExLoRA(rank=2, residual="factored"),
}
OPTIMIZERS = {
    "decay": (AdamW(lr=0.01, weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1), None),
    "clipped": (AdamW(lr=0.01, max_grad_norm=0.5), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0), 0.5),
    "SGD": (SGD(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), None),
}
TRAINED = [*((name, "decay") for name in METHODS), *((n, o) for n in ("FedIT", "FLoRG") for o in ("clipped", "SGD"))]
"""Every form of an adapter; an optimizer sees tensors alone."""


@pytest.mark.parametrize(("name", "optimizer"), TRAINED)
def test_block_equals_training_each_client_alone(tiny_backbone, tiny_data, name, optimizer):
    method, (ours, theirs, clip) = METHODS[name], OPTIMIZERS[optimizer]
    network, data = make_network(tiny_backbone, tiny_data, method)
    table = data.split("train")
    generator = np.random.default_rng(0)
    steps = [5, 4, 4, 1]
    # The last batch of a client may be smaller than the others': filler rows must not count.
    batches = [[generator.choice(60, 3 if i else 2, replace=False) for i in range(n)] for n in steps]
    start = []
    for client in range(len(steps)):
        state = network.initial_state()
        start.append(
            state.map(lambda t, c=client: t + 0.1 * (c + 1) * torch.from_numpy(generator.normal(size=tuple(t.shape))))
        )
    network.share(start[0])
    start = [method.without_shared(state) for state in start]
    block = train_block(network, ours, start, table, batches, trained=method.trained_fields)
    trained, losses = block.states, block.losses
    for client in range(len(steps)):
        alone = train_alone(network, method, start[client], table, batches[client], theirs, clip)
        together = flatten(trained[client])
        assert {
            key for key in together if key.startswith("head") or key.split("|")[2] in method.trained_fields
        } == alone.keys()
        for key in alone:
            torch.testing.assert_close(together[key], alone[key], rtol=0, atol=1e-10)
            assert not torch.equal(together[key], flatten(start[client])[key])
    assert losses.shape == (4,)
    assert torch.isfinite(losses).all()


def test_frozen_fields_take_part_and_stay(tiny_backbone, tiny_data):
    network, data = make_network(tiny_backbone, tiny_data, FedIT(rank=2))
    generator = np.random.default_rng(0)
    batches = [[generator.choice(60, 3, replace=False) for _ in range(n)] for n in (3, 1)]
    start = [network.initial_state() for _ in batches]
    start[1] = replace(start[1], adapter=map_layers(start[1].adapter, lambda tensor: tensor + 0.5))
    table, optimizer = data.split("train"), SGD(lr=0.1)
    frozen = train_block(network, optimizer, start, table, batches, trained={"B"}).states
    free = train_block(network, optimizer, start, table, batches).states
    for client, state in enumerate(frozen):
        for name, layer in state.adapter.items():
            assert torch.equal(layer["A"], start[client].adapter[name]["A"])
            assert not torch.equal(layer["B"], start[client].adapter[name]["B"])
    # With B = 0 the first gradient of A is zero: a client with one step trains B as if A were free.
    alone = train_block(network, optimizer, start[1:], table, batches[1:], trained={"B"}).states
    for name, layer in alone[0].adapter.items():
        torch.testing.assert_close(layer["B"], free[1].adapter[name]["B"], rtol=0, atol=1e-12)
