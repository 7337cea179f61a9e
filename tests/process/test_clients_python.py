"""The Python client as a library: what a program may do with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from gateway.client import Change, Refused, subscribe
from tests.clientkit import PROJECT, World, until, world

NAMES = ("w1", "w2", "w3")


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.ready(*NAMES)
        yield made


async def live(world: World) -> Change:
    """The first change that shows the project."""
    async with asyncio.timeout(30), contextlib.aclosing(subscribe(world.url, PROJECT, token=world.token)) as changes:
        async for change in changes:
            if change.state == "live":
                return change
    raise AssertionError("the changes ended")


async def test_the_first_change_that_is_live_is_a_snapshot_and_proven(shared: World) -> None:
    change = await live(shared)
    assert change.kind == "snapshot"
    assert change.is_verified
    assert change.changed == set(NAMES)
    assert change.workspaces is not None
    assert change.workspaces["w1"]["life"]["branch"] == "größer/w1"
    assert 0 <= change.age_s() < 30


async def test_leaving_the_loop_leaves_no_task_and_no_connection(shared: World) -> None:
    def sockets() -> list[float]:
        text = shared.get("metrics")[1].decode()
        return [float(line.split()[-1]) for line in text.splitlines() if line.startswith("treewire_clients")]

    await live(shared)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    following = asyncio.create_task(_drain(shared))
    await asyncio.sleep(0)
    following.cancel()
    assert isinstance((await asyncio.gather(following, return_exceptions=True))[0], asyncio.CancelledError)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await asyncio.to_thread(until, lambda: sockets() == [0], "no socket is open at the gateway")


async def _drain(world: World) -> None:
    async for _ in subscribe(world.url, PROJECT, token=world.token):
        pass


async def test_whoever_does_not_keep_up_gets_the_latest_state_and_keeps_what_he_has(shared: World) -> None:
    """W5: nothing is queued for him, and his heartbeats are answered meanwhile."""
    async with asyncio.timeout(60), contextlib.aclosing(subscribe(shared.url, PROJECT, token=shared.token)) as changes:
        async for first in changes:
            if first.state == "live":
                break
        assert first.workspaces is not None
        before = first.workspaces["w1"].get("git")
        for n in range(60):
            await asyncio.to_thread(shared.change, NAMES[n % 2])
            await asyncio.sleep(0.03)
        taken = []
        async for change in changes:
            taken.append(change)
            if change.is_verified and change.hash == (await asyncio.to_thread(shared.head)).hash:
                break
        assert len(taken) < 15
        assert taken[0].changed == {"w1", "w2"}
        assert all(change.state == "live" for change in taken)
        assert first.workspaces["w1"].get("git") == before


async def test_a_project_that_there_is_not_ends_the_changes_as_gone(shared: World) -> None:
    async with asyncio.timeout(30):
        states = [change.state async for change in subscribe(shared.url, "nobody", token=shared.token)]
    assert states[-1] == "gone"


async def test_a_wrong_token_is_refused_and_not_tried_again(shared: World) -> None:
    changes = subscribe(shared.url, PROJECT, token="wrong")
    assert (await anext(changes)).state == "connecting"
    with pytest.raises(Refused, match="is the token right"):
        await asyncio.wait_for(anext(changes), 30)


async def test_an_address_that_is_none_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="http://HOST:PORT/"):
        await anext(subscribe("localhost:8787", PROJECT, token=""))


async def test_a_server_that_is_not_there_yet_is_waited_for(shared: World) -> None:
    shared.line.target, port = 1, shared.line.target
    async with asyncio.timeout(60), contextlib.aclosing(subscribe(shared.url, PROJECT, token=shared.token)) as changes:
        states = [(await anext(changes)).state]
        await asyncio.sleep(0.5)
        shared.line.target = port
        async for change in changes:
            states.append(change.state)
            if change.state == "live":
                break
    assert states[0] == "connecting"
