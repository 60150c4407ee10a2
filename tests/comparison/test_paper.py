import statistics

import pytest

from fedgram.comparison import read_runs
from fedgram.comparison.paper import check_matches, group_for_paper, load, match
from fedgram.comparison.paper_tables import paper_tables
from fedgram.errors import ConfigurationError, DataError
from made_runs import CLIENT_FLOPS, SERVER_FLOPS, write_run

NAMES = [f"table{number}" for number in range(1, 13)]
MINILM = "package:minilm"


def write(folder, method, accuracy, task="rte", backbone=MINILM, seeds=1, **more):
    """Runs of a method with the paper's rank, rho and participation, whose accuracies are 0.01 apart."""
    settings = {"model.backbone": backbone, "data.fingerprint": task} | more.pop("settings", {})
    for seed in range(seeds):
        values = [0.5, 0.5, accuracy + seed / 100]
        write_run(folder, method, seed, values, settings, task=task, backbone=backbone, data_fingerprint=task, **more)


def matches_of(name, folder):
    by, groups = group_for_paper(read_runs([folder]))
    return match(load(name), groups, by)


def tables_of(name, folder):
    return {table.keys["part"]: table for table in paper_tables(load(name), matches_of(name, folder))}


def rows(table):
    return [[cell.text for cell in row] for row in table.rows]


# The numbers. These are typed from the paper by hand, a few of each table.


def number(name, method, **where):
    (paper_row,) = [
        paper_row
        for paper_row in load(name).rows
        if all(
            value
            == (paper_row.settings.get(key) if key in ("rank", "rho", "participation") else getattr(paper_row, key))
            for key, value in where.items()
        )
    ]
    return paper_row.values[method]


@pytest.mark.parametrize(
    ("name", "method", "where", "expected"),
    [
        ("table1", "FLoRG", {"backbone": "OPT-125M", "task": "mnli"}, 87.35),
        ("table1", "FedEx-LoRA", {"backbone": "OPT-125M", "task": "qnli"}, 89.88),
        ("table1", "FedSA-LoRA", {"backbone": "RoBERTa-large", "task": "wnli"}, 63.47),
        ("table1", "FedEx-LoRA", {"backbone": "Llama-3.2-3B", "task": "rte"}, 73.15),
        ("table2", "FLoRG", {"backbone": "OPT-125M", "target": 0.8}, 8.2e6),
        ("table2", "FedIT", {"backbone": "OPT-125M", "target": 0.85}, None),
        ("table2", "FedEx-LoRA", {"backbone": "RoBERTa-large", "target": 0.85}, 2.96e10),
        ("table3", "FLoRG", {"backbone": "OPT-125M", "task": "mrpc"}, 86.54),
        ("table3", "FLoRG-none", {"backbone": "OPT-125M", "task": "mnli"}, 80.93),
        ("table3", "FLoRG-none", {"backbone": "RoBERTa-large", "task": "rte"}, 67.09),
        ("table4", "FedIT", {"task": "rte", "rank": 2}, 58.41),
        ("table4", "FLoRG", {"task": "wnli", "rank": 8}, 68.83),
        ("table5", "FedEx-LoRA", {"task": "rte", "rho": 0.1}, 61.67),
        ("table5", "FLoRG", {"task": "wnli", "rho": 1}, 67.83),
        ("table6", "FLoRG-kaiming", {"backbone": "OPT-125M", "task": "qqp"}, 88.90),
        ("table6", "FLoRG-svd", {"backbone": "RoBERTa-large", "task": "mnli"}, 91.49),
        ("table7", "FeDeRA", {"task": "wnli", "participation": 0.2}, 55.20),
        ("table7", "FedEx-LoRA", {"task": "rte", "participation": 0.5}, 68.61),
        ("table8", "FFA-LoRA", {"quantity": "client_flops"}, 8.25e11),
        ("table8", "FedEx-LoRA", {"quantity": "server_flops"}, 2.09e9),
        ("table8", "FedIT", {"quantity": "server_flops"}, None),
        ("table8", "FLoRG", {"quantity": "peak_megabytes"}, 2815),
        ("table9", "FLoRG", {"backbone": "OPT-125M", "quantity": "exact_match"}, 68.52),
        ("table9", "FedEx-LoRA", {"backbone": "Llama-3.2-3B", "quantity": "f1"}, 91.82),
        ("table10", "FedSA-LoRA", {"backbone": "RoBERTa-large", "task": "qqp"}, 90.01),
        ("table11", "FFA-LoRA", {"task": "mnli", "rank": 8}, 90.44),
        ("table11", "FLoRG", {"task": "mrpc", "rank": 2}, 85.91),
        ("table12", "FedSA-LoRA", {"task": "qnli", "rho": 1}, 92.72),
        ("table12", "FedIT", {"task": "qqp", "rho": 0.1}, 78.80),
    ],
)
def test_numbers_are_the_papers(name, method, where, expected):
    assert number(name, method, **where) == expected


