"""What of a worktree listens on a port: seen, gone, and left to whoever tells of it himself."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog import Observed
from pipeline.catalog.ids import worktree_id
from pipeline.domain.model import Run, Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.settings import Settings
from pipeline.sources import ports
from pipeline.sources.ports import Served, Socket, listening
from pipeline.sources.processes import Processes
from tests.sourcekit import Running, made

SERVER = """
import socket, sys
with socket.socket() as end:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    end.bind(("127.0.0.1", int(sys.argv[1])))
    end.listen()
    sys.stdin.read()
"""


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return made(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "home").mkdir(mode=0o700)
    off = {"sources.processes": False, "sources.tmux": False}
    return Settings.load(tmp_path / "home", off, environ={})


def test_of_the_kernels_list_only_ports_that_somebody_chose_to_listen_on_are_taken() -> None:
    lines = [
        "  0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 111 1 0 100 0",
        "  1: 00000000000000000000000000000000:0FA0 00:0 0A 0:0 00:0 0  1000        0 112 1 0 100 0",
        "  2: 0100007F:1388 0100007F:9999 01 00000000:00000000 00:00000000 00000000  1000        0 113 1 0 100 0",
        "  3: 0100007F:1770 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 114 1 0 100 0",
        "  4: 0100007F:9C40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 115 1 0 100 0",
        "",
        "of another kernel",
    ]
    assert listening(lines, 1000, range(32768, 61000)) == {Socket(3000, 111), Socket(4000, 112)}


def free() -> int:
    """A port that nobody has, and that the kernel gives to nobody by itself."""
    for port in range(20000 + os.getpid() % 5000, 32000):
        with socket.socket() as end:
            try:
                end.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def runs(running: Running) -> list[Any]:
    return [look.value for look in running.said if look.group == "run"]


def plays(settings: Any, repo: Path, monkeypatch: pytest.MonkeyPatch, test: Callable[..., Any]) -> None:
    monkeypatch.setattr("pipeline.sources.processes.SWEEP_S", 0.05)
    monkeypatch.setattr("pipeline.sources.processes.PORTS_S", 0.0)

    async def journey() -> None:
        async with Running(settings, monkeypatch) as running:
            desk = await running.follow(repo)
            work = asyncio.create_task(Processes().run(desk))
            try:
                await test(running)
            finally:
                work.cancel()

    asyncio.run(journey())


def serve(repo: Path, port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SERVER, str(port)], cwd=repo, stdin=subprocess.PIPE)


def test_a_server_in_a_worktree_runs_on_its_port_until_it_ends(settings, repo, monkeypatch) -> None:
    port = free()

    async def starts(running: Running) -> None:
        await running.until(lambda: runs(running) == [Run(state="running", port=port)])
        assert running.said[-1].workspace == worktree_id(repo)

    async def another_run_finds_it_gone(running: Running) -> None:
        await running.until(lambda: runs(running)[-1:] == [Run(state="stopped")])

    async def and_it_comes_back(running: Running) -> None:
        with serve(repo, port) as server:
            await running.until(lambda: runs(running)[-1:] == [Run(state="running", port=port)])
            server.kill()
            server.wait()
            await running.until(lambda: runs(running)[-1:] == [Run(state="stopped")])

    with serve(repo, port):
        plays(settings, repo, monkeypatch, starts)
    plays(settings, repo, monkeypatch, another_run_finds_it_gone)
    plays(settings, repo, monkeypatch, and_it_comes_back)


def test_what_somebody_else_told_of_the_run_script_is_left_to_him(settings, repo, monkeypatch) -> None:
    port, swept = free(), []
    real = ports.Ports.sweep

    def sweep(self: ports.Ports, agents: Any) -> list[Served]:
        swept.append(found := real(self, agents))
        return found

    monkeypatch.setattr(ports.Ports, "sweep", sweep)

    async def test(running: Running) -> None:
        now = now_ns()
        told = {"state": "failed", "port": None}
        where = running.catalog.workspace(worktree_id(repo))
        assert where is not None
        running.catalog.record(
            [Observed(where.project, where.id, "run", told, Stamp(now, now, CLOCK), wall_ms(), producer="me")]
        )
        with serve(repo, port):
            await running.until(lambda: swept and Served(str(repo), port) in swept[-1])
            seen = len(swept)
            await running.until(lambda: len(swept) > seen + 5)
        assert Run(state="running", port=port) not in runs(running)

    plays(settings, repo, monkeypatch, test)


def test_an_agent_that_listens_is_no_server_of_its_worktree(repo) -> None:
    port = free()
    with serve(repo, port) as server:
        sweeps = ports.Ports()
        while Served(str(repo), port) not in ports.Ports().sweep([]):
            assert server.poll() is None
        assert Served(str(repo), port) not in sweeps.sweep([server.pid])
        server.kill()


def test_what_the_same_supervisord_started_is_no_server_of_a_worktree(repo, monkeypatch) -> None:
    """Who follows the repository that treewire runs from would see its gateway there."""
    port = free()
    with serve(repo, port) as server:
        while Served(str(repo), port) not in ports.Ports().sweep([]):
            assert server.poll() is None
        monkeypatch.setenv("SUPERVISOR_ENABLED", "1")
        assert Served(str(repo), port) in ports.Ports().sweep([]), "another one's child"
        monkeypatch.setattr("os.getppid", os.getpid)
        assert Served(str(repo), port) not in ports.Ports().sweep([])
        server.kill()
