"""What it costs when nothing happens: CPU, wake-ups, git processes and memory of the whole deployment.

Beside it: what one round of the usual polling (`git status` and `git diff --stat` per worktree) costs, once.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks import figures
from benchmarks.deployment import deployment, home, members, until, worktrees
from pipeline.runtime.beat import read_beats
from pipeline.runtime.settings import Settings

QUIET = 100
MANY = 300
WINDOW_S = 20.0
WINDOWS = 3


def _cpu_s(process: psutil.Process) -> float:
    """Seconds of CPU, with those of children that have ended: every git that a worker started."""
    return float(sum(process.cpu_times()[:4]))


def _wakeups(process: psutil.Process) -> int:
    total = 0
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def _name(process: psutil.Process) -> str:
    return " ".join(process.cmdline()[1:6])[-50:]


def _figure(settings: Settings, process: str, name: str) -> int:
    return next((int(beat.figures.get(name, 0)) for beat in read_beats(settings.run_dir) if beat.name == process), 0)


def _spawns(settings: Settings) -> int:
    return _figure(settings, "dispatcher", "git_looks")


def _counted(settings: Settings, count: int) -> None:
    until(
        lambda: (
            _figure(settings, "aggregator", "entries") > count
            and _figure(settings, "dispatcher", "queue") + _figure(settings, "dispatcher", "running") == 0
            and _spawns(settings) > 0
        ),
        120,
        "all worktrees counted",
    )
    time.sleep(5)


def _poll_once(parent: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for tree in sorted(parent.glob("task-*"))[:QUIET]:
        for command in (["git", "status", "--porcelain=v2", "--branch"], ["git", "diff", "--stat", "main"]):
            subprocess.run(command, cwd=tree, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _memory(processes: list[psutil.Process]) -> tuple[float, float]:
    resident = sum(process.memory_info().rss for process in processes)
    shared = sum(process.memory_full_info().pss for process in processes)
    return resident / 1e6, shared / 1e6


def main() -> None:
    figures.heading(f"idle: {QUIET} quiet worktrees, all processes of a deployment together")
    parent = Path(tempfile.mkdtemp(prefix="tw-repo-"))
    try:
        repository = worktrees(parent, MANY, 30)
        extra = sorted(parent.glob("task-*"), key=lambda path: int(path.name[5:]))[QUIET:]
        hidden = parent / "hidden"
        _hide(repository, extra, hidden)
        with home() as settings, deployment(settings, repository) as _:
            _counted(settings, QUIET)
            processes = members(settings)
            shares, wakes, spawns = [], [], []
            for _ in range(WINDOWS):
                cpu, woke = [_cpu_s(one) for one in processes], [_wakeups(one) for one in processes]
                git, began = _spawns(settings), time.perf_counter()
                time.sleep(WINDOW_S)
                took = time.perf_counter() - began
                shares.append([100 * (_cpu_s(one) - was) / took for one, was in zip(processes, cpu, strict=True)])
                wakes.append([(_wakeups(one) - was) / took for one, was in zip(processes, woke, strict=True)])
                spawns.append((_spawns(settings) - git) * 60 / took)
            share = figures.line(f"CPU of {len(processes)} processes", [*map(sum, shares)], "% of core", "≤ 1")
            figures.line("wake-ups", [*map(sum, wakes)], "/s")
            for n, one in enumerate(processes):
                figures.line(f"  {_name(one)}: CPU", [window[n] for window in shares], "% of core")
                figures.line(f"  {_name(one)}: wake-ups", [window[n] for window in wakes], "/s")
            figures.line("git looks (each starts git processes)", spawns, "/min")
            poll = figures.line(
                "one polling round, status + diff --stat", [_poll_once(parent) for _ in range(3)], "s CPU"
            )
            figures.ratio("a polling round each 15 s / treewire idle", poll / 15 * 100, share)
        figures.heading(f"memory: {MANY} worktrees, all processes together")
        _show(repository, hidden)
        with home() as settings, deployment(settings, repository) as _:
            _counted(settings, MANY)
            processes = members(settings)
            resident, shared = _memory(processes)
            # What the machine gives for it is the proportional size: resident counts a page that nine processes
            # share nine times. Both are printed; the resident sum does not meet the figure.
            figures.line("proportional (shared pages counted once)", [shared], "MB", "≤ 350")
            figures.line("resident, each process counted whole", [resident], "MB")
            for process in processes:
                figures.line(f"  {_name(process)}", [process.memory_info().rss / 1e6], "MB")
    finally:
        shutil.rmtree(parent, ignore_errors=True)


def _hide(repository: Path, extra: list[Path], hidden: Path) -> None:
    """Let git forget some worktrees for a while."""
    hidden.mkdir()
    for tree in extra:
        os.rename(repository / ".git" / "worktrees" / tree.name, hidden / tree.name)


def _show(repository: Path, hidden: Path) -> None:
    for entry in hidden.iterdir():
        os.rename(entry, repository / ".git" / "worktrees" / entry.name)
