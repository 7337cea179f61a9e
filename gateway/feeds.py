"""HTTP for whoever cannot have a WebSocket: Server-Sent Events and long-poll, under the same rules.

Both are clients of the hub: a cursor each, and never a queue. An event stream is a session that only listens; its
events are the messages of the protocol, encoded once and shared like WebSocket frames. A long-poll waits for the
project to move.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from typing import Final, NamedTuple

from aiohttp import HttpVersion11, hdrs, web

from gateway import framing
from gateway.access import problem
from gateway.hub import Hub
from gateway.lane import Seat
from gateway.session import AHEAD_WAIT_NS, Close, Session
from gateway.shelf import Shelf
from gateway.socket import FAREWELL_S, Current, Outlet, Tally, bound
from gateway.tokens import Caller
from pipeline import frames
from pipeline.runtime.clock import now_ns

WAIT_S: Final = 25.0
WAIT_MOST_S: Final = 55.0  # proxies give up after a minute
AHEAD_S: Final = AHEAD_WAIT_NS / 1e9
KEEP_ALIVE_NS: Final = 15_000_000_000
RETRY_MS: Final = 1000
COMMENT: Final = b": \n\n"

_CURSOR: Final = re.compile(r"([A-Za-z0-9_-]{1,128})\.(\d{1,15})")
_SECONDS: Final = re.compile(r"\d{1,3}(?:\.\d{1,3})?")


class Bad(Exception):
    """A parameter that cannot be used; the client's fault."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Cursor(NamedTuple):
    epoch: str
    version: int


def cursor_of(text: str, field: str) -> Cursor:
    """``<epoch>.<version>``, as an ETag or an event's id has it. Raises `Bad`."""
    found = _CURSOR.fullmatch(text)
    if found is None:
        raise Bad(field, "is not a cursor: <epoch>.<version>, as a snapshot names them")
    return Cursor(found[1], int(found[2]))


def seconds_of(text: str, field: str) -> float:
    """How long to wait. Raises `Bad`."""
    if not _SECONDS.fullmatch(text) or float(text) > WAIT_MOST_S:
        raise Bad(field, f"is not a number of seconds from 0 to {WAIT_MOST_S:g}")
    return float(text)


# ── Server-Sent Events ───────────────────────────────────────────────────────────────────────────


class Events(Outlet):
    """One project as an event stream. When its subscription ends, so does the stream."""

    def __init__(self, hub: Hub, tally: Tally, heartbeat_ms: int, request: web.Request, current: Current) -> None:
        assert request.transport is not None
        self._chunked = request.version >= HttpVersion11
        form = framing.event_chunk if self._chunked else framing.event
        session = Session(hub, heartbeat_ms, now_ns(), caller=request["caller"], form=form)
        super().__init__(hub, tally, session, request.transport, current)
        self._over = asyncio.Event()
        self._wrote_at = now_ns()

    async def run(
        self, request: web.Request, project: str, cursor: Cursor | None, send_buffer: int
    ) -> web.StreamResponse:
        """Serve it until either side ends it."""
        bound(self.transport, send_buffer)
        response = web.StreamResponse(
            headers={
                hdrs.CONTENT_TYPE: "text/event-stream; charset=utf-8",
                hdrs.CACHE_CONTROL: "no-store, no-transform",
                hdrs.CONNECTION: "close",
                "X-Content-Type-Options": "nosniff",
                "X-Accel-Buffering": "no",  # nginx shall pass on what it gets
            }
        )
        response.force_close()
        await response.prepare(request)
        await response.write(b"retry: %d\n\n" % RETRY_MS)
        epoch, version = cursor or Cursor("", -1)
        self.session.follow(project, epoch, version, now_ns())
        self.join()
        self._hub.serve(self)
        try:
            await self._over.wait()
        finally:
            self.leave()
        if not self.transport.is_closing():
            last = asyncio.get_running_loop().call_later(FAREWELL_S, self.transport.abort)
            try:
                await response.write_eof()
            finally:
                last.cancel()
        return response

    def wrote(self, now: int) -> None:
        self._wrote_at = now
        if not self.session.subscriptions:
            self.open = False
            self._over.set()

    def lost(self) -> None:
        self._over.set()

    def check(self, now: int) -> None:
        super().check(now)
        if self.open and now - self._wrote_at > KEEP_ALIVE_NS and not self.transport.get_write_buffer_size():
            self.transport.write(framing.chunk(COMMENT) if self._chunked else COMMENT)
            self._wrote_at = now

    def part(self, why: Close) -> None:
        if why.code == frames.STALLED:
            self.transport.abort()
        self._over.set()


