"""Two runs in a real TensorBoard, as a browser shows them.

``--board-runs FOLDER`` takes two runs that are there already, and ``--board-picture FILE`` keeps a picture of their
charts: ``make screenshots`` has the README's from here.
"""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from browser import SECONDS, end
from tables import rows
from tiny_glue import write_glue

METHODS = {"FLoRG": ["--method.target_modules=[query]"], "FedIT": []}  # a setting that is a list, and None elsewhere

pytestmark = pytest.mark.browser

CHARTS = """
return everywhere("tf-custom-scalar-multi-line-chart-card").map((card) => ({
    title: card.title,
    runs: everywhere(".match-list-entry", card).map((entry) => [
        getComputedStyle(entry).color, entry.textContent.match(/\\((.*)\\)/)[1]
    ]),
    lines: everywhere("path.line", card).map((line) => [getComputedStyle(line).stroke, line.getAttribute("d")]),
}))
"""
"""Of every chart of CUSTOM SCALARS: its title, the colour of each run in its legend, and the lines with theirs."""

TABLE = """
return everywhere("tr", everywhere("vaadin-grid")[0]).map((row) =>
    everywhere("slot", row).map((slot) => slot.assignedElements().map((cell) => cell.innerText.trim()).join()))
"""
"""The texts of the cells of HPARAMS, row by row."""


@pytest.fixture(scope="module")
def logdir(request, tiny_backbone, tmp_path_factory):
    """A folder with the run of one method and that of another."""
    given = request.config.getoption("--board-runs")
    if given is not None:
        return Path(given)
    folder = tmp_path_factory.mktemp("board")
    options = {
        "model": "TextClassification",
        "model.backbone": tiny_backbone,
        "data": "GLUE",
        "data.task": "stsb",  # a regression: the metrics of so small a model are at least no constants
        "data.path": write_glue(folder / "stsb", "stsb"),
        "data.cache_dir": folder / "cache",
        "data.partition": "IID",
        "optimizer.lr": 0.02,
        "trainer.rounds": 4,
        "trainer.clients": 4,
        "trainer.local_steps": 4,
        "trainer.accelerator": "cpu",
        "trainer.default_root_dir": folder / "runs",
    }
    for method, further in METHODS.items():
        arguments = [f"--method={method}", "--method.rank=2", *further, *(f"--{k}={v}" for k, v in options.items())]
        subprocess.run([sys.executable, "-m", "fedgram", "fit", *arguments], check=True, timeout=300, cwd=folder)
    return folder / "runs"


@pytest.fixture(scope="module")
def runs(logdir):
    """The folders of the runs, by what TensorBoard calls them."""
    folders = sorted(path.parent for path in logdir.rglob("events.out.tfevents.*"))
    return {str(folder.relative_to(logdir)): folder for folder in folders}


@pytest.fixture(scope="module")
def board(logdir):
    """The address of a TensorBoard that has read the runs."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    too_long = threading.Timer(SECONDS, end, [process.pid])
    too_long.start()
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r" at (http://127\.0\.0\.1:\d+/)", line):
                break
        else:
            pytest.fail(f"TensorBoard did not start: {''.join(said)}")
        too_long.cancel()
        yield found[1]
    finally:
        too_long.cancel()
        end(process.pid)
        process.wait()
        process.stdout.close()


def ask(board, path, content=None):
    """What TensorBoard answers."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(board + path, None if content is None else json.dumps(content).encode(), headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=SECONDS) as answer:
        return json.load(answer)


@pytest.fixture
def page(browser, board):
    """Opens a tab of TensorBoard, and sees in the end that no error is on the console."""
    browser.resize(1400, 1000)

    def open_tab(name, query=""):
        browser.open(f"{board}{query}#{name}")
        return browser

    yield open_tab
    assert browser.errors() == []


def corners(path):
    """The corners of a line, in pixels: ``(n, 2)``."""
    return np.array([[float(number) for number in corner.split(",")] for corner in re.split("[ML]", path)[1:]])


def metric(runs):
    """What the runs' task is judged by."""
    folder = next(iter(runs.values()))
    return next(key for key in summary(folder)["final"] if key != "loss")


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def curve(folder, columns):
    """Two columns of a run's metrics.csv, where both have a figure: ``(rounds, 2)``."""
    table = rows(folder)
    for row in table:
        row["megabytes"] = float(row["megabytes_up"]) + float(row["megabytes_down"])
    return np.array([[float(row[key]) for key in columns] for row in table if all(row[key] != "" for key in columns)])


def lines_on(charts, title, runs):
    """The line of every run on a chart."""
    (chart,) = [chart for chart in charts if chart["title"] == title]
    colours = {run: colour for colour, run in chart["runs"]}
    lines = dict(chart["lines"])
    assert colours.keys() == runs.keys()
    assert lines.keys() == set(colours.values())
    assert len(lines) == len(chart["lines"]) == len(runs)
    return {run: corners(lines[colour]) for run, colour in colours.items()}


def assert_curves(lines, curves):
    """See that the lines of runs are their curves, on the same axes for all runs."""
    pixels, values = (np.concatenate([each[run] for run in curves]) for each in (lines, curves))
    assert pixels.shape == values.shape
    for axis in range(2):
        slope, offset = np.polyfit(values[:, axis], pixels[:, axis], 1)
        assert np.abs(slope * values[:, axis] + offset - pixels[:, axis]).max() < 1
        assert np.ptp(pixels[:, axis]) > 20
    one, other = curves.values()
    assert not np.array_equal(one, other)  # or one run drawn twice would do


