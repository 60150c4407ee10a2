import json
from pathlib import Path

import pytest

from fedgram.compare import draw, find_runs, main
from fedgram.errors import DataError


@pytest.fixture
def runs(tmp_path) -> Path:
    for number, method in enumerate(("FLoRG", "FedIT", "FLoRG")):
        folder = tmp_path / "runs" / f"task-{method}" / f"version_{number}"
        folder.mkdir(parents=True)
        summary = {
            "task": "task",
            "rounds": 2,
            "method": method,
            "initial": {"accuracy": 0.5},
            "final": {"loss": 0.1, "accuracy": 0.7 + number / 100},
            "parameters_up": 1234567,
            "parameters_down": 89,
            "bytes_up": 4938268,
            "bytes_down": 356,
            "seconds": 12.34,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "metrics.csv").write_text(
            "round,accuracy,megabytes_up,megabytes_down\n0,0.5,0,0\n1,,1,2\n" + f"2,{0.7 + number / 100},2,4\n"
        )
    return tmp_path / "runs"


def test_the_table_has_a_row_per_run(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    main([str(runs)])
    out = capsys.readouterr().out
    assert "task, 2 rounds" in out
    assert out.count("FLoRG") == 2
    (row,) = [line for line in out.splitlines() if "FedIT" in line]
    for cell in ("0.5000", "0.7100", "1,234,567", "89", "4.94", "0.00", "12.3"):
        assert cell in row.split()


def test_the_picture_has_a_line_per_run_and_a_colour_per_method(runs, tmp_path):
    figure = draw(find_runs([runs]))
    by_round, by_megabytes = figure.axes
    lines = by_round.get_lines()
    assert len(lines) == len(by_megabytes.get_lines()) == 3
    assert len({line.get_color() for line in lines}) == 2
    assert [list(line.get_xdata()) for line in by_megabytes.get_lines()] == [[0, 6]] * 3
    assert sorted(line.get_ydata()[-1] for line in lines) == pytest.approx([0.7, 0.71, 0.72])
    assert [text.get_text() for text in by_round.get_legend().get_texts()] == ["FLoRG", "FedIT"]


def test_the_picture_is_written(runs, tmp_path):
    main([str(runs), "--plot", str(tmp_path / "new" / "plot.png")])
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_no_runs_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no finished run below"):
        find_runs([tmp_path])


def test_a_damaged_summary_and_an_unknown_picture_are_errors(runs, tmp_path):
    with pytest.raises(DataError, match=r"must end in one of .png, .svg, .pdf"):
        main([str(runs), "--plot", "plot.xyz"])
    next(runs.rglob("summary.json")).write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        find_runs([runs])


def test_models_of_clients_are_marked(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    path = runs / "task-FedIT" / "version_1" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"personal_evaluation": "own"}))
    main([str(runs)])
    out = capsys.readouterr().out
    assert out.count("FedIT*") == 1
    assert "FLoRG*" not in out
    assert "* models of clients, each on its own share of the split" in out
