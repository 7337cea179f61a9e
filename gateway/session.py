"""One client's protocol, without its socket: messages in, finished frames out. The rules it keeps:

1. The first frame is ``hello``; what comes before, or twice, or does not decode, closes the session with a code. Who
   nobody knows yet brings a ticket with it.
2. A subscription is a cursor, never a queue: `due` says what a client needs *now* to be at the head, however long it
   was away. Memory per client is constant, and a slow one skips versions.
3. Every cursor is answered: with a delta (an empty one if nothing changed), a snapshot or an error. Only one above
   the head waits, a moment: our own replica may be the one that is late.
4. A heartbeat follows whatever brings the client to the head, so its hashes are of exactly the versions it holds.
5. While an answer waits for the socket nothing more is read, so a client that asks and does not listen stalls itself.
6. A client is steady while it is at the head of its only subscription, or was, and is owed nothing besides: then the
   next delta is all that is due to it. Its cursor is in its seat then, for the fast lane to move.
7. A project that the caller may not see does not exist for him. When that changes, `regrant` ends what he may not
   follow any more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, NamedTuple, Protocol, TypeAlias

from msgspec import Struct

from gateway import framing
from gateway.framing import Form
from gateway.lane import Seat
from gateway.shelf import Shelf
from gateway.tokens import OPERATOR, Caller
from pipeline import frames

AHEAD_WAIT_NS: Final = 1_500_000_000
WRITE_BYTES: Final = 256 << 10


class Limits(Struct, frozen=True):
    """What one socket may ask of us. `burst`: a client that reconnects subscribes to everything at once."""

    hello_ns: int = 5_000_000_000
    first_bytes: int = 4 << 10
    frame_bytes: int = 64 << 10
    per_second: int = 20
    burst: int = 64
    subscriptions: int = 32
    unacked: int = 3
    unready_ns: int = 60_000_000_000


LIMITS: Final = Limits()


class Board(Protocol):
    """Where a session reads from."""

    @property
    def epoch(self) -> str: ...

    @property
    def settled(self) -> bool:
        """Whether a census has told which projects there are: an unknown one does not exist."""
        ...

    @property
    def stale(self) -> bool:
        """Whether the aggregator is not heard."""
        ...

    @property
    def crowded(self) -> bool:
        """Whether there are as many clients as there may be."""
        ...

    def shelf(self, project: str) -> Shelf | None: ...

    def health(self) -> frames.Health: ...


class Close(NamedTuple):
    """The session is over; the reason is for the person who reads the client's log."""

    code: int
    reason: str


Redeem: TypeAlias = Callable[[str], Caller | Close]


def _no_tickets(_: str) -> Close:
    return Close(frames.UNAUTHENTICATED, "tickets are not taken here")


class Subscription:
    """A cursor. `version` below 0: the client holds nothing that counts. `owed`: it waits for an answer.

    `granted`: the caller may see the project. `told`: when he was told that there is nothing to show yet, else 0.
    """

    __slots__ = ("epoch", "granted", "id", "live", "owed", "project", "reason", "told", "version", "wait_until")

    def __init__(self, id_: int, project: str, epoch: str, version: int, granted: bool) -> None:
        self.id = id_
        self.project = project
        self.epoch = epoch
        self.version = version
        self.granted = granted
        self.reason: frames.Reason = "initial"
        self.owed = True
        self.live = False
        self.told = 0
        self.wait_until = 0


