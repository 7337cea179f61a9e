"""Noticing whether files changed, for as few questions as will do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from pipeline.gitdir import Identity, identity_of

SETTLED_NS: Final = 20_000_000

Seen: TypeAlias = tuple[Identity | None, ...]


class Files:
    """Some files, and how they were when looked at last: whether any of them changed since costs a stat for each.

    Those that were not there cost none of their own: while the deepest directory that there is on the way to them
    stays as it was, nothing came into it, and few directories stand for all of them. ``folders`` are directories of
    which it matters what comes and goes. What was written in the very moment counts as changed once more, since a
    second write would not show.
    """

    __slots__ = (
        "_absent",
        "_around",
        "_around_seen",
        "_folders",
        "_folders_seen",
        "_there",
        "_there_seen",
        "paths",
        "seen",
    )

    def __init__(self, paths: Iterable[str], folders: Iterable[str] = ()) -> None:
        now = time.time_ns()
        self.paths, self._folders = tuple(dict.fromkeys(paths)), tuple(folders)
        seen = _each(os.lstat, self.paths)
        both = list(zip(self.paths, seen, strict=True))
        self._there = tuple(path for path, found in both if found is not None)
        self._absent = tuple(path for path, found in both if found is None)
        self._there_seen = tuple(found for found in seen if found is not None)
        self._folders_seen = _each(os.stat, self._folders)
        self._around: tuple[str, ...] = ()
        self._around_seen: Seen | None = None
        young = _young(self._there_seen, now) or _young(self._folders_seen, now)
        self.seen: Seen | None = None if young or not self._still_absent() else seen

    def same(self) -> bool:
        return (
            self.seen is not None
            and self._there_seen == _each(os.lstat, self._there)
            and self._folders_seen == _each(os.stat, self._folders)
            and (self._around_seen == _each(os.stat, self._around) or self._still_absent())
        )

    def _still_absent(self) -> bool:
        """Whether none has come. The directories around are looked at first, so that one which comes later shows."""
        now = time.time_ns()
        self._around = tuple(dict.fromkeys(map(_deepest, self._absent)))
        seen = _each(os.stat, self._around)
        self._around_seen = None if _young(seen, now) else seen
        return not any(map(os.path.lexists, self._absent))


class Together:
    """Several `Files` as one: what more than one of them would ask about is asked about once.

    Tells only whether nothing at all has changed; if something has, each of them knows whether that concerns it.
    """

    __slots__ = ("_links", "_others")

    def __init__(self, links: Iterable[tuple[str, Identity]], others: Iterable[tuple[str, Identity]]) -> None:
        self._links, self._others = tuple(links), tuple(others)

    @classmethod
    def of(cls, each: Iterable[Files]) -> Together | None:
        """``None`` while what they saw is too young, or is not of one state of things."""
        links: dict[str, Identity] = {}
        others: dict[str, Identity] = {}
        for files in each:
            if files.seen is None or files._around_seen is None:
                return None
            for known, paths, seen in (
                (links, files._there, files._there_seen),
                (others, files._folders, files._folders_seen),
                (others, files._around, files._around_seen),
            ):
                for path, found in zip(paths, seen, strict=True):
                    if found is None or known.setdefault(path, found) != found:
                        return None
        return cls(links.items(), others.items())

    def same(self) -> bool:
        lstat, stat = os.lstat, os.stat
        try:
            for path, seen in self._links:
                if identity_of(lstat(path)) != seen:
                    return False
            for path, seen in self._others:
                if identity_of(stat(path)) != seen:
                    return False
        except OSError:
            return False
        return True


def _each(stat: Callable[[str], os.stat_result], paths: tuple[str, ...]) -> Seen:
    found: list[Identity | None] = []
    for path in paths:
        try:
            found.append(identity_of(stat(path)))
        except OSError:
            found.append(None)
    return tuple(found)


def _young(seen: Seen, now: int) -> bool:
    return any(found is not None and 0 <= now - found[4] < SETTLED_NS for found in seen)


def _deepest(path: str) -> str:
    """The deepest directory that there is on the way to a file that is not there."""
    while path != "/":
        path = os.path.dirname(path)
        if os.path.exists(path):
            break
    return path
