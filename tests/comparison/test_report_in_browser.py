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


def prefer(browser, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def luminance(colour):
    """Return the relative luminance of a colour of sRGB, as contrasts are reckoned with."""
    shares = [value / 255 for value in colour]
    linear = [share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    high, low = sorted(map(luminance, (one, other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("scheme", "page", "paper"), [("light", WHITE, WHITE), ("dark", DARK, (30, 30, 30))])
def test_letters_and_lines_of_pictures_stand_out_in_either_scheme(browser, report, tmp_path, scheme, page, paper):
    path, _ = report
    prefer(browser, scheme)
    browser.open(path)
    assert paint(browser, tmp_path / "top.png").getpixel((2, 2)) == page
    browser.run("document.querySelector('figure').scrollIntoView()")
    box = browser.run(
        "const b = document.querySelector('figure svg').getBoundingClientRect(); return [b.x, b.y, b.right, b.bottom]"
    )
    x, y, right, bottom = map(int, box)
    picture = paint(browser, tmp_path / "picture.png")
    assert picture.getpixel((x - 3, y + 3)) == paper
    shown = picture.crop((x, y, right, min(bottom, picture.height)))
    assert max(abs(a - b) for a, b in zip(shown.getpixel((1, 1)), paper, strict=True)) <= 2  # no edge is seen
    colours = [colour for count, colour in shown.getcolors(1 << 24) if count >= 100]
    assert max(contrast(colour, paper) for colour in colours) > 12  # letters and axes
    strong = [colour for colour in colours if max(colour) - min(colour) > 100]
    assert len(strong) >= len(METHODS)
    assert sum(contrast(colour, paper) >= 3 for colour in strong) >= len(METHODS)


@pytest.mark.parametrize("width", [800, 400])
def test_a_wide_table_scrolls_under_its_first_column(browser, report, width):
    path, _ = report
    browser.resize(width, 800)
    browser.open(path)
    inside, outside = browser.run("const s = document.querySelector('.scroll'); return [s.scrollWidth, s.clientWidth]")
    assert outside < width
    assert inside > outside + 100
    places = """
    const s = document.querySelector('.scroll'), rows = [...s.querySelectorAll('tr')];
    s.scrollLeft = arguments[0];
    return rows.map(row => [row.querySelector('.first')?.getBoundingClientRect().x,
        row.lastElementChild.getBoundingClientRect().x])"""
    before, after = browser.run(places, 0), browser.run(places, 100)
    firsts = [x for x, _ in after if x is not None]
    assert firsts == [x for x, _ in before if x is not None]
    assert len(set(firsts)) == 1
    assert all(one[1] - other[1] == pytest.approx(100, abs=1) for one, other in zip(before, after, strict=True))


def test_the_widest_picture_is_as_wide_as_the_page_and_letters_are_of_one_size(browser, report):
    path, _ = report
    browser.open(path)
    widths = {name: width for name, width, *_ in browser.run(PICTURES)}
    inner = browser.run("return document.querySelector('.picture').clientWidth")
    assert max(widths.values()) == pytest.approx(inner, abs=30)
    assert widths["training_loss"] < 0.8 * widths["curves"]
    points = browser.run("return [...document.querySelectorAll('figure svg')].map(s => s.viewBox.baseVal.width)")
    scales = [width / size for width, size in zip(widths.values(), points, strict=True)]
    assert scales == pytest.approx([scales[0]] * len(scales), rel=0.02)
