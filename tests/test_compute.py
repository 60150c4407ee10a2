"""The operations of whole runs."""

import dataclasses
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from fedgram import FedIT, FLoRG
from fedgram.cohort import local_batches
from fedgram.cost.client_flops import TrainingFlops, Work
from fedgram.cost.compute import Compute, Prices
from fedgram.data import Dirichlet
from fedgram.federation.summary import evaluated_samples
from fedgram.runs.checkpoint import load, save
from fedgram.seeding import numpy_generator
from tables import rows
from test_flops import Curious
from test_trainer import fit  # noqa: F401

pytestmark = pytest.mark.flops
PRICES = Prices(TrainingFlops(step=10**9, sample=10**6, token=1000, squared_token=1), 7)


def test_sums_are_whole_numbers_of_any_size():
    compute = Compute(PRICES)
    for _ in range(3):
        compute.add(Work(10**10, 1, 2, 4))
    assert compute.sums() == {"client_flops": 3 * (10**19 + 10**6 + 2004), "server_flops": 21}


def test_a_run_goes_on_counting_where_its_checkpoint_stands():
    first, second = Compute(PRICES), Compute(PRICES)
    first.add(Work(1, 2, 3, 5))
    second.resume({"other": 1, **first.sums()})
    for compute in (first, second):
        compute.add(Work(2, 3, 4, 6))
    assert second.sums() == first.sums()


def test_what_was_not_counted_from_the_start_is_not_counted_later():
    compute = Compute(PRICES)
    compute.resume({"seconds": 1.0})
    compute.add(Work(1, 1, 1, 1))
    assert compute.sums() == {}


@pytest.mark.parametrize("method", [FedIT(rank=2), FLoRG(rank=2)])
def test_client_flops_are_those_of_the_samples_that_were_trained_on(fit, method):  # noqa: F811
    summary, trainer = fit(
        method=method, rounds=2, participation=3, local_steps=None, partition=Dirichlet(0.5), clients_per_block=2
    )
    run = trainer.federation
    prices, table = run.progress.compute.prices, run.data.split("train")
    expected = [0, 0, 0]
    for number in (1, 2):
        expected[number] = expected[number - 1]
        for client in run.sample(number).cohort:
            own = run.shards[client]
            generator = numpy_generator(0, "batches", number, client)
            for batch in local_batches(own, int(np.ceil(len(own) / 3)), 3, generator):
                expected[number] += prices.training.step
                for length in table.lengths[batch].tolist():
                    cost = prices.training
                    expected[number] += cost.sample + cost.token * length + cost.squared_token * length**2
    assert [float(row["client_flops"]) for row in rows(trainer.folder.path)] == expected
    assert [float(row["server_flops"]) for row in rows(trainer.folder.path)] == [
        round_number * prices.aggregation for round_number in range(3)
    ]
    assert (summary["client_flops"], summary["server_flops"]) == (expected[-1], 2 * prices.aggregation)
    assert type(summary["client_flops"]) is int


def test_the_servers_share_is_that_of_the_cohort(fit):  # noqa: F811
    """FedIT's means of three clients: A and B of four layers of 16 x 16, and a head of 2 x 16 and 2."""
    summary, _ = fit(method=FedIT(rank=2), rounds=2, participation=3)
    assert summary["server_flops"] == 2 * 2 * 3 * (4 * 2 * 32 + 34)


def test_a_resumed_run_counts_as_one_in_one_go(fit):  # noqa: F811
    keys = {"participation": 3, "partition": Dirichlet(0.5)}
    whole, _ = fit(rounds=3, name="whole", **keys)
    fit(rounds=2, name="parts", **keys)
    parts, trainer = fit(rounds=3, name="parts", ckpt_path="last", **keys)
    for key in ("client_flops", "server_flops"):
        assert parts[key] == whole[key] > 0
    assert float(rows(trainer.folder.path)[-1]["client_flops"]) == whole["client_flops"]


def test_a_run_whose_checkpoint_has_not_counted_goes_on_without(fit):  # noqa: F811
    _, trainer = fit(rounds=1)
    last = trainer.folder.checkpoint("last")
    behind = load(last)
    old = {key: value for key, value in behind.progress.items() if "flops" not in key}
    save(last, dataclasses.replace(behind, progress=old))
    summary, _ = fit(rounds=2, ckpt_path="last")
    assert (summary["client_flops"], summary["server_flops"]) == (None, None)


def test_a_method_that_can_not_be_counted_trains_nevertheless(fit, caplog):  # noqa: F811
    with caplog.at_level(logging.WARNING):
        summary, trainer = fit(method=Curious(rank=2), rounds=1)
    assert (summary["client_flops"], summary["server_flops"]) == (None, None)
    assert "client_flops" not in rows(trainer.folder.path)[0]
    assert "the operations of Curious" in caplog.text
    assert summary["rounds"] == 1


def test_questions_are_counted_and_not_their_windows():
    data = SimpleNamespace(units=lambda split: {"validation": np.array([0, 0, 0, 1, 2, 2])}[split])
    assert evaluated_samples(data, "validation") == 3


def test_a_summary_says_on_how_many_samples_the_metrics_are(fit, tiny_data):  # noqa: F811
    assert fit(rounds=1)[0]["evaluated_samples"] == 16
    (tiny_data / "validation.csv").unlink()
    assert fit(rounds=1)[0]["evaluated_samples"] == 0
