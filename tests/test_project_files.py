"""Files around the code that no other test reads: they parse, and agree with pyproject.toml."""

import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
YAML = sorted([*GITHUB.rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"])
JOBS = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]


def constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {normal(name): version for name, version in pairs}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements():
    """The names and lower bounds of all that is needed, but for the project's own extras."""
    for requirement in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        name, bound = re.fullmatch(r"([\w-]+)(?:\[\w+\])?(?:>=([\w.]+))?", requirement).groups()
        if name != PROJECT["name"]:
            yield name, bound


def numbers(version):
    return [int(part) for part in version.split(".") if part.isdigit()]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_parses(path):
    assert yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_workflow_runs_the_versions_of_python_that_are_claimed():
    claimed = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert set(JOBS["test"]["strategy"]["matrix"]["python"]) == claimed
    assert PROJECT["requires-python"] == f">={min(claimed, key=numbers)}"
    assert set(JOBS["other-systems"]["strategy"]["matrix"]["python"]) <= claimed
    steps = {name: [step.get("with", {}).get("python-version") for step in job["steps"]] for name, job in JOBS.items()}
    assert min(claimed, key=numbers) in steps["oldest"]
    assert min(claimed, key=numbers) in steps["lint"]


def test_jobs_run_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    commands = " ".join(step.get("run", "") for job in JOBS.values() for step in job["steps"])
    assert {"lint", "test", "test-oldest"} == set(re.findall(r"\bmake ([\w-]+)", commands)) <= targets


def test_the_tests_that_windows_runs_exist():
    named = [path for each in JOBS["other-systems"]["strategy"]["matrix"]["include"] for path in each["tests"].split()]
    assert named
    assert all((ROOT / path).exists() for path in named), named


def test_one_version_of_torch_everywhere():
    version = constraints()["torch"]
    assert dict(requirements())["torch"] == version
    for path in (GITHUB / "workflows" / "ci.yml", ROOT / "Makefile"):
        found = re.findall(r"torch==([\d.]+)", path.read_text(encoding="utf-8"))
        assert found == [version], path


def test_the_pinned_versions_are_allowed():
    pinned = constraints()
    for name, bound in requirements():
        assert normal(name) in pinned, f"add {name} to constraints.txt"
        if bound:
            assert numbers(pinned[normal(name)]) >= numbers(bound), name


def test_the_oldest_versions_are_the_lower_bounds():
    command = [sys.executable, str(ROOT / "scripts" / "oldest_versions.py")]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert set(lines) == {f"{name}=={bound}" for name, bound in requirements() if bound}


def test_hooks_run_what_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    entries = {hook["entry"].partition("/bin/")[2].removesuffix(" --force-exclude") for hook in hooks}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert entries == {re.sub(r"( --check)? \.$", "", line) for line in re.findall(r"\$\(BIN\)/(.*)", recipe)}


@pytest.mark.parametrize("name", ["bug", "request_method"])
def test_forms_have_what_github_asks_of_them(name):
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
    assert form["name"]
    assert form["description"]
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in fields}) == len(fields)
    assert all(part["attributes"]["label"] for part in fields)
    assert {part["type"] for part in form["body"]} <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}
