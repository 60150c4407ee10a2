"""Runs on data of one's own: without a validation split, and with a partition of one's own."""

import logging

import numpy as np
import pytest

from fedgram import FederatedTrainer, FedIT, TextClassification, TextClassificationData
from fedgram.data import GLUE, Partition, SQuAD
from fedgram.errors import CheckpointError, DataError


class ByRow(Partition):
    """Three users, of whom each wrote a third of the file."""

    def __init__(self, rows: int = 60) -> None:
        self.users = np.arange(rows) // (rows // 3)

    def owners_of(self, samples, clients, seed):
        return self.users[samples.rows]


class ByPosition(ByRow):
    """The same, from labels alone: blind to the rows that were held out."""

    def owners_of(self, samples, clients, seed):
        return self.users


@pytest.fixture
def parts(tiny_backbone, tiny_data, tmp_path):
    """Makes a trainer, a model and data whose folder has a train split alone."""
    for name in ("validation", "test"):
        (tiny_data / f"{name}.csv").unlink()

    def parts(**settings):
        trainer = FederatedTrainer(
            rounds=1, clients=3, local_steps=1, loggers=False, accelerator="cpu", default_root_dir=tmp_path, threads=1
        )
        data = TextClassificationData(str(tiny_data), batch_size=3, cache_dir=str(tmp_path / "cache"), **settings)
        return trainer, TextClassification(tiny_backbone), data

    return parts


def unevaluated(caplog):
    return [record.getMessage() for record in caplog.records if "no validation split" in record.getMessage()]


def test_a_run_without_a_validation_split_says_so_once_and_keeps_no_best(parts, caplog):
    trainer, model, data = parts()
    with caplog.at_level(logging.WARNING, logger="fedgram"):
        summary = trainer.fit(model, data, FedIT(rank=2))
    (line,) = unevaluated(caplog)
    assert "this run is not evaluated, and no checkpoint is its best" in line
    assert "--data.validation_fraction 0.1" in line
    assert (summary["final"], summary["best"]) == ({}, {})
    trainer, model, data = parts()
    with pytest.raises(CheckpointError, match="--ckpt_path best: no run"):
        trainer.predict(model, data, FedIT(rank=2), ckpt_path="best", split="train")


def test_a_run_with_one_says_nothing(parts, caplog):
    trainer, model, data = parts(validation_fraction=0.3)
    with caplog.at_level(logging.WARNING, logger="fedgram"):
        assert trainer.fit(model, data, FedIT(rank=2))["best"]
    assert not unevaluated(caplog)


@pytest.mark.parametrize("data", [GLUE("rte", "folder"), SQuAD("folder")])
def test_the_remedy_is_one_that_the_data_has(data):
    settings = {word.strip(".,") for word in data.validation_remedy.split() if "data." in word}
    assert all(hasattr(data, setting.rpartition("data.")[2]) for setting in settings)


def test_rows_that_are_held_out_do_not_shift_the_owners_of_the_others(parts):
    trainer, model, data = parts(validation_fraction=0.3, max_train_samples=30, partition=ByRow())
    trainer.fit(model, data, FedIT(rank=2))
    rows, note = data.dealt()
    assert note.startswith("30 training samples (of 60 in the train split")
    owners = trainer.federation.shards.owners
    assert owners.tolist() == (rows // 20).tolist()
    _, model, data = parts(validation_fraction=0.3, max_train_samples=30, partition=ByRow())
    # All clients have one model, and whose samples are whose is nobody's question: three users are no error here.
    trainer.validate(model, data, FedIT(rank=2), ckpt_path="last")


def test_owners_for_the_whole_file_are_refused_with_both_numbers(parts):
    trainer, model, data = parts(validation_fraction=0.3, partition=ByPosition())
    with pytest.raises(DataError) as error:
        trainer.fit(model, data, FedIT(rank=2))
    kept = len(data.dealt()[0])
    assert "the partition ByPosition returned the clients of 60 samples" in str(error.value)
    assert f"but {kept} training samples (of 60 in the train split, the others are held out" in str(error.value)
