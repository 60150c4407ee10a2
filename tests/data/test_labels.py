import datetime
import logging

import numpy as np
import pytest

from fedgram.data import columns
from fedgram.data.columns import Place
from fedgram.data.labels import MOST_CLASSES, LabelScheme
from fedgram.data.reading import RawSplit
from fedgram.errors import DataError


def split(labels, names=None, typed=True):
    size = 3 if labels is None else len(labels)
    return RawSplit((["text"] * size,), labels, names, typed)


def written(labels):
    """Labels as a CSV file has them: a header, then a line each."""
    place = Place("train", "a.csv", range(2, 2 + len(labels)))
    return RawSplit((["text"] * len(labels),), labels, typed=False, place=place)


@pytest.fixture
def notices(caplog):
    columns.notice.cache_clear()
    with caplog.at_level(logging.INFO, logger="fedgram"):
        yield caplog


@pytest.mark.parametrize(
    ("labels", "names", "given", "expected_names", "expected"),
    [
        ([0, 2, 1], None, None, ("0", "1", "2"), [0, 2, 1]),
        ([0.0, 2.0], None, None, ("0", "2"), [0, 1]),
        ([5, 1, 10], None, None, ("1", "5", "10"), [1, 0, 2]),
        ([-1, 1, -1], None, None, ("-1", "1"), [0, 1, 0]),
        ([-1, 0, 1], None, 3, ("-1", "0", "1"), [0, 1, 2]),
        ([-2, -1, 0], None, None, ("-2", "-1", "0"), [0, 1, 2]),
        ([0, 1], None, 4, ("0", "1", "2", "3"), [0, 1]),
        ([1, 4], None, 4, ("1", "2", "3", "4"), [0, 3]),
        ([1, 3], None, 4, ("0", "1", "2", "3"), [1, 3]),
        ([7, 9], None, 2, ("7", "9"), [0, 1]),
        ([np.int64(3), np.int64(1)], None, None, ("1", "3"), [1, 0]),
        ([1, 0], ("no", "yes"), None, ("no", "yes"), [1, 0]),
        ([1.0, 0.0], ("no", "yes"), None, ("no", "yes"), [1, 0]),
        (["1", "0"], ("no", "yes"), None, ("no", "yes"), [1, 0]),
        ([2, 0], ("1", "2", "3"), None, ("1", "2", "3"), [2, 0]),
        (["2", "1"], ("1", "2", "3"), None, ("1", "2", "3"), [1, 0]),
        (["b", "a", "b"], None, None, ("a", "b"), [1, 0, 1]),
        (["b", "a"], None, 2, ("a", "b"), [1, 0]),
        (["10", "9"], None, None, ("9", "10"), [1, 0]),
        (["1.10", "1.1"], None, None, ("1.1", "1.10"), [1, 0]),
        ([True, False], None, None, ("False", "True"), [1, 0]),
        ([True, True], None, 2, ("False", "True"), [1, 1]),
        (["yes", "no"], ("yes", "no"), None, ("yes", "no"), [0, 1]),
        ([datetime.date(2021, 1, 1), datetime.date(2020, 1, 1)], None, None, ("2020-01-01", "2021-01-01"), [1, 0]),
    ],
)
def test_labels_become_numbers(labels, names, given, expected_names, expected):
    scheme = LabelScheme.of(split(labels, names), given)
    encoded = scheme.encode(split(labels, names), "train")
    assert scheme.names == expected_names
    assert encoded.tolist() == expected
    assert encoded.dtype == np.int64


@pytest.mark.parametrize(
    ("labels", "given", "expected_names"),
    [
        (["1", "3", "10"], None, ("1", "3", "10")),
        (["1.0", "3.0"], None, ("1", "3")),
        (["1e2", "+4"], None, ("4", "100")),
        (["1", "4"], 4, ("1", "2", "3", "4")),
        (["01", "1", "2"], None, ("01", "1", "2")),
        (["007", "10", "x"], None, ("007", "10", "x")),
        (["NA", "None"], None, ("NA", "None")),
        (["NA", "b"], None, ("NA", "b")),
        (["1", "2", "other"], 3, ("1", "2", "other")),
        (["a", "b", "3"], 3, ("3", "a", "b")),
        (["0x1", "0x2"], None, ("0x1", "0x2")),
        (["1_000", "x"], None, ("1_000", "x")),
        (["true", "false"], None, ("false", "true")),
        (["2020-01-01", "2021-01-01"], None, ("2020-01-01", "2021-01-01")),
    ],
)
def test_labels_that_were_read_as_text(labels, given, expected_names):
    scheme = LabelScheme.of(written(labels), given)
    assert scheme.names == expected_names
    assert sorted(scheme.encode(written(labels), "train").tolist()) == [
        n for n, name in enumerate(expected_names) if name in labels or len(labels) == len(expected_names)
    ]


