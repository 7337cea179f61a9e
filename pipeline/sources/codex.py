"""Codex, with no configuration: the rollouts that its sessions write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from pipeline.bridges import codex
from pipeline.sources.agents import Look, Watched, recent
from pipeline.sources.desk import Where
from pipeline.sources.ladder import Sighting
from pipeline.sources.transcripts import Transcripts

ROLLOUT: Final = "codex rollout"
SUFFIX: Final = ".jsonl"  # old ones become .jsonl.zst
DAYS: Final = 3  # a session may go on in the folder of the day on which it began


class Codex(Watched):
    name: ClassVar[str] = "codex"

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__(Path(environ.get("CODEX_HOME") or Path.home() / ".codex"))
        self._sessions = os.path.join(self.home, "sessions")
        self._rollouts = Transcripts(codex.Reading, codex.read, head=True)
        self._wanted: set[str] = set()
        self._days: set[str] = set()

    def look(self, places: list[Where], touched: set[str], *, whole: bool) -> Look:
        lost: list[tuple[str, str]] = []
        fresh = {path for path in touched if path.endswith(SUFFIX)} - self._rollouts.paths()
        if whole or fresh or any(os.path.dirname(path) not in self._days for path in touched):
            lost += [(ROLLOUT, session) for session in self._rollouts.follow(self._find())]
            whole = True
        step = self._rollouts.step(None if whole else touched)
        seen: dict[str, list[Sighting]] = {ROLLOUT: step.seen}
        lost += [(ROLLOUT, session) for session in step.gone]
        return Look(self._wanted, seen, lost, self._rollouts.sessions())

    def _find(self) -> list[str]:
        """The rollouts of the last days, newest first."""
        years = _newest(self._sessions)
        months = [month for year in years for month in _newest(year)][:DAYS]
        days = [day for month in months for day in _newest(month)][:DAYS]
        self._days = set(days)
        self._wanted = {self.home, self._sessions, *years[:1], *months[:1], *days}
        found = [one for day in days for one in recent(day, SUFFIX)]
        return [path for _, path in sorted(found, reverse=True)]


def _newest(folder: str) -> list[str]:
    """The folders in it whose names are numbers, highest first."""
    try:
        names = [name for name in os.listdir(folder) if name.isascii() and name.isdigit()]
    except OSError:
        return []
    return [os.path.join(folder, name) for name in sorted(names, key=int, reverse=True)[:DAYS]]
