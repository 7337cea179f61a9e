"""What must hold of a campaign: the rules of `tests.validators`, applied to frames, feeds and taps as they come.

The campaign names everything so that each value tells where it belongs: a workspace's id begins with its project, its
name ends with its incarnation, and whatever changes carries a counter that only grows. Every value that was ever true
is thus known, and in which order they were.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from tests.validators import Graves, Published, Violation, incarnation_of

KEPT: Final = 200


def counters(entry: dict[str, Any]) -> tuple[int, dict[str, int]]:
    """The incarnation of an entry, and each of its counters that only grows: the repository's own worktree has none."""
    if not (made := incarnation(entry)):
        return 0, {}
    found: dict[str, int] = {}
    life = entry.get("life") or {}
    parts = (life.get("name") or "").split()
    if len(parts) == 2 and parts[1].count(".") == 1:  # "alpha-one-w3 17.2"
        found["life"] = int(parts[1].partition(".")[0])
    lines = (entry.get("git") or {}).get("insertions")
    if lines:  # none at all: what a look sees that meets a worktree while git takes its files away; see `Judge`
        found["git"] = lines
    for group, field in (("run", "port"), ("pr", "number")):
        value = (entry.get(group) or {}).get(field)
        if value is not None:
            found[group] = value
    for name, session in (entry.get("sessions") or {}).items():
        if (session or {}).get("name"):
            found[f"session:{name}"] = int(session["name"])
    return made, found


def incarnation(entry: dict[str, Any]) -> int:
    """Of a workspace of the orchestrator by its name, of a worktree by its branch; 0 for what is neither."""
    for field in ("name", "branch"):
        text = (entry.get("life") or {}).get(field) or ""
        if text.rpartition(".")[2].isdigit():
            return incarnation_of({"life": {"name": text}})
    return 0


class Truth:
    """What was ever true. Whoever changes the world says so here: `trying` before, `done` after."""

    def __init__(self) -> None:
        self.most: dict[tuple[str, str], int] = {}
        self.graves = Graves()
        self.lives: dict[str, int] = {}

    def trying(self, workspace: str, what: str, value: int) -> None:
        self.most[workspace, what] = max(value, self.most.get((workspace, what), 0))

    def ended(self, workspace: str, incarnation: int) -> None:
        self.graves.end(workspace, incarnation, time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def check(self, workspace: str, what: str, value: int) -> bool:
        """Nothing is shown that was never so. Whether anything is known of it."""
        most = self.most.get((workspace, what))
        if most is not None and value > most:
            raise Violation(f"{what} of {workspace} is shown as {value}, and was never more than {most}")
        return most is not None


class Judge:
    """Collects violations. `during`: the faults that were going on, by which they are told apart in the table."""

    def __init__(self) -> None:
        self.published = Published()
        self.truth = Truth()
        self.violations: list[tuple[str, str, tuple[str, ...]]] = []
        self.during: tuple[str, ...] = ()
        self.keeps = False  # nothing ends now
        self.by_fault: Counter[str] = Counter()
        self.checked: Counter[str] = Counter()
        self._claims: dict[tuple[str, str, int], tuple[str, str]] = {}
        self._span: dict[tuple[str, str], tuple[int, int]] = {}
        self._buried: dict[str, set[tuple[str, int]]] = {}
        self._shown: dict[tuple[str, str], int] = {}
        self._lined: dict[tuple[str, str], int] = {}  # epoch and workspace → the incarnation that had lines

    def violated(self, rule: str, message: str) -> None:
        if len(self.violations) < KEPT:
            self.violations.append((rule, message, self.during))
        self.by_fault.update(set(self.during) or {"none"})

    # ── what was published ───────────────────────────────────────────────────────────────────────

    def state(
        self,
        epoch: str,
        project: str,
        version: int,
        hash_: str,
        changed: Mapping[str, Any],
        began: int = 0,
        whole: bool = False,
    ) -> None:
        """A state as it was published. `changed`: its entries that differ from the one before, ``None`` if they left.

        `began`: when the aggregator of this epoch did, or earlier. `whole`: `changed` is everything, of whatever
        distance from the last state.
        """
        self.checked["states"] += 1
        try:
            self.published.note(epoch, project, version, hash_)
        except Violation as error:
            self.violated("prefix", str(error))
        low, high = self._span.get((epoch, project), (version, version))
        self._span[epoch, project] = (version, version) if whole else (min(low, version), max(high, version))
        if whole:
            self._claims = {key: said for key, said in self._claims.items() if key[:2] != (epoch, project)}
        claim = self._claims.pop((epoch, project, version), None)
        if claim is not None:
            self._compare(claim[1], epoch, project, version, claim[0])
        for workspace, entry in changed.items():
            try:
                self._entry(epoch, project, workspace, entry, began)
            except Violation as error:
                self.violated("truth", str(error))

    def _entry(self, epoch: str, project: str, workspace: str, entry: dict[str, Any] | None, began: int) -> None:
        self.checked["entries"] += 1
        buried = self._buried.setdefault(epoch, set())
        if entry is None:
            last = self._shown.pop((epoch, workspace), None)
            if last is None:
                return
            if self.truth.lives.get(workspace) != last:
                buried.add((workspace, last))
            elif self.keeps:
                raise Violation(f"{workspace}, incarnation {last}, left while nothing ended")
            return
        if not workspace.startswith(project):
            raise Violation(f"{workspace} is shown in {project}, where it does not belong")
        made, found = counters(entry)
        for what, value in found.items():
            self.checked["values"] += self.truth.check(workspace, what, value)
        if "git" in found:
            self._lined[epoch, workspace] = made
        elif made and self._lined.get((epoch, workspace)) == made == self.truth.lives.get(workspace):
            raise Violation(f"{workspace}, incarnation {made}, is shown without its lines, and nobody takes it away")
        if made:
            self._shown[epoch, workspace] = made
            self.truth.graves.check(began, workspace, made)
            if (workspace, made) in buried:
                raise Violation(f"{workspace}, incarnation {made}, was buried in epoch {epoch} and is back in it")

    # ── what others hold ─────────────────────────────────────────────────────────────────────────

    def claim(self, who: str, epoch: str, project: str, version: int, hash_: str) -> None:
        """Somebody holds this as that version. It may not have been heard of here yet: see `settle`."""
        self.checked["copies"] += 1
        if self.published.known(epoch, project, version):
            self._compare(who, epoch, project, version, hash_)
            return
        other = self._claims.setdefault((epoch, project, version), (hash_, who))
        if other[0] != hash_:
            self.violated("prefix", f"{who} and {other[1]} hold different states as version {version} of {project}")

    def _compare(self, who: str, epoch: str, project: str, version: int, hash_: str) -> None:
        try:
            self.published.check(who, epoch, project, version, hash_)
        except Violation as error:
            self.violated("prefix", str(error))

    def settle(self) -> None:
        """After quiet: whatever is claimed of a stretch that was followed without a gap must have been published."""
        for (epoch, project, version), (_, who) in self._claims.items():
            low, high = self._span.get((epoch, project), (1, 0))
            if low <= version <= high and not self.published.known(epoch, project, version):
                self.violated("prefix", f"{who} held version {version} of {project} in {epoch}, which nobody published")
        self._claims.clear()

    def bound(self, what: str, size: float, most: float) -> None:
        if size > most:
            self.violated("bounds", f"{what}: {size:.0f}, and may be {most:.0f}")
