"""What an actor of the demo can do to the world. The stage does it for real."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

HEAD: Final = "@HEAD"  # in a report: the commit that the worktree stands at when the report is sent


class Where(NamedTuple):
    """A worktree: the project that it is of, and the branch that it was made for."""

    project: str
    branch: str


class Add(NamedTuple):
    """Make the worktree, on a new branch that left main `behind` commits ago."""

    where: Where
    behind: int = 0


class Remove(NamedTuple):
    """Remove the worktree and its branch."""

    where: Where


class Edit(NamedTuple):
    """Append lines to a file, and cut as many from its beginning; one that is not there is made."""

    where: Where
    file: str
    lines: int
    cut: int = 0


class Commit(NamedTuple):
    """Commit everything."""

    where: Where
    message: str


class Rebase(NamedTuple):
    """Rebase onto main. What is not committed is committed first."""

    where: Where


class Clash(NamedTuple):
    """Merge main into a branch that changed the same line, and leave the conflict there."""

    where: Where


class Advance(NamedTuple):
    """Commit to the project's main."""

    project: str
    message: str


class Report(NamedTuple):
    """Report some fields of one group. A `lost` one is written to the catalog, and its message never arrives."""

    where: Where
    group: str
    fields: dict[str, Any]
    age_s: float = 0.0
    lost: bool = False


class Reconnect(NamedTuple):
    """The reporter starts anew: another connection, another run, its counter from the beginning."""


Act: TypeAlias = Add | Remove | Edit | Commit | Rebase | Clash | Advance | Report | Reconnect
