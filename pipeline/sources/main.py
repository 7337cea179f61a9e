"""The sources process: discovery, and whatever else watches what the agents do."""

from __future__ import annotations

import asyncio

from pipeline import catalog as catalogs
from pipeline.bus import Ingress
from pipeline.runtime.process import Process
from pipeline.sources.discovery import discover


async def main(process: Process) -> None:
    """Run until the process stops."""
    catalog = await asyncio.to_thread(catalogs.open, process.settings)
    ingress = Ingress(process.settings.run_dir)
    try:
        await discover(process, catalog, ingress)
    finally:
        await process.cancel_tasks()
        ingress.close()
        catalog.close()
