"""Where sources report: it knows which workspace a folder belongs to, weighs the evidence, and tells what changed.

The catalog first, the bus second, as with events: a session that is seen is a row like one that is reported, so the
two merge by the same rule, a census repeats it to a new aggregator, and one authority owns the group. What sets it
apart is its producer's name, which is leased: these rows hold for as long as this process says that it is alive.

What hooks and others wrote of a session is read back from the catalog and weighed with the rest. Whatever is written
is written in view of a row: if somebody else has written it meanwhile, his word is weighed first.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Final, Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from pipeline.bridges.event import ID
from pipeline.bridges.hooks import HOOK
from pipeline.catalog import Catalog, CatalogUnavailable, ChangeWatch, Observed
from pipeline.catalog.workspaces import Known
from pipeline.domain.model import LEASED, SESSION_PREFIX, Look, Session, Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.log import FilteringBoundLogger
from pipeline.runtime.process import Process
from pipeline.runtime.settings import Settings
from pipeline.sources.deaths import Deaths
from pipeline.sources.ladder import BUSY, Ladder, Rung, Sighting

BATCH_S: Final = 0.02
AGAIN_S: Final = 1.0
PLACES_S: Final = 0.5
LAST_WORDS_S: Final = 0.5  # an agent that ends by itself takes its registry entry along
GRACE_S: Final = 10.0
BACKOFF_S: Final = (1.0, 60.0)
LEASE_S: Final = 15.0  # so much longer than its cadence a source's word of a session holds
MAX_TEXT: Final = 128
LEFT: Final = "left"
DEATH: Final = "process death"
TOLD: Final = "told"  # by hooks, orchestrators and scripts


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


class Row(NamedTuple):
    """What the catalog has of a session in one workspace, as far as is known here."""

    place: Where
    fields: Session
    stamp: Stamp
    revision: int
    producer: str


class Health(Struct):
    """How a source fares. `idle`: there is nothing for it to look at here, and `why`. `at`: since when, wall ms."""

    state: Literal["running", "idle", "failing"] = "running"
    why: str = ""
    at: int = 0


class Source(ABC):
    """Turns files, processes or answers into sightings and looks, until it is cancelled.

    `cadence_s`: how often it looks at the least, if what it says of sessions holds only while it looks.
    """

    name: ClassVar[str]
    cadence_s: ClassVar[float | None] = None

    def __init__(self) -> None:
        self.health = Health(at=wall_ms())
        self._made, self._looked = time.monotonic(), -math.inf

    @abstractmethod
    async def run(self, desk: Desk) -> None:
        """Runs for ever. What it raises is shown as its failing, and it is run again after a while."""

    def figures(self) -> Mapping[str, float | str]:
        """What else `treewire status` shall show of it."""
        return {}

    def looked(self) -> None:
        """It has looked, and what it saw is told."""
        self._looked = time.monotonic()

    def age_s(self) -> float:
        """Since it looked last; infinite if it never did. A host that sleeps does not age it."""
        return time.monotonic() - self._looked

    def lease_s(self) -> float:
        """How long what it said still holds if it does not look again; infinite if that is not leased."""
        if self.cadence_s is None:
            return math.inf
        return max(0.0, max(self._looked, self._made) + self.cadence_s + LEASE_S - time.monotonic())

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
        self.begun = asyncio.Event()  # set once it is known what the catalog has
        self.moved = asyncio.Event()  # set anew whenever the set of worktrees has changed
        self._process = process
        self._send = send
        self._deaths = Deaths()
        self._places: dict[str, Where] = {}
        self._rows: dict[str, dict[str, Row]] = {}  # by session and workspace
        self._accompanied: set[str] = set()
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
                        self._place(
                            {one.path: Where(one.project, one.workspace, one.incarnation, one.path) for one in found}
                        )
                        await self._read_back()
                    except CatalogUnavailable:
                        pass  # what was known stays; discovery says what is wrong
                self.begun.set()
                await watch.rest(PLACES_S)
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
        self._mark(session)

    def ended(self, source: str, session: str, *, crashed: bool = False) -> None:
        now = now_ns()
        if self.ladder.ended(source, session, Stamp(now, now, CLOCK), wall_ms(), crashed=crashed):
            self._mark(session)

    def _lives(self, sighting: Sighting, pid: int) -> bool:
        """Whether the process that the evidence speaks of is there: if not, what it left behind says nothing."""
        session = sighting.session
        alive = self._deaths.watch(pid, sighting.started, session, lambda: self._died(session))
        best = None if alive else self.ladder.best(session)
        if best is not None and best.fields.state != "exited":
            self._died(session, left=True)
        return alive

    def _died(self, session: str, *, left: bool = False) -> None:
        self._process.spawn(self._bury(session, left), name=f"bury {session}")

    async def _bury(self, session: str, left: bool) -> None:
        """After a death, its last words heard: if it had no time to put its things away, it did not end by itself."""
        await asyncio.sleep(LAST_WORDS_S)
        with contextlib.suppress(CatalogUnavailable):
            await self._read_back()
        best = self.ladder.best(session)
        busy = best is not None and best.fields.state in BUSY
        self.ended(DEATH, session, crashed=busy and (left or self.ladder.left(session)))

    def _mark(self, session: str) -> None:
        self._dirty[session] = None
        self._due.set()

    # ── what others told ─────────────────────────────────────────────────────────────────────────

    async def _read_back(self) -> None:
        """Weigh what others wrote of sessions since the last time. Raises `CatalogUnavailable`."""
        standing = self.ladder.told()
        found = await asyncio.to_thread(self.catalog.told_sessions, standing)
        homes = {place.workspace: place for place in self._places.values()}
        for known in sorted(found, key=lambda known: known.stamp.ended):
            if known.producer != HOOK and known.id not in standing and known.id not in self._rows:
                continue  # a name that somebody chose: in each workspace it may be another session's
            row, place = self._row_of(known.id, known.workspace), homes.get(known.workspace)
            if place is not None and (row is None or row.revision < known.revision):
                self._hear(Row(place, known.value, known.stamp, known.revision, known.producer), known.id, known.at_ms)
        for session in set(standing) - {known.id for known in found}:
            self.ladder.lost(TOLD, session)  # archived, or not kept any longer
            if self.ladder.left(session):
                self._mark(session)
            else:
                self.ladder.forget(session)
                self._rows.pop(session, None)

    def _hear(self, row: Row, session: str, at_ms: int | None) -> None:
        """Somebody else wrote this row; what he said of the session counts as of when he saw it."""
        if row.fields.state != "exited":
            row = row._replace(fields=replace(row.fields, crashed=None))
        self._rows.setdefault(session, {})[row.place.workspace] = row
        if not row.producer.startswith(LEASED):
            self.ladder.saw(TOLD, Sighting(session, row.place.path, Rung.HOOK, row.fields, row.stamp, at_ms))
        self._mark(session)

    def _row_of(self, session: str, workspace: str) -> Row | None:
        return self._rows.get(session, {}).get(workspace)

    def hooked(self) -> set[tuple[str, str]]:
        """The workspaces in which agents tell of themselves, each with the provider."""
        found = set()
        for session in self.ladder.told():
            best = self.ladder.best(session)
            place = None if best is None else self.place_of(best.cwd)
            if best is not None and place is not None and best.fields.state != "exited":
                found.add((place.workspace, best.fields.provider or ""))
        return found

    def take_agents(self, agents: Mapping[int, Agent]) -> None:
        """These are the processes that are agents. Of a session that was only ever told of no process is known: it
        ends with the last one of its sort that was with it in its worktree."""
        self.agents = agents
        self.swept.set()
        here = {
            (place.workspace, agent.provider)
            for agent in agents.values()
            if (place := self.place_of(agent.cwd)) is not None
        }
        told = [session for session in self.ladder.told() if not self.ladder.left(session)]
        self._accompanied &= set(told)
        for session in told:
            best = self.ladder.best(session)
            place = None if best is None else self.place_of(best.cwd)
            if best is None or place is None or not session.startswith(f"{best.fields.provider}-"):
                continue
            if (place.workspace, best.fields.provider) in here:
                self._accompanied.add(session)
            elif session in self._accompanied and best.fields.state != "exited":
                self.ended(DEATH, session, crashed=best.fields.state in BUSY)

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
        orphans: list[tuple[str, Row]] | None = None
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
        said: list[tuple[str, Row]] = []
        events: list[Observed] = []
        for session in list(self._dirty):
            for row in self._news(session):
                said.append((session, row))
                events.append(self._observed(session, row))
        dirty, self._dirty = self._dirty, {}
        try:
            looks = await self.record(events) if events else []
        except CatalogUnavailable:
            self._dirty = {**dirty, **self._dirty}
            self._due.set()
            raise
        for (session, row), look in zip(said, looks, strict=False):
            self._note(session, row, look)
        for session in dirty:
            self._settle(session)

    def _news(self, session: str) -> Iterable[Row]:
        """The rows that the evidence asks for and the catalog does not have, each as it shall be."""
        best = self.ladder.best(session)
        place = None if best is None else self.place_of(best.cwd)
        for row in self._rows.get(session, {}).values():
            if row.fields.state != "exited" and (place is None or place.workspace != row.place.workspace):
                yield _over(row)  # it goes on elsewhere
        if best is None or place is None:
            return
        before = self._row_of(session, place.workspace)
        if before is not None and before.place.incarnation != place.incarnation:
            before = None
        if before is None and (best.fields.state == "exited" or best.source == TOLD):
            return  # it was over before anybody knew of it; and what others told is not ours to repeat
        if before is not None and before.fields == best.fields:
            return
        producer, stamp = f"{LEASED} {best.source}", best.stamp
        if before is not None and best.source == TOLD:
            producer = before.producer
        if before is not None and stamp.began <= before.stamp.ended and stamp.clock == before.stamp.clock:
            # Better evidence of an earlier time than what was said before it was found.
            stamp = Stamp(before.stamp.ended, before.stamp.ended, stamp.clock)
        yield Row(place, best.fields, stamp, 0 if before is None else before.revision, producer)

    def _observed(self, session: str, row: Row) -> Observed:
        fields = {
            name: _short(value)
            for name in Session.__struct_fields__
            if (value := getattr(row.fields, name)) is not None or name in ("waiting_for", "crashed")
        }
        best = self.ladder.best(session)
        at_ms = best.at_ms if best is not None and best.fields == row.fields and best.at_ms is not None else wall_ms()
        group = SESSION_PREFIX + session
        return Observed(
            row.place.project,
            row.place.workspace,
            group,
            fields,
            row.stamp,
            at_ms,
            producer=row.producer,
            onto=row.revision,
        )

    def _note(self, session: str, row: Row, look: Look | None) -> None:
        """What became of a row that was written; if another one was there, that is weighed, and it is tried again."""
        if look is None:
            self._rows.get(session, {}).pop(row.place.workspace, None)
            return
        if look.revision is None or (look.producer, look.stamp.ended) == (row.producer, row.stamp.ended):
            taken = row._replace(stamp=look.stamp, revision=look.revision or row.revision)
            known = self._row_of(session, row.place.workspace)
            if known is None or known.revision <= taken.revision:
                self._rows.setdefault(session, {})[row.place.workspace] = taken
        elif isinstance(look.value, Session):
            self._hear(Row(row.place, look.value, look.stamp, look.revision or 0, look.producer), session, look.at_ms)

    def _settle(self, session: str) -> None:
        """What has ended and been told is forgotten, once no source has it any more."""
        if session in self._dirty:
            return
        best = self.ladder.best(session)
        if best is None or self.place_of(best.cwd) is None:
            self._rows.pop(session, None)
        if best is not None and best.fields.state == "exited" and not self.ladder.left(session):
            self.ladder.forget(session)
            self._rows.pop(session, None)

    def _leased(self) -> list[tuple[str, Row]]:
        """The sessions that a former run of this process told of, and that it did not see end."""
        return [
            (one.id, _row(one))
            for one in self.catalog.sessions()
            if one.producer.startswith(LEASED) and one.value.state != "exited"
        ]

    async def _end_orphans(self, orphans: Sequence[tuple[str, Row]]) -> None:
        """Nobody sees them there any more, so they ended while nobody looked."""
        unseen = [one for one in orphans if self._row_of(one[0], one[1].place.workspace) is None]
        if unseen:
            await self.record([self._observed(session, _over(row)) for session, row in unseen])
            self.log.info("sessions ended while nobody looked", count=len(unseen))

    # ── sources ──────────────────────────────────────────────────────────────────────────────────

    def weigh_lease(self, source: Source) -> None:
        """What a source saw of sessions is not known any more once it has not looked for too long."""
        if self.ladder.lapse(source.name, source.lease_s() <= 0):
            for session in self.ladder.sessions():
                self._mark(session)

    async def keep(self, source: Source) -> None:
        """Run a source for ever, whatever becomes of it."""
        pause = BACKOFF_S[0]
        await self.begun.wait()
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


def _row(known: Known) -> Row:
    place = Where(known.project, known.workspace, known.incarnation, "")
    return Row(place, known.value, known.stamp, known.revision, known.producer)


def _over(row: Row) -> Row:
    """The row of a session that is not there any more."""
    now = now_ns()
    over = replace(row.fields, state="exited", waiting_for=None, crashed=None)
    return row._replace(fields=over, stamp=Stamp(now, now, CLOCK), producer=f"{LEASED} {LEFT}")
