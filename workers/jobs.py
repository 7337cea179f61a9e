"""Which worktree is looked at next, by which worker, and what becomes of that. Pure: the time is handed in.

The rules it keeps:

1. A worktree is clean, dirty, running, or running and dirty. It never has two jobs at once.
2. A mark makes it dirty. Marks during a run lead to exactly one more run, however many they are.
3. The first mark after a quiet while is due at once; others wait until marks pause, but never longer than a bound.
4. After a run a worktree rests for as long as the run took, so that a costly one cannot keep a worker to itself.
5. Marks are hints. The cadence has everything looked at in the end, sooner where somebody works, and later where
   no client looks on. It counts from the last full look, however many scoped ones came after.
6. A job is a lease. A worker that dies, loses the job or outstays the lease gives it back: once. Twice is a failure.
7. A failure is no value: the worktree stays dirty, is tried again after a growing pause, and says why.
8. Active before idle, and among those whoever is due longest; but nobody is idle who has waited beyond patience.
   Worktrees that fail hold at most half of the workers.
9. A worktree that was replaced starts anew, and what was under way for the former one counts for nothing.
10. A look may be scoped to the named paths only if they are all that changed since the last look, and only in the
    worker that took that look. Whatever else is the case makes it full, with the reason. No path is lost: a job that
    is given back gives back its paths too.
11. A worktree stays with its worker, and new ones go where their repository is, since much is known there already.
    They wait for it, but not for longer than a full look elsewhere would take.
"""

from __future__ import annotations

from collections import Counter
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
STEAL_NS: Final = 100 * MS
SPLIT_NS: Final = 50 * MS
UNSEEN: Final = 4  # how much longer the idle cadence is where no client looks on
PATH_NS: Final = MS // 4
FEW_PATHS: Final = 50
MOST_PATHS: Final = 1000
MAX_SCOPED: Final = 1000
LOUD_NS: Final = 5 * S

FIRST_SIGHT: Final = "first sight"
CADENCE: Final = "cadence"
WATCHED: Final = "newly watched"
UNWATCHED: Final = "not watched"
ELSEWHERE: Final = "another worker"
MANY_PATHS: Final = "many paths"
MANY_SCOPED: Final = "many scoped looks"
NEW_DIRECTORY: Final = "new directory"
FAILED: Final = "again after a failure"


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
    """One job in one worker's hands. ``void``: its worktree was replaced or removed meanwhile.

    ``full``: why everything has to be looked at; if empty, nothing but ``paths`` has changed in the tree.
    """

    __slots__ = ("again", "began_ns", "full", "holder", "id", "paths", "target", "until_ns", "void", "why")

    def __init__(
        self,
        id: int,
        target: Target,
        holder: Worker,
        why: str,
        full: str,
        paths: frozenset[bytes],
        again: bool,
        now: int,
        until: int,
    ) -> None:
        self.id, self.target, self.holder = id, target, holder
        self.why, self.full, self.paths, self.again = why, full, paths, again
        self.began_ns, self.until_ns = now, until
        self.void = False

    @property
    def address(self) -> Address:
        return self.holder.address

    @property
    def worker(self) -> str:
        return self.holder.name

    @property
    def told(self) -> str:
        """What marked it, and how much is to be looked at."""
        if not self.full:
            return f"{self.why}; scoped, {len(self.paths)} paths"
        return f"{self.why}; full" if self.full == self.why else f"{self.why}; full: {self.full}"


class Worker:
    __slots__ = ("address", "heard_ns", "lease", "name", "since_ns")

    def __init__(self, address: Address, name: str, now: int) -> None:
        self.address, self.name = address, name
        self.heard_ns = self.since_ns = now
        self.lease: Lease | None = None


