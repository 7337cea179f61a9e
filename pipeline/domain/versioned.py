"""A project's public state, in which every field remembers the version that last changed it.

The aggregator's store and every follower hold the same thing, a `Ledger`:

- `write` changes fields in one step and raises the version by one; `apply` takes somebody else's delta.
- `since(v)` is what changed after version `v`, as one JSON Merge Patch: applied to the state at `v` it
  gives the state now. Entries are kept in the order of their last change, so the cost is what changed.
- A field that was cleared stays as a null with its version, and a workspace that left stays in `gone` with
  the names of its fields: so a follower that slept through a removal *and* a re-creation still ends equal.
- Memory is bounded: `gone` has a cap, and so has the number of emptied groups of an entry. What is
  forgotten raises the `floor`, below which `since` has no answer and a whole image is needed.
- `hash` is lazy: only entries that changed since it was last asked for are encoded again.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from pipeline.domain import patch as merge_patch
from pipeline.domain.model import SESSION_PREFIX

GONE_CAP: Final = 1024
EMPTY_GROUPS_CAP: Final = 32
STEPS_CAP: Final = 64
NEVER: Final = sys.maxsize

Fields = dict[str, tuple[Any, int]]


class Group:
    """The fields of one group: values, and for each field that ever had one its version.

    ``last`` is the change that led from version ``before`` to ``version``, where that is known and the group not empty.
    """

    __slots__ = ("before", "last", "values", "version", "versions")

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.versions: dict[str, int] = {}
        self.version = 0
        self.before = NEVER
        self.last: Mapping[str, Any] = {}

    def set(self, changes: Mapping[str, Any], version: int) -> None:
        """Take over `changes`, which are not to be changed any more."""
        values, versions = self.values, self.versions
        for field, value in changes.items():
            if value is None:
                values.pop(field, None)
            else:
                values[field] = value
            versions[field] = version
        self.before = self.version if values else NEVER
        self.version, self.last = version, changes

    def clear(self, version: int) -> None:
        for field in self.values:
            self.versions[field] = version
        self.values.clear()
        self.before, self.version = NEVER, version

    def since(self, version: int) -> dict[str, Any] | None:
        """Fields changed after `version`; ``None`` if the group as a whole is empty now."""
        values = self.values
        if not values:
            return None
        get = values.get
        return {field: get(field) for field, changed in self.versions.items() if changed > version}


class Entry:
    """One workspace's groups."""

    __slots__ = ("groups", "version")

    def __init__(self) -> None:
        self.groups: dict[str, Group] = {}
        self.version = 0

    def group(self, name: str) -> Group:
        found = self.groups.get(name)
        if found is None:
            found = self.groups[name] = Group()
        return found

    def since(self, version: int) -> dict[str, Any]:
        patch: dict[str, Any] = {}
        for name, group in self.groups.items():
            if group.version > version:
                # Most cursors lie between a group's last two changes: then its last change is the answer.
                value = group.last if version >= group.before else group.since(version)
                if name.startswith(SESSION_PREFIX):
                    _place(patch, name, value)
                else:
                    patch[name] = value
        return patch

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for name, group in self.groups.items():
            if group.values:
                _place(state, name, dict(group.values))
        return state

    def shape(self) -> dict[str, list[str]]:
        return {name: list(group.versions) for name, group in self.groups.items()}


def _place(state: dict[str, Any], group: str, value: Any) -> None:
    """Groups ``session:<id>`` live under ``sessions`` in everything public."""
    if group.startswith(SESSION_PREFIX):
        state.setdefault("sessions", {})[group[len(SESSION_PREFIX) :]] = value
    else:
        state[group] = value


def _flat(entry_patch: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any] | None]]:
    """The inverse of `_place`, over the patch of one entry."""
    for name, value in entry_patch.items():
        if name != "sessions":
            yield name, value
        else:
            for session, fields in (value or {}).items():
                yield SESSION_PREFIX + session, fields


