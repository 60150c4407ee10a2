import csv
import json
import os
from pathlib import Path

import pytest

from fedgram.errors import CheckpointError
from fedgram.runs.folder import RunFolder, Table, find_checkpoints, newest_checkpoints


def read(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_a_table_grows_by_rows_and_columns(tmp_path):
    table = Table(tmp_path / "metrics.csv")
    table.extend([{"round": 0, "val_loss": 0.5}])
    table.extend([{"round": 1, "val_loss": 0.25, "note": "a,b"}, {"round": 2, "train_loss": 1 / 3}])
    assert read(table.path) == [
        ["round", "val_loss", "note", "train_loss"],
        ["0", "0.5", "", ""],
        ["1", "0.25", "a,b", ""],
        ["2", "", "", str(1 / 3)],
    ]


def test_a_table_goes_on_where_its_file_stands(tmp_path):
    Table(tmp_path / "t.csv").extend([{"round": 1, "loss": 0.5}])
    again = Table(tmp_path / "t.csv")
    again.extend([{"round": 2, "loss": 0.25}])
    assert read(again.path) == [["round", "loss"], ["1", "0.5"], ["2", "0.25"]]
    assert not again.path.read_bytes().count(b"\r")


def test_a_table_without_rows_has_no_file(tmp_path):
    table = Table(tmp_path / "t.csv")
    table.extend([])
    table.keep_until(0)
    assert not table.path.exists()
    table.extend([{"round": 1}])
    table.keep_until(0)
    assert not table.path.exists()
    table.extend([{"round": 1, "loss": 2}])
    assert read(table.path) == [["round", "loss"], ["1", "2"]]


ROWS = [
    {"round": 0, "loss": 0.5},
    {"round": 1, "loss": 1 / 3, "note": "a,b"},
    {"round": 1, "loss": 1e-9, "note": 'of "ü"'},
    {"round": 2, "loss": 2.0},
    {"round": 10, "drift": float("nan")},
    {"round": 11, "loss": 0.1},
]


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1), (2, 0, 3, 1), (4, 2)])
def test_a_table_that_grows_has_the_bytes_of_one_that_is_written_at_once(tmp_path, sizes):
    Table(tmp_path / "once.csv").extend(ROWS)
    growing, rows = Table(tmp_path / "growing.csv"), iter(ROWS)
    for size in sizes:
        growing.extend([next(rows) for _ in range(size)])
    assert growing.path.read_bytes() == (tmp_path / "once.csv").read_bytes()


def test_rows_of_known_columns_are_added_and_nothing_else_is_read_or_written(tmp_path, monkeypatch):
    table = Table(tmp_path / "t.csv")
    table.extend(ROWS[:2])
    before = table.path.read_bytes()
    monkeypatch.setattr("fedgram.runs.folder.atomic_write", None)
    monkeypatch.setattr("pathlib.Path.read_bytes", None)
    table.extend(ROWS[3:4])
    monkeypatch.undo()
    assert table.path.read_bytes() == before + b"2,2.0,\n"


@pytest.mark.parametrize(
    "torn", ["2", "2,0.2", '2,"', "2,0.25\n3,0.1\n", "\0" * 30, "\0" * 30 + "\n3,1\n", "x,\n1,1\n", "\n"]
)
def test_what_a_kill_has_left_half_written_is_dropped(tmp_path, torn):
    Table(tmp_path / "t.csv").extend({"round": number, "loss": number} for number in (0, 1))
    whole = (tmp_path / "t.csv").read_bytes()
    with (tmp_path / "t.csv").open("a") as file:
        file.write(torn)
    table = Table(tmp_path / "t.csv")
    table.keep_until(1)
    assert table.path.read_bytes() == whole
    table.extend([{"round": 2, "loss": 2}])
    assert table.path.read_bytes() == whole + b"2,2\n"


def test_a_table_that_is_opened_anew_is_whole_after_its_first_rows(tmp_path):
    Table(tmp_path / "t.csv").extend([{"round": 0, "loss": 0}])
    with (tmp_path / "t.csv").open("a") as file:
        file.write("1,0.")
    Table(tmp_path / "t.csv").extend([{"round": 1, "loss": 1}])
    assert read(tmp_path / "t.csv") == [["round", "loss"], ["0", "0"], ["1", "1"]]


def test_a_table_that_somebody_deleted_begins_again_with_its_header(tmp_path):
    table = Table(tmp_path / "t.csv")
    table.extend(ROWS[:1])
    table.path.unlink()
    table.extend(ROWS[3:4])
    assert read(table.path) == [["round", "loss"], ["2", "2.0"]]


def test_a_run_is_rewound_to_a_round_in_all_tables(tmp_path):
    folder = RunFolder(tmp_path)
    for table in (folder.metrics, folder.communication, folder.diagnostics):
        table.extend({"round": number, "x": number} for number in range(12))
    RunFolder(tmp_path).rewind(9)  # as strings, "10" < "9"
    for name in ("metrics", "communication", "diagnostics"):
        assert [row[0] for row in read(tmp_path / f"{name}.csv")] == ["round", *map(str, range(10))]


