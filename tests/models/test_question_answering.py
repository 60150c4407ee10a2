import collections
import contextlib
import copy
import csv
import re
import string

import numpy as np
import pytest
import torch

from fedgram import SGD, FederatedTrainer, FedIT, FLoRG
from fedgram.data import Quickstart, SQuAD
from fedgram.distributed.collectives import Ranks
from fedgram.engine.block import train_block
from fedgram.engine.network import ClientNetwork
from fedgram.errors import CheckpointError, ConfigurationError
from fedgram.federation.evaluation import evaluate, infer
from fedgram.models import QuestionAnswering
from fedgram.state import flatten
from thread_ranks import on_ranks
from tiny_squad import columns, write_split, write_squad
from whole_models import all_by, models_of


def make_data(folder, **settings):
    settings = {"max_length": 32, "doc_stride": 8, "batch_size": 3, "cache_dir": str(folder / "cache")} | settings
    return SQuAD(str(folder), **settings)


@pytest.fixture
def data(tmp_path, tiny_backbone):
    data = make_data(write_squad(tmp_path / "squad"))
    data.tokenizer = QuestionAnswering(tiny_backbone).load_tokenizer()
    data.setup()
    return data


@pytest.fixture
def task(tiny_backbone, data):
    task = QuestionAnswering(tiny_backbone)
    task.configure_for(data.tokenizer, data, seed=0)
    return task


def oracle(table, width=None):
    """Outputs with all mass on the labels."""
    width = width or int(table.lengths.max())
    padding = torch.arange(width) >= torch.tensor(table.lengths)[:, None]
    logits = 30 * torch.nn.functional.one_hot(torch.tensor(table.labels), width).float()
    start, end = logits.masked_fill(padding[:, None], -torch.inf).unbind(1)
    return {"start_logits": start, "end_logits": end}


def official_scores(predicted, gold):
    """Exact match and F1 as the evaluation script of SQuAD v1.1 describes them."""

    def normalise(text):
        text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    def f1(one, other):
        one, other = normalise(one).split(), normalise(other).split()
        same = sum((collections.Counter(one) & collections.Counter(other)).values())
        return 2 * same / (len(one) + len(other)) if same else 0.0

    exact = [max(normalise(p) == normalise(g) for g in own) for p, own in zip(predicted, gold, strict=True)]
    overlap = [max(f1(p, g) for g in own) for p, own in zip(predicted, gold, strict=True)]
    return {"exact_match": np.mean(exact), "f1": np.mean(overlap)}


# --- the loss ---


def test_losses_are_those_of_the_backbones_own_library(task, data):
    table, network = data.split("train"), task.loaded()
    batch = table.batch(np.flatnonzero(table.lengths == table.lengths.max())[:4], 0)
    labels = batch.pop("labels")
    expected = network(**batch, start_positions=labels[:, 0], end_positions=labels[:, 1]).loss
    losses = task.sample_losses(task.outputs(batch), labels)
    assert losses.shape == (4,)
    torch.testing.assert_close(losses.mean(), expected)


def test_padding_has_no_share_in_the_loss(task, data):
    table = data.split("train")
    rows = np.unique(table.lengths, return_index=True)[1][[0, 1, -1]]
    assert len(set(table.lengths[rows])) == 3

    def losses(batch):
        labels = batch.pop("labels")
        return task.sample_losses(task.outputs(batch), labels)

    task.loaded().double()
    together = losses(table.batch(np.append(rows, -1), 0))
    alone = torch.cat([losses(table.batch(rows[i : i + 1], 0)) for i in range(3)])
    torch.testing.assert_close(together[:3], alone, rtol=0, atol=1e-12)
    assert together[3] == 0  # a filler: one token, and its label


def test_the_loss_of_half_precision_is_single(task):
    logits = {name: torch.zeros(2, 5, dtype=torch.bfloat16) for name in ("start_logits", "end_logits")}
    losses = task.sample_losses(logits, torch.tensor([[1, 2], [0, 0]]))
    torch.testing.assert_close(losses, torch.full((2,), float(np.log(5))))


