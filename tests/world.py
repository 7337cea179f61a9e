"""A deployment in miniature: a real aggregator, real gateways, and a test that plays every source and client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp

from pipeline import bus, wire
from pipeline.domain.model import Census, Git, Life, Look, Stamp, Value
from pipeline.runtime.clock import CLOCK, now_ns
from pipeline.runtime.settings import Settings
from tests.journeys.client import Client

HEARTBEAT_MS = 200
CENSUS = "catalog:test"


class Child:
    """A process of the pipeline; what it said is in the failure."""

    def __init__(self, settings: Settings, name: str, index: int | None = None) -> None:
        self.settings = settings
        self.name, self._which = (name, []) if index is None else (f"{name}-{index}", ["--index", str(index)])
        self._role = name
        self.out = settings.home / f"{self.name}.out"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "pipeline.cli", "run", self._role, *self._which]
        with self.out.open("ab") as out:
            self.process = subprocess.Popen(
                [*command, "--home", str(self.settings.home)], stdout=out, stderr=out, env=environment()
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def end(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    @property
    def said(self) -> str:
        return self.out.read_text() if self.out.exists() else ""


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TREEWIRE_")}
    return {**kept, "XDG_CONFIG_HOME": "/nonexistent"}


class World:
    """An aggregator, one gateway or several, and a test that plays every source."""

    def __init__(self, settings: Settings, aggregator: Child, gateways: list[Child]) -> None:
        self.settings, self.aggregator, self.gateways = settings, aggregator, gateways

    @property
    def gateway(self) -> Child:
        return self.gateways[0]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        self.ingress = bus.Ingress(self.settings.run_dir)
        try:
            async with aiohttp.ClientSession() as self.http:
                await self.until(self.settings.url_path.exists, "the gateway's address")
                await self.until(self.is_up, "the gateway")
                yield self
        except BaseException:
            print(self.aggregator.said, *(gateway.said for gateway in self.gateways), sep="\n")
            raise
        finally:
            self.ingress.close()

    @property
    def url(self) -> str:
        return self.settings.url_path.read_text().strip()

    @property
    def urls(self) -> list[str]:
        """Of each gateway, where each has a port of its own."""
        return [f"http://127.0.0.1:{self.settings.gateway.port + n}/" for n in range(len(self.gateways))]

    @property
    def token(self) -> str:
        return self.settings.token_path.read_text().strip()

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return found
            assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
            await asyncio.sleep(0.02)

    async def is_up(self) -> bool:
        try:
            return (await self.get("healthz"))[0] == 200
        except aiohttp.ClientError:
            return False

    async def get(self, path: str, **headers: str) -> tuple[int, Any, bytes]:
        return await self.get_at(self.url, path, **headers)

    async def get_at(self, url: str, path: str, **headers: str) -> tuple[int, Any, bytes]:
        async with self.http.get(url + path, headers={**self.bearer, **headers}) as answer:
            return answer.status, answer.headers, await answer.read()

    async def json(self, path: str) -> Any:
        return json.loads((await self.get(path))[2])

    async def post(self, body: Any, **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(self.url + "v1/events", data=data, headers={**self.bearer, **headers}) as answer:
            return answer.status, json.loads(await answer.read())

    # ── as sources ───────────────────────────────────────────────────────────────────────────────

    async def send(self, message: wire.Ingress) -> None:
        await self.until(lambda: self.ingress.send(message), "room in the ingress")

    async def census(self, *workspaces: str, project: str = "web", projects: list[str] | None = None) -> None:
        """All workspaces of one project; told again until it counts, since a new aggregator takes none from before."""
        at = stamp()
        looks = [look(project, name, "life", Life(name=name, phase="ready", branch=name), at) for name in workspaces]
        await self.send(Census(at, "catalog", CENSUS, projects or [project], looks))

    async def git(self, workspace: str, insertions: int, project: str = "web") -> None:
        await self.send(look(project, workspace, "git", Git(insertions=insertions), stamp(), "git"))

    async def ready(self, *workspaces: str, project: str = "web", projects: list[str] | None = None) -> None:
        """The project is shown with these workspaces and no others."""

        async def shown() -> bool:
            await self.census(*workspaces, project=project, projects=projects)
            status, _, body = await self.get(f"v1/projects/{project}/snapshot")
            if status != 200 or set(json.loads(body)["workspaces"]) != set(workspaces):
                return False
            return (await self.get("readyz"))[0] == 200  # one heartbeat later it is known that there are no others

        await self.until(shown, f"{project} is shown")

    async def shown(self, workspace: str, insertions: int, project: str = "web") -> dict[str, Any]:
        """The snapshot, once it has this value."""

        async def found() -> Any:
            state = await self.json(f"v1/projects/{project}/snapshot")
            git = state.get("workspaces", {}).get(workspace, {}).get("git", {})
            return state if git.get("insertions") == insertions else None

        state: dict[str, Any] = await self.until(found, f"{insertions} insertions in {workspace}")
        return state

    # ── as a client ──────────────────────────────────────────────────────────────────────────────

    def client(self, project: str = "web") -> Client:
        return Client(self.url, self.token, project)

    def connect(self, **more: Any) -> Any:
        headers = {**self.bearer, **more.pop("headers", {})}
        return self.http.ws_connect(self.url + "v1/stream", protocols=["treewire.v1"], headers=headers, **more)

    def metric(self, text: bytes, name: str) -> float:
        """The sum of a metric over all processes and labels."""
        lines = [line for line in text.decode().splitlines() if line.startswith((name + "{", name + " "))]
        return sum(float(line.split()[-1]) for line in lines)


def stamp() -> Stamp:
    now = now_ns()
    return Stamp(now, now, CLOCK)


def look(project: str, workspace: str, group: str, value: Value, at: Stamp, source: str = "catalog") -> Look:
    return Look(project, workspace, group, value, at, source, producer="test")


@contextlib.contextmanager
def deployed(heartbeat_ms: int = HEARTBEAT_MS, gateways: int = 1, **gateway: object) -> Iterator[World]:
    """Processes of one home. `gateway`: further settings of that section; a port, where there are several."""
    home = Path(tempfile.mkdtemp(prefix="tw-"))
    given = {"port": 0, "heartbeat_ms": heartbeat_ms, "processes": gateways, **gateway}
    (home / "treewire.toml").write_text(
        "[gateway]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items())
    )
    settings = Settings.load(home, environ=environment())
    aggregator = Child(settings, "aggregator")
    serving = [Child(settings, "gateway", n if gateways > 1 else None) for n in range(gateways)]
    try:
        yield World(settings, aggregator, serving)
    finally:
        for child in (*serving, aggregator):
            if child.process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.end()
        shutil.rmtree(home, ignore_errors=True)


def runs(world: World, test: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        async with world.running():
            await test(world)

    asyncio.run(run())


async def next_frame(stream: aiohttp.ClientWebSocketResponse, kind: str) -> dict[str, Any]:
    """The next frame of this type; heartbeats on the way are acknowledged."""
    while True:
        message = await stream.receive(timeout=15)
        assert message.type is aiohttp.WSMsgType.TEXT, message
        frame: dict[str, Any] = json.loads(message.data)
        if frame["type"] == "heartbeat":
            await stream.send_json({"type": "ack", "n": frame["n"], "subscriptions": {}})
        if frame["type"] == kind:
            return frame


def free_ports(count: int) -> int:
    """The first of so many ports in a row that are free now."""
    while True:
        with contextlib.ExitStack() as held:
            try:
                first = held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
                for n in range(1, count):
                    held.enter_context(socket.create_server(("127.0.0.1", first + n)))
            except (OSError, OverflowError):
                continue
            return int(first)
