"""What the board follows: the projects, what each holds, and how far that can be believed. Confirmed state only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote

import aiohttp
import msgspec

from pipeline.cli.board.arrange import Held
from pipeline.cli.board.words import Entry, ailing, part, plain, printable

PROJECTS_S: Final = 5.0
FIRST_PROJECTS_S: Final = 0.5
ANSWER_S: Final = 5.0
MAX_FOLLOWED: Final = 32

Connection = Literal["connecting", "loading", "live", "stale", "reconnecting", "refused"]


class Listed(NamedTuple):
    id: str
    name: str


class Notice(NamedTuple):
    """Something that is not well; if it is `pressing`, nothing shown is fresh."""

    part: str
    state: str
    means: str
    pressing: bool = False


class Live:
    """Follows every project, each over a socket of its own. `changed(urgent)` is called after each change; `urgent` if
    who needs the user is not as it was."""

    def __init__(self, url: str, token: str, changed: Callable[[bool], None], prefer: str = "") -> None:
        self.projects: list[Listed] = []
        self.settled = False  # whether there are no others
        self.refused = ""
        self.calls = 0  # how often somebody has come to need the user since he looks
        self._url, self._token = url.rstrip("/"), token
        self._changed = changed
        self._preferred = prefer
        self._client: Any = import_module("gateway.client")
        self._told: dict[str, Any] = {}  # project → its last change
        self._problems: dict[str, str] = {}  # project → why it is not followed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._http: aiohttp.ClientSession | None = None

    # ── what is known ──

    def held(self) -> list[Held]:
        return [
            Held(one.id, one.name, told.workspaces if (told := self._told.get(one.id)) else None)
            for one in self.projects
            if one.id in self._tasks and one.id not in self._problems
        ]

    def entry(self, project: str, workspace: str) -> Entry | None:
        """``None`` if it left, or is not known."""
        told = self._told.get(project)
        return None if told is None or told.workspaces is None else told.workspaces.get(workspace)

    def of(self, project: str) -> list[Any]:
        """The last changes of this project, or of all with an empty name, that hold something."""
        shown = (self._told.get(one.id) for one in self.projects if project in ("", one.id))
        return [told for told in shown if told is not None and told.workspaces is not None]

    def connection(self, project: str = "") -> Connection:
        shown = self.of(project)
        if self.refused:
            return "refused"
        stale = [told for told in shown if told.state == "stale"]
        if stale:
            return "stale" if any(told.health.get("aggregator") == "stale" for told in stale) else "reconnecting"
        if shown or (self.settled and not self.projects):
            return "live"
        return "loading" if self.projects else "connecting"

    def is_stale(self, project: str = "") -> bool:
        return bool(self.of(project)) and self.connection(project) in ("stale", "reconnecting", "refused")

    def notices(self, project: str = "") -> list[Notice]:
        told: list[Notice] = []
        connection = self.connection(project)
        if connection == "reconnecting":
            means = "The gateway does not answer. What you see is the last that was known; trying again."
            told.append(Notice("gateway", "away", means, pressing=True))
        if self.refused:
            told.append(Notice("gateway", "refused", f"{self.refused} Open the board again.", pressing=True))
        elif connection in ("live", "stale"):
            shown = self.of(project)
            health = shown[0].health if shown else {}
            told += [Notice(*one, pressing=one[0] == "aggregator") for one in ailing(health)]
        for one in self.projects:
            state = self._told.get(one.id)
            if one.id in self._problems:
                told.append(Notice(one.name, "refused", f"It is not shown: {self._problems[one.id]}."))
            elif one.id not in self._tasks:
                told.append(Notice(one.name, "not shown", "There are more than one board follows: choose it with p."))
            elif state is not None and not state.complete:
                told.append(Notice(one.name, "incomplete", "Not every workspace fits into the store."))
            elif state is not None and state.state == "degraded":
                told.append(Notice(one.name, "degraded", "Its state had to be fetched again and again."))
        return told

    def prefer(self, project: str) -> None:
        """Follow this project even if there are more than one board follows."""
        self._preferred = project
        self._choose()

    # ── following ──

    async def run(self) -> None:
        """For ever; ends what it began when it is cancelled."""
        headers = {"Authorization": f"Bearer {self._token}"}
        timeout = aiohttp.ClientTimeout(total=ANSWER_S)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as self._http:
            try:
                while not self.refused:
                    await self._list(self._http)
                    await asyncio.sleep(PROJECTS_S if self.projects else FIRST_PROJECTS_S)
            finally:
                tasks = [*self._tasks.values()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _list(self, http: aiohttp.ClientSession) -> None:
        try:
            async with http.get(f"{self._url}/v1/projects") as answer:
                if answer.status in (401, 403):
                    self.refused = "The token is not that of this treewire, or it has ended."
                    self._changed(True)
                if answer.status != 200:
                    return
                body = msgspec.json.decode(await answer.read(), type=_Projects)
        except (aiohttp.ClientError, OSError, msgspec.MsgspecError):
            return  # that nobody answers, the connection says already
        before = self.projects, self.settled
        self.projects = [Listed(one.id, printable(one.name or one.id)) for one in body.projects]
        self.settled = body.settled
        self._choose()
        if before != (self.projects, self.settled):
            self._changed(False)

    def _choose(self) -> None:
        wanted = sorted((one.id for one in self.projects), key=lambda id_: id_ != self._preferred)[:MAX_FOLLOWED]
        for gone in self._tasks.keys() - wanted:
            self._tasks.pop(gone).cancel()
            self._told.pop(gone, None)
            self._problems.pop(gone, None)
        for id_ in wanted:
            if id_ not in self._tasks:
                self._tasks[id_] = asyncio.create_task(self._follow(id_), name=f"board {id_}")

    async def _follow(self, project: str) -> None:
        changes = self._client.subscribe(self._url, project, token=self._token, every_proof=True)
        try:
            async with contextlib.aclosing(changes):
                async for change in changes:
                    self._take(project, change)
        except self._client.Refused as error:
            self._problems[project] = printable(error)
            self._changed(True)

    def _take(self, project: str, change: Any) -> None:
        before = self._told.get(project)
        old, new = (before and before.workspaces) or {}, change.workspaces or {}
        turned = [name for name in change.changed if _needs(old.get(name)) != _needs(new.get(name))]
        if before is not None and before.workspaces is not None:  # who needed him before he came is no news
            self.calls += sum(_needs(new.get(name)) for name in turned)
        urgent = bool(turned)
        if change.state == "gone":
            self.projects = [one for one in self.projects if one.id != project]
            self._tasks.pop(project, None)
            self._told.pop(project, None)
        else:
            self._told[project] = change
        self._changed(urgent or before is None or before.state != change.state)

    async def explain(self, project: str, workspace: str) -> tuple[dict[str, Any] | None, str]:
        """Why the workspace is shown as it is; or ``None`` and why that cannot be told."""
        assert self._http is not None
        path = f"/v1/projects/{quote(project, safe='')}/workspaces/{quote(workspace, safe='')}/explain"
        try:
            async with self._http.get(self._url + path) as answer:
                body = msgspec.json.decode(await answer.read())
        except (aiohttp.ClientError, OSError, msgspec.MsgspecError):
            return None, "the gateway does not answer; it is asked again"
        if not isinstance(body, dict):
            return None, "the gateway's answer is not understood"
        return (body, "") if answer.status == 200 else (None, plain(body.get("message")))


def _needs(entry: Any) -> bool:
    return isinstance(entry, dict) and part(entry, "status").get("needs_user") is True


class _Project(msgspec.Struct):
    id: str
    name: str | None = None


class _Projects(msgspec.Struct):
    projects: list[_Project]
    settled: bool = True
