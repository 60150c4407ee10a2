import json
from dataclasses import asdict, replace

import pytest
import torch

import scaling
from fedgram.distributed.uploads import Uploads
from fedgram.methods import FLoRG, RoundContext
from scaling import Link, Parts, Setting
from thread_ranks import on_ranks

FREE = Link(0.0, 0.0)
NONE = Parts(step=0.0, align=0.0, gram=0.0, eigh=0.0, reduce=FREE, gather=FREE)
GPU = Parts(step=1e-3, align=1e-9, gram=1e-10, eigh=1e-10, reduce=Link(1e-5, 1e-10), gather=Link(1e-5, 1e-10))


@pytest.mark.parametrize(
    ("ranks", "cohort", "block", "busiest"),
    [(1, 20, 1, 20), (8, 20, 1, 3), (64, 20, 1, 1), (3, 20, 5, 10), (4, 20, 5, 5), (8, 20, 5, 5), (1, 3, 5, 3)],
)
def test_training_takes_as_long_as_the_rank_with_the_most_clients(ranks, cohort, block, busiest):
    setting = Setting(ranks, cohort, steps=7, block=block)
    assert setting.busiest == busiest
    assert scaling.train_seconds(replace(NONE, step=2.0), setting) == busiest * 7 * 2.0


def test_messages_on_eight_ranks_by_hand():
    link = Link(alpha=1.0, beta=0.25)
    assert scaling.all_reduce_seconds(link, 8, 80) == 2 * 3 * 1.0 + 2 * 70 * 0.25
    assert scaling.all_gather_seconds(link, 8, 80) == 3 * 1.0 + 7 * 80 * 0.25
    assert scaling.all_reduce_bytes(8, 80) == 140
    assert scaling.all_gather_bytes(8, 80) == 560


def test_the_exchange_of_factors_by_hand():
    """Four ranks, ten clients, of which a rank has three at most: 3 · 2 · 10 numbers of 4 bytes and 3 labels of 8."""
    setting = Setting(ranks=4, cohort=10, layers=5, k=10, r=2)
    assert scaling.exchange_bytes(setting, "factors") == 5 * (2 * 0.75 * 8 + 3 * 240 + 3 * 24)
    parts = replace(NONE, reduce=Link(1.0, 0.0), gather=Link(100.0, 0.0))
    assert scaling.exchange_seconds(parts, setting, "factors") == 5 * (4 * 1.0 + 2 * 2 * 100.0)


def test_the_exchange_of_gram_matrices_by_hand():
    setting = Setting(ranks=4, cohort=10, layers=5, k=10, r=2)
    assert scaling.exchange_bytes(setting, "gram") == 5 * (2 * 0.75 * 8 + 2 * 0.75 * 800)
    parts = replace(NONE, reduce=Link(1.0, 0.5), gather=Link(100.0, 1.0))
    assert scaling.exchange_seconds(parts, setting, "gram") == 5 * (2 * 4 * 1.0 + 0.5 * (12 + 1200))


@pytest.mark.parametrize("way", ["factors", "gram"])
def test_one_rank_sends_nothing(way):
    setting = Setting(ranks=1, cohort=20)
    assert scaling.exchange_bytes(setting, way) == 0
    assert scaling.exchange_seconds(GPU, setting, way) == 0
    server = scaling.server_seconds(GPU, setting, way)
    assert scaling.round_seconds(GPU, setting, way) == scaling.train_seconds(GPU, setting) + server


@pytest.mark.parametrize(("solver", "way"), [("polar", "factors"), ("eigh", "gram")])
def test_the_messages_are_those_that_fedgram_sends(solver, way):
    """A rank's own part of a collective; all but whether another rank is in trouble, which a round says anyway."""
    setting = Setting(ranks=2, cohort=5, layers=3, k=6, r=2)
    server = {f"layer{i}": {"A": torch.eye(2, 6) + i} for i in range(3)}
    weights = dict.fromkeys(range(5), 0.2)

    def moved(ranks):
        own = dict.fromkeys(([0, 1, 2], [3, 4])[ranks.rank], server)
        uploads = Uploads(own, weights, ranks)
        before = ranks.moved
        FLoRG(rank=2, solver=solver).aggregate(server, uploads, RoundContext(1, 0, dict.fromkeys(range(5), 0)))
        return ranks.moved - before

    reduced, gathered = scaling.messages(setting, way)
    assert on_ranks(2, moved) == [setting.layers * (sum(reduced) + sum(gathered))] * 2


