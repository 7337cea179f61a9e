"""One client's connection: finished frames are written to the transport as they are, and only while it is empty.

So a client that does not read costs what the kernel holds for it and one write more, and delays nobody: see `Hub`.
`Outlet` is what every connection has that a session writes to; a `Socket` is a WebSocket.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Any, Final

from aiohttp import WSCloseCode, hdrs, web

from gateway import framing
from gateway.hub import Hub
from gateway.reader import Kind, Message, Reader, Unreadable
from gateway.session import Close, Redeem, Session
from gateway.tokens import Caller
from pipeline import frames
from pipeline.runtime.clock import now_ns

STALLED_NS: Final = 30_000_000_000
FAREWELL_S: Final = 2.0
VERSION: Final = "13"
KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")  # 16 bytes
GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

Current = Callable[[str], Caller | None]


class Tally:
    """What all connections of this process have done."""

    def __init__(self) -> None:
        self.opened = 0
        self.writes = 0
        self.bytes = 0
        self.blocked = 0
        self.resyncs = 0
        self.closed: dict[int, int] = {}


class Outlet(ABC):
    """A client of the hub: a session that writes to a transport. `current` says what its token opens now.

    The fast lane writes to its `seat`.
    """

    __slots__ = ("_blocked_since", "_current", "_hub", "_tally", "open", "seat", "session", "transport")

    def __init__(
        self, hub: Hub, tally: Tally, session: Session, transport: asyncio.Transport, current: Current
    ) -> None:
        self.session = session
        self.seat = session.seat
        self.seat.held, self.seat.closing = transport.get_write_buffer_size, transport.is_closing
        self.open = False
        self._hub = hub
        self._tally = tally
        self.transport = transport
        self._current = current
        self._blocked_since = 0

    def join(self) -> None:
        """Be served from now on."""
        self.open = True
        self.seat.client = self
        self._tally.opened += 1
        self._hub.add(self)
        self.regrant()  # it may have changed since the door

    def leave(self) -> None:
        self.open = False
        self.seat.close()
        self._hub.remove(self)
        self.seat.client = None
        self._tally.resyncs += self.session.resyncs

    @property
    def greeted(self) -> bool:
        return self.session.greeted

    @property
    def projects(self) -> Collection[str]:
        return self.session.projects

    def flush(self, now: int) -> bool:
        if not self.open or self.transport.is_closing():
            return True
        if self.transport.get_write_buffer_size():
            if not self._blocked_since:
                self._blocked_since = now
                self._tally.blocked += 1
            return False
        self._blocked_since = 0
        out = self.session.due(now)
        if out:
            data = out[0] if len(out) == 1 else b"".join(out)
            self.transport.write(data)
            self.sent(1, len(data))
            self.wrote(now)
        return not self.session.waits

    def sent(self, frames: int, size: int) -> None:
        """Count what was written."""
        self._tally.writes += frames
        self._tally.bytes += size

    @abstractmethod
    def wrote(self, now: int) -> None:
        """Something was written to this client."""

    @abstractmethod
    def lost(self) -> None:
        """The connection is gone."""

    def beat_due(self, now: int) -> bool:
        return self.session.heartbeat_due(now)

    def hurry(self) -> None:
        self.session.hurry_heartbeat()

    def check(self, now: int) -> None:
        if not self.open:
            return
        if self.transport.is_closing():
            self.lost()
        elif self._blocked_since and now - self._blocked_since > STALLED_NS:
            self.close(Close(frames.STALLED, "did not read what was sent"))
        elif (verdict := self.session.check(now)) is not None:
            self.close(verdict)

    def regrant(self) -> None:
        caller = self.session.caller
        if not self.open or caller is None:
            return
        now = self._current(caller.token_id)
        if now is not caller and (verdict := self.session.regrant(now)) is not None:
            self.close(verdict)

    def close(self, why: Close) -> None:
        if not self.open:
            return
        self.open = False
        self.seat.close()
        self._tally.closed[why.code] = self._tally.closed.get(why.code, 0) + 1
        self.part(why)

    @abstractmethod
    def part(self, why: Close) -> None:
        """Say goodbye, and let go."""


class Upgrade(web.StreamResponse):
    """The answer to a handshake (RFC 6455). Raises `web.HTTPBadRequest` if it is none.

    `packs`: both sides have agreed to pack frames, each by itself. `speaks`: they have agreed on our protocol.
    """

    def __init__(self, request: web.Request, compress: bool) -> None:
        asked = request.headers
        key = asked.get(hdrs.SEC_WEBSOCKET_KEY, "")
        if not (
            asked.get(hdrs.UPGRADE, "").strip().lower() == "websocket"
            and "upgrade" in asked.get(hdrs.CONNECTION, "").lower()
            and asked.get(hdrs.SEC_WEBSOCKET_VERSION) == VERSION
            and KEY.fullmatch(key)
        ):
            raise web.HTTPBadRequest
        offered = ",".join(asked.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, []))
        self.speaks = frames.SUBPROTOCOL in (one.strip() for one in offered.split(","))
        self.packs = compress and framing.deflates(",".join(asked.getall(hdrs.SEC_WEBSOCKET_EXTENSIONS, [])))
        headers = {hdrs.UPGRADE: "websocket", hdrs.CONNECTION: "upgrade", hdrs.SEC_WEBSOCKET_ACCEPT: _accepted(key)}
        if self.speaks:
            headers[hdrs.SEC_WEBSOCKET_PROTOCOL] = frames.SUBPROTOCOL
        if self.packs:
            headers[hdrs.SEC_WEBSOCKET_EXTENSIONS] = framing.AGREED
        super().__init__(status=101, headers=headers)
        self.force_close()

    async def write_eof(self, _: bytes = b"") -> None:
        """What follows is not aiohttp's."""


