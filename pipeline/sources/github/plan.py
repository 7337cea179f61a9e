"""What to ask GitHub next: which branches are due, how many at once, and what the token may spend.

1. How often a branch is asked for follows from what is known of it and from whether somebody looks on. Where somebody
   does, checks may begin and end at any time: so as long as few are looked at, all are asked for as if they moved.
2. A question costs one point however many branches it has. So it is filled up with those that are due soon.
3. A share of the limit is the user's: below it nothing is asked until the limit is new.
4. What is left above that is spread over the time until then: questions are never closer to each other than it allows.
   Those that somebody looks at go first, and among equals whoever has waited longest: so none of them starves.
5. A hint makes a branch due at once, though not again within moments; and for a while it is asked for as if something
   went on there, for what GitHub answers may be of a moment before.

Time is handed in, in seconds of any clock that does not jump.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, TypeAlias

from pipeline.bridges.github import Answer, Ask, Failure, Found
from pipeline.domain.model import Ci
from pipeline.wire import Hint

SIZE: Final = 40  # with every branch's checks counted, 80 of the 100 requests that cost one point
SMALLEST: Final = 4
RESERVE: Final = 0.4
GAP_S: Final = 1.0
YOUNG_S: Final = 300.0  # so long after a push checks may still be announced
STIRRED_S: Final = 120.0
HINT_GAP_S: Final = (5.0, 60.0)
RECOUNTS: Final = 3
SHOWN_AFTER: Final = 2  # one answer in between that fails is no news
BRANCH_RETRY_S: Final = (30.0, 900.0)
RETRY_S: Final = (5.0, 300.0)
LIMITED_S: Final = (60.0, 3600.0)
WINDOW_S: Final = 3600.0
TOKEN_S: Final = 300.0
MAX_COUNTS: Final = 4096

State: TypeAlias = Literal["new", "moving", "open", "none", "unpushed", "over"]
FEW_S: Final = 0.4  # seconds between two looks for each branch that somebody looks at, within the bounds below
# Seconds between two looks: where somebody looks on, and elsewhere.
CADENCE_S: Final[Mapping[State, tuple[float, float]]] = {
    "new": (50.0, 300.0),
    "moving": (50.0, 300.0),  # checks run, or it is not known yet whether it can be merged
    "open": (120.0, 900.0),
    "none": (120.0, 900.0),
    "unpushed": (300.0, 1800.0),
    "over": (300.0, 1800.0),
}


class Branch(NamedTuple):
    """As `github.Ask` has it."""

    repo: str
    head: str
    name: str


class Interest(NamedTuple):
    """What makes a branch worth asking for: whether somebody looks on, and whether it was ever pushed from here."""

    watched: bool
    pushed: bool


class Allowance(NamedTuple):
    """What GitHub said last that may be spent; `resets`: when the limit is new, in the plan's clock."""

    limit: int
    remaining: int
    resets: float


@dataclass
class _Slot:
    """What is known of one branch."""

    interest: Interest
    asked: float = -math.inf
    before: float = -math.inf  # when it was asked for the time before
    soon: bool = False  # not to wait for the cadence
    news: bool = False  # because of a hint
    stirred: float = -math.inf  # when it was asked for because of one
    found: Found | None = None
    known: bool = False
    recounts: int = 0  # so often were the checks to be counted, and were not
    since: float = 0.0  # when this head was seen first
    tries: int = 0
    failure: Failure | None = None


