"""The sources process in the test's own loop, with a source that the test plays."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import catalog as catalogs
from pipeline.bus import IngressServer
from pipeline.catalog.ids import worktree_id
from pipeline.domain.model import Look, Session, Stamp
from pipeline.runtime.clock import CLOCK, now_ns
from pipeline.runtime.process import Process
from pipeline.runtime.settings import Settings
from pipeline.sources import main as sources
from pipeline.sources.desk import Desk, Source
from pipeline.sources.ladder import Rung, Sighting
from pipeline.wire import Alive, decode_ingress
from tests.gitkit import git


def made(tmp_path: Path) -> Path:
    """A repository with one commit."""
    path = Path(os.path.realpath(tmp_path)) / "code" / "web"
    path.mkdir(parents=True)
    git(path, "init", "-q", "-b", "main")
    git(path, "commit", "-q", "--allow-empty", "-m", "first")
    return path


class Played(Source):
    """A source that a test plays."""

    name = "played"

    def __init__(self) -> None:
        super().__init__()
        self.desk: Desk | None = None
        self.broken = False
        self.runs = 0

    async def run(self, desk: Desk) -> None:
        self.runs += 1
        self.desk = desk
        while not self.broken:
            await asyncio.sleep(0.01)
        raise ValueError("a format nobody knows")


class Running:
    """The sources process in this loop, with the played source, and what it says on the bus."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch, *others: Source) -> None:
        settings.run_dir.mkdir(parents=True, mode=0o700, exist_ok=True)
        self.process = Process("sources", settings)
        self.catalog = catalogs.open(settings)
        self.said: list[Look] = []
        self.alive = 0
        self.played = Played()
        monkeypatch.setattr(sources, "sources", lambda _: iter([self.played, *others]))

    async def __aenter__(self) -> Running:
        self.server = IngressServer(self.process.settings.run_dir, self._take)
        self.task = asyncio.create_task(sources.main(self.process))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.process.stopping.set()
        await asyncio.wait_for(self.task, 20)
        self.server.close()
        self.catalog.close()
        self.process.close()
        assert not self.process.failed

    def _take(self, batch: list[list[bytes]]) -> None:
        for frames in batch:
            message = decode_ingress(frames[-1])
            if isinstance(message, Look):
                self.said.append(message)
            elif isinstance(message, Alive):
                self.alive += 1

    async def until(self, condition: Any) -> None:
        deadline = asyncio.get_running_loop().time() + 30
        while not condition():
            assert not self.task.done(), self.task.result()
            assert asyncio.get_running_loop().time() < deadline, (self.said, dict(self.process.figures))
            await asyncio.sleep(0.01)

    async def follow(self, *repos: Path) -> Desk:
        new = [repo for repo in repos if self.catalog.add_project(repo, 1).new]
        await self.until(lambda: self.played.desk and len(self.played.desk.places()) >= len(repos))
        # The catalog has them first: what discovery says of them comes after, and is not to come in between.
        homes = {worktree_id(repo) for repo in new}
        await self.until(lambda: homes <= {look.workspace for look in self.said if look.group == "life"})
        assert self.played.desk is not None
        return self.played.desk

    def sessions(self) -> list[Session | None]:
        return [look.value for look in self.said if look.group.startswith("session:")]  # type: ignore[misc]

    async def heard(self, value: Session) -> None:
        await self.until(lambda: self.sessions() and self.sessions()[-1] == value)


def seen(cwd: Path, state: Any, *, rung: Rung = Rung.REGISTRY, session: str = "s", **rest: Any) -> Sighting:
    pid, start = rest.pop("pid", None), rest.pop("started", None)
    now = now_ns()
    return Sighting(
        session, str(cwd), rung, Session(state=state, **rest), Stamp(now, now, CLOCK), pid=pid, started=start
    )