def test_every_run_of_a_name_gets_the_next_number(tmp_path):
    assert [RunFolder.create(tmp_path, "a-FLoRG").path.name for _ in range(11)][-2:] == ["version_9", "version_10"]
    assert RunFolder.create(tmp_path, "a-FLoRG").path == tmp_path / "a-FLoRG" / "version_11"
    for number in (9, 10):  # their numbers are not given again
        (tmp_path / "a-FLoRG" / f"version_{number}").rmdir()
    (tmp_path / "a-FLoRG" / "version_x").mkdir()
    (tmp_path / "a-FLoRG" / "version_40_old").mkdir()
    assert RunFolder.create(tmp_path, "a-FLoRG").path.name == "version_12"
    assert RunFolder.create(tmp_path, "b").path.name == "version_0"


def test_a_number_that_another_process_takes_meanwhile_is_left_to_it(tmp_path, monkeypatch):
    RunFolder.create(tmp_path, "a")
    monkeypatch.setattr("fedgram.runs.folder.versions", lambda parent: [])
    assert RunFolder.create(tmp_path, "a").path.name == "version_1"


def make_run(root, name, number, *aliases):
    folder = RunFolder(root / name / f"version_{number}")
    for alias in aliases:
        folder.checkpoint(alias).parent.mkdir(parents=True, exist_ok=True)
        folder.checkpoint(alias).touch()
    return folder


def test_last_and_best_are_those_of_the_newest_run_that_has_them(tmp_path):
    make_run(tmp_path, "a", 9, "last", "best")
    newest = make_run(tmp_path, "a", 10, "last")
    (tmp_path / "a" / "version_11").mkdir()
    make_run(tmp_path, "b", 12, "last", "best")
    assert find_checkpoints("last", tmp_path, "a")[0] == newest.checkpoint("last")
    assert find_checkpoints("best", tmp_path, "a") == [tmp_path / "a/version_9/checkpoints/best.safetensors"]


def test_a_path_means_itself_and_a_folder_its_last_checkpoint(tmp_path):
    assert find_checkpoints("some/file", tmp_path, "a") == [Path("some/file")]
    folder = make_run(tmp_path, "a", 0, "last")
    assert find_checkpoints(str(folder.path), tmp_path, "other") == [folder.checkpoint("last")]


@pytest.mark.parametrize("alias", ["last", "best"])
def test_no_such_checkpoint_is_an_error_with_a_remedy(tmp_path, alias):
    with pytest.raises(CheckpointError, match=rf"--ckpt_path {alias}: no run in .*trainer\.name"):
        find_checkpoints(alias, tmp_path, "a")
    (tmp_path / "a" / "version_0").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no run in"):
        find_checkpoints(alias, tmp_path, "a")


def test_the_newest_rounds_checkpoints_are_kept_and_later_ones_go_with_their_rounds(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for number in (9, 10, 11, 100):
        folder.round_checkpoint(number).touch()
    folder.checkpoint("best").touch()
    assert folder.checkpoint("last") == folder.round_checkpoint(100)
    folder.keep_checkpoints(3)
    assert folder.round_checkpoints() == [folder.round_checkpoint(number) for number in (100, 11, 10)]
    folder.rewind(11)
    assert folder.round_checkpoints() == [folder.round_checkpoint(number) for number in (11, 10)]
    assert find_checkpoints(str(tmp_path), tmp_path, "a") == folder.round_checkpoints()
    assert folder.checkpoint("best").exists()


def test_text_and_json_are_written(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.write_json("summary.json", {"accuracy": 0.5, "name": "ü"})
    folder.write_text("config.yaml", "seed: 0\n")
    assert json.loads((folder.path / "summary.json").read_text()) == {"accuracy": 0.5, "name": "ü"}
    assert (folder.path / "config.yaml").read_text() == "seed: 0\n"


def test_a_link_that_leads_nowhere_is_a_checkpoint_that_is_damaged(tmp_path):
    folder = RunFolder.create(tmp_path, "a")
    (folder.path / "checkpoints").mkdir()
    older, newest = folder.round_checkpoint(1), folder.round_checkpoint(2)
    older.touch()
    newest.symlink_to(newest)
    assert find_checkpoints("last", tmp_path, "a") == [newest, older]
    folder.checkpoint("best").symlink_to("nowhere")
    assert newest_checkpoints(tmp_path, "a") == [folder.checkpoint("best"), newest, older]
    folder.rewind(1)
    assert folder.round_checkpoints() == [older]


def test_a_folder_in_the_place_of_a_checkpoint_is_an_error_or_left_alone(tmp_path):
    folder = RunFolder.create(tmp_path, "a")
    folder.round_checkpoint(2).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"can't delete .*round_000002.safetensors \(.*\); move it away"):
        folder.rewind(1)
    folder.keep_checkpoints(0)
    assert folder.round_checkpoint(2).is_dir()


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "metrics.csv")
    os.mkfifo(tmp_path / "summary.json")
    assert RunFolder(tmp_path).read_json("summary.json") is None
    Table(tmp_path / "metrics.csv").keep_until(1)
    assert not (tmp_path / "metrics.csv").exists()
