"""client.js in a real browser, against the real gateway: on the gateway's own page, and on one of another origin."""

from __future__ import annotations

import functools
import http.server
import json
import random
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.clientkit import ROOT, World, until, world

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAME = "treewire.test"
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {NAME} 127.0.0.1",
]
FOLLOW = """
async ([from, url]) => {
    const { connect, stateHash } = await import(from);
    window.lines = [];
    window.client = connect({ url, ticket: url && window.ticket });
    window.client.subscribe("web", (view, frames) => window.lines.push({
        state: view.state, epoch: view.epoch, version: view.version, verified: view.verified,
        hash: view.workspaces && stateHash(view.workspaces),
        workspaces: view.workspaces && Object.keys(view.workspaces).length,
        kinds: frames.map((frame) => frame.type), malformed: window.client.malformed,
    }));
}
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this host")


@pytest.fixture(scope="module")
def other() -> Iterator[str]:
    """A server of another origin, with the very same client.js on it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(ROOT / "gateway" / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{NAME}:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def shared(other: str) -> Iterator[World]:
    with world(origins=(other,)) as made:
        made.ready("w1", "w2", "w3")
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    context.set_default_timeout(30_000)
    yield context
    context.close()


def lines(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.evaluate("window.lines")
    return found


def shows(page: Page, condition: Callable[[dict[str, Any]], Any]) -> None:
    until(lambda: (told := lines(page)) and condition(told[-1]), lambda: f"{lines(page)[-4:]}")


def converges(page: Page, world: World) -> None:
    """One more change arrives, and the page proves what the aggregator announces."""
    world.change()

    def agrees() -> bool:
        head, told = world.head(), lines(page)
        last = told[-1] if told else {}
        return bool(last) and (last["verified"], last["hash"]) == (head.version, head.hash)

    until(agrees, lambda: f"{lines(page)[-4:]}, {world.head()}")


def test_a_page_survives_all_that_may_happen_and_proves_its_state(shared: World, context: BrowserContext) -> None:
    """Killed gateway, broken line, frozen page."""
    page = context.new_page()
    page.goto(shared.url)
    signed_in = """
        (token) => fetch("/v1/login", { method: "POST", headers: { Authorization: "Bearer " + token } })
            .then((answer) => answer.ok)
    """
    assert page.evaluate(signed_in, shared.token)
    page.goto(f"{shared.url}client.js")
    page.evaluate(FOLLOW, ["/client.js", None])
    shows(page, lambda last: last["state"] == "live")
    converges(page, shared)

    seen = len(lines(page))
    shared.kill("gateway")
    shows(page, lambda last: last["state"] == "stale" and last["workspaces"] == 3)
    shared.change("w2")
    shared.start("gateway")
    shows(page, lambda last: last["state"] == "live")
    converges(page, shared)

    shared.line.shaky = random.Random(3)
    shared.line.cut()
    for turn in range(40):
        shared.change(f"w{turn % 3 + 1}")
        if turn % 10 == 0:
            shared.line.cut()
        time.sleep(0.05)
    shared.line.shaky = None
    shared.line.cut()
    converges(page, shared)

    devtools = context.new_cdp_session(page)
    devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    for _ in range(40):
        shared.change("w3")
        time.sleep(0.03)
    devtools.send("Page.setWebLifecycleState", {"state": "active"})
    converges(page, shared)

    told = lines(page)
    assert told[-1]["malformed"] == 0
    assert not any("snapshot" in line["kinds"] for line in told[seen:])
    assert all(line["workspaces"] == 3 for line in told if line["workspaces"] is not None)


def test_a_page_of_another_origin_follows_with_tickets_and_proves_its_state_without_the_browsers_hashing(
    shared: World, context: BrowserContext, other: str
) -> None:
    """Each connection needs a ticket of its own; the page's server gets them, and the token never reaches the page.

    On plain http under a name there is no `crypto.subtle`.
    """
    tickets: list[str] = []

    def ticket() -> str:
        request = urllib.request.Request(f"{shared.url}v1/tickets", method="POST")
        request.add_header("Authorization", f"Bearer {shared.token}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            tickets.append(json.loads(answer.read())["ticket"])
        return tickets[-1]

    page = context.new_page()
    page.expose_function("ticket", ticket)
    page.goto(f"{other}/client.js")
    assert page.evaluate("[isSecureContext, typeof crypto.subtle]") == [False, "undefined"]
    page.evaluate(FOLLOW, [f"{other}/client.js", shared.url])
    shows(page, lambda last: last["state"] == "live")
    shared.line.cut()
    converges(page, shared)
    assert len(tickets) >= 2
    assert [line["state"] for line in lines(page)].count("gone") == 0
    page.evaluate("window.client.close()")
