"""What time does to a whole deployment: its wall clock is stepped by an hour, and all of it stands still."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from benchmarks.deployment import home
from tests.faults.record import processes
from tests.faults.wall import HOUR_S, NO_COMPILER, Wall
from tests.faults.whole import SEEN_S, Whole, whole

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("clock"),
    pytest.mark.skipif(not shutil.which("cc"), reason=NO_COMPILER),
]

EVENTS: Final = 10
CENSUSES: Final = 3
SLEEPS_S: Final = (4.5, 7.0, 12.0)
TICKS_S: Final = 11.0  # by then the watchdog has looked at all of them twice


class Timed(NamedTuple):
    all: Whole
    wall: Wall


@pytest.fixture(scope="module")
def timed() -> Iterator[Timed]:
    parent = Path(tempfile.mkdtemp(prefix="tw-clock-"))
    try:
        wall = Wall(parent)
        with home() as settings, whole(settings.home, parent, **wall.environment) as found:
            yield Timed(found, wall)
    finally:
        shutil.rmtree(parent, ignore_errors=True)


CLOCKS: Final = """
import asyncio, sqlite3, sys, time
def read():
    real = time.clock_gettime(time.CLOCK_REALTIME)
    assert abs(real - time.time()) < 1
    assert abs(real - float(sqlite3.connect(":memory:").execute("select strftime('%s')").fetchone()[0])) < 2
    return real, time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
before = read()
print("ready", flush=True)
sys.stdin.readline()
print(*(round(now - then, -1) for now, then in zip(read(), before)))
began = time.clock_gettime(time.CLOCK_BOOTTIME)
time.sleep(0.2)
asyncio.run(asyncio.sleep(0.2))
assert 0.3 < time.clock_gettime(time.CLOCK_BOOTTIME) - began < 60
"""


def test_the_wall_clock_of_a_process_is_set_and_its_other_clocks_are_not(tmp_path: Path) -> None:
    wall = Wall(tmp_path)
    pipe, environment = subprocess.PIPE, {**os.environ, **wall.environment}
    command = [sys.executable, "-c", CLOCKS]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        wall.step(-HOUR_S)
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stdout.readline() == "-3600.0 0.0 0.0\n"
        assert process.wait(60) == 0


async def test_a_step_of_the_wall_clock_by_an_hour_changes_nothing_and_holds_up_nobody(timed: Timed) -> None:
    """Ahead, and back, of all processes at once; while nothing happens, and while events flow."""
    all_, wall = timed
    async with all_.client() as client:
        await all_.steady(client)
        await all_.event(client)
        before = processes(all_.settings)
        assert {"aggregator", "gateway-0", "worker-0", "supervisord", "watchdog"} <= before.keys()
        for step in (HOUR_S, -HOUR_S, -HOUR_S, HOUR_S):
            stood, censuses = (client.epoch, client.version), all_.figure("reconciler", "censuses")
            wall.step(step)
            await all_.until(
                lambda censuses=censuses: all_.figure("reconciler", "censuses") >= censuses + CENSUSES, "more censuses"
            )
            await all_.proven(client, CENSUSES)
            assert (client.epoch, client.version) == stood, "something changed by itself"
            wall.step(-step)
            for number in range(EVENTS):
                if number == EVENTS // 2:
                    wall.step(step)
                assert await all_.event(client) < SEEN_S
            await all_.edit(client, 3)
            await all_.proven(client)
            assert client.mismatches == []
        assert processes(all_.settings) == before, "nobody was ended"


async def test_after_a_step_back_whoever_is_killed_is_started_again_and_whoever_is_silent_is_ended(
    timed: Timed,
) -> None:
    """supervisord goes by the wall clock."""
    all_, wall = timed
    async with all_.client() as client:
        await all_.steady(client)
        wall.step(-HOUR_S)
        before = processes(all_.settings)
        os.kill(before["worker-0"], signal.SIGKILL)
        os.kill(before["sources"], signal.SIGSTOP)

        def new() -> set[str]:
            return {name for name, pid in processes(all_.settings).items() if pid != before[name]}

        await all_.until(lambda: {"worker-0", "sources"} <= new(), "both to be there anew")
        assert await all_.event(client) < SEEN_S
        await all_.edit(client, 1)
        await all_.steady(client)
        wall.step(HOUR_S)
        assert client.mismatches == []


@pytest.mark.parametrize("seconds", SLEEPS_S)
async def test_a_host_that_slept_ends_nobody_and_everybody_goes_on(timed: Timed, seconds: float) -> None:
    """All processes are stopped, and go on: longer than a process may be silent, by the wall clock far longer."""
    all_, wall = timed
    async with all_.client() as client:
        await all_.steady(client)
        await all_.event(client)
        before, epoch = processes(all_.settings), client.epoch
        for name in sorted(before, key=lambda name: name not in ("watchdog", "supervisord")):
            os.kill(before[name], signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
            wall.step(HOUR_S)
        finally:
            for pid in before.values():
                os.kill(pid, signal.SIGCONT)
        assert await all_.event(client) < SEEN_S
        await all_.edit(client, 1)
        await asyncio.sleep(TICKS_S)
        assert processes(all_.settings) == before, "nobody was ended"
        await all_.proven(client)
        assert (client.epoch, client.mismatches) == (epoch, [])
        wall.step(-HOUR_S)
