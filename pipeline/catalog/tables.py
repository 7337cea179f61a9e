"""The catalog's tables. A row that is observed mirrors one group's public fields and says how it was observed."""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, MetaData, String, Table, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)

_BYTES = "bytes:"


class PathText(TypeDecorator[str]):
    """An absolute path. A path that is no UTF-8 (a surrogate-escaped string here) is stored as hex behind a prefix
    that no absolute path has."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        if value is None:
            return None
        try:
            str(value).encode()
        except UnicodeEncodeError:
            return _BYTES + os.fsencode(value).hex()
        return str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        if value is not None and value.startswith(_BYTES):
            return os.fsdecode(bytes.fromhex(value.removeprefix(_BYTES)))
        return None if value is None else str(value)


class Unsigned(TypeDecorator[int]):
    """An unsigned 64-bit number, such as an inode: too large for the integers that databases have."""

    impl = String(20)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        return None if value is None else int(value)


def _observed() -> list[Column[Any]]:
    """`revision` goes up with every write of the row; `at_ms` is when its public value last changed."""
    return [
        Column("revision", BigInteger, nullable=False),
        Column("observed_began", BigInteger, nullable=False),
        Column("observed_ended", BigInteger, nullable=False),
        Column("observed_clock", Text, nullable=False),
        Column("run", Text, nullable=False),
        Column("seq", BigInteger),
        Column("producer", Text, nullable=False),
        Column("at_ms", BigInteger),
    ]


def _of_workspace() -> Column[Any]:
    return Column("workspace_id", Text, ForeignKey("workspace.id", ondelete="CASCADE"), primary_key=True)


meta = Table("meta", METADATA, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

project = Table(
    "project",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("path", PathText, nullable=False, unique=True),
    Column("base", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("removed_ms", BigInteger),
)

# `present`: true while discovery finds the worktree, false once it is gone, null before it was ever found.
# `revision_floor`: rows made anew in this workspace start above it, so that no revision is ever given twice.
workspace = Table(
    "workspace",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, ForeignKey("project.id", ondelete="CASCADE"), nullable=False),
    Column("incarnation", Integer, nullable=False),
    Column("path", PathText),
    Column("git_dir", PathText),
    Column("common_dir", PathText),
    Column("inode", Unsigned),
    Column("present", Boolean),
    Column("revision_floor", BigInteger, nullable=False),
    Column("name", Text),
    Column("phase", Text),
    Column("branch", Text),
    Column("base", Text),
    *_observed(),
    Index("ix_workspace_project_id", "project_id"),
    Index("ix_workspace_path", "path"),
)

# `waiting_by` and `waiting_tool` are the `bridges.hooks.Wait` of a hook that told of a wait; null where none did.
session = Table(
    "session",
    METADATA,
    _of_workspace(),
    Column("id", Text, primary_key=True),
    Column("provider", Text),
    Column("name", Text),
    Column("model", Text),
    Column("state", Text),
    Column("waiting_for", Text),
    Column("crashed", Boolean),
    Column("waiting_by", Text),
    Column("waiting_tool", Text),
    *_observed(),
)

pull_request = Table(
    "pull_request",
    METADATA,
    _of_workspace(),
    Column("number", BigInteger),
    Column("url", Text),
    Column("state", Text),
    Column("review", Text),
    Column("mergeable", Text),
    Column("health", Text),
    Column("head", Text),
    *_observed(),
)

checks = Table(
    "checks",
    METADATA,
    _of_workspace(),
    Column("state", Text),
    Column("passed", BigInteger),
    Column("failed", BigInteger),
    Column("pending", BigInteger),
    Column("health", Text),
    Column("pr", BigInteger),
    Column("head", Text),
    *_observed(),
)

ratchet = Table(
    "ratchet",
    METADATA,
    _of_workspace(),
    Column("enabled", Boolean),
    Column("state", Text),
    Column("stalled", Boolean),
    Column("iterating", Boolean),
    *_observed(),
)

terminal = Table(
    "terminal",
    METADATA,
    _of_workspace(),
    Column("active", Boolean),
    Column("last_output", BigInteger),
    *_observed(),
)

run_script = Table(
    "run_script",
    METADATA,
    _of_workspace(),
    Column("state", Text),
    Column("port", BigInteger),
    *_observed(),
)

# Of a token only its hash is kept. Without `all_projects` it opens those in `token_project`.
token = Table(
    "token",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),
    Column("all_projects", Boolean, nullable=False),
    Column("may_write", Boolean, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("used_ms", BigInteger),
)

token_project = Table(
    "token_project",
    METADATA,
    Column("token_id", Text, ForeignKey("token.id", ondelete="CASCADE"), primary_key=True),
    Column("project_id", Text, ForeignKey("project.id", ondelete="CASCADE"), primary_key=True),
)
