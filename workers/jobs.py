"""Which worktree is looked at next, by which worker, and what becomes of that. Pure: the time is handed in.

The rules it keeps:

1. A worktree is clean, dirty, running, or running and dirty. It never has two jobs at once.
2. A mark makes it dirty. Marks during a run lead to exactly one more run, however many they are.
3. The first mark after a quiet while is due at once; others wait until marks pause, but never longer than a bound.
4. After a run a worktree rests for as long as the run took, so that a costly one cannot keep a worker to itself.
5. Marks are hints. The cadence marks every worktree in the end, sooner where somebody works.
6. A job is a lease. A worker that dies, loses the job or outstays the lease gives it back: once. Twice is a failure.
7. A failure is no value: the worktree stays dirty, is tried again after a growing pause, and says why.
8. Active before idle, and among those whoever is due longest; but nobody is idle who has waited beyond patience.
   Worktrees that fail hold at most half of the workers.
9. A worktree that was replaced starts anew, and what was under way for the former one counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias
from zlib import crc32

from msgspec import Struct

if TYPE_CHECKING:
    from pipeline.catalog import Target
    from pipeline.runtime.settings import Git as Settings

State: TypeAlias = Literal["clean", "dirty", "running", "running+dirty"]
Event: TypeAlias = Literal["queued", "started", "done", "failed", "requeued", "dropped", "backoff"]
Address: TypeAlias = bytes

MS: Final = 1_000_000
S: Final = 1_000_000_000

ACTIVE_NS: Final = 120 * S
PATIENCE_NS: Final = 5 * S
LEASE_MARGIN_NS: Final = 2 * S
SILENT_NS: Final = 3 * S
JOB_LOST_NS: Final = 1500 * MS
FIRST_BACKOFF_NS: Final = 1 * S
LONGEST_BACKOFF_NS: Final = 60 * S
SPARE_TIMERS: Final = 64
FIRST_SIGHT: Final = "first sight"
CADENCE: Final = "cadence"


class Policy(Struct, frozen=True):
    """How long things take, in nanoseconds."""

    deadline_ns: int
    active_ns: int
    idle_ns: int
    debounce_ns: int
    max_wait_ns: int

    @classmethod
    def of(cls, git: Settings) -> Policy:
        return cls(
            deadline_ns=git.deadline_ms * MS,
            active_ns=int(git.active_s * S),
            idle_ns=int(git.idle_s * S),
            debounce_ns=git.debounce_ms * MS,
            max_wait_ns=git.max_wait_ms * MS,
        )


class Told(NamedTuple):
    """What happened, for whoever watches."""

    event: Event
    workspace: str
    why: str
    worker: str = ""
    took_ms: int = 0


class Lease:
    """One job in one worker's hands. ``void``: its worktree was replaced or removed meanwhile."""

    __slots__ = ("address", "again", "began_ns", "id", "target", "until_ns", "void", "why", "worker")

    def __init__(self, id: int, target: Target, worker: Worker, why: str, again: bool, now: int, until: int) -> None:
        self.id, self.target, self.why, self.again = id, target, why, again
        self.address, self.worker = worker.address, worker.name
        self.began_ns, self.until_ns = now, until
        self.void = False


class Worker:
    __slots__ = ("address", "heard_ns", "lease", "name", "since_ns")

    def __init__(self, address: Address, name: str, now: int) -> None:
        self.address, self.name = address, name
        self.heard_ns = self.since_ns = now
        self.lease: Lease | None = None


class Entry:
    """One worktree. It is dirty while ``why`` is not empty.

    ``due``: when it may run next, be it for a mark or by the cadence. ``first``: the first mark that no run has
    served yet. ``not_before``: the end of its rest or back-off.
    """

    __slots__ = (
        "active_until",
        "again",
        "due",
        "ended",
        "failures",
        "first",
        "last_mark",
        "not_before",
        "reason",
        "target",
        "why",
        "worker",
    )

    def __init__(self, target: Target, now: int) -> None:
        self.target = target
        self.why, self.reason, self.worker = FIRST_SIGHT, "", ""
        self.first = self.due = now
        self.last_mark = self.not_before = self.ended = self.active_until = 0
        self.failures = 0
        self.again = False


