"""The frame around every process's main: one of its name, private files, signals, a beat, and a bounded end.

A main is ``async def main(process: Process)`` and gets an event loop, or ``def main(process: PlainProcess)`` and gets
none. It returns when ``process.stopping`` is set. An exception that leaves it, or a task it spawned, is our fault:
it is logged with its story and the process ends with 1, for supervisord to start it afresh.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from pipeline.runtime import metrics
from pipeline.runtime.beat import BeatFile, Figure
from pipeline.runtime.log import FilteringBoundLogger, setup
from pipeline.runtime.place import OperatorError, private_dir
from pipeline.runtime.settings import Settings
from pipeline.runtime.supervisor import die_with_supervisor

if TYPE_CHECKING:
    import asyncio

    from prometheus_client import CollectorRegistry

_BEAT_S = 1.0
_BEATS_PER_MEASURE = 5
_BEATS_PER_METRICS = 10
_GRACE_S = 1.0
_CANCEL_AGAIN_S = 0.2
_DESCRIPTORS = 65_536
_COROUTINE = 0x80  # inspect.CO_COROUTINE, without the price of importing inspect


class Member:
    """What a process of either sort has: a name, settings, a log, and figures that ``treewire status`` shows."""

    def __init__(self, name: str, settings: Settings, index: int | None = None) -> None:
        self.role = name
        self.index = index or 0
        self.name = name if index is None else f"{name}-{index}"
        self.settings = settings
        self.log: FilteringBoundLogger = setup(self.name, settings.log.level, settings.log.format)
        self.file = BeatFile(settings.run_dir, self.name)
        self.figures: dict[str, Figure] = self.file.beat.figures
        self.before_beat: Callable[[], None] | None = None
        self.failed = False
        self._registry: CollectorRegistry | None = None
        self._beats = 0

    @property
    def state(self) -> str:
        """starting, running, degraded (say why in ``figures["reason"]``) or stopping."""
        return self.file.beat.state

    @state.setter
    def state(self, state: str) -> None:
        self.file.beat.state = state

    @property
    def registry(self) -> CollectorRegistry:
        """This process's own Prometheus registry; it exists, and is written out, from the first use on."""
        if self._registry is None:
            from prometheus_client import CollectorRegistry

            self._registry = CollectorRegistry()
        return self._registry

    def fail(self, what: str, error: BaseException | None = None, **story: Any) -> None:
        """Log what went wrong; the process will end with 1. What only the operator can mend needs no traceback."""
        self.failed = True
        if isinstance(error, OperatorError):
            self.log.error(what, why=str(error), **story)
        else:
            self.log.error(what, exc_info=error, **story)

    def beat(self, lag_ms: float = 0.0) -> None:
        """Write the sign of life; every few of them measure the process too, and fewer write its metrics."""
        self.file.beat.lag_ms = round(lag_ms, 1)
        if self.before_beat is not None:
            self.before_beat()
        try:
            if self._beats % _BEATS_PER_MEASURE == 0:
                self.file.measure()
            if self._registry is not None and self._beats % _BEATS_PER_METRICS == 0:
                metrics.write(self._registry, self.settings.run_dir, self.name)
            self.file.write()
        except OSError as error:  # a full disk costs the figures, not the process
            if self._beats % 60 == 0:
                self.log.warning("beat not written", error=str(error))
        self._beats += 1

    def close(self) -> None:
        (self.settings.run_dir / f"{self.name}{metrics.SUFFIX}").unlink(missing_ok=True)
        self.file.close()


