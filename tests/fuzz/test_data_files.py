"""Whatever file of data is given: it is read as it was meant, or refused in one line that says what is wrong."""

import math
import os
import time

import pytest
from data_file_maker import FAULTS, DataFile, make_files
from data_file_run import read_from
from warm_parent import Outcome, WarmParent

from tiny_models import save_tiny

FILES = 100


def verdict(file: DataFile, outcome: Outcome) -> str:
    """Return what is wrong with what became of a file; nothing where it is right."""
    if outcome.kind in ("hung", "died"):
        return f"{outcome.kind}: {outcome.message}"
    if outcome.kind == "raised":
        if "FedgramError" not in outcome.errors:
            return f"no error of fedgram's own: {outcome.trace[-1500:]}"
        if "\n" in outcome.message or len(outcome.message) > 1500:
            return f"no single line: {outcome.message}"
        return "" if file.fault else f"refused: {outcome.message}"
    return read_wrongly(file, outcome.value)


def read_wrongly(file: DataFile, found: dict) -> str:
    """Return what of a file that was read is not what was written."""
    if file.fault:
        return f"was read, though {file.fault}"
    if [list(column) for column in found["texts"]] != file.texts:
        return "the texts are others"
    if found["labels"] != [file.labels[row] for row in found["rows"]]:
        return f"the labels are others: {found['labels'][:5]} in rows {found['rows'][:5]}"
    if set(found["classes"]) != file.classes or len(found["classes"]) != len(file.classes):
        return f"the classes are {found['classes']}, not {file.classes}"
    return ""


@pytest.mark.slow
def test_every_file_is_read_as_it_was_meant_or_refused_in_one_line(tmp_path):
    backbone, parent = save_tiny("qwen2", tmp_path / "model"), WarmParent()
    wrong, faults = {}, set()
    for number, file in enumerate(make_files(tmp_path, FILES)):
        # Of the even numbers, which have nothing wrong with them, every fifth is trained on.
        outcome = parent.call(read_from, file.settings, backbone, str(tmp_path / str(number)), number % 10 == 0)
        faults.add(file.fault)
        if complaint := verdict(file, outcome):
            wrong[f"{file.note}, {file.fault or 'nothing wrong'}"] = complaint
    assert not wrong, "\n\n".join(f"{note}\n    {complaint}" for note, complaint in wrong.items())
    assert faults == {"", *FAULTS}


def test_a_case_that_raises_dies_or_hangs_takes_nothing_with_it():
    parent = WarmParent(["math"], seconds=5)
    assert parent.call(math.sqrt, 4.0) == Outcome("returned", 2.0)
    raised = parent.call(math.sqrt, -1.0)
    assert (raised.kind, raised.errors[0], raised.message) == ("raised", "ValueError", "math domain error")
    assert parent.call(os._exit, 3) == Outcome("died", message="exit code 3")
    late = WarmParent(["math"], seconds=0.2)
    assert late.call(time.sleep, 30).kind == "hung"
    assert parent.call(math.sqrt, 9.0).value == 3.0


FOUND = {"texts": [["a", "b"]], "rows": [1], "labels": ["no"], "classes": ["no", "yes"]}


@pytest.mark.parametrize(
    ("fault", "outcome", "complaint"),
    [
        ("", Outcome("returned", FOUND), ""),
        ("", Outcome("returned", FOUND | {"texts": [["a", "c"]]}), "the texts are others"),
        ("", Outcome("returned", FOUND | {"labels": ["yes"]}), "the labels are others"),
        ("", Outcome("returned", FOUND | {"classes": ["no", "yes", "0"]}), "the classes are"),
        ("", Outcome("raised", errors=("DataError", "FedgramError"), message="no"), "refused: no"),
        ("a NUL", Outcome("raised", errors=("DataError", "FedgramError"), message="no"), ""),
        ("a NUL", Outcome("raised", errors=("DataError", "FedgramError"), message="no\nno"), "no single line"),
        ("a NUL", Outcome("raised", errors=("KeyError",), message="no"), "no error of fedgram's own"),
        ("a NUL", Outcome("returned", FOUND), "was read, though a NUL"),
        ("a NUL", Outcome("hung"), "hung"),
        ("", Outcome("died"), "died"),
    ],
)
def test_what_is_wrong_is_seen(tmp_path, fault, outcome, complaint):
    file = DataFile(tmp_path, {}, [["a", "b"]], ["yes", "no"], {"yes", "no"}, fault)
    assert verdict(file, outcome).startswith(complaint)
    assert bool(verdict(file, outcome)) == bool(complaint)
