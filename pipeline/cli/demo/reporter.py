"""How the demo reports: over HTTP like any orchestrator, and now and then so that the message is lost."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, Final, NamedTuple

import aiohttp

from pipeline.bridges.event import event_stamp
from pipeline.catalog import Catalog, Observed
from pipeline.cli.demo.acts import HEAD, Report, Where
from pipeline.cli.demo.stage import Stage
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms

SOURCE: Final = "demo"
AT_ONCE: Final = 400
WAITING: Final = 4000
AGAIN_S: Final = 0.2


class Counts(NamedTuple):
    """What a reporter did so far."""

    reports: int
    lost: int
    refused: int
    reconnects: int


class Reporter:
    """One producer: it numbers its reports within its run, and says after a reconnect again what it last said.

    Whoever reports more than the deployment takes waits; nothing is dropped but what shall be.
    """

    def __init__(self, url: str, token: str, stage: Stage, catalog: Catalog) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._stage, self._catalog = stage, catalog
        self._http: aiohttp.ClientSession | None = None
        self._queue: asyncio.Queue[tuple[float, dict[str, Any]]] = asyncio.Queue(WAITING)
        self._said: dict[Where, dict[str, dict[str, Any]]] = {}
        self._run, self._seq = 1, 0
        self._sent = self._lost = self._refused = 0

    def counts(self) -> Counts:
        return Counts(self._sent, self._lost, self._refused, self._run - 1)

    async def report(self, report: Report) -> None:
        """Say it, once there is room."""
        fields = dict(report.fields)
        if fields.get("head") == HEAD:
            fields["head"] = self._stage.head(report.where)
        if report.group == "life":  # so that discovery knows the worktree for the same workspace
            fields["path"] = os.path.realpath(self._stage.worktree(report.where))
        said = self._said.setdefault(report.where, {}).setdefault(report.group, {})
        said |= fields
        if report.group == "life" and fields.get("phase") == "archived":
            del self._said[report.where]
        event = self._event(report.where, report.group, fields, report.age_s)
        if report.lost:
            await asyncio.to_thread(self._lose, event)
        else:
            await self._queue.put((time.monotonic(), event))

    def known(self) -> list[Where]:
        """The worktrees that were reported and not archived, in order of their first report."""
        return list(self._said)

    async def snapshot(self, project: str) -> dict[str, Any]:
        """The project's workspaces, as any client sees them; empty while there are none to see."""
        status, told = await self._ask("GET", f"/v1/projects/{project}/snapshot")
        return told.get("workspaces", {}) if status == 200 else {}

    async def reconnect(self) -> None:
        """Begin anew, as a producer that was restarted does."""
        await self.flush()
        await self.close()
        self._run, self._seq = self._run + 1, 0
        for where, groups in list(self._said.items()):
            for group, fields in list(groups.items()):
                await self._queue.put((time.monotonic(), self._event(where, group, dict(fields), 0)))

    async def run(self) -> None:
        """Send what is reported, for ever."""
        while True:
            batch = [await self._queue.get()]
            while len(batch) < AT_ONCE and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await self._send(batch)
            for _ in batch:
                self._queue.task_done()

    async def flush(self) -> None:
        """Wait until all that was reported has been taken."""
        await self._queue.join()

    async def close(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    def _event(self, where: Where, group: str, fields: dict[str, Any], age_s: float) -> dict[str, Any]:
        self._seq += 1
        return {
            "project": where.project,
            "workspace": self._stage.workspace(where),
            "group": group,
            "fields": fields,
            "age_ms": int(age_s * 1000),
            "seq": self._seq,
            "run": f"{SOURCE}-{self._run}",
            "source": SOURCE,
        }

    def _lose(self, event: dict[str, Any]) -> None:
        """Into the catalog and no further, as when the message about it is lost: a census has to find it."""
        observed = Observed(
            project=event["project"],
            workspace=event["workspace"],
            group=event["group"],
            fields=event["fields"],
            stamp=event_stamp(event["age_ms"], now_ns(), CLOCK),
            at_ms=wall_ms() - event["age_ms"],
            run=event["run"],
            seq=event["seq"],
            producer=SOURCE,
        )
        self._catalog.record([observed])
        self._lost += 1

    async def _send(self, batch: list[tuple[float, dict[str, Any]]]) -> None:
        while batch:
            now = time.monotonic()
            events = [{**event, "age_ms": event["age_ms"] + int((now - said) * 1000)} for said, event in batch]
            status, told = await self._ask("POST", "/v1/events", events)
            if status == 400 and 0 <= told.get("index", -1) < len(batch):
                del batch[told["index"]]
                self._refused += 1
            elif status == 202:
                self._sent += len(batch)
                return
            else:
                await asyncio.sleep(AGAIN_S)

    async def _ask(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        if self._http is None:
            self._http = aiohttp.ClientSession(headers=self._headers)
        try:
            async with self._http.request(method, self._url + path, json=body) as answer:
                return answer.status, await answer.json()
        except (aiohttp.ClientError, OSError, RuntimeError, ValueError):  # a session that is closed is a RuntimeError
            return 0, {}
