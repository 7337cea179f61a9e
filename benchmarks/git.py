"""What one look costs beside what others do for the same numbers, and what the whole pipeline makes of it.

    GIT_SIZES=1000,10000,100000    files of a worktree      GIT_PARTS=look,pool,live,start    which parts
    GIT_POOL=100                   worktrees of the pool    GIT_POOL_AT=DIR    where they stay for the next time

One file is edited before each look, ours and the peers' in turns, in the same worktree. A look is all that a worker's
thread does for a job that names this file, as those of active worktrees do, from the job to its answer; what the bus
costs shows in the whole deployment. CPU is that of this process and of all that it started. Peers: what most tools run
(`git status` and `git diff --stat`); the six processes that a tool runs which wants the same numbers as we; `git
diff-index`, the cheapest single question; pygit2; gitstatusd if it is on PATH.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pygit2

from benchmarks import figures, sockets
from benchmarks.deployment import deployment, home, members, until, worktrees
from pipeline import bus, wire
from pipeline.gitdir import resolve
from pipeline.runtime.beat import read_beats
from pipeline.runtime.clock import now_ns
from pipeline.runtime.settings import Settings
from workers.git import Looker
from workers.worker import look_at

SIZES = [int(size) for size in os.environ.get("GIT_SIZES", "1000,10000,100000").split(",")]
PARTS = os.environ.get("GIT_PARTS", "look,pool,live,start").split(",")
SETTLE_S = 0.05
POOL_FILES = 10_000
POOL_TREES = int(os.environ.get("GIT_POOL", "100"))
POOL_AT = os.environ.get("GIT_POOL_AT", "")
POOL_S = 5.0
EDITS = 60
ACTIVE = 10
LIVE_S = 30.0  # as long as the cadence of active worktrees
QUIET_S = 10.0
PROJECT = "project"
ENV = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}

NAIVE = (("status", "--porcelain=v2", "--branch"), ("diff", "--stat", "main"))
SIX = (
    ("rev-parse", "HEAD"),
    ("symbolic-ref", "-q", "--short", "HEAD"),
    ("rev-list", "--left-right", "--count", "main...HEAD"),
    ("status", "--porcelain=v2", "-z"),
    ("diff", "--numstat", "-z", "main"),
    ("ls-files", "--others", "--exclude-standard", "-z"),
)
INDEX = (("diff-index", "--numstat", "HEAD"),)


def _cpu() -> float:
    """Of this process and of all that it started and that ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _edit(tree: Path, n: int) -> bytes:
    """Make one of the files another one; returns its path."""
    path = f"dir{n % 10}/file{n % 10}.txt"
    with (tree / path).open("a") as file:
        file.write(f"edit {n}\n")
    return path.encode()


def _job(tree: Path, paths: tuple[bytes, ...] | None = None) -> wire.Job:
    dirs = resolve(tree)
    return wire.Job(
        1, tree.name, str(tree), str(dirs.git_dir), str(dirs.common_dir), dirs.inode, "main", 60_000,
        paths is None, "" if paths else "first", paths or (),
    )  # fmt: skip


def _run(tree: Path, commands: tuple[tuple[str, ...], ...]) -> None:
    for command in commands:
        subprocess.run(["git", *command], cwd=tree, env=ENV, capture_output=True, check=False)


def _pygit2(tree: Path) -> None:
    repository = pygit2.Repository(str(tree))
    repository.status()
    repository.diff("main").stats.insertions  # noqa: B018 - it is what costs


# ── one look ─────────────────────────────────────────────────────────────────────────────────────