@pytest.mark.parametrize(
    ("name", "rows", "methods"),
    list(zip(NAMES, [12, 4, 12, 6, 6, 12, 6, 3, 6, 4, 12, 12], [6, 6, 2, 6, 6, 3, 6, 6, 6, 5, 5, 5], strict=True)),
)
def test_every_table_is_whole(name, rows, methods):
    table = load(name)
    assert len(table.rows) == rows
    assert len(table.methods) == methods
    assert all(set(paper_row.values) == set(table.methods) for paper_row in table.rows)


def test_alignment_gains_what_the_paper_says_in_its_text():
    gains = {
        (paper_row.backbone, paper_row.task): paper_row.values["FLoRG"] - paper_row.values["FLoRG-none"]
        for paper_row in load("table3").rows
    }
    # Section 4.4, in the order MRPC, QQP, MNLI, QNLI, WNLI, RTE; RoBERTa-large as far as it agrees with the table.
    opt = [gains["OPT-125M", task] for task in ("mrpc", "qqp", "mnli", "qnli", "wnli", "rte")]
    assert opt == pytest.approx([3.40, 2.86, 6.27, 2.97, 5.60, 4.45], abs=0.005)
    assert gains["RoBERTa-large", "mnli"] == pytest.approx(2.46, abs=0.005)


def test_an_unknown_table_is_refused_with_the_known_ones():
    with pytest.raises(ConfigurationError, match=r"--paper table13: .* table1, .*, table12; Figure 2 .* --pictures"):
        load("table13")


# Which runs are of which cell


def test_runs_fit_by_task_rank_heterogeneity_and_participation(tmp_path):
    write(tmp_path, "FLoRG", 0.7)
    write(tmp_path, "FLoRG", 0.7, task="sst2")
    for other in ({"method.rank": 2}, {"data.partition.rho": 0.1}, {"trainer.participation": 0.5}):
        write(tmp_path, "FLoRG", 0.7, settings=other)
    assert {found.paper_row.task for found in matches_of("table1", tmp_path)} == {"rte"}
    assert [found.paper_row.settings["rank"] for found in matches_of("table4", tmp_path)] == [2, 4]
    assert [found.paper_row.settings["rho"] for found in matches_of("table5", tmp_path)] == [0.1, 0.5]
    assert [found.paper_row.settings["participation"] for found in matches_of("table7", tmp_path)] == [0.5, 1]


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("FacebookAI/roberta-large", ["RoBERTa-large"]),
        ("/models/opt-125m", ["OPT-125M"]),
        ("shape:llama-3.2-3b", ["Llama-3.2-3B"]),
        ("meta-llama/Llama-3.2-3B-Instruct", ["OPT-125M", "RoBERTa-large", "Llama-3.2-3B"]),
        (MINILM, ["OPT-125M", "RoBERTa-large", "Llama-3.2-3B"]),
    ],
)
def test_a_backbone_of_the_papers_fits_its_own_rows_and_another_one_all(tmp_path, backbone, expected):
    write(tmp_path, "FLoRG", 0.7, backbone=backbone)
    found = matches_of("table1", tmp_path)
    assert [one.paper_row.backbone for one in found] == expected
    assert {one.backbone for one in found} == ({""} if len(expected) == 1 else {backbone})


