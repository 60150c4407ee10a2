"""What `fedgram compare` says of runs whose files hold what they should not."""

import json

import pytest

from fedgram.cli.compare import main
from fedgram.comparison import read_runs
from fedgram.comparison.pictures import draw_communication, draw_partition
from fedgram.comparison.runs import group_runs
from fedgram.errors import DataError
from made_runs import write_run

JUNK = {
    "a text": [5, None, "", [], {}, True],
    "a whole number": ["5", None, 1.5, True, [1], {}],
    "an object of numbers": [5, "x", [1], {"accuracy": "0.7"}, {"accuracy": [0.7]}, {"accuracy": True}],
    "a number of at least 0": ["5", -1, [1], {}, False, 10**400],
    "an object with numbers for": [5, [], "x", {"trainer.clients": "20"}, {"trainer.participation": None}],
    "a list of texts": ["cpu", [1], {}],
    "an object of texts": ["2.0", [], {"torch": 2.0}],
}
FIELDS = {
    "method": "a text",
    "task": "a text",
    "backbone": "a text",
    "git_commit": "a text",
    "seed": "a whole number",
    "rounds": "a whole number",
    "initial": "an object of numbers",
    "final": "an object of numbers",
    "best": "an object of numbers",
    "bytes_up": "a number of at least 0",
    "parameters_down": "a number of at least 0",
    "client_flops": "a number of at least 0",
    "server_flops": "a number of at least 0",
    "seconds": "a number of at least 0",
    "peak_megabytes": "a number of at least 0",
    "evaluated_samples": "a number of at least 0",
    "settings": "an object with numbers for",
    "devices": "a list of texts",
    "versions": "an object of texts",
}
MAY_BE_NULL = ("backbone", "git_commit")


@pytest.mark.parametrize(("field", "expected"), FIELDS.items(), ids=FIELDS)
def test_a_field_of_a_wrong_type_is_one_line(tmp_path, field, expected):
    own = write_run(tmp_path)
    summary = json.loads((own / "summary.json").read_text())
    for value in [*JUNK[expected], "y" * 1000 if expected != "a text" else -1]:
        if value is None and field in MAY_BE_NULL:
            continue
        (own / "summary.json").write_text(json.dumps(summary | {field: value}))
        with pytest.raises(DataError) as caught:
            read_runs([tmp_path])
        message = str(caught.value)
        assert message.startswith(f"{own} is damaged ({field} of summary.json should be {expected}")
        assert message.endswith("; run it again, or leave its folder out")
        assert len(message) < len(str(own)) + 300


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"null", "summary.json holds null instead of an object"),
        (b"[1]", r"summary.json holds \[1\] instead of an object"),
        (b"[" * 100_000, "recursion"),
        (b'{"final": ' * 100_000, "recursion"),
        (b"", "Expecting value"),
        (b"\xff\xfe", "utf-8"),
        (b"<!DOCTYPE html>", "Expecting value"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    ],
)
def test_a_summary_that_is_none_is_one_line(tmp_path, content, reason):
    own = write_run(tmp_path)
    (own / "summary.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"version_0 is damaged \(.*{reason}.*; run it again, or leave its folder out"):
        read_runs([tmp_path])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"round,accuracy\n0\n", "row 1 of metrics.csv has 1 cells, and the header 2"),
        (b"round,accuracy\n0,0.5\n1,0.6,7\n", "row 2 of metrics.csv has 3 cells, and the header 2"),
        (b"round,accuracy\n0,\0\n", "could not convert|NUL"),
        (b"\xff\xfe", "utf-8"),
        (b'round\n"' + b"x" * 200_000, "field larger than"),
    ],
)
def test_a_table_that_is_none_is_one_line(tmp_path, content, reason):
    own = write_run(tmp_path)
    (own / "metrics.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"version_0 is damaged \(.*({reason})"):
        read_runs([tmp_path])


@pytest.mark.parametrize("content", ["", "round,part\n1,head\n", "direction,part,bytes\nup,head,x\n"])
def test_a_damaged_table_of_what_was_sent_is_one_line_or_has_no_heads(tmp_path, content):
    own = write_run(tmp_path)
    (own / "communication.csv").write_text(content)
    groups = group_runs(read_runs([tmp_path]))
    if not content:
        assert draw_communication(groups) is not None
        return
    with pytest.raises(DataError, match="version_0 is damaged"):
        draw_communication(groups)


@pytest.mark.parametrize("content", ["x", "client,good\n0,many\n", "client\n", "\0"])
def test_a_damaged_partition_is_one_line(tmp_path, content):
    own = write_run(tmp_path)
    (own / "partition.csv").write_text(content)
    with pytest.raises(DataError, match="version_0 is damaged"):
        draw_partition(read_runs([tmp_path])[0])


def test_fields_that_may_be_null_or_absent_leave_a_comparison_whole(tmp_path, capsys):
    own = write_run(tmp_path)
    summary = json.loads((own / "summary.json").read_text())
    needed = ("method", "task", "seed", "final", "initial", "rounds")
    bare = {key: value if key in needed else None for key, value in summary.items()}
    for content in (bare, {key: summary[key] for key in needed[:4]}):
        (own / "summary.json").write_text(json.dumps(content))
        main([str(tmp_path)])
        assert "FLoRG" in capsys.readouterr().out
