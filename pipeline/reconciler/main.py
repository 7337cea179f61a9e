"""The reconciler: the safety net. It takes a census of the catalog now and then and hands it to the one queue.

It writes nothing and runs no git. A census that cannot be read makes no look: the last good state stands, and the
health says so. The census in flight is waited for at shutdown, and two never overlap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from prometheus_client import Counter, Histogram

from pipeline import bus, wire
from pipeline import catalog as catalogs
from pipeline.domain.model import Census
from pipeline.reconciler.census import Reason, Schedule
from pipeline.reconciler.readers.catalog import CatalogReader
from pipeline.runtime.clock import CLOCK, now_ns
from pipeline.runtime.process import Process
from pipeline.runtime.tick import tick_unless

SEND_S: Final = 2.0
SEND_AGAIN_S: Final = 0.02
UNREADABLE: Final = ("missing", "locked", "broken")
GIT: Final = "git"  # the one group that is read elsewhere


class Reconciler:
    def __init__(self, process: Process, catalog: catalogs.Catalog) -> None:
        settings = process.settings
        self._process = process
        self._watch = catalogs.ChangeWatch(catalog)
        self._reader = CatalogReader(catalog, now_ns, CLOCK)
        self._schedule = Schedule(settings.reconciler.every_s, settings.reconciler.min_gap_ms, now_ns())
        self._ingress = bus.Ingress(settings.run_dir)
        self._feed = bus.feed(settings.run_dir, self._take)
        self._epoch = ""
        self._database = "same"
        self._recover()
        self._taken = Counter("treewire_census_taken", "Censuses taken.", ["reason"], registry=process.registry)
        self._failed = Counter("treewire_census_failed", "Censuses that failed.", ["why"], registry=process.registry)
        self._seconds = Histogram("treewire_census_seconds", "Time to read a census.", registry=process.registry)

    def close(self) -> None:
        self._feed.close()
        self._ingress.close()
        self._watch.close()

    def _take(self, messages: Iterable[wire.Feed]) -> None:
        for message in messages:
            if isinstance(message, wire.Heartbeat):
                if message.epoch != self._epoch:
                    self._epoch = message.epoch
                    self._process.figures["epoch"] = message.epoch
                    self._schedule.ask("epoch")
                self._schedule.heard(message.census_ns, now_ns())
            elif isinstance(message, wire.Relook) and message.group != GIT:
                self._schedule.ask("relook")
        if self._due_in_s() <= 0:
            self._watch.stir()

    async def run(self) -> None:
        """Step by step until the process stops."""
        stopping = asyncio.ensure_future(self._process.stopping.wait())
        stopping.add_done_callback(lambda _: self._watch.stir())
        poll_s = self._process.settings.reconciler.poll_ms / 1e3
        while not self._process.stopping.is_set():
            await self._watch.rest(poll_s, self._due_in_s())
            await self.step()

    def _due_in_s(self) -> float:
        """How long until a census is due that can be taken, as things stand."""
        due_ns = self._schedule.next_ns() if self._epoch else None
        return float("inf") if due_ns is None else (due_ns - now_ns()) / 1e9

    async def step(self) -> None:
        """Look whether the database changed, and take a census if one is due and there is somebody to give it to."""
        if not self._watch.quiet():
            self._note(await asyncio.to_thread(self._watch.check))
        reason = self._schedule.due(now_ns()) if self._epoch else None
        if reason is not None:
            self._schedule.begin()
            ok = False
            try:
                ok = await self._census(reason)
            finally:
                self._schedule.end(now_ns(), ok)

    def _note(self, change: str) -> None:
        """A change asks for a census; a database that cannot be read is said once, and again when it is back."""
        if change in ("changed", "replaced"):
            self._schedule.ask("change")
        if change == "replaced":
            self._process.log.warning("the database was replaced by another file")
        ill, was_ill = change in UNREADABLE, self._database in UNREADABLE
        if ill and not was_ill:
            self._degrade(self._watch.why or f"the database is {change}")
        elif was_ill and not ill:
            self._process.log.info("the database can be read again")
            self._recover()
        self._database = change

    async def _census(self, reason: Reason) -> bool:
        began = now_ns()
        try:
            reading = await asyncio.to_thread(self._reader.read)
        except catalogs.CatalogUnavailable as error:
            self._failed.labels("database").inc()
            self._degrade(str(error))
            return False
        took_s = (now_ns() - began) / 1e9
        self._seconds.observe(took_s)
        for problem in reading.problems:
            self._process.log.warning("row left out of the census", why=problem)
        if not await self._send(reading.census):
            self._failed.labels("aggregator").inc()
            return False
        if reading.census.complete:
            self._schedule.sent(reading.census.stamp.ended, now_ns())
        if self._database not in UNREADABLE:
            self._recover()
        self._taken.labels(reason).inc()
        figures = self._process.figures
        figures["censuses"] = int(figures.get("censuses", 0)) + 1
        figures["census_looks"] = len(reading.census.looks)
        figures["census_ms"] = round(took_s * 1e3, 1)
        figures["census_reason"] = reason
        return True

    async def _send(self, census: Census) -> bool:
        deadline = now_ns() + int(SEND_S * 1e9)
        while not self._ingress.send(census):
            if now_ns() > deadline:
                return False
            await asyncio.sleep(SEND_AGAIN_S)
        return True

    def _degrade(self, why: str) -> None:
        _degrade(self._process, why)

    def _recover(self) -> None:
        self._process.state = "running"
        self._process.figures.pop("reason", None)


def _degrade(process: Process, why: str) -> None:
    if process.figures.get("reason") != why:
        process.log.warning("the last good state stands", why=why)
    process.state = "degraded"
    process.figures["reason"] = why


async def _open(process: Process, pause_s: float) -> catalogs.Catalog | None:
    """The catalog, as soon as it can be used; ``None`` if we are stopped before."""
    while True:
        try:
            return await asyncio.to_thread(catalogs.open, process.settings)
        except catalogs.CatalogUnavailable as error:
            _degrade(process, str(error))
        if await tick_unless(process.stopping, pause_s):
            return None


async def main(process: Process) -> None:
    pause_s = process.settings.reconciler.poll_ms / 1e3
    catalog = await _open(process, pause_s)
    if catalog is None:
        return
    reconciler = Reconciler(process, catalog)
    try:
        await reconciler.run()
    finally:
        reconciler.close()
        catalog.close()
        bus.close()
