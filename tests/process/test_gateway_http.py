"""HTTP beside the stream: snapshots, long-poll, Server-Sent Events, explain, the schema, other origins."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import jsonschema
import pytest

from pipeline.domain import patch as merge_patch
from pipeline.domain.model import Git, Look
from pipeline.runtime.clock import CLOCK
from tests.world import World, deployed, next_frame, runs, stamp

PAGE = "https://studio.example"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with deployed(allowed_origins=[PAGE], max_sockets=6) as found:
        yield found


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
        await world.ready("e1")
        early = stamp()
        await world.git("e1", 7)
        await world.send(
            Look("web", "e1", "git", Git(insertions=1), early, "git", producer="/home/canary/worker", domain="canary")
        )

        async def told() -> Any:
            found = await world.json("v1/projects/web/workspaces/e1/explain?group=git")
            groups = found["groups"]  # names, while the group is not there yet
            return found if isinstance(groups, dict) and len(groups.get("git", [])) == 2 else None

        found = await world.until(told, "both looks")
        won, lost = found["groups"]["git"]
        assert (won["verdict"], won["value"]) == ("applied", {"insertions": 7})
        assert (lost["verdict"], lost["value"]) == ("older", {"insertions": 1})
        assert won["interval"]["ended_ms_ago"] >= 0
        assert "canary" not in json.dumps(found)
        assert CLOCK not in json.dumps(found)
        assert set((await world.json("v1/projects/web/workspaces/e1/explain"))["groups"]) == {"git", "life"}
        assert (await world.get("v1/projects/web/workspaces/nobody/explain"))[0] == 404
        assert (await world.get("v1/projects/nope/workspaces/e1/explain"))[0] == 404

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


def test_an_unknown_group_is_answered_with_those_that_there_are(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1")
        await world.git("w1", 7)
        await world.shown("w1", 7)
        status, _, body = await world.get("v1/projects/web/workspaces/w1/explain?group=weather")
        told = json.loads(body)
        assert (status, told["code"], told["field"]) == (404, "not_found", "group")
        assert set(told["groups"]) == {"git", "life"}
        assert "git, life" in told["message"]
        assert (await world.get("v1/projects/web/workspaces/w1/explain?group=git"))[0] == 200

    runs(world, test)


# ── long-poll ────────────────────────────────────────────────────────────────────────────────────


def test_a_long_poll_answers_when_something_changes_and_follows_to_the_same_state(world: World) -> None:
    """W3, W10."""

    async def test(world: World) -> None:
        await world.ready("w1")
        state = await world.json("v1/projects/web/snapshot")
        held, cursor = state["workspaces"], f"{state['epoch']}.{state['version']}"
        for value in (101, 102, 103):
            waiting = asyncio.create_task(world.get(f"v1/projects/web/changes?since={cursor}&wait=20"))
            await asyncio.sleep(0.05)
            await world.git("w1", value)
            status, headers, body = await waiting
            told = json.loads(body)
            assert (status, headers["Cache-Control"]) == (200, "no-store")
            held = merge_patch.merge(held, told["patch"])
            assert held["w1"]["git"]["insertions"] == value
            assert merge_patch.state_hash(held) == told["hash"]
            assert f"{told['epoch']}.{told['from']}" == cursor
            cursor = f"{told['epoch']}.{told['to']}"
        began = time.monotonic()
        status, _, body = await world.get(f"v1/projects/web/changes?since={cursor}&wait=0.3")
        told = json.loads(body)
        assert time.monotonic() - began >= 0.3
        assert (status, told["patch"], told["from"]) == (200, {}, told["to"])
        assert f"{told['epoch']}.{told['to']}" == cursor
        old = state["version"]
        status, _, body = await world.get(f"v1/projects/web/changes?since={state['epoch']}.{old}")
        assert merge_patch.merge(state["workspaces"], json.loads(body)["patch"]) == held

    runs(world, test)


def test_a_cursor_that_leads_nowhere_is_gone_and_a_bad_parameter_is_named(world: World) -> None:
    """W10."""

    async def test(world: World) -> None:
        await world.ready("w1")
        state = await world.json("v1/projects/web/snapshot")
        here = f"{state['epoch']}.{state['version']}"
        for gone in (f"another.{state['version']}", f"{state['epoch']}.{state['version'] + 1000}"):
            status, headers, body = await world.get(f"v1/projects/web/changes?since={gone}&wait=10")
            assert (status, json.loads(body)["code"]) == (410, "resync")
            assert headers["Cache-Control"] == "no-store"
        for query, field in (
            ("", "since"),
            ("since=", "since"),
            ("since=5", "since"),
            (f"since={state['epoch']}.-1", "since"),
            (f"since={state['epoch']}.9999999999999999999999", "since"),
            (f"since={here}&wait=soon", "wait"),
            (f"since={here}&wait=-1", "wait"),
            (f"since={here}&wait=56", "wait"),
            (f"since={here}&wait=nan", "wait"),
            (f"since={here}&wait=", "wait"),
        ):
            status, _, body = await world.get(f"v1/projects/web/changes?{query}")
            told = json.loads(body)
            assert (status, told["code"], told["field"]) == (400, "bad_request", field), query
            assert told["message"].startswith(f"{field}: ")
        assert (await world.get(f"v1/projects/nope/changes?since={here}"))[0] == 404

    runs(world, test)


# ── Server-Sent Events ───────────────────────────────────────────────────────────────────────────


class Feed:
    """An event stream, read as a browser's EventSource does."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.last_id = ""

    async def next(self, *kinds: str) -> dict[str, Any]:
        """The next message of these types."""
        while True:
            block = (await asyncio.wait_for(self.answer.content.readuntil(b"\n\n"), 15)).decode()
            fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
            self.last_id = fields.get("id", self.last_id)
            if "data" in fields:
                message: dict[str, Any] = json.loads(fields["data"])
                if message["type"] in kinds:
                    return message


