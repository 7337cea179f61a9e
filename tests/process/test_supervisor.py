"""A whole deployment under a real supervisord, started by the real command; only the processes' mains are stand-ins."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.deployment import holder
from pipeline.cli.run import MAINS
from pipeline.runtime.beat import read_beats
from pipeline.runtime.settings import Settings

# Found by every Python of the deployment: it supplies the mains, and nothing else.
STAND_INS = """
import importlib.abc, importlib.util, sys
from pathlib import Path

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in NAMES:
            return importlib.util.spec_from_file_location(name, Path(__file__).with_name("stand_in.py"))

NAMES = {names!r}
sys.meta_path.insert(0, Finder())
"""

STAND_IN = """
import asyncio, os, time

async def main(process):
    if (process.settings.home / f"crash-{process.name}").exists():
        raise RuntimeError("told to crash")
    process.figures["stand_in"] = 1
    if (process.settings.home / f"hang-{process.name}").exists():
        time.sleep(3600)
    if process.role == "gateway":
        async def answer(reader, writer):
            await reader.readuntil(b"\\r\\n\\r\\n")
            writer.write(b"HTTP/1.0 200 OK\\r\\n\\r\\nready")
            writer.close()
        gateway = process.settings.gateway
        server = await asyncio.start_server(answer, gateway.host, gateway.port)
        process.settings.url_path.write_text(f"http://{gateway.host}:{gateway.port}/")
    await process.stopping.wait()
"""

PROCESSES = {"aggregator", "reconciler", "sources", "dispatcher", "worker-0", "worker-1", "gateway-0"}


class Deployment:
    """One home, and the commands an operator would type for it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        (root / "sitecustomize.py").write_text(
            STAND_INS.format(names={main.partition(":")[0] for main in MAINS.values()})
        )
        (root / "stand_in.py").write_text(STAND_IN)
        (root / "empty").mkdir()
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("TREEWIRE_")} | {
            "PYTHONPATH": str(root),
            "XDG_CONFIG_HOME": str(root / "config"),
            "TREEWIRE_SUPERVISOR__SILENT_S": "4",
            "TREEWIRE_SUPERVISOR__REVIVE_S": "1",
        }
        self.settings = Settings.load(self.home, environ=self.env)

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "pipeline.cli", *args, "--home", str(self.home)]

    def treewire(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args), env=self.env, cwd=self.root / "empty", capture_output=True, text=True, timeout=60
        )

    def up(self) -> None:
        started = self.treewire("up", "-d", "--port", "0")
        assert started.returncode == 0, f"{started.stdout}{started.stderr}{self.logs()}"
        assert "Ready: http://127.0.0.1:" in started.stdout

    def kill(self) -> None:
        """End it without ceremony, which is enough: nothing outlives supervisord."""
        supervisor, beats = holder(self.settings.run_dir), read_beats(self.settings.run_dir)
        if supervisor is not None:
            os.kill(supervisor, signal.SIGKILL)
        self.wait(lambda: not [beat.name for beat in beats if lives(beat.pid)], "all to end", 10)

    def status(self) -> dict[str, Any]:
        return json.loads(self.treewire("status", "--json").stdout)

    def pids(self) -> dict[str, int]:
        return {process["name"]: process["pid"] for process in self.status()["processes"]}

    def logs(self) -> str:
        return "".join(f"\n--- {log.name}\n{log.read_text()}" for log in sorted(self.home.glob("log/*.log")))

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
        deadline = time.monotonic() + seconds
        while not (met := condition()):
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}{self.logs()}"
            time.sleep(0.05)
        return met

    def beat(self, name: str) -> Any:
        return next((beat for beat in read_beats(self.settings.run_dir) if beat.name == name), None)

    def notes(self) -> str:
        try:
            return (self.settings.run_dir / "watchdog.json").read_text()
        except FileNotFoundError:
            return ""


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    # The usual temporary directory has a name too long for sockets.
    root = Path(tempfile.mkdtemp(prefix="tw-", dir="/tmp"))
    deployment = Deployment(root)
    try:
        yield deployment
    finally:
        deployment.kill()
        shutil.rmtree(root)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_up_starts_is_well_and_down_leaves_nothing(deployment: Deployment) -> None:
    deployment.up()
    deployment.wait(lambda: deployment.status()["health"] == "well", "all to be well")
    pids = deployment.pids()
    assert set(pids) == PROCESSES | {"watchdog", "supervisord"}
    deployment.wait(lambda: all(deployment.beat(name).figures for name in PROCESSES), "the figures of all")
    assert deployment.treewire("status").stdout.count("stand_in=1") == len(PROCESSES)
    assert deployment.treewire("status").returncode == 0
    for path in (deployment.home, deployment.settings.run_dir, deployment.settings.log_dir):
        assert path.stat().st_mode & 0o777 == 0o700
    assert deployment.settings.token_path.stat().st_mode & 0o777 == 0o600
    for path in deployment.settings.run_dir.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path

    again = deployment.treewire("up", "-d")
    assert again.returncode == 2
    assert "already runs" in again.stderr
    assert deployment.pids() == pids

    stopped = deployment.treewire("down")
    assert (stopped.returncode, stopped.stdout) == (0, "Stopped.\n"), deployment.logs()
    assert not [name for name, pid in pids.items() if lives(pid)]
    assert deployment.treewire("status").returncode == 3
    assert deployment.treewire("down").stdout.startswith("Nothing runs")


