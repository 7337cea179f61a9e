"""The bus, with real ZeroMQ sockets: delivery by batches, any start order, gaps, garbage and stalled listeners."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from pipeline import bus, wire
from pipeline.aggregator.query import Answers
from pipeline.aggregator.writer import Writer
from pipeline.domain.model import Census, Git, Life, Look, Run, Stamp, Terminal
from pipeline.domain.store import Store
from pipeline.follow import Follower
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tw-") as directory:
        yield Path(directory)


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come about"
        await asyncio.sleep(0.005)


def stamp() -> Stamp:
    now = now_ns()
    return Stamp(now, now, CLOCK)


def life(workspace: str, project: str = "web", phase: Any = "ready") -> Look:
    return Look(project, workspace, "life", Life(name=workspace, phase=phase), stamp(), "catalog")


def git(workspace: str, insertions: int, project: str = "web") -> Look:
    return Look(project, workspace, "git", Git(insertions=insertions), stamp(), "git")


class Aggregator:
    """The aggregator's own parts in this loop; the process around them is tested elsewhere."""

    def __init__(self, run_dir: Path) -> None:
        self.epoch = f"{now_ns():x}"
        self.store = Store(CLOCK, now_ns())
        self.feed = bus.Publisher(run_dir, "feed")
        self.tap = bus.Publisher(run_dir, "tap", bus.TAP_HIGH_WATER)
        self.writer = Writer(self.store, self.epoch, self.feed, self.tap, now_ns, wall_ms)
        self.query = bus.QueryServer(run_dir, Answers(self.store, self.epoch))
        self.ingress = bus.IngressServer(run_dir, self.writer.take)

    def census(self, *looks: Look, projects: list[str] | None = None) -> Census:
        return Census(stamp(), "catalog", "catalog:test", projects or ["web"], list(looks))

    def close(self) -> None:
        for end in (self.ingress, self.query, self.tap, self.feed):
            end.close()


@asynccontextmanager
async def aggregator(run_dir: Path) -> AsyncIterator[Aggregator]:
    running = Aggregator(run_dir)
    try:
        yield running
    finally:
        running.close()


@asynccontextmanager
async def beating(running: Aggregator) -> AsyncIterator[None]:
    async def beat() -> None:
        while True:
            running.writer.beat()
            await asyncio.sleep(0.05)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()


def agree(follower: Follower, running: Aggregator, project: str = "web") -> bool:
    replica = follower.replicas.get(project)
    if replica is None or replica.ledger is None:
        return False
    ledger = running.store.projects[project]
    return (replica.epoch, replica.ledger.version, replica.ledger.hash()) == (
        running.epoch,
        ledger.version,
        ledger.hash(),
    )


async def test_looks_of_a_producer_that_started_first_reach_a_follower(run_dir: Path) -> None:
    producer = bus.Ingress(run_dir)
    follower = Follower(run_dir)
    assert not producer.send(life("early")), "with no aggregator a look is refused, not piled up"
    async with aggregator(run_dir) as running, beating(running):
        await until(lambda: producer.send(running.census(life("w1"), git("w1", 3))))
        await until(lambda: agree(follower, running))
        ledger = follower.replicas["web"].ledger
        assert ledger is not None
        assert ledger.state()["w1"]["git"]["insertions"] == 3
    follower.close()
    producer.close()


async def test_a_burst_arrives_whole_and_in_order_and_as_few_deltas(run_dir: Path) -> None:
    async with aggregator(run_dir) as running, beating(running):
        producer = bus.Ingress(run_dir)
        follower = Follower(run_dir)
        await until(lambda: producer.send(running.census(life("w1"))))
        await until(lambda: agree(follower, running))
        for n in range(5_000):
            while not producer.send(git("w1", n)):
                await asyncio.sleep(0.001)
        await until(lambda: running.writer.looks.get(("git", "applied")) == 5_000)
        await until(lambda: agree(follower, running))
        assert running.store.entries["w1"].values["git"] == Git(insertions=4_999)
        producer.close()
        follower.close()


