"""Every file under configs/ says what the paper says, makes the objects that it should, and runs on tiny models."""

import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from fedgram.cli import lightning as lightning_cli
from fedgram.models.sources import is_shape, known_shapes
from fedgram.sweep import Point, read_sweep
from tiny_glue import write_glue
from tiny_models import save_tiny
from tiny_squad import columns, write_split

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SWEEPS = sorted((CONFIGS / "sweeps").glob("*.yaml"))
EVERY = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml") if path not in SWEEPS)
README = (CONFIGS / "paper" / "README.md").read_text()

BACKBONES = {
    "roberta_large": ("FacebookAI/roberta-large", ["query", "value"], "float32"),
    "opt_125m": ("facebook/opt-125m", ["q_proj", "v_proj"], "float32"),
    "llama_3.2_3b": ("meta-llama/Llama-3.2-3B", ["q_proj", "v_proj"], "bfloat16"),
}
GLUE_TASKS = ("mrpc", "qqp", "mnli", "qnli", "wnli", "rte")
METHODS = {
    "FLoRG": "",
    "FedIT": "--method FedIT",
    "FeDeRA": "--method FeDeRA --method.when round",
    "FFALoRA": "--method FFALoRA",
    "FedSALoRA": "--method FedSALoRA",
    "FedExLoRA": "--method FedExLoRA",
}


def family_of(backbone: str) -> str:
    return next((name for name in ("roberta", "opt", "llama") if name in backbone.lower()), "bert")


# --- what the files say ---


def test_there_is_a_config_for_every_model_and_task():
    stems = {Path(name).stem for name in EVERY if name.startswith("paper/")}
    assert stems == {f"{backbone}_{task}" for backbone in BACKBONES for task in (*GLUE_TASKS, "squad")}


def papers(backbone: str, task: str) -> dict[str, Any]:
    """Return the settings of a config of the paper, its own and those that were chosen."""
    name, targets, dtype = BACKBONES[backbone]
    model = {"backbone": name, "dtype": dtype}
    data = {"max_length": 128, "batch_size": 4}
    if task == "squad":
        sections = {
            "model": {"class_path": "QuestionAnswering", "init_args": model},
            "data": {"class_path": "SQuAD", "init_args": data | {"doc_stride": 32, "partition": "IID"}},
        }
    else:
        partition = {"class_path": "Dirichlet", "init_args": {"rho": 0.5}}
        sections = {
            "model": {"class_path": "TextClassification", "init_args": model},
            "data": {"class_path": "GLUE", "init_args": data | {"task": task, "partition": partition}},
        }
    decay = {"weight_decay": 0.01, "decay_towards": "start"}
    method = {"rank": 4, "alpha": 16, "target_modules": targets, "init_std": 0.02}
    return sections | {
        "method": {"class_path": "FLoRG", "init_args": method | {"projection": "procrustes", "basis": "orthogonal"}},
        "optimizer": {"class_path": "AdamW", "init_args": {"lr": 5e-5} | decay},
        "trainer": {
            "rounds": 50,
            "clients": 20,
            "participation": 1,
            "local_epochs": 1,
            "client_weights": "uniform",
            "seed": 0,
        },
    }


