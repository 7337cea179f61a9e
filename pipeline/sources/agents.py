"""What the sources of agents share: a loop that reads what was touched, what moved, and everything now and then."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

from pipeline.runtime.clock import now_ns
from pipeline.sources.desk import Desk, Source, Where
from pipeline.sources.folders import Folders
from pipeline.sources.ladder import Sighting
from pipeline.sources.transcripts import RECENT_MS

CADENCE_S: Final = 30.0
LOOSE_S: Final = 2.0
PATIENCE_S: Final = 5.0
SETTLED_NS: Final = 5_000_000_000  # a process that was just started may not have been seen yet
MOST_FILES: Final = 20_000


class Look(NamedTuple):
    """What one step found. `folders`: what to watch from now on. `loose`: sessions that only a process can end."""

    folders: set[str]
    seen: dict[str, list[Sighting]]
    lost: list[tuple[str, str]]
    loose: dict[str, str]


class Watched(Source):
    """A source of files in the user's home. Its steps run in a thread, one at a time."""

    cadence_s: ClassVar[float | None] = CADENCE_S

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = os.path.realpath(home)
        self.provider = self.name
        self._touched: set[str] = set()
        self._folders: set[str] = set()
        self._absent: set[str] = set()
        self._whole = True
        self._due = asyncio.Event()

    @abstractmethod
    def look(self, places: list[Where], touched: set[str], *, whole: bool) -> Look:
        """Read what was touched, or `whole`: look for everything anew. Blocks."""

    async def run(self, desk: Desk) -> None:
        folders = Folders(self._note, self._note_all)
        watching = asyncio.create_task(folders.run())
        moving = asyncio.create_task(self._follow_moves(desk))
        self._note_all()
        cadence = 0.0
        try:
            if desk.settings.sources.processes:
                # What was over before anybody looked is not told as if it went on.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(desk.swept.wait(), PATIENCE_S)
            while True:
                touched, self._touched = self._touched, set()
                whole, self._whole = self._whole or time.monotonic() > cadence, False
                self._due.clear()
                if whole:
                    cadence = time.monotonic() + CADENCE_S
                found = await asyncio.to_thread(self.look, desk.places(), touched, whole=whole)
                self._report(desk, found)
                self.looked()
                if found.folders != self._folders or whole:
                    self._folders = found.folders
                    self._absent = {path for path in found.folders if not os.path.isdir(path)}
                    if folders.watch(found.folders - self._absent | {standing(path) for path in self._absent}):
                        self._note_all()
                    self._say(folders.refused)
                try:
                    await asyncio.wait_for(self._due.wait(), LOOSE_S if found.loose else CADENCE_S)
                except TimeoutError:
                    pass
        finally:
            watching.cancel()
            moving.cancel()

    def _report(self, desk: Desk, found: Look) -> None:
        for source, sightings in found.seen.items():
            desk.saw(source, sightings)
        for source, session in found.lost:
            desk.lost(source, session)
        if desk.agents is None:
            return
        here = {
            place.workspace
            for agent in desk.agents.values()
            if agent.provider == self.provider and (place := desk.place_of(agent.cwd)) is not None
        }
        for session, cwd in found.loose.items():
            place = desk.place_of(cwd)
            best = desk.ladder.best(session)
            if place is None or place.workspace in here or best is None:
                continue
            if now_ns() - best.stamp.ended > SETTLED_NS:
                desk.ended(f"{self.name} process", session)

    def _say(self, refused: int) -> None:
        if self._absent and self._absent == self._folders:
            self.fares("idle", f"nothing is there in {self.home}")
        elif refused:
            self.fares(
                "running", f"{refused} folders are only looked at now and then: raise fs.inotify.max_user_watches"
            )
        else:
            self.fares("running")

    async def _follow_moves(self, desk: Desk) -> None:
        while True:
            await desk.moved.wait()
            self._note_all()

    def _note(self, paths: set[str]) -> None:
        ours = {path for path in paths if os.path.dirname(path) in self._folders}
        if any(one == path or one.startswith(path + "/") for path in paths for one in self._absent):
            self._whole = True  # the way to a folder that was not there
        elif not ours:
            return
        self._touched |= ours
        self._due.set()

    def _note_all(self) -> None:
        self._whole = True
        self._due.set()


def standing(path: str) -> str:
    """The innermost folder on the way to this one that is there."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def recent(folder: str, suffix: str) -> list[tuple[int, str]]:
    """The files of this ending that were written to lately, with when, wall ms. What cannot be listed has none."""
    oldest = time.time_ns() - RECENT_MS * 1_000_000
    found = []
    try:
        with os.scandir(folder) as files:
            for _, file in zip(range(MOST_FILES), files, strict=False):
                if not file.name.endswith(suffix):
                    continue
                try:
                    at = file.stat(follow_symlinks=False).st_mtime_ns
                except OSError:
                    continue
                if at >= oldest:
                    found.append((at // 1_000_000, file.path))
    except OSError:
        return []
    return found
