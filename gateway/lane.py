"""The fast lane: one finished frame, written to every socket whose client holds the version before it.

Nearly all clients of a project hold the same version and are to be told nothing else, and for them the system call is
nearly all that a delivery costs: so they are gathered and written to together, without asking each session what is due.
Whoever is not *steady* (see `Session`), is behind, or cannot take the whole frame is left to `Outlet.flush`.

The descriptor is written to directly. That is safe while the transport holds nothing back and is not closing: its own
writes come before ours or after them, never in between; and a descriptor is given to nobody else before it closes.

With thousands of clients, what is left is waiting for memory. So all that is asked of a client with each frame lies
together in its `Seat`, and nothing else of the client is touched.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
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
    back, and whether it is going. `cursor`: the only subscription of a client that is steady, else ``None``. `form`:
    how its messages leave. `client`: for what the lane does not do itself.
    """

    __slots__ = ("client", "closing", "cursor", "descriptor", "form", "held")

    def __init__(self, form: Form = framing.text) -> None:
        self.descriptor = CLOSED
        self.cursor: Cursor | None = None
        self.form = form
        self.held: Callable[[], int] = _nothing
        self.closing: Callable[[], bool] = _never
        self.client: Any = None


def _nothing() -> int:
    return 0


def _never() -> bool:
    return False


def fan_out(seats: Iterable[Seat], shelf: Shelf, send: Send = write_each) -> list[Any]:
    """Bring the steady ones to the shelf's version; returns the other clients."""
    riders, left = _gathered(seats, shelf)
    version = shelf.version
    for (id_, from_, form), (descriptors, cursors, alike) in riders.items():
        frame = shelf.delta(id_, from_, form)
        if frame is None:
            left += alike
            continue
        short = send(descriptors, frame)
        for cursor in cursors:
            cursor.version = version
        for place, _ in short:
            cursors[place].version = from_
        size = len(frame) * (len(alike) - len(short))
        for place, written in short:
            if written >= 0:
                alike[place].client.transport.write(frame[written:])
                cursors[place].version = version
                size += len(frame)
            elif -written in (errno.EAGAIN, errno.EWOULDBLOCK):
                left.append(alike[place])
            # Else it is broken off: its transport will notice.
        if size:
            alike[0].client.sent(size // len(frame), size)
    return [seat.client for seat in left]


Alike: TypeAlias = tuple[list[int], list[Cursor], list[Seat]]


def _gathered(seats: Iterable[Seat], shelf: Shelf) -> tuple[dict[Need, Alike], list[Seat]]:
    """Who can be written to now and needs it, by what they need; and the others, without those that need nothing."""
    riders: dict[Need, Alike] = {}
    left: list[Seat] = []
    epoch, version = shelf.epoch, shelf.version
    from_, id_, form = -1, -1, None
    descriptors, cursors, alike = _NOBODY
    for seat in seats:
        cursor = seat.cursor
        if (
            cursor is None
            or (descriptor := seat.descriptor) < 0
            or cursor.epoch != epoch
            or cursor.version > version
            or seat.held()
            or seat.closing()
        ):
            left.append(seat)
            continue
        if cursor.version == version:
            continue
        if cursor.version != from_ or cursor.id != id_ or seat.form is not form:
            from_, id_, form = cursor.version, cursor.id, seat.form
            descriptors, cursors, alike = riders.setdefault((id_, from_, form), ([], [], []))
        descriptors.append(descriptor)
        cursors.append(cursor)
        alike.append(seat)
    return riders, left


_NOBODY: Final[Alike] = ([], [], [])
