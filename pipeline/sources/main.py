"""The sources process: discovery, and whatever else watches what the agents do."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Final

from pipeline import bus, wire
from pipeline import catalog as catalogs
from pipeline.runtime.process import Process
from pipeline.runtime.settings import Settings
from pipeline.runtime.tick import tick, tick_unless
from pipeline.sources.desk import Desk, Source
from pipeline.sources.discovery import discover
from pipeline.sources.outbox import Outbox

ALIVE_S: Final = 3.0
AGAIN_S: Final = 0.5


def sources(settings: Settings) -> Iterator[Source]:
    """Those that the settings leave on. What one imports costs only whoever has it on."""
    if settings.sources.claude:
        from pipeline.sources.claude import Claude

        yield Claude()
    if settings.sources.codex:
        from pipeline.sources.codex import Codex

        yield Codex()
    if settings.sources.processes:
        from pipeline.sources.processes import Processes

        yield Processes()
    if settings.sources.tmux:
        from pipeline.sources.tmux import Tmux

        yield Tmux()
    if settings.sources.github:
        from pipeline.sources.github import GitHub

        yield GitHub()
    from pipeline.sources.foreign import Foreign  # its databases may be added at any time

    yield Foreign()


async def _open(process: Process) -> catalogs.Catalog | None:
    """The catalog, as soon as it can be used; ``None`` if we are stopped before."""
    while not process.stopping.is_set():
        try:
            return await asyncio.to_thread(catalogs.open, process.settings)
        except catalogs.CatalogUnavailable as error:
            process.state, process.figures["reason"] = "degraded", str(error)
        await tick_unless(process.stopping, AGAIN_S)
    return None


async def main(process: Process) -> None:
    """Run until the process stops."""
    catalog = await _open(process)
    if catalog is None:
        return
    ingress = bus.Ingress(process.settings.run_dir)
    outbox = Outbox(ingress.send)
    watched: frozenset[str] = frozenset()

    def beat(heartbeats: list[wire.Heartbeat]) -> None:
        nonlocal watched
        watched = frozenset(name for name, head in heartbeats[-1].heads.items() if head.watched)

    feed = bus.heartbeats(process.settings.run_dir, beat)
    desk = Desk(process, catalog, outbox.put, lambda: watched)
    running = list(sources(process.settings))

    async def alive() -> None:
        """What the sources said last still holds, for as long as this loop turns."""
        while True:
            ingress.send(wire.Alive("sources"))
            for source in running:
                health = source.health
                shown = health.state if not health.why else f"{health.state}: {health.why}"
                process.figures[f"source_{source.name}"] = shown
                for name, value in (("age_s", source.age_s()), ("lease_s", source.lease_s())):
                    if math.isfinite(value):
                        process.figures[f"source_{source.name}_{name}"] = round(value, 1)
                process.figures.update(source.figures())
                desk.weigh_lease(source)
            await tick(ALIVE_S)

    try:
        process.spawn(outbox.run(), name="outbox")
        process.spawn(desk.keep_places(), name="places")
        process.spawn(desk.keep_telling(), name="telling")
        process.spawn(alive(), name="alive")
        for source in running:
            process.spawn(desk.keep(source), name=source.name)
        await discover(process, catalog, outbox)
    finally:
        await process.cancel_tasks()
        desk.close()
        feed.close()
        ingress.close()
        catalog.close()
