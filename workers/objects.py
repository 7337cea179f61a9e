"""A repository's objects, read in this process by libgit2: trees by path, blobs, lines that differ, merge bases.

libgit2 is given the object store and nothing else: no configuration, no refs, no worktree, no hook, no filter. What it
does not have is `Lacking`, which is another thing than what is not there. SHA-1 only, as libgit2 is built.
"""

from __future__ import annotations

import functools
import os
from bisect import bisect_left
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pipeline.gitdir import Identity, check_packs
from workers.files import Files
from workers.numstat import Blob
from workers.walk import Unfit

if TYPE_CHECKING:
    import pygit2

FIRST_BYTES: Final = 8000  # where git looks for a NUL
TREE: Final = 0o040000
MAX_BLOB: Final = 1 << 23
MAX_HELD_BLOB: Final = 1 << 18
MAX_HELD: Final = 1 << 20
MAX_OBJECT: Final = 1 << 26
MAX_LINE_PAIRS: Final = 1 << 33
MAX_SORTED: Final = 1 << 20
MAX_TREES: Final = 1024
MAX_GOT: Final = 4096
GOT_BYTES: Final = 400
TREE_BYTES: Final = 2000
TRIES: Final = 5
_CACHE: Final = 1 << 23
_MAPPED: Final = 1 << 28


class Lacking(Exception):
    """The repository lacks an object, or has none that libgit2 can read."""


class Lineage(NamedTuple):
    """Where HEAD left the base branch, and by how many commits each has gone on since."""

    merge_base: str | None
    ahead: int
    behind: int


class Lines(NamedTuple):
    insertions: int
    deletions: int


@functools.cache
def _library() -> Any:
    import pygit2

    for level in (
        pygit2.enums.ConfigLevel.SYSTEM,
        pygit2.enums.ConfigLevel.XDG,
        pygit2.enums.ConfigLevel.GLOBAL,
        pygit2.enums.ConfigLevel.PROGRAMDATA,
    ):
        pygit2.settings.search_path[level] = ""
    pygit2.settings.cache_max_size(_CACHE)
    pygit2.settings.mwindow_mapped_limit = _MAPPED
    return pygit2


