"""The hub's part without a bus: real ledgers and shelves that a test writes to, and a session reads."""

from __future__ import annotations

from gateway.shelf import Shelf
from pipeline import frames
from pipeline.domain.replica import Replica
from pipeline.domain.versioned import GONE_CAP, Ledger


class Board:
    def __init__(self) -> None:
        self.epoch = "e1"
        self.settled = True
        self.stale = False
        self.crowded = False
        self.replicas: dict[str, Replica] = {}
        self.shelves: dict[str, Shelf] = {}

    def shelf(self, project: str) -> Shelf | None:
        return self.shelves.get(project)

    def health(self) -> frames.Health:
        return {"aggregator": "ok"}

    def project(
        self, name: str = "web", ledger: Ledger | None = None, epoch: str = "e1", complete: bool = True
    ) -> Ledger:
        ledger = Ledger() if ledger is None else ledger
        self.replicas.setdefault(name, Replica()).load(epoch, ledger, complete)
        self.shelves.setdefault(name, Shelf(name))
        self.changed(name)
        return ledger

    def changed(self, name: str = "web") -> bool:
        return self.shelves[name].refresh(self.replicas[name])

    def ledger(self, name: str = "web") -> Ledger:
        found = self.replicas[name].ledger
        assert found is not None
        return found


def forget_the_start(ledger: Ledger) -> None:
    """Let so many workspaces come and go that the first versions are below the floor."""
    for n in range(GONE_CAP + 1):
        ledger.write(f"w{n}", [("git", {"insertions": n})])
        ledger.remove(f"w{n}")
    assert ledger.floor > 1