async def test_garbage_is_counted_and_dropped_and_what_follows_is_taken(run_dir: Path) -> None:
    async with aggregator(run_dir) as running:
        socket = zmq.Context.instance().socket(zmq.PUSH)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(bus.endpoint(run_dir, "ingress"))
        nested = b"\x81\xa4type\xa4look" + b"\x91" * 100_000
        for rubbish in (b"", b"\xc1", b"hello", wire.encode({"type": "look"}), wire.encode({"type": "?"}), nested):
            socket.send(rubbish)
        socket.send(wire.encode(life("w1")))
        await until(lambda: "w1" in running.store.entries)
        assert running.writer.bad == 6
        socket.close()


async def test_a_lost_last_delta_is_noticed_by_the_next_heartbeat(run_dir: Path) -> None:
    async with aggregator(run_dir) as running:
        producer = bus.Ingress(run_dir)
        follower = Follower(run_dir)
        await until(lambda: producer.send(running.census(life("w1"))))
        await until(lambda: "w1" in running.store.entries)
        await until(lambda: running.writer.beat() and agree(follower, running))
        # As if the publisher had dropped it: the store moves on and nobody is told.
        running.store.admit(git("w1", 9), wall_ms())
        running.store.touched.clear()
        running.writer._published["web"] = running.store.projects["web"].version
        assert not agree(follower, running)
        await until(lambda: running.writer.beat() and agree(follower, running))
        assert follower.gaps == 1
        producer.close()
        follower.close()


async def test_a_replica_that_went_wrong_is_found_out_by_its_hash(run_dir: Path) -> None:
    async with aggregator(run_dir) as running:
        producer = bus.Ingress(run_dir)
        follower = Follower(run_dir)
        await until(lambda: producer.send(running.census(life("w1"), git("w1", 1))))
        await until(lambda: running.store.complete)
        await until(lambda: running.writer.beat() and agree(follower, running))
        ledger = follower.replicas["web"].ledger
        assert ledger is not None
        ledger._write("w1", [("git", {"insertions": 666})], ledger.version)
        await until(lambda: running.writer.beat() and follower.mismatches > 0)
        await until(lambda: agree(follower, running))
        producer.close()
        follower.close()


async def test_after_a_restart_the_old_state_is_shown_until_the_new_one_is_complete(run_dir: Path) -> None:
    producer = bus.Ingress(run_dir)
    epochs: list[str] = []
    follower = Follower(run_dir, epoch=epochs.append)
    async with aggregator(run_dir) as first, beating(first):
        await until(lambda: producer.send(first.census(life("w1"), life("w2"))))
        await until(lambda: agree(follower, first))
    async with aggregator(run_dir) as second, beating(second):
        await until(lambda: second.epoch in epochs)
        await until(lambda: producer.send(life("w1")))
        await until(lambda: "w1" in second.store.entries)
        await until(lambda: follower.replicas["web"].version(second.epoch) == second.store.projects["web"].version)
        replica = follower.replicas["web"]
        assert replica.epoch == first.epoch
        assert replica.ledger is not None
        assert set(replica.ledger.entries) == {"w1", "w2"}
        await until(lambda: producer.send(second.census(life("w1"))))
        await until(lambda: agree(follower, second))
        assert replica.ledger is not None
        assert set(replica.ledger.entries) == {"w1"}
    follower.close()
    producer.close()


async def test_a_removed_project_leaves_its_followers(run_dir: Path) -> None:
    async with aggregator(run_dir) as running, beating(running):
        producer = bus.Ingress(run_dir)
        gone: list[str] = []
        follower = Follower(run_dir, gone=gone.append)
        everything = running.census(life("w1"), life("w2"), life("a1", "api"), projects=["web", "api"])
        await until(lambda: producer.send(everything))
        await until(lambda: agree(follower, running) and agree(follower, running, "api"))
        await until(lambda: producer.send(running.census(life("w1"), life("w2"), projects=["web"])))
        await until(lambda: gone == ["api"])
        assert set(follower.replicas) == {"web"}
        producer.close()
        follower.close()


