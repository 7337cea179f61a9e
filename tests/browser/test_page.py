"""The page in a real browser, in front of a real aggregator and gateway."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from pipeline import bus, wire
from pipeline.domain.model import Census, Git, Life, Look, Session, Stamp, Value
from pipeline.runtime.clock import CLOCK, now_ns
from pipeline.runtime.settings import Settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = "<img src=x onerror=\"document.title='owned'\"> \u2028 ünïcödé 🜂"
WAIT_MS = 20_000

expect.set_options(timeout=WAIT_MS)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this host")


class Site:
    """The two processes, and the sources that the test plays."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.settings = Settings.load(home, environ={})
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.socket = zmq.Context.instance().socket(zmq.PUSH)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(bus.endpoint(self.settings.run_dir, "ingress"))
        self.lives: dict[str, Life] = {}

    def start(self, name: str) -> None:
        command = [sys.executable, "-m", "pipeline.cli", "run", name, "--home", str(self.home)]
        env = {key: value for key, value in os.environ.items() if not key.startswith("TREEWIRE_")}
        with (self.home / f"{name}.out").open("ab") as out:
            self.children[name] = subprocess.Popen(command, stdout=out, stderr=out, env=env)

    def stop(self) -> None:
        for child in self.children.values():
            child.terminate()
        for child in self.children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            child.kill()
        self.socket.close()

    @property
    def url(self) -> str:
        return self.settings.url_path.read_text().strip()

    @property
    def token(self) -> str:
        return self.settings.token_path.read_text().strip()

    def look(self, workspace: str, group: str, value: Value, source: str = "live", ago_ms: int = 0) -> None:
        now = now_ns()
        at_ms = int(time.time() * 1000) - ago_ms
        look = Look("web", workspace, group, value, Stamp(now, now, CLOCK), source, producer="test", at_ms=at_ms)
        self.socket.send(wire.encode(look))

    def census(self) -> None:
        now = now_ns()
        stamp = Stamp(now, now, CLOCK)
        looks = [Look("web", name, "life", life, stamp, "catalog") for name, life in self.lives.items()]
        self.socket.send(wire.encode(Census(stamp, "catalog", "catalog:test", ["web"], looks)))

    def populate(self) -> None:
        for name, branch in (
            ("fix-login", "fix-login"),
            ("search", "feature/search"),
            ("docs", HOSTILE),
            ("old", "old"),
        ):
            self.lives[name] = Life(name=name, phase="ready", branch=branch)
        self.census()
        self.look("fix-login", "git", Git(files=3, insertions=120, deletions=8, ahead=2, behind=1), "git")
        self.look("search", "git", Git(files=41, insertions=1204, deletions=318, ahead=12, behind=0), "git")
        self.look("docs", "git", Git(files=0, insertions=0, deletions=0, ahead=0, behind=7), "git")
        self.look("fix-login", "session:s1", Session(provider="claude", state="working"), ago_ms=45_000)
        self.look(
            "search", "session:s2", Session(provider="codex", state="waiting", waiting_for="permission"), ago_ms=200_000
        )
        self.look("search", "session:s3", Session(provider="claude", state="idle"), ago_ms=9_000_000)


@pytest.fixture
def site() -> Iterator[Site]:
    home = Path(tempfile.mkdtemp(prefix="tw-"))
    (home / "treewire.toml").write_text("[gateway]\nport = 0\nheartbeat_ms = 300\n")
    site = Site(home)
    site.start("aggregator")
    site.start("gateway")
    try:
        until(site.settings.url_path.exists, "the gateway's address")
        until((site.settings.run_dir / "query.sock").exists, "the aggregator's sockets")
        yield site
    finally:
        site.stop()
        shutil.rmtree(home, ignore_errors=True)


def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    context.set_default_timeout(WAIT_MS)
    yield context
    context.close()


def opened(site: Site, context: BrowserContext) -> tuple[Page, list[str]]:
    """The page, signed in by a link with the token in its fragment; and what it complained of."""
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.goto(f"{site.url}#token={site.token}")
    expect(page.locator("#connection")).to_have_text("live")
    return page, [one for one in complaints if "401" not in one]


def test_the_board_goes_from_a_skeleton_to_workspaces_and_follows_each_change(
    site: Site, context: BrowserContext
) -> None:
    page, complaints = opened(site, context)
    assert page.locator(".bone").count() > 0
    assert page.locator("table").count() == 0
    site.populate()
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(4)
    assert page.locator(".bone").count() == 0
    # Who needs the user comes first.
    expect(rows.first).to_have_attribute("data-workspace", "search")
    expect(rows.first.locator(".status")).to_have_text("needs permission")
    expect(rows.first.locator(".sessions")).to_contain_text("codex waiting for permission 3 min")
    row = page.locator("tr[data-workspace=fix-login]")
    expect(row.locator(".changes")).to_have_text("+120−8")
    expect(row.locator(".distance")).to_have_text("↑2 ↓1")
    expect(row.locator(".sessions")).to_contain_text("claude working")
    site.look("fix-login", "git", Git(files=4, insertions=134, deletions=8, ahead=3, behind=1), "git")
    expect(row.locator(".changes")).to_have_text("+134−8")
    site.look("search", "session:s2", Session(provider="codex", state="working"))
    site.look("fix-login", "session:s1", Session(provider="claude", state="waiting", waiting_for="question"))
    expect(rows.first).to_have_attribute("data-workspace", "fix-login")
    del site.lives["old"]
    site.census()
    expect(rows).to_have_count(3)
    # Its own hash of what it shows equals the server's, umlauts and all.
    expect(page.locator(".verified")).to_have_text("✓ verified")
    assert complaints == []


