"""What a run shows of its progress in terminals, notebooks and pipes, and its estimate of the time left."""

import doctest
import re
import sys
from types import SimpleNamespace

import pytest

from fedgram import progress_bar
from fedgram.progress_bar import RemainingTime
from test_trainer import fit  # noqa: F401


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def row(local=0.0, server=0.0, evaluation=0.0):
    return {"seconds_local": local, "seconds_server": server, "seconds": local + server + evaluation}


def test_nothing_is_known_before_the_first_client_is_done(clock):
    left = RemainingTime(10, lambda _: False, clock)
    left.start_round(1, clients=20)
    clock.now += 5
    assert left.seconds() is None


def test_the_first_round_is_estimated_by_its_clients(clock):
    left = RemainingTime(10, lambda _: False, clock)
    left.start_round(1, clients=20)
    clock.now += 30
    left.finish_clients(5)  # so the round takes 120 seconds, of which 90 are left
    assert left.seconds() == 90 + 9 * 120
    clock.now += 40
    assert left.seconds() == 50 + 9 * 120
    clock.now += 1000  # this client takes longer than expected: the rounds after it are still to come
    assert left.seconds() == 9 * 120


def test_evaluations_are_counted_apart(clock):
    left = RemainingTime(6, lambda number: number % 3 == 0, clock)
    left.start_round(0, clients=0)
    left.finish_round(row(evaluation=50))
    left.start_round(1, clients=4)
    clock.now += 8
    left.finish_clients(4)
    assert left.seconds() == 5 * 8 + 2 * 50
    left.finish_round(row(local=8, server=2))
    assert left.seconds() == 5 * 10 + 2 * 50
    for number in (2, 3):
        left.start_round(number, clients=4)
        left.finish_round(row(local=8, server=2, evaluation=50 * (number == 3)))
    assert left.seconds() == 3 * 10 + 50
    left.start_round(4, clients=4)
    left.finish_clients(2)
    assert left.seconds() == 2.5 * 10 + 50


def test_the_recent_rounds_count(clock):
    left = RemainingTime(100, lambda _: False, clock)
    for number in range(1, 51):
        left.start_round(number, clients=1)
        left.finish_round(row(local=1 if number <= 40 else 3))
    assert left.seconds() == 50 * 3


def test_at_the_end_nothing_is_left(clock):
    left = RemainingTime(1, lambda _: True, clock)
    left.start_round(1, clients=1)
    left.finish_round(row(local=1, evaluation=2))
    assert left.seconds() == 0


@pytest.fixture
def shown(fit, monkeypatch, capsys):  # noqa: F811
    """Returns what a run shows in a terminal of some columns, without its colours."""

    def run(columns, **settings):
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("COLUMNS", str(columns))
        fit(rounds=2, progress_bar=True, **settings)
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)

    return run


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_bar_round_and_time_left_are_seen_in_terminals_of_any_width(shown, columns):
    text = shown(columns, name="a-name-that-is-far-too-long-for-a-line-of-eighty-columns-with-a-bar", evaluate_every=2)
    assert re.search(r"a-name-that.*(…|bar) +━+ round 2/2 +0:00 left", text)
    assert re.search(r"  this round +━+ client 5/5", text)
    assert re.search(r"  loss 0\.\d+  accuracy 0\.\d+ .*s/round\s+\+\s+\d+\.\d+\s+s\s+evaluation", text, re.DOTALL)
    assert max(map(len, text.replace("\r", "\n").split("\n"))) <= columns


def test_a_pipe_gets_a_line_a_round_with_the_time_of_day_and_the_time_left(fit, caplog):  # noqa: F811
    caplog.set_level("INFO")
    fit(rounds=2, evaluate_every=2, progress_bar=True)
    lines = [record.getMessage() for record in caplog.records if record.name == "fedgram.progress_bar"]
    assert len(lines) == 3
    assert re.fullmatch(r"\d\d:\d\d:\d\d data-FLoRG round 1/2  loss 0\.\d+  \d\.\d\d s/round  0:0\d left", lines[1])
    assert "accuracy" in lines[2]
    assert lines[2].endswith("s evaluation  0:00 left")


def test_a_notebook_gets_one_output_that_is_replaced(fit, monkeypatch):  # noqa: F811
    texts = []

    class Output:
        def update(self, bundle, raw):
            assert raw
            texts.append(bundle["text/plain"])

    def display(bundle, raw, display_id):
        assert raw
        assert display_id
        return Output()

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    fit(rounds=2, progress_bar=True, clients_per_block=2)
    assert re.search(r"data-FLoRG +━+ round 2/2 +0:00 left", texts[-1])
    assert "accuracy 0." in texts[-1]
    assert any(re.search(r"  evaluating +━+ client 5/5", text) for text in texts)
    assert any("client 3/5" in text or "client 2/5" in text or "client 1/5" in text for text in texts)


def test_examples_in_the_docstrings():
    assert doctest.testmod(progress_bar).failed == 0
