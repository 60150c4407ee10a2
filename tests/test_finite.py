"""What is not finite never counts: an error says where it is, and the round before stands."""

import copy
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedgram import SGD, FederatedTrainer, FedIT, FFALoRA, FLoRG, TextClassification, TextClassificationData
from fedgram.errors import FedgramError, TrainingError, explain
from fedgram.federation.evaluation import evaluate
from fedgram.finite import remedy, spoilt_losses, spoilt_outputs, spoilt_tensor, undefined
from fedgram.runs.checkpoint import load
from fedgram.state import ServerMemory, flatten
from test_block import make_network
from test_trainer import fit, rows  # noqa: F401 (a fixture)
from thread_ranks import on_ranks
from tiny_models import save_tiny
from whole_models import models_of


class Erring(FedIT):
    """Its server errs in the second round."""

    def __init__(self, part: str, **common) -> None:
        super().__init__(rank=2, **common)
        self.part = part

    def server_start(self, model, clients):
        moment = {"moment": torch.zeros(3)}
        return ServerMemory(globals=moment) if self.part == "server" else super().server_start(model, clients)

    def next_state(self, server, adapters, heads, ctx):
        new = super().next_state(server, adapters, heads, ctx)
        if ctx.number < 2:
            return new
        if self.part == "server":
            return replace(new, memory=ServerMemory(globals={"moment": torch.full((3,), math.inf)}))
        layers = new.parts[self.part]
        last = list(layers)[-1]
        bad = {**layers, last: {field: torch.full_like(tensor, math.inf) for field, tensor in layers[last].items()}}
        return replace(new, model=replace(new.model, **{self.part: bad}))


ERRORS = {
    "adapter": "of .*attention.self.value holds",
    "head": "of classifier holds",
    "server": "moment in the server's memory holds",
}


@pytest.mark.parametrize("part", ERRORS)
def test_a_server_that_errs_in_the_last_round_ends_the_run_at_the_round_before(fit, tmp_path, part):  # noqa: F811
    with pytest.raises(TrainingError, match=ERRORS[part]) as caught:
        fit(method=Erring(part), rounds=2, name="erring")
    assert explain(caught.value).startswith("round 2: ")
    folder = tmp_path / "runs" / "erring" / "version_0"
    assert {row["round"] for row in rows(folder)} == {"0", "1"}
    assert {row["round"] for row in rows(folder, "communication.csv")} == {"1"}
    assert not (folder / "summary.json").exists()
    newest = max((folder / "checkpoints").glob("round_*"))
    assert load(newest).round == 1
    summary, _ = fit(method=Erring(part), rounds=1, name="erring", ckpt_path=str(folder))
    assert math.isfinite(summary["final"]["loss"])


class Lossy(TextClassification):
    """Its training losses are nan, by a term that has no gradient."""

    def sample_losses(self, outputs, labels):
        losses = super().sample_losses(outputs, labels)
        return losses + math.nan if losses.requires_grad else losses


