"""Agents played by a script: real processes in real worktrees, that write what Claude Code and Codex write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.bridges.claude import slug
from pipeline.sources.deaths import started

SCRIPT = "import sys; sys.stdin.read()"


def _ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Agent:
    """A process of the agent's name in `worktree`, until `leave` or `kill`."""

    provider = ""
    ago_s = 0.0  # how long ago it writes what it writes

    def __init__(self, home: Path, worktree: Path, session: str) -> None:
        self.home, self.worktree, self.session = home, worktree, session
        program = home / "bin" / self.provider
        program.parent.mkdir(parents=True, exist_ok=True)
        if not program.exists():  # others may be reading it as they start
            program.write_text(SCRIPT)
        self.process = subprocess.Popen([sys.executable, str(program)], cwd=worktree, stdin=subprocess.PIPE)

    def kill(self) -> None:
        self.process.kill()
        self._reap()

    def leave(self) -> None:
        self.process.kill()
        self._reap()

    def _reap(self) -> None:
        self.process.wait(10)
        if self.process.stdin is not None:
            self.process.stdin.close()

    def _append(self, path: Path, line: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


class Claude(Agent):
    """`registry`: whether it is of a release that registers its sessions."""

    provider = "claude"

    def __init__(self, home: Path, worktree: Path, session: str, *, registry: bool = True) -> None:
        super().__init__(home, worktree, session)
        self.entry = home / "sessions" / f"{self.process.pid}.json"
        self.transcript = home / "projects" / slug(os.path.realpath(worktree)) / f"{session}.jsonl"
        self.registry = registry
        if registry:
            self.status("idle")

    def status(self, status: str, waiting_for: str = "") -> None:
        assert self.process.poll() is None, "it is not alive"
        entry = {
            "pid": self.process.pid,
            "procStart": str(started(self.process.pid)),
            "sessionId": self.session,
            "cwd": str(self.worktree),
            "status": status,
            "kind": "interactive",
            "statusUpdatedAt": int(time.time() * 1000),
        }
        if waiting_for:
            entry["waitingFor"] = waiting_for
        self.entry.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.entry.with_suffix(".tmp")
        fresh.write_text(json.dumps(entry))
        fresh.replace(self.entry)

    def say(self, stop: str | None, tool: str = "") -> None:
        content = [{"type": "tool_use", "name": tool, "input": {}}] if tool else [{"type": "text", "text": "CANARY"}]
        message = {"role": "assistant", "model": "claude-opus-4-1", "stop_reason": stop, "content": content}
        self._line("assistant", message)

    def hear(self) -> None:
        self._line("user", {"role": "user", "content": "CANARY"})

    def _line(self, type_: str, message: dict[str, Any]) -> None:
        line = {"type": type_, "sessionId": self.session, "cwd": str(self.worktree), "isSidechain": False}
        self._append(self.transcript, {**line, "timestamp": _ago(self.ago_s), "message": message})

    def leave(self) -> None:
        self.entry.unlink(missing_ok=True)
        super().leave()


class Codex(Agent):
    provider = "codex"

    def __init__(self, home: Path, worktree: Path, session: str) -> None:
        super().__init__(home, worktree, session)
        day = datetime.now(UTC).strftime("%Y/%m/%d")
        self.rollout = home / "sessions" / day / f"rollout-{session}.jsonl"
        self._write("session_meta", {"id": session, "cwd": str(worktree), "cli_version": "0.50.0"})
        self._write("turn_context", {"cwd": str(worktree), "model": "gpt-5-codex"})

    def event(self, name: str) -> None:
        self._write("event_msg", {"type": name})

    def _write(self, type_: str, payload: dict[str, Any]) -> None:
        self._append(self.rollout, {"timestamp": _ago(self.ago_s), "type": type_, "payload": payload})
