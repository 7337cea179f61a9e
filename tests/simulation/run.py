"""One run: a deployment, some work, a number of faults that follow from the seed, quiet, and then the question whether
everybody knows the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple
from unittest.mock import patch

from pipeline import follow
from tests.simulation.clock import MS, START, Clock, Faults, Part, S
from tests.simulation.parts import Aggregator, Database, Dispatcher, Gateway, Ingest, Reconciler, Screen, truth
from tests.validators import bounded, converged

WORK_NS: Final = 8 * S
QUIET_NS: Final = 20 * S
NAMES: Final = ("a", "b", "c")
STATES: Final = ("working", "idle", "waiting", None)


class Outcome(NamedTuple):
    """How often each fault was done, and what was published."""

    faults: Counter[str]
    versions: int
    epochs: int


class Run:
    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.clock = clock = Clock(seed)
        clock.trace = trace
        self.done: Counter[str] = Counter()
        self.wires = Faults()
        self.database = Database(clock)
        self.aggregator = Aggregator(clock, self.wires, self.database.graves)
        self.ingest = Ingest(clock, "ingest", self.aggregator, self.wires)
        self.reconciler = Reconciler(clock, self.aggregator, self.wires, self.database)
        self.dispatcher = Dispatcher(clock, self.aggregator, self.wires, self.database)
        self.gateway = Gateway(clock, self.aggregator, self.wires)
        self.screens = [Screen(clock, "fast", self.gateway, 10 * MS), Screen(clock, "slow", self.gateway, 700 * MS)]
        self.restartable: list[Part] = [self.aggregator, self.reconciler, self.dispatcher, self.gateway]

    def go(self) -> Outcome:
        """Raises `Violation`."""
        clock = self.clock
        for name in NAMES[:2]:
            self.ingest.take(self.database.life(name, "create"))
        self._work()
        self._fault()
        clock.run(START + WORK_NS)
        clock.say("quiet")
        self.wires.quiet()
        self.database.broken, self.database.emptied, self.database.slow = False, False, 0.0
        for worker in self.dispatcher.workers:
            worker.fails = worker.hangs = 0.0
        for part in self.restartable:
            part.restart()
        clock.run(START + WORK_NS + QUIET_NS)
        wanted = truth(self.database)
        for screen in self.screens:
            converged(screen.name, screen.held(), wanted)
            copy = screen.copy
            if copy.verified != copy.version or copy.state != "live":
                converged(screen.name, {"standing": copy.state, "verified": copy.verified}, {"version": copy.version})
        self._check_bounds()
        return Outcome(self.done, len(self.aggregator.published), self.aggregator.epochs)

    def _check_bounds(self) -> None:
        store = self.aggregator.store
        bounded("entries", len(store.entries), store.limits.max_entries)
        bounded("tombstones", len(store.tombstones), store.limits.max_tombstones)
        bounded("relooks that never settle", len(self.aggregator.writer.relooks), 0)
        bounded("leases", self.dispatcher.table.running, len(self.dispatcher.workers))

    # ── the world ────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        """What people and agents do, at irregular times."""
        clock, database = self.clock, self.database
        if clock.now >= START + WORK_NS:
            return
        clock.after(clock.between(5 * MS, 400 * MS), self._work)
        name, what = clock.random.choice(NAMES), clock.random.random()
        if what < 0.4:
            row = database.rows.get(name)
            if row is not None and not row.archived:
                row.edits += 1
                if self.dispatcher.alive:
                    self.dispatcher.do(lambda: self.dispatcher.edited(name))
            return
        if what < 0.75:
            look = database.session(name, clock.random.choice("st"), clock.random.choice(STATES))
        else:
            look = database.life(name, clock.random.choice(("create", "create", "rename", "archive")))
        if look is not None:
            clock.say(f"{look.workspace}.{look.incarnation} {look.group} {look.value}")
        self.ingest.take(look)

    def _fault(self) -> None:
        clock = self.clock
        if clock.now >= START + WORK_NS:
            return
        clock.after(clock.between(200 * MS, 2 * S), self._fault)
        fault = clock.random.choice(FAULTS)
        self.done[fault.__name__.strip("_")] += 1
        fault(self)

    def _bad_wires(self) -> None:
        random = self.clock.random
        self.wires.drop, self.wires.double, self.wires.slow = (
            random.random() / 3,
            random.random() / 4,
            random.random() / 3,
        )
        self.wires.swallow = random.random() / 8
        self.clock.say("the wires are bad")
        self.clock.after(self.clock.between(100 * MS, 3 * S), self.wires.quiet)

    def _crash(self) -> None:
        part = self.clock.random.choice(self.restartable)
        if part.alive:
            part.crash()
            self.clock.after(self.clock.between(50 * MS, 2 * S), part.restart)

    def _pause(self) -> None:
        self.clock.random.choice(self.restartable).pause(self.clock.between(100 * MS, 4 * S))

    def _suspend(self) -> None:
        """The host sleeps: everybody stands still, and goes on in the same moment."""
        for_ns = self.clock.between(S, 6 * S)
        for part in (*self.restartable, *self.dispatcher.workers, *self.screens, self.ingest):
            part.pause(for_ns)

    def _cut(self) -> None:
        self.clock.random.choice(self.screens).cut()

    def _clock_step(self) -> None:
        self.clock.wall_offset_ms += self.clock.random.choice((-1, 1)) * 3_600_000
        self.clock.say("the wall clock steps by an hour")

    def _database_stall(self) -> None:
        self.database.slow = 1.0
        self.clock.after(self.clock.between(S, 4 * S), lambda: setattr(self.database, "slow", 0.0))

    def _database_away(self) -> None:
        self.database.broken = True
        self.clock.say("the database is away")
        self.clock.after(self.clock.between(200 * MS, 2 * S), lambda: setattr(self.database, "broken", False))

    def _database_emptied(self) -> None:
        """Once in a run: an empty census that follows another one is believed."""
        if self.done["database_emptied"] > 1:
            return
        self.database.emptied = True
        self.database.version += 1
        self.clock.say("the database is empty for a moment")

    def _git_ill(self) -> None:
        worker = self.clock.random.choice(self.dispatcher.workers)
        worker.fails, worker.hangs = self.clock.random.choice(((0.7, 0.0), (0.0, 0.7), (0.3, 0.3)))
        self.clock.say(f"git is ill in {worker.name}")

        def well() -> None:
            worker.fails = worker.hangs = 0.0

        self.clock.after(self.clock.between(200 * MS, 2 * S), well)

    def _worker_crash(self) -> None:
        self.clock.random.choice(self.dispatcher.workers).crash()


FAULTS: Final[tuple[Callable[[Run], None], ...]] = (
    Run._bad_wires, Run._bad_wires, Run._crash, Run._crash, Run._pause, Run._suspend, Run._cut, Run._clock_step,
    Run._database_stall, Run._database_away, Run._database_emptied, Run._git_ill, Run._worker_crash,
)  # fmt: skip


def run(seed: int, trace: Callable[[str], None] | None = None) -> Outcome:
    """Raises `Violation`, with the seed and how to see it again."""
    one = None
    try:
        with patch.object(follow, "now_ns", lambda: one.clock.now if one is not None else START):
            one = Run(seed, trace)
            return one.go()
    except Exception as error:
        error.add_note(f"seed {seed}; to see it again: python -m tests.simulation {seed} --trace")
        raise
