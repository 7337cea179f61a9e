"""Bugs that systems of this kind are known for, where it takes real processes to have them."""

from __future__ import annotations

import asyncio
import json

import aiohttp

from pipeline import frames
from tests.world import HEARTBEAT_MS, World, deployed, next_frame, runs


def test_no_two_runs_of_the_aggregator_have_the_same_epoch() -> None:
    """W3, S3. Known as: an epoch is used again after a restart (a counter, a second, a pid), and a cursor from before
    is taken for one of now, at a version that has another meaning."""

    async def test(world: World) -> None:
        epochs: list[str] = []

        async def anew() -> bool:
            """Until then the former one's state is shown, and what is sent may still be on its way to it."""
            await world.census("w1")
            status, _, body = await world.get("v1/projects/web/snapshot")
            return status == 200 and json.loads(body)["epoch"] not in epochs

        for insertions in (1, 2, 3):
            await world.until(anew, "another epoch")
            await world.ready("w1")
            await world.git("w1", insertions)
            held = await world.shown("w1", insertions)
            epochs.append(held["epoch"])
            async with world.connect() as stream:
                await stream.send_json({"type": "hello"})
                cursor = {"epoch": epochs[0], "version": held["version"]}
                await stream.send_json({"type": "subscribe", "id": 1, "project": "web", **cursor})
                if len(epochs) > 1:
                    told = await next_frame(stream, "snapshot")
                    assert told["reason"] == "epoch"
                    assert told["workspaces"]["w1"]["git"]["insertions"] == insertions
                else:
                    assert (await next_frame(stream, "delta"))["to"] == held["version"]
            world.aggregator.kill()
            world.aggregator.start()
        assert len(set(epochs)) == len(epochs)

    with deployed() as world:
        runs(world, test)


def test_a_connection_that_says_nothing_ends_while_others_of_the_same_gateway_go_on() -> None:
    """W5. Known as: the reaper of silent connections does nothing while any client is connected."""

    async def test(world: World) -> None:
        await world.ready("w1")

        async def lively(over: asyncio.Event) -> int:
            async with world.connect() as stream:
                await stream.send_json({"type": "hello"})
                await stream.send_json({"type": "subscribe", "id": 1, "project": "web"})
                beats = 0
                while not over.is_set():
                    await next_frame(stream, "heartbeat")
                    beats += 1
                assert not stream.closed
                return beats

        over = asyncio.Event()
        other = asyncio.create_task(lively(over))
        async with world.connect() as stream:
            await stream.send_json({"type": "hello"})
            await stream.send_json({"type": "subscribe", "id": 1, "project": "web"})
            heard = []
            while (message := await stream.receive(timeout=20)).type is aiohttp.WSMsgType.TEXT:
                heard.append(json.loads(message.data)["type"])
            assert stream.close_code == frames.NO_ACK
        over.set()
        assert await other >= heard.count("heartbeat") > 0

    with deployed(heartbeat_ms=HEARTBEAT_MS) as world:
        runs(world, test)
