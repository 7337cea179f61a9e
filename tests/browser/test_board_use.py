"""Using the board: keys, search, the drawer's story, notifications, colours, signing in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from playwright.sync_api import BrowserContext, Page, expect

from pipeline.domain.model import Session
from tests.browser.conftest import Opener
from tests.browser.site import Site, ready, worked

SIGN_IN: Final = Path(__file__).parents[2] / "gateway" / "web" / "signin.html"


def board(page: Page) -> Page:
    expect(page.locator(".card .open")).to_have_count(14)
    return page


def focused(page: Page) -> Any:
    return page.evaluate("document.activeElement.closest('.card')?.dataset.workspace ?? document.activeElement.id")


def test_keys_go_through_the_cards_and_open_them(workday: Site, opened: Opener) -> None:
    page = board(opened(workday))
    page.keyboard.press("n")
    assert focused(page) == "backfill-2024"  # failed: that goes before whoever only waits
    page.keyboard.press("n")
    assert focused(page) == "fix-login-redirect"
    page.keyboard.press("j")
    assert focused(page) == "dark-mode"
    page.keyboard.press("k")
    page.keyboard.press("k")
    assert focused(page) == "backfill-2024"
    page.keyboard.press("h")
    assert focused(page) == "parquet-writer"
    page.keyboard.press("l")
    page.keyboard.press("l")
    assert focused(page) == "a11y-audit"
    page.keyboard.press("Enter")
    expect(page.locator("#story-title")).to_have_text("a11y-audit")
    page.keyboard.press("j")  # from story to story
    expect(page.locator("#story-title")).to_have_text("retire-v1")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    assert focused(page) == "retire-v1"
    page.keyboard.press("?")
    expect(page.locator("dialog.help")).to_contain_text("next that needs you")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)


def test_a_card_that_moves_keeps_the_focus(site: Site, opened: Opener) -> None:
    page = opened(site)
    site.put("a", ready("a", "a"), {"session:s1": (Session(provider="claude", state="working"), 0)})
    page.locator(".column[data-column=working] .open").focus()
    site.look("a", "session:s1", Session(provider="claude", state="waiting", waiting_for="question"))
    expect(page.locator(".column[data-column=waiting] .open")).to_be_focused()


def test_the_search_narrows_the_board_and_says_if_nothing_is_left(workday: Site, opened: Opener) -> None:
    page = board(opened(workday))
    page.keyboard.press("/")
    page.keyboard.type("claude rebase")
    expect(page.locator(".card .open")).to_have_text(["upgrade-router"])
    assert "search=claude" in page.url
    page.fill("#search", "#482")
    expect(page.locator(".card .open")).to_have_text(["search-autocomplete"])
    page.fill("#search", "no such thing")
    expect(page.locator(".empty h2")).to_have_text("Nothing matches “no such thing”.")
    page.click("#clear")
    expect(page.locator(".card .open")).to_have_count(14)
    page.select_option("#project", "ingest")
    expect(page.locator(".card .open")).to_have_count(5)
    expect(page.locator(".connection .version")).to_have_text(re.compile(r" · v\d+"))
    expect(page).to_have_title("(6) treewire")  # of all projects, whatever is looked at
    page.reload()
    expect(page.locator(".card .open")).to_have_count(5)


def test_the_drawer_tells_who_said_what_and_what_was_rejected_and_why(
    site: Site, opened: Opener, complaints: list[str]
) -> None:
    page = opened(site)
    site.put("login", ready("login", "fix/login"))
    site.look("login", "session:s1", Session(provider="claude", state="working"), producer="claude-hooks")
    site.look("login", "session:s1", Session(provider="claude", state="waiting", waiting_for="permission"))
    site.look("login", "session:s1", Session(provider="claude", state="idle"), producer="old-poll", began_ms_ago=60_000)
    site.look("login", "git", worked(3, 120, 8, 2, 0))
    page.locator(".card[data-workspace=login] .open").click()
    drawer = page.locator("dialog.drawer")
    expect(drawer.locator("[data-group=status]")).to_contain_text("Because an agent waits for a permission.")
    agent = drawer.locator("[data-group='session:s1']")
    expect(agent.locator("h3")).to_have_text("Agent claude")
    expect(agent.locator("dl")).to_contain_text("waiting forpermission")
    expect(agent).to_contain_text("claude-hooks said so")
    rejected = agent.locator(".refused li")
    expect(rejected).to_have_count(1)
    expect(rejected).to_contain_text("older old-poll was not believed")
    expect(rejected).to_contain_text("ended before the current look began")
    expect(rejected).to_contain_text("It said: provider claude, state idle.")
    agent.locator("summary").click()
    expect(agent.locator("details li")).to_contain_text("state working")
    # It goes on telling while it is open.
    site.look("login", "git", worked(5, 999, 8, 2, 0))
    expect(drawer.locator("[data-group=git] dl")).to_contain_text("insertions999")
    page.reload()
    expect(drawer.locator("#story-title")).to_have_text("login")  # an address to send to somebody
    site.kill("aggregator")
    site.look("login", "git", worked(6, 1000, 8, 2, 0))
    page.reload()
    expect(drawer.locator(".problem")).to_contain_text("The story cannot be told now", timeout=30_000)
    complaints.clear()  # of the browser, about the 503


def test_a_notification_is_asked_for_and_tells_a_name_and_the_need_only_when_it_arises(
    site: Site, context: BrowserContext, opened: Opener
) -> None:
    context.add_init_script(
        """
        globalThis.told = [];
        globalThis.Notification = class {
          static permission = "default";
          static async requestPermission() { return (this.permission = "granted"); }
          constructor(title, { body }) { told.push(title + ": " + body); }
        };
        document.hasFocus = () => false;
        """
    )
    page = opened(site)
    asks = Session(provider="claude", state="waiting", waiting_for="permission")
    site.put("first", ready("first", "secret-branch"), {"session:s1": (asks, 0)})
    site.put("second", ready("second", "secret-branch"), {"session:s1": (Session(state="working"), 0)})
    expect(page.locator(".card .open")).to_have_count(2)
    page.click("#notify")
    expect(page.locator("#notify")).to_have_attribute("aria-pressed", "true")
    site.look("second", "session:s1", asks)
    expect(page.locator(".strip .need")).to_have_count(2)
    assert page.evaluate("told") == ["second: give permission"]
    site.look("second", "session:s1", Session(provider="claude", state="waiting", waiting_for="question"))
    expect(page.locator(".strip")).to_contain_text("answer question")
    assert len(page.evaluate("told")) == 1


def test_the_colours_can_be_chosen_and_stay_chosen(workday: Site, context: BrowserContext, opened: Opener) -> None:
    page = board(opened(workday))
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    page.click("#theme")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    light = page.evaluate(ground)
    page.click("#theme")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    dark = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == dark
    page.click("#theme")
    expect(page.locator("html")).not_to_have_attribute("data-theme", re.compile(".*"))


def test_without_a_token_there_is_a_sign_in_and_a_pasted_one_opens_the_board(
    workday: Site, context: BrowserContext
) -> None:
    page = context.new_page()
    answer = page.goto(workday.url)
    assert answer is not None
    assert answer.status == 401
    page.fill("#token", "wrong")
    page.click("button")
    expect(page.locator("#problem")).to_contain_text("not the token")
    page.fill("#token", workday.token)
    page.click("button")
    expect(page.locator("#connection")).to_have_text("live")
    assert workday.token not in page.url
    assert workday.token not in page.content()
    again = context.new_page()
    again.goto(workday.link)
    expect(again.locator("#connection")).to_have_text("live")
    assert "token" not in again.url
    cookie = context.cookies()[0]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert workday.token not in cookie["value"]


def test_where_a_token_could_be_read_on_the_way_nobody_is_asked_for_one_and_told_what_to_do(
    context: BrowserContext,
) -> None:
    page = context.new_page()
    asked: list[str] = []
    page.route(
        "http://board.example:8787/**", lambda route: asked.append(route.request.url) or route.fulfill(path=SIGN_IN)
    )
    page.goto("http://board.example:8787/#token=secret")
    expect(page.locator("#problem")).to_contain_text("ssh -L 8787:127.0.0.1:8787 board.example")
    expect(page.locator("#token")).to_be_disabled()
    expect(page.locator("button")).to_be_disabled()
    assert not [url for url in asked if "login" in url]


def test_a_link_with_the_token_signs_in_a_page_that_is_open_already(workday: Site, context: BrowserContext) -> None:
    page = context.new_page()
    page.goto(workday.url)
    page.goto(workday.link)  # only the fragment changes: the page is not loaded anew
    expect(page.locator("#connection")).to_have_text("live")
    assert "#" not in page.url


def test_another_site_can_neither_embed_the_page_nor_open_its_stream(
    workday: Site, context: BrowserContext, opened: Opener
) -> None:
    opened(workday)
    other = context.new_page()
    other.goto("about:blank")
    port = workday.url.rstrip("/").rpartition(":")[2]
    outcome = other.evaluate(
        """(port) => new Promise((done) => {
            const socket = new WebSocket(`ws://127.0.0.1:${port}/v1/stream`, ["treewire.v1"]);
            socket.onopen = () => done("open");
            socket.onerror = () => done("refused");
        })""",
        port,
    )
    assert outcome == "refused"


def test_signing_out_leaves_nothing_that_opens_the_board(site: Site, opened: Opener, context: BrowserContext) -> None:
    page = opened(site)
    page.keyboard.press("?")
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#token")).to_be_visible()
    assert context.cookies() == []
    page.reload()
    expect(page.locator("#token")).to_be_visible()


def test_signing_out_while_nobody_answers_says_so_and_can_be_tried_again(site: Site, opened: Opener) -> None:
    page = opened(site)
    page.keyboard.press("?")
    page.route("**/v1/logout", lambda route: route.abort("connectionrefused"))
    page.get_by_role("button", name="Sign out").click()
    again = page.get_by_role("button", name="Not signed out")
    expect(again).to_be_visible()
    page.unroute("**/v1/logout")
    again.click()
    expect(page.locator("#token")).to_be_visible()