def _looks(size: int) -> None:
    figures.heading(f"git: one file edited, {size:,} files in the worktree; CPU of a look at it")
    with tempfile.TemporaryDirectory(prefix="tw-git-") as folder:
        parent = Path(folder)
        worktrees(parent, 1, size)
        tree = parent / "task-0"
        looker = Looker(parent / "cache")
        (parent / "cache").mkdir(mode=0o700)
        began = time.perf_counter(), _cpu()
        looker.look(_job(tree))
        figures.line("the first, full look: wall", [(time.perf_counter() - began[0]) * 1e3], "ms")
        ways: dict[str, Callable[[], None]] = {
            "naive: status, diff --stat": lambda: _run(tree, NAIVE),
            "six processes": lambda: _run(tree, SIX),
            "git diff-index": lambda: _run(tree, INDEX),
            "pygit2: status, diff": lambda: _pygit2(tree),
        }
        rounds = 5 if size >= 100_000 else 10
        ours: list[float] = []
        warm: list[float] = []
        walls: list[float] = []
        theirs: dict[str, list[float]] = {name: [] for name in ways}
        their_walls: dict[str, list[float]] = {name: [] for name in ways}
        n, scoped = 0, 0
        for round_ in range(rounds + 1):
            for _ in range(10):
                path = _edit(tree, n := n + 1)
                time.sleep(SETTLE_S)
                job = _job(tree, (path,))
                cpu, wall = _cpu(), time.perf_counter()
                seen = look_at(job, "bench", looker)
                if round_:
                    ours.append((_cpu() - cpu) * 1e3)
                    walls.append((time.perf_counter() - wall) * 1e3)
                    scoped += seen.scoped
            for _ in range(10):
                job = _job(tree, (_edit(tree, n := n + 1),))
                cpu = _cpu()
                look_at(job, "bench", looker)
                if round_:
                    warm.append((_cpu() - cpu) * 1e3)
            for name, way in ways.items():
                _edit(tree, n := n + 1)
                cpu, wall = _cpu(), time.perf_counter()
                way()
                if round_:
                    theirs[name].append((_cpu() - cpu) * 1e3)
                    their_walls[name].append((time.perf_counter() - wall) * 1e3)
            looker.look(_job(tree, tuple(f"dir{i}/file{i}.txt".encode() for i in range(10))))
        print(f"{scoped} of {len(ours)} of our looks were scoped")
        figures.line("treewire, one look after the other, CPU", warm, "ms", "≤ 0.5")
        mine = figures.line(f"treewire, after {SETTLE_S * 1000:g} ms of rest, CPU", ours, "ms", "≤ 0.5")
        my_wall = figures.line("treewire, wall", walls, "ms")
        for name in ways:
            cpu_ms = figures.line(f"{name}, CPU", theirs[name], "ms")
            figures.ratio(f"{name} / treewire, CPU", cpu_ms, mine)
            figures.ratio(f"{name} / treewire, wall", statistics.median(their_walls[name]), my_wall)
        if shutil.which("gitstatusd") is None:
            print("gitstatusd: not on PATH, not measured; diff-index stands in for it")


# ── a pool ───────────────────────────────────────────────────────────────────────────────────────

WORKER = """
import sys, time
from pathlib import Path
from benchmarks.git import NAIVE, _edit, _job, _run, resident
from workers.git import Looker
ours, seconds, trees = sys.argv[1] == "ours", float(sys.argv[2]), [Path(one) for one in sys.argv[3:]]
cache = Path(sys.argv[3] + ".cache"); cache.mkdir(mode=0o700, exist_ok=True)
looker = Looker(cache)
held = []
if ours:
    for tree in trees:
        looker.look(_job(tree))
        looker.look(_job(tree, (_edit(tree, 0),)))
        held.append(resident())
print((held[-1] - held[len(held) // 2]) / (len(held) - 1 - len(held) // 2) if len(held) > 2 else 0.0, flush=True)
sys.stdin.readline()
count, until = 0, time.perf_counter() + seconds
while time.perf_counter() < until:
    tree = trees[count % len(trees)]
    path = _edit(tree, count)
    looker.look(_job(tree, (path,))) if ours else _run(tree, NAIVE)
    count += 1
print(count, flush=True)
"""


