"""The fast lane: one finished frame, written to every socket whose client holds the version before it.

Nearly all clients of a project hold the same version and are to be told nothing else, and for them the system call is
nearly all that a delivery costs. So they sit in a `Row`: their descriptors lie ready in one array, the version that all
of them hold is kept once, and a frame moves them all on without a look at any. A client gets up as soon as anything but
the next frame is to happen to it: it has said something, its session is asked what is due, it did not take the whole
frame, or it goes. Then it is `afoot`, with its version in its own cursor, and with the next frame it sits down again
if it is *steady* (see `Session`) and its transport is empty.

The descriptor is written to directly. That is safe while the transport holds nothing back: its own writes come before
ours or after them, never in between, and whoever is written to by his transport is afoot. A descriptor is given to
nobody else before its connection is lost, and by then its seat is closed.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from gateway import framing
from gateway.framing import Form
from gateway.ring import Send, write_each

if TYPE_CHECKING:
    from gateway.shelf import Shelf

CLOSED: Final = -1

Need: TypeAlias = tuple[int, int, Form]
"""A subscription's id, the version from which, and how the message leaves: for all of one need there is one frame."""


class Cursor(Protocol):
    id: int
    epoch: str
    version: int


class Seat:
    """A client as the fast lane sees it.

    `descriptor`: what may be written to directly, or `CLOSED`. `held` and `closing`: how many bytes the transport holds
    back, and whether it is going. `cursor`: the only subscription of a client that is steady, else ``None``; the
    version in it counts only while the client is afoot. `form`: how its messages leave. `client`: who sits here.
    """

    __slots__ = ("client", "closing", "cursor", "descriptor", "form", "held", "place", "row")

    def __init__(self, form: Form = framing.text) -> None:
        self.descriptor = CLOSED
        self.cursor: Cursor | None = None
        self.form = form
        self.held: Callable[[], int] = _nothing
        self.closing: Callable[[], bool] = _never
        self.client: Any = None
        self.row: Row | None = None
        self.place = 0

    def get_up(self) -> None:
        """Something else than the next frame is to happen: the version is in the cursor again."""
        if self.row is not None:
            self.row.leave(self)

    def close(self) -> None:
        """Nothing more is written."""
        self.get_up()
        self.descriptor = CLOSED


def _nothing() -> int:
    return 0


def _never() -> bool:
    return False


class Row:
    """Seats of one need, all at one version."""

    __slots__ = ("afoot", "descriptors", "epoch", "form", "id", "seats", "version")

    def __init__(self, afoot: dict[Seat, None], id_: int, form: Form) -> None:
        self.afoot, self.id, self.form = afoot, id_, form
        self.epoch, self.version = "", -1
        self.descriptors = array("i")
        self.seats: list[Seat] = []

    def join(self, seat: Seat) -> None:
        self.afoot.pop(seat, None)
        seat.row, seat.place = self, len(self.seats)
        self.seats.append(seat)
        self.descriptors.append(seat.descriptor)

    def leave(self, seat: Seat) -> None:
        """The last one takes its place."""
        last, descriptor = self.seats.pop(), self.descriptors.pop()
        if last is not seat:
            self.seats[seat.place], self.descriptors[seat.place] = last, descriptor
            last.place = seat.place
        seat.row = None
        assert seat.cursor is not None
        seat.cursor.version = self.version
        self.afoot[seat] = None

    def clear(self) -> None:
        for seat in [*self.seats]:
            self.leave(seat)


class Lane:
    """The clients of one project."""

    def __init__(self) -> None:
        self.seats: dict[Any, Seat] = {}
        self.afoot: dict[Seat, None] = {}  # in order
        self._rows: dict[tuple[int, Form], Row] = {}

    def __len__(self) -> int:
        return len(self.seats)

    def add(self, client: Any, seat: Seat) -> None:
        self.seats[client] = seat
        self.afoot[seat] = None

    def remove(self, client: Any) -> None:
        seat = self.seats.pop(client, None)
        if seat is not None:
            seat.get_up()
            self.afoot.pop(seat, None)

    def fan_out(self, shelf: Shelf, send: Send = write_each) -> list[Any]:
        """Bring the steady ones to the shelf's version; returns the other clients."""
        left: list[Seat] = []
        riders, ready = self._gathered(shelf, left)
        for key, row in [*self._rows.items()]:
            if not row.seats:
                del self._rows[key]
            elif row.epoch == shelf.epoch and row.version == shelf.version:
                continue
            elif row.epoch != shelf.epoch or not self._move(row, shelf, send, left):
                left += row.seats
                row.clear()
        for (id_, from_, form), seats in riders.items():
            frame = shelf.delta(id_, from_, form)
            if frame is None:
                left += seats
                continue
            short = dict(send([seat.descriptor for seat in seats], frame))
            _count(seats[0], len(seats) - len(short), len(frame))
            for place, seat in enumerate(seats):
                if place in short:
                    _cut_short(seat, frame, short[place], shelf.version, left)
                else:
                    assert seat.cursor is not None
                    seat.cursor.version = shelf.version
                    ready.append(seat)
        for seat in ready:
            self._sit(seat, shelf)
        return [seat.client for seat in left]

    def _move(self, row: Row, shelf: Shelf, send: Send, left: list[Seat]) -> bool:
        """Send a row its frame. False: there is none."""
        frame = shelf.delta(row.id, row.version, row.form) if row.version < shelf.version else None
        if frame is None:
            return False
        short = [(row.seats[place], written) for place, written in send(row.descriptors, frame)]
        _count(row.seats[0], len(row.seats) - len(short), len(frame))
        for seat, _ in short:
            row.leave(seat)
        row.version = shelf.version
        for seat, written in short:
            _cut_short(seat, frame, written, shelf.version, left)
        return True

    def _sit(self, seat: Seat, shelf: Shelf) -> None:
        cursor = seat.cursor
        assert cursor is not None
        row = self._rows.get((cursor.id, seat.form))
        if row is None:
            row = self._rows[cursor.id, seat.form] = Row(self.afoot, cursor.id, seat.form)
        row.epoch, row.version = shelf.epoch, shelf.version  # where all of them are by now
        row.join(seat)

    def _gathered(self, shelf: Shelf, left: list[Seat]) -> tuple[dict[Need, list[Seat]], list[Seat]]:
        """Of those afoot: who can be written to now and needs it, by what they need; and who is there already."""
        riders: dict[Need, list[Seat]] = {}
        ready: list[Seat] = []
        epoch, version = shelf.epoch, shelf.version
        for seat in self.afoot:
            cursor = seat.cursor
            if (
                cursor is None
                or seat.descriptor < 0
                or cursor.epoch != epoch
                or cursor.version > version
                or seat.held()
                or seat.closing()
            ):
                left.append(seat)
            elif cursor.version == version:
                ready.append(seat)
            else:
                riders.setdefault((cursor.id, cursor.version, seat.form), []).append(seat)
        return riders, ready


def _count(seat: Seat, frames: int, size: int) -> None:
    if frames:
        seat.client.sent(frames, frames * size)


def _cut_short(seat: Seat, frame: bytes, written: int, version: int, left: list[Seat]) -> None:
    """One who is afoot has not taken the whole frame: its transport finishes it, or its session sees what is due."""
    if written >= 0:
        seat.client.transport.write(frame[written:])
        assert seat.cursor is not None
        seat.cursor.version = version
        _count(seat, 1, len(frame))
    elif -written in (errno.EAGAIN, errno.EWOULDBLOCK):
        left.append(seat)
    # Else it is broken off: its transport will notice.
