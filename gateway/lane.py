"""The fast lane: one finished frame, written to every socket whose client holds the version before it.

Nearly all clients of a project hold the same version and are to be told nothing else, and for them the system call is
nearly all that a delivery costs: so they are gathered and written to together, without asking each session what is due.
Whoever is not *steady* (see `Session`), is behind, or cannot take the whole frame is left to `Outlet.flush`.

The descriptor is written to directly. That is safe while the transport holds nothing back and is not closing: its own
writes come before ours or after them, never in between; and a descriptor is given to nobody else before it closes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any, Final, Protocol, TypeAlias

from gateway.framing import Form
from gateway.ring import Send, write_each
from gateway.session import Session
from gateway.shelf import Shelf

CLOSED: Final = -1

Need: TypeAlias = tuple[int, int, Form]
"""A subscription's id, the version from which, and how the message leaves: for all of one need there is one frame."""


class Rider(Protocol):
    """`descriptor` is `CLOSED` for whoever may not be written to directly."""

    descriptor: int
    session: Session
    transport: Any

    def sent(self, frames: int, size: int) -> None:
        """Count what was written, to this client and others."""
        ...


def fan_out(clients: Iterable[Any], shelf: Shelf, send: Send = write_each) -> list[Any]:
    """Bring the steady ones to the shelf's version; returns the others."""
    riders, left = _gathered(clients, shelf)
    version = shelf.version
    for (id_, from_, form), alike in riders.items():
        frame = shelf.delta(id_, from_, form)
        if frame is None:
            left += alike
            continue
        short = send([client.descriptor for client in alike], frame)
        for client in alike:
            client.session.steady.version = version
        for place, _ in short:
            alike[place].session.steady.version = from_
        size = len(frame) * (len(alike) - len(short))
        for place, written in short:
            client = alike[place]
            if written >= 0:
                client.transport.write(frame[written:])
                client.session.steady.version = version
                size += len(frame)
            elif -written in (errno.EAGAIN, errno.EWOULDBLOCK):
                left.append(client)
            # Else it is broken off: its transport will notice.
        if size:
            alike[0].sent(size // len(frame), size)
    return left


def _gathered(clients: Iterable[Any], shelf: Shelf) -> tuple[dict[Need, list[Any]], list[Any]]:
    """Who can be written to now and needs it, by what they need; and the others, without those that need nothing."""
    riders: dict[Need, list[Any]] = {}
    left: list[Any] = []
    epoch, version = shelf.epoch, shelf.version
    from_, id_, form = -1, -1, None
    alike: list[Any] = []
    for client in clients:
        if client.descriptor < 0:
            left.append(client)
            continue
        session, transport = client.session, client.transport
        one = session.steady
        if (
            one is None
            or one.epoch != epoch
            or one.version > version
            or transport.get_write_buffer_size()
            or transport.is_closing()
        ):
            left.append(client)
            continue
        if one.version == version:
            continue
        if one.version != from_ or one.id != id_ or session.form is not form:
            from_, id_, form = one.version, one.id, session.form
            alike = riders.setdefault((id_, from_, form), [])
        alike.append(client)
    return riders, left
