"""Hints in, jobs out, looks on: what the watches and the feed say becomes jobs, and what workers answer becomes looks.

The aggregator knows nothing of jobs. The dispatcher follows its feed to learn where somebody works, where somebody
looks on, which worktrees come and go, and what has to be read again; of the `git` group there it only minds whether it
is there at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from pipeline import bus, wire
from pipeline.bridges import git as bridge
from pipeline.catalog.catalog import Catalog
from pipeline.catalog.database import CatalogUnavailable
from pipeline.domain.model import Look
from pipeline.follow import Follower
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.process import Process
from workers.jobs import MS, Lease, Policy, Table, unfit
from workers.trees import News, Trees
from workers.watch import GitWatch, Hit

if TYPE_CHECKING:
    import prometheus_client as prometheus

    from pipeline.catalog import Target

TOPIC: Final = b"job\0"
REREAD_S: Final = 60.0
SETTLE_S: Final = 0.05
AGAIN_S: Final = 2.0
RESEND_S: Final = 0.2
SLEPT_NS: Final = 3_000_000_000
MAX_WHYS: Final = 32
WATCHES_PER_REPOSITORY: Final = 6
BUCKETS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


async def main(process: Process) -> None:
    dispatcher = Dispatcher(process, Catalog(process.settings.database_url))
    try:
        dispatcher.start()
        await process.stopping.wait()
    finally:
        dispatcher.close()
        bus.close()


class Dispatcher:
    def __init__(self, process: Process, catalog: Catalog) -> None:
        run_dir, git = process.settings.run_dir, process.settings.git
        self._process, self._catalog = process, catalog
        self._loop = asyncio.get_running_loop()
        self._deadline_ms, self._max_watches = git.deadline_ms, git.max_watches
        self._metrics = _Metrics(process)
        # Ids go on where no former dispatcher's can be: an answer to one of its jobs is an answer to nobody.
        self._table = Table(Policy.of(git), first_id=now_ns())
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        self._timer: asyncio.Handle | None = None
        self._pidfds: dict[bytes, int] = {}
        self._reread = asyncio.Event()
        self._catalog_why = "not read yet"
        self._projects: dict[str, str] = {}
        self._skipped: dict[str, str] = {}
        self._complaints: dict[str, str] = {}  # what was logged already
        self._failures: dict[str, dict[str, str]] = {}  # what is about to be: reason → workspace → in words
        self._befell = 0
        self._started = self._scoped = self._spawned = self._late = 0
        self._full: Counter[str] = Counter()  # why → how many full looks
        self._drift = 0
        self._drifting: set[str] = set()
        self._run, self._seq = secrets.token_hex(4), 0
        self._last: dict[str, Look] = {}
        self._unsent: dict[str, Look] = {}
        self._resending: asyncio.Handle | None = None
        self._seen: dict[str, tuple[str, int]] = {}  # project → epoch and version that was acted upon
        self._git_watch = GitWatch(self._git_changed, self._unseen, process.log)
        self._trees = Trees(git.max_watches, self, process.log)
        self._doubt = False
        self._awake = now_ns()
        self._ingress = bus.Ingress(run_dir)
        self._tap = bus.Publisher(run_dir, "jobs-tap", bus.TAP_HIGH_WATER)
        self._workers = bus.JobsServer(run_dir, self._workers_say)
        self._follower = Follower(
            run_dir, changed=self._feed_changed, gone=self._project_gone, relook=self._relook, epoch=self._epoch
        )

    def start(self) -> None:
        self._process.before_beat = self._show
        self._tasks = [
            self._process.spawn(self._trees.run(), "trees"),
            self._process.spawn(self._git_watch.run(), "git watch"),
            self._process.spawn(self._keep_targets(), "targets"),
        ]

    def close(self) -> None:
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for handle in (self._timer, self._resending):
            if handle is not None:
                handle.cancel()
        for address in list(self._pidfds):
            self._forget_pid(address)
        self._git_watch.close()
        for end in (self._follower, self._workers, self._tap, self._ingress):
            end.close()
        self._catalog.close()

    # ── which worktrees there are ────────────────────────────────────────────────────────────────

    async def _keep_targets(self) -> None:
        """Read the catalog now, when lives change, and each minute. While it cannot be read, what was read holds."""
        while True:
            self._reread.clear()
            pause = REREAD_S
            try:
                targets = await asyncio.to_thread(self._catalog.targets)
            except CatalogUnavailable as error:
                if self._catalog_why != str(error):
                    self._process.log.warning("catalog unavailable", why=str(error))
                self._catalog_why, pause = str(error), AGAIN_S
            else:
                self._catalog_why = ""
                await self._retarget(targets)
                if self._git_watch.stuck:
                    pause = AGAIN_S
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._reread.wait(), pause)
                await asyncio.sleep(SETTLE_S)

    async def _retarget(self, targets: list[Target]) -> None:
        """Looks first, watches meanwhile: what was looked at before it was watched is marked once it is."""
        self._aim(targets)
        stuck, doubt, self._doubt = self._git_watch.stuck, self._doubt, False
        fit = [target for target in targets if not unfit(target)]
        await self._git_watch.follow(fit, doubt)
        if self._git_watch.stuck != stuck:
            self._aim(targets)
        self._trees.budget = self._room(fit)

    def _aim(self, targets: list[Target]) -> None:
        stuck = self._git_watch.stuck
        self._skipped = {target.workspace: why for target in targets if (why := unfit(target))}
        self._skipped |= dict.fromkeys(stuck, "its repository does not answer")
        fit = [target for target in targets if target.workspace not in self._skipped]
        self._projects = {target.workspace: target.project for target in fit}
        known = {target.workspace: target.incarnation for target in fit}
        for looks in (self._last, self._unsent):
            for workspace in [name for name, look in looks.items() if known.get(name) != look.incarnation]:
                del looks[workspace]
        self._drifting &= known.keys()
        self._trees.budget = self._room(fit)
        self._trees.follow(fit)
        now = now_ns()
        self._table.retarget(fit, now)
        for workspace in known:
            self._table.watch(workspace, self._trees.watched(workspace), now)
        self._pump()

    def _room(self, targets: list[Target]) -> int:
        """What is left of the budget for trees. Git directories come first: they are few, and tell most."""
        directories = len({target.git_dir for target in targets})
        expected = directories + WATCHES_PER_REPOSITORY * len({target.common_dir for target in targets})
        return max(0, self._max_watches - max(expected, self._git_watch.watches))

    # ── hints ────────────────────────────────────────────────────────────────────────────────────

    def _mark(self, workspace: str, why: str, full: bool = False) -> None:
        self._table.mark(workspace, why, now_ns(), full=full)
        self._pump_soon()

    def _touch(self, workspace: str) -> None:
        self._table.touch(workspace, now_ns())
        self._trees.touch(workspace)
        self._git_watch.stir()

    def _git_changed(self, hits: set[Hit]) -> None:
        for workspace, kind in sorted(hits):
            if kind in ("index", "head", "operation"):  # a base that moves is nobody's work in all who have it
                self._touch(workspace)
            if kind == "rules":
                self._trees.reopen(workspace, kind)
            # A worker sees for itself what git did; only settings and rules reach every file.
            self._mark(workspace, kind, full=kind in ("config", "rules"))

    def _unseen(self, workspaces: set[str]) -> None:
        for workspace in workspaces:
            self._mark(workspace, "git directory watched anew")

    def edited(self, workspace: str, news: News) -> None:
        """As `workers.trees.Listener`."""
        self._touch(workspace)
        self._table.mark(workspace, news.full or "tree", now_ns(), news.paths, bool(news.full), news.since)
        self._pump_soon()

    def watching(self, workspace: str, watched: bool, why: str) -> None:
        """As `workers.trees.Listener`."""
        self._table.watch(workspace, watched, now_ns(), why)
        if watched:
            self._pump_soon()
        elif why:
            self._mark(workspace, why, full=True)

    def _relook(self, relook: wire.Relook) -> None:
        if relook.group == "git":
            self._mark(relook.workspace, "relook", full=True)

    def _epoch(self, _: str) -> None:
        self._unsent.update(self._last)
        self._send_unsent()

    def _project_gone(self, project: str) -> None:
        self._seen.pop(project, None)
        self._reread.set()

    def _feed_changed(self, projects: set[str]) -> None:
        for project in projects:
            for workspace, patch in self._news(project):
                if patch is None or "life" in patch:
                    self._reread.set()
                if patch is None:
                    continue
                if "life" in patch and not self._holds_git(project, workspace) and workspace in self._last:
                    self._unsent[workspace] = self._last[workspace]
                if "sessions" in patch or "terminal" in patch:
                    self._touch(workspace)
                    self._table.hint(workspace, "activity", now_ns())
                    self._pump_soon()
        self._send_unsent()

    def _news(self, project: str) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """What changed in a project since this was last asked. Of another epoch nobody knows what is new in it, only
        which workspaces it has."""
        replica = self._follower.replicas[project]
        ledger = replica.ledger
        if ledger is None:
            return
        epoch, version = self._seen.get(project, ("", 0))
        self._seen[project] = replica.epoch, ledger.version
        patch = ledger.since(version) if epoch == replica.epoch else None
        if patch is None:
            patch = {workspace: {"life": {}} for workspace in ledger.entries}
        yield from patch.items()

    def _holds_git(self, project: str, workspace: str) -> bool:
        ledger = self._follower.replicas[project].ledger
        entry = None if ledger is None else ledger.entries.get(workspace)
        group = None if entry is None else entry.groups.get("git")
        return group is not None and bool(group.values)

    # ── jobs ─────────────────────────────────────────────────────────────────────────────────────

    def _pump_soon(self) -> None:
        """Once for all that one batch of messages brings."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Give out what is due, and sleep until something is."""
        if self._closed:  # a watch may have had a last word
            return
        self._trees.drain()  # a job has all paths that changed before it was given out
        now = self._now()
        for lease in self._table.assign(now):
            self._started += 1
            self._workers.send(lease.address, _job(lease, self._deadline_ms))
        self._end_outstayed()
        self._tell()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wakeup = self._table.next_wakeup(now)
        if wakeup is not None:
            self._timer = self._loop.call_later(max(MS, wakeup - now) / 1e9, self._pump)

    def _now(self) -> int:
        """This is read with each beat at least: if it was not, the host slept, or this process, and leases go on."""
        now, before = now_ns(), self._awake
        self._awake = now
        if now - before > SLEPT_NS:
            self._table.slept(now - before)
        return now

    def _end_outstayed(self) -> None:
        """A worker that has not come to an end by now hangs in the kernel. It is ended, for another to be started, and
        its repository is asked whether it answers at all."""
        outstayed, self._table.outstayed = self._table.outstayed, []
        for address in outstayed:
            self._ask_whether_all_answer()
            if (fd := self._pidfds.get(address)) is not None:
                self._process.log.warning("worker hangs", why="it outstayed its lease, and is ended")
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)

    def _ask_whether_all_answer(self) -> None:
        self._doubt = True
        self._reread.set()

    def _tell(self) -> None:
        told, self._table.told = self._table.told, []
        for event, workspace, why, worker, took_ms in told:
            self._metrics.count(event, took_ms)
            if event == "failed" and self._complaints.get(workspace) != why:
                self._complaints[workspace] = why
                self._failures.setdefault(why.partition(":")[0], {})[workspace] = why
            elif event in ("done", "dropped"):
                self._complaints.pop(workspace, None)
            if self._tap.watched:
                project = self._projects.get(workspace, "")
                told_of = wire.JobEvent(event, workspace, why, wall_ms(), project, worker, took_ms)
                self._tap.publish(TOPIC, told_of)

    def _complain(self) -> None:
        """One line per reason, however many worktrees it befell at once: said when no more join them."""
        count, self._befell = self._befell, sum(map(len, self._failures.values()))
        if self._befell > count:
            return
        self._befell = 0
        for failed in self._failures.values():
            workspace, why = next(iter(failed.items()))
            if len(failed) == 1:
                self._process.log.warning("look failed", workspace=workspace, why=why)
            else:
                self._process.log.warning("looks failed", worktrees=len(failed), first=workspace, why=why)
        self._failures.clear()

    def _workers_say(self, messages: list[tuple[bytes, wire.WorkerSays]]) -> None:
        self._trees.drain()  # what happens from here on, a look that has ended did not see
        now = now_ns()
        for address, message in messages:
            if isinstance(message, wire.Ready):
                if self._table.ready(address, message.worker, now):
                    self._mind(address, message.pid)
            else:
                self._take(message, now)
        self._pump()

    def _take(self, done: wire.Done, now: int) -> None:
        known = self._table.holds(done.id)
        lease = self._table.done(done.id, done.error, now, done.scoped, done.why)
        self._spawned += done.spawned
        if done.error.startswith(wire.UNRESPONSIVE):
            self._ask_whether_all_answer()
        if lease is None:
            self._late += not known
            return
        self._count(done, lease)
        target, former = lease.target, self._last.get(done.workspace)
        at_ms = former.at_ms if former is not None and former.value == done.git else wall_ms()
        look = bridge.look(done, target.project, target.incarnation, CLOCK, at_ms)
        if look is not None:
            # Runs of one worktree follow each other, so their order is known better than any clock could tell.
            self._seq += 1
            look = replace(look, run=self._run, seq=self._seq)
            self._last[done.workspace] = self._unsent[done.workspace] = look
            self._send_unsent()

    def _count(self, done: wire.Done, lease: Lease) -> None:
        why = (lease.full or done.why or "not told").partition(";")[0]
        if done.scoped:
            self._scoped += 1
        else:
            why = why if why in self._full or len(self._full) < MAX_WHYS else "other"
            self._full[why] += 1
        self._metrics.look(done.scoped, why, done.drift)
        if not done.drift:
            self._drifting -= set() if done.scoped else {done.workspace}
            return
        self._drift += done.drift
        if done.workspace not in self._drifting:
            self._drifting.add(done.workspace)
            self._process.log.warning("drift found by a full look", workspace=done.workspace, paths=done.drift, why=why)

    def _mind(self, address: bytes, pid: int) -> None:
        """Have the kernel say when a worker dies: its job is given to another one at once."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._table.lost(address, "the worker died", now_ns())
            return
        except OSError:  # no descriptors left, or a kernel without: the lease covers
            return
        self._forget_pid(address)
        self._pidfds[address] = fd
        self._loop.add_reader(fd, self._died, address)

    def _died(self, address: bytes) -> None:
        self._forget_pid(address)
        self._table.lost(address, "the worker died", now_ns())
        self._pump()

    def _forget_pid(self, address: bytes) -> None:
        fd = self._pidfds.pop(address, None)
        if fd is not None:
            self._loop.remove_reader(fd)
            os.close(fd)

    # ── looks ────────────────────────────────────────────────────────────────────────────────────

    def _send_unsent(self) -> None:
        """Hand over what the aggregator has not got. While it is away, the latest look per worktree is kept."""
        for workspace, look in list(self._unsent.items()):
            if not self._ingress.send(look):
                if self._resending is None:
                    self._resending = self._loop.call_later(RESEND_S, self._resend)
                return
            del self._unsent[workspace]

    def _resend(self) -> None:
        self._resending = None
        self._send_unsent()

    # ── what is there to see ─────────────────────────────────────────────────────────────────────

    def _show(self) -> None:
        self._now()
        self._note_interest()
        self._complain()
        table, failing = self._table, self._table.failing()
        degraded = "; ".join(filter(None, (self._git_watch.degraded, self._trees.degraded)))
        unwatched = self._trees.unwatched()
        self._process.figures.update(
            worktrees=len(table.workspaces),
            workers=table.workers,
            queue=table.queue,
            running=table.running,
            failing=len(failing),
            failing_why=next((f"{name}: {why}" for name, (_, why) in sorted(failing.items())), ""),
            skipped=len(self._skipped),
            skipped_why=next((f"{name}: {why}" for name, why in sorted(self._skipped.items())), ""),
            git_looks=self._started,
            looks_scoped=self._scoped,
            looks_full=self._full.total(),
            looks_full_why=", ".join(f"{why} {count}" for why, count in self._full.most_common()),
            git_processes=self._spawned,
            git_drift=self._drift,
            late=self._late,
            unsent=len(self._unsent),
            bad=self._workers.bad + self._follower.bad,
            watches=self._git_watch.watches + self._trees.watches,
            watch_budget=self._max_watches,
            watched_trees=self._trees.open,
            unwatched_trees=unwatched.total(),
            unwatched_why=", ".join(f"{count} {why}" for why, count in unwatched.most_common()),
            watch_overflows=self._trees.overflows,
            watch_degraded=degraded,
            catalog=self._catalog_why or "ok",
            epoch=self._follower.epoch,
        )
        no_workers = "" if table.workers else "no worker is there"
        all_fail = f"every look fails, {why}" if (why := self._why_all_fail(failing)) else ""
        reason = self._catalog_why or no_workers or all_fail or self._git_watch.degraded
        if self._process.state in ("running", "degraded"):
            self._process.state = "degraded" if reason else "running"
            self._process.figures["reason"] = reason

    def _note_interest(self) -> None:
        """Where clients look on. While the aggregator is not heard, nobody knows."""
        head = None if self._follower.stale() else self._follower.head
        seen = None if head is None else frozenset(name for name, project in head.heads.items() if project.watched)
        if self._table.interest(seen, now_ns()):
            self._pump_soon()

    def _why_all_fail(self, failing: dict[str, tuple[int, str]]) -> str:
        """The first reason, if no worktree at all can be looked at; single ones are told by the figures alone."""
        if not failing or len(failing) < len(self._table.workspaces):
            return ""
        name, (_, why) = min(failing.items())
        return f"{name}: {why}"


def _job(lease: Lease, deadline_ms: int) -> wire.Job:
    target = lease.target
    return wire.Job(
        id=lease.id,
        workspace=target.workspace,
        worktree=target.path,
        git_dir=target.git_dir,
        common_dir=target.common_dir,
        inode=target.inode,
        base=target.base,
        deadline_ms=deadline_ms,
        full=bool(lease.full),
        why=lease.full or lease.why,
        paths=tuple(lease.paths),
    )


class _Metrics:
    def __init__(self, process: Process) -> None:
        from prometheus_client import Counter, Histogram

        registry = process.registry
        self.jobs: prometheus.Counter = Counter("treewire_jobs", "What became of jobs.", ["outcome"], registry=registry)
        self.seconds: prometheus.Histogram = Histogram(
            "treewire_job_seconds", "From giving a job out to its answer.", buckets=BUCKETS, registry=registry
        )
        self.looks: prometheus.Counter = Counter(
            "treewire_git_looks", "Looks at worktrees, full or scoped.", ["scope"], registry=registry
        )
        self.full: prometheus.Counter = Counter(
            "treewire_git_full_looks", "Full looks, by what made them so.", ["why"], registry=registry
        )
        self.drift: prometheus.Counter = Counter(
            "treewire_git_drift", "Paths that a full look had to correct.", registry=registry
        )

    def count(self, event: str, took_ms: int) -> None:
        if event in ("done", "failed", "requeued"):
            self.jobs.labels(event).inc()
        if event == "done":
            self.seconds.observe(took_ms / 1e3)

    def look(self, scoped: bool, why: str, drift: int) -> None:
        self.looks.labels("scoped" if scoped else "full").inc()
        if not scoped:
            self.full.labels(why).inc()
        self.drift.inc(drift)
