"""The metrics of classifications and of regressions, by name.

Each is a pure function of logits ``(n, C)`` and labels ``(n,)``, with the value that GLUE's official scores have, which
are those of SciPy and scikit-learn. Where the predictions or the labels are all alike, Pearson's and Spearman's
correlation are undefined, and nan; Matthews' is 0 by scikit-learn's convention, as is the F1 score where class 1 occurs
neither in the predictions nor in the labels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_f1_score,
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
)
from torchmetrics.functional.regression import pearson_corrcoef

from fedgram.errors import ConfigurationError

__all__ = ["METRICS", "Metric", "check_metrics", "compute_metrics"]

Logits = Float[Tensor, "n C"]
Classes = Int64[Tensor, " n"]
Scores = Float[Tensor, " n"]


def accuracy(logits: Logits, labels: Classes) -> Tensor:
    """Return the share of samples whose label has the largest logit."""
    return multiclass_accuracy(logits, labels, logits.shape[1], average="micro")


def f1(logits: Logits, labels: Classes) -> Tensor:
    """Return the F1 score of class 1 of two, as GLUE scores MRPC and QQP; 0 where that class occurs nowhere."""
    return binary_f1_score(logits.argmax(dim=1), labels)


def macro_f1(logits: Logits, labels: Classes) -> Tensor:
    """Return the mean F1 score of the classes that occur in predictions or labels."""
    return multiclass_f1_score(logits, labels, logits.shape[1], average="macro")


def matthews_correlation(logits: Logits, labels: Classes) -> Tensor:
    """Return Matthews' correlation of predicted and true classes, also of more than two; 0 where either are alike."""
    predicted = logits.argmax(dim=1)
    if not (_vary(predicted) and _vary(labels)):  # torchmetrics has values of its own for that: 1, -1 or about 0
        return torch.zeros(())
    return multiclass_matthews_corrcoef(predicted, labels, logits.shape[1])


def pearson(logits: Float[Tensor, "n 1"], labels: Scores) -> Tensor:
    """Return Pearson's correlation of predicted and true scores; nan where either are all equal."""
    return _correlation(logits[:, 0].double(), labels.double())


def spearman(logits: Float[Tensor, "n 1"], labels: Scores) -> Tensor:
    """Return Spearman's correlation: Pearson's of the ranks; nan where either scores are all equal."""
    return _correlation(_ranks(logits[:, 0]), _ranks(labels))


def _correlation(x: Scores, y: Scores) -> Tensor:
    if not (_vary(x) and _vary(y)):
        return torch.full((), torch.nan)
    # On a scale of their own range: torchmetrics warns of scores that differ little, as those of a new head do.
    return pearson_corrcoef(*((values - values.min()) / (values.max() - values.min()) for values in (x, y)))


def _vary(values: Shaped[Tensor, " n"]) -> bool:
    """Say whether values differ, and by a finite amount."""
    spread = float(values.max() - values.min()) if len(values) else 0.0
    return math.isfinite(spread) and spread > 0


def _ranks(values: Scores) -> Float[Tensor, " n"]:
    """Return the rank of each value from 1, equal ones sharing the mean of theirs, float64; NaN has none.

    Not torchmetrics' ranks: its sums over equal values are of 32 bits, too few for large splits with many equal scores.
    """
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    return torch.where(values.isnan(), torch.nan, (counts.cumsum(0) - (counts.double() - 1) / 2)[inverse])


@dataclass(frozen=True)
class Metric:
    """A metric, and for how many labels it is; 1 is a regression.

    Args:
        function: takes logits and labels.
        fewest: the least number of labels.
        most: the largest; None for any.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    fewest: int
    most: int | None

    def fits(self, num_labels: int) -> bool:
        """Say whether the metric is for so many labels."""
        return self.fewest <= num_labels and (self.most is None or num_labels <= self.most)


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(accuracy, 2, None),
    "f1": Metric(f1, 2, 2),
    "macro_f1": Metric(macro_f1, 2, None),
    "matthews_correlation": Metric(matthews_correlation, 2, None),
    "pearson": Metric(pearson, 1, 1),
    "spearman": Metric(spearman, 1, 1),
}


def check_metrics(names: Sequence[str], num_labels: int | None = None) -> None:
    """Check that there are such metrics, and that they are for so many labels, if that is known.

    Raises:
        ConfigurationError: if there is none, or an unknown one, or one that does not fit.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        came = ", ".join(map(repr, unknown)) or "none"
        raise ConfigurationError(f"model.metrics must name one or more of {', '.join(METRICS)}; got {came}")
    fitting = [name for name in METRICS if num_labels is None or METRICS[name].fits(num_labels)]
    for name in names:
        if name not in fitting:
            kind = "a regression" if num_labels == 1 else f"{num_labels} labels"
            raise ConfigurationError(f"model.metrics: {name!r} is not for {kind}; use {' or '.join(fitting)}")


def compute_metrics(names: Sequence[str], logits: Logits, labels: Shaped[Tensor, " n"]) -> dict[str, float]:
    """Return the value of each metric by its name."""
    return {name: float(METRICS[name].function(logits, labels)) for name in names}
