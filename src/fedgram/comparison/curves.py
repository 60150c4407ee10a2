"""The numbers behind the pictures: a group's figures by round or by cost, as a mean over seeds with its interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal

import numpy as np
from jaxtyping import Float

from fedgram.comparison.figures import PAIR, is_share
from fedgram.comparison.runs import Group, Run
from fedgram.comparison.statistics import t_interval
from fedgram.runs.folder import column_of

__all__ = [
    "ROUNDING",
    "Against",
    "Curve",
    "curve_of",
    "log_curve_of",
    "loss_curve_of",
    "point_of",
]

Against = Literal["round", "megabytes", "client_flops"]

ROUNDING = 1e-6
"""A relative error below this is that of rounding in float32: on a log scale it would take the room of all others."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A group's line, and what is around it.

    Attributes:
        label: which group it is.
        x: where, float64 ``(n,)``, ascending.
        mean: over the seeds, ``(n,)``.
        lower: end of the 95 % interval of the mean, ``(n,)``; nan where there is none, as of one seed, or two.
        upper: its other end.
        points: the figures of the seeds, ``(n, seeds)``; nan where a place has fewer seeds than another.
    """

    label: str
    x: Float[np.ndarray, " n"]
    mean: Float[np.ndarray, " n"]
    lower: Float[np.ndarray, " n"]
    upper: Float[np.ndarray, " n"]
    points: Float[np.ndarray, "n seeds"]

    @property
    def extent(self) -> tuple[float, float]:
        """The least and the largest figure of any seed."""
        return float(np.nanmin(self.points)), float(np.nanmax(self.points))

    @classmethod
    def joined(cls, curves: "Sequence[Curve]") -> "Curve":
        """Return curves of one label as one, in the order of their places."""
        x, mean, lower, upper = (
            np.concatenate([getattr(curve, name) for curve in curves]) for name in ("x", "mean", "lower", "upper")
        )
        order, most = np.argsort(x), max(curve.points.shape[1] for curve in curves)
        points = np.concatenate([curve._points_of(most) for curve in curves])
        return cls(curves[0].label, x[order], mean[order], lower[order], upper[order], points[order])

    def _points_of(self, seeds: int) -> Float[np.ndarray, "n seeds"]:
        """Return the points of at least as many seeds, with nan for those that there are not."""
        return np.pad(self.points, ((0, 0), (0, seeds - self.points.shape[1])), constant_values=np.nan)

    def scaled(self, factor: float) -> "Curve":
        """Return it with other units on the horizontal axis."""
        return replace(self, x=self.x * factor)

    def after_start(self) -> "Curve":
        """Return it without what costs nothing, which has no place on a log scale."""
        kept = self.x > 0
        names = ("x", "mean", "lower", "upper", "points")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})


def curve_of(group: Group, metric: str, against: Against) -> Curve | None:
    """Return a metric, a share in per cent, by round or by cost; None if no round has both for all seeds.

    Args:
        group: the repetitions.
        metric: as it is called in summary.json.
        against: "round"; "megabytes" sent by and to all clients so far; or "client_flops", of all clients so far.
    """
    column, factor = column_of(metric), _factor(metric)
    return _curve(group, lambda run: _cost(run, against), lambda run: factor * _column(run, column))


def loss_curve_of(group: Group) -> Curve | None:
    """Return the training loss by round, of which round 0 has none; None if no round has it for all seeds."""
    return _curve(group, _rounds, lambda run: _column(run, "train_loss"))


def log_curve_of(group: Group, column: str) -> Curve | None:
    """Return a figure by round for a log scale: the mean and the interval of its logarithm, taken back.

    Rounds in which it is not above `ROUNDING` are left out; None if there is no other.
    """
    curve = _curve(group, _rounds, lambda run: _logarithm(_column(run, column)))
    if curve is None:
        return None
    names = ("mean", "lower", "upper", "points")
    return replace(curve, **{name: np.exp(getattr(curve, name)) for name in names})


def point_of(group: Group, metric: str, x: float) -> Curve | None:
    """Return a metric after the last round, a share in per cent, as a curve of one point; None where it is missing."""
    values = _factor(metric) * np.array([[run.final(metric)] for run in group.runs])
    return _over_seeds(group.marked_label, np.array([x]), values) if np.isfinite(values).all() else None


def _curve(group: Group, place: Callable[[Run], np.ndarray], figure: Callable[[Run], np.ndarray]) -> Curve | None:
    """Return a figure against a place, over the rounds in which all seeds have both."""
    rounds = reduce(np.intersect1d, (_rounds(run)[np.isfinite(place(run) + figure(run))] for run in group.runs))
    if not len(rounds):
        return None
    chosen = [np.isin(_rounds(run), rounds) for run in group.runs]
    x, y = (np.array([of(run)[rows] for run, rows in zip(group.runs, chosen, strict=True)]) for of in (place, figure))
    return _over_seeds(group.marked_label, x.mean(0), y)


def _over_seeds(label: str, x: Float[np.ndarray, " n"], values: Float[np.ndarray, "seeds n"]) -> Curve:
    estimates = [t_interval(column) for column in values.T]
    mean, lower, upper = np.array([(one.mean, one.low, one.high) for one in estimates]).T
    if len(values) == PAIR:
        lower, upper = np.full((2, len(x)), np.nan)
    return Curve(label, x, mean, lower, upper, values.T)


def _factor(metric: str) -> float:
    return 100.0 if is_share(metric) else 1.0


def _rounds(run: Run) -> Float[np.ndarray, " rounds"]:
    return run.rounds.get("round", np.zeros(0))


def _column(run: Run, name: str) -> Float[np.ndarray, " rounds"]:
    return run.rounds.get(name, np.full(len(_rounds(run)), np.nan))


def _cost(run: Run, against: Against) -> Float[np.ndarray, " rounds"]:
    if against == "megabytes":
        return _column(run, "megabytes_up") + _column(run, "megabytes_down")
    return _column(run, against)


def _logarithm(values: np.ndarray) -> np.ndarray:
    """Return the logarithm of what is more than rounding, nan of the rest."""
    return np.log(np.where(values > ROUNDING, values, np.nan))
