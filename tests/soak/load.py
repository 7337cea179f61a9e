"""What goes on during a soak: everything that a deployment sees in days, all the time.

Workspaces of an orchestrator come by events and are archived; worktrees are made, edited, committed to and removed;
agents start, work, wait and die; projects are followed and left; clients come, resume, lag and go; a tap listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp

from pipeline import bus
from pipeline.runtime.settings import Settings
from tests.agents import Claude
from tests.gitkit import IDENTITY

EVENT_S: Final = 0.25
LIVE: Final = 40
SESSIONS: Final = 3
WORKTREES: Final = 8
AGENTS: Final = 3
CLIENTS: Final = 10
STATES: Final = ("starting", "working", "waiting", "idle", "error", "exited")
PROJECT: Final = "project"


class Load:
    """Runs until it is cancelled. `done` counts what was done, `trouble` what went wrong and should not have."""

    def __init__(self, settings: Settings, url: str, folder: Path, agents: Path, seed: int) -> None:
        self.settings, self.url, self.folder, self.agents = settings, url, folder, agents
        self.repository = folder / PROJECT
        self.draw = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.trouble: Counter[str] = Counter()
        self.trees: list[Path] = []
        self._names = itertools.count()
        self._cursors: list[dict[str, Any]] = []
        self._bearer = {"Authorization": f"Bearer {settings.token_path.read_text().strip()}"}

    async def run(self) -> None:
        async with aiohttp.ClientSession(headers=self._bearer) as self.http:
            parts = [self.events(), self.worktrees(), self.edits(), self.projects(), self.taps()]
            parts += [self.agent() for _ in range(AGENTS)]
            parts += [self.client(number) for number in range(CLIENTS)]
            tasks = [asyncio.create_task(part) for part in parts]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def again(self, what: str, step: Callable[[], Awaitable[None]], pause: float) -> None:
        """For ever. What fails is counted, and tried again: the load must not end before the deployment does."""
        while True:
            try:
                await step()
                self.done[what] += 1
            except (aiohttp.ClientError, OSError, RuntimeError, TimeoutError) as error:
                self.trouble[f"{what}: {type(error).__name__} {error}"[:120]] += 1
                await asyncio.sleep(1)
            await asyncio.sleep(pause * self.draw.uniform(0.5, 1.5))

    # ── an orchestrator ──────────────────────────────────────────────────────────────────────────

    async def events(self) -> None:
        live: list[str] = []

        async def step() -> None:
            born = f"task-{next(self._names)}"
            live.append(born)
            batch = [self._event(born, "life", name=f"{born} by an orchestrator", phase="ready", branch=born)]
            batch += [self._event(born, f"session:{born}-{n}", provider="codex", state="idle") for n in range(SESSIONS)]
            for name in self.draw.sample(live, min(4, len(live))):
                session = f"session:{name}-{self.draw.randrange(SESSIONS)}"
                batch.append(self._event(name, session, state=self.draw.choice(STATES)))
                number = self.draw.randrange(1, 1000)
                batch.append(self._event(name, "pr", number=number, state="open", head=f"{number:040x}"))
                batch.append(self._event(name, "ci", state=self.draw.choice(("pending", "success", "failure"))))
                batch.append(self._event(name, "terminal", active=self.draw.random() < 0.5))
            while len(live) > LIVE:
                batch.append(self._event(live.pop(self.draw.randrange(len(live))), "life", phase="archived"))
            async with self.http.post(self.url + "v1/events", json=batch) as answer:
                if answer.status not in (202, 503):
                    raise RuntimeError(f"events were answered with {answer.status}: {await answer.text()}")
            self.done["events"] += len(batch)
            self.done["workspaces archived"] += sum(one["fields"].get("phase") == "archived" for one in batch)

        await self.again("workspaces born", step, EVENT_S)

    def _event(self, workspace: str, group: str, **fields: Any) -> dict[str, Any]:
        return {"project": PROJECT, "workspace": workspace, "group": group, "fields": fields, "source": "soak"}

    # ── people and agents ────────────────────────────────────────────────────────────────────────

    async def worktrees(self) -> None:
        async def step() -> None:
            name = f"tree-{next(self._names)}"
            tree = self.folder / name
            await self._git(self.repository, "worktree", "add", "-q", "-b", name, str(tree))
            self.trees.append(tree)
            while len(self.trees) > WORKTREES:
                old = self.trees.pop(0)
                await self._git(self.repository, "worktree", "remove", "--force", str(old))
                await self._git(self.repository, "branch", "-qD", old.name)
                self.done["worktrees removed"] += 1

        await self.again("worktrees made", step, 3.0)

    async def edits(self) -> None:
        async def step() -> None:
            if not self.trees:
                return
            tree = self.draw.choice(self.trees)
            file = tree / f"dir{self.draw.randrange(5)}" / f"new{self.draw.randrange(30)}.txt"
            with contextlib.suppress(FileNotFoundError):  # the worktree goes at this moment
                file.parent.mkdir(exist_ok=True)
                with file.open("a") as out:
                    out.write(f"line {self.draw.random()}\n")
            if self.draw.random() < 0.1:
                with contextlib.suppress(RuntimeError, FileNotFoundError):
                    await self._git(tree, "add", "-A")
                    await self._git(tree, "commit", "-qm", "work")
                    self.done["commits"] += 1

        await self.again("edits", step, 0.3)

    async def agent(self) -> None:
        async def step() -> None:
            if not self.trees:
                return
            agent = await asyncio.to_thread(self._start)
            try:
                for _ in range(self.draw.randrange(2, 12)):
                    word, waits = self.draw.choice((("busy", ""), ("idle", ""), ("waiting", "permission prompt")))
                    agent.status(word, waits)
                    agent.hear()
                    agent.say("end_turn" if word == "idle" else "tool_use", "" if word == "idle" else "Bash")
                    await asyncio.sleep(self.draw.uniform(0.3, 1.5))
            finally:
                end = agent.leave if self.draw.random() < 0.7 else agent.kill
                end()
                agent.entry.unlink(missing_ok=True)
                agent.transcript.unlink(missing_ok=True)

        await self.again("agents", step, 0.5)

    def _start(self) -> Claude:
        return Claude(self.agents, self.draw.choice(self.trees), f"soak-{next(self._names)}")

    async def projects(self) -> None:
        """A second repository is followed and left, by the commands."""

        async def step() -> None:
            repository = self.folder / f"second-{next(self._names) % 3}"
            await self._git(self.folder, "clone", "-q", str(self.repository), str(repository))
            try:
                await self._command("project", "add", str(repository))
                await asyncio.sleep(self.draw.uniform(5, 10))
                await self._command("project", "remove", str(repository), "--yes")
            finally:
                await asyncio.to_thread(shutil.rmtree, repository, True)

        await self.again("projects followed", step, 10.0)

    # ── whoever looks on ─────────────────────────────────────────────────────────────────────────

    async def client(self, number: int) -> None:
        async def step() -> None:
            await asyncio.wait_for(
                (self._stream, self._stream, self._stream, self._listen, self._ask)[number % 5](), 60
            )

        await self.again("clients", step, 0.5)

    async def _stream(self) -> None:
        """A socket; it may have a cursor, may stop reading, and leaves with or without goodbye."""
        resumes = bool(self._cursors) and self.draw.random() < 0.6
        cursor = self.draw.choice(self._cursors) if resumes else {}
        lazy = self.draw.random() < 0.1
        loop = asyncio.get_running_loop()
        over = loop.time() + self.draw.uniform(1, 15)
        async with self.http.ws_connect(self.url + "v1/stream", protocols=["treewire.v1"]) as socket:
            await socket.send_json({"type": "hello"})
            await socket.send_json({"type": "subscribe", "id": 1, "project": PROJECT, **cursor})
            if lazy:
                await asyncio.sleep(over - loop.time())
                return
            held: dict[str, Any] = {}
            while loop.time() < over:
                with contextlib.suppress(TimeoutError):
                    message = await socket.receive(timeout=2)
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        raise RuntimeError(f"closed with {socket.close_code}")
                    held = await self._take(socket, json.loads(message.data), held)
            if held:
                self._cursors = [*self._cursors[-20:], held]
        self.done["resumed"] += resumes

    async def _take(
        self, socket: aiohttp.ClientWebSocketResponse, frame: dict[str, Any], held: dict[str, Any]
    ) -> dict[str, Any]:
        self.done[f"{frame['type']} frames"] += 1
        if frame["type"] == "heartbeat":
            await socket.send_json({"type": "ack", "n": frame["n"], "subscriptions": {}})
        elif frame["type"] in ("snapshot", "delta"):
            return {"epoch": frame["epoch"], "version": frame.get("version", frame.get("to"))}
        elif frame["type"] in ("error", "end"):
            raise RuntimeError(f"was told {frame}")
        return held

    async def _listen(self) -> None:
        """An event stream."""
        timeout = aiohttp.ClientTimeout(total=self.draw.uniform(2, 12))
        with contextlib.suppress(TimeoutError):
            async with self.http.get(f"{self.url}v1/projects/{PROJECT}/events", timeout=timeout) as answer:
                async for _ in answer.content:
                    pass

    async def _ask(self) -> None:
        """Somebody polls, and asks why."""
        async with self.http.get(f"{self.url}v1/projects/{PROJECT}/snapshot") as answer:
            state = await answer.json()
        names = list(state.get("workspaces", ()))
        if names:
            one = self.draw.choice(names)
            async with self.http.get(f"{self.url}v1/projects/{PROJECT}/workspaces/{one}/explain") as answer:
                await answer.read()

    async def taps(self) -> None:
        async def step() -> None:
            ends = bus.tap(self.settings.run_dir, lambda told: self.done.update({"told to a tap": len(told)}))
            try:
                await asyncio.sleep(self.draw.uniform(3, 8))
            finally:
                for end in ends:
                    end.close()

        await self.again("taps", step, 12.0)

    # ── programs ─────────────────────────────────────────────────────────────────────────────────

    async def _git(self, where: Path, *args: str) -> None:
        await self._run(["git", "-c", "gc.auto=0", *args], where, dict(IDENTITY))

    async def _command(self, *args: str) -> None:
        command = [sys.executable, "-m", "pipeline.cli", *args, "--home", str(self.settings.home)]
        await self._run(command, self.folder, dict(os.environ))

    async def _run(self, command: list[str], where: Path, environment: dict[str, str]) -> None:
        child = await asyncio.create_subprocess_exec(
            *command,
            cwd=where,
            env=environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, said = await child.communicate()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
            raise
        if child.returncode:
            raise RuntimeError(f"{' '.join(command[-4:])}: {said.decode(errors='replace').strip()[-200:]}")
