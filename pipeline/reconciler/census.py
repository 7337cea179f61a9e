"""When to take a census: a pure schedule, time handed in.

A census is due at the start, when the aggregator has a new epoch, when the database changed, when somebody asks for a
relook, and on the cadence. Two never overlap. After one has ended the next keeps its distance, except at the start and
for a new epoch: there nothing is known yet, and waiting shows. One that failed is owed, at that distance; so is one
that the aggregator's heartbeats do not show to have been taken, for it may be what was to heal everything else. It
may be lost, or held until another confirms it; the more often in a row, the longer is the wait.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

Reason: TypeAlias = Literal["start", "epoch", "change", "lost", "relook", "cadence"]

LOST_NS: Final = 3_000_000_000
URGENT: Final = ("start", "epoch")
ORDER: Final[tuple[Reason, ...]] = ("start", "epoch", "change", "lost", "relook", "cadence")


class Schedule:
    """Times are nanoseconds of one clock that never goes back."""

    def __init__(self, every_s: float, min_gap_ms: int, now_ns: int) -> None:
        self._every_ns = int(every_s * 1e9)
        self._gap_ns = min_gap_ms * 1_000_000
        self._wanted: set[Reason] = {"start"}
        self._taking: set[Reason] | None = None
        self._cadence_ns = now_ns + self._every_ns
        self._free_ns = now_ns
        self._held = False
        self._unseen: tuple[int, int] | None = None  # the end of a census that was sent, and when that was
        self._patience_ns = LOST_NS

    @property
    def running(self) -> bool:
        return self._taking is not None

    def ask(self, reason: Reason) -> None:
        """Want a census that begins after now. Asking while one runs means another one after it."""
        self._wanted.add(reason)

    def sent(self, ended_ns: int, now_ns: int) -> None:
        """A complete census that ended then is on its way."""
        self._unseen = ended_ns, now_ns

    def heard(self, census_ns: int, now_ns: int) -> None:
        """The last census that the aggregator has taken ended then: ours, or one after it, or ours was not taken."""
        if self._unseen is None:
            return
        ended_ns, sent_ns = self._unseen
        if census_ns >= ended_ns:
            self._unseen, self._patience_ns = None, LOST_NS
        elif now_ns - sent_ns > self._patience_ns:
            self._unseen, self._patience_ns = None, 2 * self._patience_ns
            self.ask("lost")

    def due(self, now_ns: int) -> Reason | None:
        """Why a census shall begin now; ``None`` if none shall."""
        when = self.next_ns()
        if when is None or when > now_ns:
            return None
        return next((reason for reason in ORDER if reason in self._wanted), "cadence")

    def next_ns(self) -> int | None:
        """When the next census is due, as things stand; ``None`` while one runs."""
        if self._taking is not None:
            return None
        if not self._wanted:
            return max(self._cadence_ns, self._free_ns)
        if self._held or not self._wanted & set(URGENT):
            return self._free_ns
        return 0

    def begin(self) -> None:
        """A census begins: it answers all that was asked before."""
        assert self._taking is None, "two censuses at once"
        self._taking, self._wanted = self._wanted, set()

    def end(self, now_ns: int, ok: bool = True) -> None:
        """The census ended. If it failed, what it was for is still wanted, but not at once."""
        assert self._taking is not None, "no census runs"
        if not ok:
            self._wanted |= self._taking or {"cadence"}
        self._held = not ok
        self._taking = None
        self._free_ns = now_ns + self._gap_ns
        self._cadence_ns = now_ns + self._every_ns
