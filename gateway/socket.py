"""One WebSocket's I/O: aiohttp shakes hands and reads, finished frames are written to the transport as they are.

It is written to only while its transport's buffer is empty, so a client that does not read costs what the kernel
holds for it and one write more, and delays nobody: see `Hub`.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from aiohttp import WSMsgType, web
from aiohttp.web_ws import WebSocketResponse

from gateway import framing
from gateway.hub import Hub
from gateway.session import Close, Session
from pipeline import frames
from pipeline.runtime.clock import now_ns

STALLED_NS: Final = 30_000_000_000
FAREWELL_S: Final = 2.0
ROOM: Final = 4096  # a frame that is somewhat too long still gets a code of ours instead of aiohttp's


class Tally:
    """What all sockets of this process have done."""

    def __init__(self) -> None:
        self.opened = 0
        self.writes = 0
        self.bytes = 0
        self.blocked = 0
        self.resyncs = 0
        self.closed: dict[int, int] = {}


class Socket:
    """A client of the hub."""

    def __init__(self, hub: Hub, tally: Tally, heartbeat_ms: int, request: web.Request) -> None:
        transport = request.transport
        assert transport is not None
        self.session = Session(hub, heartbeat_ms, now_ns())
        self._hub = hub
        self._tally = tally
        self._transport = transport
        self._ws = WebSocketResponse(
            protocols=(frames.SUBPROTOCOL,),
            compress=False,
            autoclose=False,  # we close in our own words, once: see `close`
            max_msg_size=self.session.limits.frame_bytes + ROOM,
        )
        self.open = False
        self._cut_off: asyncio.TimerHandle | None = None
        self._blocked_since = 0
        self._room = asyncio.Event()

    async def run(self, request: web.Request, send_buffer: int) -> WebSocketResponse:
        """Serve it until either side ends it."""
        ws = self._ws
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        await ws.prepare(request)
        self.open = True
        self._tally.opened += 1
        self._hub.add(self)
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
            self.open = False
            self._hub.remove(self)
            self._tally.resyncs += self.session.resyncs
            if self._cut_off is not None:
                self._cut_off.cancel()
                self._transport.close()
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
                    self._room.clear()
                    await self._room.wait()

    def flush(self, now: int) -> bool:
        if not self.open or self._transport.is_closing():
            return True
        if self._transport.get_write_buffer_size():
            if not self._blocked_since:
                self._blocked_since = now
                self._tally.blocked += 1
            return False
        self._blocked_since = 0
        out = self.session.due(now)
        if out:
            data = out[0] if len(out) == 1 else b"".join(out)
            self._transport.write(data)
            self._tally.writes += 1
            self._tally.bytes += len(data)
            self._room.set()
        return not self.session.waits

    def check(self, now: int) -> None:
        if not self.open:
            return
        if self._transport.is_closing():
            self._room.set()
        elif self._blocked_since and now - self._blocked_since > STALLED_NS:
            self.close(Close(frames.STALLED, "did not read what was sent"))
        elif (verdict := self.session.check(now)) is not None:
            self.close(verdict)

    def close(self, why: Close) -> None:
        """Say goodbye with a code; whoever does not answer in time is cut off."""
        if not self.open:
            return
        self.open = False
        self._room.set()
        self._tally.closed[why.code] = self._tally.closed.get(why.code, 0) + 1
        if not self._transport.is_closing():
            self._transport.write(framing.close(why.code, why.reason))
        self._cut_off = asyncio.get_running_loop().call_later(FAREWELL_S, self._transport.abort)