ODD = [
    (["1", "2", "NaN", "1"], r"row 3 .*line 4\): label 'NaN' stands among numbers such as 1.*remove such rows"),
    (["1", "None", "1", "none", "0"], r"rows 2, 4 .*lines 3, 5\): label 'None' stands among numbers"),
    (["01", "null", "02"], r"row 2 .*label 'null' stands among numbers such as 01"),
    (
        ["1", "0x1", "0"],
        r"row 2 .*label '0x1' is no number, while the others are numbers.*set num_labels to 3: '1', '0x1'",
    ),
    (["1", "inf", "0"], r"row 2 .*label 'inf' is no number, while"),
    (["1", "0", "unclear"], r"row 3 .*label 'unclear' is no number, while the others are numbers"),
    (["a", "b", "a", "7"], r"row 4 .*label '7' is a number, while the others are names"),
    (["1", "1.0", "2"], r"row 2 .*label 1.0 is written 1 elsewhere"),
    (["+1", "1", "2"], r"row 2 .*label 1 is written \+1 elsewhere"),
    (["1", "2.5", "0.5"], r"rows 2, 3 .*label '2.5' is not a whole number.*num_labels to 1 for a regression"),
    (["pos", " pos", "neg"], r"row 2 .*white space surrounds label ' pos'"),
    (["1 ", "2", "1\u00a0"], r"rows 1, 3 .*white space surrounds label '1 '"),
    (["a", "  ", "b"], r"row 2 .*the label is blank"),
    (["a", None, "b"], r"row 2 .*the label is missing"),
    (
        ["0", "1", "-1"],
        r"row 3 .*label -1 stands beside 0, 1.*remove such rows, or if it is a class set num_labels to 3",
    ),
]


@pytest.mark.parametrize(("labels", "message"), ODD)
def test_an_odd_cell_is_refused_with_its_row(labels, message):
    with pytest.raises(DataError, match=rf"train split \(a\.csv\), {message}"):
        LabelScheme.of(written(labels), None)


def test_a_word_among_numbers_is_named_even_if_another_number_of_labels_was_given():
    with pytest.raises(DataError, match=r"row 3 .*label 'unclear' is no number, .*set num_labels to 3"):
        LabelScheme.of(written(["1", "2", "unclear"]), 2)


@pytest.mark.parametrize("word", ["NaN", "None", "null"])
def test_a_word_for_a_missing_value_among_numbers_is_no_class_even_if_the_number_fits(word):
    with pytest.raises(DataError, match=r"row 1 .*stands among numbers"):
        LabelScheme.of(written([word, "0", "1"]), 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, "1"], r"row 3 .*label '1' is a text, but 1 in row 1 and 1 others are of the kind number"),
        ([0, 1, 0, True], r"row 4 .*label True is a truth value, but 0 in row 1"),
        ([True, False, 1, True], r"row 3 .*label 1 is a number, but True in row 1"),
        (["a", "b", False], r"row 3 .*label False is a truth value, but 'a' in row 1"),
        ([1, 1.0, 0], r"row 2 .*label 1.0 is written 1 elsewhere"),
        ([[1], [2]], r"row 1 .*label \[1\] is a list; expected a number"),
        ([0, 1, float("nan")], r"row 3 .*the label is missing \(NaN\)"),
        ([0, 1, float("inf")], r"row 3 .*label inf is not a whole number"),
        (["1", "2", "NaN"], r"row 3 .*label 'NaN' stands among numbers"),
        (["a", "", "b"], r"row 2 .*the label is blank"),
    ],
)
def test_an_odd_value_of_a_source_with_types_is_refused_with_its_row(labels, message):
    with pytest.raises(DataError, match=rf"train split, {message}"):
        LabelScheme.of(split(labels), None)


def test_the_first_rows_of_many_are_named():
    with pytest.raises(
        DataError, match=r"9 rows: 3, 4, 5, 6, 7, \.\.\. \(counted from 1 without the header; lines 4, 5,"
    ):
        LabelScheme.of(written(["0", "1", *["nan"] * 9, *["1"] * 9]), None)


@pytest.mark.parametrize(
    "labels", [list(range(100, 130)), [f"id {n}" for n in range(30)], [1.7e9 + n for n in range(30)]]
)
def test_labels_that_are_all_different_are_no_classes(labels):
    with pytest.raises(DataError, match=r"has 30 different labels in 30 rows.*set num_labels to 30"):
        LabelScheme.of(split(labels), None)
    assert len(LabelScheme.of(split(labels), 30).names) == 30
    assert len(LabelScheme.of(split(labels * 2), None).names) == 30


