"""What a change costs the page: counted, not timed. Dropped frames come from work that nobody needed."""

from __future__ import annotations

import time
from typing import Any

from playwright.sync_api import Page, expect

from pipeline.domain.model import Session
from tests.browser.conftest import Opener
from tests.browser.site import Site, ready, until, worked
from tests.browser.test_board import card, column

MANY = 300
RENDER_S = 0.2
FEW = tuple(f"w{n}" for n in range(5))

# How often the board was rendered, of which cards the content was, and which parts of the page were changed: without
# ages, whose text a timer writes.
COUNT = """
async () => {
    const { options } = await import("/vendor/preact.js");
    globalThis.work = { renders: 0, cards: [], touched: [], moved: 0 };
    const before = options.diffed;
    options.diffed = (vnode) => {
        if (vnode.type?.name === "Board") work.renders += 1;
        if (vnode.type === "li" && "data-workspace" in vnode.props) work.cards.push(vnode.props["data-workspace"]);
        before?.(vnode);
    };
    const root = document.getElementById("root");
    const cardsIn = (node) => (node.matches?.(".card") ? 1 : (node.querySelectorAll?.(".card").length ?? 0));
    new MutationObserver((records) => {
        for (const { target, addedNodes } of records) {
            const element = target instanceof Element ? target : target.parentElement;
            for (const node of addedNodes) work.moved += cardsIn(node);
            if (!element?.isConnected || element.localName === "time") continue; // removed with what it stood in
            const part = element.closest(".card, .connection, .strip, .tabs, .column, #health");
            work.touched.push(part?.dataset.workspace ?? part?.className ?? element.localName);
        }
    }).observe(root, { subtree: true, childList: true, attributes: true, characterData: true });
}
"""


def work(page: Page) -> dict[str, Any]:
    """What was done since this was last asked."""
    done: dict[str, Any] = page.evaluate(
        "() => { const done = work; work = { ...done, renders: 0, cards: [], touched: [], moved: 0 }; return done; }"
    )
    return done


def crowd(site: Site, size: int) -> None:
    for n in range(size):
        site.lives["web", f"w{n}"] = ready(f"w{n}", f"feature/w{n}")
    site.census()


def test_a_change_is_work_for_the_cards_that_changed_and_a_burst_for_one_render(site: Site, opened: Opener) -> None:
    """U1: no dropped frames. 300 cards, all of them rendered."""
    page = opened(site)
    crowd(site, MANY)
    expect(page.locator("#column-waiting .count")).to_have_text(str(MANY))
    more = page.locator(".column > .more")
    until(lambda: not more.count() or more.first.evaluate("(it) => it.click()"), "every card")
    expect(page.locator(".card .open")).to_have_count(MANY)
    # Where they are out of view, not even their layout is worked out.
    assert card(page, "w299").evaluate("(it) => getComputedStyle(it).contentVisibility") == "auto"
    expect(page.locator(".verified")).to_be_visible()
    page.evaluate(COUNT)
    began = time.monotonic()
    for lines in range(1, 41):
        for name in FEW:
            site.look(name, "git", worked(1, lines, 0, 1, 0))
        page.wait_for_timeout(20)
    for name in FEW:
        expect(card(page, name).locator(".changes")).to_have_text("+40 −0 1 file")
    done = work(page)
    assert 1 <= done["renders"] <= (time.monotonic() - began) / RENDER_S + 2
    assert set(done["cards"]) == set(FEW)
    assert len(done["cards"]) <= len(FEW) * done["renders"]
    assert set(done["touched"]) <= {*FEW, "connection"}
    assert done["moved"] == 0
    # One that moves is taken out and put in, and the others stay where they are.
    site.look("w7", "session:s1", Session(provider="claude", state="working"))
    expect(column(page, "working").locator(".card")).to_have_count(1)
    done = work(page)
    assert set(done["cards"]) == {"w7"}
    assert done["moved"] == 1
    assert set(done["touched"]) <= {"w7", "connection", "column", "tabs"}


def test_of_two_thousand_workspaces_those_are_rendered_that_one_comes_to(site: Site, opened: Opener) -> None:
    page = opened(site)
    crowd(site, 2000)
    waiting = page.locator("#column-waiting .count")
    expect(waiting).to_have_text("2,000")
    cards = page.locator(".card .open")
    first = cards.count()
    assert 0 < first <= 240
    page.locator(".column > .more").scroll_into_view_if_needed()
    until(lambda: page.wait_for_timeout(20) or cards.count() > first, "more of them")
    page.keyboard.press("/")
    page.keyboard.type("w1999")
    expect(cards).to_have_count(1)
    expect(cards).to_have_text("w1999")
    site.look("w1999", "git", worked(1, 77, 0, 1, 0))
    expect(card(page, "w1999").locator(".changes")).to_have_text("+77 −0 1 file")
