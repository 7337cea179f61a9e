"""The databases of other tools, read along: one task for each that is configured in the home, as long as it is.

The files are watched by two stats; the cadence is the guarantee. A database that cannot be read is shown in the health
of this source with what to do, and what was known of it stays.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final, NamedTuple

from pipeline.catalog import CatalogUnavailable
from pipeline.runtime.tick import tick, tick_unless
from pipeline.sources import databases
from pipeline.sources.databases import Unreadable
from pipeline.sources.desk import Desk, Source
from pipeline.sources.folders import Folders
from pipeline.sources.following import Following, Seen

POLL_S: Final = 0.5
CADENCE_S: Final = 15.0
SERVER_S: Final = 5.0
RETRY_S: Final = 2.0


class _Task(NamedTuple):
    file: databases.Trace
    following: Following
    task: asyncio.Task[None]


class Foreign(Source):
    name: ClassVar[str] = "foreign"

    def __init__(self) -> None:
        super().__init__()
        self._tasks: dict[str, _Task] = {}
        self._wrong: dict[str, str] = {}  # files that make no sense
        self._ill: dict[str, str] = {}  # databases that cannot be read
        self._notes: dict[str, list[str]] = {}

    async def run(self, desk: Desk) -> None:
        seen: dict[str, databases.Trace] | None = None
        wake = asyncio.Event()
        folders = Folders(lambda _: wake.set(), wake.set, POLL_S)
        watching = asyncio.get_running_loop().create_task(folders.run(), name="foreign watch")
        try:
            while True:
                folders.watch({str(desk.settings.home), str(desk.settings.home / databases.FOLDER)})
                wake.clear()
                if (files := databases.files(desk.settings.home)) != seen:
                    seen = files
                    self._follow(desk, files)
                for one in self._tasks.values():
                    if one.task.done():
                        one.task.result()
                self._tell_health(desk)
                busy = self._tasks or self._wrong or folders.refused
                await (tick(POLL_S) if busy else tick_unless(wake, CADENCE_S))
        finally:
            watching.cancel()
            for name in list(self._tasks):
                self._leave(name)

    def _follow(self, desk: Desk, files: dict[str, databases.Trace]) -> None:
        """One task for each configured database, anew for one whose file was rewritten, and for no other."""
        found, self._wrong = databases.configured(desk.settings.home)
        for name in list(self._tasks):
            if name not in found or self._tasks[name].file != files.get(name):
                self._leave(name, desk)
        for name in found.keys() - self._tasks.keys():
            following = Following(found[name])
            task = asyncio.get_running_loop().create_task(self._keep(desk, following), name=f"follow {name}")
            self._tasks[name] = _Task(files.get(name), following, task)

    def _leave(self, name: str, desk: Desk | None = None) -> None:
        left = self._tasks.pop(name)
        left.task.cancel()
        self._ill.pop(name, None)
        self._notes.pop(name, None)
        if desk is not None:
            for session in left.following.sessions():
                desk.lost(f"{self.name} {name}", session)

    async def _keep(self, desk: Desk, following: Following) -> None:
        name, is_file = following.database.name, following.database.path is not None
        loop = asyncio.get_running_loop()
        due, moved = 0.0, desk.moved
        while True:
            hint = name not in self._ill and (following.unsettled() or (is_file and not following.quiet()))
            if hint or loop.time() >= due or moved.is_set():
                moved = desk.moved
                try:
                    seen = await asyncio.to_thread(following.look, desk.catalog)
                except (Unreadable, CatalogUnavailable) as error:
                    self._ill[name] = str(error)
                    due = loop.time() + RETRY_S
                else:
                    self._ill.pop(name, None)
                    due = loop.time() + (CADENCE_S if is_file else SERVER_S)
                    self._take(desk, name, seen)
            await tick(POLL_S)

    def _take(self, desk: Desk, name: str, seen: Seen) -> None:
        desk.tell(seen.looks)
        self.looked()
        # Sessions of several databases may not end each other's.
        source = f"{self.name} {name}"
        desk.saw(source, seen.sightings)
        for session in seen.lost:
            desk.lost(source, session)
        if seen.notes != self._notes.get(name, []):
            self._notes[name] = seen.notes
            for note in seen.notes[:10]:
                desk.log.warning("left out of what was read", source=name, what=note, all=len(seen.notes))

    def _tell_health(self, desk: Desk) -> None:
        wrong = {**self._wrong, **self._ill}
        if wrong:
            why = "; ".join(f"{name}: {why}" for name, why in sorted(wrong.items()))
            if self.fares("failing", why):
                desk.log.warning("a database is not read; what was known stays", why=why)
        elif self._tasks:
            self.fares("running")
        else:
            self.fares("idle", "no database is configured: treewire source add")
