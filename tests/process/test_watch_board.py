"""`treewire watch` on a terminal: the board, driven by keys, before a real aggregator and a real gateway."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from pipeline.cli.board.app import RENDER_S, BoardApp
from pipeline.cli.board.screens import Drawer
from pipeline.cli.board.widgets import Column, Lines
from pipeline.domain.model import Git, Life, Pr, Session
from tests.browser import site as sites
from tests.browser.site import MINUTE, Site, ready, worked

ROOT = Path(__file__).parents[2]
WAIT_S = 30.0
WORKING = Session(provider="claude", model="opus-4.1", state="working")
PERMISSION = Session(provider="claude", state="waiting", waiting_for="permission")
HOSTILE = "[bold red]x[/] \x1b[31mred\x1b]2;owned\x07 \u202egnp.exe {{title}} $ink"


class Screen:
    """What stands on the terminal."""

    def __init__(self, app: BoardApp, pilot: Pilot[Any]) -> None:
        self.app, self.pilot = app, pilot

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"in vain: {what}\n{self.text()}"
            await asyncio.sleep(0.02)
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    @property
    def base(self) -> Any:
        return self.app.screen_stack[0]

    def column(self, name: str) -> str:
        column = self.base.query_one(f"#{name}", Column)
        return "\n".join(column.render_line(y).text.rstrip() for y in range(column.scrollable_content_region.height))

    def lines(self, name: str) -> str:
        widget = self.base.query_one(f"#{name}", Lines)
        return "\n".join(widget.render_line(y).text.rstrip() for y in range(len(widget.lines)))

    def drawer(self) -> str:
        if not isinstance(self.app.screen, Drawer):
            return ""
        return "\n".join(str(one.content) for one in self.app.screen.query(Static))

    def text(self) -> str:
        parts = [self.lines(name) for name in ("bar", "notices", "needs")]
        parts += [self.column(name) for name in ("working", "waiting", "done")]
        return "\n--\n".join([*parts, str(self.base.query_one("#empty", Static).content), self.drawer()])


@pytest.fixture(scope="module")
def workday() -> Iterator[Site]:
    with sites.site() as one:
        sites.a_day_of_work(one)
        yield one


@pytest.fixture
def site() -> Iterator[Site]:
    with sites.site() as one:
        yield one


@contextlib.asynccontextmanager
async def board(site: Site, project: str = "", size: tuple[int, int] = (160, 50)) -> AsyncIterator[Screen]:
    app = BoardApp(site.url, site.token, project)
    async with app.run_test(size=size) as pilot:
        yield Screen(app, pilot)


def three(site: Site) -> None:
    for name in ("login", "search", "docs"):
        site.lives["web", name] = ready(name, f"feature/{name}")
    site.census()
    site.look("login", "git", worked(3, 120, 8, 2, 1))
    site.look("login", "session:s1", WORKING)
    site.look("search", "session:s1", PERMISSION, 4 * MINUTE)


async def test_the_board_goes_from_a_skeleton_to_cards_and_follows_each_change(site: Site) -> None:
    async with board(site) as screen:
        await screen.until(lambda: "▁▁▁" in screen.column("working"), "a skeleton")
        assert "Nobody works." not in screen.text()
        three(site)
        await screen.until(lambda: "login" in screen.column("working"), "a card")
        await screen.until(lambda: "search" in screen.lines("needs"), "the strip")
        login = screen.column("working")
        for said in ("feature/login", "● working", "claude opus-4.1", "+120 −8  3 files", "↑2 ↓1"):
            assert said in login, login
        assert "give permission" in screen.lines("needs")
        assert "4 min" in screen.lines("needs")
        await screen.until(lambda: "✓ verified" in screen.lines("bar"), "the version is verified")
        held = screen.app.live.of("web")[0]
        assert f"● live · v{held.version} ✓ verified 0 s ago" in screen.lines("bar")
        assert "1 needs you" in screen.lines("bar")
        site.look("login", "git", worked(4, 1340, 8, 3, 1, operation="rebase", conflicted=2))
        await screen.until(lambda: "+1,340 −8  4 files" in screen.column("working"), "the change")
        assert "rebase · 2 conflicts" in screen.column("working")
        site.look("login", "session:s1", PERMISSION)
        await screen.until(lambda: "login" in screen.column("waiting"), "it moves")
        assert "2 need you" in screen.lines("bar")
        site.look("login", "pr", Pr(number=7, state="merged"))
        await screen.until(lambda: "#7 merged" in screen.column("done"), "it is done")


async def test_keys_go_through_the_cards_open_them_and_choose_a_project(workday: Site) -> None:
    async with board(workday) as screen:
        app = screen.app
        await screen.until(lambda: app.arranged.total == 14, "all cards")
        needs, waiting = app.arranged.needs, app.arranged.columns["waiting"]
        await screen.press("n")
        assert app.picked == needs[0].key
        await screen.press("n")
        assert app.picked == needs[1].key
        assert f"› {'! ' if needs[1].rank else '✗ '}" in screen.lines("needs")
        await screen.press("k")
        assert app.picked == waiting[0].key
        await screen.press("j", "j", "k")
        assert app.picked == waiting[1].key
        await screen.press("h")
        assert app.picked == app.arranged.columns["working"][1].key
        await screen.press("l", "l")
        assert app.picked == app.arranged.columns["done"][-1].key or app.column == "done"
        await screen.press("n", "enter")
        await screen.until(lambda: "Because " in screen.drawer(), "the story")
        first = app.screen
        assert isinstance(first, Drawer)
        assert first.key == app.picked
        await screen.press("n")
        assert first.key == app.picked == needs[1].key  # the drawer goes along
        await screen.press("escape")
        assert not isinstance(app.screen, Drawer)
        await screen.press("p", "j", "enter")
        first_project = app.live.projects[0]
        await screen.until(lambda: app.project == first_project.id, "one project")
        assert f"treewire  {first_project.name}" in screen.lines("bar")
        assert {row.project for rows in app.arranged.columns.values() for row in rows} == {first_project.name}
        await screen.press("question_mark")
        assert len(app.screen_stack) == 2
        await screen.press("escape", "q")
        assert not app.is_running or app.return_code in (None, 0)


async def test_the_bar_tells_how_old_the_proof_is_and_a_heartbeat_renews_it(site: Site) -> None:
    three(site)
    async with board(site) as screen:
        await screen.until(lambda: "✓ verified" in screen.lines("bar"), "a proof")
        version, first = screen.app.live.of("web")[0].version, screen.app.live.of("web")[0].proven_ns
        await screen.until(lambda: screen.app.live.of("web")[0].proven_ns > first, "the next heartbeat's proof")
        assert screen.app.live.of("web")[0].version == version
        site.hold("gateway")
        await screen.until(
            lambda: "● live" in screen.lines("bar") and "✓ verified 2 s ago" in screen.lines("bar"), "age"
        )
        site.let_go("gateway")
        await screen.until(lambda: "✓ verified 0 s ago" in screen.lines("bar"), "a proof again")


async def test_the_bell_rings_for_who_comes_to_need_the_user_and_for_nobody_else(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    rung: list[str] = []
    monkeypatch.setattr(BoardApp, "bell", lambda app: rung.append(app.live.entry("web", "login")["life"]["name"]))
    three(site)
    async with board(site) as screen:
        await screen.until(lambda: "search" in screen.lines("needs"), "who needed the user before he came")
        await screen.press("b")
        assert "bell" in screen.lines("bar")
        site.look("login", "git", worked(9, 9, 9, 9, 9))
        await screen.until(lambda: "+9 −9" in screen.column("working"), "a change that needs nobody")
        assert rung == []
        site.look("login", "session:s1", PERMISSION)
        await screen.until(lambda: rung == ["login"], "the bell")
        await screen.press("b")
        assert "bell" not in screen.lines("bar")
        site.look("docs", "session:s1", PERMISSION)
        await screen.until(lambda: "docs" in screen.lines("needs"), "another one, in silence")
        assert rung == ["login"]


async def test_brackets_go_through_the_projects_one_by_one(workday: Site) -> None:
    async with board(workday) as screen:
        app = screen.app
        await screen.until(lambda: app.arranged.total == 14, "all cards")
        first, *_, last = [one.id for one in app.live.projects]
        await screen.press("right_square_bracket")
        assert app.project == first
        await screen.press("left_square_bracket")
        assert app.project == ""
        await screen.press("left_square_bracket")
        assert app.project == last


async def test_the_search_narrows_the_board_and_says_if_nothing_is_left(workday: Site) -> None:
    async with board(workday) as screen:
        app = screen.app
        await screen.until(lambda: app.arranged.total == 14, "all cards")
        await screen.press("slash", *"codex")
        await screen.until(lambda: 0 < app.arranged.shown < 14, "fewer cards")
        assert all("codex" in str(row.entry) for rows in app.arranged.columns.values() for row in rows)
        await screen.press("enter", "n")
        assert app.looked_for == "codex", "n is a key again, and no letter of the search"
        await screen.press("slash", *"zzz")
        await screen.until(lambda: "Nothing matches “zzz”." in screen.text(), "that nothing is left")
        await screen.press("escape")
        await screen.until(lambda: app.arranged.shown == 14, "all cards again")


async def test_the_drawer_tells_who_said_what_and_what_was_rejected_and_goes_on_telling(site: Site) -> None:
    three(site)
    site.look("login", "session:s1", PERMISSION)
    site.look("login", "session:s1", Session(state="idle"), producer="old-poll", began_ms_ago=60_000)
    async with board(site, "web") as screen:
        await screen.until(lambda: "login" in screen.column("waiting"), "the card")
        while screen.app.picked != ("web", "login"):
            await screen.press("n")
        await screen.press("enter")
        await screen.until(lambda: "old-poll was not believed" in screen.drawer(), "what was rejected")
        told = screen.drawer()
        assert "Because an agent waits for a permission." in told
        assert "claude-hooks said so" in told
        assert "ended before the current look began" in told
        site.look("login", "git", worked(5, 999, 8, 2, 0))
        await screen.until(lambda: "insertions 999" in screen.drawer(), "the new value")
        del site.lives["web", "login"]
        site.census()
        await screen.until(lambda: "gone: archived or removed" in screen.drawer(), "that it is gone")
        await screen.press("escape")
        assert "login" not in screen.column("waiting")


async def test_a_lost_gateway_and_a_lost_aggregator_are_shown_and_the_cards_stay_and_come_back(site: Site) -> None:
    three(site)
    async with board(site) as screen:
        await screen.until(lambda: "login" in screen.column("working"), "the card")
        site.kill("gateway")
        await screen.until(lambda: "● reconnecting as of " in screen.lines("bar"), "that it is lost")
        assert "The gateway does not answer" in screen.lines("notices")
        assert screen.base.has_class("stale")
        assert "login" in screen.column("working")
        working = screen.base.query_one("#working", Column)
        assert working.in_style("work") == working.in_style("quiet"), "nothing has a colour of its own"
        site.start("gateway")
        await screen.until(lambda: "● live" in screen.lines("bar"), "that it is back")
        assert not screen.base.has_class("stale")
        assert working.in_style("work") != working.in_style("quiet")
        site.kill("aggregator")
        await screen.until(lambda: "● stale as of " in screen.lines("bar"), "that the aggregator is lost")
        assert "aggregator stale" in screen.lines("notices")
        assert "login" in screen.column("working")
        site.start("aggregator")
        site_is_back = lambda: site.census() or "● live" in screen.lines("bar")  # noqa: E731
        await screen.until(site_is_back, "that the aggregator is back")


async def test_names_are_text_whatever_is_in_them(site: Site) -> None:
    site.put("w1", Life(name=HOSTILE, phase="ready", branch=HOSTILE), {"session:s1": (PERMISSION, MINUTE)})
    site.look("w1", "git", Git(branch=HOSTILE + "-b", insertions=1, deletions=1))
    site.put("w2", Life(name="界" * 200, phase="ready", branch="x" * 400))
    shown = "[bold red]x[/] �[31mred�]2;owned� �gnp.exe {{title}} $ink"
    async with board(site, size=(240, 50)) as screen:
        await screen.until(lambda: shown in screen.lines("needs"), "the name in the strip")
        await screen.until(lambda: shown + "-b" in screen.column("waiting"), "the branch on the card")
        await screen.until(lambda: "界界…" in screen.column("waiting").replace(" …", "…"), "the long name, cut")
        for column in screen.base.query(Column):
            width = column.scrollable_content_region.width
            for y in range(column.scrollable_content_region.height):
                assert column.render_line(y).cell_length == width
        await screen.press("n", "enter")
        await screen.until(lambda: "Because" in screen.drawer(), "the story")
        assert shown in screen.drawer()
        drawn = screen.app.export_screenshot()
        assert not any(sign in screen.text() + drawn for sign in ("\x1b", "\x07", "\u202e"))


@pytest.mark.parametrize(
    ("projects", "said", "command"),
    [
        ([], "No repository is followed yet.", "treewire project add PATH"),
        (["web"], "No worktrees yet.", "git worktree add ../my-task -b my-task"),
    ],
)
async def test_an_empty_board_says_what_to_do_next(site: Site, projects: list[str], said: str, command: str) -> None:
    site.projects = projects
    site.census()
    async with board(site) as screen:
        await screen.until(lambda: said in screen.text(), "what there is not")
        assert command in screen.text()


async def test_a_narrow_terminal_shows_one_column_at_a_time(workday: Site) -> None:
    async with board(workday, size=(60, 30)) as screen:
        await screen.until(lambda: screen.app.arranged.total == 14, "all cards")
        shown = lambda: [one.column for one in screen.base.query(Column) if one.display]  # noqa: E731
        assert shown() == ["waiting"]
        assert "waiting 7" in screen.lines("tabs")
        await screen.press("h")
        assert shown() == ["working"]
        assert screen.app.picked is not None


async def test_many_changes_are_drawn_seldom_and_only_where_they_are_in_view(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 workspaces, 50 changes a second: one drawing per 200 ms, and of the lines those that are in view."""
    for n in range(300):
        site.lives["web", f"w{n}"] = ready(f"w{n}", f"feature/w{n}")
    site.census()
    drawn = 0
    render_line = Column.render_line

    def counted(self: Column, y: int) -> Any:
        nonlocal drawn
        drawn += 1
        return render_line(self, y)

    async with board(site) as screen:
        app = screen.app
        await screen.until(lambda: app.arranged.total == 300, "all cards")
        monkeypatch.setattr(Column, "render_line", counted)
        renders, began = app.renders, time.monotonic()
        for n in range(100):
            site.look(f"w{n * 7 % 300}", "git", worked(1, 1000 + n, 0, 1, 0))
            await asyncio.sleep(0.02)
        await screen.press("j")
        picked = app.picked
        assert picked is not None, "keys are heard meanwhile"
        last = ("web", f"w{99 * 7 % 300}")
        shown = lambda: app.live.entry(*last) or {}  # noqa: E731
        await screen.until(lambda: shown().get("git", {}).get("insertions") == 1099, "the last change")
        took = time.monotonic() - began
        ticks = took + 1
        assert app.renders - renders <= took / RENDER_S + 2, "and one for the key"
        in_view = sum(column.size.height for column in screen.base.query(Column))
        assert drawn <= in_view * (app.renders - renders + ticks + 2)


