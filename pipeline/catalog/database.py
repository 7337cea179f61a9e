"""One database and its transactions: SQLite in WAL mode by default, any other by URL.

A SQLite file that was replaced or deleted keeps answering on the connections that hold it open. So every transaction
first compares the file's device and inode, and starts over on new connections when they changed. The write-ahead log
of the former file would then be taken for the new one's, and mix the two: it goes. The last to let go of the former
file takes the log along too, by its name, be it the new one's: whoever had that open writes what nobody reads. So the
log's inode is compared as well, and who reads what makes no sense starts over too before it is believed.

On a server, writers take one lock for their transaction, so that they follow each other as on SQLite and what they read
stands; and they notify, which is a hint for `ChangeWatch`. A database there can only be replaced while nobody is
connected: a connection that is new is asked whose it is.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, func, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from pipeline.catalog import tables
from pipeline.domain.errors import TreewireError
from pipeline.runtime.place import OperatorError

SCHEMA: Final = "0003"
BUSY_S: Final = 5.0
IDLE_S: Final = 30.0
# A file that somebody puts back makes no sense until all of it is there. To let go of it earlier may cost it its log.
COPIED_S: Final = 2.0
POOL: Final = 4
WRITERS: Final = 0x7472_7778  # the key of the lock that writers on a server take
CHANNEL: Final = "treewire"
SECRET: Final = ("password", "sslpassword", "passfile")  # of a URL's query


class CatalogUnavailable(TreewireError, OperatorError):
    """The database cannot be used now. The message says why and what to do; what was read before still holds."""


class Database:
    """Opens connections, gives transactions, and turns every failure into `CatalogUnavailable`. Thread-safe."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.path = sqlite_path(url)
        self.engine = sqlite_engine(self.path) if self.path else server_engine(url, self._connected)
        self._lock = threading.Lock()
        self._file: tuple[int, int] | None = None
        self._log: tuple[int, int] | None = None
        self.holding: set[object] = set()  # whoever else in this process has the file open
        self._senseless_s: float | None = None  # since when what is read makes no sense
        self._identity = ""
        self._fresh = False

    @property
    def where(self) -> str:
        """The database as a person may see it: the file, or the URL without its password."""
        if self.path:
            return str(self.path)
        return make_url(self.url).difference_update_query(SECRET).render_as_string(hide_password=True)

    def file(self) -> tuple[int, int] | None:
        """Device and inode of the database file; ``None`` if it is missing, or there is no such thing."""
        return None if self.path is None else _file(self.path)

    def log(self) -> tuple[int, int] | None:
        """The same of its write-ahead log."""
        return None if self.path is None else _file(_beside(self.path, "-wal"))

    def torn(self) -> bool:
        """Whether what our connections have open may not be what others have."""
        if self._senseless_s is not None and time.monotonic() - self._senseless_s > COPIED_S:
            return True
        return self._log is not None and self.log() != self._log

    def exists(self) -> None:
        """Raises `CatalogUnavailable` if the file is missing. Of a server only a connection can tell."""
        if self.path is not None and self.file() is None:
            raise CatalogUnavailable(f"The database {self.path} is missing: put it back, or restart to begin anew.")

    def identity(self) -> str:
        """The name that this database was given when it was made."""
        with self.failures():
            return self._current()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self.failures():
            self._current()
            with self.engine.connect() as connection:
                if self.path is None:
                    connection = connection.execution_options(isolation_level="REPEATABLE READ")
                with connection.begin():
                    self._same(connection)
                    yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes; it holds the writers' lock from its start, so that what it read stands."""
        with self.failures():
            self._current()
            file, log = self._file, self._log
            with self.engine.connect() as connection:
                connection = connection.execution_options(treewire_write=True)
                with connection.begin():
                    self._same(connection)
                    self._still(file, log)  # while it waited for the lock
                    if self.path is None:
                        connection.execute(_TAKE_TURN)
                    yield connection
                    self._still(file, log)
                    if self.path is None:
                        connection.execute(_NOTIFY)

    def close(self) -> None:
        with self._lock:
            self._log = None
            self.engine.dispose()

    def settle(self) -> None:
        """If the file was replaced, let go of the old one, and remove its log if that is still in the new one's way."""
        with self._lock:
            self._settle()

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Raise what goes wrong with the database inside as `CatalogUnavailable`."""
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            if self.path is not None and any(sign in str(error) for sign in _SENSELESS):
                self._senseless_s = self._senseless_s or time.monotonic()
            raise CatalogUnavailable(self._sentence(error)) from error

    def _current(self) -> str:
        """The identity of the file that is there now, on connections to that file and no other."""
        with self._lock:
            self.exists()
            self._settle()
            if not self._identity:
                with self.engine.connect() as connection, connection.begin():
                    self._identity = self._admitted(connection)
            if self._log is None:
                self._log = self.log()
            return self._identity

    def _connected(self) -> None:
        self._fresh = True

    def _same(self, connection: Connection) -> None:
        """On a connection that was made since: it must be the database that the caller knows."""
        if not self._fresh:
            return
        known, self._fresh = self._identity, False
        try:
            self._identity = self._admitted(connection)
        except BaseException:
            self._fresh = True
            raise
        if known and self._identity != known:
            raise self._replaced()

    def _still(self, file: tuple[int, int] | None, log: tuple[int, int] | None) -> None:
        """What is written to a file that is gone is read by nobody."""
        if self.path is not None and (self.file() != file or (log is not None and self.log() != log)):
            raise self._replaced()

    def _replaced(self) -> CatalogUnavailable:
        return CatalogUnavailable(f"The database {self.where} was replaced by another one: try again.")

    def _settle(self) -> None:
        file = self.file()
        if self.path is None or file is None:
            return
        if file == self._file:
            if self.torn():
                self.engine.dispose()
                if self.holding:  # SQLite would give us the old log's index as long as anybody here has that open
                    raise CatalogUnavailable(f"The database {self.where} is being opened anew: try again.")
                self._log = self._senseless_s = None
            return
        # Our connections still hold the old log open, so that nothing else can have its inode: it is the old one.
        log = _beside(self.path, "-wal")
        if self._log is not None and _file(log) == self._log:
            log.unlink(missing_ok=True)
            _beside(self.path, "-shm").unlink(missing_ok=True)
        self.engine.dispose()
        self._identity, self._log, self._file = "", None, file

    def _admitted(self, connection: Connection) -> str:
        schema = version_of(connection)
        if schema != SCHEMA:
            raise CatalogUnavailable(f"The database {self.where} {_mismatch(schema)}")
        identity = connection.scalar(select(tables.meta.c.value).where(tables.meta.c.name == "identity"))
        if not identity:
            raise CatalogUnavailable(f"The database {self.where} has lost its identity: restore it from a backup.")
        return str(identity)

    def _sentence(self, error: Exception) -> str:
        cause = str(error.orig if isinstance(error, DBAPIError) else error)
        where = f"The database {self.where}"
        for sign, sentence in _SENTENCES:
            if sign in cause:
                return f"{where} {sentence}"
        return f"{where} failed: {cause.splitlines()[0] if cause else type(error).__name__}"


_SENSELESS: Final = ("malformed", "disk I/O", "not a database")
_TAKE_TURN: Final = select(func.pg_advisory_xact_lock(WRITERS))
_NOTIFY: Final = select(func.pg_notify(CHANNEL, ""))

_SENTENCES: Final = (
    ("database is locked", "is locked by another process for too long: see who holds it, then try again."),
    ("not a database", "is not a database: restore it from a backup."),
    ("malformed", "is corrupt: restore it from a backup."),
    ("no such table", "has no treewire tables: restore it from a backup, or move it away and restart."),
    ("unable to open", "cannot be opened: check that it exists and that its folder may be written to."),
    ("readonly", "is read-only: check the owner and mode of the file and its folder."),
    ("disk is full", "cannot grow, the disk is full: free some space."),
    ("disk I/O", "cannot be read from its disk: check the disk, restore the file from a backup."),
    ("lock timeout", "is locked by another process for too long: see who holds it, then try again."),
    ("password authentication failed", "refuses the user or the password: correct database.url."),
    ("role", "refuses the user: correct database.url, or create the role and grant it the database."),
    ("Connection refused", "does not answer: start the server, or correct database.url."),
    ("No such file or directory", "does not answer: start the server, or correct database.url."),
    ("timeout expired", "does not answer in time: check the server and the network."),
    ("could not translate host name", "is on a host that is not known: correct database.url."),
    ("starting up", "is starting: try again in a moment."),
    ("shutting down", "is shutting down: start it again."),
    ("terminating connection", "went away: it is tried again on a new connection."),
    ("server closed the connection", "went away: it is tried again on a new connection."),
    ("read-only transaction", "is read-only: let database.url name the primary, not a replica."),
    ("No space left", "cannot grow, the disk is full: free some space."),
    ("permission denied", "refuses the user: grant it the right to create and write tables."),
)


def _file(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _mismatch(schema: str) -> str:
    if not schema:
        return "has no treewire tables: restore it from a backup, or move it away and restart."
    if schema > SCHEMA:
        return f"has schema {schema}, written by a newer treewire: upgrade treewire."
    return f"still has schema {schema}: restart treewire, which brings it up to date."


def version_of(connection: Connection) -> str:
    """The schema revision that a database is at; empty for one without our tables."""
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return str(connection.scalar(text("SELECT version_num FROM alembic_version")) or "")


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite URL, ``None`` for any other database. Raises `CatalogUnavailable` for what is no URL."""
    if url.startswith("sqlite"):
        # Taken literally: a folder's name may hold what means something in a URL.
        path = url.partition(":///")[2]
        if not path or path == ":memory:":
            raise CatalogUnavailable("The setting database.url names no file: several processes share the database.")
        return Path(path).absolute()
    try:
        make_url(url)
    except ArgumentError:
        raise CatalogUnavailable(
            "The setting database.url is not a URL: write sqlite:////absolute/path or postgresql://user@host/name"
        ) from None
    return None


