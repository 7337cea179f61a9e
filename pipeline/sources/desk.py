"""Where sources report: it knows which workspace a folder belongs to, weighs the evidence, and tells what changed.

The catalog first, the bus second, as with events: a session that is seen is a row like one that is reported, so the
two merge by the same rule, a census repeats it to a new aggregator, and one authority owns the group. What sets it
apart is its producer's name, which is leased: these rows hold for as long as this process says that it is alive.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Final, Literal, NamedTuple

from msgspec import Struct

from pipeline.bridges.event import ID
from pipeline.catalog import Catalog, CatalogUnavailable, ChangeWatch, Observed
from pipeline.domain.model import LEASED, SESSION_PREFIX, Look, Session, Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.log import FilteringBoundLogger
from pipeline.runtime.process import Process
from pipeline.runtime.settings import Settings
from pipeline.sources.deaths import Deaths
from pipeline.sources.ladder import BUSY, Best, Ladder, Sighting

BATCH_S: Final = 0.02
AGAIN_S: Final = 1.0
PLACES_S: Final = 0.5
LAST_WORDS_S: Final = 0.5  # an agent that ends by itself takes its registry entry along
GRACE_S: Final = 10.0
BACKOFF_S: Final = (1.0, 60.0)
MAX_TEXT: Final = 128
LEFT: Final = "left"
DEATH: Final = "process death"


class Where(NamedTuple):
    """A workspace that is followed. `path`: its worktree."""

    project: str
    workspace: str
    incarnation: int
    path: str


class Agent(NamedTuple):
    """A process that is an agent, where it works, and when it was started."""

    pid: int
    started: int
    provider: str
    cwd: str


class Health(Struct):
    """How a source fares. `idle`: there is nothing for it to look at here, and `why`. `at`: since when, wall ms."""

    state: Literal["running", "idle", "failing"] = "running"
    why: str = ""
    at: int = 0


class Source(ABC):
    """Turns files, processes or answers into sightings and looks, until it is cancelled."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self.health = Health(at=wall_ms())

    @abstractmethod
    async def run(self, desk: Desk) -> None:
        """Runs for ever. What it raises is shown as its failing, and it is run again after a while."""

    def figures(self) -> Mapping[str, float | str]:
        """What else `treewire status` shall show of it."""
        return {}

    def fares(self, state: Literal["running", "idle", "failing"], why: str = "") -> bool:
        """Say how it fares; true if that is news."""
        if (state, why) == (self.health.state, self.health.why):
            return False
        self.health = Health(state, why, wall_ms())
        return True


