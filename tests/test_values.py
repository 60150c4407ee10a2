"""Values that options can't take: one sentence with the key, what was expected, and what came."""

from pathlib import Path

import pytest
import yaml

from fedgram.cli.lightning import build
from fedgram.errors import FedgramError

OWN = """
from fedgram.callbacks import Callback
from fedgram.data import Partition
from fedgram.methods import FedIT

class Mine(FedIT):
    def __init__(self, *, width: int = 3, share: float = 0.5, note: str | None = None, **common) -> None:
        super().__init__(**common)

class Halves(Partition):
    def __init__(self, parts: int = 2, names: list[str] | None = None, **common) -> None: ...

class Quiet(Callback):
    def __init__(self, depth: int = 1) -> None: ...

def number() -> int: return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The module of a user's own classes, and one that can't be imported."""
    (tmp_path / "own_values.py").write_text(OWN)
    (tmp_path / "broken_values.py").write_text("import no_such_package\n")
    (tmp_path / "wrong_values.py").write_text("def (\n")
    monkeypatch.syspath_prepend(tmp_path)


def sentence(config: Path, *options: str) -> str:
    """Return what is said of options."""
    with pytest.raises(FedgramError) as caught:
        build(["--config", str(config), *options])
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    for jargon in ("Namespace", "Union", "Subtypes", "NestedArg", "Parser key", "<class"):
        assert jargon not in message
    return message


SLIPS = [
    ("--method.target_modules query", "method.target_modules: expected a list of texts, or null, got 'query'; write"),
    ("--model.metrics accuracy", "model.metrics: expected a list of texts, or null, got 'accuracy'; write [accuracy]"),
    ("--data.partition os.system", "data.partition: 'os.system' is no Partition; "),
    ("--data.partition os", "data.partition: there is no class 'os' of the kind Partition; "),
    ("--data.partition IDD", "data.partition: there is no class 'IDD' of the kind Partition; did you mean IID?"),
    ("--data.partition FLoRG", "data.partition: there is no class 'FLoRG' of the kind Partition"),
    ("--method fedgram.data.GLUE", "method: 'fedgram.data.GLUE' is no Method"),
    ("--method Method", "method: 'Method' is an abstract Method, without adapter, aggregate"),
    ("--method broken_values.Mine", "'broken_values.Mine': No module named 'no_such_package'"),
    ("--method wrong_values.Mine", "the module of 'wrong_values.Mine' can't be imported: SyntaxError: invalid syntax"),
    ("--method own_values.Nine", "method: there is no class 'own_values.Nine'"),
    ("--method own_values.number", "method: 'own_values.number' is no Method"),
    ("--method own_values.Mine --method.widht 3", "method has no option 'widht'; did you mean width?"),
    ("--method own_values.Mine --method.width x", "method.width: expected a whole number, got 'x'"),
    ("--method own_values.Mine --method.width null", "method.width: expected a whole number, got null"),
    ("--data.partition own_values.Halves --data.partition.part 3", "data.partition has no option 'part'; did you mean"),
    ("--data.partition own_values.Halves --data.partition.names a", "data.partition.names: expected a list of texts"),
    ("--data.partition own_values.Halves --data.partition.rho 3", "this data.partition has no option 'rho', Dirichlet"),
    ("--trainer.callbacks own_values.Quiet", "trainer.callbacks: expected a list of Callbacks, or null, got"),
    ("--trainer.callbacks [own_values.Mine]", "trainer.callbacks: 'own_values.Mine' is no Callback"),
    ("--trainer.callbacks=[{class_path:\xa0own_values.Quiet}]", "trainer.callbacks"),
    ("--trainer.loggers x", "trainer.loggers: there is no class 'x' of the kind Logger"),
    (
        "--trainer.loggers lightning.pytorch.loggers.WandbLogger",
        "trainer.loggers: lightning.pytorch.loggers.WandbLogge",
    ),
    ("--trainer.loggers [lightning.pytorch.loggers.CometLogger]", "a package is missing: "),
    ("--trainer.participation [1]", "trainer.participation: expected a number, got '[1]'"),
    ("--trainer.seed.x 3", "trainer.seed: expected a whole number, got '3'; it has no options of its own, such as x"),
    ("--trainer.clients_per_block 1.5", "trainer.clients_per_block: expected a whole number, or auto, got '1.5'"),
    ("--trainer.packing maybe", "trainer.packing: expected true or false, got 'maybe'"),
    ("--optimizer.betas [1,b]", "optimizer.betas: expected a list of 2 numbers, got '[1,b]'"),
    ("--method.client_ranks x", "method.client_ranks: expected a list of whole numbers, or a mapping of whole numbers"),
    ("--trainer 3", "trainer: expected settings by name, such as {rounds: 10}, or a file of them, got 3"),
    (
        "--optimizer null",
        "optimizer: expected a ClientOptimizer (known are AdamW, ",
    ),
    ("--method=null", "fedgram fit needs a method, a model and data, and has no method: give them in a --config FILE"),
    ("--method=[FLoRG]", "method: expected a Method, got '[FLoRG]'"),
    ("--method={class_path:\xa0FLoRG}", "method"),
    (f"--trainer.rounds {'9' * 4096}", "trainer.rounds: expected a whole number of at most"),
    ("--trainer.seed 9223372036854775808", "trainer.seed: expected a whole number of at most 9223372036854775807"),
    ("--method.alpha .nan", "method.alpha: expected a number, got nan"),
    ("--optimizer.betas [.nan,0.9]", "optimizer.betas: expected a list of 2 numbers, got nan"),
    (f"--trainer.rounds {'9' * 5000}", "trainer.rounds: expected a text of at most 4096 characters, got 5000"),
    (f"--trainer.devices {'[' * 80}", "trainer.devices: is nested more than 50 levels deep"),
    (f"--trainer.name {'n' * 5000}", "trainer.name: expected a text of at most 4096 characters, got 5000"),
    ("--trainer.name a\0b", "trainer.name: expected a text without NUL characters"),
    ("--data.path a\0b", "data.path: expected a text without NUL characters"),
    ("--method /etc/passwd", "/etc/passwd: expected settings by name"),
    ("--trainer /etc/passwd", "/etc/passwd: expected settings by name"),
    ("--config /dev/null", "config: Path is not a file: '/dev/null'"),
]


