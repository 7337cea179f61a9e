"""Which groups have to be read again because looks at them overlapped and disagreed.

One relook is outstanding per (workspace, group). It is asked for after a short while, then less and less
often, until a look settles the group: the request may be lost, and the owner may be away.
"""

from __future__ import annotations

from typing import Final

FIRST_NS: Final = 250_000_000
LONGEST_NS: Final = 10_000_000_000
CAP: Final = 4096

Subject = tuple[str, str]


class Relooks:
    def __init__(self) -> None:
        self.wanted: dict[Subject, tuple[int, int]] = {}  # subject → (when it is due, how long it waited)

    def __len__(self) -> int:
        return len(self.wanted)

    def want(self, workspace: str, group: str, now_ns: int) -> None:
        """Looks at this group disagree. Asking twice changes nothing."""
        if (workspace, group) not in self.wanted and len(self.wanted) < CAP:
            self.wanted[workspace, group] = (now_ns + FIRST_NS, FIRST_NS)

    def settle(self, workspace: str, group: str) -> None:
        """A look was applied or confirmed, or the group is gone."""
        self.wanted.pop((workspace, group), None)

    def due(self, now_ns: int) -> list[Subject]:
        """What to ask for now; each is asked for again after twice the time."""
        due = [subject for subject, (when, _) in self.wanted.items() if when <= now_ns]
        for subject in due:
            waited = min(2 * self.wanted[subject][1], LONGEST_NS)
            self.wanted[subject] = (now_ns + waited, waited)
        return due
