"""What repetitions with several seeds say of a figure: means with intervals, paired differences, and orders.

Symbols: ``x₁ ... xₙ`` the figure of each seed; ``x̄`` its mean; ``s`` its standard deviation with n - 1 in the
denominator.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = [
    "INTERVALS",
    "LEVEL",
    "Estimate",
    "Interval",
    "PairedDifference",
    "best",
    "bootstrap_interval",
    "estimate",
    "paired_difference",
    "rank_agreement",
    "t_interval",
]

Interval = Literal["t", "bootstrap"]

LEVEL = 0.95
"""How often an interval should cover what it estimates."""
_DRAWS = 10_000
"""Resamples of a bootstrap."""
_ROUNDING = 1e-12
"""Spread of differences, relative to the figures, that is rounding and no spread."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with an interval, whose ends are nan for fewer than two seeds.

    Attributes:
        mean: x̄; nan for no seed.
        low: the lower end of the interval.
        high: the upper end.
        count: n.
        points: x₁ ... xₙ.
    """

    mean: float
    low: float
    high: float
    count: int
    points: tuple[float, ...] = ()

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2


def t_interval(values: Sequence[float]) -> Estimate:
    """Return x̄ ± t s/√n, where t is the (1 + LEVEL)/2 quantile of Student's distribution of n - 1 degrees of freedom.

    It covers the mean over all seeds with probability LEVEL where figures are normal over seeds.

    >>> round(t_interval([1.0, 2.0, 3.0]).half_width, 4)  # 4.3027 / √3
    2.4841
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return _without_interval(x)
    from scipy.special import stdtrit

    half = float(stdtrit(len(x) - 1, (1 + LEVEL) / 2) * x.std(ddof=1) / np.sqrt(len(x)))
    mean = float(x.mean())
    return Estimate(mean, mean - half, mean + half, len(x), tuple(x.tolist()))


def bootstrap_interval(values: Sequence[float]) -> Estimate:
    """Return x̄ with the (1 ± LEVEL)/2 quantiles of the means of n figures drawn from x₁ ... xₙ with replacement.

    The draws come from a generator of a fixed seed. With few seeds the interval is too narrow: of three it covers the
    mean three times in four, since it never goes beyond the figures themselves.
    """
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return _without_interval(x)
    from fedgram.seeding import numpy_generator  # which imports torch

    means = numpy_generator(0, "bootstrap").choice(x, (_DRAWS, len(x))).mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = float(x.mean())
    return Estimate(mean, min(float(low), mean), max(float(high), mean), len(x), tuple(x.tolist()))


def _without_interval(x: np.ndarray) -> Estimate:
    return Estimate(float(x[0]) if len(x) else np.nan, np.nan, np.nan, len(x), tuple(x.tolist()))


INTERVALS: Mapping[Interval, Callable[[Sequence[float]], Estimate]] = {
    "t": t_interval,
    "bootstrap": bootstrap_interval,
}


def estimate(values: Iterable[float], how: Interval = "t") -> Estimate:
    """Return a mean over the seeds that have a figure, which is not nan, with an interval."""
    return INTERVALS[how]([float(value) for value in values if not np.isnan(value)])


@dataclass(frozen=True)
class PairedDifference:
    """How two figures differ over the seeds that both have.

    Attributes:
        mean: d̄, the mean over seeds of the one less the other; nan where they share no seed.
        p: of a two-sided paired t test that the mean is 0: 2 P(T > |d̄| √n / s) for Student's T of n - 1 degrees of
            freedom; nan where it is undefined: for fewer than two seeds, and for differences that are all alike.
        count: n, how many seeds they share.
    """

    mean: float
    p: float
    count: int


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> PairedDifference:
    """Return how two figures differ over the seeds that both have, where the same seed means the same clients and data.

    Args:
        one: figures by seed.
        other: likewise.
    """
    shared = [seed for seed in one if seed in other and not np.isnan(one[seed] - other[seed])]
    x, y = (np.array([figures[seed] for seed in shared], dtype=np.float64) for figures in (one, other))
    d = x - y
    if len(d) < 2:
        return PairedDifference(float(d[0]) if len(d) else np.nan, np.nan, len(d))
    return PairedDifference(float(d.mean()), _p_of_paired_t(d, max(np.abs(x).max(), np.abs(y).max())), len(d))


def _p_of_paired_t(d: np.ndarray, size: float) -> float:
    """Return the p-value of differences between figures of some size; nan where they have no spread."""
    from scipy.special import stdtr

    spread = d.std(ddof=1)
    if spread <= _ROUNDING * size:
        return np.nan
    return float(2 * stdtr(len(d) - 1, -abs(d.mean()) * np.sqrt(len(d)) / spread))


def best(means: Sequence[float], lowest: bool = False) -> frozenset[int]:
    """Return where the highest figures stand, or the lowest ones, such as losses; nan is none.

    >>> sorted(best([0.5, float("nan"), 0.7, 0.7]))
    [2, 3]
    """
    known = [value for value in means if not np.isnan(value)]
    if not known:
        return frozenset()
    top = min(known) if lowest else max(known)
    return frozenset(index for index, value in enumerate(means) if value == top)


def rank_agreement(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return Spearman's ρ and Kendall's τ_b of two lists of figures of the same things.

    Both are 1 where the two put the things in the same order, -1 where one's is the other's reversed, and nan where
    there are fewer than two things or all figures of a list are alike.
    """
    from scipy import stats

    if len(one) < 2 or len(set(one)) < 2 or len(set(other)) < 2:
        return np.nan, np.nan
    return float(stats.spearmanr(one, other).statistic), float(stats.kendalltau(one, other).statistic)