@pytest.mark.parametrize(("options", "said"), SLIPS, ids=[options[:60] for options, _ in SLIPS])
def test_a_slip_of_the_keyboard_is_one_sentence(config, own, options, said):
    assert said in sentence(config, *options.split(" "))


@pytest.mark.parametrize(
    ("section", "settings", "said"),
    [
        ("method", {"class_path": "FLoRG", "rank": 3}, "the options of 'FLoRG' below init_args, got rank beside it"),
        (
            "method",
            {"class_path": "FLoRG", "init_args": None},
            "method: expected options by name in init_args, got null",
        ),
        ("method", {"class_path": "FLoRG", "init_args": [1]}, "expected options by name in init_args, got [1]"),
        ("method", {"class_path": None}, "method: expected the name of a Method, got null"),
        ("method", {"class_path": "FLoRG", "init_args": {"rank": None}}, "method.rank: expected a whole number, got"),
        ("method", {"class_path": "FLoRG", "init_args": {"rnk": 3}}, "method has no option 'rnk'; did you mean rank?"),
        ("method", {"class_path": "own_values.Mine", "init_args": {"wide": 1}}, "method has no option 'wide'"),
        ("method", {"class_path": "own_values.Mine", "init_args": {"share": None}}, "method.share: expected a number"),
        ("method", ["FLoRG"], "method: expected a Method, got ['FLoRG']"),
        ("method", 3, "method: expected a Method, got 3"),
        ("trainer", None, "trainer: expected settings by name"),
        ("trainer", {"rounds": {"a": 1}}, "trainer.rounds: expected a whole number, got {'a': 1}"),
        ("trainer", {"roundz": 1}, "there is no option 'trainer.roundz'; did you mean trainer.rounds?"),
        ("trainer", {"callbacks": [None]}, "trainer.callbacks: expected a list of Callbacks, or null, got [None]"),
        ("trainer", {"callbacks": [{"class_path": "own_values.Quiet", "init_args": {"deep": 1}}]}, "no option 'deep'"),
        ("trainer", {"loggers": {"class_path": "lightning.pytorch.loggers.WandbLogger"}}, "a package is missing"),
        ("optimizer", None, "optimizer: expected a ClientOptimizer"),
        ("optimizer", {"class_path": "AdamW", "init_args": {"betas": [None, 1]}}, "optimizer.betas: expected a list"),
        ("trainre", {"rounds": 1}, "there is no option 'trainre'; did you mean trainer?"),
    ],
)
def test_a_slip_in_a_config_is_one_sentence_that_names_the_file(config, own, section, settings, said):
    content = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(content | {section: settings}))
    message = sentence(config)
    assert said in message
    assert str(config) in message or "package" in said  # which is seen when all files were read


def test_a_blank_section_that_is_needed_is_missing(config):
    content = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(content | {"data": None}))
    assert "fedgram fit needs a method, a model and data, and has no data" in sentence(config)


def test_own_classes_are_made_as_they_were(config, own):
    options = ["--method=own_values.Mine", "--method.width=4", "--data.partition=own_values.Halves"]
    built = build(["--config", str(config), *options, "--trainer.callbacks=[own_values.Quiet]"])
    assert type(built.arguments["method"]).__name__ == "Mine"
    assert [type(callback).__name__ for callback in built.trainer.callbacks][1] == "Quiet"  # behind SaveConfig


def test_a_repeated_section_is_refused_with_both_lines(config):
    with config.open("a") as file:
        file.write("trainer: {rounds: 3}\n")
    lines = config.read_text().splitlines()
    first, second = (number for number, line in enumerate(lines, 1) if line.startswith("trainer:"))
    assert f"the key trainer stands in line {first} and in line {second}" in sentence(config)


@pytest.mark.parametrize("name", ["x-common", "x-"])
def test_anchors_may_stand_in_a_section_of_their_own(config, name):
    text = config.read_text().replace("trainer:", "trainer:\n  <<: *common")
    config.write_text(f"{name}: &common {{seed: 8}}\n{text}")
    assert build(["--config", str(config)]).trainer.seed == 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fitt"], "there is no command 'fitt'; did you mean fit? See fedgram --help"),
        (["zzz"], "there is no command 'zzz'; there are init, fit, prepare,"),
        (
            ["fit"],
            "fedgram fit needs a method, a model and data, and has no data and no method and no model: give them",
        ),
        (["cost"], "fedgram cost needs a method, a model and data"),
    ],
)
def test_a_command_alone_or_misspelt_says_what_to_type(fedgram, arguments, said):
    code, out, err = fedgram(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
