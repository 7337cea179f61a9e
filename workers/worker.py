"""One job at a time: look at a worktree, and answer with what was seen and when."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pipeline import bus, wire
from pipeline.runtime import spawn
from pipeline.runtime.clock import now_ns
from pipeline.runtime.place import private_dir
from pipeline.runtime.process import Process
from pipeline.runtime.tick import tick
from workers.git import GitError, Looker

READY_S: Final = 1.0
AGAIN_S: Final = 0.1
LEAVE_S: Final = 0.5
HUNG_S: Final = 1.0
MAX_LEFT_BEHIND: Final = 8
FALLBACKS: Final = 3


async def main(process: Process) -> None:
    """Say that it is idle, each second; take a job, do it, say so.

    The whole process stands behind the kernel's wall: what it starts from here on, threads and git, is born there.
    """
    private_dir(process.settings.home / "cache")
    cache_dir = private_dir(process.settings.home / "cache" / process.name)
    spawn.enclose(cache_dir)
    worker = Worker(process, cache_dir)
    try:
        await worker.serve()
    finally:
        worker.close()
        bus.close()


class Worker:
    def __init__(self, process: Process, cache_dir: Path) -> None:
        self._process = process
        self._jobs: asyncio.Queue[wire.Job] = asyncio.Queue()
        if why := spawn.wall():
            process.log.warning("git runs without the kernel's wall", why=why)
        self._look = _Thread(cache_dir)
        self._client = bus.JobsClient(process.settings.run_dir, self._take)
        self._fallbacks: Counter[str] = Counter()
        self._left_behind: list[threading.Thread] = []
        process.figures.update(
            done=0, failed=0, job="", full=0, scoped=0, drift=0, tables=0, table_mb=0.0, fallbacks=""
        )

    def close(self) -> None:
        self._client.close()

    async def serve(self) -> None:
        """Until told to stop, and then until the job at hand is over, or the time to drain is."""
        greeting: asyncio.Task[None] | None = None
        stopping = asyncio.ensure_future(self._process.stopping.wait())
        while not self._process.stopping.is_set():
            if self._jobs.empty():
                greeting = self._process.spawn(self._say_ready(), "ready")
            waiting = asyncio.ensure_future(self._jobs.get())
            await asyncio.wait((waiting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if greeting is not None:
                greeting.cancel()
            if not waiting.done():
                waiting.cancel()
                break
            work = asyncio.ensure_future(self._do(waiting.result()))
            await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                # Its git dies with this process, and the dispatcher gives the job to somebody else.
                await asyncio.wait((work,), timeout=max(0.0, self._process.settings.supervisor.drain_s - LEAVE_S))
            if work.done():
                work.result()
            else:
                self._process.log.warning("job abandoned", workspace=waiting.result().workspace)

    async def _say_ready(self) -> None:
        ready = wire.Ready(self._process.name, os.getpid())
        while True:
            sent = self._client.send(ready)
            await (tick(READY_S) if sent else asyncio.sleep(AGAIN_S))

    def _take(self, jobs: list[wire.Job]) -> None:
        for job in jobs:
            self._jobs.put_nowait(job)

    async def _do(self, job: wire.Job) -> None:
        figures = self._process.figures
        figures["job"] = job.workspace
        looking = self._look.at(job, self._process.name)
        await asyncio.wait((looking,), timeout=job.deadline_ms / 1000 + HUNG_S / 2)
        if not looking.done():  # and no more either if this process was stopped, and the time was over as it went on
            await asyncio.wait((looking,), timeout=HUNG_S / 2)
        done = looking.result() if looking.done() else self._leave_behind(job)
        figures["job"] = ""
        self._count(job, done)
        while not self._client.send(done):
            # Nobody there: a dispatcher that starts anew does not know this job and asks for its own.
            if self._process.stopping.is_set():
                return
            await asyncio.sleep(AGAIN_S)
            if now_ns() - done.ended > job.deadline_ms * 1_000_000:
                return

    def _leave_behind(self, job: wire.Job) -> wire.Done:
        """git is killed at the deadline, a read in this process cannot be.

        One that waits for a file system that does not answer might not even die with the process, which then could not
        be started afresh. It costs nothing but its thread, so another thread goes on, and knows nothing yet. Whatever
        else takes so long takes the process along.
        """
        hangs = f"the look at {job.worktree} hangs; see whether a file system there does not answer"
        if self._look.runs() or len(self._left_behind) >= MAX_LEFT_BEHIND:
            raise RuntimeError(hangs)
        self._left_behind = [thread for thread in (*self._left_behind, self._look.leave()) if thread.is_alive()]
        self._process.log.warning("a look is left behind", worktree=job.worktree, threads=len(self._left_behind))
        self._look = _Thread(self._look.cache_dir)
        began = now_ns() - job.deadline_ms * 1_000_000
        error = f"{wire.UNRESPONSIVE}: {hangs}."
        return wire.Done(job.id, self._process.name, job.workspace, began, now_ns(), None, error, 0)

    def _count(self, job: wire.Job, done: wire.Done) -> None:
        figures, looker = self._process.figures, self._look.looker
        for name in ("failed",) if done.error else ("done", "scoped" if done.scoped else "full"):
            figures[name] = int(figures[name]) + 1
        if not (job.full or done.scoped or done.error):
            self._fallbacks[done.why.partition(";")[0]] += 1
            figures["fallbacks"] = ", ".join(f"{why} {times}" for why, times in self._fallbacks.most_common(FALLBACKS))
        figures["drift"] = int(figures["drift"]) + done.drift
        figures["tables"], figures["table_mb"] = looker.tables, round(looker.weight / (1 << 20), 1)


class _Thread:
    """The thread in which git is waited for. A single one for as long as it answers: git dies with the thread it was
    started from."""

    def __init__(self, cache_dir: Path) -> None:
        self.cache_dir = cache_dir
        self.looker = Looker(cache_dir)
        self._loop = asyncio.get_running_loop()
        self._wake = threading.Semaphore(0)
        self._next: tuple[wire.Job, str, asyncio.Future[wire.Done]] | None = None
        self._left = False
        # A daemon: nobody waits for it at the end.
        self._thread = threading.Thread(target=self._run, name="git", daemon=True)
        self._thread.start()

    def runs(self) -> bool:
        """Whether it is at work, and does not wait for the kernel."""
        with open(f"/proc/self/task/{self._thread.native_id}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] == b"R"

    def leave(self) -> threading.Thread:
        """Let it end as soon as it can, and whatever it finds then be nobody's."""
        self._left = True
        return self._thread

    def at(self, job: wire.Job, name: str) -> asyncio.Future[wire.Done]:
        future: asyncio.Future[wire.Done] = self._loop.create_future()
        self._next = job, name, future
        self._wake.release()
        return future

    def _run(self) -> None:
        spawn.enclose(self.cache_dir)
        while not self._left:
            self._wake.acquire()
            assert self._next is not None
            job, name, future = self._next
            try:
                done = look_at(job, name, self.looker)
            except Exception as error:  # ours: it ends the process, which supervisord starts afresh
                self._tell(future, future.set_exception, error)
            else:
                self._tell(future, future.set_result, done)

    def _tell(self, future: asyncio.Future[wire.Done], say: Callable[..., None], what: object) -> None:
        def tell() -> None:
            if not future.done():
                say(what)

        try:
            self._loop.call_soon_threadsafe(tell)
        except RuntimeError:  # the loop has ended before the look did
            pass


def look_at(job: wire.Job, name: str, looker: Looker) -> wire.Done:
    """Do the job; bad luck with git is an answer like any other."""
    cpu = time.process_time_ns() + _children_ns()
    began = now_ns()
    try:
        seen, error = looker.look(job), ""
    except GitError as bad_luck:
        seen, error = None, f"{bad_luck.reason}: {bad_luck}"
    ended = now_ns()
    cpu_ms = (time.process_time_ns() + _children_ns() - cpu) // 1_000_000
    if seen is None:
        return wire.Done(job.id, name, job.workspace, began, ended, None, error, cpu_ms)
    why = "; ".join(part for part in ("" if seen.scoped else seen.why, seen.note) if part)
    return wire.Done(
        job.id, name, job.workspace, began, ended, seen.git, "", cpu_ms, seen.scoped, why, seen.drift, seen.spawned
    )


def _children_ns() -> int:
    times = os.times()
    return int((times.children_user + times.children_system) * 1e9)
