"""A crowd of clients in a process of its own: `python -m tests.faults.screens FILE`, told what to do line by line.

Each is the product's own copy over a raw socket. Whatever one is shown is checked here for what one screen can know
(nobody goes back, no counter shrinks, nothing of others); what it holds goes to the judge as a claim, once per version.
Clients are less patient than real ones, so that recovery is not measured as their jitter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any, Final

import aiohttp

from gateway.copy import Copy
from tests.faults.validate import counters
from tests.validators import Published, Violation, Watcher

SILENT_S: Final = 5.0
JITTER_S: Final = (0.05, 0.8)
STAY_S: Final = (4.0, 60.0)
FRESH: Final = 0.3  # how many of those who come back remember nothing


class Crowd:
    def __init__(self, told: dict[str, Any]) -> None:
        self.urls: list[str] = told["urls"]
        self.draw = random.Random(told["seed"])
        self.out = Path(told["history"]).open("a", buffering=1 << 16)  # noqa: SIM115 - for as long as the process lives
        self.published = Published()
        self.payloads: set[tuple[str, str, int, int]] = set()
        self.holding = False
        self.frames = self.connections = self.resumed = 0
        self.screens = [Screen(self, *one) for one in told["clients"]]

    async def run(self) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as self.http:
            tasks = [asyncio.create_task(screen.run()) for screen in self.screens]
            orders = asyncio.StreamReader()
            await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
            while line := await orders.readline():
                self.obey(json.loads(line))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.out.close()

    def obey(self, order: dict[str, Any]) -> None:
        some = self.draw.sample(self.screens, min(order.get("count", 0), len(self.screens)))
        match order["do"]:
            case "hold" | "go":
                self.holding = order["do"] == "hold"
            case "stall":
                for screen in some:
                    screen.stalls_until = time.monotonic() + order["seconds"]
            case "cut":
                for screen in some:
                    screen.cut()
            case "rude":
                for screen in some:
                    screen.rude = True
                    screen.cut()
            case "where":
                self.say(where=[screen.stands() for screen in self.screens], counts=self.counts())

    def counts(self) -> dict[str, int]:
        return {"frames": self.frames, "connections": self.connections, "resumed": self.resumed}

    def say(self, **told: Any) -> None:
        sys.stdout.write(json.dumps(told, separators=(",", ":")) + "\n")
        sys.stdout.flush()

    def note(self, line: list[Any]) -> None:
        self.out.write(json.dumps([round(time.monotonic(), 4), *line], separators=(",", ":")) + "\n")


class Screen:
    """One client: connects, follows, leaves, comes back; for ever."""

    def __init__(self, crowd: Crowd, name: str, project: str, token: str, foreign: list[str]) -> None:
        self.crowd, self.name, self.project, self.foreign = crowd, name, project, foreign
        self.headers = {"Authorization": f"Bearer {token}"}
        self.stalls_until = self.proven_at = 0.0
        self.rude = False
        self.socket: aiohttp.ClientWebSocketResponse | None = None
        self._news = asyncio.Event()
        self._forget()

    def _forget(self) -> None:
        self.copy = Copy(self.project)
        self.watcher = Watcher(self.name, counters)

    def cut(self) -> None:
        """As when a cable is pulled: no goodbye."""
        transport = self.socket.get_extra_info("transport") if self.socket is not None else None
        if transport is not None:
            transport.abort()

    def stands(self) -> dict[str, Any]:
        copy = self.copy
        told = {"name": self.name, "project": self.project, "epoch": copy.epoch, "version": copy.version}
        return {**told, "hash": copy.hash(), "proven": copy.verified == copy.version, "state": copy.state}

    def shows(self, workspace: str, session: str, name: str) -> bool:
        sessions = ((self.copy.workspaces or {}).get(workspace) or {}).get("sessions") or {}
        return (sessions.get(session) or {}).get("name") == name

    async def news(self) -> None:
        """Wait for the next frame, but not for long."""
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), 1)

    async def run(self) -> None:
        draw = self.crowd.draw
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                await self._visit()
            self.copy.lose()
            await asyncio.sleep(draw.uniform(*JITTER_S))
            if draw.random() < FRESH and not self.crowd.holding:
                self._forget()

    async def _visit(self) -> None:
        crowd, loop = self.crowd, asyncio.get_running_loop()
        leaves = loop.time() + crowd.draw.uniform(*STAY_S)
        url = crowd.draw.choice(crowd.urls) + "v1/stream"
        timeout = aiohttp.ClientWSTimeout(ws_close=0.5)
        async with asyncio.timeout(SILENT_S):
            made = crowd.http.ws_connect(url, protocols=["treewire.v1"], headers=self.headers, timeout=timeout)
            self.socket = socket = await made
            await socket.send_json({"type": "hello"})
        crowd.connections += 1
        crowd.resumed += bool(self.copy.cursor)
        try:
            if self.rude:
                self.rude = False
                await socket.send_str(
                    crowd.draw.choice(("{", "[" * 5000, '{"type":"subscribe","id":"x"}', "\0" * 60_000))
                )
            while crowd.holding or loop.time() < leaves:
                if (stall := self.stalls_until - time.monotonic()) > 0:
                    await asyncio.sleep(stall)
                message = await socket.receive(timeout=SILENT_S)
                if message.type is not aiohttp.WSMsgType.TEXT:
                    crowd.note([self.name, "closed", socket.close_code])
                    return
                await self._take(socket, message.data)
        finally:
            self.socket = None
            if crowd.draw.random() < 0.5:
                await socket.close()
            else:
                transport = socket.get_extra_info("transport")
                if transport is not None:
                    transport.abort()

    async def _take(self, socket: aiohttp.ClientWebSocketResponse, data: str) -> None:
        crowd, copy = self.crowd, self.copy
        crowd.frames += 1
        for word in self.foreign:
            if word in data:
                crowd.say(violation=["foreign", f"{self.name} of {self.project} was sent {word}: {data[:500]}"])
        before, beat = (copy.epoch, copy.version), copy.beat
        answer = copy.take(data, time.monotonic_ns())
        if copy.beat != beat and copy.verified == copy.version >= 0:
            self.proven_at = time.monotonic()
        if (copy.epoch, copy.version) != before and copy.workspaces is not None:
            self._judge(before, answer.kind == "snapshot", answer.changed, data)
        self._news.set()
        for message in answer.says:
            await socket.send_json(message)
        if answer.later is not None:
            asyncio.get_running_loop().call_later(SILENT_S, self._later, socket, answer.later)

    def _later(self, socket: aiohttp.ClientWebSocketResponse, message: dict[str, Any]) -> None:
        self.copy.waits = False
        if not socket.closed:
            self._task = asyncio.ensure_future(socket.send_json(message))

    def _judge(self, before: tuple[str, int], snapshot: bool, changed: frozenset[str], data: str) -> None:
        crowd, copy = self.crowd, self.copy
        assert copy.workspaces is not None
        hash_ = copy.hash()
        step = (copy.epoch, copy.project, -1 if snapshot else before[1], copy.version)
        new = step not in crowd.payloads
        crowd.payloads.add(step)
        # The same bytes went to everybody at this cursor: they are kept once.
        crowd.note([self.name, *step, hash_, *([data] if new else [])])
        try:
            shown = {name: copy.workspaces[name] for name in changed if name in copy.workspaces}
            self.watcher.check(copy.epoch, copy.version, snapshot, shown)
            known = crowd.published.known(copy.epoch, copy.project, copy.version)
            crowd.published.note(copy.epoch, copy.project, copy.version, hash_)
            if not known:
                crowd.say(claim=[self.name, copy.epoch, copy.project, copy.version, hash_])
        except Violation as error:
            crowd.say(violation=["order", str(error)])


if __name__ == "__main__":
    asyncio.run(Crowd(json.loads(Path(sys.argv[1]).read_text())).run())