def test_methods_fit_by_the_names_that_runs_have(tmp_path):
    for method in ("FLoRG", "FeDeRA", "FeDeRA-round", "FFALoRA", "FedSALoRA", "FedExLoRA-factored", "FLoRG-average"):
        write(tmp_path, method, 0.7)
    found = matches_of("table1", tmp_path)[0].groups
    assert {method: [group.method for group in groups] for method, groups in found.items()} == {
        "FLoRG": ["FLoRG"],
        "FedIT": [],
        "FeDeRA": ["FeDeRA-round", "FeDeRA"],
        "FFA-LoRA": ["FFALoRA"],
        "FedSA-LoRA": ["FedSALoRA"],
        "FedEx-LoRA": ["FedExLoRA-factored"],
    }


def test_the_partition_of_squad_may_be_any(tmp_path):
    write(tmp_path, "FLoRG", 0.7, task="squad", settings={"data.partition.rho": None}, final={"exact_match": 0.5})
    assert len(matches_of("table9", tmp_path)) == 6


def test_runs_that_fit_nothing_are_refused_with_what_would(tmp_path):
    write(tmp_path, "FLoRG", 0.7, task="sst2")
    found = matches_of("table1", tmp_path)
    message = r"--paper table1: no run fits: it is of task mnli/qnli/wnli/rte, rank 4, .*; the runs are of task sst2"
    with pytest.raises(DataError, match=message):
        check_matches(load("table1"), found, read_runs([tmp_path]))


# The tables


def test_a_row_tells_ours_the_papers_and_the_difference_and_a_dash_where_no_run_fits(tmp_path):
    write(tmp_path, "FLoRG", 0.70, backbone="facebook/opt-125m", seeds=3)
    write(tmp_path, "FedIT", 0.60, backbone="facebook/opt-125m")
    cells = tables_of("table1", tmp_path)["cells"]
    half = 4.302653 * statistics.stdev([70, 71, 72]) / 3**0.5
    assert cells.title == "Table 1 of the paper: Testing accuracy by method"
    assert rows(cells) == [
        ["OPT-125M", "rte", "FLoRG", "3", f"71.00 ± {half:.2f}", "68.92", "+2.08"],
        ["", "", "FedIT", "1", "60.00", "61.08", "-1.08"],
        ["", "", "FeDeRA", "-", "-", "64.51", "-"],
        ["", "", "FFA-LoRA", "-", "-", "66.02", "-"],
        ["", "", "FedSA-LoRA", "-", "-", "67.39", "-"],
        ["", "", "FedEx-LoRA", "-", "-", "68.27", "-"],
    ]
    assert "no run fits 11 of the paper's 12 rows" in cells.notes
    assert [row[4].bold for row in cells.rows] == [row[5].bold for row in cells.rows] == [True] + 5 * [False]


def test_another_backbone_is_named_above(tmp_path):
    write(tmp_path, "FLoRG", 0.7)
    write(tmp_path, "FLoRG", 0.7, backbone="facebook/opt-125m")
    titles = [table.title for table in paper_tables(load("table1"), matches_of("table1", tmp_path))]
    assert sorted(titles) == [
        "Table 1 of the paper: Testing accuracy by method",
        f"Table 1 of the paper: Testing accuracy by method, here with {MINILM}",
    ]


