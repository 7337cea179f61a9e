"""Has the catalog forget, now and then, what was archived long ago: see `pipeline.catalog.retention`.

It is done here, where workspaces are archived. Days are of the wall clock, since they go on while the host is off.
"""

from __future__ import annotations

import asyncio
from typing import Final

from pipeline.catalog import Catalog, CatalogUnavailable
from pipeline.runtime.clock import wall_ms
from pipeline.runtime.process import Process

DAY_S: Final = 86_400.0
EVERY_S: Final = 3600.0
LOOKS: Final = 8  # within the days, where these are so few that an hour is long


async def keep(process: Process, catalog: Catalog) -> None:
    """Forget what is due, for ever."""
    days = process.settings.database.keep_archived_days
    while True:
        await asyncio.sleep(min(EVERY_S, days * DAY_S / LOOKS))
        try:
            gone = await asyncio.to_thread(catalog.forget, wall_ms() - int(days * DAY_S * 1000))
        except CatalogUnavailable:
            continue  # discovery says so
        if gone:
            process.figures["forgotten"] = int(process.figures.get("forgotten", 0)) + gone
            process.log.info("forgotten what was archived long ago", rows=gone, days=days)
