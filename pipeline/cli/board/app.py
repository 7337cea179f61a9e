"""The board in a terminal: what is followed and what the user chose, drawn seldom enough."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from importlib import import_module
from typing import Any, ClassVar, Final, NamedTuple

from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widgets import Footer, Input

from pipeline.cli.board.arrange import COLUMNS, Arranged, Arrangement
from pipeline.cli.board.colours import DARK, LIGHT
from pipeline.cli.board.live import Connection, Live
from pipeline.cli.board.paint import Bit, Line
from pipeline.cli.board.screens import Drawer, Empty, Help, Projects
from pipeline.cli.board.widgets import Column, Key, Lines, Needs, Picked, Tabs
from pipeline.cli.board.words import age, count, printable

RENDER_S: Final = 0.2
AGES_S: Final = 1.0
BELL_S: Final = 2.0
DOTS: Final[dict[Connection, str]] = {"live": "good", "refused": "fail", "loading": "quiet", "connecting": "call"}
NO_PROJECT: Final = (
    "No repository is followed yet.",
    "Follow one, with all of its worktrees:",
    "treewire project add PATH",
)
NO_WORKTREE: Final = (
    "No worktrees yet.",
    "Make one in the repository; it appears here by itself:",
    "git worktree add ../my-task -b my-task",
)


class Ended(NamedTuple):
    """Why the board ended by itself."""

    gone: str = ""  # the project that was asked for, and is not there


class BoardApp(App[Ended]):
    """One screen: the bar, who needs the user, the columns; a drawer over it tells why."""

    TITLE = "treewire"
    AUTO_FOCUS = None
    CSS_PATH = "board.tcss"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (96, "-wide")]  # noqa: RUF012 - the base class declares it so
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "next_need", "needs you"),
        Binding("j,down", "step(1)", "next", key_display="j"),
        Binding("k,up", "step(-1)", "previous", key_display="k"),
        Binding("h,left", "sideways(-1)", "left", show=False),
        Binding("l,right", "sideways(1)", "right", show=False),
        Binding("enter", "open", "why"),
        Binding("slash", "search", "search", key_display="/"),
        Binding("p", "projects", "project"),
        Binding("left_square_bracket", "turn(-1)", show=False),
        Binding("right_square_bracket", "turn(1)", show=False),
        Binding("b", "ring", "bell", show=False),
        Binding("t", "colours", "colours", show=False),
        Binding("question_mark", "help", "keys", key_display="?"),
        Binding("escape", "clear", show=False),
        Binding("q,ctrl+c", "end", "quit", key_display="q"),
    ]

    def __init__(self, url: str, token: str, project: str = "", bell: bool = False) -> None:
        super().__init__()
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = DARK.name
        self.live = Live(url, token, self._changed, project)
        self.project = project
        self.asked = project
        self.looked_for = ""
        self.rings = bell
        self.picked: Key | None = None
        self.column = "waiting"
        self.renders = 0
        self.arranged: Arranged = Arrangement().arrange([])
        self._arrangement = Arrangement()
        # Held here, as a timer may still fire while the screen is taken down.
        self._top, self._notices = Lines(id="bar"), Lines(id="notices")
        self._needs, self._tabs = Needs(id="needs"), Tabs(id="tabs")
        self._columns = {column: Column(column) for column in COLUMNS}
        self._nothing = Empty(id="empty")
        hint = "name, branch, agent, state or project"
        self._search = Input(placeholder=hint, id="search", classes="nothing", compact=True)
        self._timer: asyncio.TimerHandle | None = None
        self._due = float("inf")
        self._last = float("-inf")
        self._calls, self._rang = 0, float("-inf")
        self._waits = True

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return DARK.variables

    def compose(self) -> ComposeResult:
        yield self._top
        yield self._notices
        yield self._needs
        yield self._tabs
        yield Horizontal(*self._columns.values(), id="columns")
        yield self._nothing
        yield self._search
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.set_focus(None)
        self.run_worker(self.live.run(), name="follow")
        self.set_interval(AGES_S, self._tick)
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not where a test runs it elsewhere
            for signum in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(signum, self.exit)
        self.draw()

    # ── drawing: at once for who needs the user, otherwise once per burst ──

    def _changed(self, urgent: bool) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        at = now if urgent else max(now, self._last + RENDER_S)
        if at >= self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = at
        self._timer = loop.call_later(at - now, self.draw)

    @property
    def _shown(self) -> bool:
        return self.is_running and bool(self.screen_stack) and self._search.is_attached

    def draw(self) -> None:
        if not self._shown:
            return
        self._due = float("inf")
        self._last = asyncio.get_running_loop().time()
        self.renders += 1
        live = self.live
        if self.asked and live.settled and all(one.id != self.asked for one in live.projects):
            self.exit(Ended(gone=self.asked))
            return
        if self.project and live.settled and all(one.id != self.project for one in live.projects):
            self.project = ""  # it is no more
        board = self.arranged = self._arrangement.arrange(live.held(), self.project, self.looked_for)
        known = bool(live.projects) or live.settled
        waits = not known or (board.loading > 0 and board.total == 0)
        stale = live.is_stale(self.project)
        naming = self.project == "" and len(live.projects) > 1
        base = self.screen_stack[0]
        if base.has_class("stale") != stale:
            base.set_class(stale, "stale")
            base.refresh(layout=True)
        self._needs.show(board.needs, naming, self.picked)
        self._tabs.show({column: len(board.columns[column]) for column in COLUMNS}, self.column)
        for column in self._columns.values():
            column.set_class(column.column == self.column, "current")
            column.show(board.columns[column.column], naming, self.picked, waits)
        empty = self._empty(waits, known)
        self._nothing.tell(*empty)
        base.set_class(any(empty), "empty")
        self._waits = waits
        self._bar()
        self._ring()
        if isinstance(self.screen, Drawer):
            self.screen.show(live.entry(*self.screen.key), stale)

    def _ring(self) -> None:
        """Where somebody has come to need the user: not more often than one can hear."""
        called, self._calls = self.live.calls > self._calls, self.live.calls
        if called and self.rings and self._last >= self._rang + BELL_S:
            self._rang = self._last
            self.bell()

    def _bar(self) -> None:
        live = self.live
        connection, told = live.connection(self.project), live.of(self.project)
        name = next((one.name for one in live.projects if one.id == self.project), "")
        where = name or count(len(live.projects), "project") if live.projects else ""
        left = [Bit("treewire", "strong"), Bit(f"  {where}", "ink")]
        if self.arranged.needed:
            left.append(Bit(f"  {count(self.arranged.needed, 'needs', 'need')} you", "call"))
        if self.looked_for:
            left.append(
                Bit(f"  “{printable(self.looked_for)}”: {self.arranged.shown} of {self.arranged.total}", "work")
            )
        right = [Bit("● ", DOTS.get(connection, "call")), Bit(connection, "strong")]
        if told and connection in ("stale", "reconnecting"):
            oldest = max(one.age_s() for one in told)
            right.append(Bit(f" as of {age(0, oldest * 1000)} ago", "call"))
        elif told:
            right.append(
                Bit(f" · v{told[0].version}" if len(told) == 1 else f" · {count(len(told), 'project')}", "quiet")
            )
            if all(one.is_verified for one in told):
                right.append(Bit(f" ✓ verified {age(0, _proof_ms(told))} ago", "good"))
            elif all(one.proven_ns for one in told):
                right.append(Bit(f" · proven {age(0, _proof_ms(told))} ago", "quiet"))
        if self.rings:
            right.append(Bit(" · bell", "quiet"))
        self._top.tell(Line(tuple(left), tuple(right)))
        notices = live.notices(self.project)
        lines = [
            Line((Bit(f"{one.part} {one.state} ", "fail" if one.pressing else "call"), Bit(one.means, "ink")))
            for one in sorted(notices, key=lambda one: not one.pressing)
        ]
        if self.arranged.loading and not self._waits:
            lines.append(Line((Bit(f"Loading {count(self.arranged.loading, 'more project')}", "quiet"),)))
        self._notices.tell(*lines)

    def _empty(self, waits: bool, known: bool) -> tuple[str, str, str]:
        """What to say and to do where there is nothing to show; nothing where there is."""
        board = self.arranged
        if waits or board.shown:
            return "", "", ""
        if known and not self.live.projects:
            return NO_PROJECT
        if board.total == 0:
            return NO_WORKTREE
        looked = printable(self.looked_for.strip())
        where = f"None of {count(board.total, 'workspace')} has it in a name, branch, agent, state or project."
        return f"Nothing matches “{looked}”.", where, "Esc clears the search"

    def _tick(self) -> None:
        """Ages go on while nothing else happens."""
        if not self._shown:
            return
        if self.live.is_stale(self.project):
            self._changed(False)
        self._bar()
        for widget in (*self._columns.values(), self._needs):
            widget.refresh()
        if isinstance(self.screen, Drawer):
            self.screen.tell()

    # ── what the user does ──

    def pick(self, key: Key, column: str) -> None:
        """Go to a card: with the drawer open, in the drawer."""
        self.picked, self.column = key, column
        if isinstance(self.screen, Drawer):
            self.screen.of(key)
        self.draw()
        self._columns[column].reveal(key)

    def _here(self) -> tuple[str, int] | None:
        """Where the picked card stands: its column, and which of its cards it is."""
        for column in COLUMNS:
            for at, row in enumerate(self.arranged.columns[column]):
                if row.key == self.picked:
                    return column, at
        return None

    def action_step(self, by: int) -> None:
        here = self._here()
        column = here[0] if here else self.column
        rows = self.arranged.columns[column]
        if not rows:
            column = next((one for one in COLUMNS if self.arranged.columns[one]), column)
            rows = self.arranged.columns[column]
        if rows:
            at = min(max(0, here[1] + by), len(rows) - 1) if here else 0
            self.pick(rows[at].key, column)

    def action_sideways(self, by: int) -> None:
        here = self._here()
        at, place = (COLUMNS.index(here[0]), here[1]) if here else (COLUMNS.index(self.column), 0)
        while 0 <= (at := at + by) < len(COLUMNS):
            rows = self.arranged.columns[COLUMNS[at]]
            if rows:
                self.pick(rows[min(place, len(rows) - 1)].key, COLUMNS[at])
                return
            if self.screen_stack[0].has_class("-narrow"):
                self.column = COLUMNS[at]  # one column at a time: an empty one can be looked at, too
                self.draw()
                return

    def action_next_need(self) -> None:
        needs = self.arranged.needs
        if needs:
            at = next((at for at, row in enumerate(needs) if row.key == self.picked), -1)
            row = needs[(at + 1) % len(needs)]
            self.pick(row.key, row.column)

    def action_open(self) -> None:
        if self.picked is None:
            self.action_step(0)
        if self.picked is not None and self._here() is not None:
            self.push_screen(Drawer(self.live, self.picked))

    @on(Picked)
    def _clicked(self, event: Picked) -> None:
        self.picked = event.key
        here = self._here()
        if here is not None:
            self.pick(event.key, here[0])
            self.action_open()

    def action_search(self) -> None:
        self._search.remove_class("nothing")
        self._search.focus()

    @on(Input.Changed, "#search")
    def _look_for(self, event: Input.Changed) -> None:
        self.looked_for = event.value
        self.draw()

    @on(Input.Submitted, "#search")
    def _found(self) -> None:
        self._leave_search()
        if self._here() is None:
            self.picked = None
            self.action_step(0)

    def _leave_search(self) -> None:
        self.set_focus(None)
        self._search.set_class(not self._search.value, "nothing")

    def action_clear(self) -> None:
        self._search.value = ""
        self._leave_search()

    def action_projects(self) -> None:
        if self.live.projects:
            self.push_screen(Projects(self.live.projects, self.project), self._choose)

    def action_turn(self, by: int) -> None:
        """To the project beside, all of them being one."""
        ids = ["", *(one.id for one in self.live.projects)]
        if len(ids) > 2:
            self._choose(ids[(ids.index(self.project) + by) % len(ids)])

    def action_ring(self) -> None:
        self.rings = not self.rings
        self._bar()

    def _choose(self, project: str | None) -> None:
        if project is not None and project != self.project:
            self.project, self.asked, self.picked = project, "", None
            self.live.prefer(project)
            self.draw()

    def action_colours(self) -> None:
        self.theme = LIGHT.name if self.theme == DARK.name else DARK.name
        self.draw()

    def action_help(self) -> None:
        self.push_screen(Help())

    def action_end(self) -> None:
        self.exit()


def _proof_ms(told: list[Any]) -> float:
    """How old the oldest proof is of what is shown."""
    return max(float(one.proof_age_s()) for one in told) * 1000


def show(url: str, token: str, project: str = "", bell: bool = False) -> str:
    """Until the user ends it. The project that was asked for, if it is not there any more; else nothing.

    Raises `ValueError` for an address that is none.
    """
    import_module("gateway.client").stream_url(url)
    app = BoardApp(url, token, project, bell)
    ended: Any = app.run()
    if app.return_code:
        raise SystemExit(app.return_code)
    return ended.gone if isinstance(ended, Ended) else ""
