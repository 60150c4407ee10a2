"""What an estimate of many methods does once, what it shows meanwhile, and what it refuses before it begins."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from fedgram import FedIT, FlexLoRA, FLoRG, TextClassification, trainer
from fedgram.adapters import ClientLayer
from fedgram.cli.lightning import announced
from fedgram.cost import client_flops as flops
from fedgram.cost import fake_network as skeleton
from fedgram.cost.fake_network import equal_layers, form_of


@pytest.fixture
def task(tiny_backbone):
    return TextClassification(tiny_backbone)


def test_what_was_done_to_a_network_is_undone_for_the_next_method(task, monkeypatch):
    monkeypatch.setattr(skeleton, "_kept", {})
    config, drawn = task.read_config(num_labels=2), []
    monkeypatch.setattr(skeleton, "_draw", lambda *given, draw=skeleton._draw: drawn.append(given) or draw(*given))
    for kind in (FLoRG, FedIT, FLoRG):
        with skeleton.skeleton(task, config, kind(rank=2)) as network:
            backbone = network.task.loaded()
            own = [module for module in backbone.modules() if isinstance(module, ClientLayer)]
            assert len(own) == len(network.layers) == 4 + 1  # query and value of two layers, and the head
            assert not any(module._forward_hooks for module in backbone.modules())
            assert not hasattr(backbone, "mark")
            backbone.mark = 1
            own[0].register_forward_hook(print)
            backbone.get_submodule("bert.embeddings").register_forward_hook(print)
            layers = equal_layers(network)
            assert len(layers) == 2
            skeleton.cut(network, layers, 1)
    assert len(drawn) == 1


def test_two_networks_at_once_are_two(task):
    config = task.read_config(num_labels=2)
    with skeleton.skeleton(task, config, FedIT(rank=2)) as one:
        first = one.task.loaded()
        with skeleton.skeleton(task, config, FedIT(rank=2)) as two:
            assert two.task.loaded() is not first


def test_steps_of_equal_form_are_counted_once(task, monkeypatch):
    counted = []
    monkeypatch.setattr(flops, "_counted_before", {})
    monkeypatch.setattr(flops, "_forms", {})
    monkeypatch.setattr(flops, "_counted", lambda *given, count=flops._counted: counted.append(given) or count(*given))
    config = task.read_config(num_labels=2)
    found = [flops.training_flops(task, config, kind(rank=2), 8) for kind in (FedIT, FlexLoRA, FLoRG)]
    assert found[0] == found[1] != found[2]
    assert [given[0].method.name for given in counted] == ["FedIT", "FLoRG"]
    assert flops.training_flops(task, config, FedIT(rank=3), 8) != found[0]


@dataclass
class Unknown:
    size: int


def test_forms_tell_apart_what_costs_may_depend_on():
    layer, other = nn.Linear(3, 4), nn.Linear(3, 4)
    assert form_of(layer) == form_of(other)
    other.weight.requires_grad_(False)
    assert form_of(layer) != form_of(other)
    assert form_of({"a": torch.zeros(2, 3)}) == form_of({"a": torch.ones(2, 3)})
    assert form_of({"a": torch.zeros(2, 3)}) != form_of({"a": torch.zeros(3, 2)})
    assert form_of({"a": torch.zeros(2, 3)}) != form_of({"b": torch.zeros(2, 3)})
    assert form_of(torch.zeros(2, 2)) != form_of(torch.zeros(2, 2, dtype=torch.float64))
    assert form_of([1, 2.0, "x", None]) != form_of((1, 2.0, "x", None))
    assert form_of(frozenset("ab")) == form_of(frozenset("ba"))
    assert form_of(Unknown(1)) != form_of(Unknown(1))  # never taken to be alike


@pytest.mark.parametrize("output", ["", "/", ".", "a/folder"])
def test_a_place_that_holds_no_file_is_refused_before_anything_is_counted(fedgram, config, monkeypatch, output):
    monkeypatch.setattr(trainer, "estimate", lambda *given: pytest.fail("something was counted"))
    Path("a/folder").mkdir(parents=True)
    code, out, err = fedgram("cost", "--config", config, f"--json={output}")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "can't write" in err
    assert "give the name of a file" in err


def test_on_a_terminal_a_line_says_which_method_is_counted(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with announced("costs") as announce:
        announce("FedIT", 2, 32)
    err = capsys.readouterr().err
    assert "costs: FedIT, 2 of 32" in err
    assert err.endswith("\x1b[2K")  # the line is gone
    monkeypatch.delenv("FORCE_COLOR")
    with announced("costs") as announce:
        announce("FedIT", 2, 32)
    assert capsys.readouterr() == ("", "")


def test_every_method_is_announced(task, tiny_data, monkeypatch):
    from fedgram import FederatedTrainer, TextClassificationData

    said = []
    FederatedTrainer(rounds=1, clients=2, local_steps=1, loggers=False).cost(
        task, TextClassificationData(str(tiny_data)), FedIT(rank=2), announce=lambda *given: said.append(given)
    )
    assert said == [("FedIT", 1, 1)]
