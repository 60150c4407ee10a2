"""Checks of single settings, and of those of a trainer."""

import doctest
import math

import pytest

from fedgram import FederatedTrainer, settings
from fedgram.errors import ConfigurationError
from fedgram.settings import TrainerSettings, check


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(settings).attempted


@pytest.mark.parametrize("value", [1, 2.5, 3])
def test_a_number_inside_of_its_range_passes(value):
    check("method.x", value, at_least=1, at_most=3)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "method.x must be at least 1, got 0; so many"),
        (4_000, "method.x must be at most 3,000, got 4000; so many"),
        (math.nan, "method.x must be at least 1, got nan; so many"),
        (math.inf, "method.x must be at most 3,000, got inf; so many"),
    ],
)
def test_a_number_outside_is_refused_with_its_range_and_the_hint(value, message):
    with pytest.raises(ConfigurationError) as caught:
        check("method.x", value, at_least=1, at_most=3_000, hint="so many")
    assert str(caught.value) == message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_without_bounds_too(value):
    with pytest.raises(ConfigurationError, match=r"method\.x must be a finite number"):
        check("method.x", value)


def test_defaults_stand_in_one_place_and_derived_values_follow(tmp_path):
    found = FederatedTrainer(accelerator="cpu", clients=20, participation=0.2, default_root_dir=str(tmp_path)).settings
    assert (found.cohort_size, found.root) == (4, tmp_path)
    with pytest.raises(TypeError, match="missing"):
        TrainerSettings()