class Objects:
    """One object store. Raises `Lacking` wherever something that must be there is not."""

    def __init__(self, common_dir: Path, seen: dict[Path, Identity]) -> None:
        """Raises as `check`, before libgit2 gets to open anything."""
        library = _library()
        self._main = common_dir / "objects"
        self._stores: tuple[str, ...] = ()
        self.store_files: Files | None = None
        self.check(seen)
        try:
            odb = library.Odb(os.fspath(common_dir / "objects"))
        except (library.GitError, OSError, ValueError) as error:
            raise Lacking(str(error)) from error
        self._repo: pygit2.Repository = library.Repository()
        self._repo.set_odb(odb)
        self._odb = odb
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._held_bytes = 0
        self._faults = library.GitError, KeyError, OSError, ValueError

    def check(self, seen: dict[Path, Identity]) -> None:
        """See that what libgit2 opens by itself lets nobody wait. Raises as `check_packs`, which this is for."""
        if self.store_files is None or not self.store_files.same():
            stores = self._stores
            for _ in range(TRIES):
                files = Files([f"{store}/info/alternates" for store in stores], [f"{store}/pack" for store in stores])
                self._stores = tuple(map(os.fspath, check_packs(self._main, seen)))
                if self._stores == stores:
                    break
                stores = self._stores
            self.store_files = files

    def size(self, name: str) -> int:
        """How long an object says that it is, without unpacking it: a small file can hold a huge one."""
        for store in self._stores:  # libgit2 would wait at a FIFO
            path = f"{store}/{name[:2]}/{name[2:]}"
            if os.path.exists(path) and not os.path.isfile(path):
                raise Lacking(f"object {name} is no regular file")
        try:
            return int(self._odb.read_header(name)[1])
        except self._faults as error:
            raise Lacking(f"object {name} cannot be read") from error

    def get(self, name: str) -> Any:
        if self.size(name) > MAX_OBJECT:
            raise Lacking(f"object {name} is larger than is unpacked here")
        try:
            return self._repo[name]
        except self._faults as error:
            raise Lacking(f"object {name} cannot be read") from error

    def data(self, name: str, most: int) -> bytes:
        """What a blob holds. Raises `Unfit` if that is more than so many bytes."""
        found = self._held.get(name)
        if found is not None:
            self._held.move_to_end(name)
            return found
        if self.size(name) > most:
            raise Unfit("large file")
        found = bytes(self._of_type(name, "blob").data)
        if len(found) <= MAX_HELD_BLOB:
            self._held[name] = found
            self._held_bytes += len(found)
            while self._held_bytes > MAX_HELD:
                self._held_bytes -= len(self._held.popitem(last=False)[1])
        return found

    def held(self, name: str) -> bytes | None:
        """What a blob holds, if that is at hand: a name stands for one content for ever."""
        return self._held.get(name)

    def tree(self, name: str) -> pygit2.Tree:
        found: pygit2.Tree = self._of_type(name, "tree")
        return found

    def _of_type(self, name: str, wanted: str) -> Any:
        found = self.get(name)
        if found.type_str != wanted:
            raise Lacking(f"object {name} is no {wanted}")
        return found

    def at(self, commit: str | None) -> View:
        """The files of a commit; none for ``None``."""
        return View(self, None if commit is None else self._of_type(commit, "commit").tree_id)

    def lineage(self, head: str, base: str) -> Lineage | None:
        """As git would tell it; ``None`` if there are several merge bases, of which only git knows which it takes."""
        repo, faults = self._repo, self._faults
        try:
            ahead, behind = repo.ahead_behind(head, base)
            merge_base: Any = repo.merge_base(head, base)
            if merge_base is None:
                return Lineage(None, ahead, behind)
            # It is the only one if all that both have in common can be reached from it.
            if repo.ahead_behind(head, merge_base)[0] != ahead:
                return None
        except faults as error:
            raise Lacking("a commit cannot be read") from error
        return Lineage(str(merge_base), ahead, behind)

    def changed(self, one: View, other: View, most: int) -> set[bytes] | None:
        """The paths in which two commits differ; ``None`` if there are more than so many."""
        try:
            if one.root is None and other.root is None:
                return set()
            if one.root is None:
                diff = self.tree(str(other.root)).diff_to_tree()
            elif other.root is None:
                diff = self.tree(str(one.root)).diff_to_tree()
            else:
                diff = self.tree(str(one.root)).diff_to_tree(self.tree(str(other.root)))
            if len(diff) > most:
                return None
            return {side.raw_path for delta in diff.deltas for side in (delta.old_file, delta.new_file)}
        except self._faults as error:
            raise Lacking("a tree cannot be read") from error


class View:
    """What one commit has, by path."""

    def __init__(self, objects: Objects, root: Any) -> None:
        self.root = root
        self._objects = objects
        self._trees: dict[bytes, Any] = {}
        self._got: dict[bytes, Blob | None] = {}

    def get(self, path: bytes) -> Blob | None:
        """What is at a path, a tree among it."""
        if path not in self._got:
            if len(self._got) >= MAX_GOT:
                self._got.clear()
            self._got[path] = self._look_up(path)
        return self._got[path]

    @property
    def weight(self) -> int:
        """About how many bytes of memory it takes."""
        return GOT_BYTES * len(self._got) + TREE_BYTES * len(self._trees)

    def _look_up(self, path: bytes) -> Blob | None:
        parent, _, name = path.rpartition(b"/")
        tree = self._tree(parent)
        if tree is None:
            return None
        found = _named(tree, name)
        return None if found is None else Blob(int(found.filemode), str(found.id))

    def _tree(self, path: bytes) -> Any:
        if path in self._trees:
            return self._trees[path]
        if len(self._trees) >= MAX_TREES:
            self._trees.clear()
        tree = None
        if not path:
            tree = None if self.root is None else self._objects.tree(str(self.root))
        elif (found := self.get(path)) is not None and found.mode == TREE:
            tree = self._objects.tree(found.id)
        self._trees[path] = tree
        return tree

    def below(self, path: bytes, most: int) -> set[bytes] | None:
        """All files in a directory, at any depth; ``None`` if there are more than so many."""
        found: set[bytes] = set()
        rest = [path]
        while rest:
            directory = rest.pop()
            for entry in self._tree(directory) or ():
                name = directory + b"/" + entry.raw_name
                if entry.filemode == TREE:
                    rest.append(name)
                else:
                    found.add(name)
                if len(found) + len(rest) > most:
                    return None
        return found


