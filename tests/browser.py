"""A headless Chromium for tests: opens a page, runs scripts in it, and says what stands there and on its console.

It is driven by selenium through Debian's chromedriver, has a profile of its own in a temporary folder, and reaches
nothing but this machine: every other host is unknown to it. The fixture `browser` of conftest.py is one.
"""

import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

SECONDS = 60
"""The most that a page may take to load or a script to run: far more than they need, as the machine may be busy."""

_CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SWITCHES = (
    "--headless=new",
    "--no-sandbox",  # which has no use for pages of one's own, and which root and containers have not
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
_EVERYWHERE = """
function everywhere(selector, root = document.documentElement) {
    const inside = [...root.children, ...(root.shadowRoot ? root.shadowRoot.children : [])];
    return inside.flatMap((child) => [...(child.matches(selector) ? [child] : []), ...everywhere(selector, child)]);
}
"""


def obstacle() -> str | None:
    """Return what is missing for `Browser`; None if all is there."""
    missing = [
        *([] if _chromium() else ["chromium"]),
        *([] if shutil.which("chromedriver") else ["chromedriver"]),
        *([] if find_spec("selenium") else ["the Python package selenium"]),
    ]
    return f"a browser test needs {' and '.join(missing)}" if missing else None


class Browser:
    """A headless Chromium with one window; use it in a with statement, after which none of its processes is left.

    Args:
        size: width and height of the page in pixels; `resize` changes it.
        scale: pixels of a screenshot for each of the page.

    Attributes:
        driver: selenium's.
    """

    def __init__(self, size: tuple[int, int] = (1280, 900), scale: float = 1) -> None:
        self._size = size
        self._scale = scale
        self._folder = tempfile.TemporaryDirectory(prefix="fedgram-browser-", ignore_cleanup_errors=True)
        self.driver: Any = None

    def __enter__(self) -> "Browser":
        try:
            self.driver = self._start()
            self.driver.set_page_load_timeout(SECONDS)
            self.driver.set_script_timeout(SECONDS)
            self.resize(*self._size)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.driver is not None:
            end(self.driver.service.process.pid)  # not by asking: one that hangs would not answer
            with suppress(Exception):  # it has nobody to tell any more, but closes what selenium has open
                self.driver.quit()
            self.driver = None
        self._folder.cleanup()

    def _start(self) -> Any:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = _chromium()
        for switch in (
            *_SWITCHES,
            f"--user-data-dir={self._folder.name}/profile",
            f"--force-device-scale-factor={self._scale}",
        ):
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(
            shutil.which("chromedriver"), env={**_without_proxies(), "HOME": self._folder.name}
        )
        driver = webdriver.Chrome(options=options, service=service)
        driver.command_executor.client_config.timeout = 2 * SECONDS
        return driver

    def open(self, page: str | Path) -> None:
        """Open an address, or a file, and wait until it is loaded; the console's entries begin anew."""
        self.console()
        self.driver.get(page.resolve().as_uri() if isinstance(page, Path) else page)

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a script's function body returns in the page; `arguments` are its arguments there.

        A script may call ``everywhere(selector, root)``: the elements in the page, or below a root, that a selector is
        true of, those in shadow roots too.
        """
        return self.driver.execute_script(_EVERYWHERE + script, *arguments)

    def wait_for(self, script: str, *arguments: Any, seconds: float = SECONDS) -> Any:
        """Wait until what `run` returns is true, not empty and not 0, and return that.

        Raises:
            AssertionError: it did not come about in time; the message shows the page's text and its console.
        """
        end = time.monotonic() + seconds
        while True:
            found = self.run(script, *arguments)
            if found:
                return found
            if time.monotonic() > end:
                raise AssertionError(
                    f"after {seconds} s the page has not: {script.strip()} {list(arguments) or ''}; it has: "
                    f"{found!r}\ntext: {self.text()[:2000]}\nconsole: {json.dumps(self.console(), indent=1)}"
                )
            time.sleep(0.1)

    def settled(self, script: str, *arguments: Any, seconds: float = SECONDS) -> Any:
        """Return what `run` returns, once it has been the same for half a second: what moves has arrived.

        Raises:
            AssertionError: it did not come to rest in time.
        """
        end = time.monotonic() + seconds
        before, after = None, self.run(script, *arguments)
        while before != after:
            if time.monotonic() > end:
                raise AssertionError(f"after {seconds} s there is no rest: {script.strip()} {list(arguments) or ''}")
            time.sleep(0.5)
            before, after = after, self.run(script, *arguments)
        return after

    def text(self) -> str:
        """Return the text that the page shows, without that of shadow roots."""
        return str(self.run("return document.body ? document.body.innerText : ''"))

    def dom(self) -> str:
        """Return the page as it stands after its scripts, as HTML."""
        return str(self.run("return document.documentElement.outerHTML"))

    def console(self) -> list[dict[str, Any]]:
        """Return the entries of the console since the last call: each has level, message, source and timestamp.

        What the page could not load is among them, and errors that no script caught.
        """
        return list(self.driver.get_log("browser"))

    def errors(self) -> list[str]:
        """Return the messages of `console` that are errors."""
        return [entry["message"] for entry in self.console() if entry["level"] == "SEVERE"]

    def resize(self, width: int, height: int, scale: float | None = None) -> None:
        """Give the page this size in pixels, whatever the window around it takes, and perhaps another scale."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale or self._scale, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(self.driver.get_screenshot_as_png())


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, _CHROMIUMS)), None)


def end(pid: int) -> None:
    """Kill a process and all that it started, and wait until they are gone."""
    processes = family(pid)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=SECONDS)


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started, directly or not."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _without_proxies() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
