import argparse
import json
import platform

import pytest

import report

DOCUMENT = "# Title\n\nBefore.\n\n<!-- speed:begin -->\nold\nolder\n<!-- speed:end -->\n\nAfter.\n"


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(DOCUMENT)
    return path


def test_a_table_replaces_what_stands_between_its_markers_and_nothing_else(document):
    report.write_table(document, "speed", ["| a |", "|---|"])
    assert document.read_text() == (
        "# Title\n\nBefore.\n\n<!-- speed:begin -->\n\n| a |\n|---|\n\n<!-- speed:end -->\n\nAfter.\n"
    )


def test_writing_a_table_twice_is_writing_it_once(document):
    report.write_table(document, "speed", ["| a |"])
    once = document.read_text()
    report.write_table(document, "speed", ["| a |"])
    assert document.read_text() == once


@pytest.mark.parametrize(
    "text",
    [
        "none",
        "<!-- speed:begin -->",
        "<!-- speed:end --> <!-- speed:begin -->",
        DOCUMENT + DOCUMENT,
        "<!-- speeds:begin --> <!-- speeds:end -->",
    ],
)
def test_a_document_without_a_place_for_the_table_is_left_as_it_is(document, text):
    document.write_text(text)
    with pytest.raises(report.MarkersMissingError, match=r"<!-- speed:begin --> .* page\.md"):
        report.write_table(document, "speed", ["| a |"])
    assert document.read_text() == text
    assert list(document.parent.iterdir()) == [document]


def test_a_ratio_is_taken_pass_by_pass():
    assert report.paired_ratio([10.0, 200.0, 30.0], [5.0, 100.0, 10.0]) == 2.0
    with pytest.raises(ValueError, match="got 1 and 2"):
        report.paired_ratio([1.0], [1.0, 2.0])


def test_the_hardware_is_told_by_date_processor_cores_and_torch():
    words = report.hardware()
    assert words[:2] == "20"
    assert " core" in words
    assert "torch 2." in words
    assert platform.node() not in words


def test_of_a_processor_the_name_and_what_matters_for_products_is_told(monkeypatch):
    text = "processor : 0\nmodel name : Fast One\nflags : fpu avx2 avx512f amx_bf16\n\nmodel name : Another\n"
    monkeypatch.setattr(report, "_read", lambda path: text)
    assert report._cpu() == "Fast One (AVX2, AVX-512, AMX bfloat16)"


def test_publishing_shows_the_table_saves_the_figures_and_writes_the_document(document, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    report.add_options(parser)
    target = tmp_path / "new" / "figures.json"
    arguments = parser.parse_args(["--json", str(target), "--write", str(document)])
    report.publish(arguments, "speed", report.table(["what"], [["fast"]]), {"seconds": 1.5})
    shown = capsys.readouterr().out
    assert "| fast |" in shown
    assert shown.strip() in document.read_text()
    saved = json.loads(target.read_text())
    assert saved["speed"] == {"seconds": 1.5}
    assert saved["hardware"] in shown


def test_the_best_time_is_of_timed_calls_only(monkeypatch):
    calls = clock_calls(monkeypatch, [1.0, 5.0, 2.0, 3.0])
    assert report.best_seconds(lambda: calls.append(0), repeats=3) == 2.0
    assert len(calls) == 4


@pytest.mark.parametrize(("took", "best"), [([9.0, 1.0], 9.0), ([1.0, 4.0, 6.0, 2.0], 4.0)])
def test_what_takes_long_is_timed_fewer_times(monkeypatch, took, best):
    calls = clock_calls(monkeypatch, took)
    assert report.best_seconds(lambda: calls.append(0), repeats=5, within=8.0) == best
    assert len(calls) == len(took) - 1


def clock_calls(monkeypatch, took):
    """Have a clock by which calls take so long, and return the list that each call is to be added to."""
    times = iter([time for seconds in took for time in (0.0, seconds)])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    return []