async def flooded(run_dir: Path, stalled: bool) -> tuple[dict[str, int], int]:
    """What the others got of a flood of looks, and what lay waiting for a tap that never read."""
    looks, chunk = 5 * bus.TAP_HIGH_WATER, bus.TAP_HIGH_WATER // 4
    rulings: list[wire.Ruled] = []
    told: list[wire.Feed] = []
    async with aggregator(run_dir) as running, beating(running):
        asleep = zmq.Context.instance().socket(zmq.SUB)
        asleep.setsockopt(zmq.LINGER, 0)
        asleep.setsockopt(zmq.RCVHWM, 1)
        asleep.setsockopt(zmq.SUBSCRIBE, b"")
        if stalled:
            asleep.connect(bus.endpoint(run_dir, "tap"))
            await until(lambda: running.tap.watched)
        awake, jobs = bus.tap(run_dir, lambda batch: rulings.extend(m for m in batch if isinstance(m, wire.Ruled)))
        feed = bus.feed(run_dir, told.extend)
        producer, follower = bus.Ingress(run_dir), Follower(run_dir)
        await until(lambda: producer.send(running.census(life("w1"))))
        await until(lambda: agree(follower, running))
        while not rulings:  # until the tap that reads has joined
            producer.send(life("w1"))
            await asyncio.sleep(0.01)
        terminal = lambda: [ruled for ruled in rulings if ruled.look.group == "terminal"]  # noqa: E731
        for n in range(looks):
            while not producer.send(Look("web", "w1", "terminal", Terminal(last_output=n), stamp(), "live")):
                await asyncio.sleep(0.001)
            if n % chunk == chunk - 1:  # whoever reads can keep up
                await until(lambda n=n: len(terminal()) > n)
        await until(lambda: agree(follower, running))
        ended = [message.to for message in told if isinstance(message, wire.Delta)]
        began = [message.from_ for message in told if isinstance(message, wire.Delta)]
        got = {
            "applied": running.writer.looks["terminal", "applied"],
            "rulings": len(terminal()),
            "gaps": follower.gaps,
            "lost deltas": sum(after > before for before, after in zip(ended, began[1:], strict=False)),
        }
        waiting = 0
        while asleep.poll(200):
            asleep.recv_multipart()
            waiting += 1
        asleep.close()
        for end in (awake, jobs, feed, producer, follower):
            end.close()
    return got, waiting


async def test_a_stalled_tap_costs_the_feed_nothing(run_dir: Path) -> None:
    """Whoever reads gets the same beside it as without it; and what waits for it is bounded, not the flood."""
    (run_dir / "alone").mkdir()
    (run_dir / "beside").mkdir()
    alone, _ = await flooded(run_dir / "alone", stalled=False)
    beside, waiting = await flooded(run_dir / "beside", stalled=True)
    assert beside == alone
    assert beside == {"applied": 5 * bus.TAP_HIGH_WATER, "rulings": beside["applied"], "gaps": 0, "lost deltas": 0}
    assert 0 < waiting < 4 * bus.TAP_HIGH_WATER


async def test_looks_that_disagree_are_asked_for_again_until_one_settles_it(run_dir: Path) -> None:
    async with aggregator(run_dir) as running, beating(running):
        producer = bus.Ingress(run_dir)
        asked: list[wire.Relook] = []
        follower = Follower(run_dir, relook=asked.append)
        await until(lambda: producer.send(running.census(life("w1"))))
        await until(lambda: agree(follower, running))
        now = now_ns()
        for port in (1, 2):
            look = Look("web", "w1", "run", Run(port=port), Stamp(now, now + port, CLOCK), "live")
            await until(lambda look=look: producer.send(look))  # type: ignore[misc]
        await until(lambda: len(running.writer.relooks) == 1)
        await until(lambda: running.writer.ask_relooks() == 1)
        await until(lambda: asked == [wire.Relook("w1", "run")])
        later = Look("web", "w1", "run", Run(port=2), stamp(), "live")
        await until(lambda: producer.send(later))
        await until(lambda: len(running.writer.relooks) == 0)
        producer.close()
        follower.close()
