"""The aggregator: one queue, one writer, one store; looks in, deltas out."""

from __future__ import annotations

import secrets
from typing import Final

from pipeline import bus
from pipeline.aggregator.figures import Figures
from pipeline.aggregator.query import Answers
from pipeline.aggregator.writer import Writer
from pipeline.domain.store import Limits, Store
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.process import Process
from pipeline.runtime.tick import tick

BEAT_S: Final = 1.0
RELOOK_S: Final = 0.25
SWEEP_BEATS: Final = 60


async def main(process: Process) -> None:
    settings = process.settings
    run_dir = settings.run_dir
    limits = Limits(settings.store.max_entries, settings.store.max_tombstones, settings.store.max_sessions)
    store = Store(CLOCK, now_ns(), limits)
    epoch = f"{now_ns():x}{secrets.token_hex(4)}"

    def joined() -> None:
        writer.beat()  # whoever joins learns at once where things stand

    feed = bus.Publisher(run_dir, "feed", joined=joined)
    tap = bus.Publisher(run_dir, "tap", bus.TAP_HIGH_WATER)
    writer = Writer(store, epoch, feed, tap, now_ns, wall_ms)
    query = bus.QueryServer(run_dir, Answers(store, epoch))
    ingress = bus.IngressServer(run_dir, writer.take)
    figures = Figures(process, writer, ingress, query)
    process.log.info("epoch begins", epoch=epoch)

    async def relook() -> None:
        while True:
            await tick(RELOOK_S if writer.relooks else BEAT_S)
            writer.ask_relooks()

    async def beat() -> None:
        beats = 0
        while True:
            figures.update(writer.beat())
            beats += 1
            if beats % SWEEP_BEATS == 0 and (buried := writer.sweep()):
                process.log.warning("swept", workspaces=buried)
            await tick(BEAT_S)

    process.spawn(relook(), "relook")
    process.spawn(beat(), "heartbeat")
    await process.stopping.wait()
    await process.cancel_tasks()
    ingress.close()
    for end in (query, feed, tap):
        end.close()
    bus.close()
