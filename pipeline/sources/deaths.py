"""Tells when a process ends, without looking again and again: the kernel says it, through a descriptor of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path


def started(pid: int) -> int | None:
    """When the process was started, in clock ticks since boot (field 22 of its stat); ``None`` if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()  # the name before it may hold anything
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


class Deaths:
    """Watches processes by pid and start, so that a pid that was given anew is nobody we know."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], tuple[int, dict[str, Callable[[], None]]]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def watch(self, pid: int, start: int | None, who: str, died: Callable[[], None]) -> bool:
        """Call `died` once when the process ends; false if it is not there now. Of each `who`, the last one is called.

        `start`: when it was started, if that is known; another process of this pid is not there.
        """
        if start is not None and (held := self._held.get((pid, start))) is not None:
            held[1][who] = died
            return True
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return False
        # Read after the descriptor is held: from here on the pid cannot be given to another.
        now = started(pid)
        if now is None or (start is not None and now != start):
            os.close(descriptor)
            return False
        if (held := self._held.get((pid, now))) is not None:
            os.close(descriptor)
            held[1][who] = died
            return True
        self._held[pid, now] = descriptor, {who: died}
        asyncio.get_running_loop().add_reader(descriptor, self._ended, (pid, now))
        return True

    def close(self) -> None:
        for key in list(self._held):
            self._drop(key)

    def _ended(self, key: tuple[int, int]) -> None:
        for died in self._drop(key).values():
            died()

    def _drop(self, key: tuple[int, int]) -> dict[str, Callable[[], None]]:
        descriptor, callbacks = self._held.pop(key)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        return callbacks
