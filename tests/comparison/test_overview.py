import csv
import io
import statistics

import pytest
from rich.console import Console
from scipy import stats

from fedgram.comparison import group_runs, read_runs
from fedgram.comparison.overview import View, group_tables, run_table
from fedgram.comparison.tables import csv_text
from made_runs import CLIENT_FLOPS, SERVER_FLOPS, write_run


def tables_of(folder, view=None):
    view = view or View()
    return group_tables(group_runs(read_runs([folder]), view.by), view)


def by_row(table):
    names = [column.name for column in table.columns]
    return {row[0].text: dict(zip(names, row, strict=True)) for row in table.rows}


def texts(table):
    return {row: {name: cell.text for name, cell in cells.items()} for row, cells in by_row(table).items()}


def bold(table):
    return {(row, name) for row, cells in by_row(table).items() for name, cell in cells.items() if cell.bold}


def write_runs(folder, finals, **more):
    for method, values in finals.items():
        for seed, value in enumerate(values):
            write_run(folder, method, seed, [0.5, 0.6, value], **more)


def test_a_method_is_told_by_its_mean_and_interval_over_seeds_in_per_cent(tmp_path):
    write_runs(tmp_path, {"FLoRG": [0.71, 0.74, 0.73]})
    (table,) = tables_of(tmp_path)
    half = stats.t.ppf(0.975, 2) * statistics.stdev([71, 74, 73]) / 3**0.5
    row = texts(table)["FLoRG"]
    assert table.title == "task, 2 rounds"
    assert row["accuracy % ± 95 %"] == f"72.67 ± {half:.2f}"
    assert row["seeds"] == "3"
    assert row["accuracy % before"] == "50.00"
    assert "± 95 % t interval" in table.notes[0]


def test_a_method_stands_against_the_best_other_one_over_shared_seeds(tmp_path):
    write_runs(tmp_path, {"FLoRG": [0.71, 0.74, 0.73], "FedIT": [0.70, 0.72, 0.72, 0.1], "FFALoRA": [0.6, 0.6, 0.7]})
    write_run(tmp_path, "FedIT", 3, [0.5, 0.6, 0.9])  # in place of 0.1
    (table,) = tables_of(tmp_path)
    found = texts(table)
    p = stats.ttest_rel([0.71, 0.74, 0.73], [0.70, 0.72, 0.72]).pvalue
    # FedIT's mean is the highest with the seed that FLoRG does not have.
    assert found["FLoRG"]["difference to best"] == "+1.33"
    assert found["FedIT"]["difference to best"] == "-1.33"
    assert found["FLoRG"]["p"] == found["FedIT"]["p"] == f"{p:.3f}"
    assert found["FFALoRA"]["difference to best"] == f"{100 * (1.9 - 2.14) / 3:.2f}"
    rows = {record["method"]: record for record in table.records()}
    assert {method: row["difference_to"] for method, row in rows.items()} == {
        "FLoRG": "FedIT",
        "FedIT": "FLoRG",
        "FFALoRA": "FedIT",
    }
    assert rows["FedIT"]["shared_seeds"] == 3


def test_the_highest_mean_is_bold_and_of_losses_the_lowest(tmp_path):
    write_runs(tmp_path, {"FLoRG": [0.75], "FedIT": [0.70]})
    assert bold(tables_of(tmp_path)[0]) == {("FLoRG", "accuracy % ± 95 %")}
    (table,) = tables_of(tmp_path, View(metric="loss"))
    assert bold(table) == {("FLoRG", "loss ± 95 %")}
    assert texts(table)["FLoRG"]["loss ± 95 %"] == "0.2500"
    assert texts(table)["FLoRG"]["difference to best"] == "-0.0500"


def test_equal_ones_are_the_best_if_another_is_worse_and_one_alone_is_not(tmp_path):
    write_runs(tmp_path / "one", {"FLoRG": [0.75]})
    write_runs(tmp_path / "two", {"FLoRG": [0.75], "FedIT": [0.75]})
    write_runs(tmp_path / "three", {"FLoRG": [0.75], "FedIT": [0.75], "FFALoRA": [0.5]})
    best = {name: {row for row, _ in bold(tables_of(tmp_path / name)[0])} for name in ("one", "two", "three")}
    assert best == {"one": set(), "two": set(), "three": {"FLoRG", "FedIT"}}


