"""One client's connection: finished frames are written to the transport as they are, and only while it is empty.

So a client that does not read costs what the kernel holds for it and one write more, and delays nobody: see `Hub`.
`Outlet` is what every connection has that a session writes to; a `Socket` is a WebSocket, whose handshake and reading
are aiohttp's.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Final

from aiohttp import WSCloseCode, WSMsgType, hdrs, web
from aiohttp.web_ws import WebSocketResponse

from gateway import framing
from gateway.hub import Hub
from gateway.lane import CLOSED
from gateway.session import Close, Redeem, Session
from gateway.tokens import Caller
from pipeline import frames
from pipeline.runtime.clock import now_ns

STALLED_NS: Final = 30_000_000_000
FAREWELL_S: Final = 2.0
ROOM: Final = 4096  # a frame that is somewhat too long still gets a code of ours instead of aiohttp's
UNREADABLE: Final = frozenset({WSCloseCode.PROTOCOL_ERROR, WSCloseCode.INVALID_TEXT, WSCloseCode.MESSAGE_TOO_BIG})

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
        self.open, self.seat.descriptor = False, CLOSED
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
        self.open, self.seat.descriptor = False, CLOSED
        self._tally.closed[why.code] = self._tally.closed.get(why.code, 0) + 1
        self.part(why)

    @abstractmethod
    def part(self, why: Close) -> None:
        """Say goodbye, and let go."""


class Handshake(WebSocketResponse):
    """aiohttp's, but what cannot be read is closed with a code of ours; and what is packed is packed our way."""

    def __init__(self, request: web.Request, compress: bool, most: int, broken: Callable[[], None]) -> None:
        super().__init__(
            protocols=(frames.SUBPROTOCOL,),
            compress=compress and framing.deflates(",".join(request.headers.getall(hdrs.SEC_WEBSOCKET_EXTENSIONS, []))),
            autoclose=False,  # we close in our own words, once: see `Outlet.close`
            max_msg_size=most,
        )
        self._broken = broken

    @property
    def packs(self) -> bool:
        """Whether both sides have agreed to pack frames."""
        return bool(self.compress)

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        if code in UNREADABLE:
            self._broken()
            code, message = frames.BAD_FRAME, b"not a frame, or too long"
        return await super().close(code=code, message=message, drain=drain)


async def agree(_: web.Request, response: web.StreamResponse) -> None:
    """As aiohttp is about to answer a handshake: say that frames are packed one by one, each for all."""
    if isinstance(response, Handshake) and hdrs.SEC_WEBSOCKET_EXTENSIONS in response.headers:
        response.headers[hdrs.SEC_WEBSOCKET_EXTENSIONS] = framing.AGREED


class Socket(Outlet):
    """A WebSocket."""

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
        compress: bool = True,
    ) -> None:
        assert request.transport is not None
        session = Session(hub, heartbeat_ms, now_ns(), caller=caller, redeem=redeem)
        super().__init__(hub, tally, session, request.transport, current)
        self._ws = Handshake(request, compress, session.limits.frame_bytes + ROOM, self._break)
        self._cut_off: asyncio.TimerHandle | None = None
        self._room: asyncio.Future[None] | None = None  # waited for while an answer is not out yet

    async def run(self, request: web.Request, send_buffer: int) -> WebSocketResponse:
        """Serve it until either side ends it."""
        ws = self._ws
        bound(self.transport, send_buffer)
        await ws.prepare(request)
        if ws.packs:
            self.seat.form = framing.deflated
        self.join()
        raw = self.transport.get_extra_info("socket")
        if raw is not None and self.open:
            self.seat.descriptor = raw.fileno()
        try:
            if ws.ws_protocol != frames.SUBPROTOCOL:
                self.close(Close(frames.WRONG_PROTOCOL, f"ask for the subprotocol {frames.SUBPROTOCOL}"))
            await self._read()
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            self.close(Close(frames.INTERNAL, "internal error"))
            raise
        finally:
            self.leave()
            if self._cut_off is not None:
                self._cut_off.cancel()
                self.transport.close()
        return ws

    async def _read(self) -> None:
        session = self.session
        while True:
            message = await self._ws.receive()
            if message.type is WSMsgType.TEXT:
                verdict = session.receive(message.data.encode(), now_ns()) if self.open else None
            elif message.type is WSMsgType.BINARY:
                verdict = Close(frames.BAD_FRAME, "frames are text")
            else:
                return
            if verdict is not None:
                self.close(verdict)
            elif self.open:
                self._hub.serve(self)
                while session.answers and self.open:
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room

    def wrote(self, now: int) -> None:
        self._go_on()

    def lost(self) -> None:
        self._go_on()

    def _go_on(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def part(self, why: Close) -> None:
        """Whoever does not answer in time is cut off."""
        self._go_on()
        self._cut_off = asyncio.get_running_loop().call_later(FAREWELL_S, self.transport.abort)
        if not self.transport.is_closing():
            self.transport.write(framing.close(why.code, why.reason))

    def _break(self) -> None:
        if self.open:
            self.open, self.seat.descriptor = False, CLOSED
            self._tally.closed[frames.BAD_FRAME] = self._tally.closed.get(frames.BAD_FRAME, 0) + 1


def bound(transport: asyncio.Transport, send_buffer: int) -> None:
    """Bound what the kernel holds for one client."""
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