def resident() -> float:
    """Of this process, in kB."""
    return float(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1000


def _pool() -> None:
    figures.heading(f"git: refreshes per second, {POOL_TREES} worktrees of {POOL_FILES:,} files")
    with tempfile.TemporaryDirectory(prefix="tw-git-") as folder:
        parent = Path(POOL_AT or folder)
        if not (parent / f"task-{POOL_TREES - 1}").exists():
            worktrees(parent, POOL_TREES, POOL_FILES)
        trees = [str(parent / f"task-{n}") for n in range(POOL_TREES)]
        for workers in (1, 2):
            rates: dict[str, list[float]] = {}
            grown: list[float] = []
            for who in ("ours", "naive", "ours", "naive"):
                counts, kept = _workers(who, trees, workers)
                rates.setdefault(who, []).append(sum(counts) / POOL_S)
                grown += kept if who == "ours" else []
            if workers == 1:
                figures.line("memory that one more worktree takes", grown, "kB")
            mine = figures.line(f"treewire, {workers} worker(s)", rates["ours"], "/s")
            theirs = figures.line(f"naive, {workers} worker(s)", rates["naive"], "/s")
            figures.ratio("treewire / naive, goal ≥ 50", mine, theirs)


def _workers(who: str, trees: list[str], workers: int) -> tuple[list[int], list[float]]:
    """How many refreshes each made, and by how much each worktree of the second half had made it grow before."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, who, str(POOL_S), *trees[n::workers]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for n in range(workers)
    ]  # fmt: skip
    grown = []
    for child in children:
        assert child.stdout is not None
        grown.append(float(child.stdout.readline()))
    counts = []
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        out, _ = child.communicate()
        counts.append(int(out))
    return counts, grown


# ── a whole deployment ───────────────────────────────────────────────────────────────────────────


def _dispatcher(settings: Settings, name: str) -> int:
    return next(
        (int(beat.figures.get(name, 0)) for beat in read_beats(settings.run_dir) if beat.name == "dispatcher"), 0
    )


@contextmanager
def _stamps(settings: Settings) -> Iterator[list[tuple[str, int, int]]]:
    """What the dispatcher's workers looked at: (workspace, files, end of the look)."""
    seen: list[tuple[str, int, int]] = []
    import asyncio

    ready, stop = threading.Event(), threading.Event()

    async def listen() -> None:
        def take(messages: list[wire.Tap]) -> None:
            for message in messages:
                if isinstance(message, wire.Ruled) and message.look.group == "git":
                    seen.append((message.look.workspace, message.look.stamp.began, message.look.stamp.ended))

        ends = bus.tap(settings.run_dir, take)
        ready.set()
        await asyncio.to_thread(stop.wait)
        for end in ends:
            end.close()

    thread = threading.Thread(target=lambda: asyncio.run(listen()))
    thread.start()
    ready.wait()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def _live() -> None:
    figures.heading("git: an edit in an active worktree, 100 worktrees of 100 files, whole deployment")
    with tempfile.TemporaryDirectory(prefix="tw-git-") as folder, home() as settings:
        parent = Path(folder)
        repository = worktrees(parent, 100, 100)
        with deployment(settings, repository) as url:
            _counted(settings, 101, 60)
            time.sleep(3)
            started = _dispatcher(settings, "git_processes")
            time.sleep(QUIET_S)
            started = _dispatcher(settings, "git_processes") - started
            figures.line(f"git processes in {QUIET_S:g} s of quiet", [float(started)], "", "0")
            token = settings.token_path.read_text().strip()
            end = sockets.connect(url, token, PROJECT)
            arrived: list[int] = []
            due = threading.Condition()

            def listen() -> None:
                try:
                    for frame in sockets.frames(end, 300):
                        if frame["type"] == "delta" and any(
                            (entry or {}).get("git") for entry in frame["patch"].values()
                        ):
                            with due:
                                arrived.append(now_ns())
                                due.notify_all()
                except RuntimeError:
                    pass  # the deployment ends before this does

            threading.Thread(target=listen, daemon=True).start()
            tree = parent / "task-0"
            fresh, shown = [], []
            with _stamps(settings) as seen:
                time.sleep(1)
                for n in range(EDITS + 5):
                    with due:
                        arrived.clear()
                        seen.clear()
                        began = now_ns()
                        _edit(tree, n)
                        due.wait_for(lambda: arrived, 10)
                    if n >= 5 and arrived:
                        shown.append((arrived[0] - began) / 1e6)
                        fresh += [(one[2] - began) / 1e6 for one in seen[:1] if one[2] > began]
                    time.sleep(0.25)
            figures.line("write → counts in the worker: p50", [figures.percentile(fresh, 0.5)], "ms", "≤ 5")
            figures.line("write → counts in the worker: p99", [figures.percentile(fresh, 0.99)], "ms")
            figures.line("edit → delta at a client: p50", [figures.percentile(shown, 0.5)], "ms", "≤ 40")
            figures.line("edit → delta at a client: p99", [figures.percentile(shown, 0.99)], "ms")
            processes = members(settings)
            shares: list[float] = []
            parts: dict[str, list[float]] = {}
            n = EDITS
            for window in range(4):
                before, from_ = [sum(one.cpu_times()[:4]) for one in processes], time.perf_counter()
                while time.perf_counter() < from_ + LIVE_S:
                    for active in range(ACTIVE):
                        _edit(parent / f"task-{active}", n := n + 1)
                    time.sleep(2)
                lasted = time.perf_counter() - from_
                spent = [sum(one.cpu_times()[:4]) - was for one, was in zip(processes, before, strict=True)]
                if window:  # in the first one the worktrees only become active
                    shares.append(100 * sum(spent) / lasted)
                    for one, seconds in zip(processes, spent, strict=True):
                        parts.setdefault(_name(one), []).append(100 * seconds / lasted)
            share = figures.line(f"{ACTIVE} active, an edit each 2 s: all processes", shares, "% of core", "≤ 3")
            figures.line("the same, CPU an hour", [share * 36], "s")
            for name, of_it in parts.items():
                figures.line(f"of it {name}", of_it, "% of core")


def _name(process: psutil.Process) -> str:
    command = process.cmdline()
    return " ".join(command[command.index("run") + 1 :][:2]) if "run" in command else "supervisord"


def _counted(settings: Settings, count: int, seconds: float) -> None:
    until(
        lambda: (
            _dispatcher(settings, "git_looks") >= count
            and _dispatcher(settings, "queue") + _dispatcher(settings, "running") == 0
        ),
        seconds,
        "all worktrees counted",
    )


def _start() -> None:
    figures.heading("git: 300 worktrees of 300 files, from `treewire up` to all counts at a client")
    with tempfile.TemporaryDirectory(prefix="tw-git-") as folder:
        parent = Path(folder)
        repository = worktrees(parent, 300, 300)
        taken, ready, watches = [], [], []
        for _ in range(3):
            with home() as settings:
                began = time.perf_counter()
                with deployment(settings, repository) as url:
                    ready.append(time.perf_counter() - began)
                    token = settings.token_path.read_text().strip()
                    end = sockets.connect(url, token, PROJECT)
                    known: set[str] = set()
                    for frame in sockets.frames(end, 60):
                        entries = frame.get("workspaces") if frame["type"] == "snapshot" else frame.get("patch")
                        known |= {
                            name for name, entry in (entries or {}).items()
                            if ((entry or {}).get("git") or {}).get("head")
                        }  # fmt: skip
                        if len(known) >= 301:
                            break
                    taken.append(time.perf_counter() - began)
                    time.sleep(3)
                    watches.append(float(_dispatcher(settings, "watches")))
                    end.close()
        figures.line("`treewire up` → ready", ready, "s")
        figures.line("`treewire up` → all counts known", taken, "s", "≤ 5")
        figures.line("watches", watches, "", "≤ 3,000")


def main() -> None:
    if "look" in PARTS:
        for size in SIZES:
            _looks(size)
    if "pool" in PARTS:
        _pool()
    if "live" in PARTS:
        _live()
    if "start" in PARTS:
        _start()


if __name__ == "__main__":
    main()