def test_a_hostile_branch_name_is_shown_and_nothing_more(site: Site, context: BrowserContext) -> None:
    page, complaints = opened(site, context)
    site.populate()
    expect(page.locator("tr[data-workspace=docs] .branch")).to_have_text(HOSTILE)
    assert page.locator("main img").count() == 0
    assert page.title() == "treewire"
    assert complaints == []


def test_an_empty_board_says_what_to_do_next(site: Site, context: BrowserContext) -> None:
    site.lives.clear()
    page, _ = opened(site, context)
    site.census()
    expect(page.locator(".empty")).to_contain_text("git worktree add")


def test_a_lost_gateway_is_shown_and_the_board_stays_and_comes_back(site: Site, context: BrowserContext) -> None:
    page, _ = opened(site, context)
    site.populate()
    expect(page.locator("tbody tr")).to_have_count(4)
    site.children["gateway"].kill()
    site.children["gateway"].wait()
    expect(page.locator("#connection")).to_have_attribute("data-state", "waiting")
    expect(page.locator("tbody tr")).to_have_count(4)
    site.start("gateway")
    expect(page.locator("#connection")).to_have_text("live", timeout=30_000)
    site.look("old", "git", Git(insertions=77), "git")
    expect(page.locator("tr[data-workspace=old] .changes")).to_have_text("+77−0")


def test_a_lost_aggregator_is_told_and_the_board_stays(site: Site, context: BrowserContext) -> None:
    page, _ = opened(site, context)
    site.populate()
    expect(page.locator("tbody tr")).to_have_count(4)
    site.children["aggregator"].kill()
    site.children["aggregator"].wait()
    expect(page.locator("#health")).to_contain_text("aggregator stale")
    expect(page.locator("tbody tr")).to_have_count(4)
    expect(page.locator(".project")).to_have_class("project old")


def test_without_a_token_there_is_a_sign_in_and_a_pasted_one_opens_the_board(
    site: Site, context: BrowserContext
) -> None:
    page = context.new_page()
    answer = page.goto(site.url)
    assert answer is not None
    assert answer.status == 401
    page.fill("#token", "wrong")
    page.click("button")
    expect(page.locator("#problem")).to_contain_text("not the token")
    page.fill("#token", site.token)
    page.click("button")
    expect(page.locator("#connection")).to_have_text("live")
    assert site.token not in page.url
    assert site.token not in page.content()
    again = context.new_page()
    again.goto(f"{site.url}#token={site.token}")
    expect(again.locator("#connection")).to_have_text("live")
    assert "#" not in again.url
    cookie = context.cookies()[0]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert site.token not in cookie["value"]


def test_a_link_with_the_token_signs_in_a_page_that_is_open_already(site: Site, context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(site.url)
    page.goto(f"{site.url}#token={site.token}")  # only the fragment changes: the page is not loaded anew
    expect(page.locator("#connection")).to_have_text("live")
    assert "#" not in page.url


def test_another_site_can_neither_embed_the_page_nor_open_its_stream(site: Site, context: BrowserContext) -> None:
    opened(site, context)
    other = context.new_page()
    other.goto("about:blank")
    port = site.url.rstrip("/").rpartition(":")[2]
    outcome = other.evaluate(
        """(port) => new Promise((done) => {
            const socket = new WebSocket(`ws://127.0.0.1:${port}/v1/stream`, ["treewire.v1"]);
            socket.onopen = () => done("open");
            socket.onerror = () => done("refused");
        })""",
        port,
    )
    assert outcome == "refused"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_needs_no_sideways_scrolling(site: Site, browser: Browser, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    context.set_default_timeout(WAIT_MS)
    page, _ = opened(site, context)
    site.populate()
    expect(page.locator("tbody tr")).to_have_count(4)
    expect(page.locator("tr[data-workspace=search] .changes")).to_have_text("+1204−318")
    expect(page.locator(".verified")).to_be_visible()
    shots = os.environ.get("TREEWIRE_SHOTS")
    if shots:
        page.screenshot(path=f"{shots}/390-{scheme}.png")
        page.set_viewport_size({"width": 1280, "height": 800})
        page.screenshot(path=f"{shots}/1280-{scheme}.png")
        page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
