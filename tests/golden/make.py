"""Write `frames.json`: `python -m tests.golden.make` after a change of the protocol, and read the difference.

Frames come from the real session over a real ledger. What a client does with each is said here, line by line: that is
the rule, not an observation. Where a client must have caught up, its state is compared with the ledger's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway import framing
from gateway.session import AHEAD_WAIT_NS, Session
from pipeline.domain.patch import merge, state_hash
from pipeline.domain.versioned import Ledger
from tests.board import Board, forget_the_start

PATH: Final = Path(__file__).with_name("frames.json")
HEARTBEAT_MS: Final = 10_000
ABOUT: Final = """
What a client of the protocol makes of what a server sends. Each sequence is one client with one subscription, of id 1,
to the project "web"; all its steps happen within one minute of the client's time.
A step is one of
  {"do": "connect", "frame": …}  the connection is open and the server has welcomed the client with this frame;
  {"do": "receive", "frame": …}  this frame arrives ("text" in place of "frame": exactly this text does);
  {"do": "lose"}                 the connection breaks.
`says` is what the client has sent by then, since the step before, in any order. Of an ack only type and n are given:
what a client tells of its subscriptions there is its own `version` and `hash`.
`then` is what it holds afterwards: `view` is loading (show a skeleton), live, degraded (it gave up its cursor and waits
for a snapshot) or gone; `workspaces` is exactly the result of RFC 7396, null before the first snapshot; `epoch` and
`version` are its cursor, `hash` is the state hash of `workspaces`, `complete` whether nothing is left out.
""".strip()

Frame = dict[str, Any]


class Sequence:
    """A client that does as it is told, beside a real session."""

    def __init__(self, about: str, complete: bool = True, settled: bool = True) -> None:
        self.about = about
        self.steps: list[dict[str, Any]] = []
        self.board = Board()
        self.board.settled = settled
        if settled:
            self.board.project(complete=complete)
        self.now = 0
        self.view = "loading"
        self.epoch: str | None = None
        self.version: int | None = None
        self.workspaces: dict[str, Any] | None = None
        self.complete: bool | None = None
        self.session: Session | None = None

    # ── the server's side ────────────────────────────────────────────────────────────────────────

    @property
    def ledger(self) -> Ledger:
        return self.board.ledger()

    def write(self, workspace: str, **groups: Any) -> None:
        """`sessions` as `session_s1=…`."""
        self.ledger.write(workspace, [(name.replace("session_", "session:"), value) for name, value in groups.items()])
        self.board.changed()

    def remove(self, workspace: str) -> None:
        self.ledger.remove(workspace)
        self.board.changed()

    def sent(self) -> list[Frame]:
        """What the session sends now."""
        assert self.session is not None
        return [json.loads(one) for data in self.session.due(self.now) for one in framing.payloads(data)]

    def one(self) -> Frame:
        (frame,) = self.sent()
        return frame

    def beat(self) -> Frame:
        self.now += HEARTBEAT_MS * 1_000_000
        return self.sent()[-1]

    # ── the client's side ────────────────────────────────────────────────────────────────────────

    def connect(self) -> None:
        """It subscribes with the cursor that it has."""
        cursor = {} if self.version is None else {"epoch": self.epoch, "version": self.version}
        self.session = Session(self.board, HEARTBEAT_MS, self.now)
        hello = {"type": "hello"}
        self._hear(hello)
        welcome = self.one()
        subscribe = {"type": "subscribe", "id": 1, "project": "web", **cursor}
        self._hear(subscribe)
        self._step("connect", [hello, subscribe], frame=welcome)

    def lose(self) -> None:
        self.session = None
        self._step("lose", [])

    def take(self, frame: Frame) -> None:
        """It replaces or merges, and stands where the frame says."""
        if frame["type"] == "snapshot":
            self.workspaces, self.complete = frame["workspaces"], frame["complete"]
            self.epoch, self.version = frame["epoch"], frame["version"]
        else:
            assert self.workspaces is not None
            self.workspaces, self.version = merge(self.workspaces, frame["patch"]), frame["to"]
        self.view = "live"
        self._step("receive", [], frame=frame)

    def ignore(self, frame: Frame) -> None:
        """It changes nothing and says nothing."""
        self._step("receive", [], frame=frame)

    def ignore_text(self, text: str) -> None:
        self._step("receive", [], text=text)

    def ack(self, frame: Frame, complete: bool | None = None) -> None:
        """It finds every mark equal, or has nothing to compare it with."""
        if complete is not None:
            self.complete = complete
        self._answer(frame, {"type": "ack", "n": frame["n"]})

    def resync(self, frame: Frame, reason: str, *, dropped: bool = False) -> None:
        """It finds that it has missed something. `dropped`: it has found so too often, and gives up its cursor."""
        if dropped:
            self.view, self.epoch, self.version = "degraded", None, None
        version = {} if self.version is None else {"version": self.version}
        said = [{"type": "resync", "id": 1, "reason": reason, **version}]
        if frame["type"] == "heartbeat":
            said.append({"type": "ack", "n": frame["n"]})
        self._answer(frame, *said)

    def gone(self, frame: Frame) -> None:
        """It forgets the project."""
        self.view, self.epoch, self.version, self.workspaces, self.complete = "gone", None, None, None, None
        self._step("receive", [], frame=frame)

    def caught_up(self) -> None:
        """It holds what the server holds."""
        assert self.workspaces is not None
        assert state_hash(self.workspaces) == self.ledger.hash(), self.about
        assert self.version == self.ledger.version

    def _answer(self, frame: Frame, *said: Frame) -> None:
        for message in said:
            self._hear(message)
        self._step("receive", [*said], frame=frame)

    def _hear(self, message: Frame) -> None:
        assert self.session is not None
        closed = self.session.receive(msgspec.json.encode(message), self.now)
        assert closed is None, closed

    def _step(self, do: str, says: list[Frame], **what: Any) -> None:
        then = {
            "view": self.view,
            "epoch": self.epoch,
            "version": self.version,
            "complete": self.complete,
            "hash": None if self.workspaces is None else state_hash(self.workspaces),
            "workspaces": self.workspaces,
        }
        self.steps.append({"do": do, **what, "says": says, "then": then})


def following(about: str) -> Sequence:
    """A client that has its first snapshot: two workspaces."""
    s = Sequence(about)
    s.write("w1", life={"name": "fix-login", "phase": "ready", "branch": "fix-login"}, git={"files": 3, "ahead": 2})
    s.write("w2", life={"name": "größer 🚀", "phase": "ready"}, session_s1={"provider": "claude", "state": "working"})
    s.connect()
    s.take(s.one())
    s.caught_up()
    return s


def make() -> list[Sequence]:
    """Every sequence, in the order of docs/protocol.md."""
    return [*ordinary(), *resumed(), *missed(), *unknown(), *ended()]


def ordinary() -> list[Sequence]:
    s = followed = following("a snapshot, deltas of changed fields, and a heartbeat that agrees")
    s.write("w1", git={"files": 4, "insertions": 120})
    s.take(s.one())
    s.write("w1", git={"files": 5})
    s.write("w2", session_s1={"state": "waiting", "waiting_for": "permission"})
    s.write("w3", life={"name": "new", "phase": "provisioning"})
    s.take(s.one())
    s.caught_up()
    s.ack(s.beat())

    s = loading = Sequence("nothing is complete yet: a skeleton, then the snapshot", settled=False)
    s.connect()
    s.ignore(s.one())
    s.ack(s.beat())
    s.board.project()
    s.board.settled = True
    s.write("w1", life={"name": "first"})
    s.take(s.one())
    s.caught_up()

    s = cleared = following("null clears a field, a group, a session, a workspace")
    s.write("w1", git={"ahead": None})
    s.take(s.one())
    s.write("w1", git=None)
    s.write("w2", session_s1=None)
    s.take(s.one())
    s.caught_up()
    s.remove("w1")
    s.take(s.one())
    s.caught_up()
    s.ack(s.beat())
    s.remove("w2")
    s.take(s.one())
    s.caught_up()
    s.ack(s.beat())

    s = reborn = following("removed and made anew while nobody looked: nothing of the former is left")
    s.remove("w1")
    s.write("w1", life={"name": "again", "phase": "new"})
    s.take(s.one())
    s.caught_up()

    s = empty = Sequence("a project without workspaces is not loading")
    s.connect()
    s.take(s.one())
    s.caught_up()
    s.ack(s.beat())

    s = partial = following("complete is said by snapshots and by marks, where it is not")
    s.board.replicas["web"].complete = False
    s.board.changed()
    beat = s.beat()
    assert beat["subscriptions"]["1"]["complete"] is False
    s.ack(beat, complete=False)
    s.board.replicas["web"].complete = True
    s.board.changed()
    s.ack(s.beat(), complete=True)
    return [followed, loading, cleared, reborn, empty, partial]


def resumed() -> list[Sequence]:
    s = difference = following("after a lost connection the difference, from the cursor")
    s.lose()
    s.write("w1", git={"files": 9})
    s.remove("w2")
    s.connect()
    delta = s.one()
    assert delta["type"] == "delta"
    s.take(delta)
    s.caught_up()

    s = nothing = following("nothing happened meanwhile: an empty delta, never silence")
    s.lose()
    s.connect()
    delta = s.one()
    assert (delta["patch"], delta["from"]) == ({}, delta["to"])
    s.ignore(delta)
    s.caught_up()

    s = epoch = following("resumed in another epoch: a snapshot that says so")
    s.lose()
    fresh = Ledger()
    fresh.write("w1", [("life", {"name": "rebuilt"})])
    s.board.epoch = "e2"
    s.board.project(ledger=fresh, epoch="e2")
    s.connect()
    _snapshot(s, "epoch")
    s.write("w1", git={"files": 1})
    s.take(s.one())
    s.caught_up()

    s = floor = following("resumed below the floor: a snapshot that says so")
    s.lose()
    forget_the_start(s.ledger)
    s.board.changed()
    s.connect()
    _snapshot(s, "floor")

    s = ahead = following("resumed ahead of all that is known: a snapshot that says so, and takes the client back")
    s.write("w1", git={"files": 7})
    s.take(s.one())
    s.lose()
    s.board.replicas.clear()
    s.board.shelves.clear()
    behind = Ledger()
    behind.write("w1", [("git", {"files": 3})])
    s.board.project(ledger=behind)
    s.connect()
    assert s.sent() == []
    s.now += AHEAD_WAIT_NS
    _snapshot(s, "ahead")

    s = live = following("another epoch while connected: a snapshot, and deltas of the new epoch")
    fresh = Ledger()
    fresh.write("w5", [("life", {"name": "after"})])
    s.board.epoch = "e2"
    s.board.project(ledger=fresh, epoch="e2")
    _snapshot(s, "epoch")
    s.write("w5", git={"files": 1})
    s.take(s.one())
    s.caught_up()

    s = slow = following("too slow for all that is remembered: a snapshot that says so")
    forget_the_start(s.ledger)
    s.board.changed()
    _snapshot(s, "slow")
    return [difference, nothing, epoch, floor, ahead, live, slow]


def _snapshot(s: Sequence, reason: str) -> None:
    frame = s.one()
    assert (frame["type"], frame["reason"]) == ("snapshot", reason)
    s.take(frame)
    s.caught_up()


def missed() -> list[Sequence]:
    s = gap = following("a delta that begins later: ask once, go on from the answer")
    s.write("w1", git={"files": 10})
    s.sent()  # lost
    s.write("w1", git={"ahead": 3})
    s.resync(s.one(), "gap")
    s.write("w2", git={"files": 1})
    answer = s.one()
    assert answer["from"] == s.version
    s.ignore({**answer, "from": answer["to"] - 1})  # on its way already: the question is not put twice
    s.take(answer)
    s.caught_up()
    s.ack(s.beat())

    s = tail = following("a heartbeat that names a later version: the last delta was lost")
    s.write("w1", git={"files": 10})
    s.sent()  # lost
    s.resync(s.beat(), "gap")
    s.take(s.one())
    s.caught_up()

    s = wrong = following("another hash at the same version: only the whole state helps")
    s.write("w1", git={"files": 10})
    delta = s.one()
    s.take({**delta, "patch": {"w1": {"git": {"files": 11}}}})
    s.resync(s.beat(), "hash")
    _snapshot(s, "hash")
    s.ack(s.beat())

    s = twice = following("what is known already is ignored; what overlaps is merged")
    s.write("w1", git={"files": 10})
    first = s.one()
    s.take(first)
    s.ignore(first)
    s.write("w1", git={"ahead": 7})
    second = s.one()
    s.take({**second, "from": first["from"], "patch": merge(first["patch"], second["patch"])})
    s.caught_up()

    s = late = following("a mark below what is held is of another epoch: only the whole state helps")
    beat = s.beat()
    s.write("w1", git={"files": 10})
    s.take(s.one())
    s.resync(beat, "hash")
    _snapshot(s, "hash")
    s.ack(s.beat())

    s = stranger = following("a delta of an epoch that is not the client's is a gap")
    s.resync({"type": "delta", "id": 1, "epoch": "e9", "from": 2, "to": 3, "patch": {"w1": None}}, "gap")
    s.ignore(s.one())  # the answer: nothing has changed
    s.write("w1", git={"files": 10})
    s.take(s.one())
    s.caught_up()

    s = early = Sequence("a delta before any snapshot cannot be merged")
    s.connect()
    snapshot = s.one()
    s.resync({"type": "delta", "id": 1, "epoch": "e1", "from": 0, "to": 1, "patch": {"w1": {"git": {}}}}, "gap")
    s.take(snapshot)

    s = thrice = following("three resyncs within a minute: the cursor is dropped, the last state shown as degraded")
    for n in range(2):
        s.write("w1", git={"files": 20 + n})
        s.sent()  # lost
        s.write("w1", git={"ahead": 20 + n})
        s.resync(s.one(), "gap")
        s.take(s.one())
    s.write("w1", git={"files": 30})
    s.sent()  # lost
    s.write("w1", git={"ahead": 30})
    s.resync(s.one(), "hash", dropped=True)
    _snapshot(s, "hash")
    s.write("w1", git={"files": 31})
    s.take(s.one())
    s.caught_up()
    return [gap, tail, wrong, twice, late, stranger, early, thrice]


def unknown() -> list[Sequence]:
    s = types = following("a type that nobody knows yet, and what is no message at all")
    s.ignore({"type": "weather", "id": 1, "sky": "clear"})
    s.ignore({"type": "weather"})
    s.ignore_text('{"type":"delta","id":1,')
    s.ignore_text("[]")
    s.ignore_text("null")
    s.ignore({"type": "delta", "id": 99, "epoch": "e1", "from": 2, "to": 3, "patch": {"w1": None}})
    s.write("w1", git={"files": 4})
    s.take(s.one())
    s.caught_up()

    s = fields = following("fields that nobody knows yet are kept where they are state, and ignored where they are not")
    s.write("w1", git={"files": 4})
    delta = s.one()
    patch = {"w1": {"git": {"files": 4, "stashes": 2}, "weather": {"sky": "clear"}}}
    s.take({**delta, "patch": patch, "urgency": 3})
    s.write("w1", git={"files": 5})
    s.take({**s.one(), "sent_at": 1.5})
    s.write("w1", git={"files": 6})
    s.take({**s.one(), "patch": {"w1": {"git": {"files": 6, "stashes": None}, "weather": None}}})
    s.caught_up()
    beat = s.beat()
    s.ack({**beat, "load": [1, 2], "health": {**beat["health"], "moon": {"phase": "full"}}})

    s = enums = following("values that nobody knows yet drop no message")
    s.write("w1", life={"phase": "ready"})
    delta = s.one()
    s.take({**delta, "patch": {"w1": {"life": {"phase": "hibernating"}}, "w2": {"status": {"column": "sideways"}}}})
    assert s.workspaces is not None
    s.take(
        {
            "type": "snapshot",
            "id": 1,
            "epoch": s.epoch,
            "version": s.ledger.version,
            "hash": state_hash(s.ledger.state()),
            "reason": "tidal",
            "complete": True,
            "workspaces": s.ledger.state(),
        }
    )
    s.caught_up()
    beat = s.beat()
    s.ack({**beat, "health": {"aggregator": "dreaming"}})
    s.ignore({"type": "error", "id": 1, "code": "quota", "message": "of a later release"})
    s.write("w1", git={"files": 4})
    s.take(s.one())
    s.caught_up()
    return [types, fields, enums]


def ended() -> list[Sequence]:
    s = removed = following("the project is no more")
    del s.board.shelves["web"]
    end = s.one()
    assert end == {"type": "end", "id": 1, "code": "not_found"}
    s.gone(end)
    s.ignore({"type": "delta", "id": 1, "epoch": "e1", "from": 2, "to": 3, "patch": {"w1": None}})

    s = revoked = following("the right to see it is gone")
    s.gone({"type": "end", "id": 1, "code": "revoked"})

    s = other = following("ended for a reason that nobody knows yet")
    s.gone({"type": "end", "id": 1, "code": "moved"})

    s = refused = Sequence("a project that there is not, or that the caller may not see", settled=False)
    s.board.settled = True
    s.connect()
    error = s.one()
    assert (error["type"], error["code"]) == ("error", "not_found")
    s.gone(error)
    return [removed, revoked, other, refused]


def text() -> str:
    """The file."""
    sequences = [{"about": s.about, "steps": s.steps} for s in make()]
    return json.dumps({"about": ABOUT.splitlines(), "sequences": sequences}, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
    sys.stdout.write(f"wrote {PATH}\n")
