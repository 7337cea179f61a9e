"""Run one git process that cannot outlive its deadline, its caller, or its share of the machine.

A process group of its own, killed as a group; nothing inherited but what is handed in; no input but a memory
file; output cut at a bound. The kernel kills it when the calling thread dies, where `setpriv` exists to ask for it.
"""

from __future__ import annotations

import functools
import os
import resource
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

MAX_OUTPUT: Final = 1 << 26
MAX_COMPLAINT: Final = 1 << 14
MAX_MEMORY: Final = 1 << 32
MAX_WRITTEN: Final = 1 << 32
REAP_S: Final = 1.0
_CHUNK: Final = 1 << 16


class GitError(Exception):
    """There are no numbers, and why: ``reason`` is a short stable code, the text one sentence with what to do."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Deadline(NamedTuple):
    """A moment of the monotonic clock by which everything has to be over."""

    at: float
    ms: int

    @classmethod
    def after(cls, ms: int) -> Deadline:
        return cls(time.monotonic() + ms / 1000, ms)

    def left(self) -> float:
        return self.at - time.monotonic()

    def expired(self) -> GitError:
        return GitError(
            "timeout",
            f"git did not answer within {self.ms} ms and was killed; look for a FIFO, a dead mount or a huge file "
            "in the worktree, or raise git.deadline_ms.",
        )


class Finished(NamedTuple):
    code: int
    out: bytes
    complaint: str


@functools.cache
def _wrapper() -> tuple[str, ...]:
    git = shutil.which("git")
    if git is None:
        raise GitError("no_git", "git is not on the PATH; install it.")
    setpriv = shutil.which("setpriv")
    return (git,) if setpriv is None else (setpriv, "--pdeathsig", "KILL", "--", git)


def git(args: Sequence[str], *, env: Mapping[str, str], cwd: Path, deadline: Deadline, given: bytes = b"") -> Finished:
    """Run git with exactly this environment. Raises `GitError`: ``timeout``, ``too_large``, ``no_git``, ``git_failed``.

    An exit code other than 0 is the caller's to judge.
    """
    if deadline.left() <= 0:
        raise deadline.expired()
    stdin = _memory_file(given) if given else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        child = subprocess.Popen(
            [*_wrapper(), *args],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            cwd=cwd,
            process_group=0,
            bufsize=0,
        )
    except OSError as error:
        raise GitError("git_failed", f"git could not be started: {error.strerror}; check limits and memory.") from error
    finally:
        os.close(stdin)
    try:
        _limit(child.pid, deadline)
        return _collect(child, deadline)
    finally:
        _bury(child)


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("given", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _limit(pid: int, deadline: Deadline) -> None:
    # From outside, since code between fork and exec costs a copy of the page tables of the whole caller.
    seconds = max(1, int(deadline.left()) + 2)
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: seconds * (os.cpu_count() or 1),
        resource.RLIMIT_DATA: MAX_MEMORY,
        resource.RLIMIT_FSIZE: MAX_WRITTEN,
    }
    for kind, most in limits.items():
        try:
            hard = resource.prlimit(pid, kind)[1]
            bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.prlimit(pid, kind, (bound, bound))
        except ProcessLookupError:
            return


def _collect(child: subprocess.Popen[bytes], deadline: Deadline) -> Finished:
    assert child.stdout is not None
    assert child.stderr is not None
    out, complaint = child.stdout.fileno(), child.stderr.fileno()
    kept: dict[int, bytearray] = {out: bytearray(), complaint: bytearray()}
    ended = os.pidfd_open(child.pid)
    poll = select.poll()
    waiting = {out, complaint, ended}
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    try:
        while waiting:
            left = deadline.left()
            ready = poll.poll(left * 1000) if left > 0 else []
            if not ready:
                raise deadline.expired()
            for fd, _ in ready:
                data = os.read(fd, _CHUNK) if fd != ended else b""
                if data and (fd == out or len(kept[fd]) < MAX_COMPLAINT):
                    kept[fd] += data
                elif not data:
                    poll.unregister(fd)
                    waiting.discard(fd)
            if len(kept[out]) > MAX_OUTPUT:
                raise GitError("too_large", "git had more to say than is read; ignore generated files in .gitignore.")
    finally:
        os.close(ended)
    return Finished(child.wait(), bytes(kept[out]), kept[complaint].decode("utf-8", "replace"))


def _bury(child: subprocess.Popen[bytes]) -> None:
    if child.returncode is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            child.wait(REAP_S)
        except subprocess.TimeoutExpired:
            # Stuck in the kernel on a dead mount: it dies when the kernel lets go; waiting would hang us as well.
            pass
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()
