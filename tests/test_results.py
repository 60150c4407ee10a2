"""What test and validate find is kept in the run's folder, by split and round."""

import json
import logging
from dataclasses import replace

import pytest

from fedgram import Dirichlet, FedIT, FedSALoRA, FLoRG
from fedgram.runs.folder import RunFolder
from fedgram.runs.lock import FolderLock
from fedgram.runs.results import Result, keep_result, read_result
from test_trainer import fit  # noqa: F401 (a fixture)
from test_which_model import judge  # noqa: F401 (a fixture)

RESULT = Result("test", 3, "best.safetensors", "data", {"loss": 0.5, "accuracy": 0.75}, {"test": 16}, None, "digest")


@pytest.fixture
def checkpoint(tmp_path):
    """Returns the path of a checkpoint of a run."""
    path = tmp_path / "run/version_0/checkpoints/best.safetensors"
    path.parent.mkdir(parents=True)
    return path


def test_results_are_kept_by_split_and_round_and_replaced_by_those_of_the_same(fit, judge):  # noqa: F811
    _, trainer = fit(rounds=2, lr=0.3)
    folder = trainer.folder.path
    best = trainer.federation.progress.best["round"]
    metrics, logged = judge("test")
    path = folder / "results" / f"test_round_{best:06d}.json"
    assert f"kept in {path}, where fedgram compare --split test reads it" in logged
    kept = read_result(folder, "test", best)
    assert kept.metrics == metrics
    assert (kept.split, kept.round, kept.checkpoint, kept.task) == ("test", best, "best.safetensors", "data")
    assert (kept.samples, kept.personal_evaluation) == ({"test": 16}, None)
    validated, _ = judge("validate", ckpt_path="last")
    own = read_result(folder, "validation", 2)
    assert own.metrics == validated == trainer.federation.progress.metrics
    assert (own.checkpoint, own.split_fingerprint == kept.split_fingerprint) == ("round_000002.safetensors", False)
    before = path.read_bytes()
    path.write_text(json.dumps(json.loads(before) | {"metrics": {"accuracy": 0.123}}))
    judge("test")
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2


def test_the_untrained_model_belongs_to_no_run(fit, judge):  # noqa: F811
    _, trainer = fit(rounds=1)
    _, logged = judge("test", ckpt_path="none")
    assert not (trainer.folder.path / "results").exists()
    assert "kept" not in logged


def test_how_models_of_clients_were_judged_is_kept(fit, judge):  # noqa: F811
    _, trainer = fit(rounds=1, method=FedSALoRA(rank=2), partition=Dirichlet(0.5))
    judge("test", method=FedSALoRA(rank=2), ckpt_path="last")
    assert read_result(trainer.folder.path, "test", 1).personal_evaluation == "own"


def test_a_run_that_is_rewound_loses_the_results_of_later_rounds(checkpoint):
    run = RunFolder(checkpoint.parent.parent)
    for number in (2, 3, 10):
        keep_result(checkpoint, replace(RESULT, round=number))
    run.rewind(3)
    assert sorted(path.name for path in (run.path / "results").iterdir()) == [
        "test_round_000002.json",
        "test_round_000003.json",
    ]


def test_a_run_that_goes_on_keeps_its_results(fit, judge):  # noqa: F811
    _, trainer = fit(rounds=1)
    judge("test", ckpt_path="last")
    fit(rounds=2, ckpt_path="last")
    assert read_result(trainer.folder.path, "test", 1) is not None


@pytest.mark.parametrize("obstacle", ["a process", "a file", "a full disk"])
def test_what_can_not_be_kept_is_one_line_and_the_result_is_there_all_the_same(
    fit,  # noqa: F811
    judge,  # noqa: F811
    monkeypatch,
    obstacle,
):
    _, trainer = fit(rounds=1, method=FedIT(rank=2))
    folder = trainer.folder.path
    lock = FolderLock.take(folder) if obstacle == "a process" else None
    if obstacle == "a file":
        (folder / "results").write_text("")
    if obstacle == "a full disk":
        monkeypatch.setattr("fedgram.files.os.fsync", full)
    metrics, logged = judge("test", method=FedIT(rank=2), ckpt_path="last")
    if lock is not None:
        lock.close()
    assert 0 <= metrics["accuracy"] <= 1
    (line,) = [line for line in logged.splitlines() if "not kept" in line]
    said = {"a process": "another process is at this run", "a file": "is a file", "a full disk": "free some space"}
    assert "WARNING" in line
    assert said[obstacle] in line
    assert not (folder / "results" / "test_round_000001.json").exists()


def full(descriptor):
    raise OSError(28, "No space left on device")


def test_a_run_that_can_not_be_locked_keeps_nothing(checkpoint, monkeypatch, caplog):
    def refuse(*_, **__):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr("fedgram.runs.lock.os.open", refuse)
    assert keep_result(checkpoint, RESULT) is None
    assert "the result is not kept with the run: can't lock" in caplog.text
    assert "Read-only file system" in caplog.text


def test_a_checkpoint_that_was_moved_is_of_no_run(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fedgram")
    assert keep_result(tmp_path / "copy.safetensors", RESULT) is None
    assert "not kept: " in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_what_is_undefined_is_null_in_the_file_and_nan_when_it_is_read(checkpoint):
    path = keep_result(checkpoint, replace(RESULT, metrics={"pearson": float("nan")}))
    assert json.loads(path.read_text())["metrics"] == {"pearson": None}
    assert str(read_result(checkpoint.parent.parent, "test", 3).metrics["pearson"]) == "nan"


def test_there_need_be_no_result(checkpoint):
    assert read_result(checkpoint.parent.parent, "test", 3) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "test_round_000003.json holds no object"),
        ({"metrics": None}, "metrics of test_round_000003.json should be an object of numbers, and is null"),
        ({"metrics": {"accuracy": "0.5"}}, "metrics of"),
        ({"metrics": {"accuracy": 10**400}}, "metrics of"),
        ({"samples": {"test": -1}}, "samples of .* should be an object of whole numbers"),
        ({"round": 2}, "is of the test split after round 2"),
        ({"split": "validation"}, "is of the validation split after round 3"),
        ({"personal_evaluation": "mine"}, "should be null, own or all"),
        ({"split_fingerprint": 1}, "split_fingerprint of .* should be a text, and is 1"),
    ],
)
def test_what_no_evaluation_wrote_is_refused(checkpoint, change, message):
    path = keep_result(checkpoint, RESULT)
    path.write_text(json.dumps(json.loads(path.read_text()) | change if change else change))
    with pytest.raises(ValueError, match=message):
        read_result(checkpoint.parent.parent, "test", 3)


def test_a_method_of_one_model_says_so(fit, judge):  # noqa: F811
    _, trainer = fit(rounds=1, method=FLoRG(rank=2))
    judge("validate")
    best = trainer.federation.progress.best["round"]
    assert read_result(trainer.folder.path, "validation", best).personal_evaluation is None