@contextlib.asynccontextmanager
async def events(world: World, project: str = "web", last_id: str = "") -> AsyncIterator[Feed]:
    headers = {**world.bearer, "Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
    async with world.http.get(world.url + f"v1/projects/{project}/events", headers=headers) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert "no-store" in answer.headers["Cache-Control"]
        yield Feed(answer)


def test_an_event_stream_begins_with_a_snapshot_and_goes_on_from_the_last_id(world: World) -> None:
    """W3, W10."""

    async def test(world: World) -> None:
        await world.ready("w1")
        async with events(world) as feed:
            assert (await feed.next("welcome"))["heartbeat_ms"] == 200
            snapshot = await feed.next("snapshot")
            held = snapshot["workspaces"]
            assert feed.last_id == f"{snapshot['epoch']}.{snapshot['version']}"
            await world.git("w1", 201)
            delta = await feed.next("delta")
            held = merge_patch.merge(held, delta["patch"])
            assert feed.last_id == f"{delta['epoch']}.{delta['to']}"
            beat = await feed.next("heartbeat")
            while beat["subscriptions"]["1"]["version"] < delta["to"]:
                beat = await feed.next("heartbeat")
            assert beat["subscriptions"]["1"] == {"version": delta["to"], "hash": merge_patch.state_hash(held)}
            assert set(beat["health"]) >= {"aggregator", "database"}
            last_id = feed.last_id
        await world.git("w1", 202)
        await world.shown("w1", 202)
        async with events(world, last_id=last_id) as feed:
            delta = await feed.next("delta", "snapshot")
            assert (delta["type"], f"{delta['epoch']}.{delta['from']}") == ("delta", last_id)
            held = merge_patch.merge(held, delta["patch"])
            assert held["w1"]["git"]["insertions"] == 202
        async with events(world, last_id=f"another.{delta['to']}") as feed:
            snapshot = await feed.next("delta", "snapshot")
            assert (snapshot["reason"], snapshot["workspaces"]) == ("epoch", held)
        status, _, body = await world.get("v1/projects/web/events", **{"Last-Event-ID": "nonsense"})
        assert (status, json.loads(body)["field"]) == (400, "Last-Event-ID")
        assert (await world.get("v1/projects/nope/events"))[0] == 404

    runs(world, test)


def test_an_old_proxy_that_knows_no_chunks_gets_the_events_bare(world: World) -> None:
    """W10."""

    async def test(world: World) -> None:
        await world.ready("w1")
        host = world.url.split("/")[2]
        reader, writer = await asyncio.open_connection(*host.split(":"))
        ask = f"GET /v1/projects/web/events HTTP/1.0\r\nHost: {host}\r\nAuthorization: Bearer {world.token}\r\n\r\n"
        writer.write(ask.encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert b"chunked" not in head.lower()
        told = await asyncio.wait_for(reader.readuntil(b'"type":"snapshot"'), 10)
        assert told.startswith(b"retry: 1000\n\ndata: ")
        writer.close()

    runs(world, test)


def test_a_project_that_goes_ends_its_event_stream_and_its_long_poll(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("a1", project="api", projects=["api", "web"])
        state = await world.json("v1/projects/api/snapshot")
        since = f"{state['epoch']}.{state['version']}"
        async with events(world, "api") as feed:
            await feed.next("snapshot")
            waiting = asyncio.create_task(world.get(f"v1/projects/api/changes?since={since}&wait=20"))

            async def gone() -> bool:
                await world.census("w1", projects=["web"])
                return (await world.get("v1/projects/api/snapshot"))[0] == 404

            await world.until(gone, "the project is gone")
            assert (await feed.next("end"))["code"] == "not_found"
            await asyncio.wait_for(feed.answer.content.read(), 10)
            assert feed.answer.content.at_eof()
            status = 200
            while status == 200:
                status, _, body = await waiting
                to = json.loads(body).get("to")
                waiting = asyncio.create_task(world.get(f"v1/projects/api/changes?since={state['epoch']}.{to}&wait=20"))
            waiting.cancel()
            assert status in (404, 410)

    runs(world, test)


def test_no_more_clients_are_taken_than_there_may_be_of_whatever_sort(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1")
        await world.until(empty, "that the clients of other tests have left")
        async with contextlib.AsyncExitStack() as held:
            for _ in range(6):
                feed = await held.enter_async_context(events(world))
                await feed.next("snapshot")
            status, headers, body = await world.get("v1/projects/web/events")
            assert (status, json.loads(body)["code"], bool(headers["Retry-After"])) == (503, "busy", True)
            assert (await world.get("v1/projects/web/changes?since=e.1"))[0] == 503
            assert (await world.get("v1/projects/web/snapshot"))[0] == 200
            stream = await held.enter_async_context(world.connect())
            await stream.send_json({"type": "hello"})
            await stream.receive(timeout=10)
            assert stream.close_code == 4504
        await world.until(room, "room for new clients")

    async def empty() -> bool:
        return world.metric((await world.get("metrics"))[2], "treewire_clients") == 0

    async def room() -> bool:
        return (await world.get("v1/projects/web/changes?since=e.1"))[0] == 410

    runs(world, test)


# ── packed frames ────────────────────────────────────────────────────────────────────────────────


def test_a_browsers_offer_to_pack_is_taken_without_memory_of_former_frames(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready(*(f"w{n}" for n in range(20)))
        raw = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
        async with world.connect(headers=raw) as stream:
            said = stream._response.headers["Sec-WebSocket-Extensions"]
            assert said == "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        async with world.connect(compress=15) as stream, world.connect() as plain:
            for one in (stream, plain):
                await one.send_json({"type": "hello"})
                await one.send_json({"type": "subscribe", "id": 1, "project": "web"})
            assert stream.compress
            assert not plain.compress
            packed, other = [await next_frame(one, "snapshot") for one in (stream, plain)]
            assert packed == other
            assert len(packed["workspaces"]) == 20
            for value in (1, 2):
                await world.git("w1", value)
                deltas = [await next_frame(one, "delta") for one in (stream, plain)]
                assert deltas[0] == deltas[1]
        await world.ready("w1")

    runs(world, test)


def test_what_is_packed_small_and_is_without_end_is_refused_and_costs_nothing(world: World) -> None:
    async def test(world: World) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = packer.compress(b" " * (60 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH).removesuffix(b"\0\0\xff\xff")
        assert len(bomb) < 65_000
        before = world.gateway.process.pid
        async with world.connect(compress=15) as stream:
            await stream.send_json({"type": "hello"})
            await next_frame(stream, "welcome")
            writer = stream._writer
            frame = bytes([0xC1, 0xFE]) + len(bomb).to_bytes(2) + bytes(4) + bomb
            writer.transport.write(frame)
            while (message := await stream.receive(timeout=10)).type is aiohttp.WSMsgType.TEXT:
                pass
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
            assert stream.close_code == 4500
        for body in (b"x" * 70_000, b"x" * 300_000):  # just too long for us, and too long for aiohttp
            async with world.connect() as stream:
                await stream.send_json({"type": "hello"})
                await stream.send_str(body.decode())
                while (await stream.receive(timeout=10)).type is aiohttp.WSMsgType.TEXT:
                    pass
                assert stream.close_code == 4500
        assert world.gateway.process.pid == before
        assert await world.is_up()

    runs(world, test)


# ── for programs and pages ───────────────────────────────────────────────────────────────────────


def test_the_schema_is_served_and_true_of_what_is_served_beside_it(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1")
        both = await world.json("v1/schema")
        assert set(both) == {"treewire.schema.json", "asyncapi.json"}
        assert await world.json("v1/schema/asyncapi.json") == both["asyncapi.json"]
        schema = await world.json("v1/schema/treewire.schema.json")
        known = schema["$defs"]

        def check(name: str, body: Any) -> None:
            jsonschema.validate(body, {"$ref": f"#/$defs/{name}", "$defs": known})

        state = await world.json("v1/projects/web/snapshot")
        check("State", state)
        check("Changes", await world.json(f"v1/projects/web/changes?since={state['epoch']}.{state['version']}&wait=0"))
        check("Problem", await world.json("v1/schema/other.json"))
        check("Problem", await world.json("v1/projects/nope/snapshot"))
        async with events(world) as feed:
            check("FromServer", await feed.next("snapshot"))

    runs(world, test)


def test_a_page_of_an_allowed_origin_may_read_and_any_other_may_not(world: World) -> None:
    async def test(world: World) -> None:
        await world.ready("w1")
        url = world.url + "v1/projects/web/snapshot"
        ask = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
        async with world.http.options(url, headers={"Origin": PAGE, **ask}) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
            assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
            assert "Origin" in answer.headers["Vary"]
            assert "Access-Control-Allow-Credentials" not in answer.headers
        for foreign in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": PAGE, "Host": "evil"}):
            async with world.http.options(url, headers={**foreign, **ask}) as answer:
                assert answer.status == 403, foreign
                assert "Access-Control-Allow-Origin" not in answer.headers
        async with world.http.options(url, headers={"Origin": PAGE}) as answer:
            assert answer.status == 401  # no question, but a request
        status, headers, _ = await world.get("v1/projects/web/snapshot", Origin=PAGE)
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, PAGE)
        assert "ETag" in headers["Access-Control-Expose-Headers"]
        status, headers, _ = await world.get("v1/projects/web/snapshot", Origin="https://evil.example")
        assert status == 403
        assert "Access-Control-Allow-Origin" not in headers
        assert "Access-Control-Allow-Origin" not in (await world.get("v1/projects/web/snapshot"))[1]
        headers_of_feed = {**world.bearer, "Origin": PAGE}
        async with world.http.get(world.url + "v1/projects/web/events", headers=headers_of_feed) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE

    runs(world, test)
