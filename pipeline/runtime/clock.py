"""The one clock that stamps are read from, and the name of its domain."""

from __future__ import annotations

import os
import time

_BOOTTIME = time.CLOCK_BOOTTIME
_read = time.clock_gettime_ns


def now_ns() -> int:
    """Nanoseconds of the host's boot clock: never set back, and it goes on while the host sleeps."""
    return _read(_BOOTTIME)


def wall_ms() -> int:
    """Milliseconds of the wall clock, for people to read and for ends that are dates; no look is ever judged by it."""
    return time.time_ns() // 1_000_000


def _domain() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    try:
        namespace = os.stat("/proc/self/ns/time").st_ino
    except OSError:  # kernels without time namespaces have one clock per boot
        namespace = 0
    return f"{boot}:{namespace}"


CLOCK = _domain()
"""Stamps may be compared only between processes that agree on this: same boot, same time namespace."""
