"""Several gateways of one deployment: the same answers from each, and a client may move from one to another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from tests.journeys.client import Client
from tests.world import World, deployed, free_ports, next_frame, runs

DEPLOY = Path(__file__).parents[2] / "deploy"
NAME = "treewire.example.org"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
CADDY = shutil.which("caddy")


@pytest.fixture
def ranged() -> Iterator[World]:
    with deployed(gateways=2, ports="range", port=free_ports(2), allowed_hosts=[NAME]) as found:
        yield found


def test_gateways_that_share_a_port_share_the_clients_and_give_the_same_answers() -> None:
    """W4."""

    async def test(world: World) -> None:
        await world.ready("w1", "w2")
        async with contextlib.AsyncExitStack() as held:
            clients: list[Client] = []

            def served() -> set[int]:
                return {n for n, one in enumerate(world.gateways) if _served(one.process.pid, world)}

            while len(served()) < 2 or len(clients) < 6:
                clients.append(await held.enter_async_context(world.client()))
                await clients[-1].until(lambda c: len(c.state) == 2)
                assert len(clients) < 100, "the kernel gives all to one"
            for value in range(20):
                await world.git("w1", value)
            for client in clients:
                await client.until(lambda c: c.state["w1"].get("git", {}).get("insertions") == 19)
                proven = client.verified
                await client.until(lambda c, proven=proven: c.verified > proven)
                assert client.mismatches == []
            tags = set()
            for _ in range(20):
                async with (
                    aiohttp.ClientSession(headers=world.bearer) as fresh,
                    fresh.get(world.url + "v1/projects/web/snapshot") as answer,
                ):
                    tags.add((answer.headers["ETag"], await answer.read()))
            assert len(tags) == 1
            world.gateways[0].kill()
            seen = [len(client.frames) for client in clients]
            await world.git("w1", 20)
            for client, before in zip(clients, seen, strict=True):
                await client.until(lambda c: c.state["w1"]["git"]["insertions"] == 20)
                assert "snapshot" not in [frame["type"] for frame in client.frames[before:]]

    with deployed(gateways=2, port=free_ports(1)) as world:
        runs(world, test)


def _served(pid: int, world: World) -> int:
    port = int(world.url.rstrip("/").rpartition(":")[2])
    connections = psutil.Process(pid).net_connections("tcp")
    return sum(one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port for one in connections)


def test_a_client_that_moves_to_another_gateway_goes_on_with_a_delta(ranged: World) -> None:
    """W3: versions and epochs are the aggregator's."""

    async def test(world: World) -> None:
        first, second = world.urls
        assert world.url == first
        await world.ready("w1", "w2")
        async with Client(first, world.token, "web") as client:
            await client.until(lambda c: len(c.state) == 2)
            await world.git("w1", 1)
            await client.until(lambda c: c.state["w1"].get("git"))
        world.gateways[0].kill()
        await world.git("w1", 2)
        moved = Client(second, world.token, "web")
        moved.state, moved.epoch, moved.version = client.state, client.epoch, client.version
        async with moved:
            await moved.until(lambda c: c.state["w1"]["git"]["insertions"] == 2)
            assert next(frame for frame in moved.frames if frame["type"] in ("delta", "snapshot"))["type"] == "delta"
            proven = moved.verified
            await moved.until(lambda c: c.verified > proven)
            assert moved.mismatches == []
        cursor = f"{client.epoch}.{client.version}"
        status, _, body = await world.get_at(second, f"v1/projects/web/changes?since={cursor}&wait=0")
        assert (status, json.loads(body)["patch"]["w1"]["git"]["insertions"]) == (200, 2)
        headers = {**world.bearer, "Last-Event-ID": cursor}
        async with world.http.get(second + "v1/projects/web/events", headers=headers) as answer:
            told = b""
            while b'"delta"' not in told:
                told += await asyncio.wait_for(answer.content.readany(), 10)
            assert b'"snapshot"' not in told

    runs(ranged, test)


# ── behind a proxy ───────────────────────────────────────────────────────────────────────────────

Proxy = Callable[[World, Path], contextlib.AbstractContextManager[str]]


