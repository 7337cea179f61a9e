"""Run one git process that cannot outlive its deadline, its caller, or its share of the machine.

A process group of its own, killed as a group, also after a good end; nothing inherited but what is handed in; no input
but a memory file; output cut at a bound. The kernel kills it when the calling thread dies, where `setpriv` exists to
ask for it. A thread that starts git and nothing else does it behind a wall (`enclose`).
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

from pipeline.runtime import landlock

MAX_OUTPUT: Final = 1 << 26
MAX_COMPLAINT: Final = 1 << 14
MAX_MEMORY: Final = 1 << 32
MAX_WRITTEN: Final = 1 << 32
MAX_FILES: Final = 1024
LITTLE: Final = 1 << 16
REAP_S: Final = 1.0
TRIAL_MS: Final = 10_000
_CHUNK: Final = 1 << 16

# As the C library says it in the C locale, which is what git is given.
_FULL: Final = ("No space left on device", "Disk quota exceeded")
_UNWRITTEN: Final = ("write", "create")


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


# ── the wall ─────────────────────────────────────────────────────────────────────────────────────


def enclose(cache_dir: Path | None) -> str:
    """Let the calling thread run git and nothing else, write only below `cache_dir`, and connect nowhere; for good.

    Empty if the wall stands, and otherwise why it does not, in one sentence.
    """
    why = wall()
    if not why:
        try:
            landlock.enclose(_programs(_command()), cache_dir)
        except landlock.NoWall as error:
            why = str(error)
    return why


def wall() -> str:
    """Empty if git can be run behind the kernel's wall, and otherwise why not, in one sentence. Tried out once."""
    try:
        return _try_out(_command())
    except GitError as error:
        return str(error)


@functools.cache
def _try_out(command: tuple[str, ...]) -> str:
    def trial() -> Finished:
        landlock.enclose(_programs(command), None)
        env = {"PATH": os.defpath, "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
        return git(["--version"], env=env, cwd=Path("/"), deadline=Deadline.after(TRIAL_MS))

    try:
        started = landlock.elsewhere(trial).code == 0
    except landlock.NoWall as error:
        return str(error)
    except GitError:
        started = False
    return "" if started else f"{command[-1]} does not run behind Landlock; put git's own binary first on the PATH."


@functools.cache
def _programs(command: tuple[str, ...]) -> list[Path]:
    return landlock.with_interpreters(Path(word) for word in command if word.startswith("/"))


def _command() -> tuple[str, ...]:
    return _found_on(os.environ.get("PATH", os.defpath))


@functools.cache
def _found_on(path: str) -> tuple[str, ...]:
    git = shutil.which("git", path=path)
    if git is None:
        raise GitError("no_git", "git is not on the PATH; install it.")
    setpriv = shutil.which("setpriv", path=path)
    return (git,) if setpriv is None else (setpriv, "--pdeathsig", "KILL", "--", git)


# ── one process ──────────────────────────────────────────────────────────────────────────────────


def git(args: Sequence[str], *, env: Mapping[str, str], cwd: Path, deadline: Deadline, given: bytes = b"") -> Finished:
    """Run git with exactly this environment. An exit code other than 0 is the caller's to judge.

    Raises `GitError`: ``timeout``, ``too_large``, ``cache_full`` (git writes nowhere but below `cwd`), ``no_git``,
    ``killed``, ``git_failed`` (it
    could not be started).
    """
    if deadline.left() <= 0:
        raise deadline.expired()
    stdin = _memory_file(given) if given else os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        child = subprocess.Popen(
            [*_command(), *args],
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
        done = _collect(child, deadline)
    finally:
        _bury(child)
    if done.code == -signal.SIGXCPU:
        raise deadline.expired()
    if done.code == -signal.SIGXFSZ:
        raise GitError("too_large", "git had to write more than it may; look for a file of absurd size.")
    if done.code == -signal.SIGKILL:
        raise GitError("killed", "git was killed by somebody else; see whether the machine ran out of memory.")
    if done.code and (mount := _full_disk(done.complaint, cwd)):
        raise full(mount)
    return done


def full(mount: str) -> GitError:
    """The disk of our cache is full, which is no fault of the repository's."""
    return GitError("cache_full", f"the disk mounted at {mount}, which holds the git cache, is full; free space on it.")


def mount_of(path: Path) -> str:
    """Where the file system that holds `path` is mounted."""
    here = Path(os.path.realpath(path))
    while not os.path.ismount(here):
        here = here.parent
    return os.fspath(here)


def _full_disk(complaint: str, cwd: Path) -> str:
    if any(sign in complaint for sign in _FULL):
        return mount_of(cwd)
    # git does not always say why it could not write.
    if any(sign in complaint for sign in _UNWRITTEN):
        found = os.statvfs(cwd)
        if found.f_bavail * found.f_frsize < LITTLE or (found.f_files and not found.f_favail):
            return mount_of(cwd)
    return ""


def _memory_file(data: bytes) -> int:
    fd = os.memfd_create("given", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _limit(pid: int, deadline: Deadline) -> None:
    # From outside and at once: code between fork and exec would cost a copy of the page tables of the whole caller, and
    # limits that the caller takes on itself to hand them down would bind it as well. Memory is limited as data and not
    # as address space, of which git maps as much as there are packs.
    seconds = (max(1, int(deadline.left()) + 2)) * (os.cpu_count() or 1)
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_DATA: MAX_MEMORY,
        resource.RLIMIT_FSIZE: MAX_WRITTEN,
        resource.RLIMIT_NOFILE: MAX_FILES,
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
    _kill_group(child)  # whoever it left behind; the group has its number for as long as its leader is not reaped
    return Finished(child.wait(), bytes(kept[out]), kept[complaint].decode("utf-8", "replace"))


def _bury(child: subprocess.Popen[bytes]) -> None:
    if child.returncode is None:
        _kill_group(child)
        try:
            child.wait(REAP_S)
        except subprocess.TimeoutExpired:
            # Stuck in the kernel on a dead mount: it dies when the kernel lets go; waiting would hang us as well.
            pass
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
