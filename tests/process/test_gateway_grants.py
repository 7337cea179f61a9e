"""What a token opens: the same answer for what is forbidden and what is not there, on every way in; and its end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text

from pipeline import catalog
from pipeline.catalog import Catalog
from pipeline.domain.model import Census, Life
from pipeline.runtime.clock import wall_ms
from tests.world import CENSUS, World, deployed, look, next_frame, runs, stamp

REVOKED_S = 2.0


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with deployed() as found:
        yield found


@pytest.fixture
def store(world: World) -> Iterator[Catalog]:
    found = catalog.open_url(world.settings.database_url, make_folder=True)
    known = {project.id for project in found.projects()}
    for name in {"web", "api"} - known:
        folder = world.settings.home / name
        Path.mkdir(folder, exist_ok=True)
        found.add_project(folder, wall_ms())
    yield found
    found.close()


async def both(world: World, secret: str) -> None:
    """Two projects are shown, each with one workspace, and the gateway has heard of the token."""

    async def shown() -> bool:
        now = stamp()
        looks = [look(name, f"{name}-w", "life", Life(name="canary", phase="ready"), now) for name in ("web", "api")]
        await world.send(Census(now, "catalog", CENSUS, ["web", "api"], looks))
        answers = [await world.get(f"v1/projects/{name}/snapshot") for name in ("web", "api")]
        return {status for status, *_ in answers} == {200} and (await world.get("readyz"))[0] == 200

    async def opens() -> bool:
        return (await world.get("v1/projects", **only(secret)))[0] == 200

    await world.until(shown, "two projects")
    await world.until(opens, "the token counts")


def only(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_what_is_forbidden_is_answered_like_what_is_not_there_whatever_the_way(world: World, store: Catalog) -> None:
    """W1."""
    secret = store.create_token(wall_ms(), ["web"], "narrow").secret

    async def test(world: World) -> None:
        await both(world, secret)
        mine = only(secret)
        assert [one["id"] for one in json.loads((await world.get("v1/projects", **mine))[2])["projects"]] == ["web"]
        for path in (
            "v1/projects/{}/snapshot",
            "v1/projects/{}/changes?since=e.1&wait=0",
            "v1/projects/{}/events",
            "v1/projects/{}/workspaces/api-w/explain",
            "v1/projects/{}/workspaces/api-w/explain?group=life",
        ):
            forbidden, unknown = [await world.get(path.format(name), **mine) for name in ("api", "nope")]
            assert forbidden[0] == unknown[0] == 404, path
            assert forbidden[2] == unknown[2], path
        assert (await world.get("v1/projects/web/workspaces/api-w/explain", **mine))[0] == 404
        assert (await world.get("v1/projects/web/snapshot", **mine))[0] == 200
        event = {"workspace": "api-w", "group": "session:s1", "fields": {"state": "working"}}
        answers = [await world.post({**event, "project": name}, **mine) for name in ("api", "nope")]
        assert answers[0] == answers[1]
        assert answers[0][0] == 400
        async with world.connect(headers=mine) as stream:
            await stream.send_json({"type": "hello"})
            told = []
            for name in ("api", "nope"):
                await stream.send_json({"type": "subscribe", "id": 1, "project": name})
                told.append(await next_frame(stream, "error"))
            assert told[0] == told[1]
            await stream.send_json({"type": "subscribe", "id": 1, "project": "web"})
            assert set((await next_frame(stream, "snapshot"))["workspaces"]) == {"web-w"}

    runs(world, test)


def test_a_path_in_a_project_that_is_not_the_callers_is_as_unknown_as_any(world: World, store: Catalog) -> None:
    """W1."""
    secret = store.create_token(wall_ms(), ["web"], "hook").secret

    async def test(world: World) -> None:
        await both(world, secret)
        folder = str(world.settings.home / "api" / "tree")
        life = {"project": "api", "workspace": "tree", "group": "life", "fields": {"name": "tree", "path": folder}}
        assert (await world.post(life))[0] == 202
        event = {"group": "session:s1", "fields": {"state": "working"}}
        there, nowhere = [await world.post({**event, "workspace": path}, **only(secret)) for path in (folder, "/none")]
        assert there == nowhere
        assert there[0] == 400
        assert (await world.post({**event, "workspace": folder}))[0] == 202

    runs(world, test)


def test_a_grant_that_is_taken_away_ends_what_it_opened_within_two_seconds(world: World, store: Catalog) -> None:
    """W1."""
    made = store.create_token(wall_ms(), ["web", "api"], "narrowed")
    secret = made.secret

    async def test(world: World) -> None:
        await both(world, secret)
        mine = only(secret)
        async with world.connect(headers=mine) as stream:
            await stream.send_json({"type": "hello"})
            for number, name in enumerate(("web", "api")):
                await stream.send_json({"type": "subscribe", "id": number, "project": name})
                await next_frame(stream, "snapshot")
            began = time.monotonic()
            await asyncio.to_thread(_narrow, store, made.token.id, "api")
            assert await next_frame(stream, "end") == {"type": "end", "id": 1, "code": "revoked"}
            assert time.monotonic() - began < REVOKED_S
            await world.git("web-w", 5)
            assert (await next_frame(stream, "delta"))["id"] == 0
            await stream.send_json({"type": "subscribe", "id": 1, "project": "api", "epoch": "e", "version": 1})
            assert (await next_frame(stream, "error"))["code"] == "not_found"
            assert (await world.get("v1/projects/api/snapshot", **mine))[0] == 404

    runs(world, test)


def _narrow(store: Catalog, token: str, project: str) -> None:
    with store.engine.connect().execution_options(treewire_write=True) as tx, tx.begin():
        tx.execute(
            text("DELETE FROM token_project WHERE token_id = :t AND project_id = :p"), {"t": token, "p": project}
        )


def test_a_token_that_is_revoked_ends_every_connection_of_its_own_within_two_seconds(
    world: World, store: Catalog
) -> None:
    """W1."""
    made = store.create_token(wall_ms(), ["web"], "ended")
    secret = made.secret

    async def test(world: World) -> None:
        await both(world, secret)
        mine = only(secret)
        state = json.loads((await world.get("v1/projects/web/snapshot", **mine))[2])
        feed_url = world.url + "v1/projects/web/events"
        async with (
            world.connect(headers=mine) as stream,
            world.connect() as other,
            world.http.get(feed_url, headers=mine) as feed,
        ):
            for one in (stream, other):
                await one.send_json({"type": "hello"})
                await one.send_json({"type": "subscribe", "id": 1, "project": "web"})
                await next_frame(one, "snapshot")
            since = f"{state['epoch']}.{state['version']}"
            poll = asyncio.create_task(world.get(f"v1/projects/web/changes?since={since}&wait=20", **mine))
            began = time.monotonic()
            await asyncio.to_thread(store.revoke_token, made.token.id, wall_ms())
            while (message := await stream.receive(timeout=10)).type is aiohttp.WSMsgType.TEXT:
                pass
            assert time.monotonic() - began < REVOKED_S
            assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
            assert stream.close_code == 4506
            assert (await poll)[0] == 401
            await asyncio.wait_for(feed.content.read(), 5)
            assert time.monotonic() - began < REVOKED_S + 1
            assert (await world.get("v1/projects/web/snapshot", **mine))[0] == 401
            await next_frame(other, "heartbeat")

    runs(world, test)


def test_a_ticket_opens_one_socket_of_our_page_as_whoever_asked_for_it(world: World, store: Catalog) -> None:
    secret = store.create_token(wall_ms(), ["web"], "page").secret

    async def test(world: World) -> None:
        await both(world, secret)
        url = world.url
        page = {"Origin": url.rstrip("/")}

        async def hello(said: dict[str, Any]) -> aiohttp.ClientWebSocketResponse:
            stream = await world.http.ws_connect(url + "v1/stream", protocols=["treewire.v1"], headers=page)
            await stream.send_json({"type": "hello", **said})
            return stream

        async with world.http.post(url + "v1/tickets", headers=only(secret)) as answer:
            assert answer.status == 201, await answer.text()
            ticket = (await answer.json())["ticket"]
        stream = await hello({"ticket": ticket})
        await stream.send_json({"type": "subscribe", "id": 1, "project": "api"})
        assert (await next_frame(stream, "error"))["code"] == "not_found"
        await stream.send_json({"type": "subscribe", "id": 1, "project": "web"})
        await next_frame(stream, "snapshot")
        await stream.close()
        for said in ({"ticket": ticket}, {"ticket": "forged.ticket"}, {}):
            stream = await hello(said)
            await stream.receive(timeout=10)
            assert stream.close_code == 4501, said

    runs(world, test)
