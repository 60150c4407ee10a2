"""What reading of data leaves behind, and says."""

import datasets
import pytest

from fedgram.data.reading import _quiet, read_file
from fedgram.data.squad import _span
from fedgram.errors import DataError


def test_an_empty_first_line_counts_where_a_byte_is_blamed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"text": "fine", "label": 0}\n{"text": "caf\xe9", "label": 1}\n')
    with pytest.raises(DataError, match=r"byte 0xe9 in line 3 is not UTF-8"):
        read_file(path, ["text"])


def test_the_library_of_data_sets_speaks_again_afterwards():
    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity_info()
    try:
        with _quiet():
            assert datasets.logging.get_verbosity() == datasets.logging.ERROR
        assert datasets.logging.get_verbosity() == datasets.logging.INFO
    finally:
        datasets.logging.set_verbosity(before)


@pytest.mark.parametrize(
    ("answers", "span"),
    [
        ([("Lee", 4)], (4, 7)),
        ([("Ann", 4), ("Lee", 4)], (4, 7)),  # the first that is where it is said to be
        ([("Lee", 3)], (-1, -1)),
        ([("Lee", -4)], (-1, -1)),  # which would be there, counted from the end
        ([(" ", 3)], (-1, -1)),
        ([], (-1, -1)),
    ],
)
def test_the_characters_of_an_answer(answers, span):
    assert _span("Ann Lee.", answers) == span
