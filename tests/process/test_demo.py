"""The demo as a person starts it: real repositories, a whole deployment, and nothing left when it ends."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.cli.demo import still
from pipeline.runtime.beat import read_beat
from pipeline.runtime.settings import Settings
from tests.journeys.client import Client

pytestmark = pytest.mark.timeout(150)

READY_S = 90.0


def in_the_background() -> None:
    """As a shell starts what is followed by an ampersand."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Demo:
    """A running demo; `where` is what it said when it was ready."""

    def __init__(self, *options: str) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("TREEWIRE_")}
        # Whatever the user has settled for himself is none of the demo's business.
        env |= {"TREEWIRE_HOME": "/nonexistent", "TREEWIRE_DATABASE__URL": "sqlite:////nonexistent/theirs.db"}
        env |= {"TREEWIRE_GATEWAY__HEARTBEAT_MS": "300"}
        command = [sys.executable, "-m", "pipeline.cli", "demo", "--port", "0", "--json", *options]
        self.process = subprocess.Popen(
            command,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=in_the_background,  # noqa: PLW1509
        )
        self.where: dict[str, Any] = {}

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], READY_S)[0]:
            raise AssertionError("it does not get ready")
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate(timeout=30)[1])
        self.where = json.loads(line)

    def end(self, signum: signal.Signals = signal.SIGINT) -> dict[str, Any]:
        """What it said that it did."""
        self.process.send_signal(signum)
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, err
        assert err == ""
        told: dict[str, Any] = json.loads(out.splitlines()[-1])
        return told

    def client(self, project: str) -> Client:
        token = Path(self.where["token_path"]).read_text().strip()
        return Client(self.where["url"], token, project)


@contextmanager
def demo(*options: str) -> Iterator[Demo]:
    """Nothing of it may be left, neither a process nor a file."""
    running = Demo(*options)
    try:
        running.wait_until_ready()
        family = psutil.Process(running.process.pid).children(recursive=True)
        assert len(family) > 7, "there is no deployment"
        yield running
        assert running.process.poll() is not None, "the test ends the demo"
        assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert not Path(running.where["home"]).parent.exists()
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            running.process.communicate(timeout=60)


async def proven(client: Client) -> None:
    """A heartbeat from now on confirms the hash that the client computed from its deltas."""
    seen = client.verified
    await client.until(lambda c: c.verified > seen)
    assert client.mismatches == []


def test_agents_that_are_played_move_the_board_and_what_is_lost_on_the_way_is_healed() -> None:
    """Over real git and real HTTP; every client ends with the hash that the aggregator announces."""

    async def watch(running: Demo) -> None:
        async with running.client("lighthouse") as one, running.client("tidepool") as other:
            for client in (one, other):
                await client.until(lambda c: len(c.state) >= 4, 60)
            await one.until(lambda c: all(shown(c, group) for group in ("sessions", "pr", "ci", "terminal")), 60)
            await one.until(lambda c: any(e.get("git", {}).get("insertions") for e in c.state.values()), 60)
            await asyncio.to_thread(until, lambda: drift(running) > 0, "a census that healed something")
            for client in (one, other):
                await proven(client)
                names = [entry["life"]["name"] for entry in client.state.values()]
                assert len(names) == len(set(names)), "a worktree is shown twice"

    with demo("--agents", "8", "--speed", "25", "--seed", "3", "--events-per-second", "100") as running:
        asyncio.run(watch(running))
        did = running.end()
    assert did["failed"] == did["refused"] == 0
    assert did["acts"] > 20
    assert did["lost"] > 0
    assert did["drift"] > 0
    assert did["reconnects"] > 0
    assert did["chatter"] > 100


def shown(client: Client, group: str) -> bool:
    return any(group in entry for entry in client.state.values())


def drift(running: Demo) -> int:
    beat = read_beat(Settings(home=Path(running.where["home"])).run_dir / "aggregator.beat")
    return 0 if beat is None else int(beat.figures.get("drift", 0))


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def test_the_still_scene_comes_about_whole_and_then_nothing_changes() -> None:
    async def watch(running: Demo) -> None:
        for project in still.PROJECTS:
            async with running.client(project) as client:
                await client.until(lambda c: c.complete)
                expected = {row.branch: row.code for row in still.SCENE if row.project == project}
                codes = {entry["life"]["name"]: entry["status"]["code"] for entry in client.state.values()}
                assert expected.items() <= codes.items()
                assert codes[project] == "no_session_started"
                version, beats = client.version, client.verified
                await client.until(lambda c, beats=beats: c.verified >= beats + 5)
                assert client.version == version
                clashed = [e for e in client.state.values() if e.get("git", {}).get("operation") == "merge"]
                assert [e["life"]["name"] for e in clashed] == ["split-billing-service"] * (project == "lighthouse")

    with demo("--still") as running:
        asyncio.run(watch(running))
        running.end(signal.SIGTERM)


def test_a_deployment_that_cannot_start_is_said_with_its_own_words_and_only_a_named_home_stays() -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "TREEWIRE_GATEWAY__HOST": "203.0.113.1", "TMPDIR": folder}
        command = [sys.executable, "-m", "pipeline.cli", "demo", "--still", *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)

    with tempfile.TemporaryDirectory(prefix="tw-", dir="/tmp") as folder:
        refused = run()
        assert refused.returncode == 1
        assert "cannot listen on 203.0.113.1" in refused.stderr
        assert os.listdir(folder) == []
        assert run("--home", f"{folder}/mine").returncode == 1
        assert set(os.listdir(f"{folder}/mine")) >= {"home", "code", "up.log"}
        again = run("--home", f"{folder}/mine")
        assert "is not an empty folder" in again.stderr
