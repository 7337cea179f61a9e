"""What the subscribers of one project are sent, each thing encoded once and shared by all at the same cursor.

A `Shelf` wraps a follower's replica. Its finished frames hold for one version of one epoch; the next version clears
them, so its memory is one snapshot and as many deltas as there are different cursors.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Raw

from gateway import framing, public
from gateway.framing import Form
from pipeline import frames
from pipeline.domain import patch as merge_patch
from pipeline.domain.replica import Replica
from pipeline.domain.versioned import Ledger

KEPT: Final = 512


class Shelf:
    def __init__(self, project: str) -> None:
        self.project = project
        self.epoch = ""
        self.version = -1
        self.complete = False
        self.foreign = False
        self.encoded = 0  # how often something had to be encoded: not once per client
        self._ledger: Ledger | None = None
        self._ready: dict[tuple[Any, ...], Any] = {}
        self._news: tuple[int, Any] = (-1, None)  # what came last, and after which version: most will ask for that

    @property
    def loaded(self) -> bool:
        """Whether there is anything that may be shown."""
        return self._ledger is not None

    def refresh(self, replica: Replica) -> bool:
        """Take note that the replica changed. True if the user is, or is no longer, needed somewhere."""
        ledger = replica.ledger
        if ledger is None:
            return False
        known = self.version if ledger is self._ledger else -1
        news = ledger.since(known) if known >= 0 else None
        patch = ledger.state() if news is None else news
        self.foreign = (self.foreign and ledger is self._ledger) or not public.is_clean(patch)
        self._ledger, self.epoch, self.version, self.complete = ledger, replica.epoch, ledger.version, replica.complete
        self._ready.clear()
        self._news = (-1, None) if news is None else (known, news)
        return any(entry is not None and "needs_user" in (entry.get("status") or ()) for entry in patch.values())

    def hash(self) -> str:
        """The state hash at the present version."""
        if self.foreign:
            return str(self._once(("hash",), lambda: merge_patch.state_hash(self._state())))
        return self._held.hash()

    @property
    def cursor(self) -> str:
        """Epoch and version, as HTTP names them."""
        return f"{self.epoch}.{self.version}"

    def snapshot(self, id_: int, reason: frames.Reason, form: Form = framing.text) -> bytes:
        """A finished frame."""

        def build() -> bytes:
            frame = frames.Snapshot(
                id_, self.epoch, self.version, self.hash(), reason, self.complete, self._workspaces()
            )
            return form(frames.encode(frame), self.cursor)

        return self._bytes(("snapshot", id_, reason, self.complete, form), build)

    def delta(self, id_: int, from_: int, form: Form = framing.text) -> bytes | None:
        """A finished frame from this version to the present one; ``None`` if there is no way from there."""
        found: bytes | None = self._ready.get((from_, id_, form))
        if found is None and (patch := self._patch(from_)) is not None:
            frame = frames.Delta(id_, self.epoch, from_, self.version, patch)
            found = self._bytes((from_, id_, form), lambda: form(frames.encode(frame), self.cursor))
        return found

    def changes(self, from_: int) -> bytes | None:
        """A delta as the body of an answer; ``None`` if there is no way from there."""
        patch = self._patch(from_)
        if patch is None:
            return None
        told = frames.Changes(self.project, self.epoch, from_, self.version, self.hash(), self.complete, patch)
        return self._bytes(("changes", from_, self.complete), lambda: frames.encode(told))

    def state(self) -> bytes:
        """The body of an HTTP snapshot."""
        return self._bytes(
            ("state", self.complete),
            lambda: frames.encode(
                frames.State(self.project, self.epoch, self.version, self.hash(), self.complete, self._workspaces())
            ),
        )

    @property
    def size(self) -> int:
        """How many workspaces there are."""
        return 0 if self._ledger is None else len(self._ledger.entries)

    @property
    def _held(self) -> Ledger:
        assert self._ledger is not None
        return self._ledger

    def _patch(self, from_: int) -> Any:
        """The patch from there, encoded; shared by every form and subscription."""

        def build() -> Raw | None:
            after, news = self._news
            patch = news if after == from_ else self._held.since(from_)
            return None if patch is None else Raw(frames.encode(public.clean(patch) if self.foreign else patch))

        return self._once(("patch", from_), build)

    def _state(self) -> dict[str, Any]:
        return public.clean(self._held.state())

    def _workspaces(self) -> Any:
        return self._once(
            ("workspaces",), lambda: self._state() if self.foreign else Raw(frames.encode(self._held.encoded()))
        )

    def _bytes(self, key: tuple[Any, ...], build: Any) -> bytes:
        found: bytes = self._once(key, build)
        return found

    def _once(self, key: tuple[Any, ...], build: Any) -> Any:
        try:
            return self._ready[key]
        except KeyError:
            pass
        if len(self._ready) >= KEPT:
            self._ready.clear()
        self.encoded += 1
        found = self._ready[key] = build()
        return found
