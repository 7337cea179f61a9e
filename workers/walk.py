"""Reading single files of a worktree that may be hostile: never through a symbolic link, never waiting, never much.

On the way to a file its directories are opened one by one, and each tells of the rule files that hold below it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, Literal, NamedTuple, TypeAlias

from pipeline.gitdir import Identity, identity_of

What: TypeAlias = Literal["absent", "file", "link", "directory", "other"]

MAX_FILE: Final = 1 << 23
MAX_RULES: Final = 1 << 20
MAX_CHILDREN: Final = 4096
_WAY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

Rule: TypeAlias = tuple[bytes, Identity]


class Unfit(Exception):
    """What is asked for cannot be told exactly from single paths. ``reason``: a short stable name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Directory(NamedTuple):
    """``ignores``, ``attributes``: the rule files here and above, with what changes when they do."""

    fd: int
    ignores: tuple[Rule, ...]
    attributes: tuple[Rule, ...]


class Found(NamedTuple):
    what: What
    executable: bool = False
    content: bytes = b""


ABSENT: Final = Found("absent")


class Walk:
    """One visit to a worktree, for ``with``. Raises `Unfit`, as all that is done with it does."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._directories: dict[bytes, Directory | None] = {}

    def __enter__(self) -> Walk:
        try:
            fd = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise Unfit("unreadable") from error
        try:
            self._enter(b"", fd, None)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enter(self, path: bytes, fd: int, above: Directory | None) -> Directory:
        # Entered into the books before anything can fail, so that the descriptor is closed in any case.
        self._directories[path] = Directory(fd, (), ())
        if above is not None and _is_there(fd, b".git"):
            raise Unfit("nested repository")
        ignores = self._rule(path, fd, b".gitignore", "ignore rules")
        attributes = self._rule(path, fd, b".gitattributes", "attributes")
        entered = Directory(
            fd,
            (above.ignores if above else ()) + ignores,
            (above.attributes if above else ()) + attributes,
        )
        self._directories[path] = entered
        return entered

    def _rule(self, path: bytes, fd: int, name: bytes, reason: str) -> tuple[Rule, ...]:
        if not _is_there(fd, name):
            return ()
        found = _stat(fd, name)
        if found is None:
            return ()
        if not stat.S_ISREG(found.st_mode):
            raise Unfit(reason)
        return ((_join(path, name), identity_of(found)),)

    def directory(self, path: bytes) -> Directory | None:
        """A directory of the worktree; ``None`` if there is none of that name, or a symbolic link in its place."""
        if path in self._directories:
            return self._directories[path]
        parent, _, name = path.rpartition(b"/")
        above = self.directory(parent)
        if above is None:
            self._directories[path] = None
            return None
        try:
            fd = os.open(name, _WAY, dir_fd=above.fd)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise Unfit("unreadable") from error
            self._directories[path] = None
            return None
        return self._enter(path, fd, above)

    def nearest(self, path: bytes) -> Directory:
        """The directory of that name, or else the deepest that there is on the way."""
        while (found := self.directory(path)) is None:
            path = path.rpartition(b"/")[0]
        return found

    def read(self, path: bytes) -> Found:
        parent, _, name = path.rpartition(b"/")
        directory = self.directory(parent)
        found = None if directory is None else _stat(directory.fd, name)
        if directory is None or found is None:
            return ABSENT
        if stat.S_ISDIR(found.st_mode):
            return Found("directory")
        try:
            if stat.S_ISLNK(found.st_mode):
                return Found("link", content=os.readlink(name, dir_fd=directory.fd))
            if not stat.S_ISREG(found.st_mode):
                return Found("other")
            fd = os.open(name, _READ, dir_fd=directory.fd)
        except OSError as error:
            raise Unfit("unreadable") from error
        return _read(fd, MAX_FILE)

    def rules(self, path: bytes) -> bytes:
        """The content of a rule file that a directory told of."""
        parent, _, name = path.rpartition(b"/")
        directory = self.directory(parent)
        if directory is None:
            raise Unfit("attributes")
        try:
            fd = os.open(name, _READ, dir_fd=directory.fd)
        except OSError as error:
            raise Unfit("attributes") from error
        return _read(fd, MAX_RULES).content

    def children(self, path: bytes) -> list[bytes]:
        directory = self.directory(path)
        if directory is None:
            return []
        try:
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd)
        except OSError as error:
            raise Unfit("unreadable") from error
        try:
            names = os.listdir(fd)
        finally:
            os.close(fd)
        if len(names) > MAX_CHILDREN:
            raise Unfit("too many paths")
        return [_join(path, os.fsencode(name)) for name in names]

    def close(self) -> None:
        for directory in self._directories.values():
            if directory is not None:
                os.close(directory.fd)
        self._directories.clear()


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _stat(fd: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in _ABSENT or error.errno == errno.ENAMETOOLONG:
            return None
        raise Unfit("unreadable") from error


def _is_there(fd: int, name: bytes) -> bool:
    """Whether a directory has this name; that it may not be searched, whatever is read in it will tell."""
    return os.access(name, os.F_OK, dir_fd=fd, follow_symlinks=False)


def _read(fd: int, limit: int) -> Found:
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Unfit("special file")
        if found.st_size > limit:
            raise Unfit("large file")
        parts = []
        left = limit + 1
        while left > 0 and (part := os.read(fd, min(left, max(found.st_size + 1, 4096)))):
            parts.append(part)
            left -= len(part)
            if limit + 1 - left == found.st_size:
                break  # more was asked for, and there was none
    except OSError as error:
        raise Unfit("unreadable") from error
    finally:
        os.close(fd)
    if left <= 0:
        raise Unfit("large file")
    return Found("file", bool(found.st_mode & 0o100), b"".join(parts))