def test_orders_are_told_by_places_and_their_correlation(tmp_path):
    # The paper's places of these on Llama and RTE: FLoRG 1, FedSA 2, FFA 3, FedIT 4.
    for method, accuracy in (("FLoRG", 0.8), ("FedIT", 0.75), ("FFALoRA", 0.7), ("FedSALoRA", 0.65)):
        write(tmp_path, method, accuracy, backbone="meta-llama/Llama-3.2-3B")
    orders = tables_of("table1", tmp_path)["orders"]
    # d = 0, 2, 0, 2: Spearman 1 - 6·8/(4·15) = 0.2; 3 of 6 pairs agree: Kendall 0.
    assert rows(orders) == [["Llama-3.2-3B", "rte", "1/1", "4/2", "-", "3/3", "2/4", "-", "+0.20", "+0.00"]]
    assert "mean of Spearman's over 1 rows: +0.20" in orders.notes


def test_the_lead_is_over_the_best_other_method_that_both_have(tmp_path):
    for method, accuracy in (("FLoRG", 0.70), ("FedIT", 0.75), ("FFALoRA", 0.60)):
        write(tmp_path, method, accuracy, backbone="facebook/opt-125m", seeds=2)
    leads = tables_of("table1", tmp_path)["leads"]
    assert rows(leads) == [["OPT-125M", "rte", "+2.90", "FFA-LoRA", "-5.00", "-", "FedIT"]]
    assert "FLoRG is ahead in 1 of 1 rows in the paper, and in 0 here" in leads.notes


def test_models_of_clients_are_marked_and_take_no_part_in_orders_and_leads(tmp_path):
    for method, accuracy in (("FLoRG", 0.70), ("FedIT", 0.65)):
        write(tmp_path, method, accuracy, backbone="facebook/opt-125m")
    write(tmp_path, "FedSALoRA", 0.9, backbone="facebook/opt-125m", personal_evaluation="own")
    tables = tables_of("table1", tmp_path)
    assert [row[2] for row in rows(tables["cells"])][4] == "FedSALoRA*"
    assert [row[4].bold for row in tables["cells"].rows][:5] == [True, False, False, False, False]
    assert rows(tables["orders"])[0][2:8] == ["1/1", "2/2", "-", "-", "-", "-"]
    assert rows(tables["leads"])[0][2:] == ["+7.84", "FedIT", "+5.00", "-", "FedIT"]


def test_the_gain_from_alignment_stands_beside_the_papers(tmp_path):
    for seed, (aligned, none) in enumerate([(0.70, 0.69), (0.72, 0.69), (0.71, 0.70)]):
        for method, accuracy in (("FLoRG", aligned), ("FLoRG-none", none)):
            write_run(
                tmp_path,
                method,
                seed,
                [0.5, accuracy],
                {"model.backbone": "opt-125m"},
                task="mrpc",
                backbone="opt-125m",
            )
    leads = tables_of("table3", tmp_path)["leads"]
    assert leads.title == "Gain from Procrustes alignment"
    # By hand: differences 1, 3, 1: mean 5/3, s = 1.1547, t = 2.5, two degrees of freedom: p = 0.130.
    assert rows(leads) == [["OPT-125M", "mrpc", "+3.40", "FLoRG-none", "+1.67", "0.130", "FLoRG-none"]]


def test_a_trend_is_told_from_the_lowest_to_the_highest_setting(tmp_path):
    for rho, florg, fedit in ((0.1, 0.60, 0.50), (0.5, 0.65, 0.60), (1, 0.70, 0.49)):
        for method, accuracy in (("FLoRG", florg), ("FedIT", fedit)):
            write(tmp_path, method, accuracy, seeds=2, settings={"data.partition.rho": rho})
    tables = tables_of("table5", tmp_path)
    assert tables["changes"].title == "Change from rho 0.1 to 1, in points"
    assert rows(tables["changes"]) == [
        ["rte", "FLoRG", "+6.91", "+10.00", "-"],
        ["rte", "FedIT", "+11.30", "-1.00", "-"],
    ]
    assert "in the same direction in 1 of 2 rows" in tables["changes"].notes
    assert [row[:3] for row in rows(tables["leads"])] == [
        ["rte", "0.1", "+9.70"],
        ["rte", "0.5", "+7.30"],
        ["rte", "1", "+5.31"],
    ]
    assert [row[4] for row in rows(tables["leads"])] == ["+10.00", "+5.00", "+21.00"]


