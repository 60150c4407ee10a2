import json

import numpy as np
import pytest

from fedgram.comparison import check_comparable, find_difference, group_runs, read_runs, slices
from fedgram.errors import DataError
from made_runs import write_run


def grouped(folder, *by):
    return group_runs(read_runs([folder]), by)


def labels(groups):
    return [group.label for group in groups]


def test_runs_that_differ_in_the_seed_alone_are_one_group_ascending_by_seed(tmp_path):
    for seed in (3, 1, 2):
        write_run(tmp_path, seed=seed)
        write_run(tmp_path, "FedIT", seed=seed)
    groups = grouped(tmp_path)
    assert labels(groups) == ["FLoRG", "FedIT"]
    assert [[run.seed for run in group.runs] for group in groups] == [[1, 2, 3]] * 2


def test_what_only_speed_depends_on_makes_no_other_group(tmp_path):
    write_run(tmp_path, seed=0, settings={"trainer.threads": 1, "trainer.clients_per_block": 5})
    write_run(tmp_path, seed=1, settings={"trainer.threads": 2, "trainer.clients_per_block": 1})
    assert len(grouped(tmp_path)) == 1


@pytest.mark.parametrize(
    ("settings", "summary", "told"),
    [
        ({"optimizer.lr": 0.01}, {}, ["FLoRG (lr 0.001)", "FLoRG (lr 0.01)"]),
        ({"method.rank": 8}, {}, ["FLoRG (rank 4)", "FLoRG (rank 8)"]),
        ({}, {"rounds": 30}, ["FLoRG (rounds 2)", "FLoRG (rounds 30)"]),
        ({}, {"personal_evaluation": "all"}, ["FLoRG (personal_evaluation None)", "FLoRG (personal_evaluation all)"]),
        ({"data.fingerprint": "b", "optimizer.lr": 0.1}, {}, ["FLoRG (lr 0.001)", "FLoRG (lr 0.1)"]),
        ({"data.fingerprint": "b"}, {}, ["FLoRG (fingerprint data)", "FLoRG (fingerprint b)"]),
    ],
)
def test_twins_are_told_apart_by_what_differs(tmp_path, settings, summary, told):
    write_run(tmp_path)
    write_run(tmp_path, settings=settings, **summary)
    write_run(tmp_path, "FedIT")
    assert sorted(labels(grouped(tmp_path))) == sorted([*told, "FedIT"])


def test_of_equal_settings_and_seed_the_highest_version_counts(tmp_path):
    for accuracy in (0.1, 0.2, 0.3):
        newest = write_run(tmp_path, accuracy=[0.0, accuracy])
    newest.rename(newest.with_name("version_10"))  # which comes before version_2 in the alphabet
    (run,) = read_runs([tmp_path])
    assert run.final() == 0.3
    assert run.folder.name == "version_10"


def test_versions_of_settings_that_a_sweep_no_longer_has_do_not_count(tmp_path):
    for rate in (0.1, 0.2, 0.3):
        own = write_run(tmp_path, settings={"optimizer.lr": rate})
    write_run(tmp_path, "FedIT")
    (own.parent / "sweep.json").write_text(json.dumps({"digest": "d", "first_version": 1}))
    assert sorted(labels(grouped(tmp_path))) == ["FLoRG (lr 0.2)", "FLoRG (lr 0.3)", "FedIT"]


@pytest.mark.parametrize(
    "content", [None, "", "[]", "1", "{}", '{"first_version": null}', '{"first_version": "2"}', '{"first_version": 0}']
)
def test_a_sweeps_note_that_is_damaged_or_missing_leaves_out_nothing(tmp_path, content):
    own = write_run(tmp_path)
    if content is not None:
        (own.parent / "sweep.json").write_text(content)
    assert [run.folder for run in read_runs([tmp_path])] == [own]


def test_a_folder_of_which_a_sweep_no_longer_has_any_run_is_refused(tmp_path, monkeypatch):
    own = write_run(tmp_path)
    (own.parent / "sweep.json").write_text('{"first_version": 1}')
    for path in (tmp_path, own):
        with pytest.raises(DataError, match=rf"no finished run below {path}: .* its sweep no longer has; .*sweep.json"):
            read_runs([path])
    monkeypatch.chdir(own)
    with pytest.raises(DataError, match="its sweep no longer has"):
        read_runs([own.relative_to(own)])


def test_runs_without_settings_are_all_kept(tmp_path):
    for _ in range(2):
        own = write_run(tmp_path)
        facts = json.loads((own / "summary.json").read_text())
        del facts["settings"]
        (own / "summary.json").write_text(json.dumps(facts))
    assert len(read_runs([tmp_path])) == 2


def test_a_folder_and_one_below_it_give_each_run_once(tmp_path):
    own = write_run(tmp_path)
    assert len(read_runs([tmp_path, own])) == 1


@pytest.mark.parametrize("key", ["rank", "method.rank"])
def test_groups_are_sliced_by_a_setting_in_its_order(tmp_path, key):
    for rank in (8, 2, 4):
        for method in ("FLoRG", "FedIT"):
            write_run(tmp_path, method, settings={"method.rank": rank})
    groups = grouped(tmp_path, key)
    assert list(slices(groups)) == [(2,), (4,), (8,)]
    assert set(labels(groups)) == {"FLoRG", "FedIT"}