class Ledger:
    __slots__ = ("_dirty", "_raw", "_shares", "_steps", "_total", "entries", "floor", "gone", "version")

    def __init__(self, version: int = 0) -> None:
        """An empty project. A `version` above 0 continues the numbers of one that was removed."""
        self.version = version
        self.floor = version
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        self.gone: OrderedDict[str, tuple[int, dict[str, list[str]]]] = OrderedDict()
        self._dirty: set[str] = set()
        self._raw: dict[str, bytes] = {}
        self._shares: dict[str, int] = {}
        self._steps: deque[tuple[int, int]] = deque()
        self._total = 0

    # ── changing ─────────────────────────────────────────────────────────────────────────────────

    def write(self, workspace: str, changes: Iterable[tuple[str, Mapping[str, Any] | None]]) -> int:
        """Set fields of groups (``None`` clears a field, or the whole group) as one new version."""
        self._write(workspace, changes, self.version + 1)
        return self.version

    def remove(self, workspace: str) -> int:
        """Take an entry out as one new version; a workspace that is not there changes nothing."""
        if workspace in self.entries:
            self.version += 1
            self._remove(workspace, self.version)
        return self.version

    def apply(self, patch: Mapping[str, Any], to: int) -> None:
        """Take over what changed elsewhere up to version `to`.

        What a group or workspace held when it left is not known if it changed within the same step: so for
        cursors from within such a step there is no answer.
        """
        leaves, before = False, self.version
        for workspace, entry_patch in patch.items():
            if entry_patch is None:
                leaves = True
                if workspace in self.entries:
                    self._remove(workspace, to)
            else:
                flat = list(_flat(entry_patch))
                leaves = leaves or any(fields is None for _, fields in flat)
                self._write(workspace, flat, to)
        if leaves and to > before + 1:
            self._steps.append((before, to))
            if len(self._steps) > STEPS_CAP:
                self.floor = max(self.floor, self._steps.popleft()[1])
        self.version = to

    def _write(self, workspace: str, changes: Iterable[tuple[str, Mapping[str, Any] | None]], version: int) -> None:
        entry = self.entries.get(workspace)
        emptied = entry is None
        if entry is None:
            entry = self.entries[workspace] = Entry()
            self._revive(workspace, entry)
        else:
            self.entries.move_to_end(workspace)
        self.version = version
        groups = entry.groups
        for name, fields in changes:
            group = groups.get(name) or entry.group(name)
            if fields is None:
                group.clear(version)
                emptied = True
            else:
                group.set(fields, version)
        entry.version = version
        self._dirty.add(workspace)
        if emptied:
            self._forget_empty_groups(entry)

    def _revive(self, workspace: str, entry: Entry) -> None:
        """A workspace comes back: a follower may still hold its former fields, so they return as nulls."""
        former = self.gone.pop(workspace, None)
        if former is not None:
            left_at, shape = former
            for name, fields in shape.items():
                entry.group(name).set(dict.fromkeys(fields), left_at)

    def _remove(self, workspace: str, version: int) -> None:
        entry = self.entries.pop(workspace)
        self.gone[workspace] = (version, entry.shape())
        self._dirty.add(workspace)
        while len(self.gone) > GONE_CAP:
            _, (left_at, _) = self.gone.popitem(last=False)
            self.floor = max(self.floor, left_at)

    def _forget_empty_groups(self, entry: Entry) -> None:
        empty = [(group.version, name) for name, group in entry.groups.items() if not group.values]
        for version, name in sorted(empty)[: max(0, len(empty) - EMPTY_GROUPS_CAP)]:
            del entry.groups[name]
            self.floor = max(self.floor, version)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def since(self, version: int) -> dict[str, Any] | None:
        """The patch from `version` to now; ``None`` if it is below the floor, ahead of the present or within a step."""
        if version < self.floor or version > self.version or self._is_within_a_step(version):
            return None
        patch: dict[str, Any] = {}
        for workspace, entry in reversed(self.entries.items()):
            if entry.version <= version:
                break
            patch[workspace] = entry.since(version)
        for workspace, (left_at, _) in reversed(self.gone.items()):
            if left_at <= version:
                break
            patch[workspace] = None
        return patch

    def _is_within_a_step(self, version: int) -> bool:
        for began, ended in reversed(self._steps):
            if ended <= version:
                break
            if began < version:
                return True
        return False

    def state(self) -> dict[str, Any]:
        """All entries in their public form."""
        return {workspace: entry.state() for workspace, entry in self.entries.items()}

    def hash(self) -> str:
        """The state hash at the present version."""
        for workspace in self._dirty:
            self._total -= self._shares.pop(workspace, 0)
            entry = self.entries.get(workspace)
            if entry is None:
                self._raw.pop(workspace, None)
            else:
                raw = self._raw[workspace] = merge_patch.canonical(entry.state())
                share = self._shares[workspace] = merge_patch.entry_hash(workspace, raw)
                self._total += share
        self._dirty.clear()
        return merge_patch.show_hash(self._total)

    def encoded(self) -> dict[str, msgspec.Raw]:
        """All entries as canonical JSON, each encoded at most once per change."""
        self.hash()
        return {workspace: msgspec.Raw(self._raw[workspace]) for workspace in self.entries}

    # ── carrying over ────────────────────────────────────────────────────────────────────────────

    def dump(self) -> dict[str, dict[str, Fields]]:
        """Every entry with the version of each field, in order of last change: see `load`."""
        return {
            workspace: {
                name: {field: (group.values.get(field), changed) for field, changed in group.versions.items()}
                for name, group in entry.groups.items()
            }
            for workspace, entry in self.entries.items()
        }

    @classmethod
    def load(
        cls,
        version: int,
        floor: int,
        entries: Mapping[str, Mapping[str, Mapping[str, tuple[Any, int]]]],
        gone: Mapping[str, tuple[int, Mapping[str, list[str]]]],
    ) -> Ledger:
        """The ledger whose `dump` and `gone` these are: it answers every cursor that the original answers."""
        ledger = cls(version)
        ledger.floor = floor
        last = 0
        for workspace, groups in entries.items():
            entry = ledger.entries[workspace] = Entry()
            for name, fields in groups.items():
                group = entry.group(name)
                for field, (value, changed) in fields.items():
                    if value is not None:
                        group.values[field] = value
                    group.versions[field] = changed
                    group.version = max(group.version, changed)
                last = max(last, group.version)
            entry.version = last  # they come in order of last change
            ledger._dirty.add(workspace)
        for workspace, (left_at, shape) in gone.items():
            ledger.gone[workspace] = (left_at, {name: list(fields) for name, fields in shape.items()})
        return ledger
