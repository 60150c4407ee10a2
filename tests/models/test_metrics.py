import math
import warnings

import numpy as np
import pytest
import torch

from fedgram.errors import ConfigurationError
from fedgram.models.metrics import METRICS, check_metrics, compute_metrics


def logits_of(predicted, classes):
    """Logits, as far from one-hot as they can be, whose largest are the predictions."""
    noise = np.random.default_rng(0).uniform(0, 1, (len(predicted), classes))
    return torch.tensor(noise - 5 + 1.1 * np.eye(classes)[predicted], dtype=torch.float32)


def of(name, logits, labels):
    """One metric, with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return compute_metrics([name], logits, torch.tensor(labels))[name]


def f1_of(predicted, labels, label):
    true = ((predicted == label) & (labels == label)).sum()
    return 2 * true / ((predicted == label).sum() + (labels == label).sum())


def matthews(predicted, labels, classes):
    """Gorodkin's R_K: the correlation of one-hot predictions and labels."""
    x, y = np.eye(classes)[predicted], np.eye(classes)[labels]
    x, y = x - x.mean(0), y - y.mean(0)
    return (x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum())


@pytest.fixture
def answers():
    """Predictions that are right for about two of three, of unevenly many classes."""

    def answers(classes, samples=500):
        random = np.random.default_rng(classes)
        labels = random.choice(classes, samples, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
        wrong = random.random(samples) < 1 / 3
        return np.where(wrong, random.integers(0, classes, samples), labels), labels

    return answers


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classification_equals_the_textbook(answers, classes):
    predicted, labels = answers(classes)
    logits = logits_of(predicted, classes)
    assert of("accuracy", logits, labels) == pytest.approx((predicted == labels).mean(), abs=1e-6)
    macro = np.mean([f1_of(predicted, labels, label) for label in range(classes)])
    assert of("macro_f1", logits, labels) == pytest.approx(macro, abs=1e-6)
    assert of("matthews_correlation", logits, labels) == pytest.approx(matthews(predicted, labels, classes), abs=1e-6)


def test_f1_is_that_of_class_1(answers):
    predicted, labels = answers(2)
    assert of("f1", logits_of(predicted, 2), labels) == pytest.approx(f1_of(predicted, labels, 1), abs=1e-6)
    assert abs(f1_of(predicted, labels, 1) - f1_of(predicted, labels, 0)) > 0.05


def mean_ranks(values):
    """Ranks by counting: how many are smaller, and half of the others that are equal."""
    return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_regression_equals_the_textbook(scale):
    random = np.random.default_rng(0)
    labels = np.round(random.uniform(0, 5, 300), 1)  # many ties
    predicted = np.round(np.exp(labels / 2) + random.normal(0, 2, 300), 1) * scale + 3 * scale
    logits = torch.tensor(predicted)[:, None]
    assert of("pearson", logits, labels) == pytest.approx(np.corrcoef(predicted, labels)[0, 1], abs=1e-9)
    expected = np.corrcoef(mean_ranks(predicted), mean_ranks(labels))[0, 1]
    assert of("spearman", logits, labels) == pytest.approx(expected, abs=1e-9)
    assert abs(of("pearson", logits, labels) - expected) > 0.01


def test_predictions_of_float32_that_hardly_differ_are_correlated_without_a_warning():
    labels = np.array([0.0, 1.0, 2.0, 4.0])
    logits = torch.tensor([[0.1], [0.1 + 1e-7], [0.1 + 2e-7], [0.1 + 4e-7]], dtype=torch.float32)
    assert of("pearson", logits, labels) > 0.9
    assert of("spearman", logits, labels) > 0.9


def test_ranks_of_many_equal_scores():
    """Sums of the ranks of equal scores that do not fit into 32 bits."""
    labels = np.repeat([0.0, 1.0], 70_000)
    logits = torch.arange(140_000, dtype=torch.float64)[:, None]
    # Between two halves and n distinct ranks it is sqrt(3) / 2 in the limit of many samples.
    assert of("spearman", logits, labels) == pytest.approx(np.sqrt(3) / 2, abs=1e-6)


CONSTANTS = [
    (logits_of([1, 1, 1, 1], 2), [0, 1, 0, 1]),
    (logits_of([1, 1, 1, 1], 2), [0, 0, 0, 1]),
    (logits_of([0, 0, 0, 0], 2), [0, 0, 0, 0]),
    (logits_of([0, 1, 0, 1], 2), [1, 1, 1, 1]),
    (logits_of([1, 1, 1, 1], 2), [0, 0, 0, 0]),
    (logits_of([2, 2, 2, 2], 3), [0, 1, 2, 1]),
]


@pytest.mark.parametrize(("logits", "labels"), CONSTANTS)
def test_matthews_correlation_of_constants_is_zero_as_scikit_learns(logits, labels):
    assert of("matthews_correlation", logits, labels) == 0.0


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize(
    ("predicted", "labels"),
    [
        ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [0.1, 0.1, 0.1]),
        ([1.0, float("nan"), 3.0], [1.0, 2.0, 3.0]),
        ([1.0], [1.0]),
    ],
)
def test_an_undefined_correlation_is_nan(name, predicted, labels):
    assert math.isnan(of(name, torch.tensor(predicted)[:, None], labels))


def test_pearson_of_infinite_predictions_is_nan():
    assert math.isnan(of("pearson", torch.tensor([[0.0], [1.0], [float("inf")]]), [1.0, 2.0, 3.0]))


def test_f1_without_positives_is_zero_as_scikit_learns():
    assert of("f1", logits_of([0, 0, 0], 2), [0, 0, 0]) == 0.0


@pytest.mark.parametrize("names", [["accuracy", "precision"], []])
def test_unknown_metrics_are_refused(names):
    with pytest.raises(ConfigurationError, match=r"accuracy, f1, .*spearman; got ('precision'|none)$"):
        check_metrics(names)


@pytest.mark.parametrize(
    ("name", "num_labels", "said"),
    [
        ("f1", 3, r"'f1' is not for 3 labels; use accuracy or macro_f1 or matthews_correlation"),
        ("pearson", 2, r"'pearson' is not for 2 labels; use accuracy or f1 or "),
        ("accuracy", 1, r"'accuracy' is not for a regression; use pearson or spearman"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(name, num_labels, said):
    with pytest.raises(ConfigurationError, match=said):
        check_metrics([name], num_labels)


def test_every_metric_is_for_some_number_of_labels():
    for name in METRICS:
        check_metrics([name])
        assert any(METRICS[name].fits(labels) for labels in (1, 2, 3))
