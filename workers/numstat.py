"""Parsing what git prints: totals from ``diff --numstat -z``, the state of files from ``status --porcelain=v2 -z``."""

from __future__ import annotations

from typing import NamedTuple


class Malformed(ValueError):
    """git printed something that its documentation does not promise."""


class Totals(NamedTuple):
    """What ``git diff --shortstat`` would say. A binary is a file without lines; a rename is one file."""

    files: int
    insertions: int
    deletions: int


class Status(NamedTuple):
    """Counts of files, and the paths (as bytes, from the top of the worktree) whose content git has to read.

    ``edited``: tracked paths that differ from the index. ``unmerged``: with the mode that would be recorded.
    ``untracked``: ignored ones not among them; a nested repository is one path that ends in a slash.
    """

    staged: int
    unstaged: int
    edited: list[bytes]
    unmerged: list[tuple[bytes, bytes]]
    untracked: list[bytes]

    @property
    def clean(self) -> bool:
        return not (self.staged or self.unstaged or self.unmerged or self.untracked)


def parse_numstat(out: bytes) -> Totals:
    """Sum up ``--numstat -z``. Raises `Malformed`."""
    files = insertions = deletions = 0
    fields = iter(_records(out))
    for field in fields:
        try:
            added, deleted, path = field.split(b"\t", 2)
            if not path:  # a rename: the old and the new name follow
                next(fields)
                next(fields)
            files += 1
            if (added, deleted) != (b"-", b"-"):
                insertions += int(added)
                deletions += int(deleted)
        except (ValueError, StopIteration):
            raise Malformed(f"not a numstat record: {field[:80]!r}") from None
    return Totals(files, insertions, deletions)


def parse_status(out: bytes) -> Status:
    """Sort the records of ``status --porcelain=v2 -z``. Raises `Malformed`."""
    staged = unstaged = 0
    edited: list[bytes] = []
    unmerged: list[tuple[bytes, bytes]] = []
    untracked: list[bytes] = []
    records = iter(_records(out))
    for record in records:
        kind = record[:2]
        try:
            if kind in (b"1 ", b"2 "):
                parts = record.split(b" ", 8 if kind == b"1 " else 9)
                index, tree = tuple(parts[1].decode("ascii"))
                path = parts[8 if kind == b"1 " else 9]
                if kind == b"2 ":
                    next(records)  # where it came from
                staged += index != "."
                unstaged += tree != "."
                if tree not in ".D":
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
    return Status(staged, unstaged, edited, unmerged, untracked)


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