def test_a_setting_that_was_not_varied_has_no_trend(tmp_path):
    write(tmp_path, "FLoRG", 0.7)
    assert set(tables_of("table5", tmp_path)) == {"cells"}


def test_parameters_to_a_target_are_compared_by_their_ratio(tmp_path):
    for method, accuracy, sent in (("FLoRG", 0.82, 2_050_000), ("FedIT", 0.81, 4_100_000), ("FFALoRA", 0.7, 10)):
        parameters = {"up": sent, "down": sent}
        write(tmp_path, method, accuracy, "qnli", "facebook/opt-125m", parameters=parameters)
    tables = tables_of("table2", tmp_path)
    assert rows(tables["cells"])[:4] == [
        ["OPT-125M", "80 %", "FLoRG", "1", "8.20e6", "8.20e6", "1"],
        ["", "", "FedIT", "1", "1.64e7", "3.78e7", "0.434"],
        ["", "", "FeDeRA", "-", "-", "2.46e7", "-"],
        ["", "", "FFALoRA", "1", "- (0/1)", "1.59e7", "-"],
    ]
    assert rows(tables["cells"])[7][2:] == ["FedIT", "1", "- (0/1)", "-", "-"]
    assert rows(tables["leads"]) == [["OPT-125M", "80 %", "4.61", "FedIT", "2", "-", "FedIT"]]


@pytest.mark.parametrize(("initial", "lead"), [(0.5, "inf"), (0.81, "1")])
def test_who_is_at_the_target_before_training_sent_nothing(tmp_path, initial, lead):
    for method, before in (("FLoRG", 0.82), ("FedIT", initial)):
        settings = {"model.backbone": "opt-125m", "data.fingerprint": "qnli"}
        write_run(tmp_path, method, 0, [before, 0.82], settings, task="qnli", backbone="opt-125m")
    tables = tables_of("table2", tmp_path)
    assert rows(tables["cells"])[0] == ["OPT-125M", "80 %", "FLoRG", "1", "0", "8.20e6", "0"]
    assert rows(tables["leads"]) == [["OPT-125M", "80 %", "4.61", "FedIT", lead, "-", "FedIT"]]
    said = "inf: FLoRG was at the target before anything was sent" in tables["leads"].notes
    assert said == (lead == "inf")
    ahead = int(lead == "inf")
    assert f"FLoRG is ahead in 1 of 1 rows in the paper, and in {ahead} here" in tables["leads"].notes


def test_costs_of_a_round_are_those_of_one_client(tmp_path):
    for method in ("FLoRG", "FedIT"):
        write(tmp_path, method, 0.7, "quickstart", "shape:roberta-large", peak_megabytes=5630.0)
    tables = tables_of("table8", tmp_path)
    found = {(row[0] or "", row[1]): row[2:] for row in rows(tables["cells"])}
    assert found["client FLOPs", "FLoRG"][1:] == ["1.50e8", "1.18e12", f"{CLIENT_FLOPS / 20 / 1.18e12:.3g}"]
    assert found["server FLOPs", "FLoRG"][1:] == ["5.00e6", "8.50e10", f"{SERVER_FLOPS / 8.5e10:.3g}"]
    assert found["memory, MB", "FLoRG"][1:] == ["5,630.0", "2,815.0", "2"]
    assert set(tables) == {"cells", "orders"}


def note_of(table, method):
    (note,) = [note for note in table.notes if note.startswith(f"{method}: '-' where several runs fit one cell")]
    return note


