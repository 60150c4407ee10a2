"""The figures of docs/communication.md are those of the code."""

import doctest
from pathlib import Path

import pytest

import communication
from communication import METHODS, SAME_PAYLOAD, Rounds, compute_lines, implied_rows, payload_rows
from fedgram.comparison.paper import load

pytestmark = pytest.mark.slow  # the whole of `make communication` but for what it writes

DOCUMENT = (Path(__file__).parents[2] / "docs" / "communication.md").read_text()


@pytest.fixture(scope="module")
def found():
    return communication.ask("OPT-125M", {name: METHODS[name] for name in METHODS if name not in SAME_PAYLOAD})


@pytest.fixture(scope="module")
def opt(found):
    return {cost.method: cost for cost in found.costs}


def line(cells):
    return f"| {' | '.join(cells)} |"


def test_the_table_of_payloads_is_up_to_date(opt):
    rows = payload_rows("OPT-125M", list(opt.values()))
    assert len(rows) == 7
    for row in rows:
        assert line(row) in DOCUMENT


def test_the_rounds_beside_table_2_are_up_to_date(opt):
    told = [one for one in load("table2").rows if one.backbone == "OPT-125M"]
    rows = [row for one in told for row in implied_rows(one, opt)]
    assert len(rows) == 2 * 7
    for row in rows:
        assert line(row) in DOCUMENT


@pytest.mark.flops
def test_the_operations_beside_table_8_are_up_to_date():
    methods = {name: METHODS[name] for name in ("FLoRG", "FedEx-LoRA")}
    lines = compute_lines(communication.ask("RoBERTa-large", methods))
    assert len(lines) == 4
    for row in lines:
        assert row in DOCUMENT


def test_a_total_comes_to_rounds_of_which_the_first_may_be_less(opt):
    rounds = Rounds.of(opt["FedEx-LoRA"], head=False, clients=2)
    adapters, residual = 24 * 4 * 2 * 768, 24 * 768**2
    assert rounds == Rounds(2 * adapters, 2 * (2 * adapters + residual))  # in round 1 nothing goes down
    assert rounds.until(rounds.first) == 1
    assert rounds.until(rounds.first + 3 * rounds.later) == 4
    assert rounds.until(rounds.first / 4) == 0.25
    with_head = Rounds.of(opt["FLoRG"], head=True, clients=1)
    assert 2 * with_head.first == with_head.later == 2 * (24 * 4 * 768 + 2 * 768)


def test_every_method_of_the_paper_has_a_row():
    names = {name for table in ("table2", "table8") for name in load(table).methods}
    assert names <= METHODS.keys()
    assert all(method.head == "averaged" and method.rank == 4 for method in METHODS.values())


def test_the_script_writes_all_tables(tmp_path, capsys, monkeypatch, found):
    document, names = tmp_path / "page.md", ("payloads", "table2", "table8")
    document.write_text("".join(f"<!-- {name}:begin --><!-- {name}:end -->" for name in names))
    monkeypatch.setattr(communication, "ask", lambda model, methods: found)
    communication.main(["--write", str(document)])
    text, shown = document.read_text(), capsys.readouterr().out
    assert [text.count(f"| {name} |") for name in ("FLoRG", "FedEx-LoRA, factored")] == [2 + 4 + 1] * 2
    assert all(line in shown for line in text.splitlines() if line.startswith("|"))


def test_examples_in_the_docstrings():
    assert doctest.testmod(communication).failed == 0
