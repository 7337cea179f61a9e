"""What it takes to follow agents that were told nothing: whole deployment, real worktrees, scripted sessions.

Each session is a real process, with a registry entry and a transcript as Claude Code writes them. Transcripts are
20 MB each: a tail of real lines behind a hole in the file, of which a reader of everything would read all. Beside it:
what one reading of all of these transcripts costs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks import figures, sockets
from benchmarks.deployment import deployment, get, home, members, until, worktrees
from pipeline.bridges.claude import slug
from pipeline.runtime.beat import read_beats
from pipeline.runtime.clock import now_ns
from pipeline.runtime.settings import Settings
from pipeline.sources.deaths import started

WORKTREES = int(os.environ.get("SOURCES_WORKTREES", "300"))
SESSIONS = int(os.environ.get("SOURCES_SESSIONS", "100"))
TRANSCRIPT = 20_000_000
WINDOW_S = 10.0
WINDOWS = 3
CHANGES = 60
DEATHS = 10
LOAD_S = 30.0
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


def _latencies(url: str, token: str, made: list[Agent]) -> None:
    """From the rename of a registry entry to its state in a frame at a client."""
    taken: list[float] = []
    end = sockets.connect(url, token, PROJECT)
    arrived: dict[tuple[str, str], int] = {}
    due = threading.Condition()

    def listen() -> None:
        with contextlib.suppress(RuntimeError):  # the deployment ends before this does
            for frame in sockets.frames(end, 600):
                if frame["type"] != "delta":
                    continue
                with due:
                    for entry in frame["patch"].values():
                        for name, one in ((entry or {}).get("sessions") or {}).items():
                            if one and "state" in one:
                                arrived[name, one["state"]] = now_ns()
                    due.notify_all()

    threading.Thread(target=listen, daemon=True).start()
    time.sleep(1)
    states = {made_.n: "idle" for made_ in made}
    for _ in range(CHANGES):
        agent = random.choice(made)
        word, state = ("busy", "working") if states[agent.n] == "idle" else ("idle", "idle")
        states[agent.n] = state
        key = (f"claude-{agent.session}", state)
        arrived.pop(key, None)
        began = now_ns()
        agent.status(word)
        with due:
            due.wait_for(lambda key=key: key in arrived, 20)  # type: ignore[misc]
        if key not in arrived:
            raise TimeoutError(f"{key}: not within 20 s")
        taken.append((arrived[key] - began) / 1e6)
        time.sleep(0.1)
    figures.line("a new state, file → client, no hook: p50", [figures.percentile(taken, 0.5)], "ms")
    figures.line("the same: slowest of all", [max(taken)], "ms", "≤ 1,000")
    deaths: list[float] = []
    for agent in made[:DEATHS]:
        agent.status("waiting", "permission prompt")
    time.sleep(2)
    for agent in made[:DEATHS]:
        key = (f"claude-{agent.session}", "exited")
        began = now_ns()
        agent.process.kill()
        agent.process.wait()
        with due:
            due.wait_for(lambda key=key: key in arrived, 20)  # type: ignore[misc]
        deaths.append((arrived.get(key, began + 20_000_000_000) - began) / 1e6)
    figures.line("SIGKILL while it waits for a permission → exited, slowest", [max(deaths)], "ms", "≤ 5,000")


def _load(settings: Settings, made: list[Agent]) -> None:
    process = _sources(settings)
    before, began, size = sum(process.cpu_times()[:2]), time.perf_counter(), process.memory_info().rss
    while time.perf_counter() < began + LOAD_S:
        for agent in made:
            agent.write(random.choice(["tool_use", "end_turn"]))
        time.sleep(1)
    share = 100 * (sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - began)
    figures.line(f"sources, each of {len(made)} sessions writing a line a second, CPU", [share], "% of core")
    figures.line("sources, memory gained by that", [(process.memory_info().rss - size) / 1e6], "MB", "flat")


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
        with (
            agents(config, parent) as made,
            deployment(settings, repository, CLAUDE_CONFIG_DIR=str(config), CODEX_HOME=str(parent / "codex")) as url,
        ):
            token = settings.token_path.read_text().strip()
            until(lambda: _known(url, token, "idle") == SESSIONS, 60, "every session on the board")
            told = now_ns()
            beat = next(one for one in read_beats(settings.run_dir) if one.name == "sources")
            figures.line("start of sources → every session known", [(told - beat.started_ns) / 1e9], "s", "< 5")
            time.sleep(10)
            _quiet(settings)
            _latencies(url, token, made)
            _load(settings, made[DEATHS:])
            _floor(made)


if __name__ == "__main__":
    main()