def _accepted(key: str) -> str:
    return base64.b64encode(hashlib.sha1(key.encode() + GUID, usedforsecurity=False).digest()).decode()


class _Early:
    """What a client said before its handshake was answered."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """The transport tells that itself."""


def _released(request: web.Request) -> bytes:
    """Let aiohttp forget a connection, as if it were lost; returns what it had read of it already."""
    protocol: Any = request.protocol
    early = _Early()
    protocol.set_parser(early)
    protocol.transport = None  # it would be closed
    protocol.connection_lost(None)
    return early.data


class Socket(Outlet, asyncio.Protocol):
    """A WebSocket. Once aiohttp has answered the handshake, the connection is ours: its request, its parser and its two
    tasks are ten kilobytes, for a client that says something once in ten seconds.
    """

    __slots__ = ("_cut_off", "_paused", "_reader")

    def __init__(
        self,
        hub: Hub,
        tally: Tally,
        heartbeat_ms: int,
        request: web.Request,
        *,
        caller: Caller | None,
        redeem: Redeem,
        current: Current,
    ) -> None:
        assert request.transport is not None
        session = Session(hub, heartbeat_ms, now_ns(), caller=caller, redeem=redeem)
        super().__init__(hub, tally, session, request.transport, current)
        self._reader: Reader | None = None  # nothing more is read
        self._paused = False  # while an answer is not out yet
        self._cut_off: asyncio.TimerHandle | None = None

    async def run(self, request: web.Request, send_buffer: int, compress: bool = True) -> web.StreamResponse:
        """Answer the handshake; from then on the socket serves itself."""
        bound(self.transport, send_buffer)
        upgrade = Upgrade(request, compress)
        await upgrade.prepare(request)
        if self.transport.is_closing():
            return upgrade
        early = _released(request)
        self._reader = Reader(upgrade.packs)
        if upgrade.packs:
            self.seat.form = framing.deflated
        self.transport.set_protocol(self)
        self.join()
        raw = self.transport.get_extra_info("socket")
        if raw is not None and self.open:
            self.seat.descriptor = raw.fileno()
        self.transport.resume_reading()
        if not upgrade.speaks:
            self.close(Close(frames.WRONG_PROTOCOL, f"ask for the subprotocol {frames.SUBPROTOCOL}"))
        if early:
            self.data_received(early)
        return upgrade

    def data_received(self, data: bytes) -> None:
        if self._reader is not None:
            self._reader.take(data)
            self._read()

    def eof_received(self) -> None:
        self.seat.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._reader = None
        if self._cut_off is not None:
            self._cut_off.cancel()
        self.leave()

    def _read(self) -> None:
        """Take what has come, until there is something to say that the client does not take."""
        try:
            while self._reader is not None and not self._paused:
                message = self._reader.next(self.session.most)
                if message is None:
                    return
                self._take(message)
        except Unreadable as why:
            self._reader = None
            self.close(Close(frames.BAD_FRAME, str(why)))
        except Exception as error:
            self._reader = None
            self.close(Close(frames.INTERNAL, "internal error"))
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a client's message could not be taken", "exception": error}
            )

    def _take(self, message: Message) -> None:
        if message.kind is Kind.CLOSE:
            self._end(message.data)
        if not self.open:
            return
        verdict: Close | None = None
        if message.kind is Kind.TEXT:
            verdict = self.session.receive(message.data, now_ns())
        elif message.kind is Kind.PING:
            verdict = self.session.ping(message.data, now_ns())
        elif message.kind is Kind.BINARY:
            verdict = Close(frames.BAD_FRAME, "frames are text")
        if verdict is not None:
            self.close(verdict)
            return
        self._hub.serve(self)
        if self.session.answers and self.open:
            self._paused = True
            self.transport.pause_reading()

    def wrote(self, now: int) -> None:
        if self._paused:
            self._paused = False
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()
            self._read()

    def lost(self) -> None:
        """`connection_lost` follows."""

    def part(self, why: Close) -> None:
        """Whoever does not answer in time is cut off."""
        if not self.transport.is_closing():
            self.transport.write(framing.close(why.code, why.reason))
        if self._paused:
            self._paused = False
            self._go_on()
        self._cut_off = asyncio.get_running_loop().call_later(FAREWELL_S, self.transport.abort)

    def _end(self, said: bytes) -> None:
        """The client says goodbye, or answers ours."""
        self._reader = None
        if self.open:
            self.open = False
            self.seat.close()
            code = int.from_bytes(said[:2]) if len(said) >= 2 else WSCloseCode.OK
            self.transport.write(framing.close(code, ""))
            self._cut_off = asyncio.get_running_loop().call_later(FAREWELL_S, self.transport.abort)
        self.transport.close()


def bound(transport: asyncio.Transport, send_buffer: int) -> None:
    """Bound what the kernel holds for one client."""
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