def test_of_several_runs_that_fit_a_cell_none_is_chosen_and_all_are_named(tmp_path):
    for rate, accuracy in ((0.1, 0.6), (0.01, 0.8)):
        write(tmp_path, "FedIT", accuracy, backbone="opt-125m", settings={"optimizer.lr": rate})
    write(tmp_path, "FLoRG", 0.7, backbone="opt-125m")
    write(tmp_path, "FFALoRA", 0.5, backbone="opt-125m")
    tables = tables_of("table1", tmp_path)
    assert rows(tables["cells"])[:2] == [
        ["OPT-125M", "rte", "FLoRG", "1", "70.00", "68.92", "+1.08"],
        ["", "", "FedIT", "-", "-", "61.08", "-"],
    ]
    assert [row[4].bold for row in tables["cells"].rows][:2] == [True, False]
    note = note_of(tables["cells"], "FedIT")
    assert "FedIT (lr 0.1), FedIT (lr 0.01)); give the folders of one of them" in note
    assert rows(tables["orders"])[0][2:8] == ["1/1", "-", "-", "2/2", "-", "-"]
    assert rows(tables["leads"])[0][2:] == ["+2.90", "FFA-LoRA", "+20.00", "-", "FFALoRA"]


def test_without_a_run_of_the_papers_own_that_is_chosen_there_are_no_leads(tmp_path):
    for rate in (0.1, 0.01):
        write(tmp_path, "FLoRG", 0.7, settings={"optimizer.lr": rate})
    for method in ("FedIT", "FFALoRA"):
        write(tmp_path, method, 0.6)
    assert set(tables_of("table1", tmp_path)) == {"cells", "orders"}


def test_a_trend_leaves_out_what_several_runs_fit(tmp_path):
    for rho in (0.1, 1):
        for method in ("FLoRG", "FedIT"):
            write(tmp_path, method, 0.7, settings={"data.partition.rho": rho})
    write(tmp_path, "FLoRG", 0.8, settings={"data.partition.rho": 1, "optimizer.lr": 0.5})
    tables = tables_of("table5", tmp_path)
    assert [row[1] for row in rows(tables["changes"])] == ["FedIT"]
    assert [row[3] for row in rows(tables["cells"])][::6] == ["1", "-"]


def test_of_several_names_of_a_method_the_one_that_is_as_the_paper_tells_it_counts(tmp_path):
    for method, accuracy in (("FLoRG", 0.8), ("FeDeRA", 0.9), ("FeDeRA-round", 0.5)):
        write(tmp_path, method, accuracy, backbone="opt-125m")
    tables = tables_of("table1", tmp_path)
    assert [row[2] for row in rows(tables["cells"])][:4] == ["FLoRG", "FedIT", "FeDeRA-round", "FeDeRA"]
    assert rows(tables["leads"])[0][2:] == ["+4.41", "FeDeRA", "+30.00", "-", "FeDeRA-round"]
    assert "runs of several names fit FeDeRA: that of the first row above counts" in tables["orders"].notes
    write(tmp_path, "FeDeRA-round", 0.6, backbone="opt-125m", settings={"optimizer.lr": 0.5})
    tables = tables_of("table1", tmp_path)
    assert [row[2:5] for row in rows(tables["cells"])][2:4] == [["FeDeRA-round", "-", "-"], ["FeDeRA", "1", "90.00"]]
    assert "leads" not in tables


def test_runs_of_several_tasks_that_fit_one_cell_are_told_apart(tmp_path):
    for task in ("rte", "quickstart"):
        write(tmp_path, "FLoRG", 0.7, task, "shape:roberta-large")
    cells = tables_of("table8", tmp_path)["cells"]
    assert rows(cells)[0][1:4] == ["FLoRG", "-", "-"]
    assert "FLoRG (task quickstart), FLoRG (task rte)" in note_of(cells, "FLoRG")


def test_programs_read_where_each_row_is(tmp_path):
    write(tmp_path, "FLoRG", 0.7, settings={"method.rank": 2})
    record = tables_of("table4", tmp_path)["cells"].records()[0]
    expected = {
        "table": "table4",
        "part": "cells",
        "backbone": MINILM,
        "model": "RoBERTa-large",
        "task": "rte",
        "rank": 2,
        "method": "FLoRG",
        "paper": 65.82,
        "mean": 70.0,
    }
    assert {key: record[key] for key in expected} == expected
    assert record["difference"] == pytest.approx(4.18)