def sqlite_engine(path: Path) -> Engine:
    """Connections that never create the file, and transactions that begin when we say so."""

    def connect() -> sqlite3.Connection:
        # mode=rw: a missing file is an error, never a new and empty catalog.
        uri = f"file:{quote(os.fsencode(path))}?mode=rw"
        db = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA foreign_keys=ON")
            db.execute("PRAGMA synchronous=NORMAL")
        except BaseException:
            db.close()
            raise
        return db

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=POOL)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Without IMMEDIATE, a transaction that reads first and writes later fails if another one wrote in between.
        write = connection.get_execution_options().get("treewire_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def server_engine(url: str, connected: Callable[[], None]) -> Engine:
    """Connections to a server; `connected` is called after each that is made. One that died is replaced when needed."""
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername != "postgresql+psycopg":
        raise CatalogUnavailable(
            f"The setting database.url names {parsed.drivername}, which is not supported: write "
            "sqlite:////absolute/path or postgresql://user@host/name"
        )
    args = {"connect_timeout": int(BUSY_S), "application_name": "treewire"}
    try:
        engine = create_engine(parsed, pool_size=POOL, pool_pre_ping=True, connect_args=args)
    except (ImportError, NoSuchModuleError) as error:
        raise CatalogUnavailable(
            f"The driver for PostgreSQL is not installed ({error}): pip install 'treewire[postgresql]'."
        ) from error

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {int(BUSY_S * 1000)}")
            # A client that hangs in a transaction must not keep the writers' lock for ever.
            cursor.execute(f"SET idle_in_transaction_session_timeout = {int(IDLE_S * 1000)}")
        connection.commit()
        connected()

    return engine