def test_gram_matrices_win_from_the_cohort_on_where_they_are_less_to_send():
    """Bytes alone, many ranks: N r k numbers of 4 against 2 · 8 k², from N = 4 k / r = 800; the next power of two."""
    parts = replace(NONE, reduce=Link(0.0, 1e-9), gather=Link(0.0, 1e-9))
    assert scaling.crossover(parts, Setting(ranks=64, cohort=1, k=1000, r=5)) == 1024
    slow_eigenvectors = replace(parts, eigh=1e-3)
    assert scaling.crossover(slow_eigenvectors, Setting(ranks=64, cohort=1, k=1000, r=5), most=2**20) is None
    assert scaling.crossover(replace(NONE, align=1.0), Setting(ranks=64, cohort=1)) == 64


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (replace(NONE, eigh=1.0), "faster with any cohort"),
        (replace(NONE, align=1.0), "`eigh` are faster with 64 clients a round already"),
        # Aligning costs N · 4 · 1024 · 1e-3 and eigenvectors 1024³ · 2e-5: equal at 5,243 clients.
        (replace(NONE, align=1e-3, eigh=2e-5), "`polar` are faster up to about 4,096 clients"),
    ],
)
def test_the_winner_is_said_in_words(parts, said):
    assert said in scaling.winner(parts, Setting(ranks=64, cohort=1, k=1024, r=4))


def test_a_round_is_longer_on_a_rank_of_its_own_than_on_many():
    seconds = [scaling.round_seconds(GPU, Setting(ranks, 1024), "factors") for ranks in (1, 8, 64)]
    assert seconds == sorted(seconds, reverse=True)


def test_parts_are_read_bare_and_from_figures(tmp_path):
    path = tmp_path / "parts.json"
    path.write_text(json.dumps(asdict(GPU)))
    assert scaling.read_parts(path) == GPU
    path.write_text(json.dumps({"hardware": "some", "scaling": {"parts": asdict(GPU)}}))
    assert scaling.read_parts(path) == GPU
    path.write_text(json.dumps({"step": 1.0}))
    with pytest.raises(SystemExit, match="expected step, align, gram, eigh, and alpha and beta"):
        scaling.read_parts(path)


def test_the_extrapolation_from_given_parts_is_written(tmp_path, capsys):
    path, document = tmp_path / "parts.json", tmp_path / "page.md"
    path.write_text(json.dumps(asdict(GPU)))
    document.write_text("<!-- scaling:begin -->\n<!-- scaling:end -->\n")
    scaling.main(["--parts", str(path), "--ranks", "8", "--cohorts", "20", "--write", str(document)])
    setting = Setting(8, 20)
    seconds = scaling.aggregation_seconds(GPU, setting, "factors")
    assert f"| 8 | 20 | 0.03 | {seconds:.3g} | " in document.read_text()
    assert "8 devices: the factors" in capsys.readouterr().out


def test_what_is_measured_is_told(monkeypatch, tmp_path, capsys):
    speeds = {1: {"local": 2.0, "whole": 3.0}, 2: {"local": 2.5, "whole": 4.0}}
    times = {"all_reduce": {8: 1e-3, 1008: 2e-3}, "all_gather": {8: 2e-3, 1008: 4e-3}}
    monkeypatch.setattr(scaling, "train", lambda arguments, ranks: speeds[ranks])
    monkeypatch.setattr(scaling, "measured_messages", lambda: times)
    monkeypatch.setattr(scaling, "measured_server", lambda setting: {"align": 1e-9, "gram": 1e-9, "eigh": 1e-9})
    target = tmp_path / "figures.json"
    scaling.main(["--passes", "2", "--json", str(target)])
    shown = capsys.readouterr().out
    assert "| 2 ranks of 1 | 4.00 | 75 % |" in shown
    assert "| 1,008 | 2.00 | 4.00 |" in shown
    parts = scaling.read_parts(target)
    assert parts.step == 2.0 / (20 * 2)  # the quickstart has 20 clients of 2 local steps
    assert parts.reduce == Link(0.5e-3, pytest.approx(1e-6))
    assert parts.gather == Link(2e-3, pytest.approx(2e-6))


def test_a_round_is_training_and_aggregation_without_the_first(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("round,seconds_local,seconds_server\n1,90,9\n2,1,0.5\n3,3,0.5\n4,2,0.5\n")
    assert scaling.training_figures(path) == {"local": 2.0, "whole": 2.5}


def test_the_parts_of_the_server_step_are_measured():
    figures = scaling.measured_server(Setting(ranks=1, cohort=3, layers=2, k=16, r=2))
    assert figures.keys() == {"align", "gram", "eigh"}
    assert all(value > 0 for value in figures.values())