def test_a_killed_supervisord_leaves_no_orphans_even_stopped_ones(deployment: Deployment) -> None:
    deployment.up()
    pids = deployment.pids()
    os.kill(pids["aggregator"], signal.SIGSTOP)
    os.kill(pids["supervisord"], signal.SIGKILL)
    deployment.wait(lambda: not [name for name, pid in pids.items() if lives(pid)], "all to end", 10)
    deployment.up()
    assert not set(pids.values()) & set(deployment.pids().values())


def test_down_waits_for_no_hung_process_however_many_there_are(deployment: Deployment) -> None:
    """Seven times what one may take to drain would be the price of asking them one after the other."""
    deployment.env["TREEWIRE_SUPERVISOR__SILENT_S"] = "3600"  # the watchdog shall not be first
    deployment.env["TREEWIRE_SUPERVISOR__DRAIN_S"] = "12"
    deployment.up()
    pids = deployment.pids()
    for name in ("aggregator", "dispatcher", "worker-0", "gateway-0", "supervisord"):
        os.kill(pids[name], signal.SIGSTOP)
    for name in ("reconciler", "sources"):  # it comes back, but hangs
        (deployment.home / f"hang-{name}").touch()
        os.kill(pids[name], signal.SIGKILL)
    os.kill(pids["supervisord"], signal.SIGCONT)
    for name in ("reconciler", "sources"):
        deployment.wait(lambda name=name: deployment.beat(name).pid != pids[name], f"{name} to come back")
    os.kill(pids["supervisord"], signal.SIGSTOP)
    pids |= {name: deployment.beat(name).pid for name in ("reconciler", "sources")}
    began = time.monotonic()
    stopped = deployment.treewire("down")
    took = time.monotonic() - began
    assert (stopped.returncode, stopped.stdout) == (0, "Stopped.\n"), stopped.stderr + deployment.logs()
    assert not [name for name, pid in pids.items() if lives(pid)]
    assert took < 12, "somebody was waited for as long as it may drain"


def test_a_program_that_was_given_up_is_revived_and_a_silent_one_restarted(deployment: Deployment) -> None:
    deployment.home.mkdir(mode=0o700)
    crash = deployment.home / "crash-sources"
    crash.touch()
    started = deployment.treewire("up", "-d", "--port", "0")
    assert started.returncode == 0, f"{started.stdout}{started.stderr}{deployment.logs()}"

    deployment.wait(lambda: deployment.beat("dispatcher"), "a sign of life of the dispatcher")
    silent = deployment.beat("dispatcher").pid
    os.kill(silent, signal.SIGSTOP)
    deployment.wait(lambda: not lives(silent), "the silent one to be killed")
    deployment.wait(lambda: deployment.beat("dispatcher").pid != silent, "the silent one to start afresh")
    assert "no beat for" in deployment.notes()

    deployment.wait(lambda: "gave up" in deployment.notes(), "supervisord to give up on the crashing one")
    crash.unlink()
    deployment.wait(lambda: deployment.beat("sources").alive(), "the crashing one to be revived")
    deployment.wait(lambda: deployment.status()["health"] == "well", "all to be well")
    text = deployment.treewire("status").stdout
    assert "sources: revived" in text
    assert "dispatcher: killed" in text
    assert "told to crash" in (deployment.home / "log" / "sources.log").read_text()


def test_interrupting_the_foreground_stops_everything(deployment: Deployment) -> None:
    output = deployment.root / "output"
    with open(output, "w") as file:
        up = subprocess.Popen(
            deployment.command("up", "--port", "0"),
            env=deployment.env,
            cwd=deployment.root / "empty",
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    deployment.wait(lambda: "Ready: http://" in output.read_text() or up.poll() is not None, "readiness")
    pids = deployment.pids()
    assert pids["supervisord"] == up.pid
    os.killpg(up.pid, signal.SIGINT)
    assert up.wait(timeout=30) == 0, output.read_text()
    assert not [name for name, pid in pids.items() if lives(pid)]


def test_a_port_asked_for_by_name_is_not_silently_replaced(deployment: Deployment) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = deployment.treewire("up", "-d", "--port", str(port))
    assert refused.returncode == 2
    assert f"port {port} is taken" in refused.stderr


def test_a_gateway_that_never_gets_ready_is_named_with_the_end_of_its_log(deployment: Deployment) -> None:
    deployment.home.mkdir(mode=0o700)
    (deployment.home / "crash-gateway-0").touch()
    deployment.env["TREEWIRE_SUPERVISOR__READY_S"] = "3"
    started = deployment.treewire("up", "-d", "--port", "0")
    assert started.returncode == 1
    assert "not ready after 3 s" in started.stderr
    assert "told to crash" in started.stderr
    assert deployment.treewire("status").returncode == 1
