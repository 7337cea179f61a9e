"""The words of the page, of the board in a terminal and of the domain are the same where they must be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.style import Style

from pipeline.cli.board import words
from pipeline.cli.board.arrange import COLUMNS, Arrangement, Held
from pipeline.cli.board.paint import Bit, Line, card, fit, need
from pipeline.cli.board.story import story
from pipeline.domain.status import ATTENTION, TABLE

PAGE = (Path(__file__).parents[2] / "gateway/web/words.js").read_text()


def told(name: str) -> Any:
    """A literal of the page's words."""
    found = re.search(rf"const {name} = ([\[{{].*?^[\]}}]);", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    text = re.sub(r"^( *)(\w+):|(?<=, )(\w+):(?= \[)", r'\1"\2\3":', found[1], flags=re.MULTILINE)
    return json.loads(re.sub(r",(\s*[\]}])", r"\1", text))


def test_the_board_puts_first_what_the_domain_puts_first() -> None:
    assert tuple(map(tuple, told("ATTENTION"))) == ATTENTION


def test_the_board_in_a_terminal_calls_everything_what_the_page_calls_it() -> None:
    assert {code: (label, why) for code, (label, _, why) in told("CODES").items()} == words.CODES
    assert {code: tuple(groups) for code, groups in told("FOLLOWS").items()} == words.FOLLOWS
    assert told("PARTS") == words.PARTS


def test_every_status_that_is_on_the_board_has_a_word() -> None:
    assert {code for code, row in TABLE.items() if row.column is not None} == words.CODES.keys()


ODD: list[Any] = [
    {},
    None,
    7,
    {"life": None, "git": 3, "sessions": [], "status": "x"},
    {"status": {"code": None, "column": "beyond", "needs_user": "yes", "changed_at": "soon"}, "sessions": {"s": None}},
    {"status": {"code": ["x"], "changed_at": float("nan")}, "git": {"files": True, "ahead": "2", "branch": 5}},
    {"pr": {"number": "\x1b[2J", "review": {}}, "ci": {"state": 4, "passed": None}, "run": {"port": "\n"}},
]


@pytest.mark.parametrize("entry", ODD)
def test_an_entry_of_a_later_release_is_shown_as_far_as_it_is_understood(entry: Any) -> None:
    board = Arrangement().arrange([Held("web", "web", {"w\x07": entry})])
    assert board.total == 1
    (row,) = [row for column in COLUMNS for row in board.columns[column]]
    assert row.column == "waiting"
    bits = [bit for line in [*card(row), need(row)] for bit in (*line.left, *line.right)]
    assert all(bit.text.isprintable() for bit in bits)
    told = {"state": entry, "groups": {"git": [None, {}, {"verdict": 3, "value": 4, "at_ms": "x"}], "x": 1}}
    assert all(text.isprintable() for paragraph in story(told, 0) for text, _ in paragraph)


@pytest.mark.parametrize("width", [0, 1, 2, 7, 13, 40])
@pytest.mark.parametrize("right", ["", "1 min", "waits for plan approval 3 min"])
@pytest.mark.parametrize("left", ["", "name", "界" * 30, "e\u0301" * 20, "🜂 a-long-name-of-a-branch"])
def test_a_line_takes_exactly_the_cells_that_there_are(left: str, right: str, width: int) -> None:
    line = Line((Bit(left), Bit("")), (Bit(right),) if right else ())
    segments = fit(line, width, lambda _: Style(), Style())
    assert sum(segment.cell_length for segment in segments) == width


def test_rows_of_entries_that_did_not_change_are_the_same_and_search_reads_what_the_card_says() -> None:
    def entry(code: str, column: str, needs: bool, at: int, **more: Any) -> dict[str, Any]:
        return {"status": {"code": code, "column": column, "needs_user": needs, "changed_at": at}, **more}

    held = {
        "old": entry("needs_permission", "waiting", True, 10),
        "new": entry("needs_permission", "waiting", True, 20),
        "worst": entry("session_error", "waiting", True, 30),
        "idle": entry("ready_for_next_prompt", "waiting", False, 40, pr={"number": 12}),
        "busy": entry("agent_working", "working", False, 50, sessions={"s": {"provider": "Codex", "state": "working"}}),
    }
    arrangement = Arrangement()
    board = arrangement.arrange([Held("web", "web", held)])
    assert [row.key[1] for row in board.needs] == ["worst", "old", "new"]
    assert [row.key[1] for row in board.columns["waiting"]] == ["worst", "old", "new", "idle"]
    again = arrangement.arrange([Held("web", "web", {**held, "busy": dict(held["busy"])}), Held("api", "api", None)])
    assert all(new is old for new, old in zip(again.columns["waiting"], board.columns["waiting"], strict=True))
    assert again.columns["working"][0] is not board.columns["working"][0]
    assert again.loading == 1
    for search, found in (("codex work", ["busy"]), ("#12", ["idle"]), ("PERMISSION ol", ["old"]), ("web zzz", [])):
        board = arrangement.arrange([Held("web", "web", held)], search=search)
        assert [row.key[1] for column in COLUMNS for row in board.columns[column]] == found
        assert board.needed == 3, "whatever is looked for"
