"""From kill -9 to synced: until a client again holds a state whose hash the new process announces.

Beside it: how long one Python process that imports the same packages needs to start, the floor of any restart.
"""

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
from pathlib import Path
from typing import Any

from benchmarks import figures, sockets
from benchmarks.deployment import deployment, get, home, until, worktrees
from pipeline.domain import patch
from pipeline.runtime.beat import read_beats

WORKTREES = 50
KILLS = 5


def _start() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import uvloop, zmq, msgspec, structlog, prometheus_client"], check=True)
    return time.perf_counter() - began


def _snapshot(url: str, token: str, project: str) -> dict[str, object]:
    answer: dict[str, object] = json.loads(get(f"{url}v1/projects/{project}/snapshot", token))
    return answer


def _follow_until_synced(end: socket.socket, epoch: str, seconds: float) -> bool:
    """Merge what comes until a heartbeat of another epoch than `epoch` names the hash of what is held, all of it
    with git counts."""
    state: dict[str, Any] = {}
    held = ("", -1)
    for frame in sockets.frames(end, seconds):
        if frame["type"] == "snapshot":
            state, held = frame["workspaces"], (frame["epoch"], frame["version"])
        elif frame["type"] == "delta":
            state, held = patch.merge(state, frame["patch"]), (frame["epoch"], frame["to"])
        elif frame["type"] == "heartbeat" and held[0] != epoch and len(state) > WORKTREES:
            mark = frame["subscriptions"].get("1")
            if (
                mark is not None
                and mark["version"] == held[1]
                and mark["hash"] == patch.state_hash(state)
                and all("git" in entry for entry in state.values())
            ):
                return True
    return False


def _synced_after(url: str, token: str, project: str, pid: int) -> float:
    """A client's view of a killed aggregator: its state proves itself in the new epoch."""
    before = str(_snapshot(url, token, project)["epoch"])
    end = sockets.connect(url, token, project)
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    try:
        if not _follow_until_synced(end, before, 30):
            raise TimeoutError("not synced with the new epoch within 30 s")
    finally:
        end.close()
    return time.perf_counter() - began


def _gateway_back_after(url: str, token: str, project: str, pid: int) -> float:
    """A client's view of a killed gateway: it connects again and its state proves itself."""
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)

    def synced() -> bool:
        try:
            end = sockets.connect(url, token, project)
        except (OSError, RuntimeError):
            return False
        try:
            return _follow_until_synced(end, "", 2.0)
        except (OSError, RuntimeError):
            return False
        finally:
            end.close()

    until(synced, 30, "a proven state from the new gateway")
    return time.perf_counter() - began


def main() -> None:
    figures.heading(f"restart: kill -9 → synced, {WORKTREES} worktrees, whole deployment")
    parent = Path(tempfile.mkdtemp(prefix="tw-repo-"))
    try:
        repository = worktrees(parent, WORKTREES, 10)
        with home() as settings, deployment(settings, repository, TREEWIRE_GATEWAY__HEARTBEAT_MS="100") as url:
            token = settings.token_path.read_text().strip()
            until(
                lambda: len(_snapshot(url, token, "project")["workspaces"]) > WORKTREES,  # type: ignore[arg-type]
                60,
                "all worktrees",
            )
            for name, measure in (("aggregator", _synced_after), ("gateway-0", _gateway_back_after)):
                took = []
                for _ in range(KILLS):
                    pid = next(beat.pid for beat in read_beats(settings.run_dir) if beat.name == name)
                    took.append(measure(url, token, "project", pid))
                    time.sleep(2.0)  # supervisord counts a process as started after a second
                figures.line(f"{name}: kill -9 → client synced", took, "s", "≤ 5")
        figures.line("start of a Python process with the same imports (floor)", figures.rounds(_start), "s")
    finally:
        shutil.rmtree(parent, ignore_errors=True)
