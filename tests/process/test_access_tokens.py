"""Tokens and tickets on real gateways: what is revoked ends, strangers stay outside, and nothing is written down."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import psutil
import pytest

from pipeline import catalog as catalogs
from pipeline.runtime.clock import wall_ms
from tests.access import PATIENCE_S, Stream, bearer, both, created, followed, status, treewire
from tests.world import World, deployed, environment, runs, stamp

SEEN_S = 2.0


@pytest.fixture
def world() -> Iterator[World]:
    with deployed() as world:
        yield world


# ── what ends ────────────────────────────────────────────────────────────────────────────────────


def test_a_revoked_token_closes_its_sockets_in_time_and_nobody_elses(world: World) -> None:
    """W1"""

    async def test(world: World) -> None:
        await asyncio.to_thread(followed, world, "web")
        await world.ready("w1")
        id_, secret = await asyncio.to_thread(created, world, "--project", "web")
        catalog = catalogs.open(world.settings)
        async with Stream(world, bearer(secret)) as stream, world.client() as other:
            await stream.subscribe(1, "web")
            assert set((await stream.next("snapshot"))["workspaces"]) == {"w1"}
            assert await status(world, "v1/projects/web/snapshot", **bearer(secret)) == 200
            catalog.revoke_token(id_, wall_ms())
            began = time.monotonic()
            assert await stream.closed() == 4506
            took = time.monotonic() - began
            assert took < SEEN_S, f"took {took:.2f} s"
            assert await status(world, "v1/projects/web/snapshot", **bearer(secret)) == 401
            await world.git("w1", 7)
            await other.until(lambda c: c.state.get("w1", {}).get("git", {}).get("insertions") == 7)
        catalog.close()

    runs(world, test)


def test_a_revoked_token_ends_what_it_waits_for_over_http_too(world: World) -> None:
    async def test(world: World) -> None:
        await asyncio.to_thread(followed, world, "web")
        await world.ready("w1")
        id_, secret = await asyncio.to_thread(created, world, "-p", "web")
        catalog = catalogs.open(world.settings)
        async with aiohttp.ClientSession(headers=bearer(secret)) as http:
            events = await http.get(world.url + "v1/projects/web/events")
            assert events.status == 200
            assert b"snapshot" in await events.content.readuntil(b"}}}}\n\n")
            state = json.loads((await world.get("v1/projects/web/snapshot"))[2])
            since = f"v1/projects/web/changes?since={state['epoch']}.{state['version']}&wait=25"
            waiting = asyncio.create_task(http.get(world.url + since))
            await world.until(lambda: _clients(world, 2), "both wait")
            catalog.revoke_token(id_, wall_ms())
            began = time.monotonic()
            async with asyncio.timeout(PATIENCE_S):
                rest = await events.content.read()
                assert (await waiting).status == 401
            assert time.monotonic() - began < SEEN_S
            assert b"w1" not in rest
        catalog.close()

    runs(world, test)


async def _clients(world: World, count: int) -> bool:
    return world.metric((await world.get("metrics"))[2], "treewire_clients") == count


def test_a_removed_project_ends_its_subscriptions_and_leaves_the_socket_its_others(world: World) -> None:
    async def test(world: World) -> None:
        await asyncio.to_thread(followed, world, "web", "api")
        await both(world)
        _, secret = await asyncio.to_thread(created, world, "-p", "web", "-p", "api")
        catalog = catalogs.open(world.settings)
        async with Stream(world, bearer(secret)) as stream:
            for id_, project in ((1, "web"), (2, "api")):
                await stream.subscribe(id_, project)
                await stream.next("snapshot")
            catalog.remove_project("api", stamp(), wall_ms())
            assert await stream.next("end") == {"type": "end", "id": 2, "code": "revoked"}
            await world.git("web-w", 7)
            while (await stream.next("delta"))["patch"].get("web-w", {}).get("git", {}).get("insertions") != 7:
                pass
            assert await status(world, "v1/projects/api/snapshot", **bearer(secret)) == 404
            assert await status(world, "v1/projects/web/snapshot", **bearer(secret)) == 200
        catalog.close()

    runs(world, test)


def test_a_token_with_an_end_closes_its_socket_when_it_comes(world: World) -> None:
    async def test(world: World) -> None:
        _, secret = await asyncio.to_thread(created, world, "--ttl", "3s")
        async with Stream(world, bearer(secret)) as stream:
            assert await stream.closed() == 4506
        assert await status(world, "v1/projects", **bearer(secret)) == 401

    runs(world, test)


def test_a_database_that_is_gone_takes_no_token_away_and_the_gateway_says_so(world: World) -> None:
    async def test(world: World) -> None:
        _, secret = await asyncio.to_thread(created, world)
        assert await status(world, "v1/projects", **bearer(secret)) == 200
        database = world.settings.home / "treewire.db"
        database.rename(database.with_suffix(".away"))
        await world.until(lambda: "tokens cannot be read" in world.gateway.said, "the warning")
        assert await status(world, "v1/projects", **bearer(secret)) == 200
        assert await status(world, "v1/projects", **bearer("tw_wrong")) == 401
        database.with_suffix(".away").rename(database)
        await world.until(lambda: "tokens can be read again" in world.gateway.said, "the recovery")

    runs(world, test)


# ── nothing is written down ──────────────────────────────────────────────────────────────────────


def test_no_token_ticket_or_cookie_is_in_any_log_beat_metric_frame_error_tap_or_process_list(world: World) -> None:
    """W8"""

    async def test(world: World) -> None:
        await asyncio.to_thread(followed, world, "web")
        await world.ready("w1")
        id_, secret = await asyncio.to_thread(created, world, "-p", "web", "--name", "leaky")
        record = world.settings.home / "recording"
        tap = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "tap", "--record", str(record), "--home", str(world.settings.home)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(),
        )  # fmt: skip
        told = bytearray()
        listing = threading.Thread(target=lambda: told.extend(tap.stdout.read() if tap.stdout else b""))
        listing.start()
        wrong = "tw_wrong-but-secret-all-the-same"
        secrets = [world.token, secret, wrong]
        try:
            for credentials in (world.bearer, bearer(secret), bearer(wrong)):
                async with aiohttp.ClientSession(headers=credentials) as http:
                    for method, path, body in (
                        ("POST", "v1/login", None), ("POST", "v1/tickets", None), ("GET", "metrics", None),
                        ("GET", "v1/projects/web/snapshot", None), ("GET", "nothing", None), ("PUT", "v1/events", None),
                        ("POST", "v1/events", b"not json"), ("POST", "v1/events", b'{"project": 5}'),
                        ("GET", "v1/projects/web/workspaces/w1/explain", None),
                    ):  # fmt: skip
                        async with http.request(method, world.url + path, data=body) as answer:
                            read = await answer.read()
                            if path == "v1/tickets" and answer.status == 201:
                                secrets.append(json.loads(read)["ticket"])
                            else:
                                told += read
                            if path == "v1/login" and answer.status == 204:
                                secrets.append(next(iter(answer.cookies.values())).value)
            page = {"Origin": world.url.rstrip("/")}
            for hello in (secrets[3], secret, wrong):
                async with Stream(world, page, ticket=hello) as stream:
                    await stream.closed() if hello == wrong else await stream.socket.receive(timeout=PATIENCE_S)
                    told += json.dumps([stream.frames, stream.socket.close_code]).encode()
            await world.git("w1", 3)
            await world.until(lambda: record.exists() and b'"w1"' in record.read_bytes(), "the recording")
            await asyncio.to_thread(treewire, world, "token", "revoke", id_)
            await world.until(lambda: _said_401(world, secret), "the refusal")
            told += await asyncio.to_thread(lambda: treewire(world, "token", "list", "--json").encode())
            for process in psutil.Process().children(recursive=True):
                told += "\0".join([*process.cmdline(), *process.environ().values()]).encode()
        finally:
            tap.terminate()
            await asyncio.to_thread(tap.wait, 10)
            listing.join()
        for path in _files(world):
            told += path.read_bytes()
        assert len(secrets) == 7
        assert b"leaky" in told  # that there was something to look through
        for one in secrets:
            assert one.encode() not in told, f"{one} in {told[max(0, told.find(one.encode()) - 300) :][:400]!r}"

    runs(world, test)


async def _said_401(world: World, secret: str) -> bool:
    return await status(world, "v1/projects", **bearer(secret)) == 401


def _files(world: World) -> list[Path]:
    """Every file of the deployment but the one that holds the operator's token."""
    places = (world.settings.home, world.settings.run_dir)
    found = {path for place in places for path in place.rglob("*") if path.is_file() and os.access(path, os.R_OK)}
    assert any(path.suffix == ".db" for path in found)
    assert any(path.name == "gateway.out" for path in found)
    return sorted(found - {world.settings.token_path})
