"""Who listens: to the feed and the taps, state by state, and to the crowd; all of it is judged, and kept in a history.

The history is lines of JSON in a folder: `feed.jsonl` and `tap.jsonl` as they came, `crowd-N.jsonl` with what each
client was sent. It is removed after a run in which nothing was violated.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from pipeline import bus, follow, wire
from pipeline.cli.deployment import holder, watchdog_notes
from pipeline.domain.model import Look
from pipeline.runtime.beat import read_beat, read_beats
from pipeline.runtime.settings import Settings
from tests.faults.validate import Judge

KEPT_LOOKS: Final = 2000
LINE: Final = 1 << 24
ANSWER_S: Final = 20.0


class History:
    """A file of lines."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=1 << 16)
        self._encode = msgspec.json.Encoder().encode

    def write(self, what: Any) -> None:
        self._file.write(self._encode([round(time.monotonic(), 4), what]) + b"\n")

    def close(self) -> None:
        self._file.close()


class Listener(follow.Follower):
    """A follower that is looked at after each message, and not only at the end of a batch."""

    def __init__(self, settings: Settings, judge: Judge, folder: Path) -> None:
        self.judge, self.settings = judge, settings
        self.history = History(folder / "feed.jsonl")
        self.began: dict[str, int] = {}
        self._touched: dict[str, set[str]] = {}
        self._whole: set[str] = set()
        self._at: dict[str, tuple[str, int]] = {}
        super().__init__(settings.run_dir, changed=self._judged, gone=self._left)

    def close(self) -> None:
        super().close()
        self.history.close()

    def _take_feed(self, messages: Iterable[wire.Feed]) -> None:
        for message in messages:
            self.history.write(message)
            if isinstance(message, wire.Heartbeat) and message.epoch not in self.began:
                # Before any process of this epoch that could have begun it; by the kernel's word, if it is there.
                self.began[message.epoch] = started(self.settings)
            super()._take_feed([message])

    def _take_delta(self, delta: wire.Delta, changed: set[str]) -> None:
        self._touched.setdefault(delta.project, set()).update(delta.patch)
        super()._take_delta(delta, changed)

    def _take_answers(self, answers: Iterable[wire.Answer]) -> None:
        for answer in answers:
            self.history.write(answer)
            project = answer.delta.project if isinstance(answer, wire.Changes) else getattr(answer, "project", "")
            self._whole.add(project)  # what lay between is not known
            super()._take_answers([answer])
            self._whole.discard(project)

    def _judged(self, projects: set[str]) -> None:
        for project in projects:
            replica = self.replicas[project]
            ledger, touched = replica.ledger, self._touched.pop(project, set())
            if ledger is None:
                continue
            at = replica.epoch, ledger.version
            before = self._at.get(project, ("", -1))
            whole = project in self._whole or at[0] != before[0]
            self._at[project] = at
            names = ledger.entries.keys() | touched if whole else touched
            changed = {name: ledger.entries[name].state() if name in ledger.entries else None for name in names}
            began = self.began.get(replica.epoch, 0)
            self.judge.state(replica.epoch, project, ledger.version, ledger.hash(), changed, began, whole)

    def _left(self, project: str) -> None:
        self._at.pop(project, None)


def started(settings: Settings) -> int:
    """When the aggregator that runs now was started, by the boot clock; 0 if that cannot be told."""
    beat = read_beat(settings.run_dir / "aggregator.beat")
    return 0 if beat is None else beat.started_ns


class Taps:
    """What the aggregator rules; the last looks are kept, to be told again."""

    def __init__(self, settings: Settings, judge: Judge, folder: Path) -> None:
        self.judge = judge
        self.history = History(folder / "tap.jsonl")
        self.looks: deque[Look] = deque(maxlen=KEPT_LOOKS)
        self.verdicts: Counter[str] = Counter()
        self.counted = 0.0  # when the last census came that was not held
        self._ends = bus.tap(settings.run_dir, self._take)

    def close(self) -> None:
        for end in self._ends:
            end.close()
        self.history.close()

    def _take(self, messages: list[wire.Tap]) -> None:
        for message in messages:
            if isinstance(message, wire.Delta | wire.Heartbeat):
                continue  # they are in the feed
            self.history.write(message)
            if isinstance(message, wire.Counted) and not message.held:
                self.counted = time.monotonic()
            if isinstance(message, wire.Ruled):
                self.verdicts[message.verdict] += 1
                if message.verdict != "foreign":
                    self.looks.append(message.look)


class CrowdProcess:
    """The crowd, seen from here."""

    def __init__(self, judge: Judge, process: asyncio.subprocess.Process) -> None:
        self.judge, self.process = judge, process
        self.counts: Counter[str] = Counter()
        self._where: asyncio.Future[list[dict[str, Any]]] | None = None
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, judge: Judge, folder: Path, number: int, told: dict[str, Any]) -> CrowdProcess:
        given = folder / f"crowd-{number}.json"
        given.write_text(json.dumps({**told, "history": str(folder / f"crowd-{number}.jsonl")}))
        command = [sys.executable, "-m", "tests.faults.screens", str(given)]
        with (folder / f"crowd-{number}.err").open("wb") as errors:
            pipe = asyncio.subprocess.PIPE
            process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=errors, limit=LINE, cwd=Path(__file__).parents[2]
            )
        return cls(judge, process)

    def tell(self, do: str, **more: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **more}).encode() + b"\n")

    async def where(self) -> list[dict[str, Any]]:
        """Where each client stands. Raises `TimeoutError`."""
        self._where = asyncio.get_running_loop().create_future()
        self.tell("where")
        return await asyncio.wait_for(self._where, ANSWER_S)

    async def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), ANSWER_S)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        await self._reader

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            told = json.loads(line)
            if "claim" in told:
                who, epoch, project, version, hash_ = told["claim"]
                self.judge.claim(who, epoch, project, version, hash_)
            elif "violation" in told:
                self.judge.violated(*told["violation"])
            elif self._where is not None and not self._where.done():
                self.counts = Counter(told["counts"])
                self._where.set_result(told["where"])


# ── what it costs ────────────────────────────────────────────────────────────────────────────────


class Costs:
    """Resident megabytes and descriptors of each process of the deployment: at the start, the most, at the end."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.first: dict[str, tuple[float, int]] = {}
        self.peak: dict[str, tuple[float, int]] = {}
        self.last: dict[str, tuple[float, int]] = {}

    def sample(self) -> None:
        self.last = {}
        for name, pid in processes(self.settings).items():
            try:
                process = psutil.Process(pid)
                now = process.memory_info().rss / 1e6, process.num_fds()
            except psutil.Error:
                continue
            self.last[name] = now
            self.first.setdefault(name, now)
            most = self.peak.get(name, now)
            self.peak[name] = max(most[0], now[0]), max(most[1], now[1])


def processes(settings: Settings) -> dict[str, int]:
    """By name, those that run: as their beats say, and the two that have none."""
    found = {beat.name: beat.pid for beat in read_beats(settings.run_dir)}
    found |= {"watchdog": watchdog_notes(settings.run_dir).get("pid", 0), "supervisord": holder(settings.run_dir) or 0}
    return {name: pid for name, pid in found.items() if pid and psutil.pid_exists(pid)}