@pytest.mark.parametrize("method", [FedIT(rank=2), FLoRG(rank=2, init_std=0.3)])
def test_a_block_equals_its_clients_one_at_a_time(task, data, method):
    layers = method.install(task.loaded(), seed=0)
    task.loaded().double()
    network = ClientNetwork(task, layers, torch.device("cpu"), torch.float64, contextlib.nullcontext, 0)
    table, generator = data.split("train"), np.random.default_rng(0)
    quarters = np.array_split(np.argsort(table.lengths), 4)
    batches = [
        [generator.choice(own, 3 if i else 2, replace=False) for i in range(n)]
        for own, n in zip(quarters, (4, 3, 3, 1), strict=True)
    ]
    assert len({int(table.lengths[own[0]].max()) for own in batches}) > 1
    start = []
    for _ in batches:
        state = network.initial_state()
        for tensor in flatten(state).values():
            tensor += 0.2 * torch.from_numpy(generator.normal(size=tuple(tensor.shape)))
        start.append(state)
    # Not AdamW: a shift of all logits changes no loss, so the head's bias has a gradient of mere rounding errors, which
    # AdamW would scale up to steps of full size.
    optimizer = SGD(lr=0.1, momentum=0.9)
    block = train_block(network, optimizer, start, table, batches)
    for client, own in enumerate(batches):
        alone = train_block(network, optimizer, start[client : client + 1], table, [own])
        torch.testing.assert_close(block.losses[client : client + 1], alone.losses, rtol=0, atol=1e-10)
        for key, tensor in flatten(alone.states[0]).items():
            torch.testing.assert_close(flatten(block.states[client])[key], tensor, rtol=0, atol=1e-10)
            assert key.endswith("bias") or not torch.equal(tensor, flatten(start[client])[key])


# --- the answers ---


@pytest.mark.parametrize("width", [None, 40])
def test_an_oracle_is_always_right(task, data, width):
    """Over several windows a question, characters of several bytes, and spaces of all kinds."""
    outputs = oracle(data.split("validation"), width)
    assert task.evaluate(outputs, data, "validation") == {"exact_match": 1.0, "f1": 1.0}
    table = task.predictions(outputs, data, "validation")
    examples = data.examples("validation")
    assert table["id"] == examples.ids
    assert table["answer"] == [own[0] for own in examples.answers]
    assert min(table["probability"]) > 0.99


def test_answers_longer_than_allowed_are_not_given(task, data):
    task.max_answer_length = 1
    answers = task.predictions(oracle(data.split("validation")), data, "validation")["answer"]
    assert all(len(answer.split()) <= 1 for answer in answers)


def test_scores_are_the_official_ones(task, data):
    table, generator = data.split("validation"), torch.Generator().manual_seed(0)
    outputs = oracle(table)
    for name, logits in outputs.items():
        outputs[name] = logits + 20 * torch.randn(logits.shape, generator=generator)
    found = task.evaluate(outputs, data, "validation")
    predicted = task.predictions(outputs, data, "validation")["answer"]
    expected = official_scores(predicted, data.examples("validation").answers)
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0 < found["exact_match"] < found["f1"] < 1


def test_a_question_whose_windows_have_no_context_is_answered_by_nothing(tmp_path, tiny_backbone):
    table = columns(128, 0)  # of which one without its answer is so few that it stays
    write_split(tmp_path / "d" / "train.parquet", table)
    table["context"][1] = "  "
    write_split(tmp_path / "d" / "validation.parquet", table)
    data, task = make_data(tmp_path / "d"), QuestionAnswering(tiny_backbone)
    data.tokenizer = task.load_tokenizer()
    data.setup()
    predictions = task.predictions(oracle(data.split("validation")), data, "validation")
    assert predictions["answer"][1] == ""
    assert predictions["probability"][1] == 0
    scores = task.evaluate(oracle(data.split("validation")), data, "validation")
    assert scores == {"exact_match": 127 / 128, "f1": 127 / 128}


def test_questions_of_one_id_are_scored_apart(tmp_path, tiny_backbone):
    table = columns(4, 0)
    table["id"] = ["same"] * 4
    for split in ("train", "validation"):
        write_split(tmp_path / "d" / f"{split}.parquet", table)
    data, task = make_data(tmp_path / "d"), QuestionAnswering(tiny_backbone)
    data.tokenizer = task.load_tokenizer()
    data.setup()
    assert task.evaluate(oracle(data.split("validation")), data, "validation")["exact_match"] == 1


# --- the network ---


def test_the_head_has_two_outputs_whatever_the_backbone_was_tuned_for(tmp_path, tiny_backbone, data):
    from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification

    config = AutoConfig.from_pretrained(tiny_backbone, num_labels=3)
    with torch.random.fork_rng():
        BertForSequenceClassification(config).save_pretrained(tmp_path / "tuned")
    AutoTokenizer.from_pretrained(tiny_backbone).save_pretrained(tmp_path / "tuned")
    task = QuestionAnswering(str(tmp_path / "tuned"))
    task.configure_for(task.load_tokenizer(), data, seed=0)
    assert task.loaded().qa_outputs.out_features == 2
    assert not any(parameter.requires_grad for parameter in task.loaded().parameters())


