"""Agents as processes: that one runs in a worktree, and that it ended. The lowest rung, for agents of which no more is
to be seen. And what else of a worktree listens on a port.

A listing of pids is cheap; only those never seen before are looked at. A process says nothing of what its agent does:
CPU time is spent while it waits as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Sequence, Set
from typing import ClassVar, Final

import psutil

from pipeline.catalog import CatalogUnavailable
from pipeline.domain.model import Session, Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.tick import tick
from pipeline.sources.deaths import started
from pipeline.sources.desk import Agent, Desk, Source
from pipeline.sources.ladder import Rung, Sighting
from pipeline.sources.ports import PRODUCER, Ports, Runs

SWEEP_S: Final = 2.0
PORTS_S: Final = 6.0  # the kernel walks all of its connections for the list
PREFIX: Final = "process-"
AGENTS: Final = frozenset({"claude", "codex", "gemini", "opencode", "aider", "goose", "amp", "cursor-agent", "crush"})
RUNTIMES: Final = frozenset({"node", "bun", "deno", "python", "python3", "uv", "npx"})
OWN_SESSIONS: Final = frozenset({"claude", "codex"})  # they are seen by what they write, and better


def provider(name: str, command: Sequence[str]) -> str | None:
    """Which agent a process is, by its name or the program that it runs; ``None`` for anything else."""
    if name in AGENTS:
        return name
    words = [os.path.basename(word) for word in command[:3] if word and not word.startswith("-")]
    if not words:
        return None
    if words[0] in AGENTS:
        return words[0]
    if words[0].rstrip("0123456789.") in RUNTIMES or words[0] in RUNTIMES:
        found = words[1].removesuffix(".js").removesuffix(".py").removesuffix(".mjs") if len(words) > 1 else ""
        return found if found in AGENTS else None
    return None


class Table:
    """The processes of this user that are agents. A pid that was looked at once is not looked at again."""

    def __init__(self) -> None:
        self.agents: dict[int, Agent] = {}
        self._others: set[int] = set()

    def unknown(self, pids: Set[int]) -> bool:
        """Whether one of these was never looked at."""
        return not pids <= self._others | self.agents.keys()

    def sweep(self, pids: Set[int]) -> None:
        """These are all that there are. Blocks for as long as those take that were never seen."""
        self._others &= pids
        for pid in self.agents.keys() - pids:
            del self.agents[pid]
        for pid in [pid for pid, agent in self.agents.items() if started(pid) != agent.started]:
            del self.agents[pid]
        for pid in pids - self._others - self.agents.keys():
            agent = _look(pid)
            if agent is None:
                self._others.add(pid)
            elif agent.cwd:
                self.agents[pid] = agent


def _look(pid: int) -> Agent | None:
    """An agent without a folder could not be asked for it now, and is looked at again."""
    start = started(pid)
    try:
        process = psutil.Process(pid)
        if start is None or process.uids().effective != os.getuid():
            return None
        found = provider(process.name(), process.cmdline())
        return None if found is None else Agent(pid, start, found, process.cwd())
    except psutil.AccessDenied:
        return None
    except psutil.Error:
        return None
    except OSError:
        return None


class Processes(Source):
    name: ClassVar[str] = "processes"
    cadence_s: ClassVar[float | None] = SWEEP_S

    def __init__(self) -> None:
        super().__init__()
        self.table, self.ports = Table(), Ports()
        self._runs: Runs | None = None
        self._ports_at = 0.0
        self._told: set[str] = set()

    async def run(self, desk: Desk) -> None:
        while True:
            began = now_ns()
            pids = set(psutil.pids())
            if self.table.unknown(pids):
                await asyncio.to_thread(self.table.sweep, pids)
            else:
                self.table.sweep(pids)
            desk.take_agents(dict(self.table.agents))
            self._tell(desk, Stamp(began, now_ns(), CLOCK))
            if time.monotonic() >= self._ports_at:
                self._ports_at = time.monotonic() + PORTS_S
                await self._tell_ports(desk)
            self.looked()
            self.fares("running")
            await tick(SWEEP_S)

    async def _tell_ports(self, desk: Desk) -> None:
        began, at_ms = now_ns(), wall_ms()
        served: dict[str, int] = {}
        for one in await asyncio.to_thread(self.ports.sweep, self.table.agents.keys()):
            if (place := desk.place_of(one.cwd)) is not None:
                served[place.workspace] = min(one.port, served.get(place.workspace, one.port))
        stamp = Stamp(began, now_ns(), CLOCK)
        with contextlib.suppress(CatalogUnavailable):  # said again with the next sweep
            if self._runs is None:
                self._runs = Runs(await asyncio.to_thread(desk.catalog.reported, PRODUCER, "run"))
            if events := self._runs.events(served, desk.places(), stamp, at_ms):
                self._runs.took(await desk.record(events))

    def _tell(self, desk: Desk, stamp: Stamp) -> None:
        hooked = desk.hooked()
        here = [
            agent
            for agent in self.table.agents.values()
            if agent.provider not in OWN_SESSIONS
            and (place := desk.place_of(agent.cwd)) is not None
            and (place.workspace, agent.provider) not in hooked
        ]
        sightings = [
            Sighting(
                session=f"{PREFIX}{agent.pid}",
                cwd=agent.cwd,
                rung=Rung.EXISTS,
                fields=Session(provider=agent.provider, state="unknown"),
                stamp=stamp,
                at_ms=wall_ms(),
                pid=agent.pid,
                started=agent.started,
            )
            for agent in here
        ]
        # Many agents start themselves once more: the inner one of a pair is the same session.
        pids = {agent.pid for agent in here}
        sightings = [one for one in sightings if _parent(one.pid or 0) not in pids]
        now = {one.session for one in sightings}
        desk.saw(self.name, sightings)
        for gone in self._told - now:
            desk.lost(self.name, gone)
        self._told = now


def _parent(pid: int) -> int | None:
    try:
        return psutil.Process(pid).ppid()
    except psutil.Error:
        return None
