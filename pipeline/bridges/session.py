"""Session rows become looks at `session:<id>`."""

from __future__ import annotations

from pipeline.bridges.row import Place, Row, look_of, value_of
from pipeline.domain.model import SESSION_PREFIX, Look, Session, Stamp


def look(row: Row, place: Place, stamp: Stamp | None = None) -> Look:
    """One agent session. Raises `RowError`."""
    return look_of(place, SESSION_PREFIX + row["id"], value_of(Session, row), row, stamp)


def gone(row: Row, place: Place, stamp: Stamp) -> Look:
    """The session is not kept any longer: a look without a value, one revision above the row's last."""
    return look_of(place, SESSION_PREFIX + row["id"], None, {**row, "revision": row["revision"] + 1}, stamp)
