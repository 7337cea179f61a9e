"""Which evidence of a session wins, field by field: the highest rung that knows; and a death overrides them all.

Pure. Sightings of one session come from several sources, each of which only ever replaces its own last one. A source
that says ``unknown`` says that something is there, which loses against any source that knows more.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from pipeline.domain.model import Session, Stamp

BUSY: Final = ("starting", "working", "waiting")
IDENTITY: Final = ("provider", "name", "model")


class Rung(IntEnum):
    """How good the evidence of a kind of source is."""

    EXISTS = 1
    TERMINAL = 2
    TRANSCRIPT = 3
    STREAM = 4
    HOOK = 5
    REGISTRY = 6


class Sighting(Struct, frozen=True):
    """What one source saw of one agent's session.

    `session`: the id, without the group's prefix. `cwd` decides the workspace. A field of `fields` that is ``None`` is
    one that this source does not know. `stamp`: an instant where the source dates what it says, otherwise the interval
    in which it was read. `pid`, `started`: the agent's process, and field 22 of its ``/proc/<pid>/stat``.
    """

    session: str
    cwd: str
    rung: Rung
    fields: Session
    stamp: Stamp
    at_ms: int | None = None
    pid: int | None = None
    started: int | None = None


class Best(NamedTuple):
    """What all evidence together says, and whose word the state is."""

    source: str
    cwd: str
    fields: Session
    stamp: Stamp
    at_ms: int | None


class _Known:
    __slots__ = ("death", "last", "sightings")

    def __init__(self) -> None:
        self.sightings: dict[str, Sighting] = {}
        self.death: Best | None = None
        self.last: Best | None = None  # what was known as the last sighting was lost


class Ladder:
    """The evidence of every session that any source sees."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def __contains__(self, session: str) -> bool:
        return session in self._known

    def sessions(self) -> Iterable[str]:
        return self._known

    def saw(self, source: str, sighting: Sighting) -> bool:
        """Take the source's newest sighting; true if what is known may have changed.

        What was seen after a death is of another life of the session: it was resumed.
        """
        known = self._known.setdefault(sighting.session, _Known())
        former = known.sightings.get(source)
        known.sightings[source] = sighting
        if known.death is not None and _after(sighting.stamp, known.death.stamp):
            known.death = None
            return True
        return former is None or (former.fields, former.cwd) != (sighting.fields, sighting.cwd)

    def lost(self, source: str, session: str) -> bool:
        """The source does not have it any more; true if no other source has it either."""
        known = self._known.get(session)
        if known is None or source not in known.sightings:
            return False
        known.last = weigh(known.sightings)
        del known.sightings[source]
        return not known.sightings

    def ended(self, source: str, session: str, stamp: Stamp, at_ms: int, *, crashed: bool) -> bool:
        """The session's process has ended, or nobody sees it any more; false if that was known."""
        known = self._known.get(session)
        if known is None or known.death is not None:
            return False
        best = self.best(session)
        if best is None:
            return False
        fields = replace(best.fields, state="exited", waiting_for=None, crashed=crashed)
        known.death = Best(source, best.cwd, fields, stamp, at_ms)
        return True

    def forget(self, session: str) -> None:
        self._known.pop(session, None)

    def left(self, session: str) -> bool:
        """Whether any source still sees something of it."""
        known = self._known.get(session)
        return known is not None and bool(known.sightings)

    def best(self, session: str) -> Best | None:
        """``None`` for a session of which there is no evidence at all."""
        known = self._known.get(session)
        if known is None:
            return None
        return known.death or weigh(known.sightings) or known.last


def weigh(sightings: dict[str, Sighting]) -> Best | None:
    """What these sightings of one session, by source, come to."""
    if not sightings:
        return None
    ranked = sorted(sightings.items(), key=lambda one: (one[1].rung, one[1].stamp.ended), reverse=True)
    source, winner = max(ranked, key=lambda one: _knowledge(one[1].fields))
    fields = winner.fields
    for name in IDENTITY:
        known = (getattr(one.fields, name) for _, one in ranked)
        fields = replace(fields, **{name: next((value for value in known if value is not None), None)})
    if fields.state is None:
        fields = replace(fields, state="unknown")
    if fields.state != "exited":
        fields = replace(fields, crashed=None)
    return Best(source, ranked[0][1].cwd, fields, winner.stamp, winner.at_ms)


def _knowledge(fields: Session) -> int:
    """Of equals, `max` keeps the first: the one on the highest rung."""
    return 0 if fields.state is None else 1 if fields.state == "unknown" else 2


def _after(stamp: Stamp, other: Stamp) -> bool:
    return stamp.clock == other.clock and stamp.began > other.ended
