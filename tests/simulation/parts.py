"""The parts of a deployment on a simulated clock: the real logic of each, with its sockets, files and git played.

Database      rows with revisions, as the catalog writes them; a reading may take long, or fail
Aggregator    the real store, writer, relooks and answers
Reconciler    the real schedule; its reading of the database is played
Dispatcher    the real job table, and two played workers that look at played worktrees
Gateway       the real follower, shelves and sessions
Screen        the real copy of the Python client, over a connection that may be cut, and may be slow
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final
from unittest.mock import patch

from gateway import framing
from gateway.copy import Answer, Copy
from gateway.session import Session
from gateway.shelf import Shelf
from pipeline import follow, frames, wire
from pipeline.aggregator.query import Answers
from pipeline.aggregator.writer import Writer
from pipeline.catalog import Target
from pipeline.domain.model import Census, Git, Life, Look, Stamp
from pipeline.domain.model import Session as Agent
from pipeline.domain.store import Limits, Store, Tally
from pipeline.reconciler.census import Schedule
from tests.simulation.clock import MS, Clock, Faults, Part, S, send
from tests.validators import Graves, Published, Steps, Watcher, incarnation_of, not_buried
from workers.jobs import Policy, Table

HERE: Final = "here"
DOMAIN: Final = "catalog:db"
PROJECT: Final = "web"
HEARTBEAT_MS: Final = 1000
POLICY: Final = Policy(1 * S, 3 * S, 6 * S, 20 * MS, 100 * MS)


class Row:
    """A workspace as the database has it, and its worktree."""

    def __init__(self, name: str, revision: int) -> None:
        self.name, self.incarnation, self.revision = name, 1, revision
        self.renamed = 0
        self.archived = False
        self.sessions: dict[str, tuple[str, int]] = {}
        self.floor = 0
        self.edits = 0

    def life(self) -> Life:
        phase: Any = "archived" if self.archived else "ready"
        return Life(name=f"{self.name}-{self.renamed}.{self.incarnation}", phase=phase)


class Database:
    """`version` counts the commits. `broken`: it cannot be read or written now. `emptied`: the next reading of it
    meets another file in its place, with nothing in it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.rows: dict[str, Row] = {}
        self.version = 0
        self.broken = self.emptied = False
        self.slow = 0.0
        self.graves = Graves()

    def _commit(self, row: Row) -> int:
        self.version += 1
        row.floor += 1
        return row.floor

    def life(self, name: str, change: str) -> Look | None:
        """Create, rename, archive or make anew; returns the look that says so."""
        row = self.rows.get(name)
        if self.broken:
            return None
        if row is None:
            row = self.rows[name] = Row(name, 0)
        elif change == "archive":
            if row.archived:
                return None
            row.archived = True
            self.graves.end(name, row.incarnation, self.clock.now)
        elif change == "create":
            if not row.archived:
                return None
            row.archived, row.sessions = False, {}
            row.incarnation += 1
        elif row.archived:
            return None
        else:
            row.renamed += 1
        row.revision = self._commit(row)
        return self._look(row, "life", row.life(), row.revision)

    def session(self, name: str, id_: str, state: Any) -> Look | None:
        row = self.rows.get(name)
        if row is None or row.archived or self.broken:
            return None
        revision = self._commit(row)
        if state is None:
            if row.sessions.pop(id_, None) is None:
                return None
            return self._look(row, f"session:{id_}", None, revision)
        row.sessions[id_] = state, revision
        return self._look(row, f"session:{id_}", Agent(state=state), revision)

    def _look(self, row: Row, group: str, value: Any, revision: int, stamp: Stamp | None = None) -> Look:
        now = self.clock.now
        return Look(
            PROJECT, row.name, group, value, stamp or Stamp(now, now, HERE), "catalog", row.incarnation,
            domain=DOMAIN, revision=revision,
        )  # fmt: skip

    def census(self, began: int) -> Callable[[int], Census]:
        """What a transaction that begins now sees; the census is stamped once its reading has ended."""
        emptied, self.emptied = self.emptied, False
        self.version += emptied  # it was put back
        seen = [
            (row, group, value, revision)
            for row in self.rows.values()
            if not row.archived and not emptied
            for group, value, revision in (
                ("life", row.life(), row.revision),
                *((f"session:{id_}", Agent(state=state), rev) for id_, (state, rev) in row.sessions.items()),
            )
        ]
        incarnations = {row.name: row.incarnation for row in self.rows.values()}

        def ended(end: int) -> Census:
            stamp = Stamp(began, end, HERE)
            looks = []
            for row, group, value, revision in seen:
                look = self._look(row, group, value, revision, stamp)
                looks.append(Look(
                    look.project, look.workspace, group, value, stamp, "catalog", incarnations[row.name],
                    domain=DOMAIN, revision=revision,
                ))  # fmt: skip
            return Census(stamp, "catalog", DOMAIN, [PROJECT], looks)

        return ended


