"""What is measured of a running deployment: each process as the kernel sees it, the store, and what lies on disk."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.cli.deployment import members
from pipeline.cli.status import survey
from pipeline.runtime.settings import Settings
from tests.soak.verdict import Series

MB: Final = 1e6


class Kind(NamedTuple):
    """A sort of figure: its unit, and the growth per hour that is none."""

    unit: str
    tolerance: float | None


# Group of figures → its kinds. What is bounded by rotation alone (logs) may come as fast as shown.
GROUPS: Final[Mapping[str, Mapping[str, Kind]]] = {
    "memory": {"rss": Kind("MB", 8.0), "pss": Kind("MB", None)},
    "descriptors": {"descriptors": Kind("", 12.0), "sockets": Kind("", 12.0)},
    "threads": {"threads": Kind("", 6.0)},
    "store": {
        "entries": Kind("", 60.0),
        "live": Kind("", 60.0),
        "tombstones": Kind("", 60.0),
        "relooks": Kind("", 12.0),
        "clients": Kind("", None),
        "archived rows": Kind("", 120.0),
    },
    "disk": {
        "catalog": Kind("MB", 2.0),
        "write-ahead log": Kind("MB", 4.0),
        "cache": Kind("MB", 20.0),
        "run": Kind("MB", 1.0),
        "log": Kind("MB", 20.0),
    },
}
METRICS: Final = {
    "entries": "treewire_store_entries",
    "live": "treewire_store_live",
    "tombstones": "treewire_store_tombstones",
    "relooks": "treewire_relooks",
    "clients": "treewire_clients",
}


class Record:
    """All series of a run. `pids`: whose figures they are, and how often somebody else took over the name."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
        self.pids: dict[str, int] = {}
        self.restarts: dict[str, int] = {}

    def add(self, at: float, group: str, kind: str, value: float, of: str = "") -> None:
        self.points.setdefault((group, kind, of), []).append((at, value))

    def series(self) -> list[Series]:
        return [
            Series(f"{of} {kind}".strip(), group, GROUPS[group][kind].unit, GROUPS[group][kind].tolerance, points)
            for (group, kind, of), points in sorted(self.points.items(), key=lambda one: (one[0][0], one[0][2]))
        ]

    def saw(self, name: str, pid: int) -> None:
        if self.pids.setdefault(name, pid) != pid:
            self.restarts[name] = self.restarts.get(name, 0) + 1
            self.pids[name] = pid


def sample(record: Record, settings: Settings, at: float, metrics: str, archived: int) -> None:
    """Take every figure once. `metrics`: the text of ``/metrics``; `archived`: rows of archived workspaces."""
    for name, pid in processes(settings).items():
        record.saw(name, pid)
        with contextlib.suppress(OSError):  # it ended just now
            for group, kind, value in of_process(pid):
                record.add(at, group, kind, value, of=name)
    for kind, metric in METRICS.items():
        record.add(at, "store", kind, total(metrics, metric))
    record.add(at, "store", "archived rows", archived)
    for kind, value in of_disk(settings):
        record.add(at, "disk", kind, value)


def processes(settings: Settings) -> dict[str, int]:
    """By name; supervisord and its watchdog are among them."""
    return {row["name"]: row["pid"] for row in survey(settings)["processes"] if row["pid"]}


def of_process(pid: int) -> Iterator[tuple[str, str, float]]:
    """Group, kind and value of what the kernel tells of a process. Raises `OSError` if it is gone."""
    proc = Path(f"/proc/{pid}")
    sizes = dict(re.findall(r"^(Rss|Pss):\s+(\d+) kB", (proc / "smaps_rollup").read_text(), re.MULTILINE))
    yield "memory", "rss", int(sizes["Rss"]) * 1024 / MB
    yield "memory", "pss", int(sizes["Pss"]) * 1024 / MB
    targets = []
    for fd in os.listdir(proc / "fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            targets.append(os.readlink(proc / "fd" / fd))
    yield "descriptors", "descriptors", len(targets)
    yield "descriptors", "sockets", sum(target.startswith("socket:") for target in targets)
    yield "threads", "threads", len(os.listdir(proc / "task"))


def of_disk(settings: Settings) -> Iterator[tuple[str, float]]:
    database = settings.home / "treewire.db"
    yield "catalog", size(database)
    yield "write-ahead log", size(database.with_name(database.name + "-wal"))
    for folder in ("cache", "log"):
        yield folder, size(settings.home / folder)
    yield "run", size(settings.run_dir)


def size(path: Path) -> float:
    """Megabytes on disk of a file, or of all files below a folder; 0 if it is not there."""
    total = 0
    with contextlib.suppress(OSError):
        total += path.lstat().st_blocks * 512
    if path.is_dir():
        for folder, _, files in os.walk(path):
            for name in files:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total / MB


def total(metrics: str, name: str) -> float:
    """The sum of a metric over all processes and labels."""
    lines = (line for line in metrics.splitlines() if line.startswith((name + "{", name + " ")))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def worn(settings: Settings) -> list[str]:
    """Members that are not well, in words."""
    return [
        f"{member.name} is {member.state} and says {member.beat.state if member.beat else 'nothing'}"
        for member in members(settings)
        if not member.well
    ]
