"""Connections over a real server and hub, with an aggregator that a test plays: what a deployment shows rarely."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientError, ClientResponse, WSMsgType, web
from aiohttp.test_utils import TestClient, TestServer
from websockets.frames import Frame, Opcode

from gateway import feeds
from gateway.app import Routes
from gateway.feeds import KEEP_ALIVE_NS, Bad, Cursor, Events, cursor_of, seconds_of
from gateway.hub import Hub
from gateway.session import Close, Session
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


async def test_a_mistake_of_ours_closes_the_socket_so_that_the_client_comes_again(
    world: World, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with client.ws_connect("/v1/stream", protocols=["treewire.v1"]) as stream:
        await stream.send_json({"type": "hello"})
        assert (await stream.receive_json(timeout=10))["type"] == "welcome"

        def broken(_: Session, __: bytes, ___: int) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(Session, "receive", broken)
        await stream.send_json({"type": "unsubscribe", "id": 1})
        message = await stream.receive(timeout=10)
        assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED)
        assert stream.close_code == frames.INTERNAL
        assert frames.reconnects(frames.INTERNAL)
    assert [type(context["exception"]) for context in told] == [ZeroDivisionError]


class Raw:
    """A socket whose bytes a test chooses."""

    def __init__(self, client: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.host = f"{client.host}:{client.port}"
        self.reader, self.writer = reader, writer
        self.told = b""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, client: Any) -> AsyncIterator[Raw]:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        try:
            yield cls(client, reader, writer)
        finally:
            writer.close()

    def shake(self, *left_out: str, **changed: str) -> bytes:
        lines = {
            "Host": self.host,
            "Upgrade": "websocket",
            "Connection": "keep-alive, Upgrade",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": "other, treewire.v1",
        } | {name.replace("_", "-"): value for name, value in changed.items()}
        told = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if name not in left_out)
        return f"GET /v1/stream HTTP/1.1\r\n{told}\r\n".encode()

    def say(self, message: dict[str, Any], kind: Opcode = Opcode.TEXT, fin: bool = True) -> bytes:
        return Frame(kind, json.dumps(message).encode(), fin).serialize(mask=True)

    async def hears(self, what: bytes) -> bytes:
        """All that came up to this."""
        async with asyncio.timeout(10):
            while what not in self.told:
                data = await self.reader.read(65_536)
                assert data, f"{what!r} did not come, but {self.told!r}"
                self.told += data
        before, _, self.told = self.told.partition(what)
        return before

    async def ends(self) -> bytes:
        return self.told + await asyncio.wait_for(self.reader.read(), 10)


HELLO = {"type": "hello"}
SUBSCRIBE = {"type": "subscribe", "id": 1, "project": "web"}


async def test_what_a_client_says_before_its_handshake_is_answered_is_heard(world: World, client: Any) -> None:
    async with Raw.open(client) as raw:
        subscribe = raw.say(SUBSCRIBE)
        raw.writer.write(raw.shake() + raw.say(HELLO) + subscribe[:7])
        head = (await raw.hears(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 101 ")
        assert "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # as RFC 6455 has it
        assert "Sec-WebSocket-Protocol: treewire.v1" in head
        await raw.hears(b'"welcome"')
        raw.writer.write(subscribe[7:])
        await raw.hears(b'"snapshot"')
        world.write(1)
        await raw.hears(b'"delta"')
        (ours,) = world.sockets
        assert ours.transport.get_protocol() is ours
    async with asyncio.timeout(10):
        while world.hub.clients:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("left_out", "changed"),
    [
        (("Upgrade",), {}),
        (("Connection",), {}),
        (("Sec-WebSocket-Key",), {}),
        (("Sec-WebSocket-Version",), {}),
        ((), {"Sec_WebSocket_Version": "8"}),
        ((), {"Sec_WebSocket_Key": "short"}),
        ((), {"Upgrade": "h2c"}),
    ],
)
async def test_what_is_no_handshake_is_a_bad_request(
    world: World, client: Any, left_out: tuple[str, ...], changed: dict[str, str]
) -> None:
    async with Raw.open(client) as raw:
        raw.writer.write(raw.shake(*left_out, **changed))
        assert (await raw.hears(b"\r\n")).startswith(b"HTTP/1.1 400")
    assert world.hub.clients == set()


async def test_pings_are_answered_in_their_turn_and_too_many_close_the_socket(world: World, client: Any) -> None:
    async with Raw.open(client) as raw:
        raw.writer.write(raw.shake() + raw.say(HELLO) + Frame(Opcode.PING, b"are you there").serialize(mask=True))
        await raw.hears(b'"welcome"')
        await raw.hears(b"\x8a\x0dare you there")
        raw.writer.write(Frame(Opcode.PING, b"").serialize(mask=True) * 100)
        assert frames.RATE.to_bytes(2) in await raw.hears(b"more than 20 messages a second")
    assert world.tally.closed == {frames.RATE: 1}


async def test_a_goodbye_is_answered_and_the_connection_ends(world: World, client: Any) -> None:
    async with Raw.open(client) as raw:
        raw.writer.write(raw.shake() + raw.say(HELLO))
        await raw.hears(b'"welcome"')
        raw.writer.write(Frame(Opcode.CLOSE, (1001).to_bytes(2) + b"going").serialize(mask=True) + raw.say(SUBSCRIBE))
        assert (await raw.ends()).endswith(b"\x88\x02" + (1001).to_bytes(2))
    assert world.hub.clients == set()
    assert world.tally.closed == {}


@pytest.mark.parametrize("sent", [b"\x81\x05hello", b"\x81\xff\0\0\0\1\0\0\0\0", b"\xc1\x80\0\0\0\0", b"\xff" * 40])
async def test_what_is_no_frame_is_closed_with_a_code_of_ours_and_cut_off_in_the_end(
    world: World, client: Any, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.socket.FAREWELL_S", 0.05)
    async with Raw.open(client) as raw:
        raw.writer.write(raw.shake() + raw.say(HELLO))
        await raw.hears(b'"welcome"')
        raw.writer.write(sent)
        await raw.hears(b"\x88")
        await raw.hears(frames.BAD_FRAME.to_bytes(2))
        raw.writer.write(raw.say(SUBSCRIBE))
        with contextlib.suppress(ConnectionError):
            assert b"snapshot" not in await raw.ends()
    assert world.tally.closed == {frames.BAD_FRAME: 1}
    assert world.hub.clients == set()


async def test_while_an_answer_is_not_taken_nothing_more_is_read(world: World, client: Any) -> None:
    async with Raw.open(client) as raw:
        raw.writer.write(raw.shake() + raw.say(HELLO))
        await raw.hears(b'"welcome"')
        (ours,) = world.sockets
        transport, held = ours.transport, 1
        ours.transport = SimpleNamespace(  # type: ignore[assignment]
            get_write_buffer_size=lambda: held,
            is_closing=transport.is_closing,
            write=transport.write,
            pause_reading=transport.pause_reading,
            resume_reading=transport.resume_reading,
        )
        raw.writer.write(raw.say({"type": "unsubscribe", "id": 7}) + raw.say({"type": "unsubscribe", "id": 8}))
        async with asyncio.timeout(10):
            while not ours.session.answers:
                await asyncio.sleep(0.001)
        assert not transport.is_reading()
        assert len(ours.session.answers) == 1
        held = 0
        told = await raw.hears(b'"id":8')
        assert b'"id":7' in told
        assert transport.is_reading()


@pytest.mark.parametrize(
    ("owner", "expired", "code"),
    [(None, True, frames.TICKET_EXPIRED), (None, False, frames.UNAUTHENTICATED)],
)
def test_a_ticket_that_came_too_late_is_told_from_one_that_never_was(
    owner: Caller | None, expired: bool, code: int
) -> None:
    access: Any = SimpleNamespace(redeem=lambda _: owner, expired=lambda _: expired, current=None)
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
