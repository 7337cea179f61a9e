"""What the bridges of catalog rows share: where a row stands, and how it was observed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple, TypeVar

import msgspec

from pipeline.domain.model import Group, Key, Look, Stamp, Value

SOURCE = "catalog"

V = TypeVar("V", bound=Group)
Row = Mapping[str, Any]


class Place(NamedTuple):
    """The workspace that a row belongs to, and the domain (the identity of the database) that orders its revisions."""

    project: str
    workspace: str
    incarnation: int
    domain: str


class RowError(ValueError):
    """A row holds what no look may say; the message names the row and the column."""


@cache
def fields_of(kind: type[Group]) -> tuple[str, ...]:
    """The public fields of a group, in order; a row has a column for each."""
    return kind.__struct_fields__


def value_of(kind: type[V], row: Row) -> V:
    """The row's public value. Raises `RowError` if a column holds another type or an unknown word."""
    try:
        return msgspec.convert({field: row[field] for field in fields_of(kind)}, kind)
    except msgspec.ValidationError as error:
        raise RowError(f"a {kind.__name__.lower()} row cannot be read: {error}") from None


def stamp_of(row: Row) -> Stamp:
    """The interval in which the row's value was observed."""
    return Stamp(row["observed_began"], row["observed_ended"], row["observed_clock"])


def look_of(
    place: Place, group: str, value: Value | None, row: Row, stamp: Stamp | None, key: Key | None = None
) -> Look:
    """The look that this row is. `stamp`: when the row itself was read; without it, when its value was observed."""
    return Look(
        project=place.project,
        workspace=place.workspace,
        group=group,
        value=value,
        stamp=stamp if stamp is not None else stamp_of(row),
        source=SOURCE,
        incarnation=place.incarnation,
        producer=row["producer"],
        run=row["run"],
        seq=row["seq"],
        domain=place.domain,
        revision=row["revision"],
        key=key,
        at_ms=row["at_ms"],
    )