def test_more_different_labels_than_classes_may_be():
    labels = list(range(MOST_CLASSES + 1))
    with pytest.raises(DataError, match=r"has 1001 different labels in 4004 rows"):
        LabelScheme.of(split(labels * 4), None)
    assert len(LabelScheme.of(split(labels[1:] * 4), None).names) == MOST_CLASSES


def test_classes_that_look_alike_are_mentioned(notices):
    LabelScheme.of(split(["Pos", "pos", "neg"]), None)
    assert "'Pos' and 'pos' are two classes" in notices.text
    LabelScheme.of(written(["01", "1", "2"]), None)
    assert "'01' and '1' are two classes" in notices.text


def test_a_word_for_a_missing_value_among_names_is_mentioned(notices):
    LabelScheme.of(written(["a", "b", "None", "b"]), None)
    assert "row 3 (counted from 1 without the header; line 4): label 'None' is a class like the others" in notices.text
    notices.clear()
    LabelScheme.of(written(["NA", "None"]), None)
    assert not notices.text


# --- other splits ---


@pytest.mark.parametrize("name", ["test", "test_mismatched"])
@pytest.mark.parametrize("labels", [None, [-1, -1, -1], [None, -1, None], [-1.0, -1.0, -1.0], ["-1", None, "-1"]])
def test_test_split_may_be_unlabelled(labels, name):
    for train in ([0, 1], ["a", "b"]):
        assert LabelScheme.of(split(train), None).encode(split(labels), name).tolist() == [-1, -1, -1]
    assert np.isnan(LabelScheme.of(split([0.5, 1.0]), 1).encode(split(labels), name)).all()


@pytest.mark.parametrize("labels", [None, [-1, -1, -1]])
@pytest.mark.parametrize("name", ["validation", "validation_mismatched", "tests"])
def test_other_splits_may_not_be_unlabelled(labels, name):
    with pytest.raises(DataError, match=rf"{name} split"):
        LabelScheme.of(split([0, 1]), None).encode(split(labels), name)


@pytest.mark.parametrize("name", ["validation", "test"])
@pytest.mark.parametrize(
    ("train", "labels"),
    [
        ([1, 2], [2, 0, 1]),
        ([1, 2], [2, -1, 1]),
        ([1, 2], [2, 1.5, 1]),
        ([0, 1], [0, True, 1]),
        (["a", "b"], ["a", "c", "a"]),
        (["a", "b"], ["a", "A", "a"]),
        ([True, False], [True, 1, True]),
    ],
)
def test_label_that_the_train_split_lacks(train, labels, name):
    scheme = LabelScheme.of(split(train), None)
    labels = labels if type(labels[0]) is type(labels[1]) else labels[1:2]
    row = labels.index(labels[1]) + 1 if len(labels) > 1 else 1
    with pytest.raises(DataError, match=rf"{name} split, row {row} .*does not occur in the train split, whose labels"):
        scheme.encode(split(labels), name)


@pytest.mark.parametrize(
    ("labels", "expected"), [(["2", "1"], [1, 0]), (["2.0", "1.0"], [1, 0]), (["2", "2"], [1, 1]), (["+2"], [1])]
)
def test_a_number_is_the_same_class_however_another_file_writes_it(labels, expected):
    for train in (split([1, 2]), written(["1", "2"]), written(["1.0", "2.0"]), split(["1", "2"])):
        assert LabelScheme.of(train, None).encode(written(labels), "validation").tolist() == expected


@pytest.mark.parametrize("label", ["01", "one", "1.5", "NaN"])
def test_text_that_is_no_number_of_the_train_split(label):
    with pytest.raises(DataError, match=rf"row 2 .*label '{label}' does not occur"):
        LabelScheme.of(split([1, 2]), None).encode(split(["1", label], typed=False), "validation")


@pytest.mark.parametrize("names", [["01", "02", "other"], ["1", "2", "other"]])
def test_a_split_with_some_of_the_classes(names):
    scheme = LabelScheme.of(written(names), 3)
    assert scheme.encode(written(names[1:2]), "validation").tolist() == [1]


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_missing_label(name):
    with pytest.raises(DataError, match=rf"{name} split, row 3 .*label is missing"):
        LabelScheme.of(split([0, 1]), None).encode(split([0, 1, None]), name)


# --- names that a source has for its numbers ---


