"""Prometheus text: each process writes its own to a file, and whoever is asked merges the files.

No process listens for a scraper, and none but those that count something pay for the client library.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtime.beat import Beat, read_beats

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

SUFFIX = ".prom"
_NAME = re.compile(r"[^a-zA-Z0-9_]")
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{)?(.*)$")

_OWN = {
    "rss": ("treewire_process_resident_bytes", "gauge", "Resident memory."),
    "cpu_s": ("treewire_process_cpu_seconds_total", "counter", "CPU time since the start."),
    "fds": ("treewire_process_descriptors", "gauge", "Open file descriptors."),
    "threads": ("treewire_process_threads", "gauge", "Threads."),
    "lag_ms": ("treewire_process_loop_lag_ms", "gauge", "How late the last beat came."),
}


def write(registry: CollectorRegistry, run_dir: Path, name: str) -> None:
    """Put the registry's text into ``<run_dir>/<name>.prom``, whole or not at all."""
    from prometheus_client import generate_latest

    path = run_dir / f"{name}{SUFFIX}"
    fresh = path.with_suffix(f"{SUFFIX}.new")
    fresh.write_bytes(generate_latest(registry))
    os.replace(fresh, path)


def merged(run_dir: Path) -> bytes:
    """The metrics of all living processes, each sample with a ``process`` label.

    A process that left a file behind and no longer beats is told by ``treewire_process_up 0`` and by nothing else.
    """
    families: dict[str, list[str]] = {}
    for beat in read_beats(run_dir):
        alive = beat.alive()
        _sample(families, "treewire_process_up", "gauge", "Whether the process was heard of lately.", beat, int(alive))
        if not alive:
            continue
        for field, (metric, kind, help_) in _OWN.items():
            _sample(families, metric, kind, help_, beat, getattr(beat, field))
        for key, value in beat.figures.items():
            if not isinstance(value, str):
                metric = f"treewire_figure_{_NAME.sub('_', key)}"
                _sample(families, metric, "gauge", "As in treewire status.", beat, value)
        try:
            text = (run_dir / f"{beat.name}{SUFFIX}").read_text()
        except OSError:
            continue
        _absorb(families, text, beat.name)
    lines = [line for family in families.values() for line in family]
    return "".join(f"{line}\n" for line in lines).encode()


def _sample(families: dict[str, list[str]], metric: str, kind: str, help_: str, beat: Beat, value: float) -> None:
    family = families.setdefault(metric, [f"# HELP {metric} {help_}", f"# TYPE {metric} {kind}"])
    family.append(f'{metric}{{process="{beat.name}"}} {value}')


def _absorb(families: dict[str, list[str]], text: str, process: str) -> None:
    family: list[str] = []
    for line in text.splitlines():
        if line.startswith("# HELP "):
            metric = line.split(" ", 3)[2]
            known = metric in families
            family = families.setdefault(metric, [line])
            if known:
                continue
        elif line.startswith("# TYPE "):
            if line not in family:
                family.append(line)
        elif found := _SAMPLE.match(line):
            metric, labelled, rest = found.groups()
            label = f'process="{process}"'
            if not labelled:
                family.append(f"{metric}{{{label}}}{rest}")
            else:
                family.append(f"{metric}{{{label}{'' if rest.startswith('}') else ','}{rest}")