def test_models_of_clients_are_marked_and_race_among_themselves(tmp_path):
    write_runs(tmp_path, {"FLoRG": [0.7], "FedIT": [0.6]})
    write_runs(tmp_path, {"FedSALoRA": [0.9], "Own": [0.95]}, personal_evaluation="own")
    (table,) = tables_of(tmp_path)
    found = texts(table)
    assert set(found) == {"FLoRG", "FedIT", "FedSALoRA*", "Own*"}
    assert {row for row, _ in bold(table)} == {"FLoRG"}
    assert found["FLoRG"]["difference to best"] == "+10.00"
    assert found["FedSALoRA*"]["difference to best"] == "-5.00"
    assert any(note.startswith("* models of clients") for note in table.notes)


def test_costs_are_means_over_seeds(tmp_path):
    write_run(tmp_path, seed=0, seconds=10.0)
    write_run(tmp_path, seed=1, seconds=21.0)
    row = texts(tables_of(tmp_path)[0])["FLoRG"]
    assert (row["parameters up"], row["parameters down"]) == ("2,000", "4,000")
    assert (row["MB up"], row["MB down"]) == ("0.01", "0.02")
    assert row["seconds in all"] == "15.5"
    assert row["seconds training/round"] == "-"
    assert row["peak MB"] == "512.0"
    assert row["FLOPs client"] == f"{2 * CLIENT_FLOPS:.2e}".replace("e+0", "e")
    assert row["FLOPs server"] == f"{2 * SERVER_FLOPS:.2e}".replace("e+0", "e")


def test_what_older_runs_do_not_tell_is_a_dash(tmp_path):
    write_run(tmp_path, flops=False, peak_megabytes=None, initial={})
    row = texts(tables_of(tmp_path)[0])["FLoRG"]
    assert [row[name] for name in ("FLOPs client", "FLOPs server", "peak MB", "accuracy % before")] == ["-"] * 4


def test_what_a_target_took_is_told_where_all_seeds_reached_it(tmp_path):
    write_run(tmp_path, "FLoRG", 0, [0.5, 0.8, 0.9])
    write_run(tmp_path, "FLoRG", 1, [0.5, 0.6, 0.8])
    write_run(tmp_path, "FedIT", 0, [0.5, 0.6, 0.8])
    write_run(tmp_path, "FedIT", 1, [0.5, 0.6, 0.7])
    (table,) = tables_of(tmp_path, View(target=0.8))
    reached, missed = (texts(table)[method] for method in ("FLoRG", "FedIT"))
    assert reached["to 80 % rounds"] == "1.5"
    assert reached["to 80 % parameters"] == "4,500"
    assert (reached["parameters to 80 % up"], reached["parameters to 80 % down"]) == ("1,500", "3,000")
    assert reached["to 80 % MB"] == "0.02"
    assert reached["to 80 % client FLOPs"] == "4.50e9"
    assert missed["to 80 % rounds"] == "- (1/2)"
    assert missed["to 80 % parameters"] == missed["to 80 % MB"] == missed["to 80 % client FLOPs"] == "-"
    assert "to 80 %: what all clients took until the first evaluated round" in " ".join(table.notes)
    assert not any("to 80 %" in column.name for column in tables_of(tmp_path)[0].columns)


def test_the_cheapest_way_to_a_target_is_bold(tmp_path):
    write_run(tmp_path, "FLoRG", 0, [0.5, 0.6, 0.8], parameters={"up": 1, "down": 1})
    write_run(tmp_path, "FedIT", 0, [0.5, 0.8, 0.7])
    found = bold(tables_of(tmp_path, View(target=0.8))[0])
    assert ("FLoRG", "to 80 % parameters") in found
    assert ("FedIT", "to 80 % rounds") in found
    assert ("FLoRG", "to 80 % rounds") not in found


