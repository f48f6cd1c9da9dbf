"""The studio in a real browser: headless Chromium, driven by Selenium, at phone width."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreamfleet.runtime.engine_actor import EngineSource
from dreamfleet.serving.keys import KeyFile
from dreamfleet.serving.replica import EngineReplica
from dreamfleet.serving.service import ImageService
from tests.integration.test_preference_page import browser, pytestmark  # noqa: F401
from tests.local_service import listening, local_application
from tests.tiny_adapters import write_adapters

WITHIN_S = 300.0
ROOM = 4  # pictures that are drawn at once
REPORT = """<title>Ada</title><style>h1 { color: rgb(1, 2, 3); }</style>
<h1>Report of Ada</h1><script>document.title = "changed"</script>"""
ARROW_DOWN, ESCAPE, ENTER, CONTROL = "\ue015", "\ue00c", "\ue007", "\ue009"
Opened = tuple[str, KeyFile, ImageService]
SHOWN = "return document.body.innerText.length > 200"


@pytest.fixture(scope="module")
def studio(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """The page's address, the file of its keys, and what is behind it."""
    place = tmp_path_factory.mktemp("studio")
    adapters = write_adapters(tiny_base, place / "adapters", ["ada", "bo", "cy"])
    (adapters / "ada" / "samples").mkdir()
    Image.new("RGB", (64, 64), (180, 90, 40)).save(adapters / "ada" / "samples" / "image_0.png")
    (adapters / "ada" / "report.html").write_text(REPORT, encoding="utf-8")
    keys = KeyFile(place / "keys.json")
    engine = EngineReplica(EngineSource(str(tiny_base), "cpu"), max_slots=4, num_threads=1)
    app, service = local_application(engine, adapters, keys, place / "shelf", room=ROOM)
    with listening(app) as address:
        yield address, keys, service


def until(reached: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WITHIN_S
    while not (found := reached()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_a_person_opens_draws_and_compares(
    browser: Any,  # noqa: F811
    studio: Opened,
    tmp_path: Path,
) -> None:
    address, keys, _ = studio

    def one(selector: str) -> Any:
        return browser.find_element("css selector", selector)

    def every(selector: str) -> list[Any]:
        return list(browser.find_elements("css selector", selector))

    browser.get(address)
    until(lambda: one("#key-form").is_displayed())
    assert not one("#studio").is_displayed()
    one("#key").send_keys("df-wrong\n")
    until(lambda: "not known" in one("#key-problem").text)
    one("#key").send_keys(keys.create()[0] + "\n")
    until(lambda: one("#studio").is_displayed())

    assert [card.text for card in every("#subjects .name")] == [
        "Ada",
        "Bo",
        "Cy",
        "base model tiny",
    ]
    until(lambda: len(every("#subjects img")) == 1)  # the only one with a picture
    assert one("#prompt").get_attribute("value") == "a photo of {token} {class}"
    assert "clip_i" in one("#numbers").text and "0.800" in one("#numbers").text
    assert '"model": "ada"' in one("#curl").text and keys.path.name not in one("#curl").text
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= browser.execute_script("return window.innerWidth"), "no sideways scrolling"

    browser.execute_script("document.querySelector('details').open = true")
    one("#seed").send_keys("5")
    one("#steps").send_keys("4")
    one("#other").send_keys("Bo")
    one("#prompt").send_keys(CONTROL + ENTER)
    until(lambda: len(every("#pictures figure[data-done]")) == 2)
    captions = [caption.text for caption in every("figcaption")]
    assert [caption.split()[0] for caption in captions] == ["ada", "bo"]
    assert all("seed 5" in caption for caption in captions)
    sources = [image.get_attribute("src") for image in every("#pictures img")]
    assert len(set(sources)) == 2
    drawn = "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    until(lambda: browser.execute_script(drawn))
    assert '"seed": 5' in one("#curl").text
    heads = "return [...document.querySelectorAll('#numbers th')].map(e => e.textContent)"
    until(lambda: browser.execute_script(heads) == ["figure", "ada", "bo", "bare base"])

    for width, height in ((1280, 900), (390, 1400)):
        browser.set_window_size(width, height)
        browser.save_screenshot(str(tmp_path / f"drawn-{width}.png"))
    browser.execute_script("document.querySelector('#subjects input[value=base]').click()")
    assert one("#prompt").get_attribute("value") == "a photo of a dog", "a new subject's own words"
    foreign = "return performance.getEntriesByType('resource').map(e => e.name)"
    assert all(name.startswith((address, "data:", "blob:"))
               for name in browser.execute_script(foreign))  # fmt: skip
    severe = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert [line for line in severe if "401" not in line["message"]] == []


def test_keys_alone_choose_draw_stop_and_read(browser: Any, studio: Opened) -> None:  # noqa: F811
    from selenium.webdriver.common.action_chains import ActionChains

    def press(keys: str) -> None:
        ActionChains(browser).send_keys(keys).perform()

    def script(text: str) -> Any:
        return browser.execute_script(text)

    address, keys, service = studio
    browser.get(address)
    script(f"sessionStorage.setItem('dreamfleet-key', '{keys.create()[0]}')")
    browser.get(address)
    until(lambda: script("return document.activeElement.id") == "prompt")
    script("document.querySelector('#subjects input:checked').focus()")
    press(ARROW_DOWN)
    until(lambda: browser.find_element("css selector", "#about-name").text == "Bo")
    service.queue.running += ROOM  # as if others were drawing: this one waits until it is stopped
    try:
        script("document.getElementById('go').focus()")
        press(ENTER)
        until(lambda: script("return document.querySelectorAll('figure').length") == 1)
        assert script("return document.activeElement.id") == "stop", "where the keyboard is next"
        press(ESCAPE)
        until(lambda: script("return document.querySelectorAll('figure').length") == 0)
        until(lambda: script("return document.activeElement.id") == "go")
    finally:
        service.queue.running -= ROOM
    press(ENTER)
    until(lambda: script("return document.querySelectorAll('figure[data-done]').length") == 1)

    script("document.querySelector('#subjects input[value=ada]').click()")
    script("document.getElementById('report').focus()")
    press(ENTER)
    until(lambda: script("return document.getElementById('shown').open"))
    browser.switch_to.frame("page")
    until(lambda: browser.find_elements("css selector", "h1"))
    heading = browser.find_element("css selector", "h1")
    assert heading.text == "Report of Ada"
    assert heading.value_of_css_property("color") in ("rgba(1, 2, 3, 1)", "rgb(1, 2, 3)")
    assert script("return document.title") == "Ada", "a report's scripts do not run"
    browser.switch_to.default_content()
    press(ESCAPE)
    until(lambda: not script("return document.getElementById('shown').open"))


def test_wide_and_narrow(browser: Any, studio: Opened, tmp_path: Path) -> None:  # noqa: F811
    """Nothing is cut off at a phone's or a desktop's width; both are photographed."""
    address, keys, _ = studio
    browser.get(address)
    key = keys.create()[0]
    browser.execute_script(f"sessionStorage.setItem('dreamfleet-key', '{key}')")
    for width, height in ((390, 844), (1280, 900)):
        browser.set_window_size(width, height)
        for page in ("/", "/docs"):
            browser.get(address + page)
            until(lambda: browser.execute_script(SHOWN))
            browser.save_screenshot(str(tmp_path / f"{page.strip('/') or 'studio'}-{width}.png"))
            wide = browser.execute_script("return document.documentElement.scrollWidth")
            assert wide <= browser.execute_script("return window.innerWidth"), page
