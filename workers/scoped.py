"""The scoped look: only the named paths, read in this process, against what a full look left behind.

A `Scope` is what is remembered of one worktree. The index is not in it: a path that is not staged has in the index
what it has in HEAD. Where single paths do not tell exactly what git would say, the look is `Unfit`, with the reason,
and a full one is due. What only git can decide (what is ignored, which attributes hold, which files were renamed) is
asked of git, for those paths alone, and remembered for as long as the rule files stay.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple, Protocol, TypeAlias

from workers.numstat import GITLINK, Blob, Change
from workers.objects import MAX_BLOB, TREE, Objects, View, compare, is_binary
from workers.table import UNREAD, Entry, Kind, State, Table, leaves_pairs_alone
from workers.walk import Found, Rule, Unfit, Walk

LINK: Final = 0o120000
FILE: Final = 0o100644
PROGRAM: Final = 0o100755

MAX_REMEMBERED: Final = 8192
MAX_READ: Final = 1 << 26
MAX_PAIRED: Final = 1000  # as git's rename limit
MAX_COMPARED: Final = 200
MAX_NAMES: Final = 1 << 16
MAX_DEPTH: Final = 100
OTHER: Final = ""
FIXED_BYTES: Final = 1 << 14
REMEMBERED_BYTES: Final = 300

ATTRIBUTES: Final = ("filter", "diff", "working-tree-encoding", "text", "eol", "crlf", "ident")
_STRONG: Final = frozenset({"filter", "diff", "binary", "working-tree-encoding"})
_WEAK: Final = frozenset({"text", "eol", "crlf", "ident"})
_NO_VALUE: Final = ("unspecified", "unset")
_RULES: Final = {b".gitignore": "ignore rules", b".gitattributes": "attributes", b".gitmodules": "submodule"}

Attributes: TypeAlias = Mapping[str, str]


class Asks(Protocol):
    """What git is asked about single paths."""

    def ignored(self, paths: Collection[bytes]) -> set[bytes]: ...
    def attributes(self, paths: Collection[bytes]) -> dict[bytes, Attributes]: ...
    def renames(self, added: Collection[bytes], deleted: Collection[bytes]) -> list[Change]: ...


# ── what is remembered ───────────────────────────────────────────────────────────────────────────


class Core(NamedTuple):
    """The settings that decide what a file counts as. ``binaries``: what diff drivers say of their files."""

    file_mode: bool
    convert: bool
    drivers: frozenset[str]
    binaries: Mapping[str, bool]
    unfit: str

    @classmethod
    def of(cls, text: str, drivers: frozenset[str], sha256: bool) -> Core:
        """From the configuration that git is shown."""
        values: dict[str, str] = {}
        binaries: dict[str, bool] = {}
        section = ""
        for line in text.splitlines():
            if line.startswith("["):
                section = line[1:-1]
            else:
                key, _, value = line.strip().partition(" = ")
                values[f"{section}.{key}"] = value
                if section.startswith('diff "'):
                    binaries[section[6:-1]] = value == "true"
        unfit = ""
        if sha256:
            unfit = "sha256"
        elif values.get("core.ignorecase") == "true":
            unfit = "case"
        elif values.get("core.symlinks") == "false":
            unfit = "symlinks"
        elif values.get("core.sparsecheckout") == "true":
            unfit = "sparse"
        convert = values.get("core.autocrlf", "false") != "false"
        return cls(values.get("core.filemode") != "false", convert, drivers, binaries, unfit)


class Scope:
    """What one worker knows of one worktree.

    ``base``, ``top``: the files of the merge base and of HEAD. ``staged``: what the index has where it differs from
    HEAD. ``unmerged``: paths with conflicts, and the mode that `git add` would start from. ``hidden``: paths that git
    was told not to look at, ``None`` before it was asked. ``repositories``: changed paths that are repositories of
    their own. ``limit``: more paths than this are better looked at all at once. ``excluding``: whether ignore rules
    hold from outside the worktree; ``naming``: the attributes that are named there.
    """

    objects: Objects
    base: View
    top: View

    def __init__(self, core: Core, table: Table) -> None:
        self.core, self.table = core, table
        self.opened = False
        self.staged_count = 0
        self.staged: Mapping[bytes, Blob | None] = {}
        self.unmerged: dict[bytes, int] = {}
        self.hidden: frozenset[bytes] | None = None
        self.repositories: set[bytes] = set()
        self.limit = 0
        self.excluding = True
        self.naming: frozenset[str] = frozenset()
        self.unfit = core.unfit
        self._ignored: dict[bytes, tuple[tuple[Rule, ...], bool]] = {}
        self._attributes: dict[bytes, tuple[tuple[Rule, ...], Attributes]] = {}
        self._words: dict[Rule, frozenset[str]] = {}

    def open(self, objects: Objects, base: str | None, top: str | None) -> None:
        """Have the merge base's and HEAD's files at hand, which the first scoped look does."""
        self.objects, self.base, self.top = objects, objects.at(base), objects.at(top)
        self.opened = True

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes."""
        remembered = len(self._ignored) + len(self._attributes) + len(self.staged)
        views = self.base.weight + self.top.weight if self.opened else 0
        return FIXED_BYTES + self.table.weight + views + REMEMBERED_BYTES * remembered

    def index(self, path: bytes) -> Blob | None:
        """What the index has at a path without conflicts."""
        if path in self.staged:
            return self.staged[path]
        found = self.top.get(path)
        return None if found is None or found.mode == TREE else found

    def dirty(self) -> set[bytes]:
        """The paths that differ from the index, and those that the index has otherwise than HEAD."""
        return {path for path, entry in self.table.entries.items() if entry.state} | self.staged.keys()


