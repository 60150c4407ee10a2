"""How figures are written where people read them; what is unknown, which is nan, is a dash."""

from collections.abc import Callable
from functools import wraps

import numpy as np

from fedgram.comparison.statistics import Estimate, Interval

__all__ = [
    "count_text",
    "difference_text",
    "estimate_text",
    "flops_text",
    "is_share",
    "mean_text",
    "metric_text",
    "p_text",
    "seconds_text",
    "size_text",
    "target_text",
]

_SHARES = ("accuracy", "f1", "macro_f1", "exact_match")


def is_share(metric: str) -> bool:
    """Say whether a metric is a share, and so told in per cent; correlations and losses are not.

    >>> is_share("accuracy_mismatched"), is_share("matthews_correlation")
    (True, False)
    """
    return metric.startswith(_SHARES)


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
    """Return a mean, with its interval if it has one: ± half of it where it is symmetric, or both ends."""
    mean = metric_text(found.mean, metric)
    if np.isnan(found.low):
        return mean
    if how == "t":
        return f"{mean} ± {metric_text(found.half_width, metric)}"
    return f"{mean} [{metric_text(found.low, metric)}, {metric_text(found.high, metric)}]"


def _scaled(value: float, metric: str) -> str:
    return f"{100 * value:.2f}" if is_share(metric) else f"{value:.4f}"
