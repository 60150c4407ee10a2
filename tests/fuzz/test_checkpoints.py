"""Whatever the newest checkpoint of a run is, it goes on to the right bits, or one line says what is wrong."""

import shutil
from pathlib import Path

import pytest
from checkpoint_maker import ALTERATIONS, DAMAGE, PLACES, spoil
from checkpoint_run import go_on_with_each
from warm_parent import LIBRARIES, Outcome, WarmParent

from distributed.conftest import material  # noqa: F401 (a fixture)

NAMES = ("FedSALoRA-keep_state", "FLTAC")
"""Clients that keep parts of their models and their optimizers' memories; a server that remembers much."""
KINDS = [*DAMAGE, *ALTERATIONS, *PLACES, *ALTERATIONS, *ALTERATIONS]
AT_ONCE = ("no entries", "a tensor of an odd name")
"""Alterations that are seen when the file is read, so that the one before is used, always."""
FILES, TOGETHER = 210, 35
MODULES = (*LIBRARIES, "distributed.fits", "transformers.models.bert.modeling_bert")


def verdict(kind: str, command: str, outcome: Outcome, right: list, changed: list[str]) -> str:
    """Return what is wrong with what became of a checkpoint; nothing where it is right.

    Args:
        kind: what was done to it.
        command: what was done with it.
        outcome: what came of that.
        right: the results that are right.
        changed: the files of the run that are others than before.
    """
    if outcome.kind in ("hung", "died"):
        return f"{outcome.kind}: {outcome.message}"
    if outcome.kind == "returned":
        return "" if outcome.value in right else f"{command} gives {outcome.value}, not {right}"
    if "FedgramError" not in outcome.errors:
        return f"no error of fedgram's own: {outcome.trace[-1500:]}"
    if "\n" in outcome.message or len(outcome.message) > 1500:
        return f"no single line: {outcome.message}"
    if kind in DAMAGE or (kind in PLACES and (command == "test" or kind != "a folder")):
        return f"the one before was not used: {outcome.message}"
    return f"refused, but changed {changed}" if changed else ""


def content_of(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path): path.read_bytes() if path.is_file() and not path.is_symlink() else "special"
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


class Stage:
    """Runs of each case in folders of their own, and what is right to come of them."""

    def __init__(self, material: dict[str, str], folder: Path) -> None:  # noqa: F811
        self.parent, self.material, self.folder = WarmParent(MODULES, seconds=240), material, folder
        self.right: dict[tuple[str, str], list] = {}
        for name in NAMES:
            whole = self.call([(name, folder / name, "fit")])
            tests = self.call([(name, self.copy(name, f"{name}-{skip}", skip), "test") for skip in (False, True)])
            self.right[name, "resume"] = [outcome.value for outcome in whole]
            self.right[name, "test"] = [outcome.value for outcome in tests]  # of the last round, and of the one before

    def call(self, cases: list[tuple[str, Path, str]]) -> list[Outcome]:
        """Fit, go on with or test runs in a process of their own."""
        together = [(name, str(root), self.material, command) for name, root, command in cases]
        outcome = self.parent.call(go_on_with_each, together)
        return outcome.value if outcome.kind == "returned" else [outcome] * len(cases)

    def copy(self, name: str, where: str, without_newest: bool = False) -> Path:
        """Return a copy of the folder of a case's runs."""
        root = self.folder / where
        shutil.copytree(self.folder / name, root)
        if without_newest:
            newest(root).unlink()
        return root


def newest(root: Path) -> Path:
    return root / "run/version_0/checkpoints/round_000003.safetensors"


def complaints(stage: Stage, numbers: range) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """Return what is wrong with some checkpoints, and how each kind ended."""
    kinds = [KINDS[number % len(KINDS)] for number in numbers]
    cases = [(NAMES[n % 2], stage.copy(NAMES[n % 2], str(n)), "test" if n % 3 == 2 else "resume") for n in numbers]
    for number, kind, (_, root, _) in zip(numbers, kinds, cases, strict=True):
        spoil(newest(root), kind, number)
    before = [content_of(root) for _, root, _ in cases]
    outcomes, wrong = stage.call(cases), {}
    for number, kind, (name, root, command), old, outcome in zip(numbers, kinds, cases, before, outcomes, strict=True):
        after = content_of(root)
        changed = [path for path in old.keys() | after.keys() if old.get(path) != after.get(path)]
        if complaint := verdict(kind, command, outcome, stage.right[name, command], changed):
            wrong[f"{number}: {name}, {kind}, {command}"] = complaint
        shutil.rmtree(root)
    return wrong, {(kind, outcome.kind) for kind, outcome in zip(kinds, outcomes, strict=True)}


@pytest.mark.slow
def test_every_checkpoint_is_used_rightly_or_refused_in_one_line(material, tmp_path):  # noqa: F811
    stage, wrong, ends = Stage(material, tmp_path), {}, set()
    assert all(None not in right for right in stage.right.values()), stage.right
    for start in range(0, FILES, TOGETHER):
        found = complaints(stage, range(start, start + TOGETHER))
        wrong |= found[0]
        ends |= found[1]
    assert not wrong, f"{len(wrong)} of {FILES}\n" + "\n\n".join(f"{note}\n    {text}" for note, text in wrong.items())
    assert {kind for kind, end in ends if end == "raised"} >= {kind for kind in ALTERATIONS if kind not in AT_ONCE}
    assert {kind for kind, end in ends if end == "returned"} >= {*DAMAGE, *PLACES} - {"a folder"}


@pytest.mark.parametrize(
    ("kind", "outcome", "changed", "complaint"),
    [
        ("truncated", Outcome("returned", "b"), [], ""),
        ("truncated", Outcome("returned", "a"), [], "resume gives a, not"),
        ("truncated", Outcome("raised", errors=("FedgramError",), message="no"), [], "the one before was not used: no"),
        ("a layer more", Outcome("raised", errors=("FedgramError",), message="no"), [], ""),
        (
            "a layer more",
            Outcome("raised", errors=("FedgramError",), message="no"),
            ["t"],
            "refused, but changed ['t']",
        ),
        ("a layer more", Outcome("raised", errors=("FedgramError",), message="n\no"), [], "no single line"),
        ("a layer more", Outcome("raised", errors=("KeyError",), message="no"), [], "no error of fedgram's own"),
        ("a layer more", Outcome("hung"), [], "hung"),
        ("a layer more", Outcome("died"), [], "died"),
    ],
)
def test_what_is_wrong_is_seen(kind, outcome, changed, complaint):
    found = verdict(kind, "resume", outcome, ["b"], changed)
    assert found.startswith(complaint)
    assert bool(found) == bool(complaint)
