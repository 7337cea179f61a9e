"""`treewire down`: ask supervisord to stop everything, and insist where something does not.

supervisord stops one group after the other and gives each its time to drain. A process that is hung or stopped has
nothing to drain and would cost all of that time, so those are ended from here, all at once.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping

import click
import psutil

from pipeline.cli import deployment
from pipeline.runtime.beat import read_beats
from pipeline.runtime.settings import Settings
from pipeline.runtime.supervisor import LOCK, Fault, Unreachable, call

_POLL_S = 0.1
_ANSWER_S = 2.0  # what a supervisord that is well may take to say that it stops
_SILENT_S = 3.0  # beats come each second
_GRACE_S = 1.0  # what a silent or stopped process gets to come back to life and end by itself
_DEAD_S = 5.0  # what the kernel may take to end what was killed


@click.command()
@click.pass_obj
def down(settings: Settings) -> None:
    """Stop treewire, and return when its processes have ended.

    Each may drain; one that is hung, or was stopped, is killed.
    """
    if not deployment.runs(settings):
        click.echo(f"Nothing runs for {settings.home}.")
        return
    stop(settings)
    click.echo("Stopped.")


def stop(settings: Settings) -> None:
    """End the deployment, and return when it has ended. Raises `click.ClickException` if it does not."""
    stopping = Stopping(settings)
    stopping.ask()
    while not stopping.ended():
        if not stopping.insist():
            where = settings.run_dir / LOCK
            raise click.ClickException(f"pid {stopping.supervisor} holds {where} and does not end; end it by hand")
        time.sleep(_POLL_S)
    settings.url_path.unlink(missing_ok=True)


class Stopping:
    """The end of one deployment: who is there yet, and who was given up.

    As long as one process after the other ends, nobody is hurried. When none has for as long as one may take to
    drain, supervisord is killed, and the kernel ends with it whatever it had started.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.supervisor = deployment.holder(settings.run_dir)
        self._asked = time.monotonic()
        self._suspects: dict[int, float] = {}  # pid → when it was found silent or stopped
        self._left: set[int] = set()
        self._progress = self._asked
        self._killed_at = 0.0

    def ask(self) -> None:
        """Ask by RPC; failing that (it starts just now, or hangs) by signal."""
        if self.supervisor is not None:
            _signal(self.supervisor, signal.SIGCONT)
        try:
            call(self.settings.run_dir, "shutdown", timeout_s=_ANSWER_S)
        except (Unreachable, Fault):
            if self.supervisor is not None:
                _signal(self.supervisor, signal.SIGTERM)

    def ended(self) -> bool:
        """The lock is free, and nobody who beat here lives on."""
        beats = read_beats(self.settings.run_dir)
        return not deployment.runs(self.settings) and not any(beat.alive() for beat in beats)

    def insist(self) -> bool:
        """End those that do not listen; False if nothing helps."""
        now = time.monotonic()
        self.supervisor = deployment.holder(self.settings.run_dir) or self.supervisor
        left = _children(self.supervisor)
        if left.keys() != self._left:
            self._left, self._progress = set(left), now
        self._suspects = {pid: self._suspects.get(pid, now) for pid in self._silent(left)}
        for pid, found in self._suspects.items():
            if found == now:
                _signal_group(pid, signal.SIGCONT)
            elif now - found > _GRACE_S:
                _signal_group(pid, signal.SIGKILL)
        if self._killed_at:
            return now - self._killed_at < _DEAD_S
        if now - self._progress > self.settings.supervisor.drain_s + 2 * _GRACE_S:
            self._killed_at = now
            if self.supervisor is not None:
                _signal(self.supervisor, signal.SIGKILL)
        return True

    def _silent(self, left: Mapping[int, psutil.Process]) -> set[int]:
        """Those that are stopped, or have not beaten for long."""
        silent = {beat.pid for beat in read_beats(self.settings.run_dir) if beat.age_s() > _SILENT_S}
        return {pid for pid, process in left.items() if pid in silent or _is_stopped(process)}


def _children(pid: int | None) -> dict[int, psutil.Process]:
    """The living children of supervisord; each leads a process group of its own."""
    try:
        children = [] if pid is None else psutil.Process(pid).children()
        return {child.pid: child for child in children if child.status() != psutil.STATUS_ZOMBIE}
    except psutil.Error:
        return {}  # it, or one of them, ended while we looked


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


def _signal(pid: int, signum: signal.Signals) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass


def _signal_group(pid: int, signum: signal.Signals) -> None:
    try:
        os.killpg(pid, signum)
    except ProcessLookupError:
        pass
