import numpy as np
import pytest

from fedgram.data.labels import LabelScheme
from fedgram.data.reading import RawSplit
from fedgram.errors import DataError


def split(labels, names=None):
    size = 3 if labels is None else len(labels)
    return RawSplit((["text"] * size,), labels, names)


@pytest.mark.parametrize(
    ("labels", "names", "given", "expected_names", "expected"),
    [
        ([0, 2, 1], None, None, ("0", "1", "2"), [0, 2, 1]),
        ([0.0, 2.0], None, None, ("0", "1", "2"), [0, 2]),
        ([0, 1], None, 4, ("0", "1", "2", "3"), [0, 1]),
        ([1, 0], ("no", "yes"), None, ("no", "yes"), [1, 0]),
        (["b", "a", "b"], None, None, ("a", "b"), [1, 0, 1]),
        (["b", "a"], None, 2, ("a", "b"), [1, 0]),
        ([True, False], None, None, ("False", "True"), [1, 0]),
        (["yes", "no"], ("yes", "no"), None, ("yes", "no"), [0, 1]),
    ],
)
def test_labels_become_numbers(labels, names, given, expected_names, expected):
    scheme = LabelScheme.of(split(labels, names), given)
    encoded = scheme.encode(split(labels, names), "train")
    assert scheme.names == expected_names
    assert encoded.tolist() == expected
    assert encoded.dtype == np.int64


def test_regression():
    scheme = LabelScheme.of(split([0.5, 3, 1]), 1)
    encoded = scheme.encode(split([0.5, 3]), "train")
    assert scheme.names == ("score",)
    assert encoded.dtype == np.float64
    assert encoded.tolist() == [0.5, 3]
    assert np.isnan(scheme.encode(split(None), "test")).all()


@pytest.mark.parametrize("name", ["test", "test_mismatched"])
@pytest.mark.parametrize("labels", [None, [-1, -1, -1], [None, -1, None], [-1.0, -1.0, -1.0]])
def test_test_split_may_be_unlabelled(labels, name):
    for train in ([0, 1], ["a", "b"]):
        assert LabelScheme.of(split(train), None).encode(split(labels), name).tolist() == [-1, -1, -1]
    assert np.isnan(LabelScheme.of(split([0.5, 1.0]), 1).encode(split(labels), name)).all()


@pytest.mark.parametrize("labels", [None, [-1, -1, -1]])
@pytest.mark.parametrize("name", ["validation", "validation_mismatched", "tests"])
def test_other_splits_may_not_be_unlabelled(labels, name):
    with pytest.raises(DataError, match=rf"{name} split"):
        LabelScheme.of(split([0, 1]), None).encode(split(labels), name)


@pytest.mark.parametrize("name", ["train", "validation", "test"])
@pytest.mark.parametrize("label", [-1, 2])
def test_label_out_of_range(name, label):
    with pytest.raises(DataError, match=rf"{name} split, row 1 .*label {label} lies outside .*0\.\.1; .*num_labels"):
        LabelScheme.of(split([0, 1]), None).encode(split([0, label]), name)


@pytest.mark.parametrize("label", [0.5, float("nan"), float("inf")])
def test_label_that_is_no_whole_number(label):
    with pytest.raises(DataError, match=r"train split, row 1 .*not a whole number.*num_labels to 1"):
        LabelScheme.of(split([1.0, label]), None)


def test_truth_value_among_numbers():
    with pytest.raises(DataError, match=r"validation split, row 0 .*not a whole number"):
        LabelScheme.of(split([0, 1]), None).encode(split([True]), "validation")


@pytest.mark.parametrize("label", ["c", 1, 0])
def test_name_that_the_train_split_lacks(label):
    with pytest.raises(DataError, match=r"validation split, row 1 .*does not occur in the train split.*'a', 'b'"):
        LabelScheme.of(split(["a", "b"]), None).encode(split(["a", label]), "validation")


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_missing_label(name):
    with pytest.raises(DataError, match=rf"{name} split, row 2 .*label is missing"):
        LabelScheme.of(split([0, 1]), None).encode(split([0, 1, None]), name)


@pytest.mark.parametrize("labels", [["a", "b", "c"], [True, False]])
def test_num_labels_that_differs_from_the_names(labels):
    with pytest.raises(DataError, match=rf"num_labels is 5.*set num_labels to {len(labels)}"):
        LabelScheme.of(split(labels), 5)


def test_num_labels_too_small_for_the_numbers():
    scheme = LabelScheme.of(split([0, 1, 2]), 2)
    with pytest.raises(DataError, match=r"row 2 .*0\.\.1"):
        scheme.encode(split([0, 1, 2]), "train")


@pytest.mark.parametrize("labels", [[0, 0], ["a", "a"], [-1, -1]])
def test_single_label(labels):
    with pytest.raises(DataError, match=r"single label"):
        LabelScheme.of(split(labels), None)


@pytest.mark.parametrize("label", ["a", float("nan"), True])
def test_score_that_is_no_number(label):
    with pytest.raises(DataError, match=r"train split, row 0 .*not a finite number"):
        LabelScheme.of(split([0.5]), 1).encode(split([label]), "train")
