"""A client as docs/protocol.md describes it: merge patches, compare hashes, resync, reconnect with the cursor."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from pipeline.domain import patch


class Client:
    """One subscription. `frames` keeps the types of what came, `state` the merged workspaces."""

    def __init__(self, url: str, token: str, project: str) -> None:
        self.project = project
        self.state: dict[str, Any] = {}
        self.epoch = ""
        self.version = -1
        self.hash = ""
        self.complete = False
        self.verified = 0
        self.mismatches: list[str] = []
        self.frames: list[dict[str, Any]] = []
        self._url, self._token = url.replace("http://", "ws://").rstrip("/") + "/v1/stream", token
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def __aenter__(self) -> Client:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Drop the connection, but keep the cursor: `start` resumes from it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def until(self, condition: Any, seconds: float = 20.0) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not condition(self):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            tail = [frame for frame in self.frames if frame["type"] != "heartbeat"][-5:]
            raise AssertionError(f"not within {seconds} s; state {self.state}\nlast frames {tail}") from None

    async def _run(self) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            while True:
                try:
                    async with session.ws_connect(self._url, protocols=["treewire.v1"], autoping=True) as socket:
                        self._socket = socket
                        await self._talk(socket)
                except (aiohttp.ClientError, OSError):
                    pass
                await asyncio.sleep(0.1)

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.send_json({"type": "hello"})
        cursor = {"epoch": self.epoch, "version": self.version} if self.epoch else {}
        await socket.send_json({"type": "subscribe", "id": 1, "project": self.project, **cursor})
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            frame = json.loads(message.data)
            self.frames.append(frame)
            reason = self._take(frame)
            if reason:
                await socket.send_json({"type": "resync", "id": 1, "reason": reason, "version": self.version})
            if frame["type"] == "heartbeat":
                mine = {"1": {"version": self.version, "hash": self.hash}}
                await socket.send_json({"type": "ack", "n": frame["n"], "subscriptions": mine})
            self._changed.set()

    def _take(self, frame: dict[str, Any]) -> str:
        match frame["type"]:
            case "snapshot":
                self.state = frame["workspaces"]
                self.epoch, self.version, self.complete = frame["epoch"], frame["version"], frame["complete"]
                return self._check(frame["version"], frame["hash"])
            case "delta":
                if frame["epoch"] != self.epoch or frame["from"] > self.version:
                    return "gap"
                if frame["to"] > self.version:
                    self.state = patch.merge(self.state, frame["patch"])
                    self.version = frame["to"]
            case "heartbeat":
                head = frame["subscriptions"].get("1")
                if head is not None:
                    if head["version"] > self.version:
                        return "gap"
                    return self._check(head["version"], head["hash"])
        return ""

    def _check(self, version: int, hash_: str) -> str:
        if version != self.version:
            return "hash"
        self.hash = patch.state_hash(self.state)
        if self.hash != hash_:
            self.mismatches.append(f"version {version}: mine {self.hash}, theirs {hash_}")
            return "hash"
        self.verified += 1
        return ""
