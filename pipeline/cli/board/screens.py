"""What lies over the board: the drawer with a story, the choice of a project, the keys; and the empty board."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from pipeline.cli.board.live import Listed, Live
from pipeline.cli.board.paint import GLYPHS
from pipeline.cli.board.story import Paragraph, story
from pipeline.cli.board.words import Entry, branch_of, part, printable, status, title, tone

AGAIN_S: Final = 1.0
COLOURS: Final = {
    "ink": "$ink",
    "strong": "bold $ink",
    "quiet": "$quiet",
    "calm": "$quiet",
    **{name: f"${name}" for name in ("fail", "call", "work", "good", "done")},
}
KEYS: Final = (
    ("n", "next that needs you"),
    ("j k", "next and previous card"),
    ("h l", "column to the left and right"),
    ("Enter", "why it stands there"),
    ("Esc", "close, or clear the search"),
    ("/", "search"),
    ("p", "choose a project"),
    ("[ ]", "project before and after"),
    ("b", "ring for who comes to need you, or do not"),
    ("t", "light or dark"),
    ("?", "these keys"),
    ("q", "end"),
)


def content(paragraphs: list[Paragraph]) -> Content:
    """Text in colours. Whatever it says, it is text: nothing in it is read as markup."""
    lines = [Content("").join(Content.styled(text, COLOURS[name]) for text, name in one) for one in paragraphs]
    return Content("\n").join(lines)


class Drawer(ModalScreen[None]):
    """Why a workspace shows what it shows; it goes on telling while it is open."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "close", "close", key_display="Esc"),
        Binding("j", "app.step(1)", "next card"),
        Binding("k", "app.step(-1)", "previous card"),
        Binding("n", "app.next_need", "needs you"),
        Binding("h", "app.sideways(-1)", show=False),
        Binding("l", "app.sideways(1)", show=False),
        Binding("down", "scroll(1)", show=False),
        Binding("up", "scroll(-1)", show=False),
        Binding("pagedown,space", "scroll(10)", show=False),
        Binding("pageup", "scroll(-10)", show=False),
    ]

    def __init__(self, live: Live, key: tuple[str, str]) -> None:
        super().__init__()
        self.key = key
        self.told: dict[str, Any] | None = None
        self.problem = ""
        self._live = live
        self._entry: Entry | None = live.entry(*key)
        self._stale = False
        self._again: asyncio.TimerHandle | None = None

    def compose(self) -> ComposeResult:
        with Vertical(id="drawer"):
            yield Static(id="story-head")
            with VerticalScroll(id="story"):
                yield Static(id="story-text")

    def on_mount(self) -> None:
        self._ask()
        self.tell()

    def on_unmount(self) -> None:
        if self._again is not None:
            self._again.cancel()

    def of(self, key: tuple[str, str]) -> None:
        if key != self.key:
            self.key, self.told, self.problem = key, None, ""
            self._entry = self._live.entry(*key)
            self.query_one("#story").scroll_home(animate=False)
            self._ask()
            self.tell()

    def show(self, entry: Entry | None, stale: bool) -> None:
        """The entry as it is now; of many changes, the story is asked for once."""
        if stale != self._stale:
            self._stale = stale
            self.query_one("#drawer").set_class(stale, "stale")
            self._ask()
        if entry is not self._entry:
            self._entry = entry
            self.tell()
            if self._again is None:
                self._again = asyncio.get_running_loop().call_later(AGAIN_S, self._ask)

    def _ask(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self.run_worker(self._asking(self.key), exclusive=True)

    async def _asking(self, key: tuple[str, str]) -> None:
        told, problem = await self._live.explain(*key)
        if key != self.key:
            return
        self.told, self.problem = told or self.told, problem  # an older story is better than none
        self.tell()
        if problem:
            self._again = asyncio.get_running_loop().call_later(AGAIN_S, self._ask)

    def tell(self) -> None:
        if not self.is_mounted:
            return
        entry = part(self.told or {}, "state") if self._entry is None else self._entry
        now = part(entry, "status")
        head: list[Paragraph] = [[(title(self.key[1], entry), "strong")]]
        branch = branch_of(entry)
        head.append([(printable(self.key[0]), "quiet"), *([(f"  {branch}", "quiet")] if branch is not None else [])])
        if self._entry is None:
            head.append([("○ gone: archived or removed", "calm")])
        elif now:
            head.append([(f"{GLYPHS[tone(now)]} {status(now.get('code'))[0]}", tone(now))])
        text: list[Paragraph] = []
        if self.problem:
            text += [[(f"The story cannot be told now: {self.problem}.", "call")], []]
        if self.told is not None:
            text += story(self.told, time.time() * 1000)
        elif not self.problem:
            text += [[("▁" * size, "quiet")] for size in (12, 34, 26)]
        self.query_one("#story-head", Static).update(content(head))
        self.query_one("#story-text", Static).update(content(text))

    def action_close(self) -> None:
        self.dismiss()

    def action_scroll(self, by: int) -> None:
        self.query_one("#story").scroll_relative(y=by, animate=False)


class Projects(ModalScreen[str | None]):
    """Which project is shown; the first choice is all of them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,p", "dismiss", "close", key_display="Esc"),
        Binding("j", "move(1)", show=False),
        Binding("k", "move(-1)", show=False),
    ]

    AUTO_FOCUS = "#projects"

    def __init__(self, projects: list[Listed], chosen: str) -> None:
        super().__init__()
        self._ids = ["", *(one.id for one in projects)]
        self._names = ["All projects", *(one.name for one in projects)]
        self._chosen = chosen

    def compose(self) -> ComposeResult:
        choice = OptionList(*(Option(Content(name)) for name in self._names), id="projects")
        choice.border_title = "Project"
        if self._chosen in self._ids:
            choice.highlighted = self._ids.index(self._chosen)
        yield choice

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._ids[event.option_index])

    def action_move(self, by: int) -> None:
        choice = self.query_one(OptionList)
        (choice.action_cursor_down if by > 0 else choice.action_cursor_up)()


class Help(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter", "dismiss", "close")]

    def compose(self) -> ComposeResult:
        keys = Static(content([[(f"{key:<8}", "strong"), (what, "ink")] for key, what in KEYS]), id="keys")
        keys.border_title = "Keys"
        yield keys


class Empty(Static):
    """What to do where there is nothing to show."""

    def tell(self, what: str, hint: str, command: str) -> None:
        self.update(content([[(what, "strong")], [(hint, "quiet")], [], [(command, "good")]]) if what else "")
