"""The single writer: takes batches from the one queue, admits them, and says what changed.

Only this module changes the store. Each batch leaves as one delta per project, which is `since` of the version
published before: coalescing needs no code of its own. Everything that a tap may see is told only while one listens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from pipeline import wire
from pipeline.domain.model import Census, Look, kind_of
from pipeline.domain.order import Ruling
from pipeline.domain.relook import Relooks
from pipeline.domain.store import Store

INTEREST_NS: Final = 30_000_000_000
LEASE_NS: Final = 15_000_000_000
SLEPT_NS: Final = 3_000_000_000  # a beat that comes so late was held up, with the host or alone
CENSUS_AGAIN: Final = wire.Relook("*", "*")


class Publisher(Protocol):
    watched: bool

    def publish(self, topic: bytes, message: object) -> None: ...


class Writer:
    def __init__(
        self,
        store: Store,
        epoch: str,
        feed: Publisher,
        tap: Publisher,
        now_ns: Callable[[], int],
        wall_ms: Callable[[], int],
    ) -> None:
        self.store = store
        self.epoch = epoch
        self.relooks = Relooks()
        self.bad = 0
        self._looks: dict[tuple[str, str], int] = {}  # (kind, verdict) → how many
        self._uncounted: dict[tuple[str, str], int] = {}  # (group, verdict) → how many since
        self.drift: dict[str, int] = {}
        self.censuses = 0
        self.held = 0
        self._holds = False
        self._feed, self._tap = feed, tap
        self._now_ns, self._wall_ms = now_ns, wall_ms
        self._published: dict[str, int] = {}
        self._interest: dict[str, tuple[int, frozenset[str]]] = {}
        self._beats = 0
        self._alive_ns = self._beat_ns = now_ns()  # whoever is there has this long to say so

    @property
    def looks(self) -> dict[tuple[str, str], int]:
        """How many looks there were by (kind, verdict)."""
        for (group, verdict), count in self._uncounted.items():
            counted = (kind_of(group) if verdict != "foreign" else "", verdict)
            self._looks[counted] = self._looks.get(counted, 0) + count
        self._uncounted.clear()
        return self._looks

    # ── the queue ────────────────────────────────────────────────────────────────────────────────

    def take(self, batch: list[list[bytes]]) -> list[wire.Delta]:
        """Admit one batch of raw messages, in order of arrival; publishes and returns the deltas it made."""
        wall_ms = self._wall_ms()
        admit, decode, ruled = self.store.admit, wire.decode_ingress, self._ruled
        for frames in batch:
            try:
                message = decode(frames[-1])
            except wire.DecodeError:
                self.bad += 1
                continue
            if type(message) is Look:
                ruled(message, admit(message, wall_ms), wall_ms)
            elif type(message) is Census:
                self._take_census(message, wall_ms)
            elif type(message) is wire.Interest:
                self._take_interest(message)
            elif type(message) is wire.Alive:
                self._alive_ns = self._now_ns()
                self.store.lease(True, wall_ms)
        return self.publish()

    def _ruled(self, look: Look, ruling: Ruling, wall_ms: int) -> None:
        verdict = ruling.verdict
        counted = (look.group, verdict)
        self._uncounted[counted] = self._uncounted.get(counted, 0) + 1
        if verdict == "applied" or verdict == "confirmed":
            if self.relooks.wanted:
                self.relooks.settle(look.workspace, look.group)
        elif verdict == "overlap" or verdict == "wrong_key":
            self.relooks.want(look.workspace, look.group, self._now_ns())
        if self._tap.watched:
            topic = wire.project_topic(look.project)
            self._tap.publish(topic, wire.Ruled(look, verdict, ruling.cause, wall_ms))

    def _take_census(self, census: Census, wall_ms: int) -> None:
        tally = self.store.census(census, wall_ms)
        for look, ruling in zip(census.looks, tally.rulings, strict=True):
            self._ruled(look, ruling, wall_ms)
        for group, count in tally.drift.items():
            self.drift[group] = self.drift.get(group, 0) + count
        self.censuses += 1
        self.held += tally.held
        if tally.held and not self._holds:
            self._feed.publish(wire.RELOOK_TOPIC, CENSUS_AGAIN)
        self._holds = tally.held
        if self._tap.watched:
            told = wire.Counted(
                census.source, census.domain, len(census.looks), tally.drift, tally.buried, tally.held, wall_ms
            )
            self._tap.publish(wire.HEARTBEAT_TOPIC, told)

    def _take_interest(self, interest: wire.Interest) -> None:
        now = self._now_ns()
        self._interest[interest.who] = (now, frozenset(interest.projects))
        self._interest = {who: held for who, held in self._interest.items() if now - held[0] < INTEREST_NS}
        self.store.interest = frozenset().union(*(projects for _, projects in self._interest.values()))

    # ── what it says ─────────────────────────────────────────────────────────────────────────────

    def publish(self) -> list[wire.Delta]:
        """One delta for each project that changed since the last time."""
        store, deltas = self.store, []
        if store.touched:
            for project in store.touched:
                ledger = store.projects.get(project)
                if ledger is None:
                    continue
                before = self._published.get(project, ledger.floor)
                if ledger.version > before:
                    # Below the floor only if more left at once than is remembered: followers then ask for an image.
                    patch = ledger.since(before)
                    if patch is not None:
                        delta = wire.Delta(project, self.epoch, before, ledger.version, patch)
                        deltas.append(delta)
                        self._say(wire.project_topic(project), delta)
                self._published[project] = ledger.version
            store.touched.clear()
        for project in store.removed_projects:
            self._published.pop(project, None)
            self._say(wire.project_topic(project), wire.Gone(project, self.epoch))
        store.removed_projects.clear()
        return deltas

    def beat(self) -> wire.Heartbeat:
        """Each second: every project's head. It follows the deltas in one stream, so it shows a lost last one."""
        self._beats += 1
        now, before = self._now_ns(), self._beat_ns
        self._beat_ns = now
        if now - before > SLEPT_NS:
            self._alive_ns += now - before  # as long as this stood still, nobody could be heard
        if now - self._alive_ns > LEASE_NS and self.store.lease(False, self._wall_ms()):
            self.publish()
        heads = {
            project: wire.Head(
                ledger.version, ledger.hash(), self.store.is_complete(project), project in self.store.interest
            )
            for project, ledger in self.store.projects.items()
        }
        heartbeat = wire.Heartbeat(
            self.epoch,
            self._beats,
            self._now_ns(),
            heads,
            self.store.settled,
            len(self.store.entries),
            self.store.live,
        )
        self._say(wire.HEARTBEAT_TOPIC, heartbeat)
        return heartbeat

    def ask_relooks(self) -> int:
        """Ask the owners of groups whose looks disagree to read again; returns how many were asked for."""
        due = self.relooks.due(self._now_ns())
        for workspace, group in due:
            entry = self.store.entries.get(workspace)
            if entry is None:
                self.relooks.settle(workspace, group)
            else:
                self._feed.publish(wire.RELOOK_TOPIC, wire.Relook(workspace, group))
        return len(due)

    def sweep(self) -> list[str]:
        """Bury what no census sees any more; see `Store.sweep`."""
        buried = self.store.sweep()
        self.publish()
        return buried

    def _say(self, topic: bytes, message: object) -> None:
        self._feed.publish(topic, message)
        if self._tap.watched:
            self._tap.publish(topic, message)