class Plan:
    def __init__(self, size: int = SIZE) -> None:
        self.allowance: Allowance | None = None
        self.refusal: Failure | None = None  # why the last question failed as a whole
        self.paused = -math.inf
        self._most = self._size = size
        self._slots: dict[Branch, _Slot] = {}
        self._tries = 0
        self._asked = -math.inf
        self._cost = 1
        self._watched = 0
        # (repository, pull request, head) → checks that have all ended, as they were counted
        self._counts: OrderedDict[tuple[str, int, str], Ci] = OrderedDict()

    # ── what is followed ─────────────────────────────────────────────────────────────────────────

    def follow(self, branches: Mapping[Branch, Interest]) -> None:
        """Exactly these from now on."""
        for gone in self._slots.keys() - branches.keys():
            del self._slots[gone]
        for branch, interest in branches.items():
            if (slot := self._slots.get(branch)) is None:
                self._slots[branch] = _Slot(interest)
            else:
                slot.interest = interest
        self._watched = sum(interest.watched for interest in branches.values())

    def hint(self, hint: Hint) -> int:
        """Something happened there; returns how many branches that concerns."""
        met = 0
        for branch, slot in self._slots.items():
            if branch.repo.lower() != hint.repo.lower() and branch.head.lower() != hint.repo.lower():
                continue
            named = hint.branch == branch.name if hint.branch else False
            if named or (hint.sha and slot.found is not None and slot.found.head == hint.sha):
                slot.soon = slot.news = True
                met += 1
        return met

    def again(self, branches: Iterable[Branch]) -> None:
        """Make these due, as a hint does."""
        for branch in branches:
            if (slot := self._slots.get(branch)) is not None:
                slot.soon = slot.news = True

    def failure(self, branch: Branch) -> Failure | None:
        """Why this branch is not known to be as it was found last; ``None`` if it is."""
        return self._slots[branch].failure

    # ── asking ───────────────────────────────────────────────────────────────────────────────────

    def take(self, now: float) -> list[Ask]:
        """What to ask for now, in one question; nothing if nothing is due or may be asked for."""
        if now < self._next(now):
            return []
        due: list[tuple[bool, float, Branch]] = []
        soon: list[tuple[bool, float, Branch]] = []
        for branch, slot in self._slots.items():
            at = self._due(slot)
            if at <= now:
                due.append((not slot.interest.watched, at, branch))
            elif slot.tries == 0 and now - slot.asked >= self._cadence(slot) / 2:
                soon.append((not slot.interest.watched, at, branch))
        if not due:
            return []
        chosen = [branch for _, _, branch in (*sorted(due), *sorted(soon))][: self._size]
        if self.allowance is not None:
            standing = self._standing(now)
            self.allowance = standing._replace(remaining=standing.remaining - self._cost)
        self._asked = now
        asked = [Ask(*branch, self._count(branch)) for branch in chosen]
        for branch in chosen:
            slot = self._slots[branch]
            slot.before, slot.asked = slot.asked, now
            slot.stirred = now if slot.news else slot.stirred
            slot.soon = slot.news = False
        return asked

    def wait(self, now: float) -> float:
        """Seconds until `take` is worth calling again, as things stand."""
        first = min(map(self._due, self._slots.values()), default=math.inf)
        return max(0.0, max(self._next(now), first) - now)

    def spendable(self, now: float) -> float:
        """Points above the user's share."""
        if self.allowance is None:
            return math.inf
        standing = self._standing(now)
        return standing.remaining - math.ceil(standing.limit * RESERVE)

    def _next(self, now: float) -> float:
        """When the next question may be asked, as things stand now."""
        spendable = self.spendable(now)
        if self.allowance is None:
            gap = GAP_S
        elif spendable < self._cost:
            return max(self.paused, self.allowance.resets, self._asked + LIMITED_S[0])
        else:
            gap = max(GAP_S, self._cost * (self._standing(now).resets - now) / spendable)
        return max(self.paused, self._asked + gap)

    def _standing(self, now: float) -> Allowance:
        """What may be spent now; once its time is over the whole limit, of which GitHub tells with the next answer."""
        assert self.allowance is not None
        limit, _, resets = self.allowance
        return self.allowance if now < resets else Allowance(limit, limit, now + WINDOW_S)

    def _due(self, slot: _Slot) -> float:
        if slot.tries:
            first, longest = BRANCH_RETRY_S
            return slot.asked + _backoff(slot.tries, first, longest)
        counting = slot.found is not None and not slot.found.counted and slot.recounts < RECOUNTS
        if slot.soon or (counting and slot.interest.watched):
            return slot.asked + HINT_GAP_S[not slot.interest.watched]
        return slot.asked + self._cadence(slot)

    def _cadence(self, slot: _Slot) -> float:
        state, watched = self._state(slot), slot.interest.watched
        cadence = CADENCE_S[state][not watched]
        if state == "open" and watched:
            return min(cadence, max(CADENCE_S["moving"][0], FEW_S * self._watched))
        return cadence

    def _state(self, slot: _Slot) -> State:
        if not slot.known:
            return "new"
        if slot.found is None:
            return "none" if slot.interest.pushed else "unpushed"
        pr, ci = slot.found.pr, slot.found.ci
        if pr.state in ("merged", "closed"):
            return "over"
        if ci.state == "pending" or ci.pending:
            return "moving"
        if slot.asked - slot.stirred < STIRRED_S:
            return "moving"
        young = slot.asked - slot.since < YOUNG_S
        return "moving" if young and (ci.state == "unknown" or pr.mergeable == "unknown") else "open"

    def _count(self, branch: Branch) -> int | None:
        """The pull request whose checks have to be counted: not if all have ended and were, unless there is news."""
        slot = self._slots[branch]
        if (found := slot.found) is None or (found.ci.state == "unknown" and found.counted):
            return None
        return found.pr.number if slot.news or _key(branch, found) not in self._counts else None

    # ── what became of it ────────────────────────────────────────────────────────────────────────

    def told(self, asked: Sequence[Ask], answer: Answer, allowance: Allowance | None, now: float) -> None:
        """What GitHub answered."""
        self.allowance, self._cost = allowance, max(1, answer.cost)
        self.paused, self.refusal, self._tries = -math.inf, None, 0
        self._size = min(self._most, self._size + SMALLEST)
        for ask, found in zip(asked, answer.found, strict=True):
            branch = Branch(*ask[:3])
            if (slot := self._slots.get(branch)) is None:
                continue
            if isinstance(found, Failure):
                slot.tries += 1
                if slot.tries >= SHOWN_AFTER or found.kind in ("missing", "forbidden"):
                    slot.failure = found
                continue
            slot.tries, slot.failure = 0, None
            slot.recounts = slot.recounts + (ask.counts is not None) if found is not None and not found.counted else 0
            self._find(branch, slot, found, now)

    def _find(self, branch: Branch, slot: _Slot, found: Found | None, now: float) -> None:
        before, head = slot.found, None if found is None else (found.pr.number, found.head)
        if not slot.known or head != (None if before is None else (before.pr.number, before.head)):
            slot.since = now
        if found is not None:
            found = self._counted(branch, found)
        slot.known, slot.found = True, found

    def _counted(self, branch: Branch, found: Found) -> Found:
        """With the numbers that are remembered of these very checks; remembers them once they have all ended."""
        key = _key(branch, found)
        ci = self._counts.pop(key, None)
        if not found.counted and ci is not None and ci.state == found.ci.state:
            found = found._replace(ci=ci, counted=True)
        if found.counted and found.ci.state in ("success", "failure") and not found.ci.pending:
            self._counts[key] = found.ci
            if len(self._counts) > MAX_COUNTS:
                self._counts.popitem(last=False)
        return found

    def found(self, branch: Branch) -> Found | None:
        """What GitHub said of this branch last."""
        return self._slots[branch].found

    def refused(self, asked: Iterable[Ask], failure: Failure, retry_s: float | None, now: float) -> None:
        """The whole question failed: its branches are as due as before, and nothing is asked for a while.

        `retry_s`: what GitHub says of how long.
        """
        self._tries += 1
        first, longest = {"limited": LIMITED_S, "token": (TOKEN_S, TOKEN_S)}.get(failure.kind, RETRY_S)
        pause = _backoff(self._tries, first, longest) if retry_s is None else max(retry_s, GAP_S)
        self.paused, self.refusal = now + pause, failure
        if failure.kind == "server":  # it gives up on questions that take it too long
            self._size = max(SMALLEST, self._size // 2)
        for ask in asked:
            if (slot := self._slots.get(Branch(*ask[:3]))) is not None:
                slot.soon, slot.news = True, slot.stirred == slot.asked
                slot.asked = slot.before
        if self._tries >= SHOWN_AFTER or failure.kind in ("token", "limited"):
            for slot in self._slots.values():
                slot.failure = failure

    def resume(self) -> None:
        """What made it pause may be over."""
        self.paused = -math.inf

    def branches(self) -> Collection[Branch]:
        return self._slots.keys()


def _backoff(tries: int, first: float, longest: float) -> float:
    return min(first * 2.0 ** min(tries - 1, 20), longest)


def _key(branch: Branch, found: Found) -> tuple[str, int, str]:
    return branch.repo, found.pr.number or 0, found.head
