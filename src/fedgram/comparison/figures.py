"""How figures are written where people read them; what is unknown, which is nan, is a dash."""

from collections.abc import Callable
from functools import wraps

import numpy as np

from fedgram.comparison.statistics import Estimate, Interval
from fedgram.runs.folder import is_loss

__all__ = [
    "PAIR",
    "bounds_of",
    "count_text",
    "difference_text",
    "estimate_text",
    "flops_text",
    "interval_text",
    "is_cut",
    "is_share",
    "mean_text",
    "metric_text",
    "p_text",
    "seconds_text",
    "shows_points",
    "size_text",
    "target_text",
]

_SHARES = ("accuracy", "f1", "macro_f1", "exact_match")
_CORRELATIONS = ("matthews_correlation", "pearson", "spearman")
PAIR = 2
"""Seeds whose figures are shown in the place of an interval."""


def is_share(metric: str) -> bool:
    """Say whether a metric is a share, and so told in per cent; correlations and losses are not.

    >>> is_share("accuracy_mismatched"), is_share("matthews_correlation")
    (True, False)
    """
    return metric.startswith(_SHARES)


def bounds_of(metric: str) -> tuple[float, float]:
    """Return the least and the largest value that a metric can have.

    >>> bounds_of("accuracy"), bounds_of("pearson"), bounds_of("loss")
    ((0.0, 1.0), (-1.0, 1.0), (0.0, inf))
    """
    if is_share(metric):
        return 0.0, 1.0
    return (-1.0, 1.0) if metric.startswith(_CORRELATIONS) else (0.0 if is_loss(metric) else -np.inf, np.inf)


def _known(write: Callable[[float], str]) -> Callable[[float], str]:
    @wraps(write)
    def text(value: float) -> str:
        return "-" if np.isnan(value) else write(value)

    return text


@_known
def count_text(value: float) -> str:
    """Return a count, with commas."""
    return f"{round(value):,}"


@_known
def mean_text(value: float) -> str:
    """Return a mean of small counts, such as rounds."""
    return f"{round(value, 1):g}"


@_known
def size_text(value: float) -> str:
    """Return megabytes."""
    return f"{value:,.2f}"


@_known
def seconds_text(value: float) -> str:
    """Return seconds, or megabytes of memory."""
    return f"{value:,.1f}"


@_known
def flops_text(value: float) -> str:
    """Return a large figure by its power of ten.

    >>> flops_text(1.18e12), flops_text(0)
    ('1.18e12', '0')
    """
    mantissa, _, power = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(power)}" if value else "0"


@_known
def p_text(value: float) -> str:
    """Return a p-value."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def metric_text(value: float, metric: str) -> str:
    """Return a metric, a share in per cent but without the sign."""
    return "-" if np.isnan(value) else _scaled(value, metric)


def difference_text(value: float, metric: str) -> str:
    """Return a difference of metrics with its sign, of shares in points."""
    return "-" if np.isnan(value) else f"{'+' * (value >= 0)}{_scaled(value, metric)}"


def target_text(value: float, metric: str) -> str:
    """Return a metric to be reached, a share with its sign of per cent."""
    return f"{100 * value:g} %" if is_share(metric) else f"{value:g}"


def estimate_text(found: Estimate, metric: str, how: Interval) -> str:
    """Return a mean of a metric, with its interval if it has one."""
    return interval_text(found, lambda value: metric_text(value, metric), bounds_of(metric), how)


def interval_text(found: Estimate, write: Callable[[float], str], bounds: tuple[float, float], how: Interval) -> str:
    """Return a mean, with what is known of its spread: ± half of the interval, or its ends, or the figures themselves.

    The ends of an interval that goes beyond what is possible are cut, and shown. Of two seeds Student's interval is
    12.7 times as wide as they are apart, and carries less than the two figures do.

    Args:
        found: the mean and its interval.
        write: how figures are written.
        bounds: the least and the largest possible figure.
        how: which interval it is.

    >>> two = Estimate(0.5, -1.0, 2.0, 2, (0.4, 0.6))
    >>> interval_text(two, "{:.1f}".format, (0, 1), "t"), interval_text(two, "{:.1f}".format, (0, 1), "bootstrap")
    ('0.5 (0.4, 0.6)', '0.5 [0.0, 1.0]')
    """
    mean = write(found.mean)
    if np.isnan(found.low):
        return mean
    if how == "t" and shows_points(found):
        return f"{mean} ({', '.join(map(write, found.points))})"
    if how == "t" and not is_cut(found, bounds):
        return f"{mean} ± {write(found.half_width)}"
    return f"{mean} [{write(max(found.low, bounds[0]))}, {write(min(found.high, bounds[1]))}]"


def shows_points(found: Estimate) -> bool:
    """Return whether figures stand in the place of an interval."""
    return found.count == PAIR


def is_cut(found: Estimate, bounds: tuple[float, float]) -> bool:
    """Return whether an interval goes beyond what is possible."""
    return found.low < bounds[0] or found.high > bounds[1]


def _scaled(value: float, metric: str) -> str:
    return f"{100 * value:.2f}" if is_share(metric) else f"{value:.4f}"
