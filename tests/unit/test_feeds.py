"""Connections over a real server and hub, with an aggregator that a test plays: what a deployment shows rarely."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientError, ClientResponse, WSMsgType, web
from aiohttp.test_utils import TestClient, TestServer

from gateway import feeds
from gateway.app import Routes
from gateway.feeds import KEEP_ALIVE_NS, Bad, Cursor, Events, cursor_of, seconds_of
from gateway.hub import Hub
from gateway.session import Close
from gateway.socket import STALLED_NS, Socket, Tally
from gateway.tokens import OPERATOR, Caller
from pipeline import bus, frames, wire
from pipeline.domain.replica import Replica
from pipeline.domain.versioned import Ledger
from pipeline.runtime.clock import now_ns

HEARTBEAT_MS = 60_000
EVENTS = "/v1/projects/web/events"

pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web.NotAppKeyWarning")


class World:
    """A hub with one project, and a server with an event stream and a WebSocket."""

    def __init__(self, run_dir: Path) -> None:
        self.tally = Tally()
        self.hub = Hub(run_dir, "gateway-0", lambda: "ok")
        self.hub.follower.head = wire.Heartbeat("e1", 1, now_ns(), {}, census_ns=1)
        self.hub.follower.heard_ns = now_ns()
        self.ledger = Ledger()
        replica = self.hub.follower.replicas["web"] = Replica()
        replica.load("e1", self.ledger, True)
        self.sockets: list[Socket] = []
        self.feeds: list[Events] = []

    def write(self, value: int) -> None:
        self.ledger.write("w1", [("git", {"files": value})])
        self.hub._changed({"web"})

    async def events(self, request: web.Request) -> web.StreamResponse:
        request["caller"] = OPERATOR
        feed = Events(self.hub, self.tally, HEARTBEAT_MS, request, self.current)
        self.feeds.append(feed)
        return await feed.run(request, "web", None, 65_536)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        client = Socket(
            self.hub,
            self.tally,
            HEARTBEAT_MS,
            request,
            caller=OPERATOR,
            redeem=lambda _: OPERATOR,
            current=self.current,
        )
        self.sockets.append(client)
        return await client.run(request, 65_536)

    def current(self, _: str) -> Caller | None:
        return OPERATOR


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    found = World(tmp_path)
    yield found
    found.hub.close()
    bus.close()


@pytest.fixture
async def client(world: World) -> AsyncIterator[TestClient[Any, Any]]:
    application = web.Application()
    application.router.add_get(EVENTS, world.events)
    application.router.add_get("/v1/stream", world.stream)
    async with TestClient(TestServer(application)) as found:
        yield found


async def heard(answer: ClientResponse, what: bytes) -> bytes:
    told = b""
    async with asyncio.timeout(10):
        while what not in told:
            told += await answer.content.readany()
    return told


async def test_an_event_stream_that_is_silent_is_kept_alive_by_comments(world: World, client: Any) -> None:
    """W10."""
    async with client.get(EVENTS) as answer:
        await heard(answer, b'"snapshot"')
        (feed,) = world.feeds
        feed.check(now_ns())
        feed.check(now_ns() + KEEP_ALIVE_NS + 1)
        world.write(1)
        told = await heard(answer, b'"delta"')
        assert told.startswith(b": \n\nid: e1.1\n")


async def test_an_event_stream_that_is_not_read_costs_its_cursor_and_is_cut_off_in_the_end(
    world: World, client: Any
) -> None:
    """W5, W10."""
    async with client.get(EVENTS) as answer, client.get(EVENTS) as other:
        for one in (answer, other):
            await heard(one, b'"snapshot"')
        slow = world.feeds[0]
        transport, held = slow.transport, 1
        slow.transport = SimpleNamespace(  # type: ignore[assignment]
            get_write_buffer_size=lambda: held,
            is_closing=transport.is_closing,
            write=transport.write,
            abort=transport.abort,
        )
        for value in range(1, 50):
            world.write(value)
            await asyncio.sleep(0)
        await heard(other, b'"files":49')
        held = 0
        told = (await heard(answer, b'"files":49')).decode()
        (delta,) = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data:")]
        assert (delta["from"], delta["to"]) == (0, 49)
        held = 1
        world.write(50)
        async with asyncio.timeout(10):
            while not slow._blocked_since:
                await asyncio.sleep(0.001)
        slow.check(slow._blocked_since + STALLED_NS + 1)
        assert world.tally.closed == {frames.STALLED: 1}
        with pytest.raises(ClientError):  # broken off, and not as if it had ended
            await asyncio.wait_for(answer.content.read(), 10)
        assert transport.is_closing()


async def test_an_event_stream_ends_whole_when_the_gateway_stops(world: World, client: Any) -> None:
    async with client.get(EVENTS) as answer:
        await heard(answer, b'"snapshot"')
        for one in [*world.hub.clients]:
            one.close(Close(frames.SHUTTING_DOWN, "shutting down"))
        assert await asyncio.wait_for(answer.content.read(), 10) == b""
    assert world.hub.clients == set()


async def test_whoever_hangs_up_is_forgotten(world: World, client: Any) -> None:
    answer = await client.get(EVENTS)
    await heard(answer, b'"snapshot"')
    assert len(world.hub.clients) == 1
    answer.close()
    async with asyncio.timeout(10):
        while world.hub.clients:
            world.hub.sweep()
            await asyncio.sleep(0.01)


async def test_a_mistake_of_ours_closes_the_socket_so_that_the_client_comes_again(world: World, client: Any) -> None:
    async with client.ws_connect("/v1/stream", protocols=["treewire.v1"]) as stream:
        await stream.send_json({"type": "hello"})
        assert (await stream.receive_json(timeout=10))["type"] == "welcome"
        (ours,) = world.sockets

        def broken(_: bytes, __: int) -> None:
            raise ZeroDivisionError

        ours.session.receive = broken  # type: ignore[method-assign,assignment]
        await stream.send_json({"type": "unsubscribe", "id": 1})
        message = await stream.receive(timeout=10)
        assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
        assert stream.close_code == frames.INTERNAL
        assert frames.reconnects(frames.INTERNAL)


@pytest.mark.parametrize(
    ("owner", "expired", "code"),
    [(None, True, frames.TICKET_EXPIRED), (None, False, frames.UNAUTHENTICATED)],
)
def test_a_ticket_that_came_too_late_is_told_from_one_that_never_was(
    owner: Caller | None, expired: bool, code: int
) -> None:
    access: Any = SimpleNamespace(redeem=lambda _: owner, expired=lambda _: expired)
    process: Any = SimpleNamespace(settings=SimpleNamespace(gateway=None))
    hub: Any = None
    answer = Routes(process, hub, hub, Tally(), access)._redeem("ticket")
    assert isinstance(answer, Close)
    assert answer.code == code
    assert frames.reconnects(code) is expired


@pytest.mark.parametrize("text", ["", "5", "e.", ".5", "e.-1", "e.5 ", "e f.5", "e.1e3", "e." + "9" * 16, "\n.5"])
def test_what_is_no_cursor_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(Bad) as bad:
        cursor_of(text, "since")
    assert bad.value.field == "since"
    assert cursor_of("4f97abc.412", "since") == Cursor("4f97abc", 412)


@pytest.mark.parametrize("text", ["", "soon", "-1", "55.1", "1e1", "inf", "nan", " 1"])
def test_what_is_no_time_to_wait_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(Bad) as bad:
        seconds_of(text, "wait")
    assert bad.value.field == "wait"
    assert [seconds_of(good, "wait") for good in ("0", "0.25", "55")] == [0, 0.25, feeds.WAIT_MOST_S]
