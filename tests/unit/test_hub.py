"""Fan-out: when frames leave, over a real hub in a real loop, with an aggregator that a test plays."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateway import framing
from gateway.hub import BACKLOG, SHARE, TICK_MAX_S, Hub
from gateway.ring import Ring, Send, Unavailable, write_each
from gateway.session import Close, Session
from gateway.socket import STALLED_NS, Outlet, Tally
from gateway.tokens import OPERATOR, Caller
from pipeline import bus, frames, wire
from pipeline.domain.model import Git, Look, Stamp
from pipeline.domain.replica import Replica
from pipeline.domain.versioned import Ledger
from pipeline.runtime.clock import CLOCK, now_ns


class Pipe:
    """A transport that a test fills and drains."""

    def __init__(self) -> None:
        self.written: list[tuple[float, bytes]] = []
        self.held = 0
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written.append((asyncio.get_running_loop().time(), data))

    def get_write_buffer_size(self) -> int:
        return self.held

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True

    def frames(self, kind: str) -> list[tuple[float, dict[str, Any]]]:
        told = [(at, json.loads(one)) for at, data in self.written for one in framing.payloads(data)]
        return [(at, frame) for at, frame in told if frame["type"] == kind]


class Wire(Outlet):
    """A client without a network."""

    def __init__(self, hub: Hub, caller: Caller = OPERATOR) -> None:
        self.pipe = Pipe()
        self.tokens: dict[str, Caller] = {caller.token_id: caller}
        self.why: Close | None = None
        session = Session(hub, 10_000, now_ns(), caller=caller)
        super().__init__(hub, Tally(), session, self.pipe, self.tokens.get)  # type: ignore[arg-type]
        self.join()

    def say(self, **message: Any) -> None:
        assert self.session.receive(json.dumps(message).encode(), now_ns()) is None
        self._hub.serve(self)

    def wrote(self, now: int) -> None:
        """Nobody waits for it."""

    def lost(self) -> None:
        """Nobody waits for it."""

    def part(self, why: Close) -> None:
        self.why = why


class Plugged(Wire):
    """A client with a socket behind its transport, which the fast lane writes to."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self.ours, self.theirs = socket.socketpair()
        for end in (self.ours, self.theirs):
            end.setblocking(False)
        self.seat.descriptor = self.ours.fileno()

    def plain(self) -> bytes:
        """What has arrived by the socket."""
        found = b""
        while True:
            try:
                found += self.theirs.recv(1 << 20)
            except BlockingIOError:
                return found

    def fill(self) -> None:
        """Leave no room in the socket."""
        try:
            while True:
                self.ours.send(bytes(1 << 16))
        except BlockingIOError:
            pass

    def unplug(self) -> None:
        self.ours.close()
        self.theirs.close()


class World:
    """The hub, and a project that changes."""

    def __init__(self, run_dir: Path, send: Send = write_each) -> None:
        self.hub = Hub(run_dir, "gateway-0", lambda: "ok", max_clients=3, send=send)
        self.sockets: list[Plugged] = []
        self.hub.follower.head = wire.Heartbeat("e1", 1, now_ns(), {}, census_ns=1)
        self.hub.follower.heard_ns = now_ns()
        for name in ("web", "api"):
            replica = self.hub.follower.replicas[name] = Replica()
            replica.load("e1", Ledger(), True)

    def write(self, value: int, project: str = "web", **groups: Any) -> None:
        ledger = self.hub.follower.replicas[project].ledger
        assert ledger is not None
        ledger.write("w1", [("git", {"files": value}), *groups.items()])
        self.hub._changed({project})

    def plugged(self) -> Plugged:
        client = Plugged(self.hub)
        client.say(type="hello")
        client.say(type="subscribe", id=0, project="web")
        self.sockets.append(client)
        return client

    def following(self, *projects: str, caller: Caller = OPERATOR) -> Wire:
        client = Wire(self.hub, caller)
        client.say(type="hello")
        for number, project in enumerate(projects or ("web",)):
            client.say(type="subscribe", id=number, project=project)
        return client

    async def quiet(self) -> None:
        """A moment in which nothing was sent, so that the next change finds the hub at rest."""
        await asyncio.sleep(2 * self.hub.tick())


