"""From an event on the bus to a WebSocket client, through a whole deployment, while other clients read too.

Each event carries the moment at which it was sent; the client subtracts. Events that are conflated on the way are
not seen, those that are seen are the newest of their workspace. Clients that only read are in a process of their own.
The floor beside it is the same event through a bare PUSH → PUB → SUB chain of three processes, without any of us.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import zmq

from benchmarks import figures, sockets
from benchmarks.deployment import deployment, home, post, worktrees
from pipeline import bus, wire
from pipeline.domain.model import Look, Stamp, Terminal
from pipeline.runtime.clock import CLOCK, now_ns

WORKSPACES = 300
PROJECT = "project"
LOADS = ((2, 1, 4.0), (2, 100, 4.0), (1_000, 100, 5.0), (10_000, 100, 5.0))  # events/s, clients, seconds
RUNS = 3

FLOOR = """
import sys, zmq
context = zmq.Context()
pull, pub = context.socket(zmq.PULL), context.socket(zmq.PUB)
pull.bind(sys.argv[1]); pub.bind(sys.argv[2])
while True:
    pub.send(pull.recv())
"""


class _Events(threading.Thread):
    """Sends terminal looks at a rate until it is told to stop; `last_output` is when each was sent."""

    def __init__(self, endpoint: str, rate: int, project: str) -> None:
        super().__init__(daemon=True)
        self._endpoint, self._rate, self._project = endpoint, rate, project
        self._stop_it = threading.Event()

    def run(self) -> None:
        end: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        end.setsockopt(zmq.LINGER, 0)
        end.connect(self._endpoint)
        began, sent = time.perf_counter(), 0
        while not self._stop_it.is_set():
            now = now_ns()
            value = Terminal(active=True, last_output=now)
            workspace = f"w{(sent * 7) % WORKSPACES}"
            look = Look(self._project, workspace, "terminal", value, Stamp(now, now, CLOCK), "live")
            end.send(wire.encode(look))
            sent += 1
            if (ahead := began + sent / self._rate - time.perf_counter()) > 0:
                time.sleep(ahead)
        end.close()

    def stop(self) -> None:
        self._stop_it.set()
        self.join()


@contextlib.contextmanager
def events(endpoint: str, rate: int, project: str = PROJECT) -> Iterator[None]:
    thread = _Events(endpoint, rate, project)
    thread.start()
    try:
        yield
    finally:
        thread.stop()


def births(url: str, token: str, project: str, count: int) -> None:
    """Give the catalog workspaces without worktrees, as an orchestrator does that provisions them itself."""
    for start in range(0, count, 100):
        bodies = [
            {"project": project, "workspace": f"w{n}", "group": "life", "fields": {"name": f"w{n}", "phase": "ready"}}
            for n in range(start, min(count, start + 100))
        ]
        post(f"{url}v1/events", token, bodies)


def _measure(url: str, token: str, endpoint: str, rate: int, clients: int, seconds: float) -> list[float]:
    """Milliseconds from sending to parsing, of each event that arrived as the newest of its workspace."""
    taken: list[float] = []
    with sockets.crowd(clients - 1, url, token, PROJECT):
        end = sockets.connect(url, token, PROJECT)
        for frame in sockets.frames(end, 15):
            if frame["type"] == "snapshot":
                break
        with events(endpoint, rate):
            skip_until = time.perf_counter() + 1.0
            for frame in sockets.frames(end, seconds + 1.0):
                now = now_ns()
                if frame["type"] == "delta" and time.perf_counter() > skip_until:
                    for entry in frame["patch"].values():
                        sent = ((entry or {}).get("terminal") or {}).get("last_output")
                        if sent:
                            taken.append((now - sent) / 1e6)
        end.close()
    return taken


def _floor(rate: int, seconds: float, directory: Path) -> list[float]:
    inlet, outlet = f"ipc://{directory}/in", f"ipc://{directory}/out"
    child = subprocess.Popen([sys.executable, "-c", FLOOR, inlet, outlet])
    taken: list[float] = []
    try:
        end: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        end.setsockopt(zmq.SUBSCRIBE, b"")
        end.setsockopt(zmq.LINGER, 0)
        end.connect(outlet)
        with events(inlet, rate):
            warm = time.perf_counter() + 1.0
            while time.perf_counter() < warm + seconds:
                if end.poll(100):
                    look = wire.decode_ingress(end.recv())
                    if time.perf_counter() < warm:
                        continue
                    assert isinstance(look, Look)
                    assert isinstance(look.value, Terminal)
                    taken.append((now_ns() - (look.value.last_output or 0)) / 1e6)
        end.close()
    finally:
        child.kill()
        child.wait()
    return taken


def main() -> None:
    figures.heading("latency: event on the bus → parsed by a WebSocket client; whole deployment, 300 workspaces")
    with (
        tempfile.TemporaryDirectory(prefix="tw-repo-") as parent,
        home() as settings,
        deployment(settings, worktrees(Path(parent), 0, 10)) as url,
    ):
        token = settings.token_path.read_text().strip()
        births(url, token, PROJECT, WORKSPACES)
        endpoint = bus.endpoint(settings.run_dir, "ingress")
        for rate, clients, seconds in LOADS:
            name = f"{rate:,} events/s, {clients} client{'s' if clients > 1 else ''}"
            runs = [_measure(url, token, endpoint, rate, clients, seconds) for _ in range(RUNS)]
            floor = [_floor(rate, 2.0, settings.home) for _ in range(RUNS)]
            goal = {2: ("", "≤ 3 ms"), 1_000: ("≤ 5 ms", "≤ 25 ms")}.get(rate, ("", ""))
            for share, aim in zip((0.5, 0.99), goal, strict=True):
                p = f"p{share * 100:.0f}"
                ours = figures.line(f"{name}: {p}", [figures.percentile(run, share) for run in runs], "ms", aim)
                base = figures.line(
                    f"{name}: {p} of a bare PUSH→PUB→SUB", [figures.percentile(run, share) for run in floor], "ms"
                )
                figures.ratio(f"{name}: {p} treewire / bare chain", ours, base)
