import re
from pathlib import Path

import pytest
import yaml

from fedgram import FLoRG
from fedgram.cost import every_method
from fedgram.errors import ConfigurationError
from fedgram.sweep import read_sweep

ROOT = Path(__file__).parents[2]
METHODS = every_method(FLoRG(rank=1))
SHIPPED = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


def write(folder: Path, content: object) -> Path:
    for name in ("base", "other", "a_x", "b_x"):
        (folder / f"{name}.yaml").write_text("trainer: {rounds: 1}\n")
    path = folder / "sweep.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def read(folder, content, **options):
    return read_sweep(write(folder, content), **options)


def test_every_combination_is_a_run_and_seeds_change_fastest(tmp_path):
    grid = {
        "trainer.seed": [0, 1],
        "method": {"FLoRG": {}, "FedIT": {"method": "FedIT"}},
        "data.task": ["rte", "mrpc"],
        "method.rank": [2, 4],
    }
    sweep = read(tmp_path, {"base": "base.yaml", "grid": grid})
    assert sweep.name == "sweep"
    assert len(sweep.points) == 16
    assert [point.name for point in sweep.points[:3]] == [
        "FLoRG-rte-rank=2-seed=0",
        "FLoRG-rte-rank=2-seed=1",
        "FLoRG-rte-rank=4-seed=0",
    ]
    assert len({point.name for point in sweep.points}) == 16


def test_a_class_stands_before_its_options_and_later_settings_win(tmp_path):
    content = {
        "base": "base.yaml",
        "set": {"method.rank": 8, "trainer.rounds": 3, "optimizer.lr": 0.1},
        "grid": {"method": {"FedIT": {"method": "FedIT", "optimizer.lr": 0.2}}, "trainer.seed": [7]},
        "where": [{"if": {"method": "FedIT", "trainer.seed": 7}, "set": {"optimizer.lr": 0.3}}],
    }
    (point,) = read(tmp_path, content, further={"trainer.rounds": "5"}).points
    assert dict(point.overrides) == {
        "method": "FedIT", "method.rank": 8, "trainer.rounds": "5", "optimizer.lr": 0.3, "trainer.seed": 7
    }  # fmt: skip
    assert next(iter(point.overrides)) == "method"
    assert point.settings[:2] == ["--config", str(tmp_path / "base.yaml")]
    assert "--optimizer.lr=0.3" in point.settings


def test_a_rule_is_for_the_points_that_it_names_alone(tmp_path):
    content = {
        "base": "base.yaml",
        "grid": {"method": {"A": {}, "B": {}}, "data.task": ["rte", "mrpc"]},
        "where": [{"if": {"method": "B", "data.task": "rte"}, "set": {"optimizer.lr": 1.0}}],
    }
    points = read(tmp_path, content).points
    assert [point.name for point in points if "optimizer.lr" in point.overrides] == ["B-rte"]


def test_labels_fill_the_base_and_texts(tmp_path):
    content = {"base": "{model}_{task}.yaml", "grid": {"model": ["a", "b"], "task": ["x"]}}
    points = read(tmp_path, content, further={"data.path": "glue/{task}"}).points
    assert [point.base.name for point in points] == ["a_x.yaml", "b_x.yaml"]
    assert [point.overrides for point in points] == [{"data.path": "glue/x"}] * 2  # what fills a text sets nothing
    assert [point.name for point in points] == ["a", "b"]
    with pytest.raises(ConfigurationError, match=r"'glue/\{tusk\}': there is no axis 'tusk'; there are model, task"):
        read(tmp_path, content, further={"data.path": "glue/{tusk}"})


def test_a_list_of_grids_is_their_union(tmp_path):
    content = {
        "base": "base.yaml",
        "grid": [{"data.partition.rho": [0.1, 1], "trainer.seed": [0]}, {"method.rank": [2, 8], "trainer.seed": [0]}],
    }
    assert [p.name for p in read(tmp_path, content).points] == [
        "rho=0.1-seed=0", "rho=1-seed=0", "rank=2-seed=0", "rank=8-seed=0"
    ]  # fmt: skip


def test_grids_of_one_place_each_are_told_apart_by_it(tmp_path):
    grid = [{"data.partition.rho": [0.1]}, {"data.partition.rho": [1]}, {"a.x": [True, False]}, {"a.y": [True, False]}]
    assert [p.name for p in read(tmp_path, {"base": "base.yaml", "grid": grid}).points] == [
        "rho=0.1", "rho=1", "x=true", "x=false", "y=true", "y=false"
    ]  # fmt: skip


