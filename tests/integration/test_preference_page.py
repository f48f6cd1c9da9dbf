"""The preference page in a real browser: headless Chromium, driven by Selenium."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreamfleet.evaluation.preference import Votes, load_pairs, preference_app
from tests.unit.evaluation.test_preference import results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
PHONE = (390, 844)  # CSS pixels
STARTED_WITHIN_S = 300.0
ARRIVES_WITHIN_S = 300.0
STARTS = 2  # attempts

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="no chromium and chromedriver (apt install chromium-driver)",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={PHONE[0]},{PHONE[1]}")
    driver = _started(webdriver, options)
    driver.set_page_load_timeout(300)
    try:
        yield driver
    finally:
        driver.quit()


def _started(webdriver: Any, options: Any) -> Any:
    """The browser; one that is installed and does not start is as good as none."""
    from selenium.common.exceptions import WebDriverException

    reason = ""
    for _ in range(STARTS):
        try:
            return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        except WebDriverException as error:
            reason = str(error.msg)
    pytest.skip(f"chromium does not start: {reason}")


@pytest.fixture
def study(tmp_path: Path) -> Iterator[tuple[str, Votes]]:
    """The page on a free port of this machine."""
    import uvicorn

    pairs = load_pairs(results(tmp_path / "a", 200), results(tmp_path / "b", 100))
    votes = Votes(tmp_path / "votes.db", "A", "B")
    taken = socket.create_server(("127.0.0.1", 0))
    app = preference_app(pairs, votes, comparisons=2)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, args=([taken],), daemon=True)
    thread.start()
    deadline = time.monotonic() + STARTED_WITHIN_S
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.started
    yield f"http://127.0.0.1:{taken.getsockname()[1]}", votes
    server.should_exit = True
    thread.join(STARTED_WITHIN_S)


def arrived(browser: Any, script: str) -> None:
    """Wait until `script` is true of the page: a click returns before the next page is there."""
    from selenium.common.exceptions import JavascriptException
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, ARRIVES_WITHIN_S, ignored_exceptions=[JavascriptException])
    wait.until(lambda driver: driver.execute_script(f"return {script}"), f"never true: {script}")


def test_a_person_with_a_phone_answers_two_pages(browser: Any, study: tuple[str, Votes]) -> None:
    address, votes = study
    browser.get(address)
    for page in (1, 2):
        kicker = "document.querySelector('.kicker').textContent.toUpperCase()"
        arrived(browser, f"{kicker}.includes('{page} OF 2')")
        pictures = browser.find_elements("css selector", "main img")
        assert len(pictures) == 3  # a photo and the two to compare
        arrived(browser, "[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= browser.execute_script("return window.innerWidth")  # no sideways scrolling
        button = browser.find_element("css selector", "button")
        button.click()  # nothing chosen: the browser itself refuses
        assert len(votes.all()) == 2 * (page - 1)
        for question, answer in (("subject", "left"), ("text", "neither")):
            choice = f"input[name={question}][value={answer}]"
            browser.execute_script(
                "document.querySelector(arguments[0]).closest('label').click()", choice
            )
        button.click()
    arrived(browser, "document.querySelector('h1').textContent.includes('Thank you')")
    kept = votes.all()
    assert len(kept) == 4 and len({vote.voter for vote in kept}) == 1
    assert sum(vote.choice == "neither" for vote in kept) == 2
    assert all(vote.choice in ("a", "b") for vote in kept if vote.question == "subject")
