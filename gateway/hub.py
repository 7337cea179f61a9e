"""Fan-out: the follower's replicas on one side, every socket's cursor on the other.

The first change after a quiet moment goes out at once. After that, changes are joined and go out once per tick, and
the tick grows with what a round costs: see docs/decisions/0002-tick-scales-with-clients.md. A socket that cannot
take more is passed over and tried again: nothing here waits for a client, and nothing is queued for one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from time import thread_time
from typing import Final, Protocol

from gateway.lane import Lane, Seat
from gateway.ring import Send, write_each
from gateway.session import Close
from gateway.shelf import Shelf
from pipeline import bus, frames, wire
from pipeline.domain.model import Look
from pipeline.follow import Follower
from pipeline.runtime.beat import read_beats
from pipeline.runtime.clock import now_ns
from pipeline.runtime.settings import Gateway
from pipeline.runtime.tick import tick

SHARE: Final = 1 / 3  # of a core, for fan-out
WRITE_S: Final = 6e-6  # what a client costs in a round, until it is known
SMOOTH: Final = 1 / 16
ROUNDS_OF: Final = 64  # clients; what fewer cost says little
TICK_MIN_S: Final = 0.004
TICK_MAX_S: Final = 0.1
SWEEP_S: Final = 0.25
SHARES: Final = 4
SWEEPS_PER_HEARTBEAT: Final = 8
RETRY_S: Final = 0.02
INTEREST_S: Final = 5.0
HEALTH_S: Final = 2.0
EXPLAIN_S: Final = 2.0
BACKLOG: Final = 10_000
# health's name for a process → its role
WATCHED: Final = {"reconciler": "reconciler", "git": "dispatcher", "sources": "sources"}


class Client(Protocol):
    """Whoever follows projects over one connection, as the hub sees it."""

    seat: Seat
    """What the fast lane writes to."""

    @property
    def projects(self) -> Collection[str]:
        """What it follows now."""
        ...

    @property
    def greeted(self) -> bool:
        """Whether it has said who it is."""
        ...

    def flush(self, now: int) -> bool:
        """Send what is due if the connection can take it. False: it could not take all of it; try again."""
        ...

    def beat_due(self, now: int) -> bool:
        """Whether a heartbeat is due."""
        ...

    def hurry(self) -> None:
        """Make the next heartbeat due now."""
        ...

    def check(self, now: int) -> None:
        """Close it if the client broke off or fell silent."""
        ...

    def regrant(self) -> None:
        """What tokens open has changed."""
        ...

    def close(self, why: Close) -> None:
        """End it with a code."""
        ...


class Away(Exception):
    """The aggregator does not answer now."""


class Hub:
    def __init__(
        self,
        run_dir: Path,
        name: str,
        database: Callable[[], str],
        max_clients: int = Gateway().max_sockets,
        send: Send = write_each,
    ) -> None:
        self.max_clients = max_clients
        self.shelves: dict[str, Shelf] = {}
        self.clients: set[Client] = set()
        self._somebody = asyncio.Event()
        self.strangers: set[Client] = set()  # clients that have not said hello
        self.left = asyncio.Event()  # set whenever somebody leaves
        self.readers: dict[str, Lane] = {}
        self.flushes = 0
        self.unsent = 0
        self._name = name
        self._database = database
        self._run_dir = run_dir
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._watching: dict[Client, frozenset[str]] = {}
        self._dirty: set[str] = set()
        self._behind: set[Client] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._flushed = self._urgent = self._retried = -1.0
        self._write_s = WRITE_S
        self._turn = 0
        self._health: frames.Health = {}
        self._processes: tuple[float, dict[str, str]] = (-HEALTH_S, {})
        self._questions: dict[int, asyncio.Future[wire.Explained | None]] = {}
        self._backlog: list[Look] = []
        self.ingress = bus.Ingress(run_dir)
        self.follower = Follower(run_dir, changed=self._changed, gone=self._gone, answered=self._answered)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._backlog.clear()
        self.follower.close()
        self.ingress.close()

    # ── what sessions read ───────────────────────────────────────────────────────────────────────

    @property
    def epoch(self) -> str:
        return self.follower.epoch

    @property
    def settled(self) -> bool:
        head = self.follower.head
        return head is not None and head.census_ns != 0

    @property
    def stale(self) -> bool:
        return self.follower.stale()

    def shelf(self, project: str) -> Shelf | None:
        """``None`` if the aggregator has not told of such a project."""
        found = self.shelves.get(project)
        if found is None and (replica := self.follower.replicas.get(project)) is not None:
            found = self.shelves[project] = Shelf(project)
            found.refresh(replica)
        return found

    def health(self) -> frames.Health:
        """How fresh what is shown can be, by the part that it depends on."""
        return {"aggregator": "stale" if self.stale else "ok", "database": self._database(), **self.processes()}

    def processes(self) -> dict[str, str]:
        """The state of the other processes: ok, starting, degraded, stopping or away."""
        now = self._loop.time()
        if now - self._processes[0] >= HEALTH_S:
            states = {}
            beats = {beat.name: beat for beat in read_beats(self._run_dir)}
            for part, role in WATCHED.items():
                beat = beats.get(role)
                states[part] = "away" if beat is None or not beat.alive() else beat.state.replace("running", "ok")
            self._processes = (now, states)
        return self._processes[1]

    # ── clients ──────────────────────────────────────────────────────────────────────────────────

    @property
    def crowded(self) -> bool:
        """Whether there are as many clients as there may be; strangers do not count."""
        return len(self.clients) - len(self.strangers) >= self.max_clients

    def add(self, client: Client) -> None:
        self.clients.add(client)
        self._somebody.set()
        self._watching[client] = frozenset()
        if not client.greeted:
            self.strangers.add(client)

    def remove(self, client: Client) -> None:
        self.clients.discard(client)
        self.strangers.discard(client)
        self.left.set()
        self._behind.discard(client)
        for project in self._watching.pop(client, ()):
            self._unwatch(project, client)

    def serve(self, client: Client) -> None:
        """A client said something: send what it is owed, and remember what it follows now."""
        if client not in self._watching:
            return
        if client in self.strangers and client.greeted:
            self.strangers.discard(client)
        self._flush_one(client, now_ns())
        self._reindex(client)
        if client in self._behind:
            self._schedule(RETRY_S)

    def _reindex(self, client: Client) -> None:
        before, after = self._watching[client], frozenset(client.projects)
        if before != after:
            for project in before - after:
                self._unwatch(project, client)
            for project in after - before:
                self.readers.setdefault(project, Lane()).add(client, client.seat)
            self._watching[client] = after

    def _unwatch(self, project: str, client: Client) -> None:
        readers = self.readers.get(project)
        if readers is not None:
            readers.remove(client)
            if not readers:
                del self.readers[project]

    # ── fan-out ──────────────────────────────────────────────────────────────────────────────────

    def tick(self) -> float:
        """Seconds between two rounds of frames: so long that they take their share of a core, and no more."""
        live = len(self.clients) - len(self._behind)
        return min(max(live * self._write_s / SHARE, TICK_MIN_S), TICK_MAX_S)

    def _learn(self, clients: int, took: float) -> None:
        if clients >= ROUNDS_OF:
            self._write_s += (took / clients - self._write_s) * SMOOTH

    def _changed(self, projects: set[str]) -> None:
        urgent = False
        for project in projects:
            replica = self.follower.replicas[project]
            shelf = self.shelves.get(project)
            if shelf is None:
                shelf = self.shelves[project] = Shelf(project)
            urgent |= shelf.refresh(replica)
            if project in self.readers:
                self._dirty.add(project)
        if not self._dirty:
            return
        now = self._loop.time()
        if now >= self._flushed + self.tick():
            self._flush()
        elif urgent and now >= self._urgent + TICK_MAX_S:  # often enough for people, too rare to be a flood
            self._urgent = now
            self._flush()
        else:
            self._schedule(self._flushed + self.tick() - now)

    def _gone(self, project: str) -> None:
        self.shelves.pop(project, None)
        if project in self.readers:
            self._dirty.add(project)
            self._schedule(0.0)

    def _schedule(self, delay: float) -> None:
        when = self._loop.time() + delay
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now, began, started = now_ns(), self._loop.time(), thread_time()
        due: set[Client] = set()
        if began >= self._retried + RETRY_S:  # those who take nothing shall not be asked with every frame
            self._retried = began
            due |= self._behind
        served = len(due)
        for project in self._dirty:
            readers, shelf = self.readers.get(project), self.shelf(project)
            if readers is None:
                continue
            # Who is behind has its own turn; of the others, most need the same frame and nothing else.
            left = readers.seats if shelf is None else self._fan_out(readers, shelf)
            served += len(readers)
            due.update(client for client in left if client not in self._behind)
        self._dirty.clear()
        for client in due:
            self._flush_one(client, now)
        self.flushes += 1
        self._learn(served, thread_time() - started)
        # The tick counts from the beginning, but half of it is left to everything else.
        self._flushed = max(began, self._loop.time() - self.tick() / 2)
        if self._behind:
            self._schedule(max(self.tick(), RETRY_S))

    def _fan_out(self, readers: Lane, shelf: Shelf) -> Iterable[Client]:
        try:
            return readers.fan_out(shelf, self._send)
        except Exception as error:  # one of them; each by itself, it shows which
            self._tell(error)
            return [*readers.seats]

    def _flush_one(self, client: Client, now: int) -> None:
        try:
            done = client.flush(now)
        except Exception as error:
            self._fail(client, error)
            return
        if done:
            self._behind.discard(client)
        elif client in self._watching:
            self._behind.add(client)

    def _fail(self, client: Client, error: Exception) -> None:
        """A mistake with one client is the end of that client, and of nobody else."""
        self._tell(error)
        try:
            client.close(Close(frames.INTERNAL, "internal error"))
        except Exception as another:
            self._tell(another)
        self.remove(client)

    def _tell(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "a client could not be served", "exception": error})

    def sweep(self, share: int = 1) -> None:
        """What time alone brings about: heartbeats, silence, projects that turn out not to exist.

        Of many clients only one in `share` is looked at in each sweep, in turns: what is due to them is due in seconds.
        News of the health goes to all.
        """
        now = now_ns()
        health = self.health()
        news, self._health = health != self._health, health
        self._turn += 1
        clients = [*self.clients] if news else [*self.clients][self._turn % share :: share]
        for client in clients:
            try:
                if news:
                    client.hurry()  # nobody shall learn only with the next one that all has gone stale
                client.check(now)
                if client in self._watching:
                    if client.beat_due(now) or self._waits_for_nothing(client):
                        self._flush_one(client, now)
                    self._reindex(client)
            except Exception as error:
                self._fail(client, error)
        if self._behind:
            self._schedule(RETRY_S)

    def _waits_for_nothing(self, client: Client) -> bool:
        return self.settled and any(self.shelf(project) is None for project in self._watching[client])

    def regrant(self) -> None:
        """What tokens open has changed: whoever may no longer see something is told, and sent no more of it."""
        now = now_ns()
        for client in [*self.clients]:
            try:
                client.regrant()
            except Exception as error:
                self._fail(client, error)
            if client in self._watching:
                self._flush_one(client, now)
                self._reindex(client)
        if self._behind:
            self._schedule(RETRY_S)

    async def sweeping(self, heartbeat_ms: int) -> None:
        """Sweep for as long as somebody is connected, for ever."""
        busy = min(SWEEP_S, heartbeat_ms / 2000)
        share = max(1, min(SHARES, int(heartbeat_ms / 1000 / busy / SWEEPS_PER_HEARTBEAT)))
        while True:
            await self._somebody.wait()
            await asyncio.sleep(busy)
            if self.clients:
                self.sweep(share)
            else:
                self._somebody.clear()

    async def interest(self) -> None:
        """Say again and again which projects somebody looks at."""
        while True:
            self.ingress.send(wire.Interest(self._name, sorted(self.readers)))
            await tick(INTEREST_S)

    # ── questions ────────────────────────────────────────────────────────────────────────────────

    async def explain(self, workspace: str, group: str) -> wire.Explained | None:
        """Why a workspace's values are what they are; ``None`` if there is none. Raises `Away`."""
        id_ = self.follower.next_id()
        if not self.follower.ask(wire.Explain(id_, workspace, group)):
            raise Away
        answer = self._questions[id_] = self._loop.create_future()
        try:
            return await asyncio.wait_for(answer, EXPLAIN_S)
        except TimeoutError:
            raise Away from None
        finally:
            self._questions.pop(id_, None)

    def _answered(self, answer: wire.Answer) -> None:
        question = self._questions.get(answer.id) if isinstance(answer, wire.Explained | wire.Missing) else None
        if question is not None and not question.done():
            question.set_result(answer if isinstance(answer, wire.Explained) else None)

    # ── looks on their way to the aggregator ─────────────────────────────────────────────────────

    @property
    def full(self) -> bool:
        """Whether the aggregator takes looks more slowly than they come."""
        return len(self._backlog) >= BACKLOG

    def send(self, looks: list[Look]) -> None:
        """Pass on what the catalog holds already. While the aggregator is away a census makes up for it."""
        waiting = bool(self._backlog)
        self._backlog += looks
        if not waiting:
            self._drain()

    def _drain(self) -> None:
        if self.stale:
            self.unsent += len(self._backlog)
            self._backlog.clear()
            return
        del self._backlog[: self.ingress.send_all(self._backlog)]
        if self._backlog:
            self._loop.call_later(RETRY_S, self._drain)
