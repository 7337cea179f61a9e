"""Workspace rows become looks at `life`."""

from __future__ import annotations

from pipeline.bridges.row import Place, Row, look_of, value_of
from pipeline.domain.model import Life, Look, Stamp


def look(row: Row, place: Place, stamp: Stamp | None = None) -> Look:
    """That the workspace exists, and what it is called. Raises `RowError`."""
    return look_of(place, "life", value_of(Life, row), row, stamp)
