"""How the board looks, whoever looks at it and whatever things are called: axe, narrow screens, hostile names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from pipeline.domain.model import Git, Life, Session
from tests.browser.conftest import Opener
from tests.browser.site import MINUTE, WAIT_MS, Site, until

AXE = (Path(__file__).parent / "vendor/axe.min.js").read_text()
HOSTILE = {
    "markup": "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>",
    "backwards": "\u202egnp.exe \u2067מילה\u2069 abc",
    "endless": "x" * 400,
    "odd": "\u2028 ünïcödé 🜂 ${title} {{title}} %s &amp;",
}


def board(page: Page) -> Page:
    expect(page.locator(".card .open")).to_have_count(14)
    return page


def audit(page: Page) -> list[str]:
    """What axe finds wrong, each with where."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run({ resultTypes: ['violations'] })")
    return [f"{one['id']}: {node['html'][:200]}" for one in found["violations"] for node in one["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(workday: Site, browser: Browser, opened: Opener, scheme: Any, width: int) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme=scheme, reduced_motion="reduce"
    )
    context.set_default_timeout(WAIT_MS)
    page = opened(workday, context)
    expect(page.locator(".card .open")).to_have_count(14)
    assert audit(page) == []
    page.locator(".strip .need").first.click()
    expect(page.locator(".drawer dl").first).to_be_visible()
    assert audit(page) == []
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    page.evaluate("document.querySelector('main').classList.add('old')")  # as while the gateway is away
    assert audit(page) == []
    page.click("#help")
    assert audit(page) == []
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_way_in(workday: Site, browser: Browser, scheme: Any) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto(workday.url)
    assert audit(page) == []
    page.evaluate("problem.textContent = 'This is not the token of this treewire, or it has ended.'")
    assert audit(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_names_are_shown_and_do_nothing_more(site: Site, browser: Browser, opened: Opener, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, reduced_motion="reduce")
    context.set_default_timeout(WAIT_MS)
    page = opened(site, context)
    for key, name in HOSTILE.items():
        asks = Session(provider=name, model=name, state="waiting", waiting_for="question")
        site.put(key, Life(name=name, phase="ready", branch=name), {"session:s1": (asks, MINUTE)})
        site.look(key, "git", Git(branch=name + "-branch", insertions=1, deletions=1, ahead=1, behind=0))
    expect(page.locator(".strip .need")).to_have_count(len(HOSTILE))
    for key, name in HOSTILE.items():
        shown = page.locator(f".card[data-workspace={key}]")
        expect(shown.locator(".open bdi")).to_have_text(name, use_inner_text=False)
        box = shown.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["height"] < 320
        shown.locator(".open").click()
        expect(page.locator("#story-title")).to_have_text(name)
        expect(page.locator(".drawer [data-group=git] dl")).to_be_visible()
        assert page.evaluate(
            "document.querySelector('.story').scrollWidth <= document.querySelector('.story').clientWidth"
        )
        page.keyboard.press("Escape")
        expect(page.locator("dialog")).to_have_count(0)
    assert page.locator("main img, main script").count() == 0
    assert page.title() == f"({len(HOSTILE)}) treewire"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_a_narrow_screen_needs_no_sideways_scrolling(workday: Site, browser: Browser, opened: Opener) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, reduced_motion="reduce")
    context.set_default_timeout(WAIT_MS)
    page = opened(workday, context)
    shown = page.locator(".card .open").locator("visible=true")
    expect(shown).to_have_count(7)  # one column at a time
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".tabs [data-column=working]").tap()
    expect(shown).to_have_count(5)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shown.first.tap()
    expect(page.locator(".drawer dl").first).to_be_visible()
    box = page.locator("dialog.drawer").bounding_box()
    assert box is not None
    assert (box["x"], box["width"]) == (0, 390)
    page.locator("#close").tap()
    expect(page.locator("dialog")).to_have_count(0)
    context.close()


def test_the_page_runs_nothing_that_it_did_not_bring(workday: Site, opened: Opener, complaints: list[str]) -> None:
    page = board(opened(workday))
    answer = page.request.get(workday.url, headers={"Authorization": f"Bearer {workday.token}"})
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy  # not even a hash: nothing is inline
    assert "unsafe" not in policy
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"/nothing\" onerror=\"document.title=1\">')"
    )
    until(
        lambda: page.wait_for_timeout(20) or any("script-src" in one for one in complaints),
        "the browser's word that it blocked the handler",
    )
    assert page.title() == "(6) treewire"
    complaints.clear()