@pytest.fixture(params=["write"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    found = World(tmp_path, request.getfixturevalue("ring").send if request.param == "io_uring" else write_each)
    yield found
    for client in found.sockets:
        client.unplug()
    found.hub.close()
    bus.close()


@pytest.fixture
def ring() -> Iterator[Ring]:
    try:
        found = Ring.open()
    except Unavailable as error:
        pytest.skip(str(error))
    yield found
    found.close()


both_ways = pytest.mark.parametrize("world", ["write", "io_uring"], indirect=True)


async def until(condition: Any, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


async def test_the_first_change_goes_out_at_once_and_those_after_it_together(world: World) -> None:
    """W2."""
    client = world.following()
    await world.quiet()
    world.hub.tick = lambda: 0.05  # type: ignore[method-assign]
    world.write(1)
    assert [frame["to"] for _, frame in client.pipe.frames("delta")] == [1]  # in the same turn of the loop
    for value in range(2, 40):
        world.write(value)
    assert len(client.pipe.frames("delta")) == 1
    await until(lambda: len(client.pipe.frames("delta")) > 1)
    (first_at, _), (then_at, joined) = client.pipe.frames("delta")
    assert (joined["from"], joined["to"], joined["patch"]) == (1, 39, {"w1": {"git": {"files": 39}}})
    assert then_at - first_at >= 0.045


async def test_changes_without_end_are_never_held_for_longer_than_a_tick(world: World) -> None:
    """W2: a debounce that each change begins anew would starve."""
    client = world.following()
    await world.quiet()
    world.hub.tick = lambda: 0.03  # type: ignore[method-assign]
    loop = asyncio.get_running_loop()
    began, value = loop.time(), 0
    while loop.time() - began < 0.3:
        value += 1
        world.write(value)
        await asyncio.sleep(0.001)
    told = client.pipe.frames("delta")
    assert 4 <= len(told) <= 13


async def test_a_change_of_who_is_needed_does_not_wait_for_the_tick_unless_it_flaps(world: World) -> None:
    """W2."""
    client = world.following()
    await world.quiet()
    world.hub.tick = lambda: 60.0  # type: ignore[method-assign]
    world.hub._flushed = asyncio.get_running_loop().time()
    world.write(1)
    assert client.pipe.frames("delta") == []
    world.write(2, status={"needs_user": True})
    assert [frame["to"] for _, frame in client.pipe.frames("delta")] == [2]
    world.write(3, status={"needs_user": False})
    assert len(client.pipe.frames("delta")) == 1
    await asyncio.sleep(TICK_MAX_S)
    world.write(4, status={"needs_user": True})
    assert [frame["to"] for _, frame in client.pipe.frames("delta")] == [2, 4]


async def test_the_tick_grows_with_the_clients_up_to_a_tenth_of_a_second(world: World) -> None:
    alone = world.hub.tick()
    world.hub.clients.update(range(1000))  # type: ignore[arg-type]
    many = world.hub.tick()
    world.hub.clients.update(range(100_000))  # type: ignore[arg-type]
    assert alone < many < world.hub.tick() == TICK_MAX_S


async def test_the_tick_is_what_rounds_cost_divided_by_the_share_of_a_core_that_they_may_take(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr("gateway.hub.thread_time", lambda: clock)
    monkeypatch.setattr(world.hub, "max_clients", 200)
    clients = [world.following() for _ in range(200)]

    def costs(_: int) -> bool:
        nonlocal clock
        clock += cost
        return True

    for client in clients:
        monkeypatch.setattr(client, "flush", costs)
    for cost in (50e-6, 20e-6):
        for value in range(200):
            world.write(value)
            world.hub._flush()
        assert world.hub.tick() == pytest.approx(200 * cost / SHARE, rel=0.01)
    learned = world.hub.tick() / len(clients)
    for client in clients[10:]:
        world.hub.remove(client)
    cost = 1.0  # of a few clients, a slow moment is no measure
    world.write(0)
    world.hub._flush()
    world.hub.clients.update(range(1000))  # type: ignore[arg-type]
    assert world.hub.tick() == pytest.approx(1010 * learned)


async def test_a_client_that_cannot_take_more_skips_versions_and_the_others_do_not_wait(world: World) -> None:
    """W5."""
    slow, live = world.following(), world.following()
    await world.quiet()
    slow.pipe.held = 1
    for value in range(1, 6):
        world.write(value)
        await world.quiet()
    assert slow.pipe.frames("delta") == []
    assert [frame["to"] for _, frame in live.pipe.frames("delta")] == [1, 2, 3, 4, 5]
    slow.pipe.held = 0
    await until(lambda: slow.pipe.frames("delta"))
    assert [(f["from"], f["to"]) for _, f in slow.pipe.frames("delta")] == [(0, 5)]


# ── the fast lane ────────────────────────────────────────────────────────────────────────────────


def told(data: bytes) -> list[tuple[int, int]]:
    return [(frame["from"], frame["to"]) for frame in map(json.loads, framing.payloads(data))]


@both_ways
async def test_clients_at_one_cursor_are_written_to_directly_and_share_one_frame(world: World) -> None:
    """W2, W4."""
    clients = [world.plugged() for _ in range(3)]
    await world.quiet()
    before = [len(client.pipe.written) for client in clients]
    for value in (1, 2):
        encoded = world.hub.shelves["web"].encoded
        world.write(value)
        await world.quiet()
        assert world.hub.shelves["web"].encoded == encoded + 2, "one patch and one frame, for all of them"
    arrived = [client.plain() for client in clients]
    assert [told(data) for data in arrived] == [[(0, 1), (1, 2)]] * 3
    assert [len(client.pipe.written) for client in clients] == before, "nothing went by the transport"
    for client in clients:
        client.seat.get_up()
    assert [client.session.subscriptions[0].version for client in clients] == [2, 2, 2]
    # All are counted, by whichever of them.
    assert sum(client._tally.bytes for client in clients) - sum(
        len(data) for client in clients for _, data in client.pipe.written
    ) == sum(map(len, arrived))


@both_ways
async def test_whoever_is_owed_something_else_is_answered_by_his_session(world: World) -> None:
    """W3."""
    client = world.plugged()
    await world.quiet()
    client.session.receive(b'{"type":"resync","id":0,"reason":"hash","version":0}', now_ns())
    world.write(1)
    assert client.plain() == b""
    assert [(f["version"], f["reason"]) for _, f in client.pipe.frames("snapshot")] == [(0, "initial"), (1, "hash")]
    await world.quiet()
    world.write(2)
    assert told(client.plain()) == [(1, 2)]


@both_ways
async def test_a_client_that_comes_from_behind_gets_its_own_difference(world: World) -> None:
    """W3."""
    ahead, behind = world.plugged(), world.plugged()
    await world.quiet()
    behind.pipe.held = 1
    world.write(1)
    await world.quiet()
    behind.pipe.held = 0
    await until(lambda: behind.pipe.frames("delta"))
    await world.quiet()
    world.write(2)
    assert told(ahead.plain()) == [(0, 1), (1, 2)]
    assert [(f["from"], f["to"]) for _, f in behind.pipe.frames("delta")] == [(0, 1)]
    assert told(behind.plain()) == [(1, 2)]


@both_ways
async def test_cursors_subscriptions_and_forms_that_differ_are_not_mixed_up(world: World) -> None:
    """W3."""
    world.hub.max_clients = 4
    clients = [world.plugged() for _ in range(4)]
    await world.quiet()
    world.write(1)
    await world.quiet()
    for client in clients:
        client.plain()
    behind, other, packs, _ = clients
    for client in (behind, other, packs):
        client.seat.get_up()
    behind.session.subscriptions[0].version = 0
    for client in (other, packs):
        client.session.subscriptions[0].id = 7
    packs.seat.form = framing.deflated
    world.write(2, life={"name": "x" * 1000})
    assert all(client.pipe.frames("delta") == [] for client in clients)
    packed = packs.plain()
    assert len(packed) < 500
    assert [told(client.plain()) for client in (behind, clients[3])] == [[(0, 2)], [(1, 2)]]
    assert b'"id":7' in other.plain()
    await world.quiet()
    world.write(3)
    assert [told(client.plain()) for client in (behind, other, clients[3])] == [[(2, 3)]] * 3
    assert len(packs.plain()) > 0
    for client in clients:
        client.seat.get_up()
    assert [client.session.subscriptions[0].version for client in clients] == [3] * 4


@both_ways
@pytest.mark.parametrize("seed", range(5))
async def test_whoever_gets_up_and_sits_down_misses_nothing_and_hears_nothing_twice(world: World, seed: int) -> None:
    """W2, W3: in whatever order clients speak, fall behind, take a frame in part and go."""
    random = Random(seed)
    world.hub.max_clients = 12
    world.hub.tick = lambda: 0.0  # type: ignore[method-assign]
    clients = [world.plugged() for _ in range(12)]
    arrived = dict.fromkeys(clients, b"")
    gone: list[Plugged] = []
    for value in range(1, 120):
        for client in random.sample(clients, 4):
            match random.randrange(6):
                case 0:
                    client.say(type="ack", n=0, subscriptions={})
                case 1:
                    held = client.seat.row or client.session.subscriptions[0]
                    client.say(type="resync", id=0, reason="gap", version=held.version)
                case 2:
                    client.session.hurry_heartbeat()
                    client.flush(now_ns())
                case 3:
                    client.fill()
                case 4:
                    client.pipe.held = int(client.seat.row is None)
                case 5 if len(gone) < 4 and random.random() < 0.1:
                    gone.append(client)
                    clients.remove(client)
                    arrived[client] += client.plain().replace(b"\0", b"")
                    client.close(Close(frames.SHUTTING_DOWN, "bye"))
                    client.leave()
        world.write(value)
        for client in clients:
            arrived[client] += client.plain().replace(b"\0", b"")
            client.pipe.held = 0
    for client in clients:
        client.flush(now_ns())
    for client in (*clients, *gone):
        by_pipe = [(frame["from"], frame["to"]) for _, frame in client.pipe.frames("delta")]
        steps = sorted(step for step in told(arrived[client]) + by_pipe if step[0] != step[1])
        assert all(then[0] == before[1] for before, then in pairwise([(0, 0), *steps]))
        if client in gone:
            assert client.plain() == b""
        else:
            assert steps[-1][1] == 119
    (lane,) = world.hub.readers.values()
    rows = [*lane._rows.values()]
    assert {*lane.seats} == {*clients}
    assert {*lane.afoot}.isdisjoint(seat for row in rows for seat in row.seats)
    assert all(row.descriptors.tolist() == [seat.descriptor for seat in row.seats] for row in rows)


@both_ways
async def test_a_frame_that_fits_in_part_is_finished_by_the_transport(world: World) -> None:
    """W5: nothing of ours may come between its halves."""
    client = world.plugged()
    await world.quiet()
    sent = len(client.pipe.written)
    world.write(1, life={"name": "x" * (4 << 20)})
    head = client.plain()
    rest = b"".join(data for _, data in client.pipe.written[sent:])
    assert head
    assert rest
    assert told(head + rest) == [(0, 1)]


@both_ways
async def test_a_socket_without_room_costs_the_client_nothing_but_the_lane(world: World) -> None:
    """W5."""
    client, live = world.plugged(), world.plugged()
    await world.quiet()
    client.fill()
    world.write(1)
    assert told(live.plain()) == [(0, 1)]
    assert [(f["from"], f["to"]) for _, f in client.pipe.frames("delta")] == [(0, 1)]


@both_ways
async def test_a_connection_that_closes_or_has_left_is_not_written_to(world: World) -> None:
    """W1: its descriptor may soon be somebody else's."""
    closing, left = world.plugged(), world.plugged()
    await world.quiet()
    closing.pipe.aborted = True
    left.close(Close(frames.SHUTTING_DOWN, "bye"))
    world.write(1)
    assert closing.plain() == left.plain() == b""


async def test_in_shares_everybody_has_a_turn_and_news_of_the_health_goes_to_all_at_once(world: World) -> None:
    clients = [world.following() for _ in range(3)]
    world.hub.sweep()
    looked: list[Wire] = []
    for client in clients:
        client.check = lambda _, client=client: looked.append(client)  # type: ignore[method-assign, misc]
    for _ in range(3):
        world.hub.sweep(3)
    assert {*looked} == {*clients}
    assert len(looked) == 3
    world.hub.health = lambda: {"aggregator": "stale"}  # type: ignore[method-assign]
    world.hub.sweep(3)
    assert len(looked) == 6


async def test_clients_that_take_nothing_do_not_make_the_others_wait(world: World) -> None:
    """W5: neither do they count for the tick, nor is each of them tried again with every frame."""
    world.hub.max_clients = 300
    stalled = [world.following() for _ in range(250)]
    live = world.following()
    crowded = world.hub.tick()
    await world.quiet()
    tried: list[Wire] = []
    for client in stalled:
        client.pipe.held = 1
    world.write(1)
    await until(lambda: world.hub.tick() < crowded)
    await world.quiet()
    for client in stalled:
        flush = client.flush
        client.flush = lambda now, client=client, flush=flush: tried.append(client) or flush(now)  # type: ignore
    world.hub._retried = asyncio.get_running_loop().time()
    world.write(2)
    assert [frame["to"] for _, frame in live.pipe.frames("delta")] == [1, 2]
    assert tried == []
    await until(lambda: {*tried} == {*stalled})


async def test_a_client_that_reads_nothing_for_too_long_is_closed(world: World) -> None:
    """W5."""
    client = world.following()
    await world.quiet()
    client.pipe.held = 1
    world.write(1)
    assert client._blocked_since
    client.check(now_ns())
    assert client.why is None
    client.check(client._blocked_since + STALLED_NS + 1)
    assert client.why is not None
    assert client.why.code == frames.STALLED


async def test_what_a_token_opens_no_more_is_told_at_once_and_not_sent_any_more(world: World) -> None:
    """W1."""
    both = Caller("t1", projects=frozenset({"web", "api"}))
    client, other = world.following("web", "api", caller=both), world.following("api")
    await world.quiet()
    client.tokens["t1"] = Caller("t1", projects=frozenset({"web"}))
    world.hub.regrant()
    assert [frame for _, frame in client.pipe.frames("end")] == [{"type": "end", "id": 1, "code": "revoked"}]
    world.write(1, "api")
    world.write(1, "web")
    await until(lambda: client.pipe.frames("delta") and other.pipe.frames("delta"))
    assert [frame["id"] for _, frame in client.pipe.frames("delta")] == [0]
    assert world.hub.readers["api"].seats.keys() == {other}
    client.tokens.clear()
    world.hub.regrant()
    assert client.why is not None
    assert client.why.code == frames.REVOKED
    assert other.why is None


async def test_a_grant_that_changed_between_the_door_and_the_hub_counts(world: World) -> None:
    caller = Caller("t1", projects=frozenset({"web"}))
    client = Wire(world.hub, caller)
    client.leave()
    client.tokens.clear()
    client.join()
    assert client.why is not None
    assert client.why.code == frames.REVOKED


async def test_strangers_are_counted_until_they_say_hello(world: World) -> None:
    strangers = [Wire(world.hub) for _ in range(4)]
    assert len(world.hub.strangers) == 4
    assert not world.hub.crowded
    for stranger in strangers[:3]:
        stranger.say(type="hello")
    assert len(world.hub.strangers) == 1
    assert world.hub.crowded
    close = strangers[3].session.receive(b'{"type":"hello"}', now_ns())
    assert close is not None
    assert close.code == frames.TOO_MANY
    strangers[0].leave()
    assert not world.hub.crowded


async def test_looks_that_the_aggregator_cannot_take_fill_the_hub_and_are_sent_when_it_can(world: World) -> None:
    sent: list[Look] = []
    room = 0

    def send_all(looks: list[Look]) -> int:
        sent.extend(looks[:room])
        return min(room, len(looks))

    world.hub.ingress.send_all = send_all  # type: ignore[method-assign,assignment]
    look = Look("web", "w1", "git", Git(files=1), Stamp(1, 1, CLOCK), "live")
    world.hub.send([look] * (BACKLOG - 1))
    assert not world.hub.full
    world.hub.send([look])
    assert world.hub.full
    room = 2 * BACKLOG
    await until(lambda: not world.hub.full)
    assert len(sent) == BACKLOG
