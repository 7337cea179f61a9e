"""Brings a database to the schema of this release; several processes may try at once."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, text

from pipeline.catalog.database import SCHEMA, CatalogUnavailable, Database, version_of

LOCK_S: Final = 30.0
ADVISORY_LOCK: Final = 0x7472_6565  # "tree"
MIGRATIONS: Final = Path(__file__).parent / "migrations"


def upgrade(url: str, *, make_folder: bool = False) -> None:
    """Make the database if it is missing, and run what revisions it lacks, under an exclusive lock.

    The folder of a file is made only if `make_folder` says so: one that an operator named may be a slip, or a disk
    that is not mounted. Raises `CatalogUnavailable` if it cannot be made, or was written by a newer release.
    """
    database = Database(url)
    try:
        with database.failures():
            if database.path is not None:
                _prepare(database.path.parent, make_folder)
                with _only_one(database.path):
                    _make(database.path)
                    _upgrade(database)
            else:
                _upgrade(database)
    finally:
        database.close()


def _upgrade(database: Database) -> None:
    with database.engine.connect() as connection, connection.begin():
        schema = version_of(connection)
    if schema == SCHEMA:
        return
    if schema > SCHEMA:
        raise CatalogUnavailable(
            f"The database {database.where} has schema {schema}, written by a newer treewire: upgrade treewire."
        )
    with database.engine.connect() as connection:
        if database.path is not None:
            connection.connection.cursor().execute("PRAGMA journal_mode=WAL")
        connection = connection.execution_options(treewire_write=True)
        with connection.begin():
            if database.path is None:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            _run(connection)


def _run(connection: Connection) -> None:
    # Imported here because every process opens the catalog and hardly any has something to migrate.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _prepare(folder: Path, make: bool) -> None:
    if make:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CatalogUnavailable(f"The folder {folder} cannot be made: {error.strerror}.") from error
    elif not folder.is_dir():
        raise CatalogUnavailable(f"There is no folder {folder} for the database: make it, or correct database.url.")


def _make(path: Path) -> None:
    """Make an empty file if there is none. One that is there is not opened: to close it again would end all locks that
    this process has on it, and with them its claim on the log (POSIX; sqlite.org/howtocorrupt.html, 2.2)."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise CatalogUnavailable(f"The database {path} cannot be made: {error.strerror}.") from error


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold the lock beside the database. SQLite's own would do for the tables, but not for entering WAL mode."""
    lock = path.with_name(path.name + ".lock")
    try:
        fd = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise CatalogUnavailable(f"The folder {path.parent} cannot be written to: {error.strerror}.") from error
    try:
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise CatalogUnavailable(f"Another process holds {lock} for too long: see who does.") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(fd)
