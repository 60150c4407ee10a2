import csv
import json
import subprocess
import sys

import pytest

from fedgram.cli.compare import main
from fedgram.errors import ConfigurationError, DataError, FedgramError, OutputError
from made_runs import write_run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two methods with three seeds each; the working directory is above them."""
    for seed in range(3):
        write_run(tmp_path / "runs", "FLoRG", seed, [0.5, 0.6, 0.7 + seed / 100], seconds=12.34)
        write_run(tmp_path / "runs", "FedIT", seed, [0.5, 0.6, 0.65 + seed / 200])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "runs"


@pytest.fixture
def compared(capsys):
    """What a call prints."""

    def call(*arguments):
        main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return call


def row_of(out, name):
    (row,) = [line for line in out.splitlines() if line.startswith(name)]
    return row.split()


def test_without_arguments_the_runs_below_runs_are_compared_over_seeds(runs, compared):
    out = compared()
    assert row_of(out, "FLoRG")[:8] == ["FLoRG", "3", "71.00", "±", "2.48", "+5.50", "0.003", "0.01"]
    assert row_of(out, "FedIT")[:8] == ["FedIT", "3", "65.50", "±", "1.24", "-5.50", "0.003", "0.01"]
    assert "12.3" in row_of(out, "FLoRG")
    assert "warning" not in out
    assert out.splitlines()[-1] == "curves: tensorboard --logdir runs"


def test_each_run_has_a_row_on_request_whatever_it_is_of(runs, compared):
    write_run(runs, task="other")
    out = compared("--each")
    assert row_of(out, "task-FLoRG/version_2")[1:4] == ["2", "50.00", "72.00"]
    assert row_of(out, "other-FLoRG/version_0")[1:4] == ["0", "50.00", "70.00"]
    assert sum("/version_" in line for line in out.splitlines()) == 7


def test_a_narrow_terminal_is_told_what_there_is_no_room_for(runs, compared, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = compared()
    assert max(map(len, out.splitlines())) <= 80
    assert "No room for seconds (in all, training/round), FLOPs (client, server), peak MB" in " ".join(out.split())


def test_into_a_file_all_columns_are_printed(runs, compared, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    out = compared()
    assert "No room" not in out
    assert "512.0" in row_of(out, "FLoRG")


def test_a_target_a_metric_and_a_setting_can_be_asked_for(runs, compared):
    out = compared("--target", "0.3", "--metric", "loss", "--by", "rank")
    assert "task, 2 rounds, rank 4" in out
    assert row_of(out, "FLoRG")[2:8] == ["0.2900", "±", "0.0248", "-0.0550", "0.003", "2"]
    assert row_of(out, "FedIT")[6:9] == ["0.003", "-", "(0/3)"]
    assert "to 0.3" in out


def test_the_bootstrap_is_the_same_in_every_call(runs, compared):
    out = compared("--interval", "bootstrap")
    assert "71.00 [70.00, 72.00]" in out
    assert "percentile bootstrap" in out
    assert compared("--interval", "bootstrap") == out


def test_warnings_stand_below_the_tables(runs, compared):
    write_run(runs, "FFALoRA", evaluated_samples=71)
    lines = compared().splitlines()
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert warnings[0] == "warning: fewer than 3 seeds (1: FFALoRA): chance may decide who is ahead"
    assert any("one of the 71 evaluated samples is 1.41 points" in line for line in warnings)
    assert lines.index(warnings[0]) > max(i for i, line in enumerate(lines) if line.startswith("FedIT"))


def test_runs_that_cannot_be_compared_are_refused_unless_forced(runs, compared):
    write_run(runs, task="other", settings={"data.partition.rho": 0.1})
    with pytest.raises(
        DataError, match=r"can't be compared: task is .*; give folders of like runs, --by KEY .*--force"
    ):
        main([str(runs)])
    out = compared("--force")
    assert "warning: " in out
    assert "can't be compared: task is 'other' in the one and 'task' in the other" in " ".join(out.split())
    assert row_of(out, "FLoRG (rho 0.1, task other)")
    assert "can't" not in compared("--by", "task")


def test_tables_are_written_as_csv_markdown_and_latex(runs, compared, tmp_path):
    files = {kind: tmp_path / "new" / f"table.{kind}" for kind in ("csv", "markdown", "latex")}
    out = compared(*(argument for kind, path in files.items() for argument in (f"--{kind}", path)))
    for path in files.values():
        assert f"written: {path}" in out
    with files["csv"].open() as lines:
        rows = {row["method"]: row for row in csv.DictReader(lines)}
    assert float(rows["FLoRG"]["mean"]) == pytest.approx(0.71, abs=1e-15)
    assert rows["FedIT"]["difference_to"] == "FLoRG"
    assert "| FLoRG | 3 | **71.00 ± 2.48** | +5.50 |" in files["markdown"].read_text()
    assert r"FLoRG & 3 & \textbf{71.00 $\pm$ 2.48} & +5.50 &" in files["latex"].read_text()


def test_pictures_and_a_report_are_written(runs, compared, tmp_path):
    plot, pictures, report = tmp_path / "new" / "plot.png", tmp_path / "pictures", tmp_path / "a" / "report.html"
    out = compared("--plot", plot, "--pictures", pictures, "--report", report)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert list(pictures.glob("*.svg"))
    assert "71.00" in report.read_text()
    for path in (plot, report, *pictures.iterdir()):
        assert f"written: {path}" in out


def test_the_papers_numbers_stand_beside_those_of_runs(tmp_path, compared, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    for method, accuracy in (("FLoRG", 0.70), ("FedIT", 0.65)):
        write_run(tmp_path / "runs", method, 0, [0.5, accuracy], task="rte", backbone="roberta-large")
    write_run(tmp_path / "runs", "FLoRG", 0, [0.5, 0.9], task="sst2", settings={"data.fingerprint": "other"})
    out = compared(tmp_path / "runs", "--paper", "table1", "--csv", tmp_path / "paper.csv")
    assert "Table 1 of the paper" in out
    assert row_of(out, "RoBERTa-large  rte   FLoRG ")[2:] == ["FLoRG", "1", "70.00", "71.26", "-1.26"]
    assert "FLoRG is ahead in 1 of 1 rows in the paper, and in 1 here" in out
    assert "warning: fewer than 3 seeds (every method)" in out
    assert "sst2" not in out
    assert (tmp_path / "paper.csv").read_text().count("71.26") == 1


def test_runs_of_one_cell_of_the_paper_must_be_comparable(tmp_path, compared):
    write_run(tmp_path, "FLoRG", task="rte")
    write_run(tmp_path, "FedIT", task="rte", settings={"data.fingerprint": "other"})
    with pytest.raises(DataError, match=r"can't be compared: data.fingerprint"):
        main([str(tmp_path), "--paper", "table1"])
    assert "warning: " in compared(tmp_path, "--paper", "table1", "--force")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--by", "rnk"], DataError, "--by rnk: no run has such a setting"),
        (["--metric", "f2"], DataError, r"--metric f2: no run was evaluated so; there are loss, accuracy"),
        (["--target", "80"], ConfigurationError, r"--target 80: accuracy is a share, so give it between 0 and 1"),
        (["--plot", "plot.xyz"], ConfigurationError, r"must end in one of .png, .svg, .pdf"),
        (["--each", "--target", "0.5"], ConfigurationError, "--target can't be given with --each"),
        (["--paper", "table1", "--by", "rho"], ConfigurationError, "--by can't be given with --paper"),
        (["--paper", "table1", "--target", "0"], ConfigurationError, "--target can't be given with --paper"),
        (["--paper", "table0"], ConfigurationError, "--paper table0: there is no such table; there are table1, "),
        (["--paper", "table1"], DataError, "--paper table1: no run fits: it is of task mnli"),
        (["--csv", "runs"], OutputError, r"--csv: can.t write runs: it is a folder; give the name of a file"),
        (["nowhere"], DataError, "no finished run below nowhere"),
        (["--interval", "z"], FedgramError, "invalid choice: 'z'"),
        (["--metrik", "f1"], FedgramError, "there is no option 'metrik'; did you mean metric"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_remedy(runs, arguments, error, message):
    with pytest.raises(error, match=message):
        main(arguments)


def test_a_loss_is_no_share_and_may_have_a_target_above_one(runs, compared):
    assert "to 1.5" in compared("--metric", "loss", "--target", "1.5")


def test_several_folders_have_the_curves_of_what_is_above_them(runs, compared, tmp_path):
    out = compared(runs / "task-FLoRG", runs / "task-FedIT")
    assert out.splitlines()[-1] == f"curves: tensorboard --logdir {runs}"


def test_a_damaged_run_is_refused_with_its_folder(runs):
    own = write_run(runs, "FFALoRA")
    (own / "summary.json").write_text(json.dumps({"method": "FFALoRA"}))
    with pytest.raises(DataError, match=r"task-FFALoRA/version_0 is damaged \(summary.json does not say task"):
        main([str(runs)])


def test_help_teaches_with_examples(compared, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("fedgram compare runs/quickstart --target 0.75", "--by KEY", "the bootstrap of three is too narrow"):
        assert words in text


def test_a_comparison_needs_no_torch(runs):
    code = "import sys; from fedgram.cli.compare import main; main(['runs']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_columns_and_their_order_are_chosen_in_every_form_of_the_table(runs, compared, tmp_path):
    files = [f"--{kind}={tmp_path / kind}" for kind in ("csv", "markdown", "latex")]
    out = compared("--columns", "method,seconds,metric", "--sort", "-seconds", *files)
    assert [line.split()[0] for line in out.splitlines() if line.startswith("F")] == ["FLoRG", "FedIT"]
    assert row_of(out, "FLoRG") == ["FLoRG", "12.3", "71.00", "±", "2.48"]
    assert "| method | seconds in all | accuracy % ± 95 % |" in (tmp_path / "markdown").read_text()
    assert "method & in all & " in (tmp_path / "latex").read_text()
    assert "megabytes_up" not in (tmp_path / "csv").read_text().splitlines()[0]
    assert row_of(compared("--sort", "seconds"), "FedIT") == row_of(out := compared("--sort=accuracy"), "FedIT")
    assert out.index("FedIT") < out.index("FLoRG")


def test_a_row_for_each_run_is_sorted_and_cut_likewise(runs, compared):
    out = compared("--each", "--columns", "run,after", "--sort", "-after")
    assert [line.split()[-1] for line in out.splitlines() if "/version_" in line] == sorted(
        ("70.00", "71.00", "72.00", "65.00", "65.50", "66.00"), reverse=True
    )


def test_a_page_of_latex_has_few_columns_and_every_table_a_label_of_its_own(runs, compared, tmp_path):
    for task in ("a b", "a_b"):
        write_run(tmp_path / "other", task=task)
    compared(tmp_path / "other", "--by", "task", "--latex", tmp_path / "t.tex", "--target", "0.6")
    text = (tmp_path / "t.tex").read_text()
    assert [line.strip() for line in text.splitlines() if "label" in line] == [
        r"\label{tab:a-b-2-rounds}",
        r"\label{tab:a-b-2-rounds-2}",
    ]
    assert "% no room for MB to 60 % (up, down), " in text
    (header, _) = [line for line in text.splitlines() if line.strip().startswith("method &")]
    assert header.count("&") <= 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--columns", "method,secnods"], "--columns 'secnods': there is no such column; did you mean seconds"),
        (["--sort", "-acuracy"], "--sort 'acuracy': there is no such column; did you mean accuracy"),
        (["--sort", "round_to_target"], "--sort 'round_to_target': there is no such column"),
        (["--paper", "table1", "--sort", "p"], "--sort can't be given with --paper"),
        (["--paper", "table1", "--columns", "p"], "--columns can't be given with --paper"),
    ],
)
def test_a_column_that_is_not_there_is_refused(runs, arguments, message):
    with pytest.raises((DataError, ConfigurationError), match=message):
        main(arguments)
