"""Readers: each takes one complete census of one database."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pipeline.domain.model import Census


class Reading(NamedTuple):
    """A census, and the rows that could not be read, in words."""

    census: Census
    problems: list[str]


class Reader(Protocol):
    """Takes a census; blocks. Raises `CatalogUnavailable` if the database cannot be read."""

    def read(self) -> Reading: ...