@contextlib.contextmanager
def nginx(world: World, folder: Path) -> Iterator[str]:
    """The example as it is, but for the port, the certificate and the gateways' ports."""
    port = free_ports(1)
    site = (DEPLOY / "nginx.conf").read_text()
    site, listens = re.subn(r"listen 443 ssl http2;", f"listen 127.0.0.1:{port};", site)
    site, certificates = re.subn(r" *ssl_certificate.*\n", "", site)
    assert (listens, certificates) == (1, 2)
    for n, url in enumerate(world.urls):
        site = site.replace(f"127.0.0.1:{8787 + n}", url.split("/")[2])
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
    whole += f"http {{ access_log off; {temporary}\n{site}\n}}\n"
    (folder / "nginx.conf").write_text(whole)
    command = [str(NGINX), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        said = process.communicate(timeout=20)[0]
        print(said, (folder / "error.log").read_text() if (folder / "error.log").exists() else "")


@contextlib.contextmanager
def caddy(world: World, folder: Path) -> Iterator[str]:
    """The same, without TLS."""
    port = free_ports(1)
    site, names = re.subn(
        rf"^{re.escape(NAME)} {{",
        f"http://{NAME}:{port} {{\n\tbind 127.0.0.1",
        (DEPLOY / "Caddyfile").read_text(),
        flags=re.M,
    )
    assert names == 1
    for n, url in enumerate(world.urls):
        assert f"127.0.0.1:{8787 + n}" in site
        site = site.replace(f"127.0.0.1:{8787 + n}", url.split("/")[2])
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n}}\n{site}")
    command = [str(CADDY), "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    homes = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    process = subprocess.Popen(
        command, env={**os.environ, **homes}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        print(process.communicate(timeout=20)[0])


# What a proxy answers under a name that it does not know: the gateway's refusal, or nothing at all.
PROXIES = [
    pytest.param(nginx, (403, True), marks=pytest.mark.skipif(NGINX is None, reason="there is no nginx here")),
    pytest.param(caddy, (200, False), marks=pytest.mark.skipif(CADDY is None, reason="there is no caddy here")),
]


@pytest.mark.parametrize(("proxy", "refusal"), PROXIES)
def test_the_examples_of_proxies_pass_on_streams_events_and_polls_and_survive_a_gateway(
    ranged: World, tmp_path: Path, proxy: Proxy, refusal: tuple[int, bool]
) -> None:
    """W10."""

    async def test(world: World) -> None:
        await world.ready("w1")
        named = {**world.bearer, "Host": NAME}
        with proxy(world, tmp_path) as url:

            async def passes() -> bool:
                try:
                    return (await world.get_at(url, "healthz", Host=NAME))[0] == 200
                except aiohttp.ClientError:
                    return False

            await world.until(passes, "the proxy")
            status, _, body = await world.get_at(url, "healthz", Host="evil.example")
            assert (status, b"forbidden" in body) == refusal
            assert b'"ok"' not in body
            status, headers, body = await world.get_at(url, "v1/projects/web/snapshot", Host=NAME)
            state = json.loads(body)
            assert (status, headers["ETag"]) == (200, f'"{state["epoch"]}.{state["version"]}"')

            stream = await world.http.ws_connect(
                url + "v1/stream",
                protocols=["treewire.v1"],
                headers={**named, "Origin": f"https://{NAME}"},
                compress=15,
            )
            await stream.send_json({"type": "hello"})
            await stream.send_json({"type": "subscribe", "id": 1, "project": "web"})
            held = await next_frame(stream, "snapshot")
            events = await world.http.get(url + "v1/projects/web/events", headers=named)
            told = b""
            while b'"snapshot"' not in told:
                told += await asyncio.wait_for(events.content.readany(), 10)
            since = f"{state['epoch']}.{state['version']}"
            poll = asyncio.create_task(world.get_at(url, f"v1/projects/web/changes?since={since}&wait=20", Host=NAME))
            await asyncio.sleep(0.2)
            began = time.monotonic()
            await world.git("w1", 7)
            delta = await next_frame(stream, "delta")
            while b'"insertions":7' not in told:
                told += await asyncio.wait_for(events.content.readany(), 10)
            assert json.loads((await poll)[2])["patch"]["w1"]["git"]["insertions"] == 7
            assert time.monotonic() - began < 5, "something held it back"
            assert delta["from"] == held["version"]
            events.close()

            async def resumed(cursor: dict[str, Any], value: int) -> dict[str, Any]:
                """What a client that comes back gets for its cursor."""
                async with world.http.ws_connect(url + "v1/stream", protocols=["treewire.v1"], headers=named) as again:
                    await again.send_json({"type": "hello"})
                    await again.send_json({"type": "subscribe", "id": 1, "project": "web", **cursor})
                    told = await next_frame(again, "delta")  # and no snapshot
                    assert told["from"] == cursor["version"]
                    while told["patch"].get("w1", {}).get("git", {}).get("insertions") != value:
                        told = await next_frame(again, "delta")
                    return {"epoch": told["epoch"], "version": told["to"]}

            await stream.close()
            cursor = {"epoch": delta["epoch"], "version": delta["to"]}
            first, second = world.gateways
            first.kill()
            await world.git("w1", 8)
            cursor = await resumed(cursor, 8)
            first.start()
            await world.until(world.is_up, "the first gateway again")
            await world.ready("w1")
            second.kill()
            await world.git("w1", 9)
            await resumed(cursor, 9)

    runs(ranged, test)
