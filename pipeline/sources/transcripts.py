"""What agents write as they go: one file for a session, a line for each event, read on as it grows.

Of a file only the tail is read, and only of files that were written to lately. A session whose agent cannot be told by
a registry is taken to be over once no process of its sort is left in its worktree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from pipeline.bridges.event import event_stamp
from pipeline.domain.model import Session
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.sources.ladder import Rung, Sighting
from pipeline.sources.tail import Tail

MOST: Final = 512
RECENT_MS: Final = 24 * 3600 * 1000
PIECES: Final = 16


class Reading(Protocol):
    session: str
    cwd: str
    at_ms: int | None

    def fields(self) -> Session: ...


R = TypeVar("R", bound=Reading)


class _File(NamedTuple, Generic[R]):
    tail: Tail
    reading: R


class Step(NamedTuple):
    """What a step found: sightings of sessions that have new lines, and the sessions whose files are gone."""

    seen: list[Sighting]
    gone: set[str]


class Transcripts(Generic[R]):
    """The files of one sort of agent. Blocks; one call at a time."""

    def __init__(self, new: Callable[[], R], read: Callable[[R, bytes], bool], *, head: bool = False) -> None:
        self._new, self._read, self._head = new, read, head
        self._files: dict[str, _File[R]] = {}

    def __len__(self) -> int:
        return len(self._files)

    def paths(self) -> set[str]:
        return set(self._files)

    def sessions(self) -> dict[str, str]:
        """Each session, and the folder that it works in."""
        return {file.reading.session: file.reading.cwd for file in self._files.values() if file.reading.session}

    def follow(self, paths: Iterable[str]) -> set[str]:
        """Follow these files, newest first, and no others; returns the sessions that are left out by that."""
        wanted = list(dict.fromkeys(paths))[:MOST]
        before = set(self.sessions())
        self._files = {path: self._files.get(path) or self._fresh(path) for path in wanted}
        return before - set(self.sessions())

    def step(self, paths: Iterable[str] | None = None) -> Step:
        """Read on in those of these files that are followed, or in all."""
        seen: list[Sighting] = []
        gone: set[str] = set()
        for path in list(self._files) if paths is None else paths:
            if path in self._files:
                self._on(path, seen, gone)
        return Step(seen, gone - {one.session for one in seen})

    def _on(self, path: str, seen: list[Sighting], gone: set[str]) -> None:
        said = False
        for _ in range(PIECES):
            file = self._files[path]
            try:
                found = file.tail.read()
            except OSError:
                if file.reading.session:
                    gone.add(file.reading.session)
                self._files[path] = self._fresh(path)
                return
            if found.anew and file.reading.session:
                self._files[path] = file = _File(file.tail, self._new())
            for line in found.lines:
                said = self._read(file.reading, line) or said
            if not found.more:
                break
        if said and file.reading.session and file.reading.cwd:
            seen.append(_sighting(file.reading, found.at_ms))

    def _fresh(self, path: str) -> _File[R]:
        return _File(Tail(path, head=self._head), self._new())


def _sighting(reading: Reading, written_ms: int) -> Sighting:
    """A line is true as of when it was written, however late it is read: what was told since then is not undone."""
    now, wall = now_ns(), wall_ms()
    at_ms = min(reading.at_ms if reading.at_ms is not None else written_ms, wall)
    return Sighting(
        session=reading.session,
        cwd=reading.cwd,
        rung=Rung.TRANSCRIPT,
        fields=reading.fields(),
        stamp=event_stamp(wall - at_ms, now, CLOCK),
        at_ms=at_ms,
    )