class Session:
    """`caller`: ``None`` while nobody knows who it is; `redeem` says whose a ticket is. `form`: how messages leave."""

    __slots__ = (
        "_at",
        "_began",
        "_board",
        "_heartbeat_ms",
        "_listens_only",
        "_next_heartbeat",
        "_redeem",
        "_tokens",
        "acked",
        "answers",
        "caller",
        "greeted",
        "limits",
        "n",
        "resyncs",
        "seat",
        "subscriptions",
        "waits",
    )

    def __init__(
        self,
        board: Board,
        heartbeat_ms: int,
        now: int,
        limits: Limits | None = None,
        *,
        caller: Caller | None = OPERATOR,
        redeem: Redeem = _no_tickets,
        form: Form = framing.text,
    ) -> None:
        self.limits = limits or LIMITS
        self.caller = caller
        self.seat = Seat(form)
        self.greeted = False
        self.waits = False
        self.answers: list[bytes] = []
        self.subscriptions: dict[int, Subscription] = {}
        self.n = 0
        self.acked = 0
        self.resyncs = 0
        self._listens_only = False
        self._board = board
        self._redeem = redeem
        self._heartbeat_ms = heartbeat_ms
        self._next_heartbeat = 0
        self._began = now
        self._tokens = float(self.limits.burst)
        self._at = now

    @property
    def projects(self) -> Collection[str]:
        return {one.project for one in self.subscriptions.values()}

    @property
    def most(self) -> int:
        """How many bytes the next message may have."""
        return self.limits.frame_bytes if self.greeted else self.limits.first_bytes

    # ── in ───────────────────────────────────────────────────────────────────────────────────────

    def receive(self, data: bytes, now: int) -> Close | None:
        """Take one message. What there is to say goes out with the next `due`."""
        if (verdict := self._spend(now)) is not None:
            return verdict
        if len(data) > self.most:
            return Close(frames.BAD_FRAME, f"longer than {self.most} bytes")
        try:
            message = frames.decode_client(data)
        except RecursionError:
            return Close(frames.BAD_FRAME, "nested too deeply")
        except frames.DecodeError as error:
            return Close(frames.BAD_FRAME, str(error))
        if isinstance(message, frames.Hello):
            return self._hello(message, now)
        if not self.greeted:
            return Close(frames.WRONG_PROTOCOL, "the first message must be hello")
        match message:
            case frames.Subscribe():
                self._subscribe(message)
            case frames.Unsubscribe():
                self._unsubscribe(message)
            case frames.Resync():
                self._resync(message)
            case frames.Ack():
                self._ack(message)
        return None

    def ping(self, data: bytes, now: int) -> Close | None:
        """Take a ping: it is answered in its turn, and counts like a message."""
        self.answers.append(framing.pong(data))
        return self._spend(now)

    def _spend(self, now: int) -> Close | None:
        self.seat.get_up()
        self.seat.cursor = None
        limits = self.limits
        self._tokens = min(float(limits.burst), self._tokens + (now - self._at) * limits.per_second / 1e9)
        self._at = now
        if self._tokens < 1:
            return Close(frames.RATE, f"more than {limits.per_second} messages a second")
        self._tokens -= 1
        return None

    def follow(self, project: str, epoch: str, version: int, now: int) -> None:
        """Begin for a client that can only listen: it has one subscription, and acknowledges nothing."""
        self._listens_only = True
        self._greet(now)
        self._open(frames.Subscribe(1, project, epoch or None, None if version < 0 else version))

    def _hello(self, hello: frames.Hello, now: int) -> Close | None:
        if self.greeted:
            return Close(frames.WRONG_PROTOCOL, "hello was said already")
        if self.caller is None:
            found = _no_ticket() if hello.ticket is None else self._redeem(hello.ticket)
            if isinstance(found, Close):
                return found
            self.caller = found
        if self.caller.projects is not None and not self.caller.projects:
            return Close(frames.FORBIDDEN, "this token opens no project")
        if self._board.crowded:
            return Close(frames.TOO_MANY, "there are as many clients as there may be: see gateway.max_sockets")
        self._greet(now)
        return None

    def _greet(self, now: int) -> None:
        self.greeted = True
        self._next_heartbeat = now + self._heartbeat_ms * 1_000_000
        bounds = frames.Bounds(self.limits.subscriptions, self.limits.frame_bytes)
        self._say(frames.Welcome(frames.PROTOCOL, self._board.epoch, self._heartbeat_ms, bounds))

    def _subscribe(self, asked: frames.Subscribe) -> None:
        board = self._board
        if asked.id in self.subscriptions:
            self._say(frames.Error(asked.id, "duplicate", "there is a subscription with this id; choose another"))
        elif len(self.subscriptions) >= self.limits.subscriptions:
            most = self.limits.subscriptions
            self._say(frames.Error(asked.id, "too_many", f"one socket has at most {most} subscriptions"))
        elif board.settled and (board.shelf(asked.project) is None or not self._may(asked.project)):
            self._say(frames.Error(asked.id, "not_found", "there is no such project, or you may not see it"))
        else:
            self._open(asked)

    def _open(self, asked: frames.Subscribe) -> None:
        version = -1 if asked.version is None or not asked.epoch else asked.version
        granted = self._may(asked.project)
        self.subscriptions[asked.id] = Subscription(asked.id, asked.project, asked.epoch or "", version, granted)

    def _may(self, project: str) -> bool:
        return self.caller is not None and self.caller.may(project)

    def regrant(self, caller: Caller | None) -> Close | None:
        """What the caller may see has changed; ``None``: nothing any more. What ends is said with the next `due`."""
        if caller is None:
            return Close(frames.REVOKED, "this token opens nothing any more")
        self.seat.get_up()
        self.caller, self.seat.cursor = caller, None
        for one in [*self.subscriptions.values()]:
            if self._may(one.project):
                one.granted = True
            elif one.granted:
                del self.subscriptions[one.id]
                self._say(frames.End(one.id, "revoked"))
        return None

    def _unsubscribe(self, asked: frames.Unsubscribe) -> None:
        if self.subscriptions.pop(asked.id, None) is None:
            self._unknown(asked.id)
        else:
            self._say(frames.End(asked.id, "unsubscribed"))

    def _resync(self, asked: frames.Resync) -> None:
        one = self.subscriptions.get(asked.id)
        if one is None:
            self._unknown(asked.id)
            return
        self.resyncs += 1
        one.owed = True
        if asked.reason == "hash" or asked.version is None:
            one.version, one.reason = -1, "hash"
        elif one.version >= 0:
            one.version, one.wait_until = asked.version, 0

    def _ack(self, ack: frames.Ack) -> None:
        self.acked = max(self.acked, min(ack.n, self.n))

    def _unknown(self, id_: int) -> None:
        self._say(frames.Error(id_, "not_found", "there is no subscription with this id"))

    # ── out ──────────────────────────────────────────────────────────────────────────────────────

    def due(self, now: int) -> list[bytes]:
        """What brings the client to the head, as finished frames; they count as sent. Empty if it is there.

        After so many bytes the rest is left for the next time; `waits` then says that there is more.
        """
        self.seat.get_up()
        out, self.answers = self.answers, []
        self.waits = False
        size = 0
        for one in [*self.subscriptions.values()]:
            if size > WRITE_BYTES:
                self.waits = True
                return out
            frame = self._advance(one, now)
            if frame is not None:
                out.append(frame)
                size += len(frame)
        if self.greeted and now >= self._next_heartbeat:
            out.append(self._heartbeat(now))
        self.seat.cursor = self._sole()
        return out

    def _sole(self) -> Subscription | None:
        if len(self.subscriptions) != 1 or self.waits:
            return None
        one = next(iter(self.subscriptions.values()))
        return one if one.live and not one.owed else None

    def heartbeat_due(self, now: int) -> bool:
        return self.greeted and now >= self._next_heartbeat

    def hurry_heartbeat(self) -> None:
        """Make the next heartbeat due now, unless one waits for its acknowledgement already."""
        if self.greeted and self.n == self.acked:
            self._next_heartbeat = 0

    def check(self, now: int) -> Close | None:
        """Whether the client has been silent where it had to speak."""
        if not self.greeted and now - self._began > self.limits.hello_ns:
            return Close(frames.HELLO_TIMEOUT, "no hello in time")
        if self.heartbeat_due(now) and self.n - self.acked >= self.limits.unacked:
            return Close(frames.NO_ACK, f"{self.limits.unacked} heartbeats were not acknowledged")
        if self._board.stale and self._has_nothing(now - self.limits.unready_ns):
            return Close(frames.NOT_READY, "there is nothing to show, and nobody to ask for it; try again")
        return None

    def _has_nothing(self, since: int) -> bool:
        """Whether all that it follows was told to wait, and that before `since`."""
        following = self.subscriptions.values()
        return bool(following) and all(not one.live and 0 < one.told <= since for one in following)

    def _advance(self, one: Subscription, now: int) -> bytes | None:
        shelf = self._board.shelf(one.project) if one.granted else None
        if shelf is None and (self._board.settled or one.live):
            del self.subscriptions[one.id]
            return self._frame(frames.End(one.id, "not_found"))
        if shelf is None or not shelf.loaded:
            if one.told:
                return None
            one.told = max(now, 1)
            return self._frame(frames.Loading(one.id))
        if one.version < 0:
            return self._snapshot(one, shelf, one.reason)
        if one.epoch != shelf.epoch:
            return self._snapshot(one, shelf, "epoch")
        if one.version > shelf.version:
            return self._ahead(one, shelf, now)
        if one.version == shelf.version and not one.owed:
            return None
        frame = shelf.delta(one.id, one.version, self.seat.form)
        if frame is None:
            return self._snapshot(one, shelf, "slow" if one.live else "floor")
        self._sent(one, shelf)
        return frame

    def _ahead(self, one: Subscription, shelf: Shelf, now: int) -> bytes | None:
        if not one.wait_until:
            one.wait_until = now + AHEAD_WAIT_NS
        if now >= one.wait_until:
            return self._snapshot(one, shelf, "ahead")
        self.waits = True
        return None

    def _snapshot(self, one: Subscription, shelf: Shelf, reason: frames.Reason) -> bytes:
        self._sent(one, shelf)
        return shelf.snapshot(one.id, reason, self.seat.form)

    def _sent(self, one: Subscription, shelf: Shelf) -> None:
        one.epoch, one.version = shelf.epoch, shelf.version
        one.owed, one.live, one.wait_until = False, True, 0

    def _heartbeat(self, now: int) -> bytes:
        self.n += 1
        if self._listens_only:
            self.acked = self.n
        self._next_heartbeat = now + self._heartbeat_ms * 1_000_000
        marks = {}
        for one in self.subscriptions.values():
            shelf = self._board.shelf(one.project)
            if shelf is not None and one.live and one.epoch == shelf.epoch and one.version == shelf.version:
                marks[str(one.id)] = frames.Mark(shelf.version, shelf.hash(), shelf.complete)
        return self._frame(frames.Heartbeat(self.n, marks, self._board.health()))

    def _say(self, message: frames.FromServer) -> None:
        self.answers.append(self._frame(message))

    def _frame(self, message: frames.FromServer) -> bytes:
        return self.seat.form(frames.encode(message), "")


def _no_ticket() -> Close:
    return Close(frames.UNAUTHENTICATED, "hello must bring a ticket: POST /v1/tickets makes one")
