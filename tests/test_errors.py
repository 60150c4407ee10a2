import doctest

import pytest

from fedgram import errors


def test_the_examples_of_the_docstrings_hold():
    result = doctest.testmod(errors)
    assert result.attempted
    assert not result.failed


def test_an_error_that_is_not_fedgrams_is_told_with_its_class():
    with pytest.raises(KeyError) as caught, errors.located("round 2"):
        {}["no"]
    assert errors.explain(caught.value) == "round 2: KeyError: 'no'"
    assert errors.explain(errors.DataError("empty")) == "empty"


def test_every_error_has_an_exit_code_of_its_kind():
    assert (errors.DataError.exit_code, errors.Preempted("SIGTERM came", "SIGTERM").exit_code) == (1, 75)