class Process(Member):
    """A process with an event loop."""

    stopping: asyncio.Event

    def __init__(self, name: str, settings: Settings, index: int | None = None) -> None:
        import asyncio

        super().__init__(name, settings, index)
        self.stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run ``work`` beside main. An exception in it ends the process; it is cancelled when main returns."""
        import asyncio

        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def fail(self, what: str, error: BaseException | None = None, **story: Any) -> None:
        """As `Member.fail`, and begin to stop."""
        super().fail(what, error, **story)
        self.stopping.set()

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail("task failed", error, task=task.get_name())

    async def cancel_tasks(self) -> None:
        """Cancel all that runs beside main, and wait for it.

        A cancellation is said again to whoever goes on: one that meets the end of what is waited for gets lost, which
        libraries do and `asyncio.wait_for` as well.
        """
        import asyncio

        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=_CANCEL_AGAIN_S)


class PlainProcess(Member):
    """A process without an event loop; its main looks at ``stopping`` between two steps, at least each second."""

    def __init__(self, name: str, settings: Settings, index: int | None = None) -> None:
        super().__init__(name, settings, index)
        self.stopping = threading.Event()


AsyncMain = Callable[[Process], Awaitable[None]]
PlainMain = Callable[[PlainProcess], None]


def run(name: str, main: AsyncMain | PlainMain, settings: Settings, index: int | None = None) -> None:
    """Run ``main`` as the process ``name`` until it returns; ends by `SystemExit` with the process's exit code.

    SIGTERM and SIGINT set ``stopping``; what has not drained in time is cancelled; a second signal ends at once.
    Raises `OperatorError` if the run directory is unfit or the name is taken.
    """
    os.umask(0o077)
    die_with_supervisor()
    _raise_descriptor_limit()
    private_dir(settings.home)
    private_dir(settings.run_dir)
    code = getattr(main, "__code__", None)
    if code is not None and code.co_flags & _COROUTINE:
        failed = _run_loop(Process(name, settings, index), main)  # type: ignore[arg-type]
    else:
        failed = _run_plain(PlainProcess(name, settings, index), main)  # type: ignore[arg-type]
    sys.stdout.flush()
    raise SystemExit(1 if failed else 0)


def _run_loop(process: Process, main: AsyncMain) -> bool:
    import uvloop

    try:
        uvloop.run(_main(process, main))
    finally:
        process.close()
    return process.failed


async def _main(process: Process, main: AsyncMain) -> None:
    import asyncio

    from pipeline.runtime.tick import next_tick

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: _unhandled(process, context))

    def stop(signum: int) -> None:
        if process.stopping.is_set():
            _end_at_once(process, signum)
        process.log.info("stopping", signal=signal.Signals(signum).name)
        process.stopping.set()
        _bound_the_end(process, process.settings.supervisor.drain_s + 2 * _GRACE_S)

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop, signum)

    due = loop.time()

    def beat() -> None:
        nonlocal due
        now = loop.time()
        process.beat(lag_ms=max(0.0, now - due) * 1e3)
        due = next_tick(now, _BEAT_S)
        loop.call_at(due, beat)

    async def body() -> None:
        await main(process)

    process.state = "running"
    beat()
    process.log.info("started", pid=os.getpid())
    work = loop.create_task(body(), name="main")
    asked = loop.create_task(process.stopping.wait(), name="stopping")
    await asyncio.wait((work, asked), return_when=asyncio.FIRST_COMPLETED)
    process.state = "stopping"
    if not work.done():
        await asyncio.wait((work,), timeout=process.settings.supervisor.drain_s)
    asked.cancel()
    if not work.done():
        process.fail("not drained in time", drain_s=process.settings.supervisor.drain_s)
        work.cancel()
        await asyncio.wait((work,), timeout=_GRACE_S)
    elif work.cancelled():
        process.fail("main was cancelled")
    elif (error := work.exception()) is not None:
        process.fail("main failed", error)
    process.stopping.set()
    await process.cancel_tasks()
    process.log.info("stopped", failed=process.failed)


def _unhandled(process: Process, context: dict[str, Any]) -> None:
    process.figures["unhandled"] = int(process.figures.get("unhandled", 0)) + 1
    process.log.error("unhandled in the event loop", what=context.get("message"), exc_info=context.get("exception"))


def _run_plain(process: PlainProcess, main: PlainMain) -> bool:
    done = threading.Event()

    def stop(signum: int, _: Any) -> None:
        if process.stopping.is_set():
            _end_at_once(process, signum)
        process.state = "stopping"
        process.stopping.set()
        _bound_the_end(process, process.settings.supervisor.drain_s)

    def beats() -> None:
        while not done.wait(_BEAT_S):
            process.beat()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    process.state = "running"
    process.beat()
    beating = threading.Thread(target=beats, name="beat", daemon=True)
    beating.start()
    process.log.info("started", pid=os.getpid())
    try:
        main(process)
    except Exception as error:
        process.fail("main failed", error)
    finally:
        done.set()
        beating.join()
        process.close()
    process.log.info("stopped", failed=process.failed)
    return process.failed


def _end_at_once(process: Member, signum: int) -> None:
    process.log.warning("ended at once by a second signal", signal=signal.Signals(signum).name)
    os._exit(128 + signum)


def _bound_the_end(process: Member, seconds: float) -> None:
    """A loop that is blocked, or a thread that never returns, must not keep the process for ever."""

    def late() -> None:
        process.log.error("killed itself: did not stop in time", seconds=seconds)
        os._exit(1)

    timer = threading.Timer(seconds, late)
    timer.daemon = True
    timer.start()


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
