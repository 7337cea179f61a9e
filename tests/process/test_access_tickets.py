"""Tickets on real gateways: who has none gets no further than his hello, and none is good twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import aiohttp
import psutil
import pytest

from tests.access import PATIENCE_S, Stream, both, created, followed, ticket
from tests.world import World, deployed, free_ports, runs


@pytest.fixture
def world() -> Iterator[World]:
    with deployed() as world:
        yield world


@pytest.fixture
def pair() -> Iterator[World]:
    """Two gateways behind one address."""
    with deployed(gateways=2, port=free_ports(1)) as world:
        yield world


def test_a_page_without_a_cookie_comes_in_by_a_ticket_and_sees_what_its_giver_may(world: World) -> None:
    async def test(world: World) -> None:
        await asyncio.to_thread(followed, world, "web", "api")
        await both(world)
        _, secret = await asyncio.to_thread(created, world, "-p", "web")
        page = {"Origin": world.url.rstrip("/")}
        given = await ticket(world, secret)
        async with Stream(world, page, ticket=given) as stream:
            await stream.next("welcome")
            await stream.subscribe(1, "web")
            await stream.next("snapshot")
            await stream.subscribe(2, "api")
            assert (await stream.next("error"))["code"] == "not_found"
        async with Stream(world, page, ticket=given) as again:
            assert await again.closed() == 4501
            assert again.frames == []

    runs(world, test)


def test_a_page_that_brings_no_ticket_gets_no_further_than_its_hello(world: World) -> None:
    async def test(world: World) -> None:
        page = {"Origin": world.url.rstrip("/")}
        for hello in ({}, {"ticket": ""}, {"ticket": "wrong"}, {"ticket": world.token}):
            async with Stream(world, page, **hello) as stream:
                assert await stream.closed() == 4501
                assert stream.frames == []
        async with aiohttp.ClientSession() as http:
            url = world.url + "v1/stream"
            async with http.ws_connect(url, protocols=["treewire.v1"], headers=page) as stranger:
                await stranger.send_json({"type": "subscribe", "id": 1, "project": "web"})
                await stranger.receive(timeout=PATIENCE_S)
                assert stranger.close_code == 4505

    runs(world, test)


def test_one_ticket_opens_one_socket_whichever_gateways_it_is_shown_to(pair: World) -> None:
    async def test(world: World) -> None:
        await world.until(lambda: len({process.pid for process in _listening(world)}) == 2, "both gateways")
        page = {"Origin": world.url.rstrip("/")}

        async def opened(given: str) -> bool:
            async with Stream(world, page, ticket=given) as stream:
                message = await stream.socket.receive(timeout=PATIENCE_S)
                return message.type is aiohttp.WSMsgType.TEXT

        for _ in range(5):
            given = await ticket(world, world.token)
            assert sorted(await asyncio.gather(*(opened(given) for _ in range(8)))) == [False] * 7 + [True]

    runs(pair, test)


def _listening(world: World) -> list[psutil.Process]:
    found = [psutil.Process(gateway.process.pid) for gateway in world.gateways]
    return [one for one in found if any(c.status == "LISTEN" for c in one.net_connections("tcp"))]


def test_strangers_are_few_and_soon_gone_and_keep_nobody_out_for_long(world: World) -> None:
    async def test(world: World) -> None:
        page = {"Origin": world.url.rstrip("/")}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

            async def come() -> aiohttp.ClientWebSocketResponse | int:
                try:
                    return await http.ws_connect(world.url + "v1/stream", protocols=["treewire.v1"], headers=page)
                except aiohttp.WSServerHandshakeError as error:
                    return error.status

            came = await asyncio.gather(*(come() for _ in range(60)))
            let_in = [one for one in came if isinstance(one, aiohttp.ClientWebSocketResponse)]
            assert len(let_in) == 32
            assert {one for one in came if isinstance(one, int)} == {503}
            for stranger in let_in:
                await stranger.receive(timeout=PATIENCE_S)
            assert {stranger.close_code for stranger in let_in} == {4503}
        given = await ticket(world, world.token)
        async with Stream(world, page, ticket=given) as stream:
            await stream.next("welcome")

    runs(world, test)


def test_a_message_that_is_packed_small_is_not_unpacked_without_end(world: World) -> None:
    async def test(world: World) -> None:
        gateway = psutil.Process(world.gateway.process.pid)
        async with world.connect(compress=15) as stream:
            await stream.send_json({"type": "hello"})
            before = gateway.memory_info().rss
            await stream.send_str(" " * (48 << 20))  # packed, as long as a message may be
            async with asyncio.timeout(PATIENCE_S):
                while (await stream.receive()).type is aiohttp.WSMsgType.TEXT:
                    pass
            assert stream.close_code == 4500
            grown = gateway.memory_info().rss - before
            assert grown < 16 << 20, f"grew by {grown >> 20} MB"
        assert await world.is_up()

    runs(world, test)