def test_groups_are_sliced_by_several_settings_and_by_the_task(tmp_path):
    for task in ("rte", "mrpc"):
        for rho in (0.5, 0.1):
            write_run(tmp_path, task=task, settings={"data.partition.rho": rho, "data.fingerprint": task})
    groups = grouped(tmp_path, "task", "rho")
    assert [group.at for group in groups] == [("mrpc", 0.1), ("mrpc", 0.5), ("rte", 0.1), ("rte", 0.5)]
    check_comparable(groups)


def test_a_setting_is_found_by_its_last_part_where_that_is_enough(tmp_path):
    write_run(tmp_path, settings={"optimizer.eps": 1, "method.eps": 2})
    (run,) = read_runs([tmp_path])
    assert run.setting("lr") == run.setting("optimizer.lr") == 0.001
    assert run.setting("rho") == 0.5
    assert run.setting("task") == "task"
    assert run.setting("eps") is None
    assert run.setting("nothing") is None


def test_an_unknown_setting_to_go_by_is_refused_with_the_known_ones(tmp_path):
    write_run(tmp_path)
    with pytest.raises(DataError, match=r"--by rnk: no run has such a setting.*rank, rho"):
        grouped(tmp_path, "rnk")


@pytest.mark.parametrize(
    ("settings", "summary", "difference"),
    [
        ({}, {"task": "other"}, "task is 'task' in the one and 'other' in the other"),
        ({}, {"backbone": "large"}, "backbone is 'tiny' in the one and 'large'"),
        ({}, {"data_fingerprint": "b"}, "data_fingerprint is 'data' in the one and 'b'"),
        ({"data.fingerprint": "b"}, {}, "data.fingerprint is 'data' in the one and 'b'"),
        ({"data.partition.rho": 1.0}, {}, "rho is 0.5 in the one and 1.0"),
        ({"data.partition": "IID"}, {}, "data.partition is 'Dirichlet' in the one and 'IID'"),
        ({"trainer.clients": 4}, {}, "trainer.clients is 20 in the one and 4"),
        ({"model.monitor": "f1"}, {}, "model.monitor is 'accuracy' in the one and 'f1'"),
    ],
)
def test_runs_of_other_data_task_partition_or_backbone_are_refused_with_the_difference(
    tmp_path, settings, summary, difference
):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", "FedIT", settings=settings, **summary)
    with pytest.raises(DataError, match=f"{difference}.*--by KEY.*--force"):
        check_comparable(grouped(tmp_path))


def test_what_one_run_does_not_tell_is_no_difference(tmp_path):
    write_run(tmp_path)
    write_run(tmp_path, "FedIT", settings={"model.monitor": None})
    assert find_difference(grouped(tmp_path)) is None


def test_runs_of_other_methods_rates_and_ranks_can_be_compared(tmp_path):
    write_run(tmp_path)
    write_run(tmp_path, "FedIT", seed=1, settings={"optimizer.lr": 1, "method.rank": 8, "trainer.participation": 0.5})
    assert find_difference(grouped(tmp_path)) is None


def test_the_history_of_a_metric_is_of_the_rounds_that_were_evaluated(tmp_path):
    write_run(tmp_path, accuracy=[0.5, None, 0.75])
    (run,) = read_runs([tmp_path])
    assert run.metric == "accuracy"
    for metric, expected in ((None, [0.5, 0.75]), ("accuracy", [0.5, 0.75]), ("loss", [0.5, 0.25]), ("f1", [])):
        rows, values = run.history(metric)
        assert list(values) == expected
        assert list(run.rounds["round"][rows]) == [0, 2][: len(expected)]
    assert run.final("loss") == 0.25
    assert np.isnan(run.final("f1"))


def test_a_run_that_is_judged_by_its_loss_alone(tmp_path):
    write_run(tmp_path, final={"loss_mismatched": 1.0, "loss": 0.25})
    (run,) = read_runs([tmp_path])
    assert run.metric == "loss"
    assert run.final() == 0.25


def test_folders_without_a_run_are_refused_by_name(tmp_path):
    write_run(tmp_path / "full")
    with pytest.raises(DataError, match=r"no finished run below \S+empty, \S+missing: .*fedgram fit"):
        read_runs([tmp_path / "full", tmp_path / "empty", tmp_path / "missing"])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("summary.json", "{", "Expecting"),
        ("summary.json", "[1]", ""),
        ("summary.json", "{}", "does not say method, task, seed, final"),
        ("metrics.csv", "round,accuracy\n0,high\n", "could not convert"),
    ],
)
def test_damaged_files_are_refused_with_their_folder(tmp_path, name, content, reason):
    own = write_run(tmp_path)
    (own / name).write_text(content)
    with pytest.raises(DataError, match=rf"version_0 is damaged \(.*{reason}.*\); run it again, or leave"):
        read_runs([tmp_path])


def test_a_run_without_its_table_is_damaged(tmp_path):
    (write_run(tmp_path) / "metrics.csv").unlink()
    with pytest.raises(DataError, match="is damaged"):
        read_runs([tmp_path])


def test_the_rounds_are_told_once(tmp_path):
    for rounds in (4, 12):
        settings = {"trainer.rounds": rounds, "trainer.clients": 3}
        write_run(tmp_path / str(rounds), accuracy=[0.5], settings=settings, rounds=rounds)
    assert [group.label for group in group_runs(read_runs([tmp_path]))] == ["FLoRG (rounds 12)", "FLoRG (rounds 4)"]
