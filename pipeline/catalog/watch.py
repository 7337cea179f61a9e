"""Notices that somebody else wrote to the catalog, for the price of a pragma and a stat.

The kernel says when a file is written to, so that nobody has to look again and again (`ChangeWatch.rest`); the stat is
repeated all the same, now and then. On a server each writer notifies. That is a hint, and its absence proves nothing:
the rows are asked now and then in any case, and every time while nobody listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select as selecting
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from urllib.parse import quote

from asyncinotify import Inotify, Mask
from sqlalchemy import func, select

from pipeline.catalog import tables
from pipeline.catalog.catalog import Catalog
from pipeline.catalog.database import BUSY_S, CHANNEL, CatalogUnavailable
from pipeline.catalog.record import TABLES
from pipeline.runtime.tick import tick_unless

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import psycopg

Change: TypeAlias = Literal["same", "changed", "replaced", "missing", "locked", "broken"]
Trace: TypeAlias = tuple[int, int, int] | None

# Two writes within one tick of the kernel's clock leave the same time: a file as young as this may yet change unseen.
YOUNG_NS: Final = 100_000_000
# Of a server that notifies, and of the kernel: how long their silence is taken for peace.
TRUST_S: Final = 5.0
TOUCHES: Final = Mask.MODIFY | Mask.CREATE | Mask.DELETE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.ATTRIB | Mask.ONLYDIR


class ChangeWatch:
    """Compares the database with how it was at the last check. Not thread-safe: one watch, one caller at a time."""

    def __init__(self, catalog: Catalog) -> None:
        self._database = catalog.database
        self._held: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._log: tuple[int, int] | None = None
        self._seen: object = None
        self._identity = ""
        self._traces: tuple[Trace, Trace] | None = None
        self._listening: psycopg.Connection[Any] | None = None
        self._asked_s = float("-inf")
        self._touches: Touches | None = None
        self._stirred = asyncio.Event()
        self.last: Change = "same"
        self.why = ""  # of a server that cannot be read, in a sentence

    def quiet(self) -> bool:
        """True if no file of the database was touched since the last check, which then need not be repeated.

        On a server: if nobody notified since, and that is not long ago.

        Two stats or a poll, so cheap that it needs no thread. False says nothing: only `check` knows.
        """
        if self._listening is not None:
            return time.monotonic() - self._asked_s < TRUST_S and not _readable(self._listening)
        return self._traces is not None and self._traces == self._touched() and not self._database.torn()

    def stir(self) -> None:
        """End the rest, or the next one at once."""
        self._stirred.set()

    async def rest(self, poll_s: float, most_s: float = float("inf")) -> None:
        """Sleep until it may be time to check again: at the next tick of `poll_s` while there may be something new, or
        nobody would tell, or less than `most_s` of some length is left; else when a file is touched, or now and then.
        """
        if self._touches is not None and self._touches.gone:
            self._touches.close()
            self._touches = None
        if self._touches is None and self._database.path is not None:
            with contextlib.suppress(OSError):
                self._touches = Touches(self._database.path)
        if self._touches is not None:
            self._touches.arm(self.stir)  # before the stat: what is touched after it is told
        trusted = self._touches is not None and most_s > 2 * TRUST_S and self.quiet()
        await tick_unless(self._stirred, TRUST_S if trusted else poll_s)
        self._stirred.clear()

    def changed(self) -> bool:
        """True if there is something new to read. What else there was to say is in `last`."""
        return self.check() in ("changed", "replaced")

    def check(self) -> Change:
        """What became of the database since the last check; the first check says ``changed``.

        ``replaced``: another file is there. ``missing``, ``locked``, ``broken``: it cannot be read now.
        """
        traces = self._touched()
        self.last = self._check() if self._database.path else self._check_server()
        self._traces = traces if self.last in ("same", "changed", "replaced") and _old(traces) else None
        return self.last

    def close(self) -> None:
        """Let go of everything. In the loop, if it rested."""
        if self._touches is not None:
            self._touches.close()
            self._touches = None
        self._let_go()

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None
            self._database.holding.discard(self)
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    def _touched(self) -> tuple[Trace, Trace] | None:
        """What the files of the database look like from outside; ``None`` for one that is not made of files."""
        path = self._database.path
        return None if path is None else (_trace(os.fspath(path)), _trace(f"{os.fspath(path)}-wal"))

    def _check(self) -> Change:
        file = self._database.file()
        if file is None:
            self._let_go()
            return "missing"
        known, replaced = self._file, self._file is not None and file != self._file
        try:
            if self._held is None or file != known or self._database.torn() or self._database.log() != self._log:
                self._let_go()
                self._database.settle()
                self._held, self._file, self._seen = self._hold(), file, None
                self._log = self._database.log()
                self._database.holding.add(self)
            version = self._held.execute("PRAGMA data_version").fetchone()[0]
        except CatalogUnavailable:  # others here hold what is gone: they let go of it when they look
            return "locked"
        except (sqlite3.Error, OSError) as error:
            self._let_go()
            return "locked" if "locked" in str(error) else "broken"
        if replaced:
            self._seen = version
            return "replaced"
        return self._compare(version)

    def _hold(self) -> sqlite3.Connection:
        assert self._database.path is not None
        uri = f"file:{quote(os.fsencode(self._database.path))}?mode=ro"
        held = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            # data_version alone does not look at the file: one that is no database would pass.
            held.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        except sqlite3.Error:
            held.close()
            raise
        return held

    def _check_server(self) -> Change:
        """The hints are taken in before the rows are read: what is written after that is a new hint."""
        self._listen()
        before = self._identity
        try:
            self._asked_s = time.monotonic()
            fingerprint = self.fingerprint()
            self._identity = self._database.identity()
        except CatalogUnavailable as error:
            self._let_go()
            self.why = str(error)
            return "broken"
        self.why = ""
        change = self._compare(fingerprint)
        return "replaced" if before and before != self._identity else change

    def _listen(self) -> None:
        """Take in the notifications there are, on a connection made if need be. Without one, rows are asked more."""
        import psycopg  # only a server has a use for it

        try:
            if self._listening is None:
                url = self._database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
                self._listening = psycopg.connect(
                    url, autocommit=True, connect_timeout=int(BUSY_S), application_name="treewire watch"
                )
                self._listening.execute(f"LISTEN {CHANNEL}".encode())
            for _ in self._listening.notifies(timeout=0):
                pass
        except psycopg.Error:
            self._let_go()

    def fingerprint(self) -> object:
        """For databases without a change counter: revisions only grow and are never given twice, so that their sums
        and the numbers of rows tell any two states apart."""
        columns = []
        for table in (tables.workspace, *TABLES.values()):
            columns.append(select(func.count()).select_from(table).scalar_subquery())
            columns.append(select(func.coalesce(func.sum(table.c.revision), 0)).scalar_subquery())
        project = tables.project
        for value in (func.count(), func.sum(project.c.created_ms), func.sum(project.c.removed_ms)):
            columns.append(select(func.coalesce(value, 0)).select_from(project).scalar_subquery())
        with self._database.read() as tx:
            return tuple(tx.execute(select(*columns)).one())

    def _compare(self, now: object) -> Change:
        same = now == self._seen
        self._seen = now
        return "same" if same else "changed"


class Touches:
    """The kernel's word that a file, or one beside it whose name begins the same, was touched. Once armed it is given
    once. `gone`: so is the folder, and there will be no further word."""

    def __init__(self, path: Path) -> None:
        """Raises `OSError` if it cannot be had."""
        self._name = path.name
        self._loop = asyncio.get_running_loop()
        self._inotify: Inotify | None = Inotify(sync_timeout=0)
        self._armed = self.gone = False
        try:
            self._inotify.add_watch(path.parent, TOUCHES)
        except OSError:
            self._inotify.close()
            raise

    def arm(self, told: Callable[[], None]) -> None:
        """Call `told` when something is touched from now on."""
        if self._inotify is not None and not self._armed:
            self._loop.add_reader(self._inotify.fd, self._drain, told)
            self._armed = True

    def close(self) -> None:
        if self._inotify is not None:
            if self._armed and not self._loop.is_closed():
                self._loop.remove_reader(self._inotify.fd)
            self._inotify.close()
        self._inotify, self._armed = None, False

    def _drain(self, told: Callable[[], None]) -> None:
        assert self._inotify is not None
        touched = False
        while (event := self._inotify.sync_get()) is not None:
            self.gone = self.gone or bool(event.mask & Mask.IGNORED)
            touched = touched or event.name is None or os.fspath(event.name).startswith(self._name)
        if touched:
            self._loop.remove_reader(self._inotify.fd)  # whoever writes a lot shall not be followed step by step
            self._armed = False
            told()


def _readable(connection: psycopg.Connection[Any]) -> bool:
    """Whether something came in, be it a notification or the end."""
    return connection.closed or bool(selecting.select([connection.fileno()], [], [], 0)[0])


def _trace(path: str) -> Trace:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _old(traces: tuple[Trace, Trace] | None) -> bool:
    now = time.time_ns()
    return traces is not None and all(trace is None or trace[2] < now - YOUNG_NS for trace in traces)
