"""What it takes to follow agents that were told nothing: whole deployment, real worktrees, scripted sessions.

Each session is a real process, with a registry entry and a transcript as Claude Code writes them. Transcripts are
20 MB each: a tail of real lines behind a hole in the file, of which a reader of everything would read all. Beside it:
what one reading of all of these transcripts costs. The same changes are told by hooks as well, as Claude Code sends
them by itself and by the installed command.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks import figures, sockets
from benchmarks.deployment import deployment, get, home, members, until, worktrees
from pipeline.bridges.claude import slug
from pipeline.cli import herald
from pipeline.runtime.beat import read_beats
from pipeline.runtime.clock import now_ns
from pipeline.runtime.settings import Settings
from pipeline.sources.deaths import started

WORKTREES = int(os.environ.get("SOURCES_WORKTREES", "300"))
SESSIONS = int(os.environ.get("SOURCES_SESSIONS", "100"))
TRANSCRIPT = 20_000_000
WINDOW_S = 10.0
WINDOWS = 3
CHANGES = 200
COMMANDS = 60
DEATHS = 10
FEW = 10
PROJECT = "project"


class Agent:
    def __init__(self, config: Path, program: Path, tree: Path, n: int) -> None:
        self.session, self.tree, self.n = f"{n:08d}-0000-4000-8000-000000000000", tree, n
        self.process = subprocess.Popen([str(program), "100000"], cwd=tree)
        self.entry = config / "sessions" / f"{self.process.pid}.json"
        self.transcript = config / "projects" / slug(os.path.realpath(tree)) / f"{self.session}.jsonl"
        self.transcript.parent.mkdir(parents=True, exist_ok=True)
        with self.transcript.open("wb") as file:
            file.seek(TRANSCRIPT - 500_000)
            file.write(b"\n")
            while file.tell() < TRANSCRIPT:
                file.write(self.line("tool_use", 2_000))
        self.status("idle")

    def line(self, stop: str, padding: int = 100) -> bytes:
        content = [{"type": "text", "text": "x" * padding}]
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        message = {"role": "assistant", "model": "claude-opus-4-1", "stop_reason": stop, "content": content}
        line = {"type": "assistant", "sessionId": self.session, "cwd": str(self.tree), "timestamp": at}
        return json.dumps({**line, "message": message}).encode() + b"\n"

    def write(self, stop: str) -> None:
        with self.transcript.open("ab") as file:
            file.write(self.line(stop))

    def status(self, status: str, waiting_for: str | None = None) -> None:
        told = {
            "pid": self.process.pid,
            "procStart": str(started(self.process.pid)),
            "sessionId": self.session,
            "cwd": str(self.tree),
            "status": status,
            "waitingFor": waiting_for,
            "statusUpdatedAt": int(time.time() * 1000),
        }
        fresh = self.entry.with_suffix(".tmp")
        fresh.write_text(json.dumps(told))
        fresh.replace(self.entry)


@contextmanager
def agents(config: Path, parent: Path) -> Iterator[list[Agent]]:
    program = config / "bin" / "claude"
    for folder in (program.parent, config / "sessions"):
        folder.mkdir(parents=True)
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    trees = sorted(parent.glob("task-*"), key=lambda path: int(path.name[5:]))
    with ExitStack() as ends:
        made = []
        for n in range(SESSIONS):
            agent = Agent(config, program, trees[n % len(trees)], n)
            ends.callback(_end, agent.process)
            made.append(agent)
        yield made


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _sessions(url: str, token: str) -> dict[str, Any]:
    told = json.loads(get(f"{url}v1/projects/{PROJECT}/snapshot", token))
    entries = told.get("workspaces", told.get("entries", {}))
    return {name: one for entry in entries.values() for name, one in (entry.get("sessions") or {}).items()}


def _known(url: str, token: str, state: str) -> int:
    return sum(one.get("state") == state for one in _sessions(url, token).values())


class Recorded:
    """When the catalog had every session first. A client can ask only once `up` has returned, which is later."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._done = path, 0, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._at:
            time.sleep(0.02)
            with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(self._uri, uri=True)) as one:
                if one.execute("SELECT count(*) FROM session WHERE state = 'idle'").fetchone() == (SESSIONS,):
                    self._at = now_ns()
        self._done.set()

    @property
    def _uri(self) -> str:
        return f"{self._path.as_uri()}?mode=ro"

    def at_ns(self) -> int:
        self._done.wait(60)
        return self._at


def _sources(settings: Settings) -> psutil.Process:
    return next(
        one for one in members(settings) if one.cmdline()[-2:] == ["run", "sources"] or "sources" in one.cmdline()
    )


def _quiet(settings: Settings) -> None:
    process, shares, sizes = _sources(settings), [], []
    for _ in range(WINDOWS):
        before, began = sum(process.cpu_times()[:2]), time.perf_counter()
        time.sleep(WINDOW_S)
        shares.append(100 * (sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - began))
        sizes.append(process.memory_info().rss / 1e6)
    figures.line("sources when quiet, CPU", shares, "% of core", "< 3")
    figures.line("sources when quiet, resident", sizes, "MB")