# ── the command ──


@contextlib.contextmanager
def terminal(command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[bytes], None], int]]:
    """A process on a terminal of its own; what waits until the terminal was told something; where to type."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    env = {name: value for name, value in os.environ.items() if not name.startswith("TREEWIRE_")}
    process = subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, cwd=ROOT, env={**env, "TERM": "xterm-256color"}
    )
    os.close(its)
    os.set_blocking(ours, False)
    told = bytearray()

    def until(word: bytes) -> None:
        deadline = time.monotonic() + WAIT_S
        while word not in told:
            assert time.monotonic() < deadline, bytes(told[-3000:])
            with contextlib.suppress(BlockingIOError, OSError):
                told.extend(os.read(ours, 65536))
            time.sleep(0.01)

    try:
        yield process, until, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("ending", ["q", "SIGTERM"])
def test_on_a_terminal_the_command_opens_the_board_and_leaves_it_as_it_was(workday: Site, ending: str) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "watch", "--home", str(workday.home)]
    with terminal([*command, "--url", workday.url]) as (process, until, keys):
        until(b"fix-login-redirect")
        until(b"verified")
        if ending == "q":
            os.write(keys, b"q")
        else:
            process.send_signal(signal.SIGTERM)
        until(b"\x1b[?1049l")  # the screen that was there before
        assert process.wait(10) == 0


def test_the_board_says_what_to_do_where_it_cannot_follow(workday: Site) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "watch", "nothing", "--home", str(workday.home)]
    with terminal([*command, "--url", workday.url]) as (process, until, _):
        until(b"treewire project list")
        assert process.wait(10) == 1


def test_without_its_package_the_command_says_how_to_get_it_and_shows_lines(workday: Site) -> None:
    without = "import sys; sys.modules['textual'] = None; from pipeline.cli import main; main()"
    command = [sys.executable, "-c", without, "watch", "web", "--home", str(workday.home), "--url", workday.url]
    with terminal(command) as (process, until, _):
        until(b"pip install 'treewire[watch]'")
        until(b"fix-login-redirect: needs permission")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_lines_are_shown_where_they_are_asked_for_and_where_there_is_no_terminal(workday: Site) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "watch", "web", "--home", str(workday.home), "--url", workday.url]
    with terminal([*command, "--plain"]) as (process, until, _):
        until(b"fix-login-redirect: needs permission")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    of_none = [part for part in command if part != "web"]
    done = subprocess.run(of_none, capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert done.returncode == 2
    assert "say which" in done.stderr