def test_a_run_of_two_grids_is_one_and_two_runs_of_one_name_are_refused(tmp_path):
    both = {"a.x": {"one": {"a.x": 1}, "two": {"a.x": 2}}}
    assert len(read(tmp_path, {"base": "base.yaml", "grid": [both, both]}).points) == 2
    other = {"a.x": {"one": {"a.x": 1}, "two": {"a.x": 3}}}
    with pytest.raises(ConfigurationError, match=r"two runs would be called 'two': .* name their labels apart"):
        read(tmp_path, {"base": "base.yaml", "grid": [both, other]})
    with pytest.raises(ConfigurationError, match="two runs would be called 'a_b'"):
        read(tmp_path, {"base": "base.yaml", "grid": {"x.a": ["a/b", "a b"]}})


def test_values_that_are_no_words_reach_the_command_line_as_json(tmp_path):
    grid = {"method.target_modules": [["query", "key"]], "trainer.participation": [0.5], "ckpt_path": {"none": {}}}
    (point,) = read(tmp_path, {"base": "base.yaml", "set": {"trainer.loggers": False}, "grid": grid}).points
    assert '--method.target_modules=["query", "key"]' in point.settings
    assert "--trainer.loggers=false" in point.settings


def test_small_changes_what_it_names(tmp_path):
    content = {
        "base": "{model}_x.yaml",
        "set": {"trainer.rounds": 50, "trainer.clients": 20},
        "grid": {"model": ["a", "b"], "data.task": ["mnli", "rte"]},
        "where": [{"if": {"data.task": "mnli"}, "set": {"optimizer.lr": 1.0}}],
        "small": {"base": "base.yaml", "set": {"trainer.rounds": 2}, "grid": {"model": None, "data.task": ["rte"]},
                  "where": []},
    }  # fmt: skip
    sweep = read(tmp_path, content, small=True)
    assert sweep.name == "sweep_small"
    (point,) = sweep.points
    assert dict(point.overrides) == {"trainer.rounds": 2, "trainer.clients": 20, "data.task": "rte"}
    assert point.base.name == "base.yaml"
    assert len(read(tmp_path, content).points) == 4


def test_only_keeps_the_points_that_are_asked_for(tmp_path):
    sweep = read(tmp_path, {"base": "base.yaml", "grid": {"data.task": ["rte", "mrpc"], "trainer.seed": [0, 1, 2]}})
    kept = sweep.only({"data.task": ["rte"], "trainer.seed": ["0", "2"]})
    assert [point.name for point in kept.points] == ["rte-seed=0", "rte-seed=2"]
    with pytest.raises(ConfigurationError, match=r"no run has data.task = qnli; there is rte, mrpc"):
        sweep.only({"data.task": ["qnli"]})
    with pytest.raises(ConfigurationError, match=r"no run has task = rte; the axes are data.task, trainer.seed"):
        sweep.only({"task": ["rte"]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("base: [", "is no valid YAML"),
        ({"grid": {}}, "there is no base"),
        ({"base": "base.yaml", "grids": {}}, r"found \['grids'\]"),
        ({"base": "nowhere.yaml"}, "there is no base config"),
        ({"base": "base.yaml", "set": [1]}, "set: expected settings by name"),
        ({"base": "base.yaml", "grid": {"trainer.seed": 3}}, "grid.trainer.seed: expected a list of values"),
        ({"base": "base.yaml", "grid": {"trainer.seed": []}}, "grid.trainer.seed: expected a list of values"),
        ({"base": "base.yaml", "where": [{"if": {}}]}, "where: expected"),
        (
            {"base": "base.yaml", "grid": {"method": {"A": {}}}, "where": [{"if": {"method": "B"}, "set": {}}]},
            "no run has method = B; the axis method has A",
        ),
        ({"base": "base.yaml", "grid": {"a": {"x": 1}}}, "grid.a.x: expected settings by name"),
    ],
)
def test_what_is_no_sweep_is_refused_with_what_would_be(tmp_path, content, message):
    with pytest.raises(ConfigurationError, match=message):
        read(tmp_path, content)
    for without in ({"base": "base.yaml"}, {"base": "base.yaml", "small": None}):
        with pytest.raises(ConfigurationError, match="no part `small`"):
            read(tmp_path, without, small=True)


def test_a_sweep_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nowhere.yaml: can't be read"):
        read_sweep(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_sweep_that_is_shipped_can_be_read_and_names_its_runs_apart(path):
    content = yaml.safe_load(path.read_text())
    for small in (False, True) if "small" in content else (False,):
        points = read_sweep(path, small=small).points
        assert len({point.name for point in points}) == len(points)
        assert all(re.fullmatch(r"[\w.=+,-]+", point.name) for point in points)
        assert all(any(method in point.name for method in METHODS) for point in points)


def test_there_is_a_sweep_for_every_table_and_figure_of_the_paper():
    names = {f"paper_table{number}" for number in range(1, 13)} | {"paper_figure2"}
    assert names <= {path.stem for path in SHIPPED}
    assert all("small" in yaml.safe_load((ROOT / "configs" / "sweeps" / f"{name}.yaml").read_text()) for name in names)
