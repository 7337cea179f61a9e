"""The board follows what is live, and says how far it can be believed: in a real browser, before real processes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from pipeline.domain.model import Pr, Session
from tests.browser.conftest import Opener
from tests.browser.site import MINUTE, SECOND, Site, ready, until, worked

WORKING = Session(provider="claude", model="opus-4.1", state="working")
PERMISSION = Session(provider="claude", state="waiting", waiting_for="permission")
QUESTION = Session(provider="codex", state="waiting", waiting_for="question")


def three(site: Site) -> None:
    for name in ("login", "search", "docs"):
        site.lives["web", name] = ready(name, f"feature/{name}")
    site.census()
    site.look("login", "git", worked(3, 120, 8, 2, 1))
    site.look("login", "session:s1", WORKING, 45 * SECOND)
    site.look("search", "session:s1", QUESTION, 4 * MINUTE)


def card(page: Page, workspace: str) -> Any:
    return page.locator(f".card[data-workspace={workspace}]")


def column(page: Page, name: str) -> Any:
    return page.locator(f".column[data-column={name}]")


def test_the_board_goes_from_a_skeleton_to_workspaces_and_follows_each_change(site: Site, opened: Opener) -> None:
    """U1, U2, W6."""
    page = opened(site)
    expect(page.locator(".bones .card")).to_have_count(6)
    expect(page.locator("main")).to_have_attribute("aria-busy", "true")
    assert page.locator(".empty, .card .open").count() == 0
    three(site)
    expect(page.locator(".card .open")).to_have_count(3)
    expect(page.locator(".bones")).to_have_count(0)
    expect(page.locator("main")).to_have_attribute("aria-busy", "false")
    # Its own hash of what it shows equals the server's, and it says when that was found.
    expect(page.locator(".connection")).to_have_text(re.compile(r"live · v\d+ ✓verified \d+ s ago"))
    login = card(page, "login")
    expect(login.locator(".changes")).to_have_text("+120 −8 3 files")
    expect(login.locator(".distance")).to_have_text("↑2 ahead↓1 behind")
    expect(login.locator(".agents")).to_contain_text("claude opus-4.1")
    expect(column(page, "working").locator(".card")).to_have_count(1)
    site.look("login", "git", worked(4, 1340, 8, 3, 1, operation="rebase", conflicted=2))
    expect(login.locator(".changes")).to_have_text("+1,340 −8 4 files")
    expect(login.locator(".operation")).to_have_text("rebase")
    expect(login.locator(".conflicts")).to_have_text("2 conflicts")
    site.look("login", "session:s1", PERMISSION)
    expect(column(page, "waiting").locator(".card[data-workspace=login] .status")).to_have_text("give permission")
    site.look("login", "pr", Pr(number=7, url="https://example.com/7", state="merged"))
    expect(column(page, "done").locator(".card[data-workspace=login] .pr")).to_have_text("#7 merged")
    expect(login.locator(".pr a")).to_have_attribute("href", "https://example.com/7")


def test_who_needs_the_user_is_on_top_in_the_title_and_in_the_icon(site: Site, opened: Opener) -> None:
    page = opened(site)
    three(site)
    needs = page.locator(".strip .need")
    expect(needs).to_have_count(1)
    expect(needs.first).to_contain_text("searchanswer question4 min")
    expect(page).to_have_title("(1) treewire")
    icon = page.locator("link[rel=icon]")
    expect(icon).to_have_attribute("href", re.compile("%3E1%3C"))
    expect(page.locator("[aria-live=polite]")).to_have_text("1 workspace needs you.")
    site.look("docs", "session:s1", PERMISSION, 9 * MINUTE)
    expect(needs).to_have_count(2)
    expect(needs.first).to_contain_text("docs")  # it has waited for longer
    expect(page).to_have_title("(2) treewire")
    for name in ("docs", "search"):
        site.look(name, "session:s1", WORKING)
    expect(page.locator(".strip")).to_have_count(0)
    expect(page).to_have_title("treewire")
    expect(icon).to_have_attribute("href", "/icon.svg")


def test_a_burst_is_rendered_once_and_a_need_at_once(site: Site, context: BrowserContext, opened: Opener) -> None:
    """U1: at most one render per 200 ms; who needs the user does not wait for it."""
    page = opened(site)
    three(site)
    expect(page.locator(".card .open")).to_have_count(3)
    expect(card(page, "login").locator(".changes")).to_have_text("+120 −8 3 files")
    expect(page.locator(".verified")).to_be_visible()
    page.clock.install()
    frames: list[str] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(str(frame))))
    page.reload()
    expect_text = "() => document.querySelector('[data-workspace=login] .changes')?.textContent"
    until(lambda: _run(page, 50) and page.evaluate(expect_text) == "+120 −8 3 files", "the first render")
    page.clock.run_for(1000)
    page.clock.pause_at(page.evaluate("Date.now()") / 1000 + 1)
    site.look("login", "git", worked(4, 121, 8, 2, 1))
    until(lambda: page.wait_for_timeout(20) or any('"insertions":121' in one for one in frames), "the first change")
    _run(page, 1)
    assert page.evaluate(expect_text) == "+121 −8 4 files"  # after a quiet moment nothing waits
    for lines in range(122, 130):
        site.look("login", "git", worked(4, lines, 8, 2, 1))
    until(lambda: page.wait_for_timeout(20) or any('"insertions":129' in one for one in frames), "the burst")
    _run(page, 100)
    assert page.evaluate(expect_text) == "+121 −8 4 files"
    site.look("login", "session:s1", PERMISSION)
    until(lambda: page.wait_for_timeout(20) or any('"needs_permission"' in one for one in frames), "the need")
    _run(page, 1)
    assert page.locator(".strip .need").count() == 2
    assert page.evaluate(expect_text) == "+129 −8 4 files"


def _run(page: Page, ms: int) -> bool:
    page.clock.run_for(ms)
    return True


def test_ages_go_on_while_nothing_else_happens(site: Site, opened: Opener) -> None:
    """U2."""
    page = opened(site)
    three(site)
    at = card(page, "search").locator(".top .age")
    expect(at).to_have_text("4 min")
    page.clock.install()
    page.reload()
    expect(at).to_have_text(re.compile("4 min|5 min"))
    page.clock.fast_forward(3 * MINUTE)
    expect(at).to_have_text(re.compile("7 min|8 min"))


def test_an_archived_workspace_leaves_the_board_and_its_drawer_says_so(site: Site, opened: Opener) -> None:
    page = opened(site)
    three(site)
    card(page, "docs").locator(".open").click()
    expect(page.locator("#story-title")).to_have_text("docs")
    del site.lives["web", "docs"]
    site.census()
    expect(card(page, "docs")).to_have_count(0)
    expect(page.locator(".drawer .status")).to_have_text("gone: archived or removed")


def test_two_tabs_hold_the_same(site: Site, opened: Opener) -> None:
    """W4."""
    one, other = opened(site), opened(site)
    three(site)
    for lines in range(10, 30):
        site.look("login", "git", worked(1, lines, 0, 1, 0))
    for page in (one, other):
        expect(card(page, "login").locator(".changes")).to_have_text("+29 −0 1 file")
        expect(page.locator(".verified")).to_be_visible()
    text = one.locator("#columns").evaluate("(it) => it.innerText.replaceAll(/\\d+ s/g, '')")
    expect(other.locator(".card .open")).to_have_count(3)
    assert other.locator("#columns").evaluate("(it) => it.innerText.replaceAll(/\\d+ s/g, '')") == text


@pytest.mark.parametrize(
    ("projects", "said", "command"),
    [
        ([], "No repository is followed yet.", "treewire project add PATH"),
        (["web"], "No worktrees yet.", "git worktree add ../my-task -b my-task"),
    ],
)
def test_an_empty_board_says_what_to_do_next(
    site: Site, opened: Opener, projects: list[str], said: str, command: str
) -> None:
    page = opened(site)
    site.projects = projects
    site.census()
    expect(page.locator(".empty h2")).to_have_text(said)
    expect(page.locator(".empty code")).to_have_text(command)