def test_classes_are_matched_by_name_whatever_their_numbers():
    scheme = LabelScheme.of(split([0, 1], ("no", "yes")), None)
    assert scheme.encode(split([0, 1, 1], ("yes", "no")), "validation").tolist() == [1, 0, 0]
    assert scheme.encode(split([2, 0], ("yes", "perhaps", "no")), "validation").tolist() == [0, 1]
    assert scheme.encode(split(["no", "yes"]), "validation").tolist() == [0, 1]
    assert scheme.encode(split(["yes", "0"], typed=False), "validation").tolist() == [1, 0]
    assert scheme.encode(split([1, 0]), "validation").tolist() == [1, 0]  # by the numbers of the train split


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 0], ("no", "perhaps"), r"row 2 .*label 'perhaps' does not occur in the train split, .*'no', 'yes'"),
        ([0, 2], ("no", "yes"), r"row 2 .*label 2 is none of the classes; expected 0\.\.1 or one of 'no', 'yes'"),
        ([0, -1], ("no", "yes"), r"row 2 .*the label is missing"),
        ([0, None], ("no", "yes"), r"row 2 .*the label is missing"),
        ([0, True], ("no", "yes"), r"row 2 .*label True is none of the classes"),
        ([0, 2], None, r"row 2 .*label 2 does not occur"),
        ([0, 1], ("0", "1"), r"rows 1, 2 .*label '0' does not occur in the train split"),
    ],
)
def test_names_and_numbers_that_the_train_split_lacks(labels, names, message):
    with pytest.raises(DataError, match=rf"validation split, {message}"):
        LabelScheme.of(split([0, 1], ("no", "yes")), None).encode(split(labels, names), "validation")


def test_numbers_without_names_and_a_split_with_names():
    with pytest.raises(DataError, match=r"label 'no' does not occur in the train split, whose labels are '0', '1'"):
        LabelScheme.of(split([0, 1]), None).encode(split([0, 1], ("no", "yes")), "validation")


def test_names_that_are_numbers_are_names():
    scheme = LabelScheme.of(split([0, 1, 2], ("1", "2", "3")), None)
    assert scheme.encode(split(["1", "3"], typed=False), "validation").tolist() == [0, 2]
    assert scheme.encode(split([1, 3]), "validation").tolist() == [0, 2]


def test_two_classes_of_one_name():
    with pytest.raises(DataError, match=r"several classes of one name among 'a', 'a'"):
        LabelScheme.of(split([0, 1], ("a", "a")), None)


# --- how many labels ---


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        (split(["a", "b", "c"]), 3),
        (split([True, False]), 2),
        (split([0, 1], ("a", "b", "c")), 3),
        (split([0, 1, 7]), 3),
        (split([1, 9]), 2),
    ],
)
def test_num_labels_that_differs_from_what_is_there(raw, count):
    with pytest.raises(DataError, match=rf"num_labels is 5.*set num_labels to {count}"):
        LabelScheme.of(raw, 5)


def test_num_labels_too_small_for_the_numbers():
    with pytest.raises(DataError, match=r"num_labels is 2, but the train split has the 3 labels 0, 1, 2"):
        LabelScheme.of(split([0, 1, 2]), 2)


@pytest.mark.parametrize("labels", [[0, 0], ["a", "a"], [-1, -1], [True, True]])
def test_single_label(labels):
    with pytest.raises(DataError, match=r"single label"):
        LabelScheme.of(split(labels), None)


# --- regressions ---


@pytest.mark.parametrize("labels", [[0.5, 3, 1], ["0.5", "3", "1e0"], [" .5", "3.0", "1"]])
def test_regression(labels):
    scheme = LabelScheme.of(split(labels), 1)
    encoded = scheme.encode(split(labels), "train")
    assert scheme.names == ("score",)
    assert encoded.dtype == np.float64
    assert encoded.tolist() == [0.5, 3, 1]
    assert np.isnan(scheme.encode(split(None), "test")).all()


@pytest.mark.parametrize(
    "label", ["a", float("nan"), "nan", float("inf"), "-inf", True, "0x1", "1_0", "1,5", 1e39, "1e400", 10**400]
)
def test_score_that_is_no_number(label):
    with pytest.raises(DataError, match=r"train split, rows 2, 4 .*label .* is not a finite number"):
        LabelScheme.of(split([0.5]), 1).encode(split([0.5, label, 1.0, label]), "train")


@pytest.mark.parametrize("label", [None])
def test_missing_score(label):
    with pytest.raises(DataError, match=r"row 2 .*label is missing"):
        LabelScheme.of(split([0.5]), 1).encode(split([0.5, label]), "train")


def test_equal_scores_are_mentioned(notices):
    LabelScheme.of(split([3, 3]), 1).encode(split([3, 3]), "train")
    assert "all 2 scores are 3, so that no correlation with them is defined" in notices.text
