"""A wall of the kernel around one thread and all that it starts: what may be run, where may be written, no network.

Landlock takes rights from the calling thread for good, and what the thread starts is born without them: it needs no
code between fork and exec, and costs a start nothing. The other threads of the process keep theirs. Reading stays open.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

T = TypeVar("T")

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_PR_SET_NO_NEW_PRIVS: Final = 38
_VERSION: Final = 1
_PATH_BENEATH: Final = 1

EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
REMOVE_DIR: Final = 1 << 4
REMOVE_FILE: Final = 1 << 5
MAKE_DIR: Final = 1 << 7
MAKE_REG: Final = 1 << 8
REFER: Final = 1 << 13
TRUNCATE: Final = 1 << 14
IOCTL_DEV: Final = 1 << 15
_MAKE_OTHERS: Final = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12  # devices, sockets, FIFOs, symbolic links
_READS: Final = 1 << 2 | 1 << 3

_WRITES_ONE: Final = WRITE_FILE | TRUNCATE
_WRITES_BELOW: Final = _WRITES_ONE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER

# The first version of the interface that knows each right; what a kernel does not know it cannot take away.
_SINCE: Final = ((1, (1 << 13) - 1), (2, REFER), (3, TRUNCATE), (5, IOCTL_DEV))
_NETWORK_SINCE: Final = 4
_NETWORK: Final = 1 << 0 | 1 << 1  # bind and connect, over TCP
_SCOPES_SINCE: Final = 6
_SCOPES: Final = 1 << 0 | 1 << 1  # abstract sockets of others, signals to others

_ELF: Final = b"\x7fELF"
_INTERPRETER: Final = 3


class NoWall(Exception):
    """The kernel cannot or will not raise the wall. The message is one sentence."""


class Rights(NamedTuple):
    """What a ruleset takes away unless a rule gives it back, as the kernel of this version knows it."""

    files: int
    network: int
    scopes: int

    def packed(self, version: int) -> bytes:
        fields = 1 + (version >= _NETWORK_SINCE) + (version >= _SCOPES_SINCE)
        return struct.pack(f"={fields}Q", *self[:fields])


def rights(version: int) -> Rights:
    """All rights but those to read, of this version of the interface."""
    files = sum(known for since, known in _SINCE if version >= since) & ~_READS
    return Rights(files, _NETWORK if version >= _NETWORK_SINCE else 0, _SCOPES if version >= _SCOPES_SINCE else 0)


def version() -> int:
    """The version of the kernel's interface. Raises `NoWall` if there is none."""
    try:
        return _call(_CREATE_RULESET, None, 0, _VERSION)
    except OSError as error:
        raise NoWall(_why(error)) from error


def enclose(run: Iterable[Path], write: Path | None) -> int:
    """Let the calling thread, from now on and for good, run only these programs and write only below `write`.

    The null device stays open for writing. The version of the interface, which says how much is closed. Raises
    `NoWall`; then nothing has changed.
    """
    found = version()
    taken = rights(found)
    attributes = taken.packed(found)
    try:
        ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
        try:
            for program in run:
                _allow(ruleset, program, EXECUTE & taken.files)
            _allow(ruleset, Path(os.devnull), _WRITES_ONE & taken.files)
            if write is not None:
                _allow(ruleset, write, _WRITES_BELOW & taken.files)
            _check(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
            _call(_RESTRICT_SELF, ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as error:
        raise NoWall(_why(error)) from error
    return found


def with_interpreters(programs: Iterable[Path]) -> list[Path]:
    """These programs by their real paths, each with the loader that it names, which the kernel runs first."""
    found: dict[Path, None] = {}
    for program in programs:
        real = Path(os.path.realpath(program))
        found[real] = None
        if (loader := _interpreter(real)) is not None:
            found[Path(os.path.realpath(loader))] = None
    return list(found)


def elsewhere(function: Callable[[], T]) -> T:
    """What `function` returns or raises, called in a thread of its own, which ends with it and with its wall."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="walled", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


# ── the kernel ───────────────────────────────────────────────────────────────────────────────────


def _allow(ruleset: int, path: Path, allowed: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", allowed, fd), 0)
    finally:
        os.close(fd)


def _call(number: int, *arguments: int | bytes | None) -> int:
    # As wide as a register: the C library's syscall() does not know how wide each argument is.
    wide = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _check(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *wide))


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def _why(error: OSError) -> str:
    if error.errno == errno.ENOSYS:
        return "this kernel has no Landlock; use one of 5.13 or newer that was built with it."
    if error.errno == errno.EOPNOTSUPP:
        return "Landlock is switched off; add landlock to the kernel's parameter lsm=."
    if error.errno == errno.E2BIG:
        return "this thread stands behind as many walls as the kernel allows."
    return f"Landlock was refused: {error.strerror}{f' ({error.filename})' if error.filename else ''}."


def _interpreter(program: Path) -> Path | None:
    """The loader that a dynamic ELF program names; ``None`` for a static one, or none that can be read."""
    try:
        with open(program, "rb") as file:
            head = file.read(64)
            if not head.startswith(_ELF):
                return None
            order = "<" if head[5] == 1 else ">"
            wide = head[4] == 2
            table, size, count = (
                struct.unpack_from(f"{order}Q14xHH", head, 32)
                if wide
                else struct.unpack_from(f"{order}L10xHH", head, 28)
            )
            file.seek(table)
            headers = file.read(size * count)
            for at in range(0, len(headers), size):
                if struct.unpack_from(f"{order}L", headers, at)[0] == _INTERPRETER:
                    where, length = (
                        struct.unpack_from(f"{order}Q16xQ", headers, at + 8)
                        if wide
                        else struct.unpack_from(f"{order}L8xL", headers, at + 4)
                    )
                    file.seek(where)
                    return Path(os.fsdecode(file.read(length).rstrip(b"\0")))
    except (OSError, struct.error):
        pass
    return None
