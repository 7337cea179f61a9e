"""The React hooks and the react-query adapter: real React in a real browser, before the real gateway."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, WebSocket, expect

from tests.clientkit import JS, World, until, world

BUNDLER = JS / "node_modules" / ".bin" / "esbuild"
RENDER_S = 0.2
SIGN_IN = """
(token) => fetch("/v1/login", { method: "POST", headers: { Authorization: "Bearer " + token } }).then((it) => it.ok)
"""

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not BUNDLER.exists(), reason="no node on this host, or its packages are missing"
)


@pytest.fixture
def shared() -> Iterator[World]:
    with world() as made:
        yield made


def bundle(mode: str) -> str:
    """The page's program as one file."""
    subprocess.run(["npm", "run", "--silent", "prepare"], cwd=JS, check=True, timeout=60)
    command = [BUNDLER, "test/page.js", "--bundle", "--format=iife", f'--define:process.env.NODE_ENV="{mode}"']
    return subprocess.run(command, cwd=JS, check=True, capture_output=True, text=True, timeout=60).stdout


def converges(page: Page, world: World) -> None:
    """One more change arrives, and both lists hold what the aggregator announces."""
    lines = world.change()
    for of in ("hook", "query"):
        expect(page.locator(f"#{of} [data-id=w1]")).to_have_text(f"w1 {lines}", timeout=40_000)
    expect(page.locator("#standing")).to_have_text("live verified")
    head = world.head().hash
    assert [page.locator(f"#{of}").get_attribute("data-hash") for of in ("hook", "query")] == [head, head]


@pytest.mark.parametrize("mode", ["development", "production"])
def test_components_follow_a_project_through_all_that_may_happen_and_render_what_changed(
    shared: World, context: BrowserContext, mode: str
) -> None:
    """U1, U3. A skeleton first; then of the rows only those that changed; a killed gateway, a new aggregator, a line
    that breaks. In development under strict mode, which mounts everything twice."""
    complaints: list[str] = []
    sockets: list[WebSocket] = []
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("websocket", lambda socket: sockets.insert(0, socket))
    page.goto(shared.url)
    assert page.evaluate(SIGN_IN, shared.token)
    page.goto(f"{shared.url}client.js")
    page.evaluate(bundle(mode))
    page.evaluate("board.start('web')")
    for of in ("hook", "query"):
        expect(page.locator(f"#{of}")).to_have_text("loading")
    shared.ready("w1", "w2", "w3")
    for of in ("hook", "query"):
        expect(page.locator(f"#{of} li")).to_have_count(3)
    converges(page, shared)

    def commits() -> dict[str, Any]:
        found: dict[str, Any] = page.evaluate("({ ...board.commits })")
        return found

    before = commits()
    converges(page, shared)
    after = commits()
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed - {"standing"} == {"hook", "hook:w1", "query", "query:w1"}
    # A heartbeat is news of the standing alone.
    until(lambda: page.wait_for_timeout(20) or commits()["standing"] >= after["standing"] + 3, "heartbeats")
    assert {**commits(), "standing": 0} == {**after, "standing": 0}
    # However many changes come, both render at most once per 200 ms.
    began = time.monotonic()
    for turn in range(60):
        shared.change(f"w{turn % 3 + 1}")
        page.wait_for_timeout(15)
    converges(page, shared)
    most = (time.monotonic() - began) / RENDER_S + 2
    assert all(commits()[of] - after[of] <= most for of in ("hook", "query"))

    shared.kill("gateway")
    expect(page.locator("#standing")).to_have_text(re.compile("stale"))
    expect(page.locator("#hook li")).to_have_count(3)
    shared.start("gateway")
    converges(page, shared)
    shared.line.cut()
    converges(page, shared)
    shared.kill("aggregator")
    expect(page.locator("#standing")).to_have_text(re.compile("stale"))
    shared.start("aggregator")
    shared.ready("w1", "w2", "w3", "w4")
    for of in ("hook", "query"):
        expect(page.locator(f"#{of} li")).to_have_count(4)
    converges(page, shared)

    page.evaluate("board.stop()")
    until(lambda: page.wait_for_timeout(20) or all(socket.is_closed() for socket in sockets), "the connection to end")
    assert complaints == []
