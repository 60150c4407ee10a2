import pytest
from PIL import Image

from fedgram.comparison import group_runs, read_runs
from fedgram.comparison.caveats import caveats
from fedgram.comparison.overview import View, group_tables
from fedgram.comparison.pictures import all_pictures
from fedgram.comparison.report import write_report
from made_runs import write_run

pytestmark = pytest.mark.browser

METHODS = ("FFALoRA", "FLoRG", "FedIT")
WHITE, DARK = (255, 255, 255), (23, 25, 28)


@pytest.fixture
def report(tmp_path):
    for method in METHODS:
        for seed in (0, 1):
            accuracy = (0.5, 0.6, 0.7 + seed / 100)
            folder = write_run(tmp_path, method, seed, accuracy=accuracy, columns={"drift": [None, 0.2, 0.1]})
            (folder / "partition.csv").write_text("client,samples,bad,good\n0,4,3,1\n1,5,0,5\n")
            (folder / "config.yaml").touch()
    groups, view = group_runs(read_runs([tmp_path])), View()
    write_report(tmp_path / "report.html", groups, group_tables(groups, view), view, caveats(groups, view))
    return tmp_path / "report.html", [picture.name for picture in all_pictures(groups)]


VISIBLE_ROWS = """
return [...document.querySelectorAll("table")].map(table => [...table.querySelectorAll("tbody tr")]
    .filter(row => row.checkVisibility() && row.getBoundingClientRect().height > 10).length)"""
PICTURES = """
return [...document.querySelectorAll("figure")].map(figure => {
    const {width, height} = figure.querySelector("svg").getBoundingClientRect();
    return [figure.id, width, height, figure.querySelectorAll("svg path").length]})"""


def paint(browser, path):
    browser.screenshot(path)
    with Image.open(path) as image:
        return image.convert("RGB").copy()


def test_the_report_opens_from_a_file_with_tables_and_pictures_and_no_complaint(browser, report):
    path, pictures = report
    browser.open(path)
    assert browser.driver.title == "FFALoRA, FLoRG, FedIT on task"
    overview, shared, runs = browser.run(VISIBLE_ROWS)
    assert (overview, shared, runs) == (len(METHODS), 0, 2 * len(METHODS))
    shown = browser.run(PICTURES)
    assert (
        [name for name, *_ in shown]
        == pictures
        == ["curves", "training_loss", "compute", "aggregation", "communication", "partition"]
    )
    assert all(width > 200 and height > 100 and paths > 20 for _, width, height, paths in shown)
    assert "fewer than 3 seeds" in browser.text()
    assert browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)") == []  # asked for
    assert browser.console() == []


def test_the_settings_that_all_share_unfold(browser, report):
    path, _ = report
    browser.open(path)
    browser.run("document.querySelector('summary').click()")
    assert browser.run(VISIBLE_ROWS)[1] > 10


def test_it_fits_a_narrow_screen(browser, report):
    path, _ = report
    browser.resize(400, 800)
    browser.open(path)
    assert browser.run("return document.documentElement.scrollWidth") == 400
    assert all(width > 300 for _, width, *_ in browser.run(PICTURES))


def test_it_fits_on_paper_with_all_that_is_folded(browser, report):
    path, _ = report
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.resize(1040, 700)  # A4, landscape, less its margins
    browser.open(path)
    assert browser.run("return document.documentElement.scrollWidth") == 1040
    assert browser.run("return document.querySelector('#shared').getBoundingClientRect().height") > 100


@pytest.mark.parametrize(("scheme", "page"), [("light", WHITE), ("dark", DARK)])
def test_pictures_are_on_white_in_either_scheme(browser, report, tmp_path, scheme, page):
    path, _ = report
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.open(path)
    assert paint(browser, tmp_path / "top.png").getpixel((2, 2)) == page
    browser.run("document.querySelector('figure').scrollIntoView()")
    x, y = browser.run(
        "const box = document.querySelector('figure svg').getBoundingClientRect(); return [box.x - 3, box.y + 3]"
    )
    assert paint(browser, tmp_path / "picture.png").getpixel((int(x), int(y))) == WHITE
