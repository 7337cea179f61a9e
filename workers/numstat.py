"""Parsing what git prints: changed paths and their lines from ``diff``, the state of files from ``status``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

GITLINK: Final = 0o160000
_NONE: Final[Mapping[bytes, Blob | None]] = MappingProxyType({})


class Malformed(ValueError):
    """git printed something that its documentation does not promise."""


class Blob(NamedTuple):
    """What a tree or the index has under one path. ``id``: the object's name in hexadecimal digits."""

    mode: int
    id: str


class Change(NamedTuple):
    """One record of ``diff --raw --numstat``. ``kind``: git's letter. ``source``: where a renamed file came from.

    A binary has no lines. ``link``: on one of the sides it is a repository of its own.
    """

    kind: str
    path: bytes
    source: bytes | None
    insertions: int
    deletions: int
    link: bool


class Status(NamedTuple):
    """Counts of files, and the paths (as bytes, from the top of the worktree) whose content git has to read.

    ``edited``: tracked paths that differ from the index, and are there. ``unmerged``: with the mode that would be
    recorded. ``untracked``: ignored ones not among them; a nested repository is one path that ends in a slash.
    ``lost``: tracked paths that are gone. ``indexed``: what the index has where it differs from HEAD. ``intended``:
    whether paths were only announced with ``git add -N``.
    """

    staged: int
    unstaged: int
    edited: list[bytes]
    unmerged: list[tuple[bytes, bytes]]
    untracked: list[bytes]
    lost: tuple[bytes, ...] = ()
    indexed: Mapping[bytes, Blob | None] = _NONE
    intended: bool = False

    @property
    def clean(self) -> bool:
        return not (self.staged or self.unstaged or self.unmerged or self.untracked)


def parse_status(out: bytes) -> Status:
    """Sort the records of ``status --porcelain=v2 -z``. Raises `Malformed`."""
    staged = unstaged = 0
    edited: list[bytes] = []
    lost: list[bytes] = []
    unmerged: list[tuple[bytes, bytes]] = []
    untracked: list[bytes] = []
    entries: dict[bytes, Blob | None] = {}
    intended = False
    records = iter(_records(out))
    for record in records:
        kind = record[:2]
        try:
            if kind in (b"1 ", b"2 "):
                parts = record.split(b" ", 8 if kind == b"1 " else 9)
                index, tree = tuple(parts[1].decode("ascii"))
                path = parts[8 if kind == b"1 " else 9]
                source = next(records) if kind == b"2 " else None
                if index != ".":
                    staged += 1
                    entries[path] = _blob(parts[4], parts[7])
                    if index == "R" and source is not None:
                        entries[source] = None
                unstaged += tree != "."
                intended |= tree in "AR"
                if tree == "D":
                    lost.append(path)
                elif tree != ".":
                    edited.append(path)
            elif kind == b"u ":
                parts = record.split(b" ", 10)
                # Ours, theirs, the ancestor's: the first that there is is the mode that `git add` would start from.
                mode = next(mode for mode in (parts[4], parts[5], parts[3]) if mode != b"000000")
                unmerged.append((mode, parts[10]))
            elif kind == b"? ":
                untracked.append(record[2:])
            elif kind not in (b"! ", b"# "):
                raise Malformed(f"not a status record: {record[:80]!r}")
        except (IndexError, ValueError, StopIteration) as error:
            if isinstance(error, Malformed):
                raise
            raise Malformed(f"not a status record: {record[:80]!r}") from None
    return Status(staged, unstaged, edited, unmerged, untracked, tuple(lost), entries, intended)


def parse_changes(out: bytes) -> list[Change]:
    """``diff --raw --numstat -z``: the raw records, and then the lines of each. Raises `Malformed`."""
    raw: dict[bytes, tuple[str, bytes | None, bool]] = {}
    changes = []
    fields = iter(_records(out))
    for field in fields:
        try:
            if field.startswith(b":"):
                old_mode, new_mode, _, _, letter = field[1:].split(b" ")
                kind = letter[:1].decode("ascii")
                source = next(fields) if kind in "RC" else None
                raw[next(fields)] = kind, source, GITLINK in (int(old_mode, 8), int(new_mode, 8))
                continue
            added, deleted, path = field.split(b"\t", 2)
            if not path:
                next(fields)
                path = next(fields)
            kind, source, link = raw[path]
            lines = (0, 0) if (added, deleted) == (b"-", b"-") else (int(added), int(deleted))
            changes.append(Change(kind, path, source, *lines, link))
        except (ValueError, KeyError, StopIteration):
            raise Malformed(f"not a record of a diff: {field[:80]!r}") from None
    return changes


def parse_staged(out: bytes) -> tuple[int, dict[bytes, Blob | None]]:
    """``diff-index --cached --raw -z``: how many files differ from HEAD, and what the index has there instead."""
    count = 0
    entries: dict[bytes, Blob | None] = {}
    fields = iter(_records(out))
    for field in fields:
        try:
            _, mode, _, name, letter = field.removeprefix(b":").split(b" ")
            count += 1
            if letter[:1] == b"R":
                entries[next(fields)] = None
            entries[next(fields)] = _blob(mode, name)
        except (ValueError, StopIteration):
            raise Malformed(f"not a raw record: {field[:80]!r}") from None
    return count, entries


def _blob(mode: bytes, name: bytes) -> Blob | None:
    return Blob(int(mode, 8), name.decode("ascii")) if int(mode, 8) else None


def parse_pairs(out: bytes) -> list[tuple[str, str]]:
    """``git config -z --list``: keys as git folds their case; a key without a value is true."""
    pairs = []
    for record in _records(out):
        key, separator, value = record.partition(b"\n")
        pairs.append((key.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")))
        if not separator:
            pairs[-1] = (pairs[-1][0], "true")
    return pairs


def _records(out: bytes) -> list[bytes]:
    if not out:
        return []
    if not out.endswith(b"\0"):
        raise Malformed("git's output ends in the middle of a record")
    return out[:-1].split(b"\0")