def test_a_training_loss_that_is_nan_names_round_and_client(tiny_backbone, tiny_data, tmp_path):
    trainer = FederatedTrainer(
        rounds=1, clients=3, local_steps=1, accelerator="cpu", loggers=False, default_root_dir=str(tmp_path)
    )
    data = TextClassificationData(str(tiny_data), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(TrainingError, match="client 0 diverged: its training loss is nan") as caught:
        trainer.fit(Lossy(tiny_backbone), data, FLoRG(rank=2))
    assert explain(caught.value).startswith("round 1: ")


@pytest.mark.parametrize("method", [FLoRG(rank=2), FLoRG(rank=2, solver="eigh"), FFALoRA(rank=2)])
def test_a_rate_that_is_far_too_high_is_an_error_with_the_round(fit, method):  # noqa: F811
    with pytest.raises(TrainingError) as caught:
        fit(method=method, optimizer=SGD(lr=1e30), rounds=3)
    assert explain(caught.value).startswith("round 1")


def test_a_loss_that_overflows_in_an_evaluation_is_an_error(tiny_backbone, tmp_path):
    texts = "\n".join(f"the film was {word},{score}e25" for score, word in enumerate(["good", "bad", "fine", "dull"]))
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{texts}\n")
    trainer = FederatedTrainer(rounds=1, clients=2, accelerator="cpu", default_root_dir=str(tmp_path / "runs"))
    data = TextClassificationData(str(tmp_path), num_labels=1, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(TrainingError, match="loss is inf") as caught:
        trainer.fit(TextClassification(tiny_backbone), data, FLoRG(rank=2))
    assert explain(caught.value).startswith("round 0, validation split: ")


@pytest.fixture(scope="module")
def loud(tmp_path_factory):
    """A RoBERTa whose weights are too large for float16."""
    import transformers

    folder = save_tiny("roberta", tmp_path_factory.mktemp("loud"))
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(60)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def ask(loud, tiny_data, tmp_path):
    """Runs a command of the trainer with weights of a type."""

    def run(command, dtype, **settings):
        trainer = FederatedTrainer(
            rounds=1, clients=2, local_steps=1, accelerator="cpu", default_root_dir=str(tmp_path / "runs"), **settings
        )
        options = {"output": str(tmp_path / "p.csv")} if command == "predict" else {}
        data = TextClassificationData(str(tiny_data), cache_dir=str(tmp_path / "cache"))
        return getattr(trainer, command)(TextClassification(loud, dtype), data, FLoRG(rank=2), **options)

    return run


@pytest.mark.parametrize("command", ["predict", "test", "validate", "fit"])
def test_an_overflow_in_half_precision_says_what_helps(ask, tmp_path, command):
    with pytest.raises(FedgramError, match=r"float16.*bfloat16 or float32"):
        ask(command, "float16")
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize("size", [1, 2])
def test_a_model_whose_answers_overflow_is_an_error_on_every_rank(tiny_backbone, tiny_data, size):
    network, data = make_network(tiny_backbone, tiny_data, FedIT(rank=2))
    state = network.initial_state()
    for tensor in flatten(state).values():
        tensor += 1e200
    networks = [copy.deepcopy(network) for _ in range(size)]
    for result in on_ranks(
        size, lambda ranks: evaluate(networks[ranks.rank], models_of(state, data), data, "validation", ranks)
    ):
        assert isinstance(result, TrainingError)
        found = r"validation split: the logits of 16 of 16 samples \(the first: sample 0\) are not finite; a lower"
        assert re.match(found, explain(result))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_said_to_help_does(ask, tmp_path, dtype):
    ask("predict", dtype)
    probabilities = [float(row["probability"]) for row in rows(tmp_path, "p.csv")]
    assert len(probabilities) == 16
    assert all(0.5 <= value <= 1 for value in probabilities)


def test_outputs_are_finite_but_for_tokens_that_a_sample_does_not_have():
    low, lengths = -math.inf, np.array([3, 2])
    assert spoilt_outputs({"start": torch.tensor([[0.0, 1, 2], [0, 1, low]])}, lengths) is None
    assert spoilt_outputs({"start": torch.tensor([[0.0, 1, 2], [low, 0, 1]])}, lengths) is None  # padded on the left
    for bad in (low, math.inf, math.nan):
        found = spoilt_outputs({"start": torch.tensor([[0.0, 1, 2], [0, bad, low]])}, lengths)
        assert found == "the start of 1 of 2 samples (the first: sample 1) are not finite"
        assert "2 of 2" in spoilt_outputs({"logits": torch.tensor([[bad, 0.0], [0.0, bad]])}, lengths)
        assert "1 of 2" in spoilt_outputs({"score": torch.tensor([0.0, bad])}, lengths)


def test_tensors_and_losses_are_named():
    fine = {"adapter|q|A": torch.ones(2), "server||steps": torch.tensor(3)}
    assert spoilt_tensor(fine) is None
    assert spoilt_tensor({}) is None
    assert spoilt_tensor(fine | {"adapter|q|B": torch.tensor([1.0, math.inf])}) == "B of q holds nan or inf"
    assert spoilt_losses({3: 1.0, 4: math.nan}) == "client 4 diverged: its training loss is nan"
    assert spoilt_losses({3: 1.0}) is None
    assert undefined({"loss": 1.0, "pearson": math.nan, "f1": math.inf}) == ["pearson"]
    assert "float16" in remedy(nn.Linear(2, 2, dtype=torch.float16))
    assert "float16" not in remedy(nn.Linear(2, 2, dtype=torch.bfloat16))
