"""Headless Chromium, and what a user sees of the page in ``examples``."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tools.browser import find

__all__ = ("DESK", "PHONE", "Page", "chromium", "until")

DESK = (1280, 800)
PHONE = (390, 844)

_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


@contextmanager
def chromium(size: tuple[int, int] = DESK) -> Generator[webdriver.Chrome]:
    """Run a browser with a window of that size, in pixels; a narrow one is a phone's."""
    browser = find()
    options = Options()
    options.binary_location = str(browser.program)
    for flag in _FLAGS:
        options.add_argument(flag)
    width, height = size
    if size == PHONE:
        metrics = {"width": width, "height": height, "pixelRatio": 2}
        emulation = {"deviceMetrics": metrics}
        options.add_experimental_option(  # pyright: ignore[reportUnknownMemberType]
            "mobileEmulation", emulation
        )
    else:
        options.add_argument(f"--window-size={width},{height}")
    service = Service(str(browser.driver), env=browser.environment)
    driver = webdriver.Chrome(options, service)
    try:
        yield driver
    finally:
        driver.quit()


def until(condition: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait until *condition* holds."""
    ends = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends, "the page does not get there"
        time.sleep(0.02)


class Page:
    """The page in the tab that was active when this was made."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self.driver = driver
        driver.get(url)

    @property
    def text(self) -> str:
        """The answer as it is shown, without the marks where the connection was lost."""
        return self.run(
            "return [...document.querySelector('#answer').childNodes]"
            ".filter((node) => node.nodeType === Node.TEXT_NODE)"
            ".map((node) => node.data).join('')"
        )

    @property
    def marks(self) -> int:
        """At how many places the connection was lost."""
        return len(self.driver.find_elements(By.CSS_SELECTOR, "#answer .cut"))

    @property
    def state(self) -> str:
        return self.shown("state")

    @property
    def position(self) -> int:
        return int(self.shown("position"))

    def run(self, script: str) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script)  # pyright: ignore[reportUnknownMemberType]

    def shown(self, id: str) -> str:
        """Return the text of an element."""
        return self.driver.find_element(By.ID, id).text

    def is_enabled(self, id: str) -> bool:
        return self.driver.find_element(By.ID, id).is_enabled()

    def press(self, id: str) -> None:
        """Press a button."""
        self.driver.find_element(By.ID, id).click()

    def ask(self) -> None:
        """Press the button that begins an answer."""
        self.driver.find_element(By.CSS_SELECTOR, "#ask button").click()

    def read_to(self, position: int) -> None:
        """Wait until so many tokens are there."""
        until(lambda: self.position >= position)

    def read_to_end(self) -> None:
        """Wait until the page says that the answer is complete."""
        until(lambda: self.state == "complete")

    def is_too_wide(self) -> bool:
        """Return whether it can be scrolled sideways."""
        root = "document.documentElement"
        return self.run(f"return {root}.scrollWidth > {root}.clientWidth")