def test_there_is_a_table_for_each_value_of_a_setting_with_the_best_of_each(tmp_path):
    for rank, best in ((4, "FLoRG"), (2, "FedIT")):
        for method in ("FLoRG", "FedIT"):
            write_run(tmp_path, method, 0, [0.5, 0.7 + 0.1 * (method == best)], settings={"method.rank": rank})
    two, four = tables_of(tmp_path, View(by=("rank",)))
    assert (two.title, four.title) == ("task, 1 round, rank 2", "task, 1 round, rank 4")
    assert [{row for row, _ in bold(table)} for table in (two, four)] == [{"FedIT"}, {"FLoRG"}]
    assert not two.notes
    assert four.notes


def test_tables_of_several_tasks_are_judged_each_by_its_own_metric(tmp_path):
    write_run(tmp_path, task="rte")
    write_run(tmp_path, task="cola", final={"loss": 0.1, "matthews_correlation": 0.61234}, initial={})
    cola, rte = tables_of(tmp_path, View(by=("task",)))
    assert (cola.title, rte.title) == ("cola, 2 rounds", "rte, 2 rounds")
    assert texts(cola)["FLoRG"]["matthews_correlation ± 95 %"] == "0.6123"
    assert texts(rte)["FLoRG"]["accuracy % ± 95 %"] == "70.00"


def test_the_bootstrap_is_told_by_its_ends_and_named(tmp_path):
    write_runs(tmp_path, {"FLoRG": [0.71, 0.74, 0.73]})
    (table,) = tables_of(tmp_path, View(interval="bootstrap"))
    assert texts(table)["FLoRG"]["accuracy % [95 %]"] == "72.67 [71.00, 74.00]"
    assert "[95 % percentile bootstrap interval]" in table.notes[0]


def test_programs_read_full_precision_and_what_the_groups_are(tmp_path):
    write_runs(tmp_path, {"FLoRG": [0.7, 0.8]}, settings={"data.partition.rho": 0.1})
    write_runs(tmp_path, {"FLoRG": [0.75]})
    rows = list(csv.DictReader(io.StringIO(csv_text(tables_of(tmp_path, View(by=("rho",), target=0.75))))))
    assert [row["rho"] for row in rows] == ["0.1", "0.5"]
    assert (rows[0]["method"], rows[0]["seeds"], rows[0]["count"], rows[0]["metric"]) == (
        "FLoRG",
        "0 1",
        "2",
        "accuracy",
    )
    assert float(rows[0]["mean"]) == statistics.mean([0.7, 0.8])
    assert float(rows[0]["high"]) - float(rows[0]["low"]) == pytest.approx(2 * 12.7062 * 0.05, rel=1e-5)
    assert (rows[0]["target_reached"], rows[0]["round_to_target"]) == ("1", "")
    assert (rows[1]["target_reached"], rows[1]["parameters_both_to_target"]) == ("1", "6000.0")
    assert (rows[1]["low"], rows[1]["p"]) == ("", "")


def test_a_row_for_each_run_tells_before_and_after(tmp_path):
    write_runs(tmp_path, {"FLoRG": [0.7, 0.8]})
    write_run(tmp_path, "FedSALoRA", personal_evaluation="own")
    table = run_table(read_runs([tmp_path]))
    found = texts(table)
    assert set(found) == {
        "task-FLoRG/version_0",
        "task-FLoRG/version_1",
        "task-FedSALoRA/version_0*",
    }
    row = found["task-FLoRG/version_1"]
    assert (row["seed"], row["accuracy % before"], row["accuracy % after"]) == ("1", "50.00", "80.00")
    assert any(note.startswith("* models of clients") for note in table.notes)


def test_a_run_in_a_folder_of_another_name_is_told_with_its_method(tmp_path):
    own = write_run(tmp_path)
    own.parent.rename(tmp_path / "mine")
    assert list(texts(run_table(read_runs([tmp_path])))) == ["FLoRG mine/version_0"]