class _Feed:
    """The aggregator's publisher: to everybody who subscribed, over bad wires."""

    watched = False

    def __init__(self, aggregator: Aggregator) -> None:
        self._aggregator = aggregator

    def publish(self, _: bytes, message: object) -> None:
        self._aggregator.publish(message)


class _Store(Store):
    """The real one; what a census takes away is judged."""

    graves: Graves

    def census(self, census: Census, wall_ms: int) -> Tally:
        before = {(name, entry.incarnation) for name, entry in self.entries.items()}
        tally = super().census(census, wall_ms)
        self.graves.left(before, {(name, entry.incarnation) for name, entry in self.entries.items()})
        return tally


class Aggregator(Part):
    def __init__(self, clock: Clock, faults: Faults, graves: Graves) -> None:
        super().__init__(clock, "aggregator")
        self.faults, self.graves = faults, graves
        self.published = Published()
        self.readers: list[tuple[Part, Callable[[Any], object]]] = []
        self.epochs = 0
        self.began = 0
        self._batch: list[list[bytes]] = []
        self.begin()

    def begin(self) -> None:
        self.epochs += 1
        self.began = self.clock.now
        self.store = _Store(HERE, self.clock.now, Limits(max_entries=8, max_tombstones=4, max_sessions=4))
        self.store.graves = self.graves
        self.epoch = f"e{self.epochs}"
        feed, tap = _Feed(self), _Feed(self)
        self.writer = Writer(self.store, self.epoch, feed, tap, lambda: self.clock.now, self.clock.wall_ms)
        self.answers = Answers(self.store, self.epoch)
        self._batch = []
        self._buried: set[tuple[str, int]] = set()
        self.later(0, self._beat)
        self.later(250 * MS, self._relook)

    def publish(self, message: object) -> None:
        if isinstance(message, wire.Delta):
            ledger = self.store.projects[message.project]
            self.published.note(self.epoch, message.project, message.to, ledger.hash())
        encoded = wire.encode(message)
        for part, take in self.readers:
            send(self.clock, self.faults, part, take, encoded)

    def _beat(self) -> None:
        for project, ledger in self.store.projects.items():
            self.published.note(self.epoch, project, ledger.version, ledger.hash())
        self.writer.beat()
        self.later(S, self._beat)

    def _relook(self) -> None:
        self.writer.ask_relooks()
        self.later(250 * MS, self._relook)

    def take(self, message: bytes) -> None:
        """Messages that come together are one batch."""
        if not self._batch:
            self.later(self.clock.between(0, MS), self._admit)
        self._batch.append([message])

    def _admit(self) -> None:
        batch, self._batch = self._batch, []
        self.writer.take(batch)
        self._buried |= {(name, one.incarnation) for name, one in self.store.tombstones.items() if one.final}
        for name, entry in self.store.entries.items():
            self.graves.check(self.began, name, entry.incarnation)
            not_buried(name, entry.incarnation, self._buried)

    def ask(self, query: bytes) -> bytes:
        return wire.encode(self.answers(wire.decode_query(query)))


class Producer(Part):
    """Whoever hands looks to the aggregator. Nobody there: they are lost."""

    def __init__(self, clock: Clock, name: str, aggregator: Aggregator, faults: Faults) -> None:
        super().__init__(clock, name)
        self.aggregator, self.faults = aggregator, faults

    def hand(self, message: wire.Ingress) -> None:
        send(self.clock, self.faults, self.aggregator, self.aggregator.take, wire.encode(message))


class Ingest(Producer):
    """The gateway's door for events: the database first, the bus second."""

    def take(self, look: Look | None) -> None:
        if look is not None:
            self.hand(look)


