"""What runs are judged by: their metrics on a split, after the last round or the best one."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fedgram.comparison.run import Run, Scores
from fedgram.comparison.summaries import undamaged
from fedgram.runs.folder import RunFolder
from fedgram.runs.results import Result, read_result

__all__ = ["SPLITS", "At", "Judgement", "judged", "lacking"]

At = Literal["last", "best"]

SPLITS = ("validation", "test")
_COMMANDS = {"validation": "validate", "test": "test"}
_MOST = 3
"""Folders that a sentence names."""


@dataclass(frozen=True)
class Judgement:
    """What runs are judged by.

    Attributes:
        split: the split; what runs found on the validation split stands in their summaries, and what they found on the
            test split where `fedgram test` has kept it.
        at: after which round: the last one, or the one that was best on the validation split.
    """

    split: Literal["validation", "test"] = "validation"
    at: At = "last"

    @property
    def is_usual(self) -> bool:
        """Whether it is by what every run with a validation split has found at its end."""
        return self == Judgement()

    def __str__(self) -> str:
        where = "" if self.split == "validation" else f"on the {self.split} split, "
        best = "best round" if self.split == "validation" else "round that was best on the validation split"
        return f"{where}after the {'last round' if self.at == 'last' else best}"

    @classmethod
    def of(cls, split: str | None, at: str | None, runs: Sequence[Run]) -> "Judgement":
        """Return what is asked for; on the test split by default after the best round, as `fedgram test` has it."""
        if split != "test":
            return cls(at="best" if at == "best" else "last")
        has_best = any(run.best_round is not None for run in runs)
        return cls("test", "best" if at == "best" or (at is None and has_best) else "last")


def judged(runs: Sequence[Run], judgement: Judgement) -> list[Run]:
    """Return runs with what they are judged by, which is nothing where a run has no such result.

    Raises:
        DataError: a result is damaged.
    """
    return [replace(run, scores=_scores(run, judgement)) for run in runs]


def _scores(run: Run, judgement: Judgement) -> Scores | None:
    """Return the scores that a run is judged by; None for those of its summary, after its last round."""
    if judgement.is_usual and run.summary["final"]:
        return None
    number = run.best_round if judgement.at == "best" else run.summary.get("rounds")
    if judgement.split == "validation" and judgement.at == "best" and number is not None:
        found = {key: value for key, value in run.summary["best"].items() if key != "round"}
        return Scores(found, run.figure("evaluated_samples"), None, run.summary.get("personal_evaluation"))
    result = None if number is None else _read(run.folder, judgement.split, number)
    if result is None and judgement.is_usual:
        return None
    if result is None:
        return Scores({}, float("nan"), None, run.summary.get("personal_evaluation"))
    samples = float(result.samples.get(judgement.split, 0))
    return Scores(result.metrics, samples, result.split_fingerprint, result.personal_evaluation)


def _read(folder: Path, split: str, number: int) -> Result | None:
    with undamaged(folder):
        return read_result(folder, split, number)


def lacking(runs: Sequence[Run], judgement: Judgement) -> list[str]:
    """Return which runs have nothing that they could be judged by, with the command that makes it, a sentence each."""
    without = [run for run in runs if run.scores is not None and not run.scores.metrics]
    bestless = [run for run in without if judgement.at == "best" and run.best_round is None]
    untested = [run for run in without if run not in bestless]
    said = []
    if untested:
        others = ", and likewise for the others" if len(untested) > 1 else ""
        said.append(
            f"no result {judgement}, for {_named(untested)}: {_command(untested[0], judgement)} makes it{others}"
        )
    if bestless:
        said.append(f"no round is the best of {_named(bestless)}, which had no validation split: use --at last")
    return said


def _named(runs: Sequence[Run]) -> str:
    more = f" and {len(runs) - _MOST} more" if len(runs) > _MOST else ""
    return f"{', '.join(str(run.folder) for run in runs[:_MOST])}{more}"


def _command(run: Run, judgement: Judgement) -> str:
    """Return the command that evaluates a run so that it can be judged."""
    last = judgement.at == "last"
    checkpoint = run.folder if last else RunFolder(run.folder).checkpoint("best")
    arguments: list[Any] = ["--config", run.folder / "config.yaml", "--ckpt_path", checkpoint]
    return shlex.join(["fedgram", _COMMANDS[judgement.split], *map(str, arguments)])
