"""The board in a terminal shows the same as the page, in the same order and in the same words."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

from playwright.sync_api import expect

from pipeline.cli.board.arrange import COLUMNS, Arrangement, Held
from pipeline.cli.board.words import part, status
from tests.browser.conftest import Opener
from tests.browser.site import Site

SHOWN = "(all) => all.map((it) => [it.dataset.workspace, it.querySelector('.status').textContent])"


def ask(site: Site, path: str) -> Any:
    request = urllib.request.Request(site.url + path, headers={"Authorization": f"Bearer {site.token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def test_the_board_in_a_terminal_shows_the_same_in_the_same_order(workday: Site, opened: Opener) -> None:
    page = opened(workday)
    expect(page.locator(".card .open")).to_have_count(14)
    listed = ask(workday, "v1/projects")["projects"]
    held = [
        Held(one["id"], one["name"], ask(workday, f"v1/projects/{one['id']}/snapshot")["workspaces"]) for one in listed
    ]
    board = Arrangement().arrange(held)
    for column in COLUMNS:
        ours = [[row.key[1], status(part(row.entry, "status").get("code"))[0]] for row in board.columns[column]]
        assert ours == page.locator(f".column[data-column={column}] .card").evaluate_all(SHOWN)
    page.locator(".strip .more").evaluate_all("(all) => all.forEach((it) => it.click())")
    needs = page.locator(".strip .need").evaluate_all("(all) => all.map((it) => it.dataset.open)")
    assert ["/".join(row.key) for row in board.needs] == needs