# ── looking ──────────────────────────────────────────────────────────────────────────────────────


class ScopedLook:
    """One look at single paths. Raises `Unfit`; the scope is then not to be used again."""

    def __init__(self, scope: Scope, walk: Walk, asks: Asks) -> None:
        self._scope, self._walk, self._asks = scope, walk, asks
        self._table = scope.table
        self._found: dict[bytes, Found] = {}
        self._read = 0
        self._ways: set[bytes] = {b""}
        self._lost_attributes: set[bytes] = set()

    @property
    def told(self) -> Collection[bytes]:
        """The paths that were looked at."""
        return self._found.keys()

    def take(self, paths: Iterable[bytes]) -> None:
        """Bring the table up to date with what is at these paths now."""
        self._gather(list(paths))
        before = {path: self._table.get(path) for path in self._found}
        self._judge(self._found)
        self._pair(before)

    # ── which paths ──────────────────────────────────────────────────────────────────────────────

    def _gather(self, work: list[bytes]) -> None:
        directories: list[bytes] = []
        while work or directories:
            if not work:
                work = self._children(directories)
                directories = []
                continue
            path = work.pop().rstrip(b"/")
            if path in self._found or not _fit(path):
                continue
            if (reason := _RULES.get(path.rpartition(b"/")[2])) is not None:
                raise Unfit(reason)
            if path.count(b"/") > MAX_DEPTH:
                raise Unfit("deep path")
            found = self._look(path)
            work += self._on_the_way(path)
            if found.what == "directory" or path not in self._table.entries:
                work += self._known_below(path)
            if found.what == "directory":
                directories.append(path)

    def _look(self, path: bytes) -> Found:
        if len(self._found) >= self._scope.limit:
            raise Unfit("too many paths")
        found = self._found[path] = self._walk.read(path)
        self._read += len(found.content)
        if self._read > MAX_READ:
            raise Unfit("large file")
        return found

    def _on_the_way(self, path: bytes) -> list[bytes]:
        """The directories above that are none any more, or were none before: they changed as well."""
        ways = []
        while path := path.rpartition(b"/")[0]:
            if path in self._ways:
                break
            self._ways.add(path)
            if self._walk.directory(path) is None or self._counted(path):
                ways.append(path)
        return ways

    def _counted(self, path: bytes) -> bool:
        scope = self._scope
        before = scope.base.get(path)
        return (
            path in self._table.entries or scope.index(path) is not None or (before is not None and before.mode != TREE)
        )

    def _known_below(self, path: bytes) -> set[bytes]:
        """If this is or was a directory: all that is known in it."""
        scope, found = self._scope, set(self._table.below(path))
        for view in (scope.base, scope.top):
            inside = view.get(path)
            if inside is not None and inside.mode == TREE:
                below = view.below(path, scope.limit)
                if below is None:
                    raise Unfit("too many paths")
                found |= below
        return found | {name for name in scope.staged if name.startswith(path + b"/")}

    def _children(self, directories: list[bytes]) -> list[bytes]:
        for path in directories:
            self._walk.directory(path)  # which finds out if it is a repository of its own
        ignored = self._which_ignored([path for path in directories if self._scope.top.get(path) is None])
        return [child for path in directories if path not in ignored for child in self._walk.children(path)]

    # ── what they count ──────────────────────────────────────────────────────────────────────────

    def _judge(self, paths: Collection[bytes]) -> None:
        present = {path for path in paths if self._found[path].what in ("file", "link")}
        present -= self._which_ignored([path for path in present if not self._is_tracked(path)])
        attributes = self._which_attributes(paths, present)
        for path in paths:
            self._table.put(path, self._entry(path, path in present, attributes.get(path)))
            if path in self._scope.repositories:
                raise Unfit("nested repository")

    def _is_tracked(self, path: bytes) -> bool:
        if path in (self._scope.hidden or ()):
            raise Unfit("flags")
        return path in self._scope.unmerged or self._scope.index(path) is not None

    def _entry(self, path: bytes, present: bool, attributes: Attributes | None) -> Entry:
        scope, found = self._scope, self._found[path]
        indexed, before = scope.index(path), scope.base.get(path)
        if before is not None and before.mode == TREE:
            before = None
        if GITLINK in (indexed and indexed.mode, before and before.mode):
            raise Unfit("submodule")
        now = self._blob(path, found, indexed, before) if present else None
        state: State = ""
        if path in scope.unmerged:
            state = "conflicted"
        elif self._is_tracked(path):
            if found.what == "other":
                raise Unfit("special file")
            state = "" if now == indexed else "unstaged"
        elif present:
            state = "untracked"
        if now == before:
            return Entry(state=state)
        kind: Kind = "added" if before is None else "deleted" if now is None else "modified"
        old = b"" if before is None else scope.objects.data(before.id, MAX_BLOB)
        new = b"" if now is None else found.content
        binary = any(side and self._is_binary(side, data, attributes) for side, data in ((before, old), (now, new)))
        same = before is not None and now is not None and before.id == now.id
        lines = (0, 0) if same or binary else compare(old, new)
        return Entry(kind, *lines, state, None, len(old if now is None else new))

    def _blob(self, path: bytes, found: Found, indexed: Blob | None, before: Blob | None) -> Blob:
        if found.what == "link":
            mode = LINK
        elif self._scope.core.file_mode:
            mode = PROGRAM if found.executable else FILE
        else:
            known = self._scope.unmerged.get(path) or (indexed.mode if indexed is not None else FILE)
            mode = known if stat.S_ISREG(known) else FILE
        return Blob(mode, self._name(found.content, indexed, before))

    def _name(self, content: bytes, indexed: Blob | None, before: Blob | None) -> str:
        """The object name of a content, or none if to compare it tells that it has neither of these."""
        known = None if before is None else self._scope.objects.held(before.id)
        if before is not None and known is not None:
            if content == known:
                return before.id
            if indexed is None or indexed.id == before.id:
                return OTHER
        name = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
        name.update(content)
        return name.hexdigest()

    # ── what only git can decide ─────────────────────────────────────────────────────────────────

    def _which_ignored(self, paths: Iterable[bytes]) -> set[bytes]:
        scope, ignored, asked = self._scope, set(), {}
        for path in paths:
            rules = self._walk.nearest(path.rpartition(b"/")[0]).ignores
            known = scope._ignored.get(path)
            if known is not None and known[0] == rules:
                ignored |= {path} if known[1] else set()
            elif known is None and self._table.get(path).state == "untracked":
                scope._ignored[path] = rules, False
            elif rules or scope.excluding:
                asked[path] = rules
        if asked:
            found = self._asks.ignored(asked)
            if len(scope._ignored) + len(asked) > MAX_REMEMBERED:
                scope._ignored.clear()
            scope._ignored.update((path, (rules, path in found)) for path, rules in asked.items())
            ignored |= found
        return ignored

    def _which_attributes(self, paths: Iterable[bytes], present: Collection[bytes]) -> dict[bytes, Attributes]:
        scope, known, asked = self._scope, {}, {}
        for path in paths:
            rules = self._attribute_rules(path)
            words = scope.naming.union(*(self._words(rule) for rule in rules))
            content = self._found[path].content if path in present else b""
            odd = b"\r" in content or b"$Id" in content
            if odd and scope.core.convert and not words:
                raise Unfit("eol")
            if not (words & _STRONG or (odd and (words or scope.core.convert))):
                continue
            found = scope._attributes.get(path)
            if found is not None and found[0] == rules:
                known[path] = found[1]
            else:
                asked[path] = rules
        if asked:
            told = self._asks.attributes(asked)
            if len(scope._attributes) + len(asked) > MAX_REMEMBERED:
                scope._attributes.clear()
            scope._attributes.update((path, (rules, told[path])) for path, rules in asked.items())
            known.update(told)
        for path, attributes in known.items():
            self._check_conversion(attributes, self._found[path].content if path in present else b"")
        return known

    def _attribute_rules(self, path: bytes) -> tuple[Rule, ...]:
        """The attributes files that hold at a path. git takes one that is gone from the index, and so do not we."""
        parent = path.rpartition(b"/")[0]
        rules = self._walk.nearest(parent).attributes
        there = {name for name, _ in rules}
        while parent not in self._lost_attributes:
            self._lost_attributes.add(parent)
            name = parent + b"/.gitattributes" if parent else b".gitattributes"
            if name not in there and self._scope.index(name) is not None:
                raise Unfit("attributes")
            parent = parent.rpartition(b"/")[0]
        return rules

    def _words(self, rule: Rule) -> frozenset[str]:
        known = self._scope._words.get(rule)
        if known is None:
            known = words_of(self._walk.rules(rule[0]))
            if len(self._scope._words) > MAX_REMEMBERED:
                self._scope._words.clear()
            self._scope._words[rule] = known
        return known

    def _check_conversion(self, attributes: Attributes, content: bytes) -> None:
        core = self._scope.core
        if attributes["filter"] in core.drivers:
            raise Unfit("filter")
        if attributes["working-tree-encoding"] not in _NO_VALUE:
            raise Unfit("encoding")
        if b"$Id" in content and attributes["ident"] == "set":
            raise Unfit("eol")
        if b"\r" in content and attributes["text"] != "unset":
            said = (attributes["text"], attributes["eol"], attributes["crlf"])
            if core.convert or any(value not in _NO_VALUE for value in said):
                raise Unfit("eol")

    def _is_binary(self, side: Blob, content: bytes, attributes: Attributes | None) -> bool:
        """Attributes speak of files, and not of symbolic links."""
        if attributes is not None and side.mode != LINK:
            diff = attributes["diff"]
            if diff in ("set", "unset"):
                return diff == "unset"
            if diff in self._scope.core.binaries:
                return self._scope.core.binaries[diff]
        return is_binary(content)

    # ── renames ──────────────────────────────────────────────────────────────────────────────────

    def _pair(self, before: Mapping[bytes, Entry]) -> None:
        table = self._table
        if not table.added or not table.deleted:
            if table.widowed:
                alone = [path for path in table.widowed if path not in self._found]
                for path in alone:
                    self._look(path)
                self._judge(alone)
                table.widowed.clear()
            return
        if not table.widowed and all(
            leaves_pairs_alone(table, path, entry, self._sizes) for path, entry in before.items()
        ):
            return
        self._pair_anew()

    def _sizes(self, paths: Collection[bytes]) -> Mapping[bytes, int] | None:
        return {path: self._size(path) for path in paths} if len(paths) <= MAX_COMPARED else None

    def _size(self, path: bytes) -> int:
        entry = self._table.get(path)
        if entry.size == UNREAD:
            before = self._scope.base.get(path)
            if before is not None:
                size = 0 if before.mode == GITLINK else self._scope.objects.size(before.id)
            else:
                size = len(self._walk.read(path).content)
            entry = entry._replace(size=size)
            self._table.entries[path] = entry
        return entry.size

    def _pair_anew(self) -> None:
        table, scope = self._table, self._scope
        added, deleted = frozenset(table.added), frozenset(table.deleted)
        both = added | deleted
        if len(added) * len(deleted) > MAX_PAIRED**2 or sum(map(len, both)) + len(both) > MAX_NAMES:
            raise Unfit("renames")
        if both & scope.repositories:
            raise Unfit("renames")
        changes = {change.path: change for change in self._asks.renames(added, deleted)}
        sources = {change.source for change in changes.values() if change.source is not None}
        if both - changes.keys() - sources:
            raise Unfit("renames")
        for path in both:
            change = changes.get(path)
            lines = (change.insertions, change.deletions) if change is not None else (0, 0)
            table.put(path, table.get(path)._replace(insertions=lines[0], deletions=lines[1], partner=None))
        for change in changes.values():
            if change.source is not None:
                table.pair(change.source, change.path, change.insertions, change.deletions)
        table.widowed.clear()


