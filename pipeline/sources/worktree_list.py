"""The worktrees of a repository, as git lists them: a hardened call, and its output as records."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Final, NamedTuple

MAX_OUTPUT: Final = 8 << 20
BLOCK: Final = 1 << 16


class ListError(Exception):
    """git did not answer. The message is one sentence; nothing may be concluded from it."""


class Listed(NamedTuple):
    """One record of ``git worktree list``. `branch` is empty on a detached head or in a bare repository."""

    path: str
    head: str = ""
    branch: str = ""
    detached: bool = False
    bare: bool = False
    locked: bool = False
    prunable: bool = False


def parse(output: bytes) -> list[Listed]:
    """Records of ``git worktree list --porcelain -z``, the main worktree first; unknown attributes are ignored."""
    records: list[Listed] = []
    for block in output.split(b"\0\0"):
        values: dict[str, str] = {}
        for line in block.split(b"\0"):
            name, _, value = line.partition(b" ")
            values[name.decode("ascii", "replace")] = os.fsdecode(value)
        if values.get("worktree"):
            records.append(
                Listed(
                    path=values["worktree"],
                    head=values.get("HEAD", ""),
                    branch=values.get("branch", "").removeprefix("refs/heads/"),
                    detached="detached" in values,
                    bare="bare" in values,
                    locked="locked" in values,
                    prunable="prunable" in values,
                )
            )
    return records


def list_worktrees(common_dir: Path, deadline_s: float) -> list[Listed]:
    """Ask git. Blocks for at most `deadline_s`. Raises `ListError`."""
    return parse(_git(common_dir, ["worktree", "list", "--porcelain", "-z"], deadline_s))


def _git(common_dir: Path, arguments: list[str], deadline_s: float) -> bytes:
    """The output of git in a closed environment: no configuration but the repository's, no hook, no program, no
    network, no terminal. The whole process group dies at the deadline."""
    git = shutil.which("git")
    if git is None:
        raise ListError("git is not on the PATH: install it.")
    command = [git, "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *arguments]
    try:
        child = subprocess.Popen(
            command,
            cwd="/",
            env=_environment(common_dir),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise ListError(f"git cannot be started: {error.strerror}.") from error
    try:
        output, complaint = _read(child, deadline_s)
    except TimeoutError:
        raise ListError(f"git did not list the worktrees within {deadline_s:g} s.") from None
    finally:
        _end(child)
    if child.returncode != 0:
        lines = complaint.decode("utf-8", "replace").strip().splitlines()
        raise ListError(f"git cannot list the worktrees: {lines[-1] if lines else f'exit {child.returncode}'}")
    return output


def _environment(common_dir: Path) -> dict[str, str]:
    return {
        # Named explicitly, so that neither the search for it nor its owner is in question.
        "GIT_DIR": str(common_dir),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_LAZY_FETCH": "1",
        "LC_ALL": "C",
        "PATH": os.defpath,
    }


def _read(child: subprocess.Popen[bytes], deadline_s: float) -> tuple[bytes, bytes]:
    """Both outputs to their ends, and the exit. Raises `TimeoutError`, or `ListError` if there is too much."""
    until = time.monotonic() + deadline_s
    assert child.stdout is not None
    assert child.stderr is not None
    read: dict[int, bytearray] = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as selector:
        for fd in read:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            for key, _ in selector.select(left):
                data = os.read(key.fd, BLOCK)
                if not data:
                    selector.unregister(key.fd)
                read[key.fd] += data
                if len(read[key.fd]) > MAX_OUTPUT:
                    raise ListError("git listed more worktrees than can be: the repository is not sound.")
    try:
        child.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    return bytes(read[child.stdout.fileno()]), bytes(read[child.stderr.fileno()])


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.returncode is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
    for stream in (child.stdout, child.stderr):
        if stream is not None:
            stream.close()
