"""A follower's copy of one project. The rules it keeps:

1. A delta of this epoch with ``from ≤ mine < to`` is applied; ``to ≤ mine`` is old news; ``from > mine`` is a gap.
2. A heartbeat that names a later version is a gap too: so even a lost *last* delta is noticed. Another hash
   at the same version means that the copy is wrong, and only a whole image helps.
3. When the epoch changes, the former state is kept and shown as stale until the new one is complete: an
   aggregator that has just started knows nothing, and nothing is not the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from pipeline.domain.versioned import Ledger

Taken: TypeAlias = Literal["applied", "old", "gap", "epoch"]
Checked: TypeAlias = Literal["same", "gap", "hash", "epoch"]


class Replica:
    """`ledger` is what may be shown, of `epoch`; ``None`` until the first complete image."""

    def __init__(self) -> None:
        self.epoch = ""
        self.ledger: Ledger | None = None
        self.complete = False
        self._forming_epoch = ""
        self._forming: Ledger | None = None
        self._wrong = False

    def version(self, epoch: str) -> int:
        """How far this copy is in `epoch`; -1 if it holds nothing of it."""
        ledger = self._of(epoch)
        return -1 if ledger is None else ledger.version

    def take(self, epoch: str, from_: int, to: int, patch: Mapping[str, Any]) -> Taken:
        ledger = self._of(epoch)
        if ledger is None:
            return "epoch"
        if to <= ledger.version:
            return "old"
        if from_ > ledger.version:
            return "gap"
        ledger.apply(patch, to)
        return "applied"

    def load(self, epoch: str, ledger: Ledger, complete: bool) -> bool:
        """Take a whole image. True if what may be shown is now this one.

        An answer that comes late is older than what the deltas have made of the copy since, and is left alone;
        but any image is better than a copy that is known to be wrong.
        """
        held = self._of(epoch)
        if held is not None and ledger.version < held.version and not self._wrong:
            return False
        self._wrong = False
        if complete or (self.ledger is not None and epoch == self.epoch):
            self._show(epoch, ledger, complete)
            return True
        self._forming_epoch, self._forming = epoch, ledger
        return False

    def check(self, epoch: str, version: int, hash_: str, complete: bool) -> Checked:
        """Compare with a heartbeat's head. A forming copy that is confirmed complete becomes the one to show."""
        ledger = self._of(epoch)
        if ledger is None:
            return "epoch"
        if version > ledger.version:
            return "gap"
        if version == ledger.version and ledger.hash() != hash_:
            self._wrong = True
            return "hash"
        if ledger is self.ledger:
            self.complete = complete
        elif complete and version == ledger.version:
            self._show(epoch, ledger, True)
        return "same"

    def _of(self, epoch: str) -> Ledger | None:
        if self.ledger is not None and epoch == self.epoch:
            return self.ledger
        return self._forming if epoch == self._forming_epoch else None

    def _show(self, epoch: str, ledger: Ledger, complete: bool) -> None:
        self.epoch, self.ledger, self.complete = epoch, ledger, complete
        self._forming_epoch, self._forming = "", None
