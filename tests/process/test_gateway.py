"""The gateway as a real process, between a real aggregator and real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from pipeline import bus, catalog, wire
from pipeline.domain import patch as merge_patch
from pipeline.domain.model import Census, Git, Life, Look, Session, Stamp, Value
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.settings import Settings
from tests.journeys.client import Client

HEARTBEAT_MS = 200
CENSUS = "catalog:test"


class Child:
    """A process of the pipeline; what it said is in the failure."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings, self.name = settings, name
        self.out = settings.home / f"{name}.out"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "pipeline.cli", "run", self.name, "--home", str(self.settings.home)]
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=_environment())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def end(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    @property
    def said(self) -> str:
        return self.out.read_text() if self.out.exists() else ""


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TREEWIRE_")}
    return {**kept, "XDG_CONFIG_HOME": "/nonexistent"}


class World:
    """An aggregator, a gateway, and a test that plays every source."""

    def __init__(self, settings: Settings, aggregator: Child, gateway: Child) -> None:
        self.settings, self.aggregator, self.gateway = settings, aggregator, gateway

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        self.ingress = bus.Ingress(self.settings.run_dir)
        try:
            async with aiohttp.ClientSession() as self.http:
                await self.until(self.settings.url_path.exists, "the gateway's address")
                await self.until(self.is_up, "the gateway")
                yield self
        except BaseException:
            print(self.aggregator.said, self.gateway.said, sep="\n")
            raise
        finally:
            self.ingress.close()

    @property
    def url(self) -> str:
        return self.settings.url_path.read_text().strip()

    @property
    def token(self) -> str:
        return self.settings.token_path.read_text().strip()

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return found
            assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
            await asyncio.sleep(0.02)

    async def is_up(self) -> bool:
        try:
            return (await self.get("healthz"))[0] == 200
        except aiohttp.ClientError:
            return False

    async def get(self, path: str, **headers: str) -> tuple[int, Any, bytes]:
        async with self.http.get(self.url + path, headers={**self.bearer, **headers}) as answer:
            return answer.status, answer.headers, await answer.read()

    async def json(self, path: str) -> Any:
        return json.loads((await self.get(path))[2])

    async def post(self, body: Any) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(self.url + "v1/events", data=data, headers=self.bearer) as answer:
            return answer.status, json.loads(await answer.read())

    # ── as sources ───────────────────────────────────────────────────────────────────────────────

    async def send(self, message: wire.Ingress) -> None:
        await self.until(lambda: self.ingress.send(message), "room in the ingress")

    async def census(self, *workspaces: str, project: str = "web", projects: list[str] | None = None) -> None:
        """All workspaces of one project; told again until it counts, since a new aggregator takes none from before."""
        stamp = _stamp()
        looks = [
            _look(project, name, "life", Life(name=name, phase="ready", branch=name), stamp) for name in workspaces
        ]
        await self.send(Census(stamp, "catalog", CENSUS, projects or [project], looks))

    async def git(self, workspace: str, insertions: int, project: str = "web") -> None:
        await self.send(_look(project, workspace, "git", Git(insertions=insertions), _stamp(), "git"))

    async def ready(self, *workspaces: str, project: str = "web") -> None:
        """The project is shown with these workspaces and no others."""

        async def shown() -> bool:
            await self.census(*workspaces, project=project)
            status, _, body = await self.get(f"v1/projects/{project}/snapshot")
            if status != 200 or set(json.loads(body)["workspaces"]) != set(workspaces):
                return False
            return (await self.get("readyz"))[0] == 200  # one heartbeat later it is known that there are no others

        await self.until(shown, f"{project} is shown")

    # ── as a client ──────────────────────────────────────────────────────────────────────────────

    def client(self, project: str = "web") -> Client:
        return Client(self.url, self.token, project)

    def connect(self, **more: Any) -> Any:
        headers = {**self.bearer, **more.pop("headers", {})}
        return self.http.ws_connect(self.url + "v1/stream", protocols=["treewire.v1"], headers=headers, **more)


def _stamp() -> Stamp:
    now = now_ns()
    return Stamp(now, now, CLOCK)


def _look(project: str, workspace: str, group: str, value: Value, stamp: Stamp, source: str = "catalog") -> Look:
    return Look(project, workspace, group, value, stamp, source, producer="test")


@pytest.fixture
def world() -> Iterator[World]:
    yield from _world(HEARTBEAT_MS)


@pytest.fixture
def rarely() -> Iterator[World]:
    yield from _world(60_000)


def _world(heartbeat_ms: int) -> Iterator[World]:
    home = Path(tempfile.mkdtemp(prefix="tw-"))
    (home / "treewire.toml").write_text(f"[gateway]\nport = 0\nheartbeat_ms = {heartbeat_ms}\n")
    settings = Settings.load(home, environ=_environment())
    aggregator, gateway = Child(settings, "aggregator"), Child(settings, "gateway")
    try:
        yield World(settings, aggregator, gateway)
    finally:
        for child in (gateway, aggregator):
            if child.process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.end()
        shutil.rmtree(home, ignore_errors=True)


def runs(world: World, test: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        async with world.running():
            await test(world)

    asyncio.run(run())


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
        stamp = _stamp()
        life = [_look(p, f"{p}-w", "life", Life(name=p, phase="ready"), stamp) for p in ("web", "api")]

        async def both() -> bool:
            now = _stamp()
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
            assert (await world.get("v1/projects/web/snapshot"))[0] == 200
            status, headers, _ = await world.get("v1/projects/web/workspaces/w1/explain")
            assert (status, bool(headers.get("Retry-After"))) == (503, True)
            async with world.client() as newcomer:
                await newcomer.until(lambda c: len(c.state) == 2 and _health(c) == "stale")
            world.aggregator.start()
            await client.until(lambda c: _health(c) == "ok")
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
            snapshot = await _next(stream, "snapshot")
            for n in range(3):
                await world.git("w1", n)
            while (await _next(stream, "delta"))["patch"]["w1"]["git"]["insertions"] != 2:
                pass
            await stream.send_json({"type": "resync", "id": 1, "reason": "gap", "version": snapshot["version"]})
            delta = await _next(stream, "delta")
            assert delta["from"] == snapshot["version"]
            assert delta["patch"]["w1"]["git"]["insertions"] == 2
            await stream.send_json({"type": "resync", "id": 1, "reason": "hash"})
            again = await _next(stream, "snapshot")
            assert again["reason"] == "hash"
            assert merge_patch.state_hash(again["workspaces"]) == again["hash"]

    runs(world, test)


async def _next(stream: aiohttp.ClientWebSocketResponse, kind: str) -> dict[str, Any]:
    while True:
        message = await stream.receive(timeout=15)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        frame: dict[str, Any] = json.loads(message.data)
        if frame["type"] == "heartbeat":
            await stream.send_json({"type": "ack", "n": frame["n"], "subscriptions": {}})
        if frame["type"] == kind:
            return frame


def test_clients_that_never_read_delay_nobody_and_cost_bounded_memory(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1")
        gateway = psutil.Process(world.gateway.process.pid)
        deaf = [await _deaf(world) for _ in range(20)]
        try:
            async with world.client() as client:
                await client.until(lambda c: c.state)
                before = gateway.memory_info().rss
                for n in range(300):
                    fat = Session(name="x" * 400 + str(n), state="working")
                    for one in range(20):
                        await world.send(_look("web", "w1", f"session:s{one}", fat, _stamp(), "live"))
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
            await _next(stream, "welcome")
            world.gateway.process.terminate()
            while (await stream.receive(timeout=10)).type is aiohttp.WSMsgType.TEXT:
                pass
            assert stream.close_code == 4001
        assert await asyncio.to_thread(world.gateway.process.wait, 10) == 0

    runs(world, test)


# ── HTTP ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_snapshot_has_a_tag_and_is_not_sent_again_while_nothing_changed(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1")
        status, headers, body = await world.get("v1/projects/web/snapshot")
        state = json.loads(body)
        tag = f'"{state["epoch"]}.{state["version"]}"'
        assert (status, headers["ETag"]) == (200, tag)
        assert state["hash"] == merge_patch.state_hash(state["workspaces"])
        for asked in (tag, f"W/{tag}", f'"other", {tag}'):
            status, headers, body = await world.get("v1/projects/web/snapshot", **{"If-None-Match": asked})
            assert (status, body) == (304, b"")
        await world.git("w1", 1)

        async def changed() -> bool:
            return (await world.get("v1/projects/web/snapshot", **{"If-None-Match": tag}))[0] == 200

        await world.until(changed, "a new version")
        assert (await world.get("v1/projects/nope/snapshot"))[0] == 404

    runs(world, test)


def test_explain_tells_who_won_and_who_lost_and_no_path_clock_or_process(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1")
        early = _stamp()
        await world.git("w1", 7)
        await world.send(
            Look("web", "w1", "git", Git(insertions=1), early, "git", producer="/home/canary/worker", domain="canary")
        )

        async def told() -> Any:
            found = await world.json("v1/projects/web/workspaces/w1/explain?group=git")
            return found if len(found["groups"].get("git", [])) == 2 else None

        found = await world.until(told, "both looks")
        won, lost = found["groups"]["git"]
        assert (won["verdict"], won["value"]) == ("applied", {"insertions": 7})
        assert (lost["verdict"], lost["value"]) == ("older", {"insertions": 1})
        assert won["interval"]["ended_ms_ago"] >= 0
        assert "canary" not in json.dumps(found)
        assert CLOCK not in json.dumps(found)
        assert set((await world.json("v1/projects/web/workspaces/w1/explain"))["groups"]) == {"git", "life"}
        assert (await world.get("v1/projects/web/workspaces/nobody/explain"))[0] == 404
        assert (await world.get("v1/projects/nope/workspaces/w1/explain"))[0] == 404

    runs(world, test)


def test_readiness_names_each_part_and_metrics_cover_every_process(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1")
        told = await world.json("readyz")
        assert told["ready"]
        assert {"aggregator", "epoch", "census", "catalog", "reconciler", "git", "sources"} == set(told["parts"])
        assert set(told["degraded"]) == {"reconciler", "git", "sources"}
        async with world.client() as client:
            await client.until(lambda c: c.state)
            text = (await world.get("metrics"))[2].decode()
            assert 'treewire_process_up{process="aggregator"} 1' in text
            assert 'treewire_clients{process="gateway-0"} 1.0' in text
            assert 'treewire_subscribers{process="gateway-0",project="web"} 1.0' in text

    runs(world, test)


# ── events ───────────────────────────────────────────────────────────────────────────────────────


def _life(workspace: str, **fields: Any) -> dict[str, Any]:
    return {"project": "web", "workspace": workspace, "group": "life", "fields": {"name": workspace, **fields}}


def _session(workspace: str, state: str, **more: Any) -> dict[str, Any]:
    fields = {"provider": "claude", "state": state}
    return {"project": "web", "workspace": workspace, "group": "session:s1", "fields": fields, **more}


async def _followed(world: World) -> Path:
    """The catalog follows a project, and the aggregator has heard of it."""
    folder = world.settings.home / "web"
    folder.mkdir()
    store = await asyncio.to_thread(catalog.open_url, world.settings.database_url)
    await asyncio.to_thread(store.add_project, folder, wall_ms())
    store.close()
    await world.ready()
    return folder


def test_an_event_is_recorded_and_reaches_every_client(world: World) -> None:
    async def test(world: World) -> None:
        folder = await _followed(world)
        async with world.client() as client:
            await client.until(lambda c: c.version >= 0)
            assert await world.post([_life("w1", path=str(folder / "w1")), _session("w1", "working")]) == (
                202,
                {"accepted": 2},
            )
            await client.until(lambda c: c.state.get("w1", {}).get("sessions"))
            assert client.state["w1"]["status"]["code"] == "agent_working"
            hook = _session(str(folder / "w1"), "waiting")
            del hook["project"]
            assert (await world.post(hook))[0] == 202
            await client.until(lambda c: c.state["w1"]["sessions"]["s1"]["state"] == "waiting")
            assert str(folder) not in json.dumps(client.frames)
        store = catalog.open_url(world.settings.database_url)
        assert [workspace.id for workspace in store.workspaces()] == ["w1"]
        store.close()

    runs(world, test)


def test_a_request_with_one_bad_event_is_refused_whole_and_names_it(world: World) -> None:
    async def test(world: World) -> None:
        await _followed(world)
        good = _life("w1")
        for bad, field in (
            ({**good, "age_ms": "soon"}, "age_ms"),
            ({**good, "project": "nope"}, "project"),
            ({**good, "group": "git", "fields": {"files": 1}}, "group"),
            ({**good, "fields": {"phase": "sleeping"}}, "fields.phase"),
            ({**good, "fields": {"pid": 4711}}, "fields.pid"),
            (_session("unheard-of", "working"), "workspace"),
            (_session("/nowhere/at/all", "working"), "workspace"),
            (_session("/nul\0", "working"), "workspace"),
            ({**good, "extra": 1}, None),
            (17, None),
        ):
            status, told = await world.post([good, bad])
            assert (status, told["index"], told["accepted"]) == (400, 1, 0), bad
            assert told["message"].startswith("events[1]: ")
            assert field is None or told["field"] == field, told
        for body in (b"", b"{", b"[" * 100_000, b"\xff"):
            assert (await world.post(body))[0] == 400
        status, told = await world.post({**good, "group": "git"})
        assert (status, told["message"]) == (400, "group: git is measured by treewire; it cannot be reported")
        assert await world.post([]) == (202, {"accepted": 0})
        assert (await world.post([good] * 1001))[0] == 413
        assert (await world.post(b'"' + b"x" * (1 << 20) + b'"'))[0] == 413
        assert (await world.json("v1/projects"))["projects"][0]["workspaces"] == 0
        assert (await world.post(good))[0] == 202

    runs(world, test)


def test_events_sent_at_once_share_transactions_and_none_is_lost(world: World) -> None:
    async def test(world: World) -> None:
        await _followed(world)
        answers = await asyncio.gather(*(world.post(_life(f"w{n}")) for n in range(100)))
        assert {status for status, _ in answers} == {202}
        async with world.client() as client:
            await client.until(lambda c: len(c.state) == 100)
        text = (await world.get("metrics"))[2].decode()
        commits = next(line for line in text.splitlines() if line.startswith("treewire_event_commits_total"))
        assert float(commits.split()[-1]) < 100

    runs(world, test)


def test_while_the_aggregator_is_away_events_are_still_taken_and_quickly(world: World) -> None:
    async def test(world: World) -> None:
        await _followed(world)
        world.aggregator.kill()
        for n in range(3):
            began = time.monotonic()
            assert (await world.post(_life(f"w{n}")))[0] == 202
            assert time.monotonic() - began < 2
        store = catalog.open_url(world.settings.database_url)
        assert len(store.workspaces()) == 3
        store.close()

    runs(world, test)


def test_a_catalog_that_stays_locked_is_answered_with_come_back_later_and_no_path(world: World) -> None:
    async def test(world: World) -> None:
        await _followed(world)
        store = catalog.open_url(world.settings.database_url)
        with store.engine.connect().execution_options(treewire_write=True) as held, held.begin():
            status, told = await world.post(_life("w1"))
        store.close()
        assert status == 503
        assert str(world.settings.home) not in json.dumps(told)
        assert (await world.json("readyz"))["parts"]["catalog"]["state"] == "degraded"
        assert (await world.post(_life("w1")))[0] == 202
        assert (await world.json("readyz"))["parts"]["catalog"]["state"] == "ok"

    runs(world, test)


# ── the address ──────────────────────────────────────────────────────────────────────────────────


def test_a_port_that_is_taken_is_an_error_that_says_what_to_do() -> None:
    home = Path(tempfile.mkdtemp(prefix="tw-"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        (home / "treewire.toml").write_text(f"[gateway]\nport = {other.getsockname()[1]}\n")
        gateway = Child(Settings.load(home, environ=_environment()), "gateway")
        try:
            assert gateway.process.wait(20) == 1
            assert "set gateway.port to a free one" in gateway.said
            assert "Traceback" not in gateway.said
        finally:
            gateway.process.send_signal(signal.SIGKILL)
            shutil.rmtree(home, ignore_errors=True)
