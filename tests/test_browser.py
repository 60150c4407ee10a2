from pathlib import Path

import pytest

import browser as browsers
from browser import Browser

pytestmark = pytest.mark.browser

PAGE = """<!doctype html><html><head><meta charset="utf-8"><title>a page</title></head>
<body style="margin:0"><p id="early">early</p><img src="missing.png"><script>
setTimeout(() => { document.body.insertAdjacentHTML("beforeend", "<p id='late'>late</p>"); }, 200);
console.log("a note"); console.error("a complaint");
</script></body></html>"""


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    return path


def test_waits_for_what_scripts_make_of_a_page(browser, page):
    browser.open(page)
    assert browser.wait_for("return document.getElementById(arguments[0])?.textContent", "late") == "late"
    assert 'id="late"' in browser.dom()
    assert browser.text().split() == ["early", "late"]


def test_what_moves_is_read_when_it_has_arrived(browser, tmp_path):
    (tmp_path / "page.html").write_text(
        "<script>let n = 0; setInterval(() => { n = Math.min(n + 1, 9); }, 100)</script>"
    )
    browser.open(tmp_path / "page.html")
    assert browser.settled("return n") == 9
    with pytest.raises(AssertionError, match="no rest"):
        browser.settled("return performance.now()", seconds=1)


def test_what_does_not_come_about_is_reported_with_the_page_and_its_console(browser, page):
    browser.open(page)
    with pytest.raises(AssertionError, match=r"(?s)never.*early.*a complaint") as error:
        browser.wait_for("return document.getElementById('never')", seconds=0.5)
    assert "missing.png" in str(error.value)


def test_errors_are_complaints_and_what_could_not_be_loaded_of_this_page_only(browser, page, tmp_path):
    browser.open(page)
    errors = browser.errors()
    assert [name for name in ("a complaint", "missing.png", "a note") if any(name in e for e in errors)] == [
        "a complaint",
        "missing.png",
    ]
    browser.open(page)
    (tmp_path / "other.html").write_text("<title>other</title><link rel=icon href=data:,>")
    browser.open(tmp_path / "other.html")
    assert browser.errors() == []


def test_no_other_machine_can_be_reached(browser, tmp_path):
    path = tmp_path / "outside.html"
    path.write_text("<script src='http://example.com/script.js'></script>")
    browser.open(path)
    assert ["ERR_NAME_NOT_RESOLVED" in message for message in browser.errors()] == [True]


def test_a_screenshot_has_the_size_that_was_asked_for(browser, page, tmp_path):
    from PIL import Image

    browser.open(page)
    for scale, size in ((None, (640, 300)), (1.5, (960, 450))):
        browser.resize(640, 300, scale)
        browser.screenshot(tmp_path / "shot.png")
        with Image.open(tmp_path / "shot.png") as image:
            assert image.size == size
        assert browser.run("return [innerWidth, innerHeight]") == [640, 300]


def test_elements_are_found_in_shadow_roots_too(browser, tmp_path):
    (tmp_path / "page.html").write_text("<div id='host'></div><p>outside</p>")
    browser.open(tmp_path / "page.html")
    browser.run("document.getElementById('host').attachShadow({mode: 'open'}).innerHTML = '<b><p>inside</p></b>'")
    assert browser.run("return everywhere('p').map((p) => p.textContent)") == ["inside", "outside"]
    assert browser.run("return everywhere('p', everywhere('b')[0]).map((p) => p.textContent)") == ["inside"]


@pytest.mark.usefixtures("browser")  # for its skip
def test_no_process_and_no_profile_is_left_when_the_browser_hangs():
    with Browser() as other:
        processes = browsers.family(other.driver.service.process.pid)
        profile = other._folder.name
        assert len(processes) > 2
        processes[0].suspend()  # chromedriver no longer answers
    assert not [process for process in processes if process.is_running() and process.status() != "zombie"]
    assert not Path(profile).exists()
