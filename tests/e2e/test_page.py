"""The page in ``examples``, in a browser: whatever happens to its connection, the text is whole."""

from __future__ import annotations

from collections.abc import Callable, Generator

import httpx
import pytest
from selenium import webdriver

from tests.e2e.chromium import DESK, PHONE, Page, chromium, until
from tests.proxy import Proxy, proxy
from tests.rx_backend.web.servers import Server, running

pytestmark = [pytest.mark.browser, pytest.mark.timeout(60)]

TOKENS = 200
ANSWER = "".join(f" {number}" for number in range(TOKENS))
Let = Callable[[int], None]


@pytest.fixture(scope="module")
def server() -> Generator[Server]:
    with running("uvicorn", "tests.e2e.page_service:app") as found:
        yield found


@pytest.fixture
def let(server: Server) -> Generator[Let]:
    """Let the answers come to that token; they come to their end once the test is over."""

    def to(tokens: int) -> None:
        httpx.put(f"{server.url}/limit", params={"tokens": tokens}).raise_for_status()

    yield to
    to(TOKENS)


@pytest.fixture(scope="module")
def driver() -> Generator[webdriver.Chrome]:
    with chromium() as found:
        yield found


@pytest.fixture
def gate(server: Server) -> Generator[Proxy]:
    """Stand between the browser and the server."""
    with proxy(int(server.url.rpartition(":")[2])) as found:
        yield found


@pytest.fixture
def page(driver: webdriver.Chrome, gate: Proxy) -> Generator[Page]:
    """Show the page in a tab of its own."""
    before = driver.current_window_handle
    driver.switch_to.new_window("tab")
    yield Page(driver, gate.url)
    for handle in driver.window_handles:
        if handle != before:
            driver.switch_to.window(handle)
            driver.close()
    driver.switch_to.window(before)


def test_an_answer(page: Page, let: Let) -> None:
    """It appears token by token, and is whole at the end."""
    let(2)
    page.ask()
    page.read_to(2)
    assert (page.text, page.state) == (" 0 1", "connected")
    let(TOKENS)
    page.read_to_end()
    assert (page.text, page.marks, page.shown("connections")) == (ANSWER, 0, "1")
    assert not any(map(page.is_enabled, ("cut", "continue", "stop")))


def test_a_second_question_replaces_the_first(page: Page) -> None:
    """Before the first answer has begun: the second one is shown, alone."""
    twice = (
        "const form = document.querySelector('#ask'); form.requestSubmit(); form.requestSubmit()"
    )
    page.run(twice)
    page.read_to_end()
    assert page.text == ANSWER


def test_the_button_disconnects_and_reconnects(page: Page, let: Let) -> None:
    """Nothing comes then; the other button gets the rest, as often as one likes."""
    let(20)
    page.ask()
    for marks in range(1, 4):
        page.read_to(20 * marks)
        page.press("cut")
        let(20 * marks + 20)
        assert (page.state, page.is_enabled("stop")) == ("connection cut", True)
        assert page.position == 20 * marks
        page.press("continue")
        page.read_to(20 * marks + 20)
        assert page.marks == marks
    let(TOKENS)
    page.read_to_end()
    assert page.text == ANSWER


def test_a_reload_keeps_the_text_and_resumes(page: Page, let: Let) -> None:
    """Keeps what was read and gets the rest; after the end nothing is asked for any more."""
    let(30)
    page.ask()
    page.read_to(30)
    page.driver.refresh()
    let(60)
    page.read_to(60)
    assert ANSWER.startswith(page.text)
    page.driver.refresh()
    let(TOKENS)
    page.read_to_end()
    assert (page.text, page.marks) == (ANSWER, 2)
    page.driver.refresh()
    assert (page.state, page.text) == ("complete", ANSWER)


def test_navigating_back_to_the_page_resumes(page: Page, gate: Proxy, let: Let) -> None:
    """By the browser's Back, which may show the page as it was left."""
    let(30)
    page.ask()
    page.read_to(30)
    page.driver.get(f"{gate.url}/v1/models")
    let(TOKENS)
    page.driver.back()
    page.read_to_end()
    assert (page.text, page.marks) == (ANSWER, 1)


def test_a_lost_connection_is_resumed(page: Page, gate: Proxy, let: Let) -> None:
    """EventSource reconnects by itself, with the id of the last event."""
    let(30)
    page.ask()
    page.read_to(30)
    gate.cut()
    until(lambda: "trying again" in page.state)
    let(TOKENS)
    page.read_to_end()
    assert page.text == ANSWER


def test_an_unreachable_server_is_retried(page: Page, gate: Proxy, let: Let) -> None:
    """For longer than the browser waits between two attempts: it makes further ones."""
    let(30)
    page.ask()
    page.read_to(30)
    gate.close()
    let(TOKENS)
    place = page.position
    until(lambda: "trying again" in page.state)
    page.run("window.failures = 0; source.addEventListener('error', () => window.failures++)")
    until(lambda: page.run("return window.failures"))
    assert page.position == place
    gate.listen()
    page.read_to_end()
    assert page.text == ANSWER


def test_a_connection_lost_after_the_last_token(page: Page) -> None:
    """The server has nothing more for the page then, and that is the answer's end."""
    page.ask()
    page.read_to_end()
    page.run("answer.end = null; proceed()")
    page.read_to_end()
    assert page.text == ANSWER


def test_two_tabs(page: Page, let: Let) -> None:
    """Another tab with the same address reads the answer from its beginning; one leaves."""
    let(30)
    page.ask()
    page.read_to(30)
    first = page.driver.current_window_handle
    address = page.driver.current_url
    page.driver.switch_to.new_window("tab")
    other = Page(page.driver, address)
    other.read_to(30)
    assert ANSWER.startswith(other.text)
    second = page.driver.current_window_handle
    page.driver.switch_to.window(first)
    page.press("cut")
    let(TOKENS)
    page.driver.switch_to.window(second)
    other.read_to_end()
    assert (other.text, other.marks) == (ANSWER, 0)
    page.driver.switch_to.window(first)
    page.press("continue")
    page.read_to_end()
    assert (page.text, page.marks) == (ANSWER, 1)


def test_a_stop_keeps_the_text(page: Page, let: Let) -> None:
    """The page has what there was, and says that the answer has ended."""
    let(30)
    page.ask()
    page.read_to(30)
    page.press("stop")
    until(lambda: page.state == "stopped")
    assert ANSWER.startswith(page.text)
    assert len(page.text) < len(ANSWER)


def test_an_unknown_answer_is_reported(page: Page, gate: Proxy) -> None:
    """It is reported, and another one can be requested."""
    # Another page first: to change the part behind "#" alone loads nothing.
    page.driver.get("about:blank")
    page.driver.get(f"{gate.url}/#other")
    until(lambda: "other" in page.state)
    assert page.text == ""
    page.ask()
    page.read_to_end()
    assert page.text == ANSWER


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_nothing_overflows_the_window(server: Server, size: tuple[int, int]) -> None:
    """At a desk's and at a phone's width, with a prompt and an answer of one long word."""
    with chromium(size) as driver:
        page = Page(driver, server.url)
        assert not page.is_too_wide()
        page.ask()
        page.read_to_end()
        page.run("answer.parts = ['long'.repeat(200)]; draw()")
        assert not page.is_too_wide()
        assert httpx.get(server.url).status_code == 200