def test_eighty_characters_have_room_for_the_metric_the_difference_and_the_megabytes(tmp_path):
    write_runs(tmp_path, {"FLoRG-top_r_aligned": [0.7, 0.8, 0.75], "FedIT": [0.6, 0.7, 0.65]})
    (table,) = tables_of(tmp_path)
    console = Console(width=80, file=io.StringIO())
    console.print(table.rich(80), crop=False)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = [line for line in lines if line.startswith("FLoRG")]
    assert row.split() == ["FLoRG-top_r_aligned", "3", "75.00", "±", "12.42", "+10.00", "-", "0.01", "0.02"]


def test_methods_stand_in_the_order_of_the_metric_and_models_of_clients_after_them(tmp_path):
    write_runs(tmp_path, {"FedIT": [0.6], "FLoRG": [0.8], "FFALoRA": [0.7]})
    write_runs(tmp_path, {"FedSALoRA": [0.95]}, personal_evaluation="own")
    assert list(texts(tables_of(tmp_path)[0])) == ["FLoRG", "FFALoRA", "FedIT", "FedSALoRA*"]
    assert list(texts(tables_of(tmp_path, View(metric="loss"))[0])) == ["FLoRG", "FFALoRA", "FedIT", "FedSALoRA*"]


def test_a_method_without_the_metric_stands_last(tmp_path):
    write_run(tmp_path, "FLoRG", final={"loss": 0.1, "accuracy": None})
    write_runs(tmp_path, {"FedIT": [0.1]})
    assert list(texts(tables_of(tmp_path)[0])) == ["FedIT", "FLoRG"]


def test_of_two_seeds_both_figures_are_shown_and_no_interval(tmp_path):
    write_runs(tmp_path, {"FLoRG": [0.7, 0.84], "FedIT": [0.6, 0.7, 0.65]})
    (table,) = tables_of(tmp_path)
    assert texts(table)["FLoRG"]["accuracy % ± 95 %"] == "77.00 (70.00, 84.00)"
    assert "(a, b): the figures of two seeds, whose interval would be far wider" in table.notes
    assert texts(tables_of(tmp_path, View(metric="loss"))[0])["FLoRG"]["loss ± 95 %"] == "0.2300 (0.3000, 0.1600)"


@pytest.mark.parametrize(
    ("metric", "values", "text"),
    [
        ("accuracy", [0.99, 0.9, 0.95], "94.67 [83.47, 100.00]"),
        ("accuracy", [0.0, 0.1, 0.02], "4.00 [0.00, 17.14]"),
        ("pearson", [0.99, 0.9, 0.95], "0.9467 [0.8347, 1.0000]"),
        ("loss", [0.0, 0.1, 0.02], "0.0400 [0.0000, 0.1714]"),
        ("perplexity", [0.0, 0.1, 0.02], "0.0400 ± 0.1314"),
    ],
)
def test_an_interval_ends_where_the_metric_can_be_no_larger_or_smaller(tmp_path, metric, values, text):
    for seed, value in enumerate(values):
        write_run(tmp_path, seed=seed, final={metric: value}, initial={})
    (table,) = tables_of(tmp_path, View(metric=metric))
    shown = next(cells for cells in texts(table).values())
    assert text in shown.values()
    assert any(f"cut where it goes beyond what {metric} can be" in note for note in table.notes) == ("[" in text)
    assert float(table.records()[0]["low"]) < 0.9  # programs read the interval as it is


def test_the_cheapest_and_the_fastest_are_bold_in_their_columns(tmp_path):
    write_run(tmp_path, "FLoRG", seconds=10.04, seconds_training=4.0)
    write_run(tmp_path, "FedIT", seconds=9.96, seconds_training=6.0, parameters={"up": 10, "down": 2000})
    write_run(tmp_path, "FFALoRA", seconds=12.0, seconds_training=5.0)
    (table,) = tables_of(tmp_path)
    assert bold(table) == {
        ("FLoRG", "seconds in all"),
        ("FedIT", "seconds in all"),
        ("FLoRG", "seconds training/round"),
        ("FedIT", "MB up"),
        ("FedIT", "parameters up"),
    }
    assert texts(table)["FLoRG"]["seconds training/round"] == "2.00"
