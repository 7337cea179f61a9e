"""The faults: each a coroutine that breaks something, waits a while where that is its kind, and mends it again.

One that finds nothing to break says so by ``False``, and does not count. What cannot be done to real processes without
being root is left to tests of their own: a dead mount, a full file system.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import socket
import sqlite3
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import zmq
from msgspec.structs import replace

from pipeline import bus, wire
from pipeline.runtime.settings import Settings
from tests.faults.load import Load
from tests.faults.record import CrowdProcess, Taps, processes
from tests.faults.wall import HOUR_S, Wall

FLOOD: Final = 4000
UNTRACKED: Final = 3000
LOOP_S: Final = 8.0
SHRUNK_S: Final = 1.0
CENSUS_S: Final = 30.0
LONGEST_STOP_S: Final = 10.0
LONGEST_SLEEP_S: Final = 15.0

Does: TypeAlias = Callable[["Stage"], Awaitable[bool | None]]


class Proxy:
    """A way to a gateway that can be cut, in the middle of a frame if need be."""

    def __init__(self, target: int, draw: random.Random) -> None:
        self.target, self.draw = target, draw
        self.port = 0
        self._open: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self._server.close()
        self.cut(1.0)

    def cut(self, share: float) -> None:
        for writer in [*self._open]:
            if self.draw.random() < share:
                peer: socket.socket = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        self._open |= {writer, far}
        with contextlib.suppress(OSError):
            await asyncio.gather(self._carry(reader, far), self._carry(far_reader, writer))
        self._open -= {writer, far}

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        finally:
            sink.close()


class Stage(NamedTuple):
    """What faults act on."""

    settings: Settings
    load: Load
    taps: Taps
    crowds: list[CrowdProcess]
    proxy: Proxy
    draw: random.Random
    up: Callable[[], Awaitable[None]]
    killed: set[int]  # who shall not be taken for alive
    wall: Wall

    def pid(self, name: str) -> int:
        return processes(self.settings).get(name, 0)

    def kill(self, name: str) -> bool:
        pid = self.pid(name)
        killed = _signal(pid, signal.SIGKILL)
        if killed:
            self.killed.add(pid)
        return killed

    @property
    def database(self) -> Path:
        return self.settings.home / "treewire.db"


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        if pid:
            os.kill(pid, number)
    except ProcessLookupError:
        return False
    return bool(pid)


# ── processes ────────────────────────────────────────────────────────────────────────────────────


def kill(name: str) -> Does:
    async def do(stage: Stage) -> bool:
        return stage.kill(name)

    return do


def stop(name: str) -> Does:
    """For a while; the watchdog may end it sooner."""

    async def do(stage: Stage) -> bool:
        return await _stopped([stage.pid(name)], min(LONGEST_STOP_S, 0.2 + stage.draw.expovariate(0.6)))

    return do


async def _stopped(pids: Iterable[int], seconds: float) -> bool:
    stopped = [pid for pid in pids if _signal(pid, signal.SIGSTOP)]
    try:
        await asyncio.sleep(seconds if stopped else 0)
    finally:
        for pid in stopped:
            _signal(pid, signal.SIGCONT)
    return bool(stopped)


async def suspended(stage: Stage) -> bool:
    """All of it stands still for a while, those who supervise first, as on a host that sleeps."""
    found = processes(stage.settings)
    order = sorted(found, key=lambda name: name not in ("watchdog", "supervisord"))
    return await _stopped([found[name] for name in order], stage.draw.uniform(1, LONGEST_SLEEP_S))


async def kill_workers(stage: Stage) -> bool:
    killed = [stage.kill(f"worker-{number}") for number in range(stage.settings.git.workers)]
    return any(killed)


async def wall_clock(stage: Stage) -> None:
    """Everybody's wall clock is an hour ahead, or back."""
    stage.wall.step(stage.draw.choice((-HOUR_S, HOUR_S)))