class Entry:
    """One worktree. It is dirty while ``why`` is not empty.

    ``due``: when it may run next, be it for a mark or by the cadence. ``first``: the first mark that no run has
    served yet. ``not_before``: the end of its rest or back-off. ``paths``: what changed since the last run began;
    ``full``: why that is not all. ``home``: the name of the worker it belongs to; ``knows``: the one that took its
    last look, and so can take a scoped one.
    """

    __slots__ = (
        "active_until",
        "again",
        "due",
        "ended",
        "failures",
        "first",
        "full",
        "full_ended",
        "full_took",
        "home",
        "knows",
        "last_mark",
        "not_before",
        "paths",
        "reason",
        "scoped",
        "target",
        "watched",
        "why",
    )

    def __init__(self, target: Target, now: int) -> None:
        self.target = target
        self.why, self.reason = FIRST_SIGHT, ""
        self.first = self.due = now
        self.last_mark = self.not_before = self.active_until = self.ended = 0
        self.failures = 0
        self.again = False
        self.full, self.paths = FIRST_SIGHT, set[bytes]()
        self.full_ended = self.full_took = self.scoped = 0
        self.watched = False
        self.home = ""
        self.knows: Worker | None = None


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
        self._repositories: dict[str, str] = {}  # common directory → the name of its worker
        self._load: Counter[str] = Counter()  # name of a worker → how many worktrees it is home to
        self._steal_at: int | None = None
        self._interest: frozenset[str] | None = None
        self.outstayed: list[Address] = []

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
                self.mark(workspace, "base changed", now, full=True)
                continue
            if entry is not None:
                self._forget(workspace, "replaced")
            self._entries[workspace] = Entry(target, now)
            self._tell("queued", workspace, FIRST_SIGHT)
            self._schedule(workspace)
        shared = {target.common_dir for target in wanted.values()}
        for common in [common for common in self._repositories if common not in shared]:
            del self._repositories[common]

    def _forget(self, workspace: str, why: str) -> None:
        self._load[self._entries[workspace].home] -= 1
        del self._entries[workspace]
        self._ready.discard(workspace)
        if (lease := self._running.get(workspace)) is not None:
            lease.void = True
        self._tell("dropped", workspace, why)

    def mark(
        self,
        workspace: str,
        why: str,
        now: int,
        paths: Iterable[bytes] = (),
        full: bool = False,
        since: int = 0,
    ) -> None:
        """Something may have changed in this worktree: in its git directory, or at these paths.

        ``full``: more may have changed in the tree than is named. ``since``: that holds if a look was under way then
        or later.
        """
        entry = self._entries.get(workspace)
        if entry is None:
            return
        if full:
            self._widen(entry, why)
        elif since and (entry.ended >= since or workspace in self._running):
            self._widen(entry, NEW_DIRECTORY)
        elif not entry.full:
            entry.paths.update(paths)
            self._narrow(entry)
        quiet = now - entry.last_mark >= self.policy.debounce_ns and workspace not in self._running
        entry.last_mark = now
        if entry.why and why not in entry.why.split(", "):
            entry.why += f", {why}"
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

    def hint(self, workspace: str, why: str, now: int) -> None:
        """Somebody does something there. What it changes the watch tells, if there is one: then once in a while is
        enough, for agents are loud."""
        entry = self._entries.get(workspace)
        if entry is not None and not (entry.watched and now - entry.ended < LOUD_NS):
            self.mark(workspace, why, now)

    def _widen(self, entry: Entry, why: str) -> None:
        entry.full = entry.full or why
        entry.paths.clear()

    def _narrow(self, entry: Entry) -> None:
        """No more paths than can be looked at in less time than everything."""
        if len(entry.paths) > max(FEW_PATHS, min(entry.full_took // PATH_NS, MOST_PATHS)):
            self._widen(entry, MANY_PATHS)

    def watch(self, workspace: str, watched: bool, now: int, why: str = WATCHED) -> None:
        """Whether each edit in this worktree is told from now on. What came before it was may not have been."""
        entry = self._entries.get(workspace)
        if entry is None or entry.watched == watched:
            return
        entry.watched = watched
        if watched:
            self.mark(workspace, why, now, full=True)

    def touch(self, workspace: str, now: int) -> None:
        """Somebody works in this worktree."""
        entry = self._entries.get(workspace)
        if entry is None:
            return
        entry.active_until = now + ACTIVE_NS
        self._hasten(workspace, entry, now)

    def interest(self, projects: frozenset[str] | None, now: int) -> bool:
        """Clients look at these projects; ``None``: nobody knows, so it may be at any. True if that is news."""
        if projects == self._interest:
            return False
        self._interest = projects
        for workspace, entry in self._entries.items():
            self._hasten(workspace, entry, now)
        return True

    def _hasten(self, workspace: str, entry: Entry, now: int) -> None:
        if not entry.why and workspace not in self._running:
            sooner = max(self._cadence(entry, now), entry.not_before)
            if sooner < entry.due:
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

    def slept(self, ns: int) -> None:
        """For so long nobody could work, or be heard."""
        for lease in self._leases.values():
            lease.until_ns += ns
        for worker in self._workers.values():
            worker.heard_ns += ns

    def expire(self, now: int) -> None:
        """End the leases that are over, and forget the workers that are not heard of."""
        for lease in [lease for lease in self._leases.values() if lease.until_ns <= now]:
            self.outstayed.append(lease.address)
            self.lost(lease.address, "the worker outstayed its lease", now)
        for worker in [w for w in self._workers.values() if w.lease is None and now - w.heard_ns > SILENT_NS]:
            del self._workers[worker.address]

    def assign(self, now: int) -> list[Lease]:
        """Give jobs that are due to workers that are idle. The caller hands them over."""
        self.expire(now)
        self._ripen(now)
        self._steal_at = None
        idle = sum(1 for worker in self._workers.values() if worker.lease is None)
        if not idle or not self._ready:
            return []
        named = {worker.name: worker for worker in self._workers.values()}
        most = max(1, len(self._workers) // 2)
        failing = sum(1 for lease in self._leases.values() if self._doubtful(lease.target.workspace))
        leases: list[Lease] = []
        for _, _, workspace in sorted(self._rank(workspace, now) for workspace in self._ready):
            if len(leases) == idle:
                break
            doubtful = self._doubtful(workspace)
            if doubtful and failing >= most:
                continue
            entry = self._entries[workspace]
            worker = self._worker_for(entry, named, now)
            if worker is not None:
                failing += doubtful
                leases.append(self._lease(workspace, entry, worker, now))
        return leases

    def _rank(self, workspace: str, now: int) -> tuple[bool, int, str]:
        entry = self._entries[workspace]
        return entry.active_until <= now and now - entry.due <= PATIENCE_NS, entry.due, workspace

    def _worker_for(self, entry: Entry, named: dict[str, Worker], now: int) -> Worker | None:
        """Its own worker, or its repository's; if that is busy for too long, whoever is idle and has least."""
        owner, bound = named.get(entry.home), max(STEAL_NS, entry.full_took)
        if owner is None:
            owner, bound = named.get(self._repositories.get(entry.target.common_dir, "")), SPLIT_NS
        if owner is not None:
            if owner.lease is None:
                return owner
            if now - entry.due < bound:
                self._steal_at = min(self._steal_at or entry.due + bound, entry.due + bound)
                return None
        idle = [worker for worker in self._workers.values() if worker.lease is None]
        return min(idle, key=lambda worker: (self._load[worker.name], worker.since_ns))

    def _lease(self, workspace: str, entry: Entry, worker: Worker, now: int) -> Lease:
        until = now + self.policy.deadline_ns + LEASE_MARGIN_NS
        full = self._why_full(entry, worker, now)
        paths = frozenset() if full else frozenset(entry.paths)
        lease = Lease(self._id, entry.target, worker, entry.why, full, paths, entry.again, now, until)
        self._id += 1
        self._leases[lease.id] = self._running[workspace] = worker.lease = lease
        self._ready.discard(workspace)
        entry.why = entry.full = ""
        entry.paths.clear()
        if entry.home != worker.name:
            self._load[entry.home] -= 1
            self._load[worker.name] += 1
            entry.home = worker.name
        if all(other.name != self._repositories.get(entry.target.common_dir) for other in self._workers.values()):
            self._repositories[entry.target.common_dir] = worker.name
        self._tell("started", workspace, lease.told, worker.name)
        return lease

    def _why_full(self, entry: Entry, worker: Worker, now: int) -> str:
        """Why the named paths are not all that has to be looked at; empty if they are."""
        if entry.full:
            return entry.full
        if not entry.watched:
            return UNWATCHED
        if entry.knows is not worker:
            return ELSEWHERE
        if now >= self._cadence(entry, now):
            return CADENCE
        return MANY_SCOPED if entry.scoped >= MAX_SCOPED else ""

    def _doubtful(self, workspace: str) -> bool:
        entry = self._entries.get(workspace)
        return entry is not None and (entry.failures > 0 or entry.again)

    # ── outcomes ─────────────────────────────────────────────────────────────────────────────────

    def done(self, id: int, error: str, now: int, scoped: bool = False, why: str = "") -> Lease | None:
        """A job ended. Returns its lease if what it brought counts, ``None`` for a failure or a job that is void.

        ``scoped``: no more was looked at than was asked for; otherwise ``why`` may say why everything was.
        """
        lease = self._leases.get(id)
        if lease is None:
            return None
        self._release(lease)
        lease.holder.heard_ns = lease.holder.since_ns = now
        workspace = lease.target.workspace
        entry = self._entries.get(workspace)
        if lease.void or entry is None:
            self._tell("dropped", workspace, "its worktree was replaced meanwhile", lease.worker)
            self._schedule(workspace)
            return None
        took = now - lease.began_ns
        entry.ended = now
        if error:
            self._fail(entry, error, now, lease.worker, took)
            return None
        entry.failures, entry.reason, entry.again = 0, "", False
        entry.knows = lease.holder
        if scoped:
            entry.scoped += 1
        else:
            entry.full_ended, entry.full_took, entry.scoped = now, took, 0
        entry.not_before = now + min(took, self.policy.active_ns)
        if entry.why:
            entry.due = max(entry.due, entry.not_before)
        else:
            entry.due = max(self._cadence(entry, now), entry.not_before)
        how = lease.told if scoped or lease.full or not why else f"{lease.told}; turned full: {why}"
        self._tell("done", workspace, how, lease.worker, took)
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
            entry.ended = now
            if not entry.why:
                entry.why, entry.first = lease.why, now
            if lease.full:
                self._widen(entry, lease.full)
            elif not entry.full:
                entry.paths |= lease.paths
                self._narrow(entry)
            entry.again, entry.due = True, now
            self._tell("requeued", workspace, why, lease.worker)
            self._schedule(workspace)

    def _fail(self, entry: Entry, reason: str, now: int, worker: str, took: int) -> None:
        workspace = entry.target.workspace
        entry.failures += 1
        entry.reason, entry.again, entry.knows = reason, False, None
        self._widen(entry, FAILED)
        pause = min(FIRST_BACKOFF_NS << min(entry.failures - 1, 30), LONGEST_BACKOFF_NS)
        entry.not_before = entry.due = now + pause
        if not entry.why:
            entry.why, entry.first = FAILED, now
        self._tell("failed", workspace, reason, worker, took)
        self._tell("backoff", workspace, f"{pause // MS} ms, failed {entry.failures} in a row")
        self._schedule(workspace)

    def _release(self, lease: Lease) -> None:
        del self._leases[lease.id]
        del self._running[lease.target.workspace]
        lease.holder.lease = None

    # ── time ─────────────────────────────────────────────────────────────────────────────────────

    def next_wakeup(self, now: int) -> int | None:
        """When `assign` has something to do even if nothing is heard meanwhile; ``None``: never."""
        while self._timers and not self._current(*self._timers[0]):
            heappop(self._timers)
        times = [lease.until_ns for lease in self._leases.values()]
        if self._steal_at is not None:
            times.append(max(now, self._steal_at))
        if self._timers:
            times.append(max(now, self._timers[0][0]))
        return min(times, default=None)

    def _cadence(self, entry: Entry, now: int) -> int:
        """When everything is to be looked at again: counted from when it last was, and spread, lest all be due at once.

        Full each time, at the active pace too: this is what finds what the watch did not tell, and what agents do to a
        tree they do within reach of it.
        """
        active = entry.active_until > now
        seen = self._interest is None or entry.target.project in self._interest
        if active and seen:
            period = self.policy.active_ns
        else:
            period = self.policy.idle_ns * (1 if active or seen else UNSEEN)
        return entry.full_ended + period - period * (crc32(entry.target.workspace.encode()) % 100) // 1000

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
                if (later := self._cadence(entry, now)) > now:  # it is not active any more, or nobody looks on
                    entry.due = later
                    self._schedule(workspace)
                    continue
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