def test_the_scalars_of_two_methods_show_on_one_chart(page, runs, request):
    name = metric(runs)
    charts = {
        f"{name}, by round": ("round", name),
        f"{name}, by bytes sent up and down": ("megabytes", name),
        "aggregation error, by round": ("round", "aggregation_error"),
        "megabytes sent up, by round": ("round", "megabytes_up"),
        "megabytes sent down, by round": ("round", "megabytes_down"),
    }
    chromium = page("custom_scalars&_smoothingWeight=0")
    lines = "everywhere('path.line').filter((line) => line.getAttribute('d'))"
    chromium.wait_for(f"return {lines}.length >= {len(runs) * len(charts)}")
    shown = chromium.settled(CHARTS)
    for title, columns in charts.items():
        assert_curves(lines_on(shown, title, runs), {run: curve(folder, columns) for run, folder in runs.items()})
    picture = request.config.getoption("--board-picture")
    if picture is not None:
        take_picture(chromium, Path(picture))


def test_time_series_have_both_runs_on_one_card(page, runs):
    chromium = page("timeseries", f"?tagFilter=%5E{metric(runs)}%24")
    for run in runs:
        chromium.wait_for("return everywhere('runs-data-table')[0]?.innerText.includes(arguments[0])", run)
        chromium.wait_for("return everywhere('scalar-card')[0]?.innerText.includes(arguments[0])", run)
    assert chromium.run("return everywhere('scalar-card tb-truncated-path').map((c) => c.title)") == [metric(runs)]


def test_scalars_of_one_tag_are_drawn_for_both_runs(page, runs):
    chromium = page("scalars&_smoothingWeight=0")
    lines = f"everywhere('path.line', everywhere('tf-scalar-card').find((card) => card.tag === '{metric(runs)}'))"
    chromium.wait_for(f"return everywhere('tf-scalar-card').length > 5 && {lines}.length >= {len(runs)}")
    assert len(set(chromium.run(f"return {lines}.map((line) => getComputedStyle(line).stroke)"))) == len(runs)


def test_the_hparams_table_has_a_row_of_every_run_with_its_final_metrics(page, runs):
    chromium = page("hparams")
    for run in runs:
        chromium.wait_for("return everywhere('vaadin-grid')[0]?.innerText.includes(arguments[0])", run)
    header, *table = [row for row in chromium.run(TABLE) if any(row)]
    assert sorted(row[0] for row in table) == sorted(runs)
    for row in table:
        shown = dict(zip(header, row[: len(header)], strict=True))  # the last cell is of what unfolds below a row
        expected = summary(runs[shown["Trial ID"]])
        assert shown["method"] == expected["method"]
        assert float(shown["trainer.seed"]) == expected["seed"]
        for key in (metric(runs), "loss"):
            assert float(shown[key]) == pytest.approx(expected["final"][key], rel=1e-3)
        assert float(shown["megabytes_up"]) == pytest.approx(expected["bytes_up"] / 1e6, rel=1e-3)


def test_the_hparams_table_can_be_sorted_by_every_setting(board, runs):
    wait_for_runs(board, runs)
    known = ask(board, "data/plugin/hparams/experiment", {"experimentName": ""})["hparamInfos"]
    assert {"method", "method.target_modules", "trainer.local_epochs", "optimizer.betas"} <= {i["name"] for i in known}
    for info in known:
        column = {"hparam": info["name"], "order": "ORDER_ASC"}
        statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        query = {"experimentName": "", "allowedStatuses": statuses, "colParams": [column], "sliceSize": 10}
        found = ask(board, "data/plugin/hparams/session_groups", query)["sessionGroups"]
        assert {group["name"] for group in found} == runs.keys(), info


def test_the_partition_of_every_run_is_shown(page, runs):
    chromium = page("images")
    shown = """
        return Object.fromEntries(everywhere("tf-image-loader").map((image) =>
            [image.run, [image.tag, everywhere("img", image).map((picture) => picture.naturalWidth)]]))
    """
    chromium.wait_for("return everywhere('tf-image-loader img, img').filter((i) => i.naturalWidth > 100).length >= 2")
    pictures = chromium.run(shown)
    assert pictures.keys() == runs.keys()
    for tag, widths in pictures.values():
        assert tag == "partition"
        assert len(widths) == 1
        assert widths[0] > 100


def wait_for_runs(board, runs):
    end_of_patience = time.monotonic() + SECONDS
    while set(ask(board, "data/runs")) != runs.keys():
        assert time.monotonic() < end_of_patience
        time.sleep(0.2)


def take_picture(chromium, path):
    """Keep the first four charts, large enough to be read where the picture is as wide as a page of text."""
    from PIL import Image

    chromium.resize(1080, 694, scale=1.5)
    chromium.run("everywhere('paper-checkbox').find((box) => box.textContent.includes('Ignore outliers')).click()")
    chromium.settled(CHARTS)
    chromium.screenshot(path)
    with Image.open(path) as image:
        image.convert("RGB").quantize(64).save(path, optimize=True)
