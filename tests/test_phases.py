"""Phases of local training whose share of a client's local steps rounds to none."""

import numpy as np
import pytest

from fedgram.errors import ConfigurationError
from fedgram.federation import rounds as federation
from fedgram.federation.phases import check_phases
from fedgram.methods import FedDPA, FedIT, FedLEASE, LoRAMethod, Paper, PFedLoRU, Phase, RoLoRA, SLoRA
from tables import rows
from test_trainer import fit  # noqa: F401 (a fixture)


class InTurns(LoRAMethod):
    """Trains B and then A, neither of which stays with its client."""

    paper = Paper("Nobody", 2026, "nowhere", "")

    def phases(self, number):
        return Phase(frozenset("B"), 0.75, "B"), Phase(frozenset("A"), 0.25, "A")

    def aggregate(self, layers, uploads, ctx):
        return layers


def warnings_of(method, steps, caplog):
    caplog.clear()
    check_phases(method, 4, np.array(steps))
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("method", [FedDPA(rank=2), FedDPA(rank=2, local_share=0.4), PFedLoRU(rank=2)])
def test_a_personal_pair_that_nobody_would_train_is_refused(method):
    message = (
        r"trains L and U in 0\.\d of a client's local steps, which is none of the 1 that .* set trainer\.local_steps"
    )
    with pytest.raises(ConfigurationError, match=message):
        check_phases(method, 4, np.array([1, 1, 1]))


def test_clients_that_miss_a_phase_are_counted(caplog):
    (line,) = warnings_of(PFedLoRU(rank=2), [1, 2, 1, 7], caplog)
    assert line.startswith("pFedLoRU trains L and U in 0.5 of a client's local steps, which rounds to none for 2 of 4")
    (line,) = warnings_of(InTurns(rank=2), [1, 1], caplog)
    assert line.startswith(
        "InTurns trains A in 0.25 of a client's local steps, which rounds to none for 2 of 2 clients"
    )


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        (FedIT(rank=2), [1, 1]),
        (FedDPA(rank=2), [2, 3, 9]),
        (FedDPA(rank=2, local_share=0.0), [1]),  # as it was asked for
        (FedDPA(rank=2, schedule="sequential", local_from=3), [1, 1]),
        (RoLoRA(rank=2), [1]),
        (SLoRA(rank=2, sparse_rounds=2), [1]),
        (FedLEASE(rank=2), [1]),
        (InTurns(rank=2), [4, 3, 8]),
    ],
)
def test_what_is_trained_as_it_should_be_is_passed_over(method, steps, caplog):
    assert warnings_of(method, steps, caplog) == []


def test_a_run_is_refused_before_it_begins(fit, tmp_path):  # noqa: F811
    with pytest.raises(ConfigurationError, match=r"FedDPA trains L and U in 0\.5"):
        fit(method=FedDPA(rank=2), local_steps=1)
    assert not (tmp_path / "runs").exists()


def test_prepare_refuses_it_too(fedgram, config):
    code, _, err = fedgram("prepare", "--config", config, "--method", "PFedLoRU", "--trainer.local_steps", 1)
    assert code != 0
    assert "pFedLoRU trains L and U in 0.5" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("kind", ["uniform", "samples"])
def test_the_training_loss_is_weighted_as_the_aggregation_is(fit, kind, monkeypatch):  # noqa: F811
    seen, plain = [], federation.mean_over_clients

    def spy(losses, weights):
        seen.append((dict(losses), dict(weights)))
        return plain(losses, weights)

    monkeypatch.setattr(federation, "mean_over_clients", spy)
    _, trainer = fit(method=FedIT(rank=2), rounds=1, participation=3, client_weights=kind)
    ((losses, weights),) = seen
    sizes = {client: len(trainer.federation.shards[client]) for client in losses}
    assert len(set(sizes.values())) > 1
    shares = {c: (n / sum(sizes.values()) if kind == "samples" else 1 / 3) for c, n in sizes.items()}
    assert weights == pytest.approx(shares)
    expected = sum(shares[c] * loss for c, loss in losses.items())
    assert float(rows(trainer.folder.path)[-1]["train_loss"]) == pytest.approx(expected, rel=1e-12)
