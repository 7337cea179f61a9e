"""The parts of the screen. Lines are drawn only where they are in view, so that it costs the same with any number."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from pipeline.cli.board.arrange import COLUMNS, Row
from pipeline.cli.board.paint import Bit, Line, card, fit, need

NEEDS: Final = 5
BONES: Final = {"working": 3, "waiting": 2, "done": 1}
EMPTY: Final = {"working": "Nobody works.", "waiting": "Nothing waits.", "done": "Nothing is done yet."}
STYLES: Final = ("ink", "strong", "quiet", "fail", "call", "work", "good", "done", "calm", "old", "picked", "bone")
PALE: Final = frozenset({"ink", "strong", "fail", "call", "work", "good", "done"})  # these fade on what is stale
Key = tuple[str, str]


class Picked(Message):
    """A card, or who needs the user, was clicked."""

    def __init__(self, key: Key) -> None:
        self.key = key
        super().__init__()


class Drawn(Widget):
    """A widget of lines, with the board's colours as its component classes."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"of--{name}" for name in STYLES}
    fades = False

    def in_style(self, name: str) -> Style:
        if name in PALE and self.fades and self.screen.has_class("stale"):
            name = "old"
        return self.get_component_rich_style(f"of--{name}", partial=True)

    def draw(self, line: Line, width: int, ground: Style) -> Strip:
        return Strip(fit(line, width, self.in_style, ground), width)


class Lines(Drawn):
    """Some lines, as high as there are."""

    lines: tuple[Line, ...] = ()

    def tell(self, *lines: Line) -> None:
        if lines == self.lines:
            return
        if len(lines) != len(self.lines):
            self.styles.height = len(lines)
        self.set_class(not lines, "nothing")
        self.lines = lines
        self.refresh()

    def render_line(self, y: int) -> Strip:
        if y >= len(self.lines):
            return Strip.blank(self.size.width, self.rich_style)
        return self.draw(self.lines[y], self.size.width, self.rich_style)


class Needs(Lines):
    """The strip of those that need the user."""

    fades = True
    keys: tuple[Key, ...] = ()

    def show(self, rows: list[Row], name_projects: bool, picked: Key | None) -> None:
        shown = rows if len(rows) <= NEEDS else rows[: NEEDS - 1]
        self.keys = tuple(row.key for row in shown)
        if not rows:
            self.tell()
            return
        lines = [Line((Bit("Needs you ", "strong"), Bit(str(len(rows)), "call")))]
        for row in shown:
            mark = Bit("› " if row.key == picked else "  ", "strong")
            line = need(row, row.project if name_projects else "")
            lines.append(Line((mark, *line.left), line.right))
        if len(rows) > len(shown):
            lines.append(Line((Bit(f"  and {len(rows) - len(shown)} more: n goes to the next", "quiet"),)))
        self.tell(*lines)

    def on_click(self, event: events.Click) -> None:
        if 1 <= event.y <= len(self.keys):
            self.post_message(Picked(self.keys[event.y - 1]))


class Column(Drawn, ScrollView):
    """The cards of one column, below each other."""

    can_focus = False
    fades = True

    def __init__(self, column: str) -> None:
        super().__init__(id=column)
        self.column = column
        self.rows: list[Row] = []
        self.picked: Key | None = None
        self.loading_bones = True
        self._name_projects = False
        self._cards: dict[Key, tuple[Row, bool, list[Line]]] = {}
        self._tops: list[int] = [0]

    def show(self, rows: list[Row], name_projects: bool, picked: Key | None, bones: bool) -> None:
        """Show these, drawing again only what is in view, and that only if something is another one."""
        same = (
            picked == self.picked
            and bones == self.loading_bones
            and name_projects == self._name_projects
            and len(rows) == len(self.rows)
            and all(new is old for new, old in zip(rows, self.rows, strict=True))
        )
        if same:
            return
        self.rows, self.picked, self.loading_bones, self._name_projects = rows, picked, bones, name_projects
        self._cards = {row.key: self._lines(row) for row in rows}
        self._tops = [*accumulate((len(self._cards[row.key][2]) + 1 for row in rows), initial=0)]
        self.border_title = f"{self.column.capitalize()} {'' if bones else f'{len(rows):,}'}".rstrip()
        self.virtual_size = Size(0, self._tops[-1])
        self.refresh()

    def _lines(self, row: Row) -> tuple[Row, bool, list[Line]]:
        held = self._cards.get(row.key)
        if held is not None and held[0] is row and held[1] == self._name_projects:
            return held
        return row, self._name_projects, card(row, row.project if self._name_projects else "")

    def reveal(self, key: Key) -> None:
        """Scroll so that this card is in view."""
        for at, row in enumerate(self.rows):
            if row.key == key:
                top, bottom, height = self._tops[at], self._tops[at + 1], self.scrollable_content_region.height
                y = self.scroll_offset.y
                if top < y or bottom - top > height:
                    self.scroll_to(y=top, animate=False)
                elif bottom > y + height:
                    self.scroll_to(y=bottom - height, animate=False)
                return

    def at(self, y: int) -> tuple[Row, int] | None:
        """Which row lies at this line of the whole column, and the line within its card."""
        at = bisect_right(self._tops, y) - 1
        return (self.rows[at], y - self._tops[at]) if 0 <= at < len(self.rows) else None

    def render_line(self, y: int) -> Strip:
        width, ground = self.scrollable_content_region.width, self.rich_style
        if not self.rows:
            return self._without_cards(y, width, ground)
        found = self.at(y + self.scroll_offset.y)
        if found is None:
            return Strip.blank(width, ground)
        row, within = found
        lines = self._cards[row.key][2]
        if within >= len(lines):
            return Strip.blank(width, ground)
        picked = row.key == self.picked
        if picked:
            ground += self.in_style("picked")
        edge = Segment("▌" if row.needs or picked else " ", ground + self.in_style("call" if row.needs else "strong"))
        inner = self.draw(lines[within], max(0, width - 3), ground)
        return Strip([edge, Segment(" ", ground), *inner, Segment(" ", ground)], width)

    def _without_cards(self, y: int, width: int, ground: Style) -> Strip:
        if not self.loading_bones:
            line = Line((Bit(f" {EMPTY[self.column]}", "quiet"),)) if y == 0 else Line()
            return self.draw(line, width, ground)
        bone, within = divmod(y, 4)
        if bone >= BONES[self.column] or within == 3:
            return Strip.blank(width, ground)
        length = (max(0, width - 4) * (70, 45, 90)[within]) // 100
        return self.draw(Line((Bit("  "), Bit("▁" * length, "bone"))), width, ground)

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        found = None if offset is None else self.at(offset.y + self.scroll_offset.y)
        if found is not None:
            self.post_message(Picked(found[0].key))


class Tabs(Lines):
    """On a narrow screen: which column is shown, and how many stand in each."""

    def show(self, counts: dict[str, int], current: str) -> None:
        bits = [Bit(f" {column} {counts[column]:,} ", "strong" if column == current else "quiet") for column in COLUMNS]
        self.tell(Line(tuple(bits), (Bit("h l", "quiet"),)))
