"""Claude Code, with no configuration: its registry of running sessions, and the transcripts that they write."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from pipeline.bridges import claude
from pipeline.bridges.claude import Registered
from pipeline.bridges.event import event_stamp
from pipeline.domain.model import Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.sources.agents import Look, Watched, recent
from pipeline.sources.desk import Where
from pipeline.sources.ladder import Rung, Sighting
from pipeline.sources.transcripts import Transcripts

REGISTRY: Final = "claude registry"
TRANSCRIPT: Final = "claude transcript"
SUFFIX: Final = ".jsonl"
ENTRY: Final = ".json"
MAX_ENTRY: Final = 65_536


class Claude(Watched):
    name: ClassVar[str] = "claude"

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__(Path(environ.get("CLAUDE_CONFIG_DIR") or Path.home() / ".claude"))
        self._registry, self._projects = os.path.join(self.home, "sessions"), os.path.join(self.home, "projects")
        self._entries: dict[str, Registered] = {}
        self._transcripts = Transcripts(claude.Reading, claude.read)
        self._wanted: set[str] = set()

    def look(self, places: list[Where], touched: set[str], *, whole: bool) -> Look:
        seen: dict[str, list[Sighting]] = {REGISTRY: [], TRANSCRIPT: []}
        lost: list[tuple[str, str]] = []
        if not whole and any(os.path.dirname(path) in (self.home, self._projects) for path in touched):
            whole = True  # folders came or went
        if whole:
            files = self._find(places)
            lost += [(TRANSCRIPT, session) for session in self._transcripts.follow(files)]
            entries = set(self._entries) | {path for _, path in recent(self._registry, ENTRY)} | self._listed()
        else:
            entries = {path for path in touched if os.path.dirname(path) == self._registry and path.endswith(ENTRY)}
            if {path for path in touched if path.endswith(SUFFIX)} - self._transcripts.paths():
                self._transcripts.follow(self._find(places))
        for path in sorted(entries):
            self._take_entry(path, seen[REGISTRY], lost)
        step = self._transcripts.step(None if whole else touched)
        over = {session for source, session in lost if source == REGISTRY}
        seen[TRANSCRIPT] = [one for one in step.seen if one.session not in over]
        lost += [(TRANSCRIPT, session) for session in (*step.gone, *over)]
        known = {entry.session for entry in self._entries.values()}
        loose = {name: cwd for name, cwd in self._transcripts.sessions().items() if name not in known}
        return Look(self._wanted, seen, lost, loose)

    def _find(self, places: list[Where]) -> list[str]:
        """The transcripts that may be of followed worktrees, newest first; their lines tell for certain."""
        slugs = tuple(claude.slug(place.path) for place in places)
        try:
            names = [name for name in os.listdir(self._projects) if slugs and name.startswith(slugs)]
        except OSError:
            names = []
        folders = [os.path.join(self._projects, name) for name in names]
        self._wanted = {self.home, self._registry, self._projects, *folders}
        found = [one for folder in folders for one in recent(folder, SUFFIX)]
        return [path for _, path in sorted(found, reverse=True)]

    def _listed(self) -> set[str]:
        """A session may run for days without a new status, so the age of its entry says nothing."""
        try:
            names = [name for name in os.listdir(self._registry) if name.endswith(ENTRY)]
        except OSError:
            return set()
        return {os.path.join(self._registry, name) for name in names[:4096]}

    def _take_entry(self, path: str, seen: list[Sighting], lost: list[tuple[str, str]]) -> None:
        began = now_ns()
        body = _body(path)
        entry = None if body is None else claude.registered(body)
        before = self._entries.get(path)
        if body is not None and entry is None:
            return  # half written, or of a format that nobody knows: what was known stays
        if before is not None and (entry is None or entry.session != before.session):
            del self._entries[path]
            lost.append((REGISTRY, before.session))
        if entry is None:
            return
        self._entries[path] = entry
        wall = wall_ms()
        at_ms = None if entry.at_ms is None else min(entry.at_ms, wall)
        stamp = Stamp(began, now_ns(), CLOCK) if at_ms is None else event_stamp(wall - at_ms, now_ns(), CLOCK)
        sighting = Sighting(
            entry.session, entry.cwd, Rung.REGISTRY, entry.fields, stamp, at_ms, entry.pid, entry.started
        )
        seen.append(sighting)


def _body(path: str) -> bytes | None:
    """``None``: there is no such file. What is no small regular file of this user is empty."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError:
        return b""
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_size > MAX_ENTRY:
            return b""
        return os.read(descriptor, MAX_ENTRY)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
