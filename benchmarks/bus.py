"""Looks per second from the bus into a real aggregator process, and what 10,000 looks/s cost it.

The floor beside it is a process that drains the same kind of socket the same way, decodes each look, and does nothing.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import zmq

from benchmarks import figures
from benchmarks.deployment import home, process, until
from pipeline import bus, wire
from pipeline.domain.model import Life, Look, Run, Session, SessionState, Stamp
from pipeline.runtime.clock import CLOCK, now_ns

WORKSPACES = 300
FLAT_OUT = 200_000
RATE = 10_000
RATE_S = 4.0
STATES: tuple[SessionState, ...] = ("working", "idle", "waiting")

FLOOR = """
import asyncio, sys, uvloop
from pathlib import Path
from pipeline import bus, wire
async def main():
    last = [0]
    def take(batch):
        for frames in batch:
            look = wire.decode_ingress(frames[-1])
            if look.group == "run":
                last[0] = look.value.port
                if look.workspace == "last":
                    Path(sys.argv[1], "done").touch()
    bus.IngressServer(Path(sys.argv[1]), take)
    await asyncio.Event().wait()
uvloop.run(main())
"""


@contextlib.contextmanager
def _floor(run_dir: Path) -> Iterator[psutil.Process]:
    child = subprocess.Popen([sys.executable, "-c", FLOOR, str(run_dir)])
    try:
        yield psutil.Process(child.pid)
    finally:
        child.kill()
        child.wait()


class _Producer:
    """A plain blocking PUSH, so that the sender is not what is measured."""

    def __init__(self, run_dir: Path) -> None:
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        self.socket.setsockopt(zmq.SNDHWM, 50_000)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(bus.endpoint(run_dir, "ingress"))

    def births(self) -> None:
        for i in range(WORKSPACES):
            self.send(Look(f"p{i % 10}", f"w{i}", "life", Life(name="w", phase="ready"), _now(), "catalog"))

    def send(self, look: Look) -> None:
        self.socket.send(wire.encode(look))

    def close(self) -> None:
        self.socket.close()


def _now() -> Stamp:
    now = now_ns()
    return Stamp(now, now, CLOCK)


def _looks(count: int) -> list[bytes]:
    rnd = random.Random(3)
    encoded, at = [], now_ns()
    for n in range(count):
        i = rnd.randrange(WORKSPACES)
        state: SessionState = rnd.choice(STATES)
        value = Session(provider="claude", name="fix the login", state=state)
        stamp = Stamp(at + n, at + n, CLOCK)
        encoded.append(wire.encode(Look(f"p{i % 10}", f"w{i}", "session:s1", value, stamp, "catalog", run="r", seq=n)))
    return encoded


def _flat_out(producer: _Producer, arrived: Callable[[], bool], last: Callable[[], None]) -> float:
    encoded = _looks(FLAT_OUT)
    send = producer.socket.send
    began = time.perf_counter()
    for message in encoded:
        send(message)
    last()
    until(arrived, 60, "all looks taken")
    return FLAT_OUT / (time.perf_counter() - began)


def _share_at_rate(producer: _Producer, server: psutil.Process) -> float:
    encoded = _looks(int(RATE * RATE_S))
    before, began = _cpu_s(server), time.perf_counter()
    for n, message in enumerate(encoded):
        if n % 10 == 0 and (ahead := began + n / RATE - time.perf_counter()) > 0:
            time.sleep(ahead)
        producer.socket.send(message)
    return 100 * (_cpu_s(server) - before) / (time.perf_counter() - began)


def _cpu_s(server: psutil.Process) -> float:
    times = server.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    figures.heading(f"bus: session looks at {WORKSPACES} workspaces, one producer, real processes")
    ours: dict[str, list[float]] = {"rate": [], "share": []}
    floor: dict[str, list[float]] = {"rate": [], "share": []}
    for _ in range(3):
        with home() as settings, process("aggregator", settings) as server:
            until((settings.run_dir / "ingress.sock").exists, 20, "the aggregator's socket")
            producer = _Producer(settings.run_dir)
            ours_one(ours, producer, settings.run_dir, server)
            producer.close()
        with home() as settings:
            settings.run_dir.mkdir(mode=0o700)
            with _floor(settings.run_dir) as server:
                until((settings.run_dir / "ingress.sock").exists, 20, "the floor's socket")
                producer = _Producer(settings.run_dir)
                done = settings.run_dir / "done"
                finish = Look("p", "last", "run", Run(port=1), _now(), "live")
                floor["rate"].append(
                    _flat_out(producer, done.exists, lambda end=producer, look=finish: end.send(look))  # type: ignore[misc]
                )
                floor["share"].append(_share_at_rate(producer, server))
                producer.close()
    rate = figures.line("flat out: treewire", ours["rate"], "looks/s", "≥ 40,000")
    base = figures.line("flat out: drain and decode only (floor)", floor["rate"], "looks/s")
    figures.ratio("flat out: treewire / floor", rate, base)
    share = figures.line(f"at {RATE:,}/s: treewire", ours["share"], "% of core", "≤ 25")
    base = figures.line(f"at {RATE:,}/s: drain and decode only (floor)", floor["share"], "% of core")
    figures.ratio(f"at {RATE:,}/s: treewire / floor", share, base)


def ours_one(ours: dict[str, list[float]], producer: _Producer, run_dir: Path, server: psutil.Process) -> None:
    """One run against a real aggregator; it has taken everything when a follower sees the last look."""
    follower: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    follower.setsockopt(zmq.SUBSCRIBE, wire.project_topic("last"))
    follower.setsockopt(zmq.LINGER, 0)
    follower.connect(bus.endpoint(run_dir, "feed"))
    time.sleep(0.5)  # the subscription has to arrive before the first look
    producer.births()

    def last() -> None:
        producer.send(Look("last", "last", "life", Life(name="last", phase="ready"), _now(), "catalog"))

    ours["rate"].append(_flat_out(producer, lambda: bool(follower.poll(0)), last))
    ours["share"].append(_share_at_rate(producer, server))
    follower.close()
