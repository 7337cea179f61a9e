"""Run script rows become looks at `run`."""

from __future__ import annotations

from pipeline.bridges.row import Place, Row, look_of, value_of
from pipeline.domain.model import Look, Run, Stamp


def look(row: Row, place: Place, stamp: Stamp | None = None) -> Look:
    """The workspace's run script. Raises `RowError`."""
    return look_of(place, "run", value_of(Run, row), row, stamp)
