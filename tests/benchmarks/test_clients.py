import io
import json
import re
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import clients

SCRIPT = Path(clients.__file__)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What a quick run prints, the figures that it saves, and the document that it writes into."""
    folder = tmp_path_factory.mktemp("clients")
    document = Path(shutil.copy(SCRIPT.parents[1] / "docs" / "performance.md", folder / "document.md"))
    words = ["--quick", "--threads", "1", "--json", folder / "figures.json", "--write", document]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
        clients.main()
    return printed.getvalue(), json.loads((folder / "figures.json").read_text())["clients"], document.read_text()


@pytest.mark.slow
def test_the_table_comes_last_with_a_row_for_each_kind_of_run(quick):
    *_, head, rule, few, many = quick[0].splitlines()
    assert head.startswith("| partition | clients | start-up, s | s a round | peak MB |")
    assert set(rule) == {"|", "-"}
    form = r"\| Dirichlet \| (\d+) \| \d+\.\d \| \d+\.\d{3} \| \d+ \| (\d+\.\d\d, \d+\.\d\d, \d+\.\d\d) \|"
    assert re.fullmatch(form, few).groups() == ("10", "1.00, 1.00, 1.00")
    assert re.fullmatch(form, many)[1] == "100"


@pytest.mark.slow
def test_the_document_has_the_table_between_its_markers(quick):
    table = quick[0].splitlines()[-4:]
    between = quick[2].split("<!-- clients:begin -->")[1].split("<!-- clients:end -->")[0]
    assert between.strip().splitlines()[-4:] == table


@pytest.mark.slow
def test_the_figures_are_of_whole_runs_in_turn(quick):
    settings, rows, runs = (quick[1][key] for key in ("settings", "rows", "runs"))
    assert settings["samples"] == 100
    assert [(run["partition"], run["clients"]) for run in runs] == [(row["partition"], row["clients"]) for row in rows]
    for run in runs:
        assert len(run["rounds"]) == settings["rounds"] - 1
        assert min(run["rounds"]) > 0
        assert run["startup_seconds"] > 0
        assert run["peak_megabytes"] > 50
        assert {"metrics.csv", "partition.csv", "summary.json"} <= set(run["files"])
    assert len({run["checkpoint_bytes"] // 100 for run in runs}) == 1


def run_of(clients, repeat, startup, rounds, peak):
    figures = {"startup_seconds": startup, "rounds": rounds, "peak_megabytes": peak}
    return {"partition": "IID", "clients": clients, "repeat": repeat, **figures}


def test_ratios_are_taken_pass_by_pass_and_to_the_fewest_clients():
    runs = [
        run_of(900, 0, 6.0, [1.0, 3.0, 2.0], 110),
        run_of(10, 0, 3.0, [1.0, 1.0, 1.0], 100),
        run_of(900, 1, 20.0, [8.0, 8.0, 80.0], 110),
        run_of(10, 1, 10.0, [4.0, 4.0, 4.0], 100),
    ]
    many, few = clients.summarise(runs)
    assert few["ratios"] == {"startup_seconds": 1, "round_seconds": 1, "peak_megabytes": 1}
    assert many["ratios"] == {"startup_seconds": 2, "round_seconds": 2, "peak_megabytes": pytest.approx(1.1)}
    assert (many["startup_seconds"], many["round_seconds"], many["peak_megabytes"]) == (13, 5, 110)


def test_there_are_samples_for_all_clients_unless_told_otherwise():
    assert clients.parse(["--clients", "30", "20"]).samples == 30
    assert clients.parse(["--clients", "30", "20", "--samples", "40"]).samples == 40