class Table:
    """All worktrees, all workers, and who has which job."""

    def __init__(self, policy: Policy, first_id: int = 1) -> None:
        self.policy = policy
        self.told: list[Told] = []
        self._id = first_id
        self._entries: dict[str, Entry] = {}
        self._leases: dict[int, Lease] = {}
        self._running: dict[str, Lease] = {}
        self._workers: dict[Address, Worker] = {}
        self._ready: set[str] = set()
        self._timers: list[tuple[int, str]] = []

    # ── worktrees ────────────────────────────────────────────────────────────────────────────────

    def retarget(self, targets: Iterable[Target], now: int) -> None:
        """These worktrees and no others. Those never seen, and those replaced, are looked at first of all."""
        wanted = {target.workspace: target for target in targets}
        for workspace in [name for name in self._entries if name not in wanted]:
            self._forget(workspace, "no longer there")
        for workspace, target in wanted.items():
            entry = self._entries.get(workspace)
            if entry is not None and entry.target == target:
                continue
            if entry is not None and _same_place(entry.target, target):
                entry.target = target
                self.mark(workspace, "base changed", now)
                continue
            if entry is not None:
                self._forget(workspace, "replaced")
            self._entries[workspace] = Entry(target, now)
            self._tell("queued", workspace, FIRST_SIGHT)
            self._schedule(workspace)

    def _forget(self, workspace: str, why: str) -> None:
        del self._entries[workspace]
        self._ready.discard(workspace)
        if (lease := self._running.get(workspace)) is not None:
            lease.void = True
        self._tell("dropped", workspace, why)

    def mark(self, workspace: str, why: str, now: int) -> None:
        """Something may have changed in this worktree."""
        entry = self._entries.get(workspace)
        if entry is None:
            return
        quiet = now - entry.last_mark >= self.policy.debounce_ns and workspace not in self._running
        entry.last_mark = now
        if workspace in self._ready:
            return
        if not entry.why:
            entry.why, entry.first = why, now
            opens = now if quiet else now + self.policy.debounce_ns
            self._tell("queued", workspace, why)
        elif entry.due <= now:
            return
        else:
            opens = min(now + self.policy.debounce_ns, entry.first + self.policy.max_wait_ns)
        entry.due = max(opens, entry.not_before)
        self._schedule(workspace)

    def mark_all(self, why: str, now: int) -> None:
        for workspace in self._entries:
            self.mark(workspace, why, now)

    def touch(self, workspace: str, now: int) -> None:
        """Somebody works in this worktree."""
        entry = self._entries.get(workspace)
        if entry is None:
            return
        entry.active_until = now + ACTIVE_NS
        if not entry.why and workspace not in self._running and (sooner := self._cadence(entry, now)) < entry.due:
            entry.due = sooner
            self._schedule(workspace)

    # ── workers ──────────────────────────────────────────────────────────────────────────────────

    def ready(self, address: Address, name: str, now: int) -> bool:
        """A worker says that it is idle. True if it was not known."""
        worker = self._workers.get(address)
        new = worker is None
        if worker is None:
            worker = self._workers[address] = Worker(address, name, now)
        worker.heard_ns = now
        lease = worker.lease
        if lease is not None and now - lease.began_ns > JOB_LOST_NS:
            self._give_back(lease, "the job did not reach its worker", now)
            worker.since_ns = now
        return new

    def lost(self, address: Address, why: str, now: int) -> None:
        """A worker is no more."""
        worker = self._workers.pop(address, None)
        if worker is not None and worker.lease is not None:
            self._give_back(worker.lease, why, now)

    def expire(self, now: int) -> None:
        """End the leases that are over, and forget the workers that are not heard of."""
        for lease in [lease for lease in self._leases.values() if lease.until_ns <= now]:
            self.lost(lease.address, "the worker outstayed its lease", now)
        for worker in [w for w in self._workers.values() if w.lease is None and now - w.heard_ns > SILENT_NS]:
            del self._workers[worker.address]

    def assign(self, now: int) -> list[Lease]:
        """Give jobs that are due to workers that are idle. The caller hands them over."""
        self.expire(now)
        self._ripen(now)
        idle = sorted((w for w in self._workers.values() if w.lease is None), key=lambda w: w.since_ns)
        leases = []
        while idle and (workspace := self._next(now)) is not None:
            entry = self._entries[workspace]
            # Whoever looked at it last has its private index at hand.
            worker = next((w for w in idle if w.name == entry.worker), idle[0])
            idle.remove(worker)
            leases.append(self._lease(workspace, entry, worker, now))
        return leases

    def _lease(self, workspace: str, entry: Entry, worker: Worker, now: int) -> Lease:
        until = now + self.policy.deadline_ns + LEASE_MARGIN_NS
        lease = Lease(self._id, entry.target, worker, entry.why, entry.again, now, until)
        self._id += 1
        self._leases[lease.id] = self._running[workspace] = worker.lease = lease
        self._ready.discard(workspace)
        entry.why, entry.worker = "", worker.name
        self._tell("started", workspace, lease.why, worker.name)
        return lease

    def _next(self, now: int) -> str | None:
        most = max(1, len(self._workers) // 2)
        failing = sum(1 for lease in self._leases.values() if self._doubtful(lease.target.workspace))
        best: tuple[bool, int, str] | None = None
        for workspace in self._ready:
            if failing >= most and self._doubtful(workspace):
                continue
            entry = self._entries[workspace]
            idle = entry.active_until <= now and now - entry.due <= PATIENCE_NS
            rank = (idle, entry.due, workspace)
            if best is None or rank < best:
                best = rank
        return None if best is None else best[2]

    def _doubtful(self, workspace: str) -> bool:
        entry = self._entries.get(workspace)
        return entry is not None and (entry.failures > 0 or entry.again)

    # ── outcomes ─────────────────────────────────────────────────────────────────────────────────

    def done(self, id: int, error: str, now: int) -> Lease | None:
        """A job ended. Returns its lease if what it brought counts, ``None`` for a failure or a job that is void."""
        lease = self._leases.get(id)
        if lease is None:
            return None
        self._release(lease)
        worker = self._workers[lease.address]
        worker.heard_ns = worker.since_ns = now
        workspace = lease.target.workspace
        entry = self._entries.get(workspace)
        if lease.void or entry is None:
            self._tell("dropped", workspace, "its worktree was replaced meanwhile", lease.worker)
            self._schedule(workspace)
            return None
        took = now - lease.began_ns
        if error:
            self._fail(entry, error, now, lease.worker, took)
            return None
        entry.failures, entry.reason, entry.again = 0, "", False
        entry.ended = now
        entry.not_before = now + min(took, self.policy.active_ns)
        if entry.why:
            entry.due = max(entry.due, entry.not_before)
        else:
            entry.due = self._cadence(entry, now)
        self._tell("done", workspace, lease.why, lease.worker, took)
        self._schedule(workspace)
        return lease

    def _give_back(self, lease: Lease, why: str, now: int) -> None:
        self._release(lease)
        workspace = lease.target.workspace
        entry = self._entries.get(workspace)
        if lease.void or entry is None:
            self._schedule(workspace)
        elif lease.again:
            self._fail(entry, why, now, lease.worker, now - lease.began_ns)
        else:
            if not entry.why:
                entry.why, entry.first = lease.why, now
            entry.again, entry.due = True, now
            self._tell("requeued", workspace, why, lease.worker)
            self._schedule(workspace)

    def _fail(self, entry: Entry, reason: str, now: int, worker: str, took: int) -> None:
        workspace = entry.target.workspace
        entry.failures += 1
        entry.reason, entry.again = reason, False
        pause = min(FIRST_BACKOFF_NS << min(entry.failures - 1, 30), LONGEST_BACKOFF_NS)
        entry.not_before = entry.due = now + pause
        if not entry.why:
            entry.why, entry.first = "again after a failure", now
        self._tell("failed", workspace, reason, worker, took)
        self._tell("backoff", workspace, f"{pause // MS} ms, failed {entry.failures} in a row")
        self._schedule(workspace)

    def _release(self, lease: Lease) -> None:
        del self._leases[lease.id]
        del self._running[lease.target.workspace]
        if (worker := self._workers.get(lease.address)) is not None:
            worker.lease = None

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    def next_wakeup(self, now: int) -> int | None:
        """When `assign` has something to do even if nothing is heard meanwhile; ``None``: never."""
        while self._timers and not self._current(*self._timers[0]):
            heappop(self._timers)
        times = [lease.until_ns for lease in self._leases.values()]
        if self._timers:
            times.append(max(now, self._timers[0][0]))
        return min(times, default=None)

    def _cadence(self, entry: Entry, now: int) -> int:
        """Counted from the end of its last run, and spread, lest all be due at once."""
        period = self.policy.active_ns if entry.active_until > now else self.policy.idle_ns
        return entry.ended + period - period * (crc32(entry.target.workspace.encode()) % 100) // 1000

    def _schedule(self, workspace: str) -> None:
        if (entry := self._entries.get(workspace)) is None:
            return
        heappush(self._timers, (entry.due, workspace))
        if len(self._timers) > 2 * len(self._entries) + SPARE_TIMERS:
            # Most no longer hold: each mark and each run leaves one behind.
            self._timers = [
                (entry.due, name) for name, entry in self._entries.items() if self._current(entry.due, name)
            ]
            heapify(self._timers)

    def _current(self, due: int, workspace: str) -> bool:
        """Whether this timer still holds. What comes due during a run waits for its end, which sets a new one."""
        entry = self._entries.get(workspace)
        waits = workspace not in self._running and workspace not in self._ready
        return entry is not None and entry.due == due and waits

    def _ripen(self, now: int) -> None:
        while self._timers and self._timers[0][0] <= now:
            due, workspace = heappop(self._timers)
            if not self._current(due, workspace):
                continue
            entry = self._entries[workspace]
            if not entry.why:
                entry.why, entry.first = CADENCE, now
                self._tell("queued", workspace, CADENCE)
            self._ready.add(workspace)

    # ── what is there to see ─────────────────────────────────────────────────────────────────────

    def state(self, workspace: str) -> State:
        dirty = bool(self._entries[workspace].why)
        if workspace in self._running:
            return "running+dirty" if dirty else "running"
        return "dirty" if dirty else "clean"

    def holds(self, id: int) -> bool:
        """Whether this job is still in somebody's hands."""
        return id in self._leases

    @property
    def workspaces(self) -> list[str]:
        return list(self._entries)

    @property
    def workers(self) -> int:
        return len(self._workers)

    @property
    def running(self) -> int:
        return len(self._leases)

    @property
    def queue(self) -> int:
        """Worktrees that are due and wait for a worker."""
        return len(self._ready)

    def failing(self) -> dict[str, tuple[int, str]]:
        """Workspace → how often in a row it failed, and why the last time."""
        return {name: (entry.failures, entry.reason) for name, entry in self._entries.items() if entry.failures}

    def _tell(self, event: Event, workspace: str, why: str, worker: str = "", took: int = 0) -> None:
        self.told.append(Told(event, workspace, why, worker, took // MS))


def unfit(target: Target) -> str:
    """Why a job for this worktree cannot be put on the bus; empty if it can."""
    for path in (target.path, target.git_dir, target.common_dir):
        if not path.startswith("/"):
            return "its path is not absolute"
        try:
            path.encode()
        except UnicodeEncodeError:
            return "its path is not UTF-8"
    return ""


def _same_place(a: Target, b: Target) -> bool:
    """Only the branch that it is measured against differs."""
    return (a.incarnation, a.project, a.path, a.git_dir, a.common_dir, a.inode) == (
        b.incarnation,
        b.project,
        b.path,
        b.git_dir,
        b.common_dir,
        b.inode,
    )