@pytest.mark.parametrize("task", [*GLUE_TASKS, "squad"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_papers_values(backbone, task):
    text = (CONFIGS / "paper" / f"{backbone}_{task}.yaml").read_text()
    assert yaml.safe_load(text) == papers(backbone, task)
    assert f"configs/paper/{backbone}_{task}.yaml" in text


def test_roberta_qnli_is_the_papers_by_its_literal_path():
    expected = papers("roberta_large", "qnli")
    expected["method"]["init_args"]["solver"] = "eigh"
    assert yaml.safe_load((CONFIGS / "roberta_qnli.yaml").read_text()) == expected


@pytest.mark.parametrize("name", [name for name in EVERY if name.startswith("cost/")])
def test_costs_are_of_known_shapes_and_need_no_hub(name):
    settings = yaml.safe_load((CONFIGS / name).read_text())
    model = settings["model"]["init_args"]
    assert is_shape(model["backbone"])
    assert model["backbone"].removeprefix("shape:") in known_shapes()
    assert model["tokenizer"].startswith("package:")
    assert settings["data"]["class_path"] == "Quickstart"
    assert [settings["trainer"][key] for key in ("rounds", "clients", "local_steps")] == [1, 4, 1]
    assert settings["trainer"]["evaluate_at_start"] is False


# --- what they make ---


@pytest.fixture
def build(monkeypatch, capsys):
    """Takes arguments of ``fedgram fit`` from the repository's root as far as the objects; nothing may be said."""
    monkeypatch.chdir(ROOT)

    def build(*arguments: str) -> dict[str, Any]:
        trainer, given = lightning_cli.build(arguments)
        assert capsys.readouterr() == ("", "")
        return {**given, "trainer": trainer}

    return build


@pytest.mark.quick_cases(10)
@pytest.mark.parametrize("name", EVERY)
def test_every_config_makes_what_it_names(build, name):
    settings = yaml.safe_load((CONFIGS / name).read_text())
    made = build("--config", f"configs/{name}")
    for part, section in {"method": "method", "model": "model", "datamodule": "data", "optimizer": "optimizer"}.items():
        assert type(made[part]).__name__ == settings[section]["class_path"]
        assert_holds(made[part], settings[section]["init_args"])
    assert_holds(made["trainer"], settings["trainer"])


def assert_holds(thing: Any, settings: dict[str, Any]) -> None:
    """Assert that an object has the settings of a config, as far as they are plain values."""
    for key, value in settings.items():
        if key == "partition":
            own = value if isinstance(value, dict) else {"class_path": value, "init_args": {}}
            assert type(thing.partition).__name__ == own["class_path"]
            assert_holds(thing.partition, own["init_args"])
        elif key == "dtype":
            assert str(thing.weights_dtype) == f"torch.{value}"
        else:
            assert getattr(_place(thing, key), key) == value, key


def _place(thing: Any, key: str) -> Any:
    """Return what has a setting: of a trainer, its settings."""
    return thing if hasattr(thing, key) else thing.settings


class Cell(NamedTuple):
    """One column or row of a table of the paper.

    Attributes:
        table: its number.
        config: a config that it is made with.
        override: what the README says to add, beside the method's own.
        holds: where the objects must then have which value.
        methods: the methods that the table compares.
    """

    table: int
    config: str
    override: str = ""
    holds: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    methods: tuple[str, ...] = tuple(METHODS)


FIVE = tuple(METHODS)[:5]
OWN = ("FLoRG",)
CELLS = [
    *(Cell(1, f"{b}_{task}") for b, task in zip(BACKBONES, ("mnli", "wnli", "rte"), strict=True)),
    Cell(3, "opt_125m_mrpc", "--method.projection none", {"method.projection": "none"}, OWN),
    *(Cell(4, "roberta_large_wnli", f"--method.rank {r}", {"method.rank": r}) for r in (2, 8)),
    *(Cell(5, "roberta_large_rte", f"--data.partition.rho {p}", {"datamodule.partition.rho": p}) for p in (0.1, 1)),
    *(Cell(6, "roberta_large_qqp", f"--method.basis {b}", {"method.basis": b}, OWN) for b in ("kaiming", "svd")),
    *(Cell(7, "roberta_large_rte", f"--trainer.participation {p}", {"trainer.participation": p}) for p in (0.2, 0.5)),
    *(Cell(9, f"{backbone}_squad") for backbone in BACKBONES),
    Cell(10, "opt_125m_qqp", methods=FIVE),
    Cell(11, "roberta_large_mnli", "--method.rank 8", {"method.rank": 8}, FIVE),
    Cell(12, "roberta_large_mrpc", "--data.partition.rho 0.1", {"datamodule.partition.rho": 0.1}, FIVE),
    Cell(2, "roberta_large_qnli"),
]


def pairs() -> dict[str, tuple[Cell, str]]:
    """Return the first cell with all methods, and every other one with the first of its methods and another in turn."""
    chosen = [(CELLS[0], method) for method in METHODS]
    for number, cell in enumerate(CELLS[1:], start=1):
        chosen += [(cell, cell.methods[0]), (cell, cell.methods[number % len(cell.methods)])]
    return {f"table{cell.table} {cell.config} {cell.override} {method}": (cell, method) for cell, method in chosen}


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize(("cell", "method"), pairs().values(), ids=pairs())
def test_every_override_reaches_its_object(build, cell, method):
    overrides = f"{METHODS[method]} {cell.override}".split()
    made = build("--config", f"configs/paper/{cell.config}.yaml", *overrides)
    plain = yaml.safe_load((CONFIGS / "paper" / f"{cell.config}.yaml").read_text())
    assert type(made["method"]).__name__ == method
    expected = {"method.rank": 4, "method.alpha": 16, "trainer.clients": 20, "optimizer.lr": 5e-5}
    expected["method.target_modules"] = plain["method"]["init_args"]["target_modules"]
    expected["method.head"] = {"FFALoRA": "frozen", "FedSALoRA": "local"}.get(method, "averaged")
    if method == "FeDeRA":
        expected["method.when"] = "round"
    for path, value in (expected | cell.holds).items():
        thing, *names = path.split(".")
        found = made[thing]
        for name in names:
            found = getattr(_place(found, name), name)
        assert found == value, path


def covering(points: tuple[Point, ...]) -> list[Point]:
    """Return a few points in which every label of every axis is."""
    chosen, missing = [], {label for point in points for label in point.labels.items()}
    while missing:
        chosen.append(max(points, key=lambda point: len(missing & point.labels.items())))
        missing -= chosen[-1].labels.items()
    return chosen


@pytest.mark.quick_cases(20)
@pytest.mark.parametrize("small", [False, True], ids=["whole", "small"])
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_runs_of_a_sweep_make_what_their_names_say(build, path, small):
    if small and "small" not in yaml.safe_load(path.read_text()):
        pytest.skip("it is small as it is")
    points = read_sweep(path, small=small).points
    assert_makes_what_it_says(points[-1], build)


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_runs_of_every_label_of_a_sweep_make_what_their_names_say(build, path):
    for point in covering(read_sweep(path).points):  # what makes a sweep small is the same for all its points
        assert_makes_what_it_says(point, build)


def assert_makes_what_it_says(point: Point, build: Any) -> None:
    """Assert that the settings of a run make what its labels name."""
    made = build(*point.settings)
    assert made["method"].name == point.labels.get("method", "FLoRG")
    assert made["datamodule"].name == point.labels.get("task", made["datamodule"].name)
    assert made["trainer"].seed == int(point.labels.get("trainer.seed", 0))
    for key, found in {
        "method.rank": made["method"].rank,
        "data.partition.rho": getattr(made["datamodule"].partition, "rho", None),
        "trainer.participation": made["trainer"].settings.participation,
    }.items():
        assert found is None or float(point.labels.get(key, found)) == found


def test_the_readme_names_every_override():
    for words in [*METHODS.values(), *(cell.override for cell in CELLS)]:
        assert not words or f"`{words}`" in README, words
    for number in range(1, 13):
        assert re.search(rf"^\| Table .*\b{number}\b", README, re.MULTILINE), number


COMMANDS = re.findall(r"^    fedgram fit (.*)", README, re.MULTILINE)
CHOICES = [words for row in re.findall(r"^\| .*\| ([^|]*) \|$", README, re.MULTILINE) for words in row.split("`")[1::2]]


def test_the_readme_has_a_command_for_every_table():
    assert re.findall(r"# Table (\d+)$", README, re.MULTILINE) == [str(number) for number in range(1, 13)]


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme(build, command):
    build(*shlex.split(command, comments=True))


@pytest.mark.quick_cases(9)
@pytest.mark.parametrize("override", sorted({words for words in CHOICES if words.startswith("--")}))
def test_what_the_readme_says_changes_a_choice(build, override):
    task = "squad" if "doc_stride" in override else "rte"
    needed = {"--method.residual": "FedExLoRA", "--method.when": "FeDeRA"}.get(override.split()[0], "FLoRG")
    build("--config", f"configs/paper/roberta_large_{task}.yaml", "--method", needed, *shlex.split(override))


# --- what they do ---


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A folder with models by family, and tiny data by task."""
    folder = tmp_path_factory.mktemp("tiny")
    for family in ("roberta", "opt", "llama", "bert"):
        save_tiny(family, folder / family)
    for task in (*GLUE_TASKS, "sst2"):
        write_glue(folder / task, task)
    for seed, (split, count) in enumerate({"train": 12, "validation": 6}.items()):
        write_split(folder / "squad" / f"{split}.parquet", columns(count, seed, longest=8))
    return folder


@pytest.fixture
def run(tiny, tiny_data, tmp_path, fedgram):
    """Runs a config for one round, on tiny models and data; returns the summary."""

    def run(name: str, *overrides: str) -> dict[str, Any]:
        settings = yaml.safe_load((CONFIGS / name).read_text())
        kind, arguments = settings["data"]["class_path"], settings["data"]["init_args"]
        path = {"SQuAD": tiny / "squad", "Quickstart": tiny_data}.get(kind, tiny / arguments.get("task", ""))
        changes = {
            "model.backbone": tiny / family_of(settings["model"]["init_args"]["backbone"]),
            **({"model.pretrained": "true", "model.tokenizer": "null"} if name.startswith("cost/") else {}),
            **({"data": "TextClassificationData"} if kind == "Quickstart" else {}),  # which has no path of its own
            "data.path": path,
            "data.cache_dir": tiny / "cache",
            "trainer.rounds": 1,
            "trainer.clients": 3,
            "trainer.accelerator": "cpu",
            "trainer.loggers": "false",
            "trainer.progress_bar": "false",
        }
        flat = [f"--{key}={value}" for key, value in changes.items()]
        code, _, err = fedgram("fit", "--config", CONFIGS / name, *flat, *overrides)
        assert code == 0, err
        (path,) = Path("runs").glob("*/version_0/summary.json")
        summary = json.loads(path.read_text())
        assert summary["rounds"] == 1
        assert 0 <= next(value for key, value in summary["final"].items() if key != "loss") <= 1
        return summary

    return run


OF_THE_PAPER = ("roberta_large_squad", "llama_3.2_3b_mnli", "opt_125m_qqp")
"""Every backbone and every task runs in one of these or in a cell below; all files were made into objects above."""
RUNNING = [*(name for name in EVERY if not name.startswith("paper/")), *(f"paper/{n}.yaml" for n in OF_THE_PAPER)]


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("name", RUNNING)
def test_every_kind_of_config_runs(run, name):
    assert run(name)["settings"]["method"] == "FLoRG"


RUNS = [
    *((1, f"roberta_large_{task}", own) for task, own in zip(GLUE_TASKS, list(METHODS.values())[1:], strict=False)),
    (1, "llama_3.2_3b_qnli", METHODS["FedExLoRA"]),
    (1, "llama_3.2_3b_rte", "--method FeDeRA"),
    (3, "opt_125m_mrpc", "--method.projection none"),
    (4, "roberta_large_wnli", "--method FFALoRA --method.head averaged --method.rank 8"),
    (5, "roberta_large_rte", "--method FedSALoRA --data.partition.rho 0.1"),
    (6, "roberta_large_qqp", "--method.basis kaiming"),
    (6, "opt_125m_mnli", "--method.basis svd"),
    (7, "roberta_large_wnli", "--method FedIT --trainer.participation 0.2"),
    (9, "opt_125m_squad", METHODS["FedSALoRA"]),
    (9, "llama_3.2_3b_squad", METHODS["FeDeRA"]),
]


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize(("table", "config", "overrides"), RUNS, ids=[f"table{r[0]} {r[1]} {r[2]}" for r in RUNS])
def test_a_cell_of_every_kind_runs(run, table, config, overrides):
    words = overrides.split()
    summary = run(f"paper/{config}.yaml", *words)
    assert summary["settings"]["method"] == (words[1] if words[0] == "--method" else "FLoRG")