async def kill_supervisord(stage: Stage) -> None:
    """And with it everything; somebody starts it anew."""
    stage.killed.update(processes(stage.settings).values())
    stage.kill("supervisord")
    await stage.up()


async def crash_loop(stage: Stage) -> bool:
    """Killed each time it has come up, until supervisord gives up on it."""
    name = stage.draw.choice(("reconciler", "sources", "dispatcher", "worker-0"))
    over, last, killed = time.monotonic() + LOOP_S, 0, False
    while time.monotonic() < over:
        pid = stage.pid(name)
        if pid != last:
            killed = stage.kill(name) or killed
            last = pid
        await asyncio.sleep(0.1)
    return killed


async def _limited(stage: Stage, what: int, most: Callable[[int], int]) -> bool:
    pid = stage.pid(f"gateway-{stage.draw.randrange(stage.settings.gateway.processes)}")
    if not pid:
        return False
    try:
        soft, hard = resource.prlimit(pid, what)
        resource.prlimit(pid, what, (most(pid), hard))
    except (FileNotFoundError, ProcessLookupError):
        return False
    await asyncio.sleep(stage.draw.uniform(0.3, 1.5))
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, what, (soft, hard))
    return True


async def no_descriptors(stage: Stage) -> bool:
    """A gateway may open nothing more."""
    return await _limited(stage, resource.RLIMIT_NOFILE, lambda pid: len(os.listdir(f"/proc/{pid}/fd")))


async def disk_full(stage: Stage) -> bool:
    """A gateway can write nothing to any file: as on a full disk, for it alone."""
    return await _limited(stage, resource.RLIMIT_FSIZE, lambda _: 0)


# ── the bus ──────────────────────────────────────────────────────────────────────────────────────


