"""Fan-out: one gateway and its peers send the same frames to the same crowd, in turns within one run.

Deliveries per second of the *server's* CPU are what is compared: the clients are a C program on the other core, so
that nothing but the server is slow. Each server is started afresh, pinned to one core, and given the same number of
clients and the same changes a second, few enough that every change is a frame of its own (a gateway joins what comes
within one tick; that it does so is its strength elsewhere and must not help it here). The gateway's changes come
over the bus, from the aggregator, and what it takes to read and apply them is counted as its own; peers make up
theirs. Its frames are measured first, and the peers' are made as long.

peers    ws, socket.io (with connection state recovery), Python's websockets (`broadcast`), each as its documentation
         says; the floor is a C loop of bare writes (see benchmarks/peers). Without npm or a compiler the run says what
         is left out.
parts    FANOUT=flood,grid-100 runs these; FANOUT=grid all of the grid. By itself each takes less than four minutes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil
import zmq

from benchmarks import figures
from benchmarks.deployment import deployment, get, home, members, until, worktrees
from benchmarks.latency import births
from pipeline import bus, wire
from pipeline.domain.model import Look, Session, Stamp
from pipeline.runtime.beat import read_beats
from pipeline.runtime.clock import CLOCK, now_ns
from pipeline.runtime.settings import Settings

PEERS = Path(__file__).parent / "peers"
PROJECT = "project"
WORKSPACES = 50
SAME = ((100, 40), (1_000, 20), (5_000, 8))  # clients, changes/s that are a frame each
FLOODS = (1_000, 4_000)  # changes/s to 1,000 clients: as goals have it, and where the rate caps nobody
GRID_CLIENTS = (100, 1_000, 5_000)
GRID_RATES = (1, 10, 100, 1_000)
GRID_WINDOWS, GRID_S, GRID_BYTES = 3, 1.5, 200
ROUNDS = 3
WINDOW_S = 5.0
WARM_S = 1.0
SERVER_CORE, OTHER_CORE = 0, 1
MODEST = 10  # of the crowd, which would be on other machines: it is not to hold up what makes the changes
CORES = os.sched_getaffinity(0)  # before this process is bound to one of them
DEFLATE = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


CPU_OF_ALL_THREADS = 2  # clock_getcpuclockid(3)


class Window(NamedTuple):
    """What one server did within some seconds. ``p50, p99``: ms."""

    seconds: float
    cpu_s: float
    frames: int
    bytes: int
    changes: int
    p50: float
    p99: float
    behind: int
    closed: int

    @property
    def per_cpu_s(self) -> float:
        return self.frames / max(self.cpu_s, 0.01)

    @property
    def core(self) -> float:
        return 100 * self.cpu_s / self.seconds


class Joined(NamedTuple):
    """What a crowd costs a server by being there."""

    kb: float
    us: float


def _pin(pid: int, core: int) -> None:
    """A core for every thread of a process; on a machine with one core all share it."""
    if core in CORES:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), {core})


def _cpu_s(process: psutil.Process) -> float:
    """To the nanosecond: what /proc tells is in hundredths of a second."""
    return time.clock_gettime((~process.pid << 3) | CPU_OF_ALL_THREADS)


class Load:
    """A crowd of clients."""

    def __init__(
        self, binary: Path, port: int, clients: int, stalled: int, kind: str, head: Sequence[str], hello: Sequence[str]
    ) -> None:
        command = [str(binary), "127.0.0.1", str(port), str(clients), str(stalled), kind]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        _pin(self._child.pid, OTHER_CORE)
        os.setpriority(os.PRIO_PROCESS, self._child.pid, MODEST)
        self._say("|".join(head) + "||")
        self._say("\t".join(hello))
        if self._hear() != "ready":
            raise RuntimeError(f"the crowd could not connect to port {port}")

    def window(self, server: psutil.Process, seconds: float = WINDOW_S, warm_s: float = WARM_S) -> Window:
        time.sleep(warm_s)
        cpu, began = _cpu_s(server), time.perf_counter()
        self._say("go")
        time.sleep(seconds)
        self._say("stop")
        took, spent = time.perf_counter() - began, _cpu_s(server) - cpu
        told = json.loads(self._hear())
        told |= {"p50": told["p50"] / 1e3, "p99": told["p99"] / 1e3}
        return Window(took, spent, **told)

    def close(self) -> None:
        self._child.kill()
        self._child.wait()

    def _say(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def _hear(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline().strip()


class Changes(threading.Thread):
    """Puts looks on the bus at a rate; each says when it was made."""

    def __init__(self, endpoint: str, rate: float) -> None:
        super().__init__(daemon=True)
        self._endpoint, self._rate = endpoint, rate
        self._over = threading.Event()

    def run(self) -> None:
        end: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
        end.setsockopt(zmq.LINGER, 0)
        end.connect(self._endpoint)
        began, sent = time.perf_counter(), 0
        while not self._over.is_set():
            now = now_ns()
            value = Session(provider="claude", name=f"t{time.monotonic_ns()}", state="working")
            look = Look(PROJECT, f"w{(sent * 7) % WORKSPACES}", "session:s1", value, Stamp(now, now, CLOCK), "live")
            end.send(wire.encode(look))
            sent += 1
            if (ahead := began + sent / self._rate - time.perf_counter()) > 0:
                self._over.wait(ahead)
        end.close()

    def stop(self) -> None:
        self._over.set()
        self.join()


class Gateway:
    """Ours: a gateway within a whole deployment, on a core of its own."""

    name = "treewire"

    def __init__(self, settings: Settings, url: str, load: Path) -> None:
        self._url, self._load = url, load
        self._token = settings.token_path.read_text().strip()
        self._endpoint = bus.endpoint(settings.run_dir, "ingress")
        self._pid = next(beat.pid for beat in read_beats(settings.run_dir) if beat.name == "gateway-0")
        births(url, self._token, PROJECT, WORKSPACES)
        path = f"{url}v1/projects/{PROJECT}/snapshot"
        until(lambda: len(json.loads(get(path, self._token))["workspaces"]) >= WORKSPACES, 30, "all workspaces")
        for process in members(settings):
            _pin(process.pid, SERVER_CORE if process.pid == self._pid else OTHER_CORE)

    @contextlib.contextmanager
    def crowd(
        self, clients: int, rate: float, size: int = 0, stalled: int = 0, deflate: bool = False
    ) -> Iterator[tuple[Load, psutil.Process, Joined]]:
        at = urlsplit(self._url)
        head = [
            "GET /v1/stream HTTP/1.1", f"Host: {at.netloc}", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Protocol: treewire.v1", f"Authorization: Bearer {self._token}",
            *([f"Sec-WebSocket-Extensions: {DEFLATE}"] if deflate else []),
        ]  # fmt: skip
        hello = ['{"type":"hello"}', f'{{"type":"subscribe","id":1,"project":"{PROJECT}"}}']
        server = psutil.Process(self._pid)
        cpu, memory = _cpu_s(server), server.memory_info().rss
        load = Load(self._load, at.port or 0, clients, stalled, "treewire", head, hello)
        joined = Joined((server.memory_info().rss - memory) / 1e3 / clients, (_cpu_s(server) - cpu) * 1e6 / clients)
        changes = Changes(self._endpoint, rate)
        changes.start()
        try:
            yield load, server, joined
        finally:
            changes.stop()
            load.close()
            time.sleep(1.0)  # the gateway notices that they left


class Peer:
    """Another server that does the same broadcast."""

    def __init__(self, name: str, command: list[str], load: Path, kind: str = "plain") -> None:
        self.name, self._command, self._load, self._kind = name, command, load, kind

    @contextlib.contextmanager
    def crowd(
        self, clients: int, rate: float, size: int, stalled: int = 0
    ) -> Iterator[tuple[Load, psutil.Process, Joined]]:
        path = "/socket.io/?EIO=4&transport=websocket" if self._kind == "socketio" else "/"
        command = [*self._command, str(rate), str(size)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        load = None
        try:
            assert child.stdout is not None
            port = int(child.stdout.readline())
            _pin(child.pid, SERVER_CORE)
            head = [
                f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade",
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13",
            ]  # fmt: skip
            server = psutil.Process(child.pid)
            cpu, memory = _cpu_s(server), server.memory_info().rss
            hello = ["40"] if self._kind == "socketio" else []
            load = Load(self._load, port, clients, stalled, self._kind, head, hello)
            kb = (server.memory_info().rss - memory) / 1e3 / clients
            assert child.stdin is not None
            child.stdin.write("begin\n")  # as long as the crowd comes in, a flood would keep it out
            child.stdin.flush()
            yield load, server, Joined(kb, (_cpu_s(server) - cpu) * 1e6 / clients)
        finally:
            if load is not None:
                load.close()
            child.kill()
            child.wait()


Server = Gateway | Peer


def _compiled(name: str, folder: Path) -> Path:
    out = folder / name
    subprocess.run(["cc", "-O2", "-o", str(out), str(PEERS / f"{name}.c")], check=True)
    return out


def _peers(folder: Path, load: Path) -> list[Peer]:
    found = [Peer("C loop of writes (floor)", [str(_compiled("floor", folder))], load)]
    if shutil.which("npm") and shutil.which("node"):
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), "ws", "socket.io"]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            os.environ["PEERS"] = str(folder)
            found.append(Peer("ws (Node)", ["node", str(PEERS / "ws.mjs")], load))
            found.append(Peer("socket.io, with recovery", ["node", str(PEERS / "socketio.mjs")], load, "socketio"))
        else:
            print(f"left out: ws and socket.io (npm: {done.stderr.strip()[-200:]})")
    else:
        print("left out: ws and socket.io (no node and npm on PATH)")
    found.append(Peer("websockets (Python)", [sys.executable, str(PEERS / "broadcast.py")], load))
    return found


def _same_frames(ours: Gateway, peers: list[Peer], clients: int, rate: int) -> None:
    goals = {"ws (Node)": "≥ 1.25", "socket.io, with recovery": "≥ 1.6", "websockets (Python)": "≥ 1.4"}
    figures.heading(f"the same frames: {clients:,} clients × {rate} changes/s, {ROUNDS} rounds in turns")
    windows: dict[str, list[Window]] = {}
    joins: dict[str, list[Joined]] = {}
    size = 0
    for _ in range(ROUNDS):
        for server in (ours, *peers):
            with server.crowd(clients, rate, size) as (load, process, joined):
                window = load.window(process)
            if server is ours:
                size = window.bytes // max(1, window.frames)
            windows.setdefault(server.name, []).append(window)
            joins.setdefault(server.name, []).append(joined)
    for name, seen in windows.items():
        figures.line(f"{name}: deliveries", [w.per_cpu_s for w in seen], "/CPU-s")
        p50, p99 = (statistics.median(values) for values in zip(*[(w.p50, w.p99) for w in seen], strict=True))
        mine = server_goal = ""
        if name == ours.name:
            mine, server_goal = f" of {size} bytes", "   goals ≤ 15 kB, ≤ 300 µs"
        kb = statistics.median(j.kb for j in joins[name])
        us = statistics.median(j.us for j in joins[name])
        frames = statistics.median(w.frames / w.seconds / clients for w in seen)
        print(
            f"    {frames:.1f} frames/s a client{mine}, p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
            f"{kb:.1f} kB and {us:.0f} µs CPU a connection{server_goal}"
        )
    for name in windows:
        if name != ours.name:
            goal = goals.get(name, "≥ 0.75")
            each = [a.per_cpu_s / b.per_cpu_s for a, b in zip(windows[ours.name], windows[name], strict=True)]
            figures.line(f"treewire / {name}", each, "×", goal)


def _flood(ours: Gateway, peers: list[Peer]) -> None:
    for rate in FLOODS:
        _flood_of(ours, peers, 1_000, rate)


def _flood_of(ours: Gateway, peers: list[Peer], clients: int, rate: int) -> None:
    """Changes and not frames: a peer has the right to as many as it can send, whatever that costs it."""
    figures.heading(f"{rate:,} changes/s to {clients:,} clients")
    delivered: dict[str, list[float]] = {}
    spent: dict[str, float] = {}
    size = 200
    rivals: list[Server] = [ours, *(peer for peer in peers if peer.name.startswith(("ws (", "socket.io")))]
    goals = ("≤ 45", "≤ 50", "0") if rate == FLOODS[0] else ("", "", "")
    for server in rivals:
        runs = []
        for _ in range(ROUNDS):
            with server.crowd(clients, rate, size) as (load, process, _):
                runs.append(load.window(process))
        delivered[server.name] = [run.changes / run.seconds for run in runs]
        figures.line(f"{server.name}: changes delivered", delivered[server.name], "/s")
        spent[server.name] = figures.line(
            f"{server.name}: changes", [run.changes / run.cpu_s for run in runs], "/CPU-s"
        )
        core, p99, behind = goals if server is ours else ("", "", "")
        figures.line(f"{server.name}: CPU", [run.core for run in runs], "% of core", core)
        figures.line(f"{server.name}: p50", [run.p50 for run in runs], "ms")
        figures.line(f"{server.name}: p99", [run.p99 for run in runs], "ms", p99)
        figures.line(f"{server.name}: clients that are behind", [float(run.behind) for run in runs], "", behind)
    mine = statistics.median(delivered.pop(ours.name))
    for name, theirs in delivered.items():
        if median := statistics.median(theirs):
            figures.ratio(f"changes delivered, treewire / {name}  (goal ≥ 10)", mine, median)
            figures.ratio(f"the same per CPU-second, treewire / {name}", spent[ours.name], spent[name])
        else:
            print(f"changes delivered, treewire / {name}: it was overrun, and delivered nothing in most windows")


def _grid(ours: Gateway, peers: list[Peer], clients: int) -> None:
    """All servers side by side, from nearly quiet to more than any can send by itself."""
    figures.heading(f"grid: {clients:,} clients, {GRID_WINDOWS} windows of {GRID_S} s each")
    print("| changes/s | server | thousand changes/CPU-s | thousand frames/CPU-s | of a core | p50, p99 | a client |")
    print("|---|---|---|---|---|---|---|")
    for rate in GRID_RATES:
        for server in (ours, *peers):
            with server.crowd(clients, rate, GRID_BYTES) as (load, process, joined):
                time.sleep(WARM_S)
                seen = [load.window(process, max(GRID_S, 2 / rate), 0.0) for _ in range(GRID_WINDOWS)]
            changes = _spread([w.changes / max(w.cpu_s, 1e-6) / 1e3 for w in seen])
            frames = _spread([w.frames / max(w.cpu_s, 1e-6) / 1e3 for w in seen])
            core, p50, p99 = (statistics.median(v) for v in zip(*((w.core, w.p50, w.p99) for w in seen), strict=True))
            told = (f"{rate:,}", server.name, changes, frames, f"{core:.1f} %", f"{p50:.1f}, {p99:.1f} ms")
            print(f"| {' | '.join(told)} | {joined.kb:.1f} kB |", flush=True)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} [{min(values):,.0f} … {max(values):,.0f}]"


def _stalled(ours: Gateway) -> None:
    live, stalled, rate = 200, 1_000, 200
    figures.heading(f"{live} clients at {rate} changes/s, without and with {stalled:,} that never read")
    p99: dict[bool, list[float]] = {False: [], True: []}
    grown = []
    for _ in range(ROUNDS):
        for crowded in (False, True):
            with ours.crowd(live + stalled * crowded, rate, stalled=stalled * crowded) as (load, process, _):
                load.window(process)
                memory = process.memory_info().rss
                p99[crowded].append(load.window(process).p99)
                if crowded:
                    grown.append((process.memory_info().rss - memory) / 1e6)
    without = figures.line("p99 without them", p99[False], "ms")
    within = figures.line("p99 with them", p99[True], "ms")
    figures.ratio("with / without  (goal ≤ 1.2)", within, without)
    figures.line("memory gained in one window with them", grown, "MB", "flat")


def _deflated(ours: Gateway) -> None:
    clients, rate = 1_000, 1_000  # frames are worth packing from some size on
    figures.heading(f"shared compressed frames: {clients:,} clients × {rate} changes/s")
    cost: dict[bool, list[Window]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for deflate in (False, True):
            with ours.crowd(clients, rate, deflate=deflate) as (load, process, _):
                cost[deflate].append(load.window(process))
    plain = figures.line("plain: CPU a delivery", [1e6 / w.per_cpu_s for w in cost[False]], "µs")
    small = figures.line("compressed: CPU a delivery", [1e6 / w.per_cpu_s for w in cost[True]], "µs")
    figures.ratio("compressed / plain  (goal ≤ 1.1)", small, plain)
    sizes = [statistics.median(w.bytes / w.frames for w in cost[deflate]) for deflate in (True, False)]
    figures.ratio("bytes, compressed / plain", sizes[0], sizes[1])


def main() -> None:
    if not shutil.which("cc"):
        raise SystemExit("benchmarks fanout: the clients are a C program; install a C compiler (gcc or clang)")
    parts: dict[str, Callable[[Gateway, list[Peer]], None]] = {
        **{f"same-{clients}": functools.partial(_same_frames, clients=clients, rate=rate) for clients, rate in SAME},
        "flood": _flood,
        **{f"grid-{clients}": functools.partial(_grid, clients=clients) for clients in GRID_CLIENTS},
        "stalled": lambda ours, _: _stalled(ours),
        "deflate": lambda ours, _: _deflated(ours),
    }
    wanted = os.environ.get("FANOUT", ",".join(parts)).split(",")
    asked = [name for name in parts if name in wanted or name.partition("-")[0] in wanted]
    folder = Path(tempfile.mkdtemp(prefix="tw-peers-"))
    try:
        _pin(os.getpid(), OTHER_CORE)
        load = _compiled("load", folder)
        alone = {"stalled", "deflate"}
        peers = _peers(folder, load) if set(asked) - alone else []
        with (
            tempfile.TemporaryDirectory(prefix="tw-repo-") as parent,
            home() as settings,
            deployment(settings, worktrees(Path(parent), 0, 10), TREEWIRE_GATEWAY__MAX_SOCKETS="6000") as url,
        ):
            ours = Gateway(settings, url, load)
            for name in asked:
                parts[name](ours, peers)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
