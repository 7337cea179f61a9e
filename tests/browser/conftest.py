"""A browser for each module of tests, a context for each test, and pages that are signed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from benchmarks.browser import CHROMIUM, chromium
from tests.browser import site as sites
from tests.browser.site import WAIT_MS, Site

expect.set_options(timeout=WAIT_MS)

Opener = Callable[..., Page]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if CHROMIUM is None and "/browser/" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="no chromium on this host"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 860}, reduced_motion="reduce")
    context.set_default_timeout(WAIT_MS)
    yield context
    context.close()


@pytest.fixture
def site() -> Iterator[Site]:
    """One that a test may break."""
    with sites.site() as one:
        yield one


@pytest.fixture(scope="module")
def workday() -> Iterator[Site]:
    """One with a day of work on it, that tests only look at."""
    with sites.site() as one:
        sites.a_day_of_work(one)
        yield one


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What pages complained of; in the end that must be nothing."""
    said: list[str] = []
    yield said
    assert said == []


@pytest.fixture
def opened(context: BrowserContext, complaints: list[str]) -> Opener:
    """A page of a site, signed in by a link with the token in its fragment."""

    def open_(site: Site, of: BrowserContext = context) -> Page:
        page = of.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: _heard(complaints, message.type, message.text))
        page.goto(site.link)
        expect(page.locator("#connection")).to_have_attribute("data-state", "open")
        return page

    return open_


def _heard(complaints: list[str], kind: str, text: str) -> None:
    """Errors and warnings; but that a server is away, or wants a sign-in first, is what the browser is meant to say."""
    expected = ("401", "ERR_CONNECTION", "WebSocket connection to", "ERR_EMPTY_RESPONSE", "ERR_INVALID_HTTP")
    if kind in ("error", "warning") and not any(one in text for one in expected):
        complaints.append(text)
