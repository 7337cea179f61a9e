"""What each changed path of one worktree adds to the totals, and the totals as running sums. Pure.

A path is in the table if it differs from the merge base, or from the index. A rename is two paths that know each
other: the one that is gone counts nothing, the other counts as one file with the lines that still differ.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["", "added", "deleted", "modified"]
State: TypeAlias = Literal["", "unstaged", "untracked", "conflicted"]

UNREAD: Final = -1
ENTRY_BYTES: Final = 360  # a tuple, its numbers, two places in dictionaries; measured, and rounded up


class Entry(NamedTuple):
    """One path. ``kind``: against the merge base; ``state``: against the index. ``partner``: the other half of a
    rename. ``size``: bytes of the content that there is (the file's, or the merge base's), if it was read."""

    kind: Kind = ""
    insertions: int = 0
    deletions: int = 0
    state: State = ""
    partner: bytes | None = None
    size: int = UNREAD

    @property
    def files(self) -> int:
        return int(self.kind != "" and not (self.kind == "deleted" and self.partner is not None))

    def same(self, other: Entry) -> bool:
        """Whether both count the same."""
        return self[:4] == other[:4] and self.files == other.files


NOTHING: Final = Entry()


class Table:
    """All changed paths of a worktree. ``added`` and ``deleted`` are those that may pair up as renames; ``widowed``
    are halves of a rename whose other half was replaced, so that what they count is not known any more."""

    __slots__ = (
        "_bytes",
        "added",
        "deleted",
        "deletions",
        "entries",
        "files",
        "insertions",
        "pairs",
        "states",
        "widowed",
    )

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.files = self.insertions = self.deletions = self.pairs = 0
        self.states: dict[State, int] = {"": 0, "unstaged": 0, "untracked": 0, "conflicted": 0}
        self.added: set[bytes] = set()
        self.deleted: set[bytes] = set()
        self.widowed: set[bytes] = set()
        self._bytes = 0

    def get(self, path: bytes) -> Entry:
        return self.entries.get(path, NOTHING)

    def put(self, path: bytes, entry: Entry) -> None:
        """Replace what is known of a path. An entry that counts nothing leaves the table."""
        former = self.entries.pop(path, None)
        if former is not None:
            self._count(path, former, -1)
            self.widowed.discard(path)
            if former.partner is not None and former.partner != entry.partner:
                self.widowed.add(former.partner)
        if entry.kind or entry.state:
            self.entries[path] = entry
            self._count(path, entry, 1)

    def pair(self, source: bytes, target: bytes, insertions: int, deletions: int) -> None:
        """These two are one file that was renamed."""
        self.put(source, self.get(source)._replace(kind="deleted", insertions=0, deletions=0, partner=target))
        self.put(
            target,
            self.get(target)._replace(kind="added", insertions=insertions, deletions=deletions, partner=source),
        )
        self.widowed -= {source, target}

    def _count(self, path: bytes, entry: Entry, sign: int) -> None:
        self.files += sign * entry.files
        self.insertions += sign * entry.insertions
        self.deletions += sign * entry.deletions
        self.states[entry.state] += sign
        self._bytes += sign * (ENTRY_BYTES + len(path))
        side = self.added if entry.kind == "added" else self.deleted if entry.kind == "deleted" else None
        if side is not None and sign > 0:
            side.add(path)
        elif side is not None:
            side.discard(path)
        if entry.kind == "added" and entry.partner is not None:
            self.pairs += sign

    def below(self, directory: bytes) -> list[bytes]:
        """The paths in this directory, at any depth."""
        prefix = directory + b"/"
        return [path for path in self.entries if path.startswith(prefix)]

    def differ(self, other: Table) -> list[bytes]:
        """The paths of which two tables count different things."""
        paths = self.entries.keys() | other.entries.keys()
        return [path for path in paths if not self.get(path).same(other.get(path))]

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes."""
        return self._bytes


# ── renames ──────────────────────────────────────────────────────────────────────────────────────


def may_pair(size: int, other: int) -> bool:
    """Whether git would so much as compare two contents of these sizes, at its default of one half alike."""
    return 2 * min(size, other) >= max(size, other)


def leaves_pairs_alone(
    table: Table, path: bytes, before: Entry, sizes: Callable[[Collection[bytes]], Mapping[bytes, int] | None]
) -> bool:
    """Whether git pairs all others as it did before this path changed, and this one not at all.

    So it is if it was not paired, is too small or too large for all that it could be paired with, and has a name
    that no other has whose uniqueness would now be another: that is all that git goes by. ``sizes``: of the others,
    or ``None`` if they are too many to ask for.
    """
    now = table.get(path)
    sides = {before.kind, now.kind} & {"added", "deleted"}
    if before.partner is not None:
        return False
    if not sides:
        return True
    others = table.deleted if "added" in sides else table.added
    if not others:
        return True
    if before.kind != now.kind:
        name = path.rpartition(b"/")[2]
        if any(other.rpartition(b"/")[2] == name for other in others):
            return False
    if now.kind not in sides:
        return True
    found = sizes(others)
    return found is not None and not any(may_pair(now.size, found[other]) for other in others)