# ── long-poll ────────────────────────────────────────────────────────────────────────────────────


class Poll:
    """A request that waits for one project to move."""

    greeted = True

    def __init__(self, hub: Hub, project: str, caller: Caller, current: Current, transport: asyncio.Transport) -> None:
        self.projects: Collection[str] = (project,)
        self.seat = Seat()
        self.seat.client = self
        self._hub, self._project = hub, project
        self._caller, self._current = caller, current
        self._transport = transport
        self._moved = asyncio.Event()
        self._closed = False

    async def answer(self, since: Cursor, wait_s: float) -> web.Response:
        """What came after the cursor, as soon as there is anything; nothing, when the time is over."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._hub.add(self)
        self._hub.serve(self)
        try:
            while True:
                self._moved.clear()
                waited = loop.time() - began
                found = self._now(since, waited >= wait_s, waited >= AHEAD_S)
                if found is not None:
                    return found
                left = min(until - waited for until in (wait_s, AHEAD_S) if until > waited)
                try:
                    async with asyncio.timeout(left):
                        await self._moved.wait()
                except TimeoutError:
                    continue
        finally:
            self._hub.remove(self)
            self.seat.client = None

    def _now(self, since: Cursor, over: bool, too_far: bool) -> web.Response | None:
        """The answer as things are; ``None``: wait. One who is ahead of us waits for our own replica, not for ever."""
        if self._closed or self._transport.is_closing():
            return problem(503, "busy", "shutting down; try again", Retry_After="1")
        caller = self._current(self._caller.token_id)
        if caller is None:
            return problem(401, "unauthenticated", "this token opens nothing any more")
        shelf = self._hub.shelf(self._project) if caller.may(self._project) else None
        refused = unshown(self._hub, shelf)
        if refused is not None or shelf is None:
            return refused
        if since.epoch != shelf.epoch:
            return _resync("epoch")
        if since.version > shelf.version:
            return _resync("ahead") if too_far else None
        if since.version == shelf.version and not over:
            return None
        body = shelf.changes(since.version)
        if body is None:
            return _resync("floor")
        return web.Response(body=body, content_type="application/json", headers=standing(self._hub))

    def flush(self, _: int) -> bool:
        self._moved.set()
        return True

    def beat_due(self, _: int) -> bool:
        return False

    def hurry(self) -> None:
        """It gets no heartbeats."""

    def check(self, _: int) -> None:
        if self._transport.is_closing():
            self._moved.set()

    def regrant(self) -> None:
        self._moved.set()

    def close(self, _: Close) -> None:
        self._closed = True
        self._moved.set()


def unshown(hub: Hub, shelf: Shelf | None) -> web.Response | None:
    """Why there is nothing to show; ``None`` if there is. `shelf`: ``None`` too if the caller may not see it."""
    if shelf is None and hub.settled:
        return problem(404, "not_found", "there is no such project, or you may not see it")
    if shelf is None or not shelf.loaded:
        return problem(503, "loading", "the first census is not complete; try again", Retry_After="1")
    return None


def standing(hub: Hub) -> dict[str, str]:
    """What goes with every state over HTTP: whether it may be old."""
    return {"Treewire-Stale": "true"} if hub.stale else {}


def _resync(reason: frames.Reason) -> web.Response:
    why = {
        "epoch": "the aggregator has started anew",
        "ahead": "nobody knows of such a version",
        "floor": "that is too long ago",
    }[reason]
    return problem(410, "resync", f"{why}: get the snapshot, and go on from its version")