class Client:
    """When each state of each session was in a frame last."""

    def __init__(self, url: str, token: str) -> None:
        self._end = sockets.connect(url, token, PROJECT)
        self._arrived: dict[tuple[str, str], int] = {}
        self._due = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(RuntimeError):  # the deployment ends before this does
            for frame in sockets.frames(self._end, 600):
                if frame["type"] != "delta":
                    continue
                with self._due:
                    for entry in frame["patch"].values():
                        for name, one in ((entry or {}).get("sessions") or {}).items():
                            if one and "state" in one:
                                self._arrived[name, one["state"]] = now_ns()
                    self._due.notify_all()

    def took(self, agent: Agent, state: str, does: Callable[[], object]) -> float:
        """From what is done to this state at the client, ms."""
        key = (f"claude-{agent.session}", state)
        self._arrived.pop(key, None)
        began = now_ns()
        does()
        with self._due:
            self._due.wait_for(lambda: key in self._arrived, 20)
        if key not in self._arrived:
            raise TimeoutError(f"{key}: not within 20 s")
        return (self._arrived[key] - began) / 1e6


def _told(what: str, taken: list[float], goal: str) -> None:
    figures.line(f"{what}: p50", [figures.percentile(taken, 0.5)], "ms")
    figures.line("  p99", [figures.percentile(taken, 0.99)], "ms")
    figures.line("  slowest", [max(taken)], "ms", goal)


def _latencies(settings: Settings, url: str, token: str, made: list[Agent]) -> None:
    client = Client(url, token)
    time.sleep(1)

    def alternating(count: int, tells: Callable[[Agent, str], object]) -> list[float]:
        """Every agent is idle before and after."""
        taken = []
        for _ in range(count // 2):
            agent = random.choice(made)
            for state in ("working", "idle"):
                taken.append(client.took(agent, state, lambda a=agent, s=state: tells(a, s)))  # type: ignore[misc]
                time.sleep(0.05)
        return taken

    def by_file(agent: Agent, state: str) -> None:
        agent.status({"working": "busy", "idle": "idle"}[state])

    def hook(agent: Agent, state: str) -> bytes:
        event = {"working": "UserPromptSubmit", "idle": "Stop"}[state]
        return json.dumps({"session_id": agent.session, "cwd": str(agent.tree), "hook_event_name": event}).encode()

    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    at = urlsplit(url)
    kept = http.client.HTTPConnection(at.hostname or "", at.port)

    def by_http(agent: Agent, state: str) -> None:
        kept.request("POST", "/v1/events/claude", hook(agent, state), headers)
        kept.getresponse().read()

    def by_command(agent: Agent, state: str) -> None:
        command = [sys.executable, "-I", "-S", herald.__file__, "claude", str(settings.home)]
        subprocess.run(command, input=hook(agent, state), check=True)

    _told("a new state, registry entry → client, no hook", alternating(CHANGES, by_file), "≤ 1,000")
    _told("a new state, hook over HTTP → client", alternating(CHANGES, by_http), "≤ 100")
    _told("a new state, hook by its command → client", alternating(COMMANDS, by_command), "≤ 100")
    kept.close()
    deaths: list[float] = []
    for agent in made[:DEATHS]:
        agent.status("waiting", "permission prompt")
    time.sleep(2)
    for agent in made[:DEATHS]:
        deaths.append(client.took(agent, "exited", agent.process.kill))
    figures.line("SIGKILL while it waits for a permission → exited, slowest", [max(deaths)], "ms", "≤ 5,000")


def _load(settings: Settings, made: list[Agent]) -> None:
    process, shares = _sources(settings), []
    size = process.memory_info().rss
    for _ in range(WINDOWS):
        before, began = sum(process.cpu_times()[:2]), time.perf_counter()
        while time.perf_counter() < began + WINDOW_S:
            for agent in made:
                agent.write(random.choice(["tool_use", "end_turn"]))
            time.sleep(1)
        shares.append(100 * (sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - began))
    figures.line(f"sources, each of {len(made)} sessions writing a line a second, CPU", shares, "% of core")
    figures.line("  memory gained by that", [(process.memory_info().rss - size) / 1e6], "MB", "flat")


def _floor(made: list[Agent]) -> None:
    began = time.process_time()
    for agent in made:
        with agent.transcript.open("rb") as file:
            while file.read(1 << 20):
                pass
    figures.line("reading all transcripts once, without any parsing", [time.process_time() - began], "s CPU")


def main() -> None:
    size = SESSIONS * TRANSCRIPT / 1e9
    figures.heading(f"sources: {WORKTREES} worktrees, {SESSIONS} live sessions, {size:.3g} GB of transcripts")
    with tempfile.TemporaryDirectory(prefix="tw-repo-") as folder, home() as settings:
        parent = Path(folder)
        config = parent / "claude"
        repository = worktrees(parent, WORKTREES, 3)
        recorded = Recorded(settings.home / "treewire.db")
        with (
            agents(config, parent) as made,
            deployment(settings, repository, CLAUDE_CONFIG_DIR=str(config), CODEX_HOME=str(parent / "codex")) as url,
        ):
            token = settings.token_path.read_text().strip()
            until(lambda: _known(url, token, "idle") == SESSIONS, 60, "every session on the board")
            told = now_ns()
            beat = next(one for one in read_beats(settings.run_dir) if one.name == "sources")
            taken = (recorded.at_ns() - beat.started_ns) / 1e9
            figures.line("start of sources → every session in the catalog", [taken], "s", "< 5")
            figures.line("  → at a client, once `up` has returned", [(told - beat.started_ns) / 1e9], "s")
            time.sleep(10)
            _quiet(settings)
            _latencies(settings, url, token, made)
            _load(settings, made[DEATHS : DEATHS + FEW])
            _load(settings, made[DEATHS:])
            _floor(made)


if __name__ == "__main__":
    main()
