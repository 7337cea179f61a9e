"""A whole deployment with a repository of three worktrees, and what a test says and sees there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp

from benchmarks.deployment import deployment, until, worktrees
from pipeline.cli.deployment import members, watchdog_notes
from pipeline.runtime.settings import Settings
from tests.journeys.client import Client

SETTINGS: Final = """
[gateway]
heartbeat_ms = 300
[git]
active_s = 1
idle_s = 2
[sources]
discover_s = 1
github = false
[reconciler]
every_s = 1
min_gap_ms = 200
[supervisor]
silent_s = {silent_s}
ready_s = 100
"""
SEEN_S: Final = 10.0
LOOKED_AT_S: Final = 30.0
WELL_S: Final = 60.0
EDITED: Final = "task-0"


class Whole:
    def __init__(self, settings: Settings, url: str, repository: Path) -> None:
        self.settings, self.url, self.repository = settings, url, repository
        self._bearer = {"Authorization": f"Bearer {settings.token_path.read_text().strip()}"}
        self._seq = 0

    def client(self) -> Client:
        return Client(self.url, self._bearer["Authorization"].partition(" ")[2], self.repository.name)

    async def steady(self, client: Client) -> None:
        """Everything is there and was looked at, and every process is well."""
        await client.until(lambda c: len(c.state) == 3 and all("git" in entry for entry in c.state.values()), WELL_S)
        await self.until(lambda: not self.ill(), "all to be well")
        await self.until(lambda: watchdog_notes(self.settings.run_dir).get("pid"), "the watchdog's first tick")

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        await asyncio.to_thread(until, condition, WELL_S, what)

    def ill(self) -> list[str]:
        return [f"{one.name} is {one.state}" for one in members(self.settings) if not one.well]

    def figure(self, process: str, name: str) -> int:
        found = next(one for one in members(self.settings) if one.name == process)
        return int(found.beat.figures.get(name, 0)) if found.beat is not None else 0

    async def post(self, client: Client) -> tuple[int, str]:
        """Report something new of a session; the answer's status, and the name by which it is known."""
        self._seq += 1
        name = str(self._seq)
        fields = {"provider": "claude", "state": "working", "name": name}
        event = {"project": self.repository.name, "workspace": self.tree(client), "group": "session:flow"}
        body = {**event, "fields": fields, "source": "test", "seq": self._seq}
        async with (
            aiohttp.ClientSession(headers=self._bearer) as http,
            http.post(self.url + "v1/events", json=body) as answer,
        ):
            return answer.status, name

    async def event(self, client: Client) -> float:
        """The same; it is taken, and on this screen after so many seconds."""
        began, tree = time.monotonic(), self.tree(client)
        status, name = await self.post(client)
        assert status == 202
        await client.until(lambda c: c.state[tree].get("sessions", {}).get("flow", {}).get("name") == name, SEEN_S)
        return time.monotonic() - began

    def tree(self, client: Client) -> str:
        return next(name for name, entry in client.state.items() if entry["life"]["name"] == EDITED)

    def lines(self, client: Client) -> int:
        return int(client.state[self.tree(client)]["git"].get("insertions") or 0)

    def write(self, lines: int) -> None:
        with (self.repository.parent / EDITED / "new.txt").open("a") as file:
            file.write("more\n" * lines)

    async def edit(self, client: Client, lines: int) -> None:
        """So many lines more in a worktree are counted."""
        before = self.lines(client)
        self.write(lines)
        await client.until(lambda c: self.lines(c) == before + lines, LOOKED_AT_S)

    async def proven(self, client: Client, times: int = 1) -> None:
        """So many more heartbeats say what this client holds."""
        verified = client.verified
        await client.until(lambda c: c.verified >= verified + times, LOOKED_AT_S)


@contextlib.contextmanager
def whole(home: Path, parent: Path, silent_s: float = 4, **environment: str) -> Iterator[Whole]:
    """Everything runs. `parent`: where the worktrees are; `silent_s`: how long a process may be silent."""
    settings = Settings.load(home, environ={})
    (home / "treewire.toml").write_text(SETTINGS.format(silent_s=silent_s))
    repository = worktrees(parent, 2, 10)
    with deployment(settings, repository, CLAUDE_CONFIG_DIR=str(parent), **environment) as url:
        yield Whole(settings, url, repository)