class Reconciler(Producer):
    def __init__(self, clock: Clock, aggregator: Aggregator, faults: Faults, database: Database) -> None:
        super().__init__(clock, "reconciler", aggregator, faults)
        self.database = database
        aggregator.readers.append((self, self._hear))
        self.begin()

    def begin(self) -> None:
        self.schedule = Schedule(60, 500, self.clock.now)
        self.epoch, self.seen = "", -1
        self._poll()

    def _hear(self, data: bytes) -> None:
        message = wire.decode_feed(data)
        if isinstance(message, wire.Heartbeat):
            if message.epoch != self.epoch:
                self.epoch = message.epoch
                self.schedule.ask("epoch")
            self.schedule.heard(message.census_ns, self.clock.now)
        elif isinstance(message, wire.Relook) and message.group != "git":
            self.schedule.ask("relook")

    def _poll(self) -> None:
        self.later(200 * MS, self._poll)
        if self.database.broken:
            return
        if self.seen != self.database.version:
            self.seen = self.database.version
            self.schedule.ask("change")
        if self.epoch and self.schedule.due(self.clock.now) is not None:
            self.schedule.begin()
            began = self.clock.now
            slow = self.database.clock.chance(self.database.slow)
            span = self.clock.between(MS, 4 * S if slow else 20 * MS)
            at = self.clock.between(0, span)
            self.later(at, lambda: self._read(began, began + span))

    def _read(self, began: int, end: int) -> None:
        if self.database.broken:
            self.schedule.end(self.clock.now, ok=False)
            return
        finish = self.database.census(began)

        def ended() -> None:
            census = finish(self.clock.now)
            self.hand(census)
            self.schedule.sent(census.stamp.ended, self.clock.now)
            self.schedule.end(self.clock.now)

        self.later(end - self.clock.now, ended)


class Worker(Part):
    def __init__(self, clock: Clock, name: str) -> None:
        super().__init__(clock, name)
        self.address = name.encode()
        self.fails = self.hangs = 0.0


class Dispatcher(Producer):
    def __init__(self, clock: Clock, aggregator: Aggregator, faults: Faults, database: Database) -> None:
        super().__init__(clock, "dispatcher", aggregator, faults)
        self.database = database
        self.workers = [Worker(clock, "worker-0"), Worker(clock, "worker-1")]
        self._wake = 0
        aggregator.readers.append((self, self._hear))
        self.begin()

    def begin(self) -> None:
        self.table = Table(POLICY, self.clock.now)
        self.last: dict[str, Look] = {}
        self.epoch = ""
        self.known: set[str] = set()
        self._tick()

    def _tick(self) -> None:
        self.later(500 * MS, self._tick)
        self.retarget()
        for worker in self.workers:
            if worker.alive and not worker._paused:
                self.table.ready(worker.address, worker.name, self.clock.now)
            elif not worker.alive:
                self.table.lost(worker.address, "died", self.clock.now)
                worker.restart()
        for workspace in list(self.last):
            if self.clock.chance(0.2):
                self.hand(self.last[workspace])  # as for newborn entries: more often than the real one
        self._pump()

    def retarget(self) -> None:
        if self.database.broken:
            return
        targets = [_target(row) for row in self.database.rows.values() if not row.archived]
        self.table.retarget(targets, self.clock.now)
        alive = {target.workspace: target.incarnation for target in targets}
        self.last = {name: look for name, look in self.last.items() if alive.get(name) == look.incarnation}

    def _hear(self, data: bytes) -> None:
        message = wire.decode_feed(data)
        if isinstance(message, wire.Relook) and message.group == "git":
            self.table.mark(message.workspace, "relook", self.clock.now, full=True)
            self._pump()
        elif isinstance(message, wire.Heartbeat) and message.epoch != self.epoch:
            self.epoch = message.epoch
            for look in self.last.values():
                self.hand(look)

    def edited(self, workspace: str) -> None:
        self.table.mark(workspace, "tree", self.clock.now)
        self._pump()

    def _pump(self) -> None:
        now = self.clock.now
        for lease in self.table.assign(now):
            worker = next(one for one in self.workers if one.address == lease.address)
            self._work(worker, lease.id, lease.target)
        for address in self.table.outstayed:
            for worker in self.workers:
                if worker.address == address:
                    worker.crash()
                    worker.restart()
        self.table.outstayed = []
        self.table.told.clear()
        wakeup = self.table.next_wakeup(now)
        if wakeup is not None:
            self._wake += 1
            wake = self._wake
            self.later(max(MS, wakeup - now), lambda: self._pump() if wake == self._wake else None)

    def _work(self, worker: Worker, id_: int, target: Target) -> None:
        clock, began, life = self.clock, self.clock.now, self.life
        if clock.chance(worker.hangs):
            return
        span = clock.between(MS, 300 * MS)
        row = self.database.rows[target.workspace]

        def read() -> None:
            edits, alive = row.edits, row.incarnation == target.incarnation
            failed = not alive or clock.chance(worker.fails)

            def finish() -> None:
                if life == self.life and self.alive:
                    self.do(lambda: self._done(id_, began, edits, "failed" if failed else ""))

            worker.later(began + span - clock.now, finish)

        worker.later(clock.between(0, span), read)

    def _done(self, id_: int, began: int, edits: int, error: str) -> None:
        lease = self.table.done(id_, error, self.clock.now)
        if lease is not None:
            target = lease.target
            stamp = Stamp(began, self.clock.now, HERE)
            look = Look(PROJECT, target.workspace, "git", Git(files=edits), stamp, "git", target.incarnation)
            self.last[target.workspace] = look
            self.hand(look)
        self._pump()


