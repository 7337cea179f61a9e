"""Pull request rows and check rows become looks at `pr` and `ci`, both with the key that ties them together."""

from __future__ import annotations

from pipeline.bridges.row import Place, Row, look_of, value_of
from pipeline.domain.model import Ci, Key, Look, Pr, Stamp


def key_of(number: int | None, head: str | None) -> Key | None:
    """The key of a pull request at a head commit; without a number there is none, an unknown head is empty."""
    return None if number is None else Key(number, head or "")


def look(row: Row, place: Place, stamp: Stamp | None = None) -> Look:
    """The workspace's pull request. Raises `RowError`."""
    return look_of(place, "pr", value_of(Pr, row), row, stamp, key_of(row["number"], row["head"]))


def checks_look(row: Row, place: Place, stamp: Stamp | None = None) -> Look:
    """The checks, with the pull request and the head that they ran on. Raises `RowError`."""
    return look_of(place, "ci", value_of(Ci, row), row, stamp, key_of(row["pr"], row["head"]))
