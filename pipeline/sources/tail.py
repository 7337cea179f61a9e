"""The lines that are appended to a file, from its tail on.

The file is an agent's: it may be anything, be cut, be replaced, and hold a line without end. Nothing but a regular
file of this user is opened, a bounded piece of it is read at a time, and a line longer than that is passed over. The
last line may be half written: it is taken once its end is there.
"""

from __future__ import annotations

import os
import stat
from typing import Final, NamedTuple

PIECE: Final = 256 * 1024


class Lines(NamedTuple):
    """`anew`: it is another file than before, or was cut, so what was read of it says nothing any more. `more`: there
    is more to read at once. `at_ms`: when the file was last written to, wall clock."""

    lines: list[bytes]
    anew: bool
    more: bool
    at_ms: int


class Tail:
    """One file, read on from where the last reading ended. `head`: read its first line first, wherever that is."""

    def __init__(self, path: str, *, head: bool = False, piece: int = PIECE) -> None:
        self.path = path
        self._head, self._piece = head, piece
        self._file: tuple[int, int] | None = None
        self._offset = 0
        self._passing = False  # over the rest of a line whose beginning was not read

    def read(self) -> Lines:
        """What came since. Raises `OSError`: it is not there, or nothing that may be read."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
                raise PermissionError(f"{self.path} is no file of this user")
            return self._read(descriptor, found)
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, found: os.stat_result) -> Lines:
        file, lines = (found.st_dev, found.st_ino), []
        anew = file != self._file or found.st_size < self._offset
        if anew:
            self._file = file
            self._offset = max(0, found.st_size - self._piece)
            self._passing = self._offset > 0
            if self._head and self._offset > 0:
                first, end, _ = os.pread(descriptor, self._piece, 0).partition(b"\n")
                lines += [first] if end else []
        elif found.st_size - self._offset > self._piece:
            # What fell behind so far is as old as what a first reading leaves out.
            self._offset, self._passing = found.st_size - self._piece, True
        data = os.pread(descriptor, self._piece, self._offset)
        *whole, rest = data.split(b"\n")
        if whole and self._passing:
            del whole[0]
            self._passing = False
        elif not whole and len(data) >= self._piece:
            rest, self._passing = b"", True
        lines += [line for line in whole if line]
        self._offset += len(data) - len(rest)
        return Lines(lines, anew, len(data) >= self._piece, found.st_mtime_ns // 1_000_000)
