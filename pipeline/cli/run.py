"""`treewire run NAME`: the one way in which every process starts, under supervisord, systemd or a debugger."""

from __future__ import annotations

from importlib import import_module

import click

from pipeline.runtime import process
from pipeline.runtime.settings import Settings

MAINS = {
    "aggregator": "pipeline.aggregator.main:main",
    "reconciler": "pipeline.reconciler.main:main",
    "sources": "pipeline.sources.main:main",
    "dispatcher": "workers.dispatcher:main",
    "worker": "workers.worker:main",
    "gateway": "gateway.main:main",
}
MANY = ("worker", "gateway")


@click.command()
@click.argument("name", type=click.Choice(sorted(MAINS)))
@click.option("--index", type=click.IntRange(0), help="Which of several; only for worker and gateway.")
@click.pass_obj
def run(settings: Settings, name: str, index: int | None) -> None:
    """Run the process NAME until SIGTERM or Ctrl-C. One of each name runs per home."""
    if name in MANY:
        index = index or 0
    elif index is not None:
        raise click.UsageError(f"there is only one {name}: leave out --index")
    module, _, attribute = MAINS[name].partition(":")
    process.run(name, getattr(import_module(module), attribute), settings, index)
