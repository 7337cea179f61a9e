"""The tap: watch what flows, record it, and rebuild any version from a recording.

A recording is lines of JSON: the messages of both taps as they came, and an image of each project at the start and
after every gap. `Replay` follows the deltas from the images on and checks each hash that a heartbeat announced, so a
recording proves (or disproves) itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from io import RawIOBase
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from pipeline import bus, wire
from pipeline.domain.errors import TreewireError
from pipeline.domain.versioned import Ledger

Line: TypeAlias = wire.Tap | wire.Image

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(wire.Tap | wire.Image).decode


class RecordingError(TreewireError):
    """The file is not a recording, or a line of it is damaged; the message names the line."""


class Filter(Struct, frozen=True):
    """What to show; empty means everything."""

    project: str = ""
    workspace: str = ""
    group: str = ""
    kinds: frozenset[str] = frozenset()

    def wants(self, message: wire.Tap) -> bool:
        match message:
            case wire.Ruled():
                look = message.look
                return (
                    self._kind("look", "verdict")
                    and (not self.project or look.project == self.project)
                    and (not self.workspace or look.workspace == self.workspace)
                    and (not self.group or look.group == self.group)
                )
            case wire.Counted():
                return self._kind("look", "verdict") and not (self.workspace or self.group or self.project)
            case wire.Delta():
                patch = message.patch
                if (self.project and message.project != self.project) or not self._kind("delta"):
                    return False
                if self.workspace and self.workspace not in patch:
                    return False
                touched = [patch.get(self.workspace)] if self.workspace else list(patch.values())
                return not self.group or any(_touches(entry, self.group) for entry in touched)
            case wire.Gone():
                return self._kind("delta") and (not self.project or message.project == self.project)
            case wire.JobEvent():
                return (
                    self._kind("job")
                    and self.group in ("", "git")
                    and (not self.workspace or message.workspace == self.workspace)
                    and (not self.project or message.project == self.project)
                )
            case _:
                return False  # heartbeats are recorded, not shown

    def _kind(self, *names: str) -> bool:
        return not self.kinds or not self.kinds.isdisjoint(names)


def _touches(entry_patch: Any, group: str) -> bool:
    if not isinstance(entry_patch, dict):
        return True  # the workspace is gone, and the group with it
    kind, _, session = group.partition(":")
    return session in entry_patch.get("sessions", {}) if session else kind in entry_patch


class Recorder:
    """Turns the stream into the lines of a recording; asks for an image wherever the deltas do not continue."""

    def __init__(self, write: Callable[[bytes], object], ask: Callable[[str], bool]) -> None:
        self._write, self._ask = write, ask
        self._at: dict[str, tuple[str, int]] = {}

    def take(self, message: Line) -> None:
        self._write(_encode(message) + b"\n")
        if isinstance(message, wire.Image):
            self._at[message.project] = (message.epoch, message.version)
        elif isinstance(message, wire.Delta):
            epoch, version = self._at.get(message.project, ("", -1))
            if epoch == message.epoch and message.from_ <= version:
                self._at[message.project] = (epoch, max(version, message.to))
            else:
                self._ask(message.project)
        elif isinstance(message, wire.Heartbeat):
            for project, head in message.heads.items():
                epoch, version = self._at.get(project, ("", -1))
                if epoch != message.epoch or version < head.version:
                    self._ask(project)


async def watch(run_dir: Path, take: Callable[[Line], None], *, stop: asyncio.Event) -> None:
    """Hand over every message of both taps until `stop`."""

    def take_all(messages: Iterable[Any]) -> None:
        for message in messages:
            if not isinstance(message, wire.Missing):
                take(message)

    ends = bus.tap(run_dir, take_all)
    try:
        await stop.wait()
    finally:
        for end in ends:
            end.close()


async def record(run_dir: Path, file: RawIOBase, show: Callable[[Line], None], *, stop: asyncio.Event) -> None:
    """`watch`, and write everything into `file`."""
    loop = asyncio.get_running_loop()
    asked: dict[str, float] = {}

    def ask(project: str) -> bool:
        now = loop.time()
        if now - asked.get(project, -1.0) < 1.0:
            return False
        asked[project] = now
        return queries.ask(wire.Since(len(asked), project))

    recorder = Recorder(file.write, ask)

    def take(message: Line) -> None:
        recorder.take(message)
        show(message)

    def take_answers(answers: Iterable[wire.Answer]) -> None:
        for answer in answers:
            if isinstance(answer, wire.Image):
                recorder.take(answer)

    queries = bus.Queries(run_dir, take_answers)
    try:
        await watch(run_dir, take, stop=stop)
    finally:
        queries.close()


class Replay:
    """Rebuilds projects from the lines of a recording and checks every hash on the way."""

    def __init__(self) -> None:
        self.ledgers: dict[str, tuple[str, Ledger]] = {}
        self.deltas = 0
        self.looks = 0
        self.hashes = 0
        self.gaps = 0
        self.mismatches: list[str] = []
        self._waiting: dict[str, list[wire.Delta]] = {}

    def take(self, message: Line) -> list[wire.Delta]:
        """Apply one line; returns the deltas that were applied by it."""
        if isinstance(message, wire.Image):
            return self._load(message)
        if isinstance(message, wire.Delta):
            return self._apply(message)
        if isinstance(message, wire.Gone):
            self.ledgers.pop(message.project, None)
        elif isinstance(message, wire.Heartbeat):
            for project, head in message.heads.items():
                self._check(project, message.epoch, head)
        elif isinstance(message, wire.Ruled):
            self.looks += 1
        return []

    def _load(self, image: wire.Image) -> list[wire.Delta]:
        held = self.ledgers.get(image.project)
        if held is None or held[0] != image.epoch or held[1].version < image.version:
            ledger = Ledger.load(image.version, image.floor, image.entries, image.gone)
            self.ledgers[image.project] = (image.epoch, ledger)
            if ledger.hash() != image.hash:
                self.mismatches.append(f"{image.project} image at {image.version}")
            self.hashes += 1
        applied = []
        for delta in self._waiting.pop(image.project, []):
            applied += self._apply(delta)
        return applied

    def _apply(self, delta: wire.Delta) -> list[wire.Delta]:
        epoch, ledger = self.ledgers.get(delta.project, ("", None))
        if ledger is None or epoch != delta.epoch or delta.from_ > ledger.version:
            if ledger is not None:
                self.gaps += 1
                del self.ledgers[delta.project]
            self._waiting.setdefault(delta.project, []).append(delta)
            return []
        if delta.to <= ledger.version:
            return []
        ledger.apply(delta.patch, delta.to)
        self.deltas += 1
        return [delta]

    def _check(self, project: str, epoch: str, head: wire.Head) -> None:
        mine, ledger = self.ledgers.get(project, ("", None))
        if ledger is not None and mine == epoch and ledger.version == head.version:
            self.hashes += 1
            if ledger.hash() != head.hash:
                self.mismatches.append(f"{project} at {head.version}")


def read(path: Path) -> Iterator[Line]:
    """The lines of a recording. A last line that was cut off (the recorder was killed) is left out."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield _decode(line)
            except (msgspec.DecodeError, RecursionError) as error:
                raise RecordingError(f"{path}, line {number}: not a line of a recording ({error})") from error
