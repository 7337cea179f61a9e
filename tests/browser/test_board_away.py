"""The board while parts of the deployment are gone: what was known stays, and looks as old as it is."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from pipeline.domain.model import Git
from tests.browser.conftest import Opener
from tests.browser.site import Site, until
from tests.browser.test_board import card, three


def test_a_lost_gateway_is_shown_and_the_board_stays_and_comes_back(site: Site, opened: Opener) -> None:
    """U2."""
    page = opened(site)
    three(site)
    expect(page.locator(".card .open")).to_have_count(3)
    site.kill("gateway")
    expect(page.locator("#connection")).to_have_text(re.compile("reconnecting|connecting"))
    expect(page.locator("main")).to_have_class("old")
    expect(page.locator(".connection .asof")).to_have_text(re.compile(r"as of \d+ s ago"))
    expect(page.locator("[data-part=gateway]")).to_contain_text("does not answer")
    expect(page.locator(".card .open")).to_have_count(3)
    site.start("gateway")
    expect(page.locator("#connection")).to_have_text("live", timeout=40_000)
    expect(page.locator("main")).not_to_have_class("old")
    site.look("docs", "git", Git(insertions=77, deletions=0))
    expect(card(page, "docs").locator(".changes")).to_have_text("+77 −0")


def test_a_lost_aggregator_is_told_and_the_board_stays(site: Site, opened: Opener) -> None:
    """U2."""
    page = opened(site)
    three(site)
    expect(page.locator(".card .open")).to_have_count(3)
    site.kill("aggregator")
    expect(page.locator("[data-part=aggregator]")).to_contain_text("aggregator stale")
    expect(page.locator("#connection")).to_have_text("stale")
    expect(page.locator(".connection .asof")).to_have_text(re.compile(r"as of \d+ s ago"))
    expect(page.locator("main")).to_have_class("old")
    expect(page.locator(".card .open")).to_have_count(3)
    site.start("aggregator")
    until(lambda: site.census() or page.locator("#connection").inner_text() == "live", "the board to be live again")
    expect(page.locator("main")).not_to_have_class("old")
    expect(page.locator(".card .open")).to_have_count(3)


def test_each_part_that_is_not_well_is_named_with_what_it_means(site: Site, opened: Opener) -> None:
    page = opened(site)
    site.census()
    health = page.locator("#health details")
    expect(health.locator("summary")).to_contain_text("git away")
    health.locator("summary").click()
    expect(health.locator("[data-part=git]")).to_contain_text("changes, ahead and behind may be old")
    expect(health.locator("[data-part=sources]")).to_contain_text("new ones do not appear")
