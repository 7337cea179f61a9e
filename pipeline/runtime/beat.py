"""A process's sign of life: one small file, rewritten in place each second, and locked while its writer lives."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import TypeAlias

import msgspec
import psutil
from msgspec import Struct

from pipeline.runtime.clock import now_ns
from pipeline.runtime.place import OperatorError

Figure: TypeAlias = int | float | str

SUFFIX = ".beat"
_ALIVE_NS = 15_000_000_000
_READS = 3


class Beat(Struct):
    """What a process says of itself. ``state``: starting, running, degraded, stopping, stopped.

    ``boot_ns, started_ns``: boot clock of this beat and of the start. ``lag_ms``: how late this beat came, which is how
    long the event loop was held up.
    """

    name: str
    pid: int
    boot_ns: int
    started_ns: int
    rss: int = 0
    cpu_s: float = 0.0
    fds: int = 0
    threads: int = 0
    lag_ms: float = 0.0
    state: str = "starting"
    figures: dict[str, Figure] = {}

    def age_s(self, now: int | None = None) -> float:
        """Seconds since it was written, by the boot clock; a beat from before the last boot is infinitely old."""
        age = (now_ns() if now is None else now) - self.boot_ns
        return age / 1e9 if age >= 0 else float("inf")

    def alive(self, now: int | None = None) -> bool:
        """Whether its writer still exists and has been heard of lately."""
        return self.state != "stopped" and self.age_s(now) * 1e9 < _ALIVE_NS and _exists(self.pid)


class BeatFile:
    """The writer's end. Holding it is what makes a process the only one of its name in this run directory."""

    def __init__(self, run_dir: Path, name: str, patience_s: float = 5.0) -> None:
        """Take the name, waiting ``patience_s`` for a predecessor to die. Raises `OperatorError` if it does not."""
        self.path = run_dir / f"{name}{SUFFIX}"
        self.beat = Beat(name=name, pid=os.getpid(), boot_ns=now_ns(), started_ns=now_ns())
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._process = psutil.Process()
        self._encoder = msgspec.json.Encoder()
        self._size = os.fstat(self._fd).st_size
        deadline = time.monotonic() + patience_s
        while not _locked(self._fd):
            if time.monotonic() > deadline:
                os.close(self._fd)
                other = read_beat(self.path)
                pid = f" (pid {other.pid})" if other else ""
                raise OperatorError(f"{name} already runs for this home{pid}; stop that one first")
            time.sleep(0.05)

    def measure(self) -> None:
        """Refresh memory, CPU time, descriptors and threads; dearer than `write`, so done less often."""
        with self._process.oneshot():
            times = self._process.cpu_times()
            self.beat.rss = self._process.memory_info().rss
            self.beat.cpu_s = round(times.user + times.system, 3)
            self.beat.fds = self._process.num_fds()
            self.beat.threads = self._process.num_threads()

    def write(self) -> None:
        """Rewrite the file in place; padding keeps a shorter beat from leaving an end of the longer one before it."""
        self.beat.boot_ns = now_ns()
        data = self._encoder.encode(self.beat)
        self._size = max(self._size, len(data) + 1)
        os.pwrite(self._fd, data.ljust(self._size - 1) + b"\n", 0)

    def close(self) -> None:
        """Say that the process has stopped, and give the name free."""
        self.beat.state = "stopped"
        try:
            self.write()
        except OSError:  # a full disk must not keep a process from ending
            pass
        os.close(self._fd)


def read_beat(path: Path) -> Beat | None:
    """The beat in this file, or None where there is none that can be read."""
    for _ in range(_READS):  # a reader may meet a writer halfway
        try:
            return msgspec.json.decode(path.read_bytes(), type=Beat)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError):
            time.sleep(0.001)
    return None


def read_beats(run_dir: Path) -> list[Beat]:
    """All beats of a run directory by name, those of dead processes included."""
    beats = (read_beat(path) for path in sorted(run_dir.glob(f"*{SUFFIX}")))
    return [beat for beat in beats if beat is not None]


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
