"""Rows of the fault matrix that no other test holds; docs/reliability.md names a test for each row."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil
import pytest
import zmq

from pipeline import bus, catalog, wire
from pipeline.domain.model import Git
from pipeline.runtime.clock import wall_ms
from tests.journeys.client import Client
from tests.world import World, deployed, look, next_frame, runs, stamp

ROOT: Final = Path(__file__).parents[2]
STORM: Final = 300
FLOOD: Final = 30_000


@pytest.fixture
def world() -> Iterator[World]:
    with deployed(max_sockets=2 * STORM) as found:
        yield found


def counts(client: Client, workspace: str = "w1") -> int:
    return int(client.state.get(workspace, {}).get("git", {}).get("insertions") or -1)


def stale(client: Client) -> bool:
    beats = [frame for frame in client.frames if frame["type"] == "heartbeat"]
    return bool(beats) and beats[-1]["health"]["aggregator"] == "stale"


def test_what_queued_while_the_aggregator_was_stopped_is_judged_by_its_stamps(world: World) -> None:
    """S5: nobody starts anew, everybody is told that it is stale, and what was seen later wins, not what came later."""

    async def test(world: World) -> None:
        await world.ready("w1")
        async with world.client() as client:
            await world.git("w1", 1)
            await client.until(lambda c: counts(c) == 1)
            epoch, process = client.epoch, world.aggregator.process
            os.kill(process.pid, signal.SIGSTOP)
            try:
                before = stamp()
                await world.git("w1", 3)
                await world.send(look("web", "w1", "git", Git(insertions=2), before, "git"))
                await client.until(stale)
                assert counts(client) == 1
            finally:
                os.kill(process.pid, signal.SIGCONT)
            await client.until(lambda c: counts(c) == 3)
            await world.git("w1", 4)  # all before this has been judged when it shows
            await client.until(lambda c: counts(c) == 4 and not stale(c))
            seen = [frame["patch"]["w1"]["git"]["insertions"] for frame in client.frames if _moves(frame)]
            assert 2 not in seen
            assert seen[-1] == 4
            assert (client.epoch, client.mismatches) == (epoch, [])

    runs(world, test)


def _moves(frame: dict[str, Any]) -> bool:
    return frame["type"] == "delta" and "insertions" in ((frame["patch"].get("w1") or {}).get("git") or {})


def test_a_storm_of_clients_that_reconnect_is_served_from_a_few_encodings_and_leaves_nothing(world: World) -> None:
    """W4, O3: a snapshot is encoded once for a version, not once for a client; and memory is level after the first."""

    async def comes(world: World, http: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse:
        """As clients do: who is told that too many are at the door tries again."""
        while True:
            try:
                stream = await http.ws_connect(world.url + "v1/stream", protocols=["treewire.v1"])
            except aiohttp.WSServerHandshakeError as refusal:
                if refusal.status != 503:
                    raise
                await asyncio.sleep(0.02)
                continue
            await stream.send_json({"type": "hello"})
            await stream.send_json({"type": "subscribe", "id": 1, "project": "web", "epoch": "no", "version": 7})
            return stream

    async def storm(world: World) -> None:
        everybody = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(headers=world.bearer, connector=everybody) as http:
            sockets = await asyncio.gather(*(comes(world, http) for _ in range(STORM)))
            held = await asyncio.gather(*(next_frame(stream, "snapshot") for stream in sockets))
            assert {(frame["reason"], frame["hash"]) for frame in held} == {("epoch", held[0]["hash"])}

    async def encoded(world: World) -> float:
        return world.metric((await world.get("metrics"))[2], "treewire_frames_encoded_total")

    async def test(world: World) -> None:
        await world.ready(*(f"w{n}" for n in range(50)))
        gateway = psutil.Process(world.gateway.process.pid)
        async with world.client() as client:
            await client.until(lambda c: len(c.state) == 50)
            await storm(world)
            before, size = await encoded(world), gateway.memory_info().rss
            for _ in range(3):
                await storm(world)
            assert await encoded(world) - before < 10
            assert gateway.memory_info().rss - size < 10 << 20
            await world.git("w1", 5)
            await client.until(lambda c: counts(c) == 5)
            assert client.mismatches == []

    runs(world, test)


def test_a_flood_of_looks_that_nobody_can_place_costs_others_nothing_but_the_moment(world: World) -> None:
    """S2: each is counted by its verdict; the store does not grow by it, and whoever reports beside it is heard."""

    async def flood(world: World) -> None:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(bus.endpoint(world.settings.run_dir, "ingress"))
        try:
            for n in range(FLOOD):
                stray = wire.encode(look("web", f"stray-{n}", "git", Git(insertions=n), stamp(), "git"))
                while True:
                    with contextlib.suppress(zmq.Again):
                        socket.send(stray, zmq.NOBLOCK)
                        break
                    await asyncio.sleep(0.001)
                if n % 500 == 0:
                    await asyncio.sleep(0)
        finally:
            socket.close(linger=5000)

    async def test(world: World) -> None:
        await world.ready("w1")
        async with world.client() as client:
            await client.until(lambda c: "w1" in c.state)
            flooding = asyncio.create_task(flood(world))
            told = 0
            while not flooding.done() or told < 3:
                told += 1
                await world.git("w1", told)
                await client.until(lambda c, told=told: counts(c) == told, 10)
            await flooding

            async def all_judged() -> bool:
                text = (await world.get("metrics"))[2].decode()
                found = re.findall(r'^treewire_looks_total\{.*group="git",.*verdict="(\w+)".*\} (\S+)$', text, re.M)
                return sum(float(count) for verdict, count in found if verdict != "applied") >= FLOOD

            await world.until(all_judged, "all of the flood is counted")
            assert set(client.state) == {"w1"}
            assert client.mismatches == []

    runs(world, test)


@contextlib.contextmanager
def limited(pid: int, what: int, most: int) -> Iterator[None]:
    soft, hard = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (most, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, what, (soft, hard))


async def followed(world: World, name: str) -> None:
    """The catalog follows a project."""
    folder = world.settings.home / name
    folder.mkdir()
    store = await asyncio.to_thread(catalog.open_url, world.settings.database_url)
    await asyncio.to_thread(store.add_project, folder, wall_ms())
    store.close()


def event(phase: str) -> dict[str, Any]:
    return {"project": "web", "workspace": "w2", "group": "life", "fields": {"name": "w2", "phase": phase}}


def test_while_nothing_can_be_written_to_disk_the_screens_go_on_and_events_are_refused_with_what_to_do(
    world: World,
) -> None:
    """S7: a full disk, as a limit of the gateway and the aggregator on what they may write."""

    async def test(world: World) -> None:
        await followed(world, "web")
        await world.ready("w1")
        async with world.client() as client, contextlib.AsyncExitStack() as stack:
            await client.until(lambda c: "w1" in c.state)
            with contextlib.ExitStack() as full:
                for child in (world.gateway, world.aggregator):
                    full.enter_context(limited(child.process.pid, resource.RLIMIT_FSIZE, 0))
                status, problem = await world.post(event("provisioning"))
                assert status == 503
                assert problem["code"] == "busy"
                for n in range(1, 4):
                    await world.git("w1", n)
                    await client.until(lambda c, n=n: counts(c) == n)
                other = await stack.enter_async_context(world.client())
                await other.until(lambda c: counts(c) == 3)

            async def usable() -> bool:
                return (await world.json("readyz"))["parts"]["catalog"]["state"] == "ok"

            await world.until(usable, "the gateway to notice by itself that it can write again")

            async def taken() -> bool:
                return (await world.post(event("ready")))[0] == 202

            await world.until(taken, "events are taken again")
            await client.until(lambda c: c.state.get("w2", {}).get("life", {}).get("phase") == "ready")
            assert (client.mismatches, other.mismatches) == ([], [])
            assert all(child.process.poll() is None for child in (world.gateway, world.aggregator))

    runs(world, test)


def test_a_home_whose_file_system_is_full_costs_what_has_to_be_written_and_nothing_else(tmp_path: Path) -> None:
    """S7: all processes meet the real error, as a small file system has it. See `tests.faults.full`."""
    home = tempfile.mkdtemp(prefix="tw-")
    apart = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    command = [sys.executable, "-m", "tests.faults.full", home, str(tmp_path)]
    try:
        done = subprocess.run(["unshare", *apart, *command], cwd=ROOT, capture_output=True, text=True, timeout=220)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if done.returncode and done.stderr.startswith(("unshare:", "mount:")):
        pytest.skip(f"no file system can be mounted here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr


def test_without_descriptors_those_who_are_connected_go_on_and_others_come_in_when_there_are_some_again(
    world: World,
) -> None:
    """W5, O1."""

    async def test(world: World) -> None:
        await world.ready("w1")
        pid = world.gateway.process.pid
        async with world.client() as client:
            await client.until(lambda c: "w1" in c.state)
            with limited(pid, resource.RLIMIT_NOFILE, len(os.listdir(f"/proc/{pid}/fd"))):
                async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(3)) as others:
                    with pytest.raises((aiohttp.ClientError, TimeoutError)):
                        await asyncio.gather(*(others.get(world.url + "healthz") for _ in range(20)))
                for n in range(1, 4):
                    await world.git("w1", n)
                    await client.until(lambda c, n=n: counts(c) == n)
            async with world.client() as other:
                await other.until(lambda c: counts(c) == 3)
                assert (client.mismatches, other.mismatches) == ([], [])
            assert world.gateway.process.poll() is None

    runs(world, test)


def test_every_row_of_the_matrix_names_tests_that_exist() -> None:
    table = (ROOT / "docs/reliability.md").read_text().partition("## Fault matrix")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| (.*) \|$", table, re.M)[2:]
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text())
    }
    assert len(rows) >= 18
    for fault, _, held_by in rows:
        named = set(re.findall(r"`(test_\w+)`", held_by))
        assert named, f"{fault} is held by nothing"
        assert named <= defined, f"{fault} names tests that do not exist: {named - defined}"
