"""What a client holds of one project, and what each frame means for it. Pure: frames and times in, what to tell and to
say out. The rules it keeps:

1. A snapshot replaces what is held. A delta of another epoch, or from above the version that is held, is a gap; one to
   no more than that version is old news. A heartbeat with a later version is a gap too, and one with another hash at
   the same version means that the copy is wrong. Gaps and wrong copies are answered with a resync, one at a time.
2. Three resyncs within a minute: the cursor is dropped, and the copy called degraded until the next snapshot. Whoever
   needs more is not in a hurry.
3. A frame that is malformed is counted, and answered with a resync if it tells that it is ours. Types and fields of a
   later server are ignored, and values of a later server let through.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from pipeline import frames
from pipeline.domain import patch as merge_patch

SUBSCRIPTION: Final = 1
SECOND: Final = 1_000_000_000
MINUTE: Final = 60 * SECOND
SILENCE: Final = 25 * SECOND
SILENT_BEATS: Final = 2.5
MISSED_BEATS: Final = 1.5
RESYNCS_PER_MINUTE: Final = 3

Kind: TypeAlias = Literal["status", "verified", "delta", "snapshot"]
Standing: TypeAlias = Literal["connecting", "loading", "live", "stale", "degraded", "gone"]


class Answer(NamedTuple):
    """What a frame led to: what to tell the user (``None``: nothing), what to say to the server, what in a while."""

    kind: Kind | None = None
    changed: frozenset[str] = frozenset()
    says: tuple[dict[str, Any], ...] = ()
    later: dict[str, Any] | None = None


class Copy:
    """One project's state as a client holds it, and what each frame means for it.

    It keeps no versions of fields, unlike a `Ledger`: nobody asks a client for differences. And it takes whatever an
    entry holds, of whatever shape: a later server may know more groups.
    """

    def __init__(self, project: str) -> None:
        self.project = project
        self.workspaces: dict[str, Any] | None = None
        self.epoch = ""
        self.version = -1
        self.complete = True
        self.verified = -1
        self.tells_all = False  # proofs that are no news too
        self.state: Standing = "connecting"
        self.health: dict[str, Any] = {}
        self.heard = 0
        self.heard_here = False  # on this connection
        self.proven = 0  # when what was held had last the server's hash
        self.beat = 0  # when the last heartbeat came, or the greeting
        self.heartbeat_ms = 0
        self.malformed = 0
        self._cursor = True  # whether what is held counts as a place to go on from
        self._answered = False  # on this connection
        self._asked = ""  # the reason of a resync that was not answered yet
        self._beats = 0  # heartbeats since then
        self.waits = False  # it shall be said later, and was not yet
        self._resyncs: list[int] = []
        self._shares: dict[str, int] = {}
        self._dirty: set[str] = set()
        self._total = 0

    def hash(self) -> str:
        """The state hash; only what changed since the last call is encoded again."""
        held = self.workspaces or {}
        for name in self._dirty:
            self._total -= self._shares.pop(name, 0)
            if name in held:
                share = self._shares[name] = merge_patch.entry_hash(name, merge_patch.canonical(held[name]))
                self._total += share
        self._dirty.clear()
        return merge_patch.show_hash(self._total)

    @property
    def cursor(self) -> dict[str, Any]:
        """Where to go on from; empty if there is no such place."""
        return {"epoch": self.epoch, "version": self.version} if self._cursor and self.workspaces is not None else {}

    def lose(self) -> Answer:
        """The connection is lost."""
        self._answered, self._asked, self.waits, self.heard_here = False, "", False, False
        return self._stand("connecting")

    def patience(self, missed: bool) -> int:
        """For how long no heartbeat may come, in nanoseconds. `missed`: one must have come by now."""
        beat = self.heartbeat_ms * (SECOND // 1000)
        return int(max(MISSED_BEATS * beat, SECOND) if missed else max(SILENCE, SILENT_BEATS * beat))

    def take(self, data: str | bytes, now: int) -> Answer:
        """Take one frame as it came."""
        try:
            return self._take(frames.read_server(data), now)
        except frames.DecodeError:
            return self._mistrust(data, now)

    def _subscribe(self) -> dict[str, Any]:
        return {"type": "subscribe", "id": SUBSCRIPTION, "project": self.project, **self.cursor}

    def _take(self, frame: frames.FromServer | None, now: int) -> Answer:
        match frame:
            case frames.Welcome():
                self.beat, self.heartbeat_ms = now, frame.heartbeat_ms
                return self._stand("loading")._replace(says=(self._subscribe(),))
            case frames.Heartbeat():
                return self._heartbeat(frame, now)
            case None:  # of a later protocol
                return Answer()
        if frame.id != SUBSCRIPTION or self.state == "gone":
            return Answer()
        self.heard, self.heard_here = now, True
        match frame:
            case frames.Loading():
                return self._stand("loading")
            case frames.Snapshot():
                return self._snapshot(frame, now)
            case frames.Delta():
                return self._delta(frame, now)
            case frames.Error() if frame.code not in ("not_found", "forbidden"):
                return Answer()
            case frames.End() | frames.Error():
                self.workspaces, self.state = None, "gone"
                return Answer("status")

    def _snapshot(self, frame: frames.Snapshot, now: int) -> Answer:
        _check(frame.workspaces.values())
        before = self.workspaces or {}
        self.workspaces = merge_patch.merge({}, frame.workspaces)
        self.epoch, self.version, self.complete = frame.epoch, frame.version, frame.complete
        self._cursor, self._answered, self.verified = True, True, -1
        self._asked, self.waits = "", False
        changed = {name for name, entry in frame.workspaces.items() if before.get(name) != entry}
        changed |= before.keys() - frame.workspaces.keys()
        self._dirty |= changed
        answer = Answer()
        if self.hash() == frame.hash:
            self.verified, self.proven = frame.version, now
        else:
            answer = self._ask("hash", now)
        self._stand("live")
        return answer._replace(kind="snapshot", changed=frozenset(changed))

    def _delta(self, frame: frames.Delta, now: int) -> Answer:
        if self.workspaces is None or not self._cursor or frame.epoch != self.epoch or frame.from_ > self.version:
            return self._ask("gap", now)
        self._answered = True
        if self._asked == "gap":
            self._asked = ""
        if frame.to <= self.version:
            return self._stand("live")
        _check(entry for entry in frame.patch.values() if entry is not None)
        self.workspaces, self.version = merge_patch.merge(self.workspaces, frame.patch), frame.to
        self._dirty |= frame.patch.keys()
        self._stand("live")
        return Answer("delta", frozenset(frame.patch))

    def _heartbeat(self, frame: frames.Heartbeat, now: int) -> Answer:
        self.beat, self.health = now, frame.health
        mark = frame.subscriptions.get(str(SUBSCRIPTION))
        held = self.workspaces is not None
        mine = {str(SUBSCRIPTION): {"version": self.version, "hash": self.hash()}} if held else {}
        answer = Answer()
        if mark is not None and self.state != "gone":
            self.heard, self.heard_here = now, True
            answer = self._compare(mark, now)
        told = self._stand(self.state)
        ack = {"type": "ack", "n": frame.n, "subscriptions": mine}
        return answer._replace(kind=answer.kind or told.kind, says=(ack, *answer.says))

    def _compare(self, mark: frames.Mark, now: int) -> Answer:
        if self._asked:
            self._beats += 1
            if self.waits or self._beats == 1:  # the answer may be behind it
                return Answer()
            self._asked = ""
        if self.workspaces is None or not self._cursor or mark.version > self.version:
            return self._ask("gap", now)
        if mark.version < self.version:
            # Behind all that was sent before it, so what is held is of another epoch: a snapshot was lost.
            return self._ask("hash", now)
        if mark.hash != self.hash():
            self.verified = -1
            return self._ask("hash", now)
        news = self.tells_all or self.verified != mark.version or self.complete != mark.complete
        self.verified, self.proven, self.complete = mark.version, now, mark.complete
        return Answer("verified" if news else None)

    def _mistrust(self, data: str | bytes, now: int) -> Answer:
        """A malformed frame: if it is ours, ask again for what it may have said; else the next heartbeat shows whether
        anything was lost."""
        self.malformed += 1
        try:
            named = msgspec.json.decode(data, type=_Named).id == SUBSCRIPTION
        except frames.DecodeError:
            named = False
        if not named or self.state == "gone":
            return Answer()
        self._asked = "" if not self.waits else self._asked  # this may have been the answer
        return self._ask("gap", now)

    def _ask(self, reason: str, now: int) -> Answer:
        """Ask for a resync, unless one is on its way."""
        if self._asked:
            return Answer()
        self._resyncs = [*(at for at in self._resyncs if now - at < MINUTE), now][-RESYNCS_PER_MINUTE - 1 :]
        if len(self._resyncs) >= RESYNCS_PER_MINUTE:
            self._cursor, reason = False, "hash"
        # A state that is wrong each time it comes is not asked for at the speed of the line.
        self._asked, self._beats, self.waits = reason, 0, len(self._resyncs) > RESYNCS_PER_MINUTE
        held = {"version": self.version} if self.cursor else {}
        message = {"type": "resync", "id": SUBSCRIPTION, "reason": reason, **held}
        told = self._stand(self.state).kind
        return Answer(told, later=message) if self.waits else Answer(told, says=(message,))

    def _stand(self, state: Standing) -> Answer:
        """Whoever holds something shows it, as live, stale or degraded; else `state` is where it stands."""
        if self.workspaces is not None:
            fresh = self._answered and self.health.get("aggregator") != "stale"
            state = "stale" if not fresh else "live" if self._cursor else "degraded"
        before, self.state = self.state, state
        return Answer("status" if state != before else None)


class _Named(msgspec.Struct):
    id: int


def _check(entries: Iterable[Any]) -> None:
    if not all(isinstance(entry, dict) for entry in entries):
        raise msgspec.ValidationError("an entry must be an object")
