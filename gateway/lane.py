"""The fast lane: one finished frame, written to every socket whose client holds the version before it.

Nearly all clients of a project hold the same version and are to be told nothing else, and for them the system call is
nearly all that a delivery costs: so they are written to in one loop, without asking each session what is due. Whoever
is not *steady* (see `Session`), is behind, or cannot take the whole frame is left to `Outlet.flush`.

The descriptor is written to directly. That is safe while the transport holds nothing back and is not closing: its own
writes come before ours or after them, never in between; and a descriptor is given to nobody else before it closes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Final, Protocol

from gateway.session import Session
from gateway.shelf import Shelf

CLOSED: Final = -1


class Rider(Protocol):
    """`descriptor` is `CLOSED` for whoever may not be written to directly."""

    descriptor: int
    session: Session
    transport: Any

    def sent(self, frames: int, size: int) -> None:
        """Count what was written, to this client and others."""
        ...


def fan_out(clients: Iterable[Any], shelf: Shelf) -> list[Any]:
    """Bring the steady ones to the shelf's version; returns the others."""
    write = os.write
    left: list[Any] = []
    epoch, version = shelf.epoch, shelf.version
    from_, id_, form = -1, -1, None
    frame: bytes | None = None
    frames = size = length = 0
    last: Rider | None = None
    for client in clients:
        descriptor = client.descriptor
        if descriptor < 0:
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
            frame = shelf.delta(id_, from_, form)
            length = len(frame) if frame is not None else 0
        if frame is None:
            left.append(client)
            continue
        try:
            written = write(descriptor, frame)
        except BlockingIOError:
            left.append(client)
            continue
        except OSError:  # broken off; its transport will notice, and nothing was sent
            continue
        if written != length:
            transport.write(frame[written:])
        one.version = version
        frames += 1
        size += length
        last = client
    if last is not None:
        last.sent(frames, size)
    return left
