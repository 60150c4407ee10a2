"""Relative paths in configs: of the working directory, then of the config's folder; saved ones are absolute."""

import shutil
from pathlib import Path

import pytest
import yaml

from fedgram.callbacks import Callback
from fedgram.cli.lightning import build
from fedgram.relative_paths import absolute, reading, settle
from fedgram.sweep import read_sweep


class Noting(Callback):
    """A user's callback that reads a file."""

    def __init__(self, notes_path: str, extra_files: list[str] | None = None, label: str = "x"):
        self.notes_path, self.extra_files, self.label = notes_path, extra_files, label


@pytest.fixture
def folder(config, tiny_backbone, tiny_data, tmp_path):
    """A folder that holds a config, its data and its backbone, with paths relative to it."""
    place = tmp_path / "elsewhere"
    (place / "models").mkdir(parents=True)
    shutil.copytree(tiny_data, place / "sentences")
    shutil.copytree(tiny_backbone, place / "models" / "tiny")
    (place / "notes.txt").write_text("notes")
    content = yaml.safe_load(config.read_text())
    content["data"]["init_args"]["path"] = "sentences"
    content["model"]["init_args"]["backbone"] = "models/tiny"
    (place / "own.yaml").write_text(yaml.safe_dump(content))
    return place


def of_run(name):
    return yaml.safe_load(Path("runs", name, "version_0", "config.yaml").read_text())


def test_a_run_from_another_folder_is_repeated_from_a_third_by_its_saved_config(fedgram, folder, tmp_path, monkeypatch):
    code, _, err = fedgram("fit", "--config", folder / "own.yaml", "--trainer.name", "first")
    assert code == 0, err
    saved = Path("runs/first/version_0/config.yaml").absolute()
    told = of_run("first")
    assert told["data"]["init_args"]["path"] == str(folder / "sentences")
    assert told["model"]["init_args"]["backbone"] == str(folder / "models/tiny")
    assert told["trainer"]["default_root_dir"] == "runs"
    (tmp_path / "third").mkdir()
    monkeypatch.chdir(tmp_path / "third")
    code, _, err = fedgram("fit", "--config", saved, "--trainer.name", "again")
    assert code == 0, err
    assert {**of_run("again"), "trainer": None} == {**told, "trainer": None}
    (one, two) = (
        yaml.safe_load((root / "summary.json").read_text()) for root in (saved.parent, Path("runs/again/version_0"))
    )
    assert one["state_hash"] == two["state_hash"]


def test_what_was_typed_is_saved_as_it_was_found(fedgram, config, folder, monkeypatch):
    monkeypatch.chdir(folder)
    code, _, err = fedgram("fit", "--config", config, "--data.path", "sentences", "--data.label=label")
    assert code == 0, err
    (saved,) = Path("runs").glob("*/version_0/config.yaml")
    told = yaml.safe_load(saved.read_text())["data"]["init_args"]
    assert (told["path"], told["label"]) == (str(folder / "sentences"), "label")


def path_of(options):
    return build([str(option) for option in options]).arguments["datamodule"].path


def test_the_working_directory_comes_before_the_configs_folder(folder, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    given = ["--config", folder / "own.yaml"]
    assert path_of(given) == str(folder / "sentences")
    shutil.copytree(folder / "sentences", "sentences")
    assert path_of(given) == "sentences"
    assert path_of([*given, "--data.path", "typed.csv"]) == "typed.csv"


def test_what_is_typed_is_not_looked_for_beside_the_config(folder, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert path_of(["--config", folder / "own.yaml", "--data.path", "notes.txt"]) == "notes.txt"


def test_a_file_of_a_section_has_a_folder_of_its_own(folder, tmp_path, monkeypatch):
    (folder / "parts").mkdir()
    (folder / "parts" / "rows.csv").write_text("text,label\na,0\nb,1\n")
    content = yaml.safe_load((folder / "own.yaml").read_text())
    part = {"class_path": "TextClassificationData", "init_args": {"path": "rows.csv"}}
    (folder / "parts" / "data.yaml").write_text(yaml.safe_dump(part))
    (folder / "own.yaml").write_text(yaml.safe_dump({**content, "data": "parts/data.yaml"}))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert path_of(["--config", folder / "own.yaml"]) == str(folder / "parts" / "rows.csv")


def test_paths_of_a_users_callback_are_paths_too(folder, tmp_path, monkeypatch):
    content = yaml.safe_load((folder / "own.yaml").read_text())
    own = {"notes_path": "notes.txt", "extra_files": ["models/tiny", "neither"], "label": "notes.txt"}
    content["trainer"]["callbacks"] = [{"class_path": "test_relative_paths.Noting", "init_args": own}]
    (folder / "own.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    built = build(["--config", str(folder / "own.yaml")])
    (callback,) = [each for each in built.trainer.callbacks if isinstance(each, Noting)]
    assert callback.notes_path == str(folder / "notes.txt")
    assert callback.extra_files == [str(folder / "models/tiny"), "neither"]
    assert callback.label == "notes.txt"  # no path by its name


def test_a_sweeps_paths_are_found_beside_it(folder, tmp_path, monkeypatch):
    content = {"base": "own.yaml", "set": {"data.path": "{kind}"}, "grid": {"kind": ["sentences", "nowhere"]}}
    (folder / "grid.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    found = [point.overrides["data.path"] for point in read_sweep(folder / "grid.yaml").points]
    assert found == [str(folder / "sentences"), "nowhere"]
    typed = read_sweep(folder / "grid.yaml", further={"data.path": "{kind}"})
    assert [point.overrides["data.path"] for point in typed.points] == ["sentences", "nowhere"]


@pytest.mark.parametrize(
    "key", ["path", "validation_path", "data.init_args.test_path", "file", "word_files", "cache_dir"]
)
def test_settings_are_paths_by_their_names(key, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "x").write_text("")
    monkeypatch.chdir(tmp_path)
    with reading(Path("here/config.yaml")):
        assert settle({key: "x"}) == {key: str(tmp_path / "here" / "x")}
        assert settle({key: "../here/x", "text": "x"}) == {key: str(tmp_path / "here" / "x"), "text": "x"}
        for left in ("", "~/x", str(tmp_path / "y"), "y", "\0", "x" * 5000, None, 3, {"a": "x"}):
            assert settle({key: left}) == {key: left}
    assert settle({key: "x"}) == {key: "x"}
    assert absolute({key: "here/x"}) == {key: str(tmp_path / "here" / "x")}
    assert absolute({key: "x"}) == {key: "x"}


@pytest.mark.parametrize(
    "key", ["default_root_dir", "ckpt_path", "label", "output", "pathology", "save_dir", "x.log_file"]
)
def test_words_and_places_to_write_to_are_left_as_they_are(key, tmp_path, monkeypatch):
    (tmp_path / "last").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute({key: "last"}) == {key: "last"}


def test_a_link_keeps_its_name(tmp_path, monkeypatch):
    (tmp_path / "v3.csv").write_text("")
    (tmp_path / "data.csv").symlink_to("v3.csv")
    monkeypatch.chdir(tmp_path)
    assert absolute({"path": "data.csv"}) == {"path": str(tmp_path / "data.csv")}
    assert absolute({"path": "."}) == {"path": str(tmp_path)}
