"""A finished run: its settings, what it found, and what it is judged by."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedgram.runs.folder import column_of, is_loss

__all__ = ["Run", "Scores", "Settings", "known_name", "short_name"]

Settings = Mapping[str, Any]

_SHORT = {"data.partition.rho": "rho", "method.rank": "rank", "trainer.participation": "participation"}
"""Settings with a name of their own on the command line and in labels; of others the last part will do."""


@dataclass(frozen=True)
class Scores:
    """What a run is judged by.

    Attributes:
        metrics: its metrics; none where it has no such result.
        samples: on how many samples; nan where that is not known.
        fingerprint: a digest of the samples; None where that is not known.
        personal_evaluation: how models of clients were judged; None where there is one model.
    """

    metrics: Mapping[str, float | None]
    samples: float
    fingerprint: str | None
    personal_evaluation: str | None


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        folder: where it is.
        summary: the content of its summary.json.
        rounds: the columns of its metrics.csv, float64 with one entry a round, nan where a round has no such figure.
        scores: what it is judged by; None for its metrics on the validation split after the last round.
    """

    folder: Path
    summary: Mapping[str, Any]
    rounds: Mapping[str, np.ndarray]
    scores: Scores | None = None

    @property
    def method(self) -> str:
        """The method's name in tables and pictures."""
        return str(self.summary["method"])

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.summary["seed"])

    @property
    def metric(self) -> str:
        """What runs of its task are judged by: the first metric that is no loss."""
        return next((key for key in (*self.summary["final"], *self.judged_by) if not is_loss(key)), "loss")

    @property
    def judged_by(self) -> Mapping[str, float | None]:
        """The metrics that it is judged by."""
        metrics: Mapping[str, float | None] = self.summary["final"] if self.scores is None else self.scores.metrics
        return metrics

    @property
    def samples(self) -> float:
        """How many samples these are of; nan where that is not known."""
        return self.figure("evaluated_samples") if self.scores is None else self.scores.samples

    @property
    def best_round(self) -> int | None:
        """The round that was best on the validation split; None where it was not evaluated."""
        best = self.summary.get("best") or {}
        number = best.get("round")
        return number if isinstance(number, int) else None

    @property
    def personal_evaluation(self) -> str | None:
        """How models of clients were judged; None where there is one model."""
        found: str | None = (
            self.summary.get("personal_evaluation") if self.scores is None else self.scores.personal_evaluation
        )
        return found

    @property
    def is_personal(self) -> bool:
        """Whether its models belong to clients and each answered its client's share of the split."""
        return self.personal_evaluation == "own"

    @property
    def planned_rounds(self) -> Any:
        """How many rounds it was to have, of which a callback may have ended it early."""
        return self.summary.get("planned_rounds") or self.summary.get("rounds")

    def setting(self, key: str) -> Any:
        """Return one of its settings by the full or a short name, or task, method, seed or backbone; None without."""
        return self.settings.get(full, self.summary.get(full)) if (full := self._full_name(key)) else None

    def _full_name(self, key: str) -> str | None:
        """Return the full name of a setting: the key itself, what it is short for, or what alone ends in it."""
        long = next((known for known, short in _SHORT.items() if short == key), key)
        if long in self.settings or long in self.summary:
            return long
        ending = [known for known in self.settings if known.rpartition(".")[2] == key]
        return ending[0] if len(ending) == 1 else None

    @property
    def settings(self) -> Settings:
        """Its settings, by dotted name."""
        return self.summary.get("settings") or {}

    def final(self, metric: str | None = None) -> float:
        """Return a metric that it is judged by, by default the one that counts; nan where it has no value."""
        return _figure(self.judged_by.get(metric or self.metric))

    def validated(self, metric: str, best: bool) -> float:
        """Return a metric on the validation split, after the best round or the last; nan where it has no value."""
        return _figure(((self.summary.get("best") or {}) if best else self.summary["final"]).get(metric))

    def is_undefined(self, metric: str | None = None) -> bool:
        """Return whether a metric that it is judged by was evaluated and had no value."""
        final, name = self.judged_by, metric or self.metric
        return name in final and bool(np.isnan(_figure(final[name])))

    def initial(self, metric: str | None = None) -> float:
        """Return a metric before training, by default the one that counts; nan where it has no value."""
        return _figure((self.summary.get("initial") or {}).get(metric or self.metric))

    def figure(self, key: str) -> float:
        """Return a figure of summary.json, such as seconds; nan where it is missing."""
        return _figure(self.summary.get(key))

    def history(self, metric: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return where in the columns of `rounds` it was evaluated, int64 ``(n,)``, and a metric there, ``(n,)``."""
        values = self.rounds.get(column_of(metric or self.metric), np.zeros(0))
        rows = np.flatnonzero(~np.isnan(values))
        return rows, values[rows]


def _figure(value: Any) -> float:
    """Return a figure of summary.json; nan for one that is not there, and for null, which stands for nan."""
    return np.nan if value is None else float(value)


def short_name(key: str) -> str:
    """Return what a setting is called where there is little room: its own short name, or its last part."""
    return _SHORT.get(key, key.rpartition(".")[2])


def known_name(key: str) -> str:
    """Return a setting's own short name, or else its full one."""
    return _SHORT.get(key, key)
