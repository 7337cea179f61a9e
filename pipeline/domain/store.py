"""The snapshot store: the admission of looks. It is driven by one writer and has no clock of its own.

The rules it keeps (each has a law in tests/laws):

1. A look takes a group's place only if `order.weigh` says that it is newer, whoever sends it.
2. Only `life`, from a lifecycle authority, creates an entry, and only if it began after the *fence*: the
   store's own start, raised whenever a tombstone is forgotten. So nothing old can bring a workspace back.
3. A delete leaves a tombstone. A look of a buried incarnation is `buried`; an archive ends its incarnation
   for good, an absence only until a later look finds the workspace again.
4. A census buries what is absent from it, at the census's own stamp: an entry whose `life` was read while
   or after the census ran is a newborn and stays.
5. A census that would bury everything, or more than half and more than a few, is held until the next one
   of the same database says the same. One that comes late or twice buries nobody and confirms nothing.
6. When `pr` changes its number or head, the checks of the former one go back to unknown in the same version.
7. Everything is bounded: entries, sessions per entry, tombstones, rulings kept for explain.
8. A session that is known from a leased producer is shown as unknown while that producer is not heard of.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from functools import cache
from itertools import repeat
from typing import Final, NamedTuple, TypeAlias

from msgspec import Struct
from msgspec.structs import astuple, replace

from pipeline.domain import order, status
from pipeline.domain.model import (
    KINDS,
    LEASED,
    SESSION_PREFIX,
    Census,
    Group,
    Life,
    Look,
    Session,
    Stamp,
    Status,
    Value,
    kind_of,
)
from pipeline.domain.order import Ruling
from pipeline.domain.versioned import Ledger

EXPLAIN_DEPTH: Final = 16
LOST_DEPTH: Final = 256
MASS_DELETE_MIN: Final = 5
NAME_MAX: Final = 128

OWNERS: Final[Mapping[str, frozenset[str]]] = {
    "life": frozenset({"catalog"}),
    "pr": frozenset({"catalog"}),
    "ci": frozenset({"catalog"}),
    "ratchet": frozenset({"catalog"}),
    "git": frozenset({"git"}),
    "terminal": frozenset({"catalog", "live"}),
    "run": frozenset({"catalog", "live"}),
    "session": frozenset({"catalog", "live"}),
}

WRONG_TYPE: Final = Ruling("foreign", "the value is not of the group's type")
NOT_OWNER: Final = Ruling("foreign", "this source may not report this group")
TOO_MANY: Final = Ruling("foreign", "the workspace has as many sessions as it may have")
BAD_STAMP: Final = Ruling("foreign", "the look ended before it began")
BURIED: Final = Ruling("buried", "the workspace was archived or removed")
ENDED: Final = Ruling("buried", "too old to create a session: one that was deleted is no longer remembered")
ABSENT: Final = Ruling("buried", "a complete census did not find the workspace")
NO_ENTRY: Final = Ruling("unknown", "no such workspace, and this group does not create one")
FENCED: Final = Ruling("unknown", "began before the fence: too old to create a workspace")
OTHER_HOST: Final = Ruling("unknown", "read by another clock: cannot be placed after the fence")
FULL: Final = Ruling("unknown", "the store is full")
NOT_LIVE: Final = Ruling("unknown", "an archived workspace is not created")
NOT_SEEN: Final = Ruling("unknown", "a later census did not find the workspace")
SESSION_NOT_SEEN: Final = Ruling("unknown", "a later census did not find the session")
BAD_NAME: Final = Ruling("foreign", "the name of the group or workspace is empty, too long or not ASCII")
OLD_INCARNATION: Final = Ruling("old_incarnation", "of a former workspace of this name")
NEW_INCARNATION: Final = Ruling("old_incarnation", "of an incarnation that life has not announced")
WRONG_KEY: Final = Ruling("wrong_key", "checks of another pull request or head")

NO_SESSION: Final = ("session", SESSION_PREFIX)
Changes: TypeAlias = dict[str, object] | None

_LEAVING: Final = ("archiving", "archived")
# A newer look at the same value: it becomes the evidence, and nothing changes.
_UNCHANGED: Final = {
    ruling: Ruling("confirmed", ruling.cause + "; the value stays")
    for ruling in (order.FIRST, order.NEWER_SEQ, order.NEWER_REVISION, order.LATER)
}


class Limits(Struct, frozen=True):
    max_entries: int = 2000
    max_tombstones: int = 1024
    max_sessions: int = 64


class Tombstone(NamedTuple):
    incarnation: int
    version: int
    stamp: Stamp
    final: bool


class Told(Struct, frozen=True, gc=False):
    """One ruling as explain tells it, the ``n``-th of this store; ``times`` folds a row of the same."""

    look: Look
    ruling: Ruling
    wall_ms: int
    n: int
    times: int = 1


class Tally(NamedTuple):
    """What a census did: rulings in the order of its looks, drift by group, who was buried, and whether it is held."""

    rulings: list[Ruling]
    drift: dict[str, int]
    buried: list[str]
    held: bool


class Entry:
    """What the store knows of a workspace beyond its public fields."""

    __slots__ = ("history", "incarnation", "looks", "project", "session_fence", "values")

    def __init__(self, project: str, incarnation: int) -> None:
        self.project = project
        self.incarnation = incarnation
        self.looks: dict[str, Look] = {}
        self.values: dict[str, Group] = {}
        self.history: dict[str, deque[Told]] = {}
        self.session_fence = 0


class Store:
    def __init__(self, clock: str, started_ns: int, limits: Limits | None = None) -> None:
        self.clock = clock
        self.fence = started_ns
        self.limits = limits or Limits()
        self.entries: dict[str, Entry] = {}
        self.projects: dict[str, Ledger] = {}
        self.tombstones: OrderedDict[str, Tombstone] = OrderedDict()
        self.lost: deque[Told] = deque(maxlen=LOST_DEPTH)
        self.interest: frozenset[str] = frozenset()
        self.touched: set[str] = set()
        self.removed_projects: set[str] = set()
        self.complete = False
        self.heard = True
        self.live = 0
        self.settled = 0  # when the last census ended that was taken whole, absences and all
        self.evictions = 0
        self._evicted_from: set[str] = set()
        self._held: str | None = None
        self._census: Stamp | None = None
        self._seen: frozenset[str] = frozenset()
        self._base = 0
        self._rulings = 0

    # ── admission ────────────────────────────────────────────────────────────────────────────────

    def admit(self, look: Look, wall_ms: int) -> Ruling:
        """Judge one look and take it in if it is newer. `wall_ms` dates the change for display, no more."""
        ruling = self._admit(look, wall_ms)
        entry = self.entries.get(look.workspace)
        history = None if entry is None else entry.history.get(look.group)
        if history is None:
            history = self._begin_history(entry, look.group)
        if (
            ruling.verdict == "confirmed"
            and history
            and (last := history[-1]).ruling == ruling
            and last.look.group == look.group
        ):
            history[-1] = self._told(look, ruling, wall_ms, last.times + 1)
        else:
            history.append(self._told(look, ruling, wall_ms))
        return ruling

    def _begin_history(self, entry: Entry | None, group: str) -> deque[Told]:
        if entry is None or group not in entry.looks:
            return self.lost  # a group that does not exist here keeps no history of its own
        history = entry.history[group] = deque(maxlen=EXPLAIN_DEPTH)
        return history

    def _told(self, look: Look, ruling: Ruling, wall_ms: int, times: int = 1) -> Told:
        self._rulings += 1
        return Told(look, ruling, wall_ms, self._rulings, times)

    def _admit(self, look: Look, wall_ms: int) -> Ruling:
        group, value, stamp = look.group, look.value, look.stamp
        entry = self.entries.get(look.workspace)
        current = None if entry is None else entry.looks.get(group)
        # If it comes from the same source and is of the same type as the current one, that one was judged by this.
        known = current is not None and look.source == current.source and type(value) is type(current.value)
        if (not known or value is None) and (refused := _refuse(look)) is not None:
            return refused
        if stamp.ended < stamp.began:
            return BAD_STAMP
        if entry is None or look.incarnation != entry.incarnation:
            return self._admit_identity(entry, look, wall_ms)
        if group not in entry.values and group.startswith(SESSION_PREFIX):
            if current is None and stamp.began <= entry.session_fence:
                return ENDED
            if value is not None and (refused := self._refuse_session(entry, look)) is not None:
                return refused
        elif group == "ci":
            pr = entry.looks.get("pr")
            if look.key != (None if pr is None else pr.key):
                return WRONG_KEY
        ruling = order.weigh(current, look)
        if ruling.verdict == "applied":
            return self._apply(entry, current, look, ruling, wall_ms)
        if ruling.verdict == "confirmed":
            assert current is not None
            entry.looks[group] = order.confirm(current, look)
        return ruling

    def _admit_identity(self, entry: Entry | None, look: Look, wall_ms: int) -> Ruling:
        """There is no entry, or one of another incarnation: only `life` may change that."""
        if entry is not None:
            if look.incarnation < entry.incarnation:
                return OLD_INCARNATION
            if look.group != "life":
                return NEW_INCARNATION
        else:
            tombstone = self.tombstones.get(look.workspace)
            if (
                tombstone is not None
                and look.incarnation <= tombstone.incarnation
                and not _found_again(tombstone, look)
            ):
                return BURIED
        value = look.value
        if not isinstance(value, Life):
            return NO_ENTRY
        if not (look.workspace.isascii() and 0 < len(look.workspace) <= NAME_MAX):
            return BAD_NAME
        if look.stamp.clock != self.clock:
            return OTHER_HOST
        if look.stamp.began <= self.fence:
            return FENCED
        if value.phase in _LEAVING:
            return self._leave_unborn(entry, look, final=value.phase == "archived")
        if entry is None and self._is_too_late(look):
            return NOT_SEEN
        if entry is None and len(self.entries) >= self.limits.max_entries and not self._make_room(look.project):
            self._evicted_from.add(look.project)
            return FULL
        if entry is not None:
            self._bury(look.workspace, look.stamp, final=True)
        self.tombstones.pop(look.workspace, None)
        self.ledger(look.project)  # whoever has an entry has one
        newborn = self.entries[look.workspace] = Entry(look.project, look.incarnation)
        return self._apply(newborn, None, look, order.FIRST, wall_ms)

    def _leave_unborn(self, entry: Entry | None, look: Look, *, final: bool) -> Ruling:
        """An incarnation that we hear of only as it ends: whatever of it is still on its way is buried already."""
        if entry is not None:
            self._bury(look.workspace, look.stamp, final=final, incarnation=look.incarnation)
            return Ruling("applied", "a later incarnation has come and gone")
        self._remember(look.workspace, Tombstone(look.incarnation, 0, look.stamp, final))
        return NOT_LIVE

    def _is_too_late(self, look: Look) -> bool:
        """A census that began after this look had ended did not find the workspace."""
        return self._census is not None and look.workspace not in self._seen and _before(look.stamp, self._census)

    def _refuse_session(self, entry: Entry, look: Look) -> Ruling | None:
        """Why this look may not make a session known."""
        if look.domain and self._census is not None and _before(look.stamp, self._census):
            return SESSION_NOT_SEEN
        if sum(name.startswith(SESSION_PREFIX) for name in entry.values) >= self.limits.max_sessions:
            self._evicted_from.add(entry.project)
            return TOO_MANY
        return None

    def _apply(self, entry: Entry, current: Look | None, look: Look, ruling: Ruling, wall_ms: int) -> Ruling:
        value, group = look.value, look.group
        moved = False
        if group == "life":
            assert isinstance(value, Life)
            if value.phase in _LEAVING:
                self._bury(look.workspace, look.stamp, final=value.phase == "archived")
                return ruling
            moved = look.project != entry.project
            if moved:
                self._move(entry, look)
        entry.looks[group] = look
        at = look.at_ms if look.at_ms is not None else wall_ms
        old = entry.values.get(group)
        changes: list[tuple[str, Changes]] = []
        if value is None:
            if old is not None:
                del entry.values[group]
                changes.append((group, None))
            self._forget_sessions(entry)
        elif old != (shown := value if self.heard else self._shown(look, value)):
            entry.values[group] = shown
            changes.append((group, _changed(old, shown, at)))
        if group == "pr" and (current is None or current.key != look.key):
            if (former := entry.looks.get("ci")) is not None:
                # Its interval stays: should the key ever return, looks from before are still older.
                entry.looks["ci"] = replace(former, value=None, key=None, seq=None, revision=None)
            if entry.values.pop("ci", None) is not None:
                changes.append(("ci", None))
        if not changes:
            return ruling if moved else _UNCHANGED[ruling]
        self._write(entry, look.workspace, changes, at)
        return ruling

    def _write(self, entry: Entry, workspace: str, changes: list[tuple[str, Changes]], at: int) -> None:
        """Publish these changes of an entry, and the status that follows from them, as one version."""
        group = changes[0][0]
        if group.startswith(SESSION_PREFIX) or group in status.INPUTS:
            derived = status.derive(entry.values)
            before = entry.values.get("status")
            if derived is not before:  # there is one of each
                entry.values["status"] = derived
                changes.append(("status", _restated(before, derived) | {"changed_at": at}))
        self.touched.add(entry.project)
        self.projects[entry.project].write(workspace, changes)

    # ── leases ───────────────────────────────────────────────────────────────────────────────────

    def lease(self, heard: bool, wall_ms: int) -> int:
        """Whether the leased producers are heard of; returns how many sessions that shows in another state.

        Silence says nothing, so no look is changed by it: what they said last is shown again once they are back.
        """
        if heard == self.heard:
            return 0
        self.heard = heard
        count = 0
        for name, entry in self.entries.items():
            changes: list[tuple[str, Changes]] = []
            for group, look in entry.looks.items():
                old = entry.values.get(group)
                if old is None or look.value is None or (shown := self._shown(look, look.value)) == old:
                    continue
                entry.values[group] = shown
                changes.append((group, _changed(old, shown, wall_ms)))
            if changes:
                count += len(changes)
                self._write(entry, name, changes, wall_ms)
        return count

    def _shown(self, look: Look, value: Value) -> Value:
        """What is public of a look: its value, but not what a session did when it was last heard of."""
        if self.heard or type(value) is not Session or not look.producer.startswith(LEASED) or value.state == "exited":
            return value
        return replace(value, state="unknown", waiting_for=None)

    def _move(self, entry: Entry, look: Look) -> None:
        """A workspace goes to another project: it leaves the old one's stream and enters the new one's whole."""
        groups = self.ledger(entry.project).entries[look.workspace].groups
        whole = [(name, dict(group.values)) for name, group in groups.items() if group.values]
        self.ledger(entry.project).remove(look.workspace)
        entry.project = look.project
        self.ledger(entry.project).write(look.workspace, whole)

    def _forget_sessions(self, entry: Entry) -> None:
        """A deleted session leaves its last look, so that late ones are older; only so many are kept.

        Forgetting one raises a fence, as forgetting a tombstone does.
        """
        empty = [name for name in entry.looks if name.startswith(SESSION_PREFIX) and name not in entry.values]
        empty.sort(key=lambda name: entry.looks[name].stamp.ended)
        for name in empty[: max(0, len(empty) - self.limits.max_sessions)]:
            entry.session_fence = max(entry.session_fence, entry.looks.pop(name).stamp.ended)
            entry.history.pop(name, None)

    # ── removal ──────────────────────────────────────────────────────────────────────────────────

    def _bury(self, workspace: str, stamp: Stamp, *, final: bool, incarnation: int = 0) -> None:
        entry = self.entries.pop(workspace)
        self.lost.extend(history[-1] for history in entry.history.values())  # so that one may still ask why it left
        version = self.ledger(entry.project).remove(workspace)
        self._remember(workspace, Tombstone(max(entry.incarnation, incarnation), version, stamp, final))

    def _remember(self, workspace: str, tombstone: Tombstone) -> None:
        self.tombstones.pop(workspace, None)
        self.tombstones[workspace] = tombstone
        while len(self.tombstones) > self.limits.max_tombstones:
            _, forgotten = self.tombstones.popitem(last=False)
            self.fence = max(self.fence, forgotten.stamp.ended)

    def _make_room(self, project: str) -> bool:
        """Evict for a project that somebody watches; an unwatched one gets no room at another's cost."""
        if project not in self.interest:
            return False
        unwatched = [name for name, ledger in self.projects.items() if name not in self.interest and ledger.entries]
        if not unwatched:
            return False
        # Entries are in order of last change; the project that has been still for longest gives one up.
        victim = min(unwatched, key=lambda name: max(look.stamp.ended for look in self._newest(name).looks.values()))
        workspace = next(iter(self.projects[victim].entries))
        self._bury(workspace, self.entries[workspace].looks["life"].stamp, final=False)
        self._evicted_from.add(victim)
        self.evictions += 1
        return True

    def _newest(self, project: str) -> Entry:
        return self.entries[next(reversed(self.projects[project].entries))]

    def sweep(self) -> list[str]:
        """Bury what the last complete census should have found and did not: the safety net beneath the census.

        Does nothing while a mass delete waits for its confirmation. Returns who was buried.
        """
        if self._census is None or self._held is not None:
            return []
        stale = self._absent(self._census, self._seen)
        for name in stale:
            self._bury(name, self._census, final=False)
        return stale

    def _absent(self, census: Stamp, seen: frozenset[str]) -> list[str]:
        """Who is not among the seen although old enough to have been: a newborn is not absent."""
        return [
            name
            for name, entry in self.entries.items()
            if name not in seen and _before(entry.looks["life"].stamp, census)
        ]

    # ── census ───────────────────────────────────────────────────────────────────────────────────

    def census(self, census: Census, wall_ms: int) -> Tally:
        """Admit the looks of one poll, then bury what it did not find. Drift is a look that changed a known value."""
        rulings: list[Ruling] = []
        drift: dict[str, int] = {}
        for look in census.looks:
            entry = self.entries.get(look.workspace)
            known = entry is not None and look.group in entry.looks
            ruling = self.admit(look, wall_ms)
            rulings.append(ruling)
            if known and ruling.verdict == "applied":
                kind = kind_of(look.group)
                drift[kind] = drift.get(kind, 0) + 1
        if not self._counts(census):
            return Tally(rulings, drift, [], False)
        seen = frozenset(look.workspace for look in census.looks).union(census.unread)
        absent = self._absent(census.stamp, seen)
        held = self._mass_delete(absent) and (self._held != census.domain or self._of_another(absent, census))
        buried: list[str] = []
        if held:
            self._held = census.domain
        else:
            self._held = None
            for name in absent:
                life = self.entries[name].looks["life"]
                self._bury(name, census.stamp, final=False)
                self.lost.append(self._told(life, ABSENT, wall_ms))
                drift["life"] = drift.get("life", 0) + 1
            buried = absent
            self._end_absent_sessions(census, drift, wall_ms)
            self._end_absent_projects(census)
        self._census, self._seen = census.stamp, seen
        self.live = len(seen)
        # One that was begun before we started could not create anything: it confirms nothing either.
        self.complete = self.complete or census.stamp.began > self.fence
        if self.complete and not held:
            self.settled = census.stamp.ended
        self._evicted_from = {name for name in self._evicted_from if self._lacks(name, census)}
        return Tally(rulings, drift, buried, held)

    def _counts(self, census: Census) -> bool:
        """Whether its absences say anything: it is complete, by our clock, and no former one come late or twice."""
        if not census.complete or census.stamp.clock != self.clock:
            return False
        return self._census is None or _before(self._census, census.stamp)

    def _mass_delete(self, absent: list[str]) -> bool:
        total = len(self.entries)
        return bool(absent) and (len(absent) == total or (len(absent) > MASS_DELETE_MIN and 2 * len(absent) > total))

    def _of_another(self, absent: list[str], census: Census) -> bool:
        """Whether these workspaces came from another database, of whose rows this one can say nothing."""
        domains = {self.entries[name].looks["life"].domain for name in absent}
        return not domains <= {"", census.domain}

    def _end_absent_sessions(self, census: Census, drift: dict[str, int], wall_ms: int) -> None:
        """Sessions that came from this catalog and are no longer in it."""
        present = {(look.workspace, look.group) for look in census.looks}
        for name, entry in self.entries.items():
            if name in census.unread:
                continue
            ended = [
                look
                for group, look in entry.looks.items()
                if group in entry.values
                and group.startswith(SESSION_PREFIX)
                and look.domain
                and look.source == census.source
                and (name, group) not in present
                and _before(look.stamp, census.stamp)
            ]
            for look in ended:
                self.admit(replace(look, value=None, stamp=census.stamp, revision=None, seq=None, at_ms=None), wall_ms)
                drift["session"] = drift.get("session", 0) + 1

    def _end_absent_projects(self, census: Census) -> None:
        for project in census.projects:
            self.ledger(project)
        occupied = {entry.project for entry in self.entries.values()}
        for project in [name for name in self.projects if name not in census.projects and name not in occupied]:
            self._base = max(self._base, self.projects.pop(project).version)
            self.removed_projects.add(project)

    def _lacks(self, project: str, census: Census) -> bool:
        return any(look.project == project and self._misses(look) for look in census.looks)

    def _misses(self, look: Look) -> bool:
        """Whether the catalog holds a workspace or a session that found no room here."""
        entry = self.entries.get(look.workspace)
        return entry is None or (isinstance(look.value, Session) and look.group not in entry.values)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def ledger(self, project: str) -> Ledger:
        """The public state of a project, to be written to. One that returns goes on counting: no old cursor fits it."""
        self.touched.add(project)
        found = self.projects.get(project)
        if found is None:
            found = self.projects[project] = Ledger(self._base)
            self.removed_projects.discard(project)
        return found

    def is_complete(self, project: str) -> bool:
        """Whether a census has confirmed the project and nothing of it was evicted or refused."""
        return self.complete and project not in self._evicted_from

    def rulings(self, workspace: str, group: str = "") -> dict[str, list[Told]]:
        """The last rulings per group, oldest first; of a workspace that is not there, those among the lost."""
        entry = self.entries.get(workspace)
        told: dict[str, list[Told]] = {}
        for one in self.lost:
            if one.look.workspace == workspace:
                told.setdefault(one.look.group, []).append(one)
        if entry is not None:
            for name, history in entry.history.items():
                told.setdefault(name, []).extend(history)
        for rulings in told.values():
            rulings.sort(key=lambda one: one.n)
        return {name: rulings[-EXPLAIN_DEPTH:] for name, rulings in told.items() if not group or name == group}


