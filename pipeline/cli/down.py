"""`treewire down`: ask supervisord to stop everything, and insist if it does not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import click

from pipeline.cli import deployment
from pipeline.runtime.beat import read_beats
from pipeline.runtime.settings import Settings
from pipeline.runtime.supervisor import LOCK, Fault, Unreachable, call

_POLL_S = 0.05
_GROUPS = 7


@click.command()
@click.pass_obj
def down(settings: Settings) -> None:
    """Stop treewire, and return when its processes have ended."""
    run_dir = settings.run_dir
    if not deployment.runs(settings):
        click.echo(f"Nothing runs for {settings.home}.")
        return
    pid = deployment.holder(run_dir)
    for stop, patience_s in (
        (_by_rpc, _GROUPS * settings.supervisor.drain_s),  # supervisord stops one group after the other
        (signal.SIGTERM, settings.supervisor.drain_s),
        (signal.SIGKILL, settings.supervisor.drain_s),
    ):
        if isinstance(stop, signal.Signals):
            pid = deployment.holder(run_dir) or pid
            if pid is None or not _signal(pid, stop):
                continue
        elif not stop(settings):
            continue
        if _until(lambda: _ended(settings), patience_s):
            settings.url_path.unlink(missing_ok=True)
            click.echo("Stopped.")
            return
    raise click.ClickException(f"pid {pid} holds {run_dir / LOCK} and does not end; end it by hand")


def _by_rpc(settings: Settings) -> bool:
    try:
        call(settings.run_dir, "shutdown")
    except (Unreachable, Fault):
        return False
    return True


def _signal(pid: int, signum: signal.Signals) -> bool:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True


def _ended(settings: Settings) -> bool:
    """The lock is free, and nobody who beat here lives on."""
    return not deployment.runs(settings) and not any(beat.alive() for beat in read_beats(settings.run_dir))


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
