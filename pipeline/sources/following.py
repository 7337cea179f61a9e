"""One database of another tool, followed: read, compared with what was told, and what differs written to the catalog.

The catalog first; what it makes of the events is handed back, for the bus. A reading that fails changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Final, NamedTuple

from pipeline.bridges.event import MAX_AGE_MS
from pipeline.bridges.foreign import Fact, Known, Say, plan
from pipeline.catalog import Catalog, Observed
from pipeline.domain.model import Look, Session, Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.sources import databases
from pipeline.sources.databases import Configured
from pipeline.sources.ladder import Rung, Sighting

ROUND: Final = 2  # so many readings in a row have to miss a workspace before it is archived


class Seen(NamedTuple):
    """What one reading came to. `sightings`: what changed of sessions that other sources may see too; `lost`: those of
    them that are gone.
    """

    looks: list[Look]
    sightings: list[Sighting]
    lost: Collection[str]
    workspaces: int
    skipped: int
    notes: list[str]


class Following:
    """Blocks; one call at a time."""

    def __init__(self, database: Configured) -> None:
        self.database = database
        self._told: dict[tuple[str, int], dict[str, Fact]] = {}
        self._missed: dict[str, int] = {}
        self._agents: dict[str, tuple[str, Fact]] = {}
        self._traces: object = None

    def quiet(self) -> bool:
        """True if the files of the database are as they were at the last reading. Two stats; false says nothing."""
        return self._traces is not None and self._traces == self._touched()

    def unsettled(self) -> bool:
        """Whether another reading is needed before something may be concluded from the last one."""
        return bool(self._missed)

    def sessions(self) -> Collection[str]:
        """The sessions that were sighted here and are not lost."""
        return self._agents.keys()

    def look(self, catalog: Catalog) -> Seen:
        """Read the database, and write what differs. Raises `Unreadable` and `CatalogUnavailable`."""
        traces = self._touched()
        began, at_ms = now_ns(), wall_ms()
        tables = databases.read(self.database)
        stamp = Stamp(began, now_ns(), CLOCK)
        picture = self.database.native.picture(tables.rows)
        known = [
            Known(one.id, one.project, one.incarnation, one.path, one.phase == "archived")
            for one in catalog.workspaces("", archived=True)
        ]
        projects = {project.path: project.id for project in catalog.projects()}
        planned = plan(self.database.name, picture, known, projects, self._told, os.path.realpath)
        looks = self._write(catalog, planned.says, stamp, at_ms)
        if not tables.cut:
            looks += self._archive(catalog, planned.gone, stamp, at_ms)
        agents = {
            session: (os.path.realpath(home.path), fact)
            for session, (home, fact) in planned.agents.items()
            if home.path is not None
        }
        sightings = [
            _sighting(name, *one, stamp, at_ms) for name, one in agents.items() if self._agents.get(name) != one
        ]
        lost, self._agents = self._agents.keys() - agents.keys(), agents
        self._traces = traces if databases.settled(traces) else None
        notes = [*planned.problems, *(f"{table} has more rows than are read" for table in tables.cut)]
        return Seen(looks, sightings, lost, len(picture.homes), planned.skipped, notes)

    def _write(self, catalog: Catalog, says: list[Say], stamp: Stamp, at_ms: int) -> list[Look]:
        observed = [self._observed(say, stamp, at_ms) for say in says]
        answers = catalog.record(observed)
        # Those that did not take their place against a reading made meanwhile are said again.
        for say, look in zip(says, answers, strict=False):
            if look is not None and (look.revision is not None or say.fact.seen_ms is not None):
                self._told.setdefault((say.target.id, say.target.incarnation), {})[say.group] = say.fact
        return [look for look in answers if look is not None]

    def _observed(self, say: Say, stamp: Stamp, at_ms: int) -> Observed:
        """A fact that the tool dates is true as of that date; any other as of the reading."""
        if say.fact.seen_ms is not None:
            stamp = _dated(say.fact.seen_ms, stamp, at_ms)
        event, name = say.event, self.database.name
        shown_ms = at_ms if say.fact.at_ms is None else min(say.fact.at_ms, at_ms)
        return Observed(event.project, event.workspace, event.group, event.fields, stamp, shown_ms, producer=name)

    def _archive(self, catalog: Catalog, gone: list[Known], stamp: Stamp, at_ms: int) -> list[Look]:
        """Archive what two readings in a row did not find: a tool may rewrite its tables in more than one step."""
        self._missed = {one.id: self._missed.get(one.id, 0) + 1 for one in gone}
        looks = []
        for name in [name for name, times in self._missed.items() if times >= ROUND]:
            del self._missed[name]
            look = catalog.archive_workspace(name, stamp, at_ms, self.database.name)
            if look is not None:
                looks.append(look)
        return looks

    def _touched(self) -> databases.Traces:
        return databases.touched(self.database)


def _sighting(session: str, cwd: str, fact: Fact, stamp: Stamp, at_ms: int) -> Sighting:
    """As of the row's own last change: an agent that died since is not brought back by reading of it."""
    if fact.at_ms is not None:
        stamp = _dated(fact.at_ms, stamp, at_ms)
    return Sighting(session, cwd, Rung.EXISTS, Session(**fact.fields), stamp, fact.at_ms)


def _dated(when_ms: int, stamp: Stamp, at_ms: int) -> Stamp:
    """The instant, by our clock, of what the wall clock dates; `stamp`: a reading that began at `at_ms`.

    What is from before the last boot is as of the first moment after it: earlier than that, nothing was fenced off.
    """
    age_ms = min(max(0, at_ms - when_ms), MAX_AGE_MS)
    at = max(1, stamp.began - age_ms * 1_000_000)
    return Stamp(at, at, stamp.clock)
