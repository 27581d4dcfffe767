"""The page to try a bundle, in headless Chromium by the protocol of its driver; skipped without."""

import base64
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.commands import free_port
from tests.serving.server.engines import expected_list
from tests.serving.server.test_process import Program, running, until

DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DRIVER and BROWSER), reason="chromium and its driver are not here"),
]
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One window, asked over HTTP."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self._driver = subprocess.Popen([str(DRIVER), f"--port={port}"], stdout=subprocess.DEVNULL)
        self._url = f"http://127.0.0.1:{port}"
        until(self._is_there)
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
        options = {"binary": BROWSER, "args": words}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        begun = self.ask("/session", {"capabilities": {"alwaysMatch": wanted}})
        self._url += f"/session/{begun['sessionId']}"

    def _is_there(self) -> bool:
        with suppress(OSError):
            return bool(self.ask("/status"))
        return False

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def find(self, selector: str) -> str:
        found = self.ask("/element", {"using": "css selector", "value": selector})
        return f"/element/{found[ELEMENT]}"

    def write(self, selector: str, text: str) -> None:
        element = self.find(selector)
        self.ask(f"{element}/clear", {})
        self.ask(f"{element}/value", {"text": text})

    def click(self, selector: str) -> None:
        self.ask(f"{self.find(selector)}/click", {})

    def text(self, selector: str) -> str:
        return self.ask(f"{self.find(selector)}/text")

    def close(self) -> None:
        with suppress(OSError, urllib.error.URLError):
            picture = os.environ.get("PICTURE_OF_PAGE")
            if picture:
                Path(picture).write_bytes(base64.b64decode(self.ask("/screenshot")))
        self._driver.terminate()
        self._driver.wait()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    (tmp_path / "secret").write_text("hush")
    with running(tmp_path, "v1", f"token.file = '{tmp_path / 'secret'}'") as program:
        yield program


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


def test_person_puts_a_history_together_by_titles_and_gets_the_list(program: Program, browser: Browser):
    browser.ask("/url", {"url": f"{program.url}/"})
    until(lambda: browser.text("#state") == "Bundle v1 is served.")
    browser.click("#ask button")
    until(lambda: "Authorization" in browser.text("#said"))
    browser.click("summary")
    browser.write("#secret", "hush")

    for title, item in (("i12 story", "i12"), ("I7 STORY", "i7")):
        browser.write("#words", title)
        browser.click("#search button")
        until(lambda item=item: item in browser.text("#found"))
        browser.click(f"#found button[aria-label='add: The {item} story']")
    assert [line.split(" story")[0] for line in browser.text("#history").splitlines()] == [
        "The i12",
        "The i7",
    ]
    browser.write("#n", "4")
    browser.click("#ask button")
    until(lambda: "from this history" in browser.text("#said"))
    assert "version v1" in browser.text("#said")
    listed = [line.split()[1] for line in browser.text("#list").splitlines()]
    assert listed == expected_list("v1", ["i12", "i7"], 4)

    browser.click("#history button[aria-label='remove: The i12 story']")
    browser.click("#history button[aria-label='remove: The i7 story']")
    browser.click("#ask button")
    until(lambda: "popular" in browser.text("#said"))
    faults = [line for line in browser.ask("/se/log", {"type": "browser"}) if "401" not in line["message"]]
    assert not [line for line in faults if line["level"] == "SEVERE" and "favicon" not in line["message"]]
