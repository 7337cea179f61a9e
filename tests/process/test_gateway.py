"""The gateway as a real process, between a real aggregator and real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import psutil
import pytest

from pipeline.domain import patch as merge_patch
from pipeline.domain.model import Census, Life, Look, Session
from pipeline.runtime.settings import Settings
from tests.journeys.client import Client
from tests.world import CENSUS, Child, World, deployed, environment, look, next_frame, runs, stamp


@pytest.fixture
def world() -> Iterator[World]:
    with deployed() as found:
        yield found


@pytest.fixture
def rarely() -> Iterator[World]:
    with deployed(heartbeat_ms=60_000) as found:
        yield found


# ── the journey ──────────────────────────────────────────────────────────────────────────────────


def test_a_client_gets_a_snapshot_then_deltas_and_proves_every_hash(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1", "w2")
        async with world.client() as client:
            await client.until(lambda c: set(c.state) == {"w1", "w2"})
            for n in range(50):
                await world.git("w1", n)
            await client.until(lambda c: c.state["w1"].get("git", {}).get("insertions") == 49)
            proven = client.verified
            await client.until(lambda c: c.verified >= proven + 2)
            assert client.mismatches == []
            kinds = [frame["type"] for frame in client.frames]
            assert kinds[0] == "welcome"
            assert kinds.count("snapshot") == 1
            assert "delta" in kinds
            await world.ready("w1")
            await client.until(lambda c: set(c.state) == {"w1"})

    runs(world, test)


def test_before_the_first_census_a_client_is_told_to_wait_and_never_shown_an_empty_list(world: World) -> None:
    async def test(world: World) -> None:
        status, _, body = await world.get("readyz")
        assert status == 503
        assert json.loads(body)["parts"]["census"]["state"] == "loading"
        assert (await world.get("v1/projects/web/snapshot"))[0] == 503
        async with world.client() as client:
            await client.until(lambda c: any(frame["type"] == "loading" for frame in c.frames))
            await world.ready("w1")
            await client.until(lambda c: c.state)
            assert [f["workspaces"].keys() for f in client.frames if f["type"] == "snapshot"] == [{"w1"}]
        assert (await world.get("readyz"))[0] == 200

    runs(world, test)


def test_a_client_never_sees_another_project(world: World) -> None:
    async def test(world: World) -> None:
        at = stamp()
        life = [look(p, f"{p}-w", "life", Life(name=p, phase="ready"), at) for p in ("web", "api")]

        async def both() -> bool:
            now = stamp()
            looks = [Look(one.project, one.workspace, "life", one.value, now, "catalog") for one in life]
            await world.send(Census(now, "catalog", CENSUS, ["web", "api"], looks))
            return (await world.get("v1/projects/api/snapshot"))[0] == 200

        await world.until(both, "two projects")
        async with world.client("web") as web, world.client("api") as api:
            await web.until(lambda c: c.state)
            await api.until(lambda c: c.state)
            for n in range(20):
                await world.git("api-w", n, "api")
                await world.git("web-w", n, "web")
            await api.until(lambda c: c.state["api-w"].get("git", {}).get("insertions") == 19)
            await web.until(lambda c: c.state["web-w"].get("git", {}).get("insertions") == 19)
            assert "api-w" not in json.dumps(web.frames)
            assert "web-w" not in json.dumps(api.frames)

    runs(world, test)


# ── faults ───────────────────────────────────────────────────────────────────────────────────────


def test_a_killed_gateway_comes_back_at_its_address_and_clients_resume_with_a_delta(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1")
        async with world.client() as client:
            await client.until(lambda c: c.state)
            await world.git("w1", 1)
            await client.until(lambda c: c.state["w1"].get("git") == {**c.state["w1"].get("git", {}), "insertions": 1})
            url, seen = world.url, len(client.frames)
            world.gateway.kill()
            await world.git("w1", 2)
            world.gateway.start()
            await client.until(lambda c: c.state["w1"]["git"]["insertions"] == 2)
            assert world.url == url
            later = [frame["type"] for frame in client.frames[seen:] if frame["type"] in ("snapshot", "delta")]
            assert later[0] == "delta"
            assert "snapshot" not in later
            proven = client.verified
            await client.until(lambda c: c.verified > proven)
            assert client.mismatches == []

    runs(world, test)


def test_while_the_aggregator_is_gone_the_last_state_is_served_as_stale_and_never_an_empty_one(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1", "w2")
        async with world.client() as client:
            await client.until(lambda c: len(c.state) == 2)
            epoch = client.epoch
            world.aggregator.kill()
            await client.until(lambda c: _health(c) == "stale")
            status, headers, _ = await world.get("v1/projects/web/snapshot")
            assert (status, headers["Treewire-Stale"]) == (200, "true")
            status, headers, _ = await world.get("v1/projects/web/workspaces/w1/explain")
            assert (status, bool(headers.get("Retry-After"))) == (503, True)
            async with world.client() as newcomer:
                await newcomer.until(lambda c: len(c.state) == 2 and _health(c) == "stale")
            world.aggregator.start()
            await client.until(lambda c: _health(c) == "ok")
            assert "Treewire-Stale" not in (await world.get("v1/projects/web/snapshot"))[1]
            assert len(client.state) == 2
            assert client.epoch == epoch
            await world.ready("w1", "w2", "w3")
            await client.until(lambda c: len(c.state) == 3)
            assert client.epoch != epoch
            snapshots = [frame for frame in client.frames if frame["type"] == "snapshot"]
            assert snapshots[1]["reason"] == "epoch"
            assert all(frame["workspaces"] for frame in snapshots)

    runs(world, test)


def _health(client: Client) -> str:
    return _parts(client).get("aggregator", "")


def test_bad_news_does_not_wait_for_the_next_heartbeat(rarely: World) -> None:
    """Heartbeats are a minute apart here; that the aggregator hangs, or the database is gone, is told at once."""

    async def test(world: World) -> None:
        await world.ready("w1")
        async with world.client() as client:
            await client.until(lambda c: "w1" in c.state)

            async def told(part: str, word: str) -> None:
                await client.until(lambda c: _parts(c).get(part) == word, 10)

            os.kill(world.aggregator.process.pid, signal.SIGSTOP)
            try:
                await told("aggregator", "stale")
            finally:
                os.kill(world.aggregator.process.pid, signal.SIGCONT)
            await told("aggregator", "ok")
            database = world.settings.home / "treewire.db"
            await world.until(database.exists, "the database")
            database.rename(database.with_suffix(".away"))
            await told("database", "degraded")
            database.with_suffix(".away").rename(database)
            await told("database", "ok")
            assert client.mismatches == []

    runs(rarely, test)


def _parts(client: Client) -> dict[str, str]:
    beats = [frame for frame in client.frames if frame["type"] == "heartbeat"]
    return beats[-1]["health"] if beats else {}


def test_a_client_that_lost_a_delta_is_healed_by_resync(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1")
        async with world.connect() as stream:
            await stream.send_json({"type": "hello"})
            await stream.send_json({"type": "subscribe", "id": 1, "project": "web"})
            snapshot = await next_frame(stream, "snapshot")
            for n in range(3):
                await world.git("w1", n)
            while (await next_frame(stream, "delta"))["patch"]["w1"]["git"]["insertions"] != 2:
                pass
            await stream.send_json({"type": "resync", "id": 1, "reason": "gap", "version": snapshot["version"]})
            delta = await next_frame(stream, "delta")
            assert delta["from"] == snapshot["version"]
            assert delta["patch"]["w1"]["git"]["insertions"] == 2
            await stream.send_json({"type": "resync", "id": 1, "reason": "hash"})
            again = await next_frame(stream, "snapshot")
            assert again["reason"] == "hash"
            assert merge_patch.state_hash(again["workspaces"]) == again["hash"]

    runs(world, test)


def test_clients_that_never_read_delay_nobody_and_cost_bounded_memory(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1")
        gateway = psutil.Process(world.gateway.process.pid)
        deaf = [await _deaf(world) for _ in range(15)] + [await _deaf_listener(world) for _ in range(5)]
        try:
            async with world.client() as client:
                await client.until(lambda c: c.state)
                before = gateway.memory_info().rss
                for n in range(300):
                    fat = Session(name="x" * 400 + str(n), state="working")
                    for one in range(20):
                        await world.send(look("web", "w1", f"session:s{one}", fat, stamp(), "live"))
                    await asyncio.sleep(0.005)
                    if n % 20 == 0:  # alive all the while
                        at = f"x{n}"
                        await client.until(lambda c, at=at: _name(c).endswith(at), 5)
                await client.until(lambda c: _name(c).endswith("x299"))
                grown = gateway.memory_info().rss - before
                assert grown < 25 << 20, f"grew by {grown >> 20} MB"
                blocked = [
                    line for line in (await world.get("metrics"))[2].decode().splitlines() if "_blocked_" in line
                ]
                assert float(blocked[-1].split()[-1]) >= 20, blocked
                assert client.mismatches == []
        finally:
            for one in deaf:
                one.close()

    runs(world, test)


def _name(client: Client) -> str:
    sessions = client.state.get("w1", {}).get("sessions", {})
    return str(sessions.get("s19", {}).get("name", ""))


async def _deaf(world: World) -> socket.socket:
    """A client that subscribes and never reads again, over a window as small as can be."""
    host, port = world.url.split("/")[2].split(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((host, int(port)))
    raw.settimeout(10)
    head = (
        f"GET /v1/stream HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"Sec-WebSocket-Protocol: treewire.v1\r\nAuthorization: Bearer {world.token}\r\n\r\n"
    )
    raw.sendall(head.encode())
    answer = await asyncio.to_thread(raw.recv, 12)
    assert answer.endswith(b"101"), answer
    raw.sendall(_masked(b'{"type":"hello"}') + _masked(b'{"type":"subscribe","id":1,"project":"web"}'))
    return raw


async def _deaf_listener(world: World) -> socket.socket:
    """The same as an event stream."""
    host, port = world.url.split("/")[2].split(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((host, int(port)))
    raw.settimeout(10)
    head = f"GET /v1/projects/web/events HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {world.token}\r\n\r\n"
    raw.sendall(head.encode())
    answer = await asyncio.to_thread(raw.recv, 12)
    assert answer.endswith(b"200"), answer
    return raw


def _masked(payload: bytes) -> bytes:
    return bytes([0x81, 0x80 | len(payload)]) + b"\0\0\0\0" + payload


def test_what_breaks_the_protocol_is_closed_with_its_code(world: World) -> None:
    async def test(world: World) -> None:
        for sent, code in (
            (b"nonsense", 4500),
            (b'{"type":"subscribe","id":1,"project":"web"}', 4505),
            (b'{"type":"hello","ticket":"' + b"x" * 5000 + b'"}', 4500),
            (b"[" * 4000, 4500),
        ):
            async with world.connect() as stream:
                await stream.send_str(sent.decode())
                assert (await stream.receive(timeout=10)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
                assert stream.close_code == code, sent[:20]
        async with world.connect() as stream:
            await stream.send_bytes(b"\0")
            await stream.receive(timeout=10)
            assert stream.close_code == 4500
        async with world.http.ws_connect(world.url + "v1/stream", headers=world.bearer) as stream:
            await stream.receive(timeout=10)
            assert stream.close_code == 4505
        async with world.connect() as stream:
            await stream.send_json({"type": "hello"})
            while (message := await stream.receive(timeout=10)).type is aiohttp.WSMsgType.TEXT:
                pass
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
            assert stream.close_code == 4004
        assert await world.is_up()

    runs(world, test)


def test_whoever_says_nothing_is_closed_and_crowds_out_nobody_for_long(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1")
        silent = [await world.connect() for _ in range(32)]
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await world.connect()
        assert refused.value.status == 503
        assert refused.value.headers is not None
        assert "Retry-After" in refused.value.headers
        for stream in silent:
            await stream.receive(timeout=10)
        assert {stream.close_code for stream in silent} == {4503}
        async with world.client() as client:
            await client.until(lambda c: c.state)

    runs(world, test)


def test_at_term_clients_are_told_and_the_process_ends_well(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1")
        async with world.connect() as stream:
            await stream.send_json({"type": "hello"})
            await next_frame(stream, "welcome")
            world.gateway.process.terminate()
            while (await stream.receive(timeout=10)).type is aiohttp.WSMsgType.TEXT:
                pass
            assert stream.close_code == 4001
        assert await asyncio.to_thread(world.gateway.process.wait, 10) == 0

    runs(world, test)


# ── the address ──────────────────────────────────────────────────────────────────────────────────


def test_a_port_that_is_taken_is_an_error_that_says_what_to_do() -> None:
    home = Path(tempfile.mkdtemp(prefix="tw-"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        (home / "treewire.toml").write_text(f"[gateway]\nport = {other.getsockname()[1]}\n")
        gateway = Child(Settings.load(home, environ=environment()), "gateway")
        try:
            assert gateway.process.wait(20) == 1
            assert "set gateway.port to a free one" in gateway.said
            assert "Traceback" not in gateway.said
        finally:
            gateway.process.send_signal(signal.SIGKILL)
            shutil.rmtree(home, ignore_errors=True)
