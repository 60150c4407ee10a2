"""YAML in docstrings and documents can be copied as it stands: sweeps are read, and no key is left without a value."""

import ast
import re
import textwrap
from pathlib import Path

import pytest
import yaml

from fedgram.packaged import configs
from fedgram.sweep import read_sweep

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
DOCUMENTS += sorted((ROOT / "configs").rglob("*.md"))
SOURCES = sorted((ROOT / "src").rglob("*.py"))

BLOCK = re.compile(r"(?<=\n\n)(?: {4}.*\n|\n)* {4}.*\n?")  # literal; arguments of a docstring follow a line of text
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(`{1,2})([^`]+)\1")
SETTING = re.compile(r"[a-z_]\w*(\.\w+)*:(\s|$)")


def docstrings(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield text


def settings_in(text, is_markdown):
    """The parts of a text that are YAML with settings: fenced, indented as literal blocks, or in a line."""
    found = []
    if is_markdown:
        found += [content for _, language, content in FENCE.findall(text) if language in ("yaml", "yml")]
        text = FENCE.sub("", text)
    found += [block for block in map(textwrap.dedent, BLOCK.findall(text)) if SETTING.match(block)]
    spans = [span.replace("\n", " ") for _, span in SPAN.findall(BLOCK.sub("", text))]
    return found + [span for span in spans if SETTING.match(span) and re.search(r": *[\[{]", span)]


def empty_keys(content, place=""):
    """The keys in some YAML that have no value: what came of indentation that was lost."""
    if isinstance(content, dict):
        pairs = content.items()
    elif isinstance(content, list):
        pairs = enumerate(content)
    else:
        return []
    nothing = [f"{place}{key}" for key, value in pairs if value is None]
    return nothing + [name for key, value in pairs for name in empty_keys(value, f"{place}{key}.")]


def written():
    for path in DOCUMENTS:
        yield from ((path, text) for text in settings_in(path.read_text(encoding="utf-8"), is_markdown=True))
    for path in SOURCES:
        for docstring in docstrings(path):
            yield from ((path, text) for text in settings_in(docstring, is_markdown=False))


def sweep_of_the_docstring():
    path = next(path for path in SOURCES if path.match("sweep/plan.py"))
    (text,) = settings_in(next(docstrings(path)), is_markdown=False)
    return text


WRITTEN = [pytest.param(text, id=f"{path.name}:{text.splitlines()[0][:40]}") for path, text in written()]


def test_there_is_something_to_check():
    names = {param.id.partition(":")[0] for param in WRITTEN}
    assert {"README.md", "plan.py", "early_stopping.py"} <= names


@pytest.mark.parametrize("text", WRITTEN)
def test_it_parses_and_no_key_is_empty(text):
    content = yaml.safe_load(text)
    assert isinstance(content, dict)
    assert empty_keys(content) == []


@pytest.mark.parametrize("text", [param for param in WRITTEN if re.search(r"^grid:", param.values[0], re.MULTILINE)])
def test_a_sweep_is_read(text, tmp_path):
    read_sweep(write(text, tmp_path))


def test_lost_indentation_is_noticed():
    assert empty_keys(yaml.safe_load("grid:\nmethod:\nFLoRG: {}\n")) == ["grid", "method"]


def write(text, tmp_path):
    """A sweep's file in a folder below the configs that come with fedgram."""
    for name, path in configs().items():
        (tmp_path / f"{name}.yaml").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    path = tmp_path / "sweeps" / "documented.yaml"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    return path


def test_the_sweep_of_the_docstring_does_what_its_comments_say(tmp_path):
    path = write(sweep_of_the_docstring(), tmp_path)
    sweep, small = read_sweep(path), read_sweep(path, small=True)
    assert (len(sweep.points), len(small.points)) == (3 * 2 * 3, 3 * 2 * 3)
    assert {point.base.name for point in sweep.points} == {"minilm_glue.yaml"}
    assert {point.base.name for point in small.points} == {"quickstart.yaml"}
    assert all(point.overrides["trainer.rounds"] == 8 for point in sweep.points)
    slower = [point.labels for point in sweep.points if point.overrides.get("optimizer.lr") == 0.005]
    assert [(labels["method"], labels["data.task"]) for labels in slower] == [("FedIT", "rte")] * 3