class Desk:
    """What a source is given."""

    def __init__(
        self,
        process: Process,
        catalog: Catalog,
        send: Callable[[Iterable[Look]], None],
        watched: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self.settings: Settings = process.settings
        self.log: FilteringBoundLogger = process.log
        self.catalog = catalog
        self.interested = watched
        self.ladder = Ladder()
        self.agents: Mapping[int, Agent] | None = None  # by pid; ``None`` while nobody looks at processes
        self.swept = asyncio.Event()  # set once somebody has looked at them
        self.moved = asyncio.Event()  # set anew whenever the set of worktrees has changed
        self._process = process
        self._send = send
        self._deaths = Deaths()
        self._places: dict[str, Where] = {}
        self._told: dict[str, tuple[Where, Session]] = {}
        self._dirty: dict[str, None] = {}
        self._due = asyncio.Event()

    # ── places ───────────────────────────────────────────────────────────────────────────────────

    def places(self) -> list[Where]:
        """Every worktree that is followed."""
        return list(self._places.values())

    def place_of(self, cwd: str) -> Where | None:
        """The innermost followed worktree that holds this folder; the folder as its real path."""
        path = cwd.rstrip("/")
        while path:
            if (found := self._places.get(path)) is not None:
                return found
            path = path.rpartition("/")[0]
        return None

    async def keep_places(self) -> None:
        """Follow which worktrees there are, for ever."""
        watch = ChangeWatch(self.catalog)
        try:
            while True:
                if not watch.quiet() and await asyncio.to_thread(watch.changed):
                    try:
                        found = await asyncio.to_thread(self.catalog.targets)
                    except CatalogUnavailable:
                        pass  # what was known stays; discovery says what is wrong
                    else:
                        self._place(
                            {one.path: Where(one.project, one.workspace, one.incarnation, one.path) for one in found}
                        )
                await asyncio.sleep(PLACES_S)
        finally:
            watch.close()

    def _place(self, places: dict[str, Where]) -> None:
        if places == self._places:
            return
        self._places = places
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()
        for session in self.ladder.sessions():
            self._mark(session)

    # ── sessions ─────────────────────────────────────────────────────────────────────────────────

    def saw(self, source: str, sightings: Iterable[Sighting]) -> None:
        """Take what a source sees of sessions; what changes by it is told."""
        for sighting in sightings:
            if not ID.fullmatch(sighting.session):
                continue  # the agent wrote it
            if sighting.pid is not None and not self._lives(sighting, sighting.pid):
                continue
            if self.ladder.saw(source, sighting):
                self._mark(sighting.session)

    def lost(self, source: str, session: str) -> None:
        """This source no longer has it. What nobody has, has ended."""
        if self.ladder.lost(source, session):
            self.ended(source, session)

    def ended(self, source: str, session: str, *, crashed: bool = False) -> None:
        now = now_ns()
        if self.ladder.ended(source, session, Stamp(now, now, CLOCK), wall_ms(), crashed=crashed):
            self._mark(session)

    def _lives(self, sighting: Sighting, pid: int) -> bool:
        """Whether the process that the evidence speaks of is there: if not, what it left behind says nothing."""
        session = sighting.session
        alive = self._deaths.watch(pid, sighting.started, session, lambda: self._died(session))
        if not alive and session in self._told and self._told[session][1].state != "exited":
            self._died(session)
        return alive

    def _died(self, session: str) -> None:
        best = self.ladder.best(session)
        busy = best is not None and best.fields.state in BUSY
        asyncio.get_running_loop().call_later(LAST_WORDS_S, self._bury, session, busy)

    def _bury(self, session: str, busy: bool) -> None:
        """After a death: it had no time to put its things away, so it was not the one who ended it."""
        self.ended(DEATH, session, crashed=busy and self.ladder.left(session))

    def _mark(self, session: str) -> None:
        self._dirty[session] = None
        self._due.set()

    # ── telling ──────────────────────────────────────────────────────────────────────────────────

    def tell(self, looks: Iterable[Look]) -> None:
        """Send looks that the catalog has made of events."""
        self._send(looks)

    async def record(self, events: Sequence[Observed]) -> list[Look | None]:
        """Write events of any group, then send what became of them, in order. Raises `CatalogUnavailable`."""
        looks = await asyncio.to_thread(self.catalog.record, events)
        self._send(look for look in looks if look is not None)
        return looks

    async def keep_telling(self) -> None:
        """Write what changed of sessions, many at a time, for ever."""
        started = time.monotonic()
        orphans: list[tuple[Where, str]] | None = None
        while True:
            try:
                if orphans is None:
                    orphans = await asyncio.to_thread(self._leased)
                if orphans and time.monotonic() > started + GRACE_S:
                    await self._end_orphans(orphans)
                    orphans = []
                wait = started + GRACE_S - time.monotonic() if orphans else None
                await asyncio.wait_for(self._due.wait(), wait)
                await asyncio.sleep(BATCH_S)
                await self._tell_sessions()
            except TimeoutError:
                continue
            except CatalogUnavailable as error:
                self.log.warning("sessions wait for the catalog", why=str(error), sessions=len(self._dirty))
                await asyncio.sleep(AGAIN_S)

    async def _tell_sessions(self) -> None:
        self._due.clear()
        events: list[Observed] = []
        told: list[tuple[str, Where, Session] | None] = []
        for session in list(self._dirty):
            best = self.ladder.best(session)
            place = None if best is None else self.place_of(best.cwd)
            before = self._told.get(session)
            if before is not None and (place is None or place.workspace != before[0].workspace):
                events.append(self._left(session, before[0]))
                told.append(None)
            if best is None or place is None:
                continue
            if before is not None and before == (place, best.fields):
                continue
            if before is None and best.fields.state == "exited":
                continue  # it was over before anybody knew of it
            events.append(self._observed(session, place, best))
            told.append((session, place, best.fields))
        dirty, self._dirty = self._dirty, {}
        try:
            if events:
                await self.record(events)
        except CatalogUnavailable:
            self._dirty = {**dirty, **self._dirty}
            self._due.set()
            raise
        for one in told:
            if one is not None:
                self._told[one[0]] = one[1:]
        for session in dirty:
            self._settle(session)

    def _settle(self, session: str) -> None:
        """What has ended and been told is forgotten, once no source has it any more."""
        best = self.ladder.best(session)
        if best is None or self.place_of(best.cwd) is None:
            self._told.pop(session, None)
        elif best.fields.state == "exited" and not self.ladder.left(session):
            self.ladder.forget(session)
            self._told.pop(session, None)

    def _observed(self, session: str, place: Where, best: Best) -> Observed:
        fields = {
            name: _short(value)
            for name in Session.__struct_fields__
            if (value := getattr(best.fields, name)) is not None or name in ("waiting_for", "crashed")
        }
        return Observed(
            place.project,
            place.workspace,
            SESSION_PREFIX + session,
            fields,
            best.stamp,
            best.at_ms if best.at_ms is not None else wall_ms(),
            producer=f"{LEASED} {best.source}",
        )

    def _left(self, session: str, place: Where) -> Observed:
        """It goes on elsewhere: here it is over."""
        now = now_ns()
        fields = {"state": "exited", "waiting_for": None, "crashed": None}
        group = SESSION_PREFIX + session
        stamp = Stamp(now, now, CLOCK)
        return Observed(place.project, place.workspace, group, fields, stamp, wall_ms(), producer=f"{LEASED} {LEFT}")

    def _leased(self) -> list[tuple[Where, str]]:
        """The sessions that a former run of this process told of, and that it did not see end."""
        found = self.catalog.sessions()
        return [
            (Where(one.project, one.workspace, one.incarnation, ""), one.id)
            for one in found
            if one.producer.startswith(LEASED) and one.value.state != "exited"
        ]

    async def _end_orphans(self, orphans: list[tuple[Where, str]]) -> None:
        """Nobody sees them any more, so they ended while nobody looked."""
        unseen = [(place, session) for place, session in orphans if session not in self._told]
        if unseen:
            await self.record([self._left(session, place) for place, session in unseen])
            self.log.info("sessions ended while nobody looked", count=len(unseen))

    # ── sources ──────────────────────────────────────────────────────────────────────────────────

    async def keep(self, source: Source) -> None:
        """Run a source for ever, whatever becomes of it."""
        pause = BACKOFF_S[0]
        while True:
            began = time.monotonic()
            try:
                await source.run(self)
                why = "it ended"
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                if source.fares("failing", why):
                    self.log.warning("source failed", source=source.name, exc_info=error)
            source.fares("failing", why)
            pause = BACKOFF_S[0] if time.monotonic() - began > BACKOFF_S[1] else min(pause * 2, BACKOFF_S[1])
            await asyncio.sleep(pause)

    def close(self) -> None:
        self._deaths.close()


def _short(value: object) -> object:
    """Text that an agent wrote: bounded, and without what could disturb a terminal."""
    if not isinstance(value, str):
        return value
    return "".join(c for c in value if c.isprintable())[:MAX_TEXT]