def _target(row: Row) -> Target:
    made = row.incarnation
    return Target(row.name, PROJECT, made, f"/w/{row.name}", f"/g/{row.name}.{made}", "/g", made, "main")


class _Bus:
    """What `pipeline.follow` takes the bus for."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def Queries(self, _: Any, take: Callable[[list[Any]], None]) -> _Queries:
        return _Queries(self._gateway, take)

    def feed(self, _: Any, take: Callable[[list[Any]], None]) -> _End:
        self._gateway.heard = lambda data: take([wire.decode_feed(data)])
        return _End()


class _End:
    bad = 0

    def close(self) -> None:
        """Nothing is held."""


class _Queries(_End):
    def __init__(self, gateway: Gateway, take: Callable[[list[Any]], None]) -> None:
        self._gateway, self._take = gateway, take

    def ask(self, query: wire.Query) -> bool:
        gateway, aggregator = self._gateway, self._gateway.aggregator
        if not aggregator.alive:
            return False

        life = gateway.life

        def answer(data: bytes) -> None:
            if gateway.life != life:
                return  # whoever asked is no more
            told = aggregator.ask(data)
            send(gateway.clock, gateway.faults, gateway, lambda one: self._take([wire.decode_answer(one)]), told)

        send(gateway.clock, gateway.faults, aggregator, answer, wire.encode(query))
        return True


class Gateway(Part):
    def __init__(self, clock: Clock, aggregator: Aggregator, faults: Faults) -> None:
        super().__init__(clock, "gateway")
        self.aggregator, self.faults = aggregator, faults
        self.heard: Callable[[bytes], object] = lambda _: None
        self.screens: list[Screen] = []
        aggregator.readers.append((self, self._hear))
        self.begin()

    def begin(self) -> None:
        self.shelves: dict[str, Shelf] = {}
        self.steps = Steps("gateway")
        with patch.object(follow, "bus", _Bus(self)):
            self.follower = follow.Follower(None, changed=self._changed, gone=self._gone)  # type: ignore[arg-type]

    def _hear(self, data: bytes) -> None:
        self.heard(data)

    def crash(self) -> None:
        super().crash()
        for screen in self.screens:
            screen.cut()

    def _changed(self, projects: set[str]) -> None:
        for project in projects:
            self.shelf(project)
            self.shelves[project].refresh(self.follower.replicas[project])
            replica = self.follower.replicas[project]
            if replica.ledger is not None:
                ledger = replica.ledger
                self.aggregator.published.check("gateway", replica.epoch, project, ledger.version, ledger.hash())
                self.steps.check(replica.epoch, project, ledger.version)
        for screen in self.screens:
            screen.soon()

    def _gone(self, project: str) -> None:
        self.shelves.pop(project, None)
        self.steps = Steps("gateway")

    # as `gateway.session.Board`

    crowded = False

    @property
    def epoch(self) -> str:
        return self.follower.epoch

    @property
    def settled(self) -> bool:
        head = self.follower.head
        return head is not None and head.census_ns != 0

    @property
    def stale(self) -> bool:
        return self.follower.stale(self.clock.now)

    def shelf(self, project: str) -> Shelf | None:
        found = self.shelves.get(project)
        if found is None and (replica := self.follower.replicas.get(project)) is not None:
            found = self.shelves[project] = Shelf(project)
            found.refresh(replica)
        return found

    def health(self) -> frames.Health:
        return {"aggregator": "stale" if self.stale else "ok"}


class Screen(Part):
    """A client. `pace`: how long it takes between two looks at its socket; what comes meanwhile is one delta."""

    def __init__(self, clock: Clock, name: str, gateway: Gateway, pace: int) -> None:
        super().__init__(clock, name)
        self.gateway, self.pace = gateway, pace
        self.copy = Copy(PROJECT)
        self.watcher = Watcher(name, counters)
        self.session: Session | None = None
        self.connection = 0
        self._wake = False
        gateway.screens.append(self)
        self._connect()
        self._beat()

    def cut(self) -> None:
        """The connection is lost, and made again in a while."""
        if self.session is None:
            return
        self.session = None
        self.connection += 1
        self.clock.say(f"{self.name} is cut off")
        self.copy.lose()
        self.later(self.clock.between(10 * MS, S), self._connect)

    def _connect(self) -> None:
        if self.session is not None:
            return
        if not self.gateway.alive:
            self.later(300 * MS, self._connect)
            return
        self.session = Session(self.gateway, HEARTBEAT_MS, self.clock.now)
        self.connection += 1
        self._say([{"type": "hello"}])

    def _beat(self) -> None:
        self.later(S, self._beat)
        self.soon()

    def soon(self) -> None:
        if not self._wake:
            self._wake = True
            self.clock.after(self.pace, self._write)

    def _write(self) -> None:
        """The gateway's side: whatever brings this client to the head."""
        self._wake = False
        session, gateway = self.session, self.gateway
        if session is None or not gateway.alive:
            return
        if gateway._paused:
            self.soon()
            return
        now = self.clock.now
        if session.check(now) is not None:
            self.cut()
            return
        sent = [one for data in session.due(now) for one in framing.payloads(data)]
        if session.waits:
            self.soon()
        connection = self.connection
        delay = self.clock.between(50_000, 5 * MS)
        for data in sent:
            if self.copy.heard_here and self.clock.chance(gateway.faults.swallow):
                continue  # which no socket does; but a client is to notice it
            self._pass(lambda data=data: self._take(data), connection, delay)  # type: ignore[misc]

    def _pass(self, call: Callable[[], object], connection: int, delay: int) -> None:
        """In order, as long as the connection holds."""

        def arrive() -> None:
            if connection == self.connection:
                self.do(call)

        self.clock.after(delay, arrive)

    def _take(self, data: bytes) -> None:
        copy, before = self.copy, (self.copy.epoch, self.copy.version)
        answer = copy.take(data, self.clock.now)
        if copy.workspaces is not None and (copy.epoch, copy.version) != before:
            self.gateway.aggregator.published.check(self.name, copy.epoch, PROJECT, copy.version, copy.hash())
            self.watcher.check(copy.epoch, copy.version, answer.kind == "snapshot", copy.workspaces)
        self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        if answer.later is not None:
            connection, later = self.connection, answer.later

            def ask() -> None:
                if connection == self.connection:
                    self.copy.waits = False
                    self._say([later])

            self.later(5 * S, ask)
        self._say(answer.says)

    def _say(self, messages: Iterable[dict[str, Any]]) -> None:
        connection = self.connection
        for message in messages:
            data = json.dumps(message).encode()

            def receive(data: bytes = data) -> None:
                session = self.session
                if session is None or connection != self.connection or not self.gateway.alive:
                    return
                if session.receive(data, self.clock.now) is not None:
                    self.cut()
                else:
                    self.soon()

            self.clock.after(self.clock.between(50_000, 3 * MS), receive)

    def held(self) -> dict[str, Any]:
        """What is on this screen, in few words."""
        return {name: told(entry) for name, entry in (self.copy.workspaces or {}).items()}


def counters(entry: dict[str, Any]) -> tuple[int, dict[str, int]]:
    files = (entry.get("git") or {}).get("files")
    return incarnation_of(entry), {} if files is None else {"files": files}


def told(entry: dict[str, Any]) -> dict[str, Any]:
    sessions = {id_: one.get("state") for id_, one in (entry.get("sessions") or {}).items()}
    return {
        "name": (entry.get("life") or {}).get("name"),
        "files": (entry.get("git") or {}).get("files"),
        "sessions": sessions,
    }


def truth(database: Database) -> dict[str, Any]:
    return {
        row.name: {
            "name": row.life().name,
            "files": row.edits,
            "sessions": {id_: state for id_, (state, _) in row.sessions.items()},
        }
        for row in database.rows.values()
        if not row.archived
    }
