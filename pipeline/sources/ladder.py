"""Which evidence of a session wins, field by field: the highest rung that knows; and a death overrides them all.

Pure. Sightings of one session come from several sources, each of which only ever replaces its own last one. A source
that says ``unknown`` says that something is there, which loses against any source that knows more.

A hook is the word of an instant, where all else is there to be looked at again: it stands on top until something that
is sure is dated after it (`outdated`), and never returns.
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
ASKED: Final = ("plan", "question")


class Rung(IntEnum):
    """How good the evidence of a kind of source is. `HOOK`: what was told, by whomever, for as long as it stands."""

    EXISTS = 1
    TERMINAL = 2
    TRANSCRIPT = 3
    STREAM = 4
    REGISTRY = 5
    HOOK = 6


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
    __slots__ = ("death", "last", "past", "sightings")

    def __init__(self) -> None:
        self.sightings: dict[str, Sighting] = {}
        self.death: Best | None = None
        self.last: Best | None = None  # what was known as the last sighting was lost
        self.past: Stamp | None = None  # until when hooks say nothing any more


class Ladder:
    """The evidence of every session that any source sees."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._lapsed: set[str] = set()

    def __contains__(self, session: str) -> bool:
        return session in self._known

    def sessions(self) -> Iterable[str]:
        return self._known

    def told(self) -> list[str]:
        """The sessions of which a hook stands."""
        return [session for session, known in self._known.items() if any(map(_is_hook, known.sightings.values()))]

    def saw(self, source: str, sighting: Sighting) -> bool:
        """Take the source's newest sighting; true if what is known has changed by it.

        What was seen after a death is of another life of the session: it was resumed.
        """
        known = self._known.setdefault(sighting.session, _Known())
        if _is_hook(sighting) and known.past is not None and not _after(sighting.stamp, known.past):
            return False
        before = self.best(sighting.session)
        known.sightings[source] = sighting
        if known.death is not None and _after(sighting.stamp, known.death.stamp):
            known.death = None
        lasting = [one for one in known.sightings.values() if not _is_hook(one)]
        for name, one in list(known.sightings.items()):
            if _is_hook(one) and any(outdated(one, by) for by in lasting):
                del known.sightings[name]
                known.past = one.stamp
        after = self.best(sighting.session)
        return (before and (before.fields, before.cwd)) != (after and (after.fields, after.cwd))

    def lost(self, source: str, session: str) -> bool:
        """The source does not have it any more; true if that is its end.

        It is, if no other source has it either. But what a hook told stands, unless it was the agent's own registry
        that had the session and has it no more.
        """
        known = self._known.get(session)
        if known is None or source not in known.sightings:
            return False
        known.last = weigh(known.sightings)
        gone = known.sightings.pop(source)
        return not self.left(session) and (gone.rung is Rung.REGISTRY or not known.sightings)

    def ended(self, source: str, session: str, stamp: Stamp, at_ms: int, *, crashed: bool) -> bool:
        """The session's process has ended, or nobody sees it any more; false if that was known."""
        known = self._known.get(session)
        if known is None or known.death is not None:
            return False
        best = self.best(session)
        if best is None:
            return False
        fields = replace(best.fields, state="exited", waiting_for=None, crashed=crashed)
        known.death, known.past = Best(source, best.cwd, fields, stamp, at_ms), stamp
        known.sightings = {name: one for name, one in known.sightings.items() if not _is_hook(one)}
        return True

    def lapse(self, source: str, lapsed: bool) -> bool:
        """Whether anybody still stands by what this source sees, of each of its kinds; true if that is news."""
        if lapsed == (source in self._lapsed):
            return False
        (self._lapsed.add if lapsed else self._lapsed.discard)(source)
        return True

    def forget(self, session: str) -> None:
        self._known.pop(session, None)

    def left(self, session: str) -> bool:
        """Whether any source still sees something of it; that a hook told of it does not count."""
        known = self._known.get(session)
        return known is not None and not all(map(_is_hook, known.sightings.values()))

    def best(self, session: str) -> Best | None:
        """``None`` for a session of which there is no evidence at all."""
        known = self._known.get(session)
        if known is None:
            return None
        return known.death or weigh(self._standing(known.sightings)) or known.last

    def _standing(self, sightings: dict[str, Sighting]) -> dict[str, Sighting]:
        """Of a source that has lapsed no more is known than that something was there."""
        if not self._lapsed:
            return sightings
        return {name: _unsure(one) if name.split(" ")[0] in self._lapsed else one for name, one in sightings.items()}


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
    if fields.waiting_for == "permission":
        # Claude's registry has this one word for whatever the user is asked; what for is in the lines.
        kinds = (one.fields.waiting_for for _, one in ranked if one.fields.state == "waiting")
        fields = replace(fields, waiting_for=next((kind for kind in kinds if kind in ASKED), "permission"))
    if fields.state is None:
        fields = replace(fields, state="unknown")
    if fields.state != "exited":
        fields = replace(fields, crashed=None)
    return Best(source, ranked[0][1].cwd, fields, winner.stamp, winner.at_ms)


def outdated(told: Sighting, by: Sighting) -> bool:
    """Whether evidence that lasts ends what a hook told: it is dated after it, and says something for certain.

    Lines of an agent that waits for a permission read as if it worked, so against a wait they are not certain. Whoever
    says that it waits as well ends nothing.
    """
    if by.rung < Rung.TRANSCRIPT or by.fields.state in (None, "unknown"):
        return False
    if told.fields.state == by.fields.state == "waiting":
        return False  # they agree, and a hook knows better what for
    if by.stamp.clock == told.stamp.clock and by.stamp.began <= told.stamp.ended:
        return False
    return by.rung is Rung.REGISTRY or (told.fields.state, by.fields.state) != ("waiting", "working")


def _unsure(sighting: Sighting) -> Sighting:
    return replace(sighting, fields=replace(sighting.fields, state="unknown", waiting_for=None))


def _is_hook(sighting: Sighting) -> bool:
    return sighting.rung is Rung.HOOK


def _knowledge(fields: Session) -> int:
    """Of equals, `max` keeps the first: the one on the highest rung."""
    return 0 if fields.state is None else 1 if fields.state == "unknown" else 2


def _after(stamp: Stamp, other: Stamp) -> bool:
    return stamp.clock == other.clock and stamp.began > other.ended