def test_other_data_is_refused(tiny_backbone):
    task = QuestionAnswering(tiny_backbone)
    with pytest.raises(ConfigurationError, match=r"needs questions about contexts, with data SQuAD; got Quickstart"):
        task.configure_for(task.load_tokenizer(), Quickstart(), 0)


@pytest.mark.parametrize("setting", ["n_best", "max_answer_length"])
def test_bad_settings(tiny_backbone, setting):
    with pytest.raises(ConfigurationError, match=rf"model\.{setting} must be at least 1, got 0"):
        QuestionAnswering(tiny_backbone, **{setting: 0})


# --- the run ---


def test_every_rank_gets_the_metrics_of_one_process(task, data):
    layers = FLoRG(rank=2).install(task.loaded(), seed=0)
    network = ClientNetwork(task, layers, torch.device("cpu"), torch.float32, contextlib.nullcontext, 0)
    state, table = network.initial_state(), data.split("validation")
    alone = infer(network, all_by(state, table), table, 5, Ranks())
    expected = evaluate(network, models_of(state, data), data, "validation", Ranks())
    assert set(expected) == {"loss", "exact_match", "f1"}
    networks = [copy.deepcopy(network) for _ in range(3)]  # each rank loads models into its own
    for outputs in on_ranks(3, lambda ranks: infer(networks[ranks.rank], all_by(state, table), table, 5, ranks)):
        assert all(torch.equal(outputs[name], alone[name]) for name in alone)


@pytest.fixture
def trainer(tmp_path):
    def trainer(**settings):
        root = str(tmp_path / "runs")
        quiet = {"progress_bar": False, "loggers": False, "accelerator": "cpu", "default_root_dir": root}
        return FederatedTrainer(rounds=2, clients=5, local_steps=2, **quiet, **settings)

    return trainer


@pytest.mark.parametrize("clients_per_block", [2, "auto"])
def test_fit_validate_and_predict(tmp_path, tiny_backbone, trainer, clients_per_block):
    folder = write_squad(tmp_path / "squad")
    fitted = trainer(clients_per_block=clients_per_block)
    summary = fitted.fit(QuestionAnswering(tiny_backbone), make_data(folder), FLoRG(rank=2))
    assert set(summary["final"]) == {"loss", "exact_match", "f1"}
    assert summary["best"]["f1"] == max(summary["initial"]["f1"], summary["best"]["f1"])
    header = (fitted.folder.path / "partition.csv").read_text().splitlines()[0]
    assert header == "client,samples,windows"
    task, data = QuestionAnswering(tiny_backbone), make_data(folder)
    assert trainer().validate(task, data, FLoRG(rank=2), "last") == summary["final"]
    with pytest.raises(ConfigurationError, match="the test split has no labels"):
        trainer().test(task, data, FLoRG(rank=2), "last")
    path = trainer().predict(task, data, FLoRG(rank=2), "last", output=str(tmp_path / "predictions.csv"))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["sample", "id", "answer", "probability"]
    assert [row["id"] for row in rows] == data.examples("test").ids
    for row, context in zip(rows, data.examples("test").contexts, strict=True):
        assert row["answer"] in context
        assert 0 < float(row["probability"]) <= 1


def test_settings_of_the_task_are_the_runs_and_its_evaluations(tmp_path, tiny_backbone, trainer):
    data, method = make_data(write_squad(tmp_path / "squad")), FLoRG(rank=2)
    summary = trainer().fit(QuestionAnswering(tiny_backbone, n_best=3), data, method)
    assert summary["settings"]["model"] == "QuestionAnswering"
    assert (summary["settings"]["model.n_best"], summary["settings"]["model.max_answer_length"]) == (3, 30)
    other = QuestionAnswering(tiny_backbone, n_best=3, max_answer_length=2)
    differs = r"model\.max_answer_length: 30 there, 2 here"
    with pytest.raises(CheckpointError, match=differs):
        trainer().validate(other, data, method, "last")
    with pytest.raises(CheckpointError, match=differs):
        trainer().fit(other, data, method, ckpt_path="last")


def test_a_subclass_adds_its_own_settings():
    class Careful(QuestionAnswering):
        def __init__(self, *args, patience=2, **common):
            super().__init__(*args, **common)
            self.patience, self.found = patience, 0

    expected = {"backbone": "b", "pretrained": True, "tokenizer": "t", "n_best": 5, "max_answer_length": 30}
    assert Careful("b", n_best=5, tokenizer="t").settings == expected | {"patience": 2}
