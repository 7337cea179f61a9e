"""Hints in, jobs out, looks on: what the watches and the feed say becomes jobs, and what workers answer becomes looks.

The aggregator knows nothing of jobs. The dispatcher follows its feed to learn where somebody works, which worktrees
come and go, and what has to be read again; of the `git` group there it only minds whether it is there at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
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
from workers.trees import Trees, What
from workers.watch import GitWatch, Hit

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

    from pipeline.catalog import Target

TOPIC: Final = b"job\0"
REREAD_S: Final = 60.0
SETTLE_S: Final = 0.05
AGAIN_S: Final = 2.0
RESEND_S: Final = 0.2
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
        self._deadline_ms = git.deadline_ms
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
        self._started = 0
        self._late = 0
        self._run, self._seq = secrets.token_hex(4), 0
        self._last: dict[str, Look] = {}
        self._unsent: dict[str, Look] = {}
        self._resending: asyncio.Handle | None = None
        self._seen: dict[str, tuple[str, int]] = {}  # project → epoch and version that was acted upon
        self._git_watch = GitWatch(self._git_changed, self._watch_lost, process.log)
        self._trees = Trees(git.max_watches, self._tree_changed, process.log)
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
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._reread.wait(), pause)
                await asyncio.sleep(SETTLE_S)

    async def _retarget(self, targets: list[Target]) -> None:
        self._skipped = {target.workspace: why for target in targets if (why := unfit(target))}
        fit = [target for target in targets if target.workspace not in self._skipped]
        await self._git_watch.follow(fit)
        self._trees.follow(fit)
        self._projects = {target.workspace: target.project for target in fit}
        known = {target.workspace: target.incarnation for target in fit}
        for looks in (self._last, self._unsent):
            for workspace in [name for name, look in looks.items() if known.get(name) != look.incarnation]:
                del looks[workspace]
        self._table.retarget(fit, now_ns())
        self._pump()

    # ── hints ────────────────────────────────────────────────────────────────────────────────────

    def _mark(self, workspace: str, why: str) -> None:
        self._table.mark(workspace, why, now_ns())
        self._pump_soon()

    def _touch(self, workspace: str) -> None:
        self._table.touch(workspace, now_ns())
        self._trees.touch(workspace)

    def _git_changed(self, hits: set[Hit]) -> None:
        for workspace, kind in hits:
            self._touch(workspace)
            self._mark(workspace, kind)

    def _tree_changed(self, workspace: str, what: What) -> None:
        if what == "tree":
            self._touch(workspace)
        self._mark(workspace, what)

    def _watch_lost(self) -> None:
        self._table.mark_all("the watch ended", now_ns())
        self._pump_soon()

    def _relook(self, relook: wire.Relook) -> None:
        if relook.group == "git":
            self._mark(relook.workspace, "relook")

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
                # A terminal is loud: what it wrote, the watch tells; without one, it is a hint like any other.
                if "sessions" in patch or ("terminal" in patch and not self._trees.watched(workspace)):
                    self._mark(workspace, "activity")
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
        now = now_ns()
        for lease in self._table.assign(now):
            self._started += 1
            self._workers.send(lease.address, _job(lease, self._deadline_ms))
        self._tell()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wakeup = self._table.next_wakeup(now)
        if wakeup is not None:
            self._timer = self._loop.call_later(max(MS, wakeup - now) / 1e9, self._pump)

    def _tell(self) -> None:
        told, self._table.told = self._table.told, []
        for event, workspace, why, worker, took_ms in told:
            self._metrics.count(event, took_ms)
            if event == "failed" and self._complaints.get(workspace) != why:
                self._complaints[workspace] = why
                self._process.log.warning("look failed", workspace=workspace, why=why)
            elif event in ("done", "dropped"):
                self._complaints.pop(workspace, None)
            if self._tap.watched:
                project = self._projects.get(workspace, "")
                told_of = wire.JobEvent(event, workspace, why, wall_ms(), project, worker, took_ms)
                self._tap.publish(TOPIC, told_of)

    def _workers_say(self, messages: list[tuple[bytes, wire.WorkerSays]]) -> None:
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
        lease = self._table.done(done.id, done.error, now)
        if lease is None:
            self._late += not known
            return
        target, former = lease.target, self._last.get(done.workspace)
        at_ms = former.at_ms if former is not None and former.value == done.git else wall_ms()
        look = bridge.look(done, target.project, target.incarnation, CLOCK, at_ms)
        if look is not None:
            # Runs of one worktree follow each other, so their order is known better than any clock could tell.
            self._seq += 1
            look = replace(look, run=self._run, seq=self._seq)
            self._last[done.workspace] = self._unsent[done.workspace] = look
            self._send_unsent()

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
        table, failing = self._table, self._table.failing()
        degraded = "; ".join(filter(None, (self._git_watch.degraded, self._trees.degraded)))
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
            late=self._late,
            unsent=len(self._unsent),
            bad=self._workers.bad + self._follower.bad,
            watches=self._git_watch.watches + self._trees.watches,
            watched_trees=self._trees.open,
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
    )


class _Metrics:
    def __init__(self, process: Process) -> None:
        from prometheus_client import Counter, Histogram

        registry = process.registry
        self.jobs: Counter = Counter("treewire_jobs", "What became of jobs.", ["outcome"], registry=registry)
        self.seconds: Histogram = Histogram(
            "treewire_job_seconds", "From giving a job out to its answer.", buckets=BUCKETS, registry=registry
        )

    def count(self, event: str, took_ms: int) -> None:
        if event in ("done", "failed", "requeued"):
            self.jobs.labels(event).inc()
        if event == "done":
            self.seconds.observe(took_ms / 1e3)
