"""What tests of tokens and tickets have in common: the command beside a running gateway, and a socket of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import aiohttp

from pipeline import catalog as catalogs
from pipeline.domain.model import Census, Life
from tests.world import CENSUS, World, environment, look, next_frame, stamp

PATIENCE_S = 20.0


def treewire(world: World, *arguments: str) -> str:
    """The command, as an operator calls it beside the running gateway."""
    command = [sys.executable, "-m", "pipeline.cli", *arguments, "--home", str(world.settings.home)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def created(world: World, *options: str) -> tuple[str, str]:
    """A token's id and secret."""
    made = json.loads(treewire(world, "token", "create", "--json", *options))
    return made["id"], made["token"]


def followed(world: World, *projects: str) -> None:
    catalog = catalogs.open(world.settings)
    for project in projects:
        catalog.add_project(f"/srv/{project}", 1)
    catalog.close()


async def both(world: World) -> None:
    """The projects web and api are shown, with a workspace each."""

    async def shown() -> bool:
        at = stamp()
        lives = [look(project, f"{project}-w", "life", Life(phase="ready"), at) for project in ("web", "api")]
        await world.send(Census(at, "catalog", CENSUS, ["web", "api"], lives))
        paths = ("readyz", "v1/projects/web/snapshot", "v1/projects/api/snapshot")
        return all([(await world.get(path))[0] == 200 for path in paths])

    await world.until(shown, "two projects")


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


class Stream:
    """A socket of its own credentials; what came is kept."""

    def __init__(self, world: World, headers: dict[str, str], **hello: str) -> None:
        self._world, self._headers, self._hello = world, headers, hello
        self.frames: list[dict[str, Any]] = []

    async def __aenter__(self) -> Stream:
        self._http = aiohttp.ClientSession()
        url = self._world.url + "v1/stream"
        self.socket = await self._http.ws_connect(url, protocols=["treewire.v1"], headers=self._headers)
        await self.socket.send_json({"type": "hello", **self._hello})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def subscribe(self, id_: int, project: str) -> None:
        await self.socket.send_json({"type": "subscribe", "id": id_, "project": project})

    async def next(self, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            return await next_frame(self.socket, kind)

    async def closed(self) -> int | None:
        """Read to the end; returns the close code."""
        async with asyncio.timeout(PATIENCE_S):
            while (message := await self.socket.receive()).type is aiohttp.WSMsgType.TEXT:
                self.frames.append(json.loads(message.data))
                if self.frames[-1]["type"] == "heartbeat":
                    await self.socket.send_json({"type": "ack", "n": self.frames[-1]["n"], "subscriptions": {}})
        return self.socket.close_code


async def status(world: World, path: str, **headers: str) -> int:
    async with aiohttp.ClientSession() as http, http.get(world.url + path, headers=headers) as answer:
        return answer.status


async def ticket(world: World, secret: str) -> str:
    async with aiohttp.ClientSession(headers=bearer(secret)) as http, http.post(world.url + "v1/tickets") as answer:
        assert answer.status == 201
        return str((await answer.json())["ticket"])