def _refuse(look: Look) -> Ruling | None:
    """Why this source may not say this of this group, whatever is known of the workspace."""
    group, value, kind = look.group, look.value, kind_of(look.group)
    if not (group.isascii() and len(group) <= NAME_MAX) or group in NO_SESSION:
        return BAD_NAME
    if value is None:
        if kind != "session":
            return WRONG_TYPE
    elif type(value) is not KINDS.get(kind):
        return WRONG_TYPE
    return None if look.source in OWNERS[kind] else NOT_OWNER


def _found_again(tombstone: Tombstone, look: Look) -> bool:
    """An absence is undone by a look that began after it; an archive is not."""
    return (
        not tombstone.final
        and look.group == "life"
        and look.incarnation == tombstone.incarnation
        and look.stamp.clock == tombstone.stamp.clock
        and look.stamp.began > tombstone.stamp.ended
    )


def _before(stamp: Stamp, census: Stamp) -> bool:
    return stamp.clock == census.clock and stamp.ended < census.began


def _changed(old: Group | None, new: Group, at_ms: int) -> dict[str, object]:
    """The fields in which two values of a group differ, and when that came about."""
    changes: dict[str, object] = {"changed_at": at_ms}
    former = repeat(None) if old is None else astuple(old)
    for field, value, before in zip(new.__struct_fields__, astuple(new), former, strict=False):
        if value is not before and value != before:
            changes[field] = value
    return changes


@cache
def _restated(old: Group | None, new: Status) -> dict[str, object]:
    """The fields in which two statuses differ; there is one status for each row of the table, so few pairs."""
    fields = _changed(old, new, 0)
    del fields["changed_at"]
    return fields
