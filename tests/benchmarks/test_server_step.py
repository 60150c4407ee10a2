import json

import pytest
import torch

import server_step
from server_step import Case

CASE = Case(k=24, r=3, N=5, layers=2)


@pytest.mark.parametrize("solver", ["polar", "eigh"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_paths_that_are_timed_give_the_same_matrices(solver, dtype, tolerance):
    server, sent = server_step.make_round(CASE, dtype)
    literal = server_step.literal_step(server, sent)
    assert server_step.difference(server_step.step(solver, server, sent), literal) < tolerance
    assert server_step.difference(server, literal) > 0.01
    assert {layer["A"].dtype for layer in literal.values()} == {dtype}


def test_a_difference_is_relative_to_the_largest_entry():
    first = {"q": {"A": torch.tensor([[1.0, 4.0]])}, "v": {"A": torch.zeros(1, 1)}}
    second = {"q": {"A": torch.tensor([[2.0, 4.0]])}, "v": {"A": torch.ones(1, 1)}}
    assert server_step.difference(first, second) == 1.0
    assert server_step.difference({"q": first["q"]}, second) == 0.25


def test_the_slow_paths_are_timed_on_one_layer_and_the_default_on_all(monkeypatch):
    seen = []

    def timed(function, repeats=3):
        seen.append(len(function()))
        return 0.5

    monkeypatch.setattr(server_step, "best_seconds", timed)
    monkeypatch.setattr(server_step, "seconds_of", timed)
    figures = server_step.measure(CASE)
    assert seen == [2, 1, 1]
    assert (figures["polar"], figures["eigh"], figures["literal"]) == (0.5, 1.0, 1.0)


def test_the_quick_mode_writes_its_table(tmp_path, capsys):
    document, target = tmp_path / "page.md", tmp_path / "figures.json"
    document.write_text("<!-- server_step:begin --><!-- server_step:end -->")
    threads = torch.get_num_threads()
    server_step.main(["--quick", "--threads", str(threads), "--write", str(document), "--json", str(target)])
    assert "| 64 | 4 | 5 | 3 |" in document.read_text()
    [figures] = json.loads(target.read_text())["server_step"]
    assert figures["difference_64"] < 1e-10
    assert figures["polar"] > 0
    assert "largest relative difference" in capsys.readouterr().out