def words_of(content: bytes) -> frozenset[str]:
    """The attributes that matter and that a file of attributes names, whatever it says of them."""
    words = set()
    for line in content.splitlines():
        if not line.lstrip().startswith(b"#"):
            for token in line.split():
                words.add(token.lstrip(b"-!").partition(b"=")[0].decode("latin-1"))
    return frozenset(words & (_STRONG | _WEAK))


def says_something(content: bytes) -> bool:
    """Whether a file of ignore rules has any rule."""
    return any(line.strip() and not line.startswith(b"#") for line in content.splitlines())


def _fit(path: bytes) -> bool:
    """Whether this names something in the worktree that git would count."""
    return bool(path) and not any(part in (b"", b".", b"..", b".git") for part in path.split(b"/"))


def paths_worth(entries: int) -> int:
    """How many paths are looked at one by one in a worktree of so many files."""
    return max(50, int(50 * (entries / 1000) ** 0.65))


def tiny_index(paths: Iterable[bytes], id: str) -> bytes:
    """An index of these paths and no others, whose stat data fit no file, so that git reads each."""
    body = b""
    names = sorted(paths)
    for name in names:
        entry = bytes(24) + FILE.to_bytes(4, "big") + bytes(12) + bytes.fromhex(id)
        entry += min(len(name), 0xFFF).to_bytes(2, "big") + name
        body += entry + bytes(8 - len(entry) % 8)
    content = b"DIRC" + (2).to_bytes(4, "big") + len(names).to_bytes(4, "big") + body
    return content + hashlib.sha1(content, usedforsecurity=False).digest()
