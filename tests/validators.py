"""What must hold of any run, whatever happened in it. Used on what was recorded, so that a run cannot talk itself out.

prefix consistency    whoever is at version v of an epoch holds exactly what was published as v
monotonic versions    within an epoch nobody goes back
no mass delete        not everything leaves at once, unless it was archived
no resurrection       an incarnation that was archived before an epoch, or buried in it, is not shown again
no regression         a counter that only grows at its source never shrinks on a screen within one epoch
convergence           after quiet everybody holds the truth, and has proven it
bounds                nothing grows with the number of faults
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

# Which incarnation an entry is of, and how far each of its counters is that only grows.
Counters: TypeAlias = Callable[[dict[str, Any]], tuple[int, dict[str, int]]]


class Violation(AssertionError):
    """A rule was broken; the message says which, and where."""


class Published:
    """What the aggregator stands for: the hash of each project at each version that it let out."""

    def __init__(self) -> None:
        self._hashes: dict[tuple[str, str, int], str] = {}

    def __len__(self) -> int:
        return len(self._hashes)

    def known(self, epoch: str, project: str, version: int) -> bool:
        return (epoch, project, version) in self._hashes

    def note(self, epoch: str, project: str, version: int, hash_: str) -> None:
        known = self._hashes.setdefault((epoch, project, version), hash_)
        if known != hash_:
            raise Violation(f"{project} had two states at version {version} of epoch {epoch}")

    def check(self, who: str, epoch: str, project: str, version: int, hash_: str) -> None:
        """A copy at this version. One of a version that was never let out is as wrong as another hash."""
        known = self._hashes.get((epoch, project, version))
        if known is None:
            raise Violation(f"{who} is at version {version} of {project} in {epoch}, which nobody published")
        if known != hash_:
            raise Violation(f"{who} holds {hash_} as version {version} of {project}, published was {known}")


class Watcher:
    """What one screen showed, one state after the other."""

    def __init__(self, who: str, counters: Counters) -> None:
        self.who = who
        self._read = counters
        self._at: tuple[str, int] = ("", -1)
        self._counters: dict[tuple[str, int, str], int] = {}

    def check(self, epoch: str, version: int, snapshot: bool, workspaces: dict[str, Any]) -> None:
        """`workspaces`: those that changed at least."""
        if epoch == self._at[0] and version < self._at[1] and not snapshot:
            raise Violation(f"{self.who} went back from version {self._at[1]} to {version} of {epoch}")
        if epoch != self._at[0]:
            self._counters.clear()
        self._at = epoch, version
        for name, entry in workspaces.items():
            incarnation, counters = self._read(entry)
            for what, counter in counters.items():
                before = self._counters.get((name, incarnation, what), -1)
                if counter < before:
                    raise Violation(f"{self.who} saw {what} of {name} go back from {before} to {counter} in {epoch}")
                self._counters[name, incarnation, what] = counter


def incarnation_of(entry: dict[str, Any]) -> int:
    """As the workspace's name tells, whose last part it is."""
    name = (entry.get("life") or {}).get("name") or "?.0"
    return int(name.rpartition(".")[2])


class Graves:
    """Who ended for good. Of an epoch, none that ended before it or was buried in it may be shown."""

    def __init__(self) -> None:
        self._ended: dict[tuple[str, int], int] = {}

    def end(self, workspace: str, incarnation: int, at: int) -> None:
        self._ended.setdefault((workspace, incarnation), at)

    def left(self, before: set[tuple[str, int]], after: set[tuple[str, int]]) -> None:
        """By one census: a reading that finds nothing at all is not believed at once."""
        if before and not before & after and not before <= self._ended.keys():
            raise Violation(f"everything left at once ({before}), and nobody had archived it")

    def check(self, began: int, workspace: str, incarnation: int) -> None:
        """Of an epoch that began then."""
        at = self._ended.get((workspace, incarnation))
        if at is not None and at < began:
            raise Violation(f"{workspace}, incarnation {incarnation}, was archived before this epoch and is back in it")


def not_buried(workspace: str, incarnation: int, buried: set[tuple[str, int]]) -> None:
    """Of one epoch: who was buried for good in it."""
    if (workspace, incarnation) in buried:
        raise Violation(f"{workspace}, incarnation {incarnation}, was buried in this epoch and is back in it")


class Steps:
    """A follower's copy, from one change to the next: an answer that comes late does not take it back."""

    def __init__(self, who: str) -> None:
        self.who = who
        self._at: dict[tuple[str, str], int] = {}

    def check(self, epoch: str, project: str, version: int) -> None:
        before = self._at.get((epoch, project), -1)
        if version < before:
            raise Violation(f"{self.who} went back from version {before} to {version} of {project} in {epoch}")
        self._at[epoch, project] = version


def converged(who: str, held: dict[str, Any], truth: dict[str, Any]) -> None:
    """After quiet."""
    if held != truth:
        names = {name for name in held.keys() | truth.keys() if held.get(name) != truth.get(name)}
        told = "; ".join(f"{name}: holds {held.get(name)}, true is {truth.get(name)}" for name in sorted(names))
        raise Violation(f"{who} has not converged: {told}")


def bounded(what: str, size: int, most: int) -> None:
    if size > most:
        raise Violation(f"{what}: {size}, and may be {most}")
