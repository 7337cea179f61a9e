"""Databases of other tools: which are configured, and how one is read without being in anybody's way.

Each is a small file in the home. It is a setting of this deployment, at times with a password in it, and no part of
what exists: so it is not in the catalog, and needs no migration. A reading is one short transaction on a connection of
its own that can write nothing; it waits for no lock for long, and is given up at a deadline.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

from pipeline.bridges import factory_factory
from pipeline.bridges.foreign import Native, Row
from pipeline.bridges.mapping import MappingError, parse
from pipeline.runtime.place import OperatorError, private_dir

if TYPE_CHECKING:
    import psycopg

FOLDER: Final = "sources"
SUFFIX: Final = ".toml"
NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
SQLITE: Final = "sqlite:///"
BUSY_MS: Final = 1000
DEADLINE_S: Final = 3.0
STEPS: Final = 10_000  # of SQLite's machine, between two looks at the deadline
MAX_ROWS: Final = 5000
MAX_CELL: Final = 1024

YOUNG_NS: Final = 100_000_000

Trace = tuple[int, int, int] | None
Traces = tuple[Trace, Trace] | None


class Unreadable(OperatorError):
    """A database, or the file that configures it, cannot be used now. The message says why and what to do."""


class Configured(NamedTuple):
    """A database that is followed. `tool`: factory-factory, or ``mapping``."""

    name: str
    tool: str
    url: str
    native: Native

    @property
    def path(self) -> Path | None:
        """The file, where it is SQLite's."""
        return Path(self.url.removeprefix(SQLITE)) if self.url.startswith(SQLITE) else None

    @property
    def where(self) -> str:
        """The database as a person may see it: the file, or the URL without its password."""
        if self.path:
            return str(self.path)
        return re.sub(r"://([^:/@]*):[^@]*@|((?:ssl)?password=)[^&]*", _starred, self.url)


def _starred(found: re.Match[str]) -> str:
    return f"{found[2]}***" if found[2] else f"://{found[1]}:***@"


class Tables(NamedTuple):
    """The rows of each table, each value bounded. `schema`: the tool's own version; `cut`: tables that have more."""

    rows: dict[str, list[Row]]
    schema: str
    cut: list[str]


# ── which there are ──────────────────────────────────────────────────────────────────────────────


def configured(home: Path) -> tuple[dict[str, Configured], dict[str, str]]:
    """What is configured in this home, by name; and why each file that makes no sense does not."""
    found: dict[str, Configured] = {}
    wrong: dict[str, str] = {}
    for file in sorted((home / FOLDER).glob(f"*{SUFFIX}")):
        name = file.name.removesuffix(SUFFIX)
        try:
            found[name] = understood(name, file.read_text())
        except (Unreadable, OSError, UnicodeError) as error:
            wrong[name] = f"{file}: {error}"
    return found, wrong


def files(home: Path) -> dict[str, Trace]:
    """The files of all that is configured, by name: another one stands for each that was rewritten."""
    try:
        names = os.listdir(home / FOLDER)
    except OSError:
        return {}
    return {name.removesuffix(SUFFIX): trace(home / FOLDER / name) for name in names if name.endswith(SUFFIX)}


def understood(name: str, source: str) -> Configured:
    """A configuration as text. Raises `Unreadable`."""
    if not NAME.fullmatch(name):
        raise Unreadable(f"{name!r} is no name for a source: at most 32 small letters, digits and dashes")
    try:
        tree = tomllib.loads(source)
        if tree.get("tool") == factory_factory.NAME:
            return Configured(name, factory_factory.NAME, str(tree.get("database")), factory_factory.NATIVE)
        mapped = parse(source)
    except (tomllib.TOMLDecodeError, MappingError) as error:
        raise Unreadable(str(error)) from None
    return Configured(name, "mapping", mapped.database, mapped.native)


def of_factory_factory(path: Path) -> str:
    """The configuration for a database of factory-factory at this path."""
    import json  # a JSON string is a TOML one

    return f'tool = "{factory_factory.NAME}"\ndatabase = {json.dumps(f"{SQLITE}{path}")}\n'