async def _push(stage: Stage, payloads: list[bytes]) -> None:
    """Into the ingress, as whatever has a socket there may."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.connect(bus.endpoint(stage.settings.run_dir, "ingress"))
    try:
        for number, payload in enumerate(payloads):
            with contextlib.suppress(zmq.Again):
                socket.send(payload, zmq.NOBLOCK)
            if number % 200 == 0:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
    finally:
        socket.close()


async def bus_garbage(stage: Stage) -> None:
    draw = stage.draw
    sound = [wire.encode(look) for look in [*stage.taps.looks][-50:]] or [b"\x80"]
    payloads = []
    for _ in range(300):
        one = bytearray(draw.choice(sound))
        match draw.randrange(4):
            case 0:
                one = bytearray(draw.randbytes(draw.randrange(1, 2000)))
            case 1:
                del one[draw.randrange(len(one)) :]
            case 2:
                one = bytearray(b"\x91" * draw.randrange(1, 5000))
            case 3:
                one = one[: len(one) // 2] + draw.randbytes(8) + b"\xc1"
        payloads.append(bytes(one))
    await _push(stage, payloads)


async def bus_flood(stage: Stage) -> bool:
    """Many times the usual rate, of looks that nobody can place."""
    looks = [*stage.taps.looks][-100:]
    if looks:
        chosen = (stage.draw.choice(looks) for _ in range(FLOOD))
        stray = [
            wire.encode(replace(look, workspace=f"{look.project}-stray", group="git", value=None)) for look in chosen
        ]
        await _push(stage, stray)
    return bool(looks)


async def replayed(stage: Stage) -> bool:
    """Looks that were there already come again: doubled, late, and in another order."""
    looks = [*stage.taps.looks]
    chosen = stage.draw.sample(looks, min(400, len(looks)))
    await _push(stage, [wire.encode(look) for look in chosen + chosen[::3]])
    return bool(chosen)


# ── clients ──────────────────────────────────────────────────────────────────────────────────────


def crowd(do: str, most: int) -> Does:
    async def act(stage: Stage) -> None:
        for one in stage.crowds:
            one.tell(do, count=stage.draw.randrange(1, most + 1), seconds=stage.draw.uniform(1, 8))

    return act


async def storm(stage: Stage) -> None:
    """Everybody at once."""
    for one in stage.crowds:
        one.tell("cut", count=1000)


async def proxy_cuts(stage: Stage) -> None:
    for _ in range(stage.draw.randrange(1, 6)):
        stage.proxy.cut(stage.draw.uniform(0.2, 1))
        await asyncio.sleep(stage.draw.uniform(0.02, 0.3))


# ── the database ─────────────────────────────────────────────────────────────────────────────────


async def locked(stage: Stage) -> bool:
    held = await asyncio.to_thread(_exclusive, stage.database)
    if held is not None:
        try:
            await asyncio.sleep(stage.draw.uniform(0.3, 7))
        finally:
            held.rollback()
            held.close()
    return held is not None


def _exclusive(path: Path) -> sqlite3.Connection | None:
    held = sqlite3.connect(path, timeout=2, isolation_level=None, check_same_thread=False)
    try:
        held.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error:
        held.close()
        return None
    return held


async def missing(stage: Stage) -> None:
    away = stage.database.with_suffix(".away")
    stage.database.rename(away)
    try:
        await asyncio.sleep(stage.draw.uniform(0.2, 2.5))
    finally:
        away.rename(stage.database)


async def replaced(stage: Stage) -> bool:
    """By a copy of itself, made while nobody could write."""
    return await asyncio.to_thread(_swap, stage.database)


def _swap(path: Path) -> bool:
    held = _exclusive(path)
    if held is None:
        return False
    try:
        os.replace(_copy(path), path)
    except sqlite3.Error:  # it was replaced only just now
        return False
    finally:
        held.rollback()
        held.close()
    return True


def _copy(path: Path) -> Path:
    folder = path.parent / "copies"
    folder.mkdir(exist_ok=True)
    copy = folder / path.name
    copy.unlink(missing_ok=True)
    source, target = sqlite3.connect(path), sqlite3.connect(copy)
    try:
        source.backup(target)
    finally:
        target.close()
        source.close()
    return copy


async def shrunk(stage: Stage) -> bool:
    """Most workspaces are gone from it for a moment, in which nobody reports anything."""
    path, judge = stage.database, stage.load.judge
    kept = path.with_suffix(".kept")
    await stage.load.rest()
    try:
        whole = await asyncio.to_thread(_exclusive, path)
        if whole is None:
            return False
        os.replace(await asyncio.to_thread(_copy, path), kept)
        copy = await asyncio.to_thread(_copy, path)
        emptied = sqlite3.connect(copy)
        for table in ("session", "pull_request", "checks", "run_script", "terminal", "ratchet"):
            emptied.execute(f"DELETE FROM {table} WHERE workspace_id NOT LIKE '%-w0'")
        emptied.execute("DELETE FROM workspace WHERE id NOT LIKE '%-w0'")
        emptied.commit()
        emptied.close()
        judge.keeps = True
        os.replace(copy, path)
        whole.rollback()
        whole.close()
        await asyncio.sleep(SHRUNK_S)
        os.replace(kept, path)
        # Two censuses in a row that say the same are believed: one of the whole has to come between.
        over = time.monotonic()
        while stage.taps.counted < over + SHRUNK_S and time.monotonic() < over + CENSUS_S:
            await asyncio.sleep(0.05)
    finally:
        judge.keeps = False
        stage.load.busy.set()
    return True


# ── git ──────────────────────────────────────────────────────────────────────────────────────────


async def git_hangs(stage: Stage) -> None:
    """It waits for a pipe that nobody writes to, in one worktree or two."""
    async with hung(stage, stage.draw.randrange(1, 3)):
        await asyncio.sleep(stage.draw.uniform(1, 6))


@contextlib.asynccontextmanager
async def hung(stage: Stage, count: int) -> Any:
    trees = stage.draw.sample([tree for tree in stage.load.trees if tree.there], count)
    pipes = [tree.path / ".gitignore" for tree in trees]
    for pipe in pipes:
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.mkfifo(pipe)
    try:
        yield
    finally:
        for pipe in pipes:
            with contextlib.suppress(OSError):
                end = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
                pipe.unlink()
                os.close(end)


async def git_explodes(stage: Stage) -> None:
    """Thousands of files at once, gone again soon; in no worktree of which the lines are counted."""
    folder = stage.load.repositories[0] / "swamp"
    await asyncio.to_thread(_swamp, folder)
    await asyncio.sleep(stage.draw.uniform(0.5, 2))
    await asyncio.to_thread(subprocess.run, ["rm", "-rf", str(folder)], check=True)


def _swamp(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(UNTRACKED):
        (folder / f"file {number}\n.txt").write_text("x\n" * 20)


# ── the list ─────────────────────────────────────────────────────────────────────────────────────


class Fault(NamedTuple):
    """`part`: at most so many of one part go on at once, see `AT_ONCE`. `alone`: with nothing else."""

    name: str
    do: Does
    weight: float
    part: str
    target: str = ""
    alone: bool = False


PARTS: Final = ("aggregator", "gateway-0", "gateway-1", "dispatcher", "worker-0", "worker-1", "reconciler", "sources")
LASTING: Final = ("process", "database", "git")
AT_ONCE: Final = {"process": 2, "database": 1, "git": 1, "bus": 3, "clients": 4, "clock": 2}


def _of(name: str) -> str:
    return name.partition("-")[0]


FAULTS: Final[tuple[Fault, ...]] = (
    *(Fault(f"kill {_of(name)}", kill(name), 3 if name == "aggregator" else 1.5, "process", name) for name in PARTS),
    *(Fault(f"stop {_of(name)}", stop(name), 2 if name == "aggregator" else 1, "process", name) for name in PARTS),
    Fault("kill watchdog", kill("watchdog"), 0.5, "process", "watchdog"),
    Fault("kill all workers", kill_workers, 1, "process", "worker"),
    Fault("all suspended", suspended, 0.6, "process", "all"),
    Fault("wall clock", wall_clock, 1, "clock"),
    Fault("kill supervisord", kill_supervisord, 0.25, "process", "supervisord", alone=True),
    Fault("crash loop", crash_loop, 0.3, "process", "loop", alone=True),
    Fault("no descriptors", no_descriptors, 1, "process", "limits"),
    Fault("disk full", disk_full, 1, "process", "limits"),
    Fault("bus garbage", bus_garbage, 2, "bus"),
    Fault("bus flood", bus_flood, 1.5, "bus"),
    Fault("looks replayed", replayed, 3, "bus"),
    Fault("clients stall", crowd("stall", 15), 2, "clients"),
    Fault("clients cut", crowd("cut", 25), 2, "clients"),
    Fault("clients rude", crowd("rude", 5), 1, "clients"),
    Fault("reconnect storm", storm, 1, "clients"),
    Fault("proxy cuts", proxy_cuts, 2, "clients"),
    Fault("database locked", locked, 1.5, "database"),
    Fault("database missing", missing, 1, "database"),
    Fault("database replaced", replaced, 1, "database"),
    Fault("database shrunk", shrunk, 0.5, "database", alone=True),
    Fault("git hangs", git_hangs, 1.5, "git"),
    Fault("git explodes", git_explodes, 1, "git"),
)
NAMES: Final = tuple(dict.fromkeys(fault.name for fault in FAULTS))


def draw_wave(draw: random.Random, most: int, among: tuple[Fault, ...] = FAULTS) -> list[Fault]:
    """Some faults that may go on at once; at least one, at most so many."""
    first = draw.choices(among, [fault.weight for fault in among])[0]
    wave = [first]
    for _ in range(draw.randrange(0, 8) if not first.alone else 0):
        if len(wave) >= most:
            break
        one = draw.choices(among, [fault.weight for fault in among])[0]
        crowded = sum(other.part == one.part for other in wave) >= AT_ONCE[one.part]
        taken = one.target and any(other.target == one.target for other in wave)
        if not one.alone and not crowded and not taken:
            wave.append(one)
    return wave
