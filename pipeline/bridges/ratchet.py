"""Ratchet rows become looks at `ratchet`."""

from __future__ import annotations

from pipeline.bridges.row import Place, Row, look_of, value_of
from pipeline.domain.model import Look, Ratchet, Stamp


def look(row: Row, place: Place, stamp: Stamp | None = None) -> Look:
    """The automation on the workspace's pull request. Raises `RowError`."""
    return look_of(place, "ratchet", value_of(Ratchet, row), row, stamp)
