"""A million clients over one data set: what a round does, and what a run writes, are as with fifty.

What a round does is measured in bytes that Python and NumPy ask for: one for each of a million clients would show.
"""

import gc
import tracemalloc

import numpy as np
import pytest

from fedgram import IID, AdamW, Dirichlet, FederatedTrainer, FedSALoRA, FLoRG, TextClassification
from fedgram.callbacks import Callback
from fedgram.cohort import sample
from fedgram.data import FederatedData
from fedgram.data.tokens import TokenTable
from fedgram.runs.checkpoint import load
from tables import rows
from test_trainer import fit  # noqa: F401 (a fixture)

MANY = 1_000_000
FEW = 50
ROUNDS = 3


class Sequences(FederatedData):
    """A million sequences of three tokens for training, and twenty for validation."""

    name = "sequences"
    num_labels, label_names, metrics = 2, ["bad", "good"], ("accuracy",)

    def load_tables(self):
        self.group_names, random = self.label_names, np.random.default_rng(0)
        tables = {}
        for split, samples in {"train": MANY, "validation": 20}.items():
            ids = random.integers(5, 10, 3 * samples, dtype=np.int32)
            offsets, labels = 3 * np.arange(samples + 1), random.integers(0, 2, samples)
            tables[split] = TokenTable(ids, np.zeros_like(ids, dtype=np.uint8), offsets, labels)
        return tables

    def groups(self, split):
        return self.tables[split].labels


class Allocations(Callback):
    """Notes the most memory that Python and NumPy asked for at once between the ends of the last two rounds."""

    def on_round_end(self, trainer, row):
        if row["round"] == ROUNDS - 1:
            gc.collect()
            tracemalloc.start()
        if row["round"] == ROUNDS:
            self.most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()


@pytest.fixture(scope="module")
def runs(tiny_backbone, tmp_path_factory):
    """Runs of few clients and of many, which keep something: the trainer of each, and the callback that watched it."""
    return [run(FedSALoRA, tiny_backbone, tmp_path_factory.mktemp("runs"), clients) for clients in (FEW, MANY)]


def run(method, backbone, folder, clients, partition=Dirichlet):
    watch = Allocations()
    trainer = FederatedTrainer(
        rounds=ROUNDS,
        clients=clients,
        participation=4,
        local_steps=1,
        clients_per_block=2,
        accelerator="cpu",
        loggers=False,
        progress_bar=False,
        callbacks=[watch],
        default_root_dir=str(folder),
    )
    trainer.fit(TextClassification(backbone), Sequences(8, 1, 8, partition(), None), method(rank=2), AdamW(lr=0.01))
    return trainer, watch


@pytest.mark.slow
def test_a_round_allocates_nothing_for_clients_outside_its_cohort(runs):
    _, (_, many) = runs
    assert many.most < MANY  # and so not a byte for each


@pytest.mark.slow
def test_a_checkpoint_holds_nothing_for_clients_that_never_took_part(runs):
    few, many = (trainer.folder.checkpoint("last") for trainer, _ in runs)
    assert len(load(many).tensors()) == len(load(few).tensors())
    assert many.stat().st_size < few.stat().st_size + 2000  # larger numbers, and so larger names of clients


@pytest.mark.slow
def test_tables_grow_with_rounds_and_not_with_clients(runs):
    (few, _), (many, _) = runs
    for name in ("metrics.csv", "communication.csv", "diagnostics.csv"):
        assert len(rows(many.folder.path, name)) == len(rows(few.folder.path, name))
    assert [row["round"] for row in rows(many.folder.path)] == [str(number) for number in range(ROUNDS + 1)]


@pytest.mark.slow
def test_a_million_clients_are_shown_taken_together(runs):
    (few, _), (many, _) = runs
    assert [row["client"] for row in rows(few.folder.path, "partition.csv")] == [str(client) for client in range(FEW)]
    lines = rows(many.folder.path, "partition.csv")
    assert len(lines) == 400
    assert sum(int(line["clients"]) for line in lines) == sum(int(line["samples"]) for line in lines) == MANY
    labels = many.federation.data.groups("train")
    assert [sum(int(line[name]) for line in lines) for name in ("bad", "good")] == np.bincount(labels).tolist()
    assert (many.folder.path / "partition.png").stat().st_size > 1000


@pytest.mark.slow
def test_what_is_known_of_a_client_is_in_arrays(runs):
    federation = runs[1][0].federation
    shards = federation.shards
    assert [array.dtype for array in (shards.order, shards.offsets, federation.last_rounds)] == ["i8", "i8", "i4"]
    assert len(shards) == len(federation.last_rounds) == MANY
    trained = {client for number in range(1, ROUNDS + 1) for client in sample(0, number, MANY, 4)}
    assert set(np.flatnonzero(federation.last_rounds).tolist()) == trained
    assert set(federation.store.tensors) <= trained


def test_a_million_clients_share_evenly_what_is_dealt_evenly(tiny_backbone, tmp_path):
    trainer, watch = run(FLoRG, tiny_backbone, tmp_path, MANY, IID)
    assert watch.most < MANY
    assert {row["largest_client"] for row in rows(trainer.folder.path, "partition.csv")} == {"1"}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("participation", "rounds"), [(2, 4), (3, 1), (1, 3)])
def test_a_run_that_goes_on_knows_when_each_client_last_took_part(fit, participation, rounds):  # noqa: F811
    keys = {"clients": 7, "participation": participation, "local_steps": 1, "evaluate_every": 9}
    whole = fit(rounds=rounds + 1, name="whole", **keys)[1].federation
    fit(rounds=rounds, name="parts", **keys)
    parts = fit(rounds=rounds, name="parts", ckpt_path="last", **keys)[1].federation
    size = 7 if participation == 1 else participation
    expected = np.zeros(7, int)
    for number in range(1, rounds + 1):
        expected[sample(0, number, 7, size)] = number
    assert parts.last_rounds.tolist() == expected.tolist()
    expected[sample(0, rounds + 1, 7, size)] = rounds + 1
    assert whole.last_rounds.tolist() == expected.tolist()