def save(home: Path, name: str, source: str) -> None:
    """Configure a database; a running deployment notices. Raises `OperatorError`."""
    private_dir(home)
    file = private_dir(home / FOLDER) / (name + SUFFIX)
    beside = file.with_suffix(".new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(source)
    beside.rename(file)


def forget(home: Path, name: str) -> None:
    (home / FOLDER / (name + SUFFIX)).unlink(missing_ok=True)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def trace(path: Path) -> Trace:
    """What a file looks like from outside; ``None`` if it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def touched(database: Configured) -> Traces:
    """What the files of a database look like from outside; ``None`` for one that is not made of files."""
    path = database.path
    return None if path is None else (trace(path), trace(path.with_name(path.name + "-wal")))


def settled(traces: Traces) -> bool:
    """Whether another write would show: within one tick of the kernel's clock two leave the same time."""
    now = time.time_ns()
    return traces is not None and all(one is None or one[2] < now - YOUNG_NS for one in traces)


def read(database: Configured) -> Tables:
    """Read all that the database's bridge wants, as of one moment. Blocks, for seconds at most. Raises `Unreadable`."""
    with _sqlite(database) if database.path else _postgresql(database) as connection:
        return _tables(database, connection)


class _Connection(NamedTuple):
    """A transaction: what runs a query, what names a table's columns, and how a cell is cut to size."""

    query: Callable[[str, tuple[Any, ...]], Sequence[Sequence[Any]]]
    columns: Callable[[str], set[str]]
    table: Callable[[str], str]
    cell: str


def _tables(database: Configured, connection: _Connection) -> Tables:
    native = database.native
    schema = _schema(connection) if database.tool == factory_factory.NAME else ""
    rows: dict[str, list[Row]] = {}
    cut: list[str] = []
    for table, needed in native.needs.items():
        there = connection.columns(table)
        if missing := [column for column in needed if column not in there]:
            raise Unreadable(_drift(database, table, missing if there else [], schema))
        names = [*needed, *(column for column in native.may.get(table, ()) if column in there)]
        cells = ", ".join(connection.cell.format(_quoted(name)) for name in names)
        found = connection.query(f"SELECT {cells} FROM {connection.table(table)} LIMIT {MAX_ROWS + 1}", ())  # noqa: S608
        rows[table] = [dict(zip(names, row, strict=True)) for row in found[:MAX_ROWS]]
        if len(found) > MAX_ROWS:
            cut.append(table)
    return Tables(rows, schema, cut)


def _drift(database: Configured, table: str, missing: list[str], schema: str) -> str:
    what = f"table {table} has no column {', '.join(missing)}" if missing else f"there is no table {table}"
    of = f" (its schema is {schema})" if schema else ""
    if database.tool == "mapping":
        return f"{database.where}: {what}{of}: correct the mapping, and add it again with `treewire source add`."
    return (
        f"{database.where}: {what}{of}. It is no database of {database.tool}, or of a release that this treewire does "
        "not know: upgrade treewire, or describe it in a mapping file."
    )


def _schema(connection: _Connection) -> str:
    """The newest migration that was finished, by its name, which begins with its date."""
    table = factory_factory.MIGRATIONS
    if not {"migration_name", "finished_at"} <= connection.columns(table):
        return ""
    query = f'SELECT max(migration_name) FROM "{table}" WHERE finished_at IS NOT NULL'  # noqa: S608
    return str(connection.query(query, ())[0][0] or "")[:MAX_CELL]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _sqlite(database: Configured) -> Iterator[_Connection]:
    path = database.path
    assert path is not None
    deadline = time.monotonic() + DEADLINE_S
    try:
        uri = f"file:{quote(os.fsencode(path))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_MS / 1000, isolation_level=None)) as db:
            db.text_factory = lambda raw: raw.decode("utf-8", "replace")
            db.set_progress_handler(lambda: time.monotonic() > deadline, STEPS)
            db.execute("PRAGMA query_only=ON")
            db.execute("BEGIN")
            yield _Connection(
                query=lambda query, values: db.execute(query, values).fetchall(),
                columns=lambda table: {row[0] for row in db.execute("SELECT name FROM pragma_table_info(?)", (table,))},
                table=_quoted,
                # A cell may hold megabytes: only its head comes over.
                cell=f"CASE WHEN typeof({{0}}) IN ('text', 'blob') THEN substr({{0}}, 1, {MAX_CELL}) ELSE {{0}} END",
            )
            db.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise Unreadable(f"{path} {_sentence(str(error), path)}") from None


def _sentence(cause: str, path: Path) -> str:
    if not path.exists():
        return "is not there: start the tool that it belongs to, or correct the path."
    for sign, sentence in _SENTENCES:
        if sign in cause:
            return sentence
    return f"cannot be read: {cause}"


_SENTENCES: Final = (
    ("locked", "is locked by a writer for too long; it is tried again."),
    ("interrupted", f"could not be read within {DEADLINE_S:g} s; it is tried again."),
    ("not a database", "is no SQLite database: correct the path."),
    ("malformed", "is corrupt: see to it with the tool that it belongs to."),
    ("unable to open", "cannot be opened: check that this user may read it and its folder."),
)


@contextmanager
def _postgresql(database: Configured) -> Iterator[_Connection]:
    import psycopg  # only who follows such a database pays for it

    deadline_ms = int(DEADLINE_S * 1000)
    options = f"-c default_transaction_read_only=on -c statement_timeout={deadline_ms} -c lock_timeout={BUSY_MS}"
    url = database.url.replace("postgresql+psycopg://", "postgresql://")
    try:
        with psycopg.connect(url, connect_timeout=int(DEADLINE_S), options=options) as db:
            db.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            yield _Connection(
                query=lambda query, values: db.execute(query.encode(), values or None).fetchall(),
                columns=lambda table: _columns(db, table),
                table=_dotted,
                # What is no text has one, and every value of ours is read from text as well.
                cell=f"left({{0}}::text, {MAX_CELL})",
            )
            db.rollback()
    except psycopg.Error as error:
        cause = str(error).strip().splitlines()
        raise Unreadable(f"{database.where} cannot be read: {cause[0] if cause else type(error).__name__}") from None


def _columns(db: psycopg.Connection[tuple[Any, ...]], table: str) -> set[str]:
    query = "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
    return {row[0] for row in db.execute(query, (_dotted(table),))}


def _dotted(table: str) -> str:
    """A table's name may say its schema: ``tracker.task``."""
    return ".".join(_quoted(part) for part in table.split("."))