def _named(tree: pygit2.Tree, name: bytes) -> Any:
    """What a tree has under this name; ``None`` if there is nothing.

    Asked by name itself, pygit2 keeps the name for ever (1.21). Entries are in order, with a slash after directories.
    """
    for wanted in (name, name + b"/"):
        at = bisect_left(range(len(tree)), wanted, key=lambda place: _sorted_as(tree[place]))
        if at < len(tree) and (found := tree[at]).raw_name == name:
            return found
    return None


def _sorted_as(entry: Any) -> bytes:
    name: bytes = entry.raw_name
    return name + b"/" if entry.filemode == TREE else name


# ── lines ────────────────────────────────────────────────────────────────────────────────────────


def is_binary(content: bytes) -> bool:
    return b"\0" in content[:FIRST_BYTES]


def count(content: bytes) -> int:
    """Lines, the last one also without its newline."""
    return content.count(b"\n") + (content[-1:] not in (b"", b"\n"))


def compare(old: bytes, new: bytes) -> Lines:
    """The lines that ``git diff --numstat`` would count between two texts.

    What both begin and end with is left out, as any diff does first. If no line of one rest is in the other, which is
    how most edits look, there is nothing left to decide, and libgit2 is not asked.
    """
    before, after = _parted(old, new)
    if not before or not after:
        return Lines(count(after), count(before))
    if len(before) + len(after) <= MAX_SORTED:
        gone, come = _lines(before), _lines(after)
        if set(gone).isdisjoint(come):
            return Lines(len(come), len(gone))
    if count(old) * count(new) > MAX_LINE_PAIRS:
        # Made so, two texts of this length can keep the whole process busy for minutes; git can be killed.
        raise Unfit("large file")
    library = _library()
    _, insertions, deletions = library.Patch.create_from(old, new, flag=library.enums.DiffOption.FORCE_TEXT).line_stats
    return Lines(insertions, deletions)


def _parted(old: bytes, new: bytes) -> tuple[bytes, bytes]:
    """What is left of both between the lines with which both begin and those with which both end."""
    if old == new:
        return b"", b""
    start = old.rfind(b"\n", 0, _alike(old, new)) + 1
    old, new = old[start:], new[start:]
    tail = _alike(old[::-1], new[::-1])
    longer, at = (new, len(new) - tail) if len(new) > len(old) else (old, len(old) - tail)
    if tail < min(len(old), len(new)) or (at and longer[at - 1 : at] != b"\n"):
        found = longer.find(b"\n", at) + 1  # only whole lines are alike
        tail = len(longer) - found if found else 0
    return old[: len(old) - tail], new[: len(new) - tail]


def _alike(one: bytes, other: bytes) -> int:
    """With how many bytes both begin."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _lines(text: bytes) -> list[bytes]:
    """The lines without their ends; a last one that has none keeps one, which tells it from all others."""
    lines = text.split(b"\n")
    last = lines.pop()
    return [*lines, last + b"\n"] if last else lines
