"""What the operator's commands know of a deployment: who holds its lock, what supervisord and the beats say."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from pipeline.runtime.beat import Beat, read_beats
from pipeline.runtime.clock import now_ns
from pipeline.runtime.place import OperatorError
from pipeline.runtime.settings import Settings
from pipeline.runtime.supervisor import LOCK, Fault, Unreachable, call
from pipeline.watchdog import NOTES

# supervisord closes whatever it finds from descriptor 5 up when it reloads itself; this one it leaves alone.
LOCK_FD = 3


def take_lock(run_dir: Path) -> int | None:
    """A descriptor that holds the deployment's lock, or None where another process does."""
    fd = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise
    return fd


def runs(settings: Settings) -> bool:
    """Whether somebody holds the lock, be it a supervisord or an `up` that is about to become one."""
    if not (settings.run_dir / LOCK).exists():
        return False
    fd = take_lock(settings.run_dir)
    if fd is not None:
        os.close(fd)
    return fd is None


def hears(settings: Settings) -> bool:
    """Whether an aggregator runs, so that there is somebody to ask or to tell."""
    return any(beat.name == "aggregator" and beat.alive() for beat in read_beats(settings.run_dir))


def holder(run_dir: Path) -> int | None:
    """The pid of the supervisord that holds the lock. A pid that merely stands in the file is not believed."""
    lock = run_dir / LOCK
    try:
        pid = int(lock.read_text())
        held = os.stat(f"/proc/{pid}/fd/{LOCK_FD}")
        return pid if os.path.samestat(held, lock.stat()) else None
    except (OSError, ValueError):
        return None


def supervisord_conf() -> Path:
    """The checkout's own, or the one that was installed."""
    for path in (
        Path(__file__).parents[2] / "supervisord.conf",
        Path(sys.prefix) / "share" / "treewire" / "supervisord.conf",
    ):
        if path.is_file():
            return path
    raise OperatorError("supervisord.conf is missing from the installation: install treewire again")


_WATCHDOG_S = 15.0


class Member(NamedTuple):
    """One process as supervisord sees it and as it speaks for itself."""

    name: str
    state: str
    pid: int
    said: str
    beat: Beat | None
    notes_age_s: float = 0.0

    @property
    def well(self) -> bool:
        """What it says of itself is fresh and good. supervisord calls it STARTING for a while even so."""
        if self.name == "watchdog":  # it has no beat; its notes are written at each tick of supervisord's
            return self.state in ("STARTING", "RUNNING") and self.notes_age_s < _WATCHDOG_S
        return self.beat is not None and self.beat.alive() and self.beat.state == "running"


def members(settings: Settings) -> list[Member]:
    """Every process of the deployment. Raises `Unreachable` where no supervisord answers."""
    try:
        processes: list[dict[str, Any]] = call(settings.run_dir, "getAllProcessInfo")
    except Fault as fault:
        raise Unreachable(str(fault)) from None
    beats = {beat.name: beat for beat in read_beats(settings.run_dir)}
    notes = watchdog_notes(settings.run_dir)
    found = []
    for process in sorted(processes, key=lambda process: process["name"]):
        beat = beats.get(process["name"])
        if beat is not None and beat.pid != process["pid"]:
            beat = None  # its predecessor's
        age_s = 0.0
        if process["name"] == "watchdog":
            mine = notes.get("pid") == process["pid"]
            age_s = (now_ns() - notes["boot_ns"]) / 1e9 if mine else float(process["now"] - process["start"])
        found.append(Member(process["name"], process["statename"], process["pid"], process["description"], beat, age_s))
    return found


def watchdog_notes(run_dir: Path) -> dict[str, Any]:
    """What the watchdog last published; empty where it has not."""
    try:
        notes: dict[str, Any] = msgspec.json.decode((run_dir / NOTES).read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return notes


def tail(settings: Settings, name: str, lines: int = 8) -> list[str]:
    """The last lines of a process's log."""
    try:
        with open(settings.log_dir / f"{name}.log", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 16_384))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def url(settings: Settings) -> str:
    """Where the gateway says it listens; empty before it does."""
    try:
        return settings.url_path.read_text().strip()
    except OSError:
        return ""


class NotRunning(click.ClickException):
    """There is nobody to ask."""

    exit_code = 3


def not_running(settings: Settings) -> NotRunning:
    return NotRunning(f"nothing runs for {settings.home}: start it with `treewire up`")
