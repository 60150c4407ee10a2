"""What the list of methods shows is read from the sources, without torch, and is what the classes say."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import fedgram.methods
from fedgram import method_facts
from fedgram.method_facts import MethodFacts, read_methods
from fedgram.methods import Method
from fedgram.methods.known import known_methods

ROOT = Path(__file__).parents[1]


def test_the_sources_are_read_as_python_reads_them():
    names = [field.name for field in fields(MethodFacts)][1:]
    classes = [MethodFacts(kind.__name__, **{name: getattr(kind, name) for name in names}) for kind in known_methods()]
    assert read_methods() == classes


def everything_below(kind):
    for further in kind.__subclasses__():
        yield further
        yield from everything_below(further)


def test_every_method_is_exported():
    for module in pkgutil.iter_modules(fedgram.methods.__path__):
        importlib.import_module(f"fedgram.methods.{module.name}")
    own = {k for k in everything_below(Method) if k.__module__.startswith("fedgram.") and not inspect.isabstract(k)}
    for kind in own:
        name, module = kind.__name__, kind.__module__
        line = f"from {module} import {name}"
        assert kind in known_methods(), f"{name} is in no list: add `{line}` to src/fedgram/methods/__init__.py"
        assert name in fedgram.methods.__all__, f"add {name} to __all__ of src/fedgram/methods/__init__.py"
        assert name in fedgram.__all__, f"add {name} to __all__ of src/fedgram/__init__.py, and to the imports there"
        assert getattr(fedgram, name) is kind


def test_the_list_needs_neither_torch_nor_lightning():
    code = (
        "import sys; from fedgram.cli import main; sys.argv = ['fedgram', 'methods', *sys.argv[1:]]; main();"
        "print(sorted({'torch', 'lightning', 'transformers', 'jsonargparse', 'numpy'} & sys.modules.keys()))"
    )
    for options in ([], ["--markdown"]):
        done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=True)
        assert "FLoRG" in done.stdout
        assert done.stdout.splitlines()[-1] == "[]"


OWN = """
from fedgram.methods.lora import LoRAMethod
class Plain(LoRAMethod):
    paper = Paper("Nobody", 2026, venue="nowhere", arxiv="")
    travels = "A" " and B"
    {line}
"""


@pytest.fixture
def methods(tmp_path, monkeypatch):
    """Writes a package of one method, with a line of its own, and reads it."""
    monkeypatch.setattr(method_facts, "_PACKAGE", tmp_path)
    method_facts._parse.cache_clear()
    (tmp_path / "__init__.py").write_text("from fedgram.methods.plain import Plain\n")
    for name in ("lora", "base"):
        (tmp_path / f"{name}.py").write_text((ROOT / f"src/fedgram/methods/{name}.py").read_text())

    def read(line):
        (tmp_path / "plain.py").write_text(OWN.format(line=line))
        return read_methods()

    yield read
    method_facts._parse.cache_clear()


def test_what_a_class_does_not_say_is_its_base_classes(methods):
    (plain,) = methods("exact = True")
    assert (plain.name, plain.travels, plain.exact, plain.heterogeneous) == ("Plain", "A and B", True, False)
    assert (plain.paper.venue, plain.variants) == ("nowhere", {})


@pytest.mark.parametrize("line", ["travels = ' and '.join('AB')", "exact: bool = not SOME", "variants = dict(a={})"])
def test_what_is_no_constant_is_an_error_that_names_the_place(methods, line):
    with pytest.raises(ValueError, match=rf"methods/plain.py: Plain.{line[:5]}.* must be a constant"):
        methods(line)


def test_contributors_find_every_place():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for place in (
        "src/fedgram/methods/__init__.py",
        "src/fedgram/__init__.py",
        "tests/methods/oracles.py",
        "tests/methods/test_harness.py",
        "tests/distributed/fits.py",
        "docs/methods.md",
        "configs/sweeps/methods.yaml",
    ):
        assert f"`{place}`" in text, place
        assert (ROOT / place).is_file()
