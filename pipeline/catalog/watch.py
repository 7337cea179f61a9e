"""Notices that somebody else wrote to the catalog, for the price of a pragma and a stat."""

from __future__ import annotations

import os
import sqlite3
import time
from typing import Final, Literal, TypeAlias
from urllib.parse import quote

from sqlalchemy import func, select

from pipeline.catalog import tables
from pipeline.catalog.catalog import Catalog
from pipeline.catalog.database import CatalogUnavailable
from pipeline.catalog.record import TABLES

Change: TypeAlias = Literal["same", "changed", "replaced", "missing", "locked", "broken"]
Trace: TypeAlias = tuple[int, int, int] | None

# Two writes within one tick of the kernel's clock leave the same time: a file as young as this may yet change unseen.
YOUNG_NS: Final = 100_000_000


class ChangeWatch:
    """Compares the database with how it was at the last check. Not thread-safe: one watch, one caller at a time."""

    def __init__(self, catalog: Catalog) -> None:
        self._database = catalog.database
        self._held: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._seen: object = None
        self._traces: tuple[Trace, Trace] | None = None
        self.last: Change = "same"

    def quiet(self) -> bool:
        """True if no file of the database was touched since the last check, which then need not be repeated.

        Two stats, so cheap that it needs no thread. False says nothing: only `check` knows.
        """
        return self._traces is not None and self._traces == self._touched()

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
        if self._held is not None:
            self._held.close()
            self._held = None

    def _touched(self) -> tuple[Trace, Trace] | None:
        """What the files of the database look like from outside; ``None`` for one that is not made of files."""
        path = self._database.path
        return None if path is None else (_trace(os.fspath(path)), _trace(f"{os.fspath(path)}-wal"))

    def _check(self) -> Change:
        file = self._database.file()
        if file is None:
            self.close()
            return "missing"
        known, replaced = self._file, self._file is not None and file != self._file
        try:
            if self._held is None or file != known:
                self.close()
                self._database.settle()
                self._held, self._file, self._seen = self._hold(), file, None
            version = self._held.execute("PRAGMA data_version").fetchone()[0]
        except (sqlite3.Error, OSError) as error:
            self.close()
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
        try:
            return self._compare(self.fingerprint())
        except CatalogUnavailable:
            return "broken"

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


def _trace(path: str) -> Trace:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _old(traces: tuple[Trace, Trace] | None) -> bool:
    now = time.time_ns()
    return traces is not None and all(trace is None or trace[2] < now - YOUNG_NS for trace in traces)
