"""Follow every project of the aggregator: subscribe → since → apply. Used by the gateway, the dispatcher and the tap.

A `Follower` keeps one `Replica` per project. It asks for what it misses when a delta or a heartbeat shows a gap,
and asks again with each heartbeat until it has it, so a lost question or answer only costs a second. It tells
its owner what changed, in the loop turn in which the batch arrived:

    changed(projects)   these replicas have new content (or a new epoch, or became complete)
    gone(project)       the project no longer exists
    relook(messages)    somebody's looks disagreed
    epoch(name)         the aggregator has started anew: producers send their current looks again
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from pipeline import bus, wire
from pipeline.domain.replica import Replica
from pipeline.domain.versioned import Ledger
from pipeline.runtime.clock import now_ns

STALE_NS: Final = 3_000_000_000
ASK_AGAIN_NS: Final = 900_000_000


def _ignore(_: object) -> None:
    """The owner does not care."""


class Follower:
    def __init__(
        self,
        run_dir: Path,
        *,
        changed: Callable[[set[str]], None] = _ignore,
        gone: Callable[[str], None] = _ignore,
        relook: Callable[[wire.Relook], None] = _ignore,
        epoch: Callable[[str], None] = _ignore,
        answered: Callable[[wire.Answer], None] = _ignore,
    ) -> None:
        self.replicas: dict[str, Replica] = {}
        self.epoch = ""
        self.heard_ns = 0
        self.head: wire.Heartbeat | None = None
        self.gaps = 0
        self.mismatches = 0
        self._changed, self._gone, self._relook, self._epoch, self._answered = changed, gone, relook, epoch, answered
        self._asked: dict[str, int] = {}
        self._n = 0
        self._queries = bus.Queries(run_dir, self._take_answers)
        self._feed = bus.feed(run_dir, self._take_feed)

    def close(self) -> None:
        self._feed.close()
        self._queries.close()

    @property
    def bad(self) -> int:
        """Frames that did not decode."""
        return self._feed.bad + self._queries.bad

    def stale(self, now: int | None = None) -> bool:
        """Whether the aggregator has not been heard of for longer than a missed heartbeat explains."""
        return (now or now_ns()) - self.heard_ns > STALE_NS

    def ask(self, query: wire.Query) -> bool:
        """Put a question of the owner's own; the answer comes to `answered`. False: nobody there to ask."""
        return self._queries.ask(query)

    def next_id(self) -> int:
        self._n += 1
        return self._n

    # ── the feed ─────────────────────────────────────────────────────────────────────────────────

    def _take_feed(self, messages: Iterable[wire.Feed]) -> None:
        changed: set[str] = set()
        for message in messages:
            if isinstance(message, wire.Delta):
                self._take_delta(message, changed)
            elif isinstance(message, wire.Heartbeat):
                self._take_heartbeat(message, changed)
            elif isinstance(message, wire.Gone):
                self._end(message.project)
            else:
                self._relook(message)
        if changed := changed & self.replicas.keys():  # one may have ended with the same batch
            self._changed(changed)

    def _take_delta(self, delta: wire.Delta, changed: set[str]) -> None:
        replica = self.replicas.setdefault(delta.project, Replica())
        taken = replica.take(delta.epoch, delta.from_, delta.to, delta.patch)
        if taken == "applied":
            changed.add(delta.project)
        elif taken == "gap" or taken == "epoch":
            if taken == "gap":
                self.gaps += 1
            self._fetch(delta.project, delta.epoch, replica)

    def _take_heartbeat(self, heartbeat: wire.Heartbeat, changed: set[str]) -> None:
        if self.head is not None and heartbeat.boot_ns < self.head.boot_ns:
            return  # of an aggregator that is no more, or overtaken
        self.heard_ns = now_ns()
        self.head = heartbeat
        if heartbeat.epoch != self.epoch:
            self.epoch = heartbeat.epoch
            self._asked.clear()
            self._epoch(heartbeat.epoch)
        for project, head in heartbeat.heads.items():
            replica = self.replicas.setdefault(project, Replica())
            before = (replica.epoch, replica.complete)
            checked = replica.check(heartbeat.epoch, head.version, head.hash, head.complete)
            if checked == "hash":
                self.mismatches += 1
                self._fetch(project, "", replica)
            elif checked != "same":
                if checked == "gap" and project not in self._asked:
                    self.gaps += 1
                self._fetch(project, heartbeat.epoch, replica)
            elif before != (replica.epoch, replica.complete):
                changed.add(project)
        if heartbeat.census_ns:
            for project in [name for name in self.replicas if name not in heartbeat.heads]:
                self._end(project)

    def _end(self, project: str) -> None:
        if self.replicas.pop(project, None) is not None:
            self._asked.pop(project, None)
            self._gone(project)

    def _fetch(self, project: str, epoch: str, replica: Replica) -> None:
        """Ask for what is missing, but not again while the last question may still be answered."""
        now = now_ns()
        if now - self._asked.get(project, 0) < ASK_AGAIN_NS:
            return
        version = replica.version(epoch) if epoch else -1
        if self._queries.ask(wire.Since(self.next_id(), project, epoch, version)):
            self._asked[project] = now

    # ── answers ──────────────────────────────────────────────────────────────────────────────────

    def _take_answers(self, answers: Iterable[wire.Answer]) -> None:
        changed: set[str] = set()
        for answer in answers:
            if isinstance(answer, wire.Image):
                if self.epoch not in ("", answer.epoch):
                    continue  # late, or early: the next heartbeat asks for what is right then
                self._asked.pop(answer.project, None)
                replica = self.replicas.setdefault(answer.project, Replica())
                ledger = Ledger.load(answer.version, answer.floor, answer.entries, answer.gone)
                if replica.load(answer.epoch, ledger, answer.complete):
                    changed.add(answer.project)
            elif isinstance(answer, wire.Changes):
                self._asked.pop(answer.delta.project, None)
                self._take_delta(answer.delta, changed)
            else:
                self._answered(answer)
        if changed:
            self._changed(changed)
