"""The worktrees of a repository, as git lists them: a hardened call, and its output as records."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.runtime import spawn
from pipeline.runtime.landlock import elsewhere
from pipeline.runtime.spawn import Deadline, Finished, GitError

_FLAGS: Final = ("--no-pager", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


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
    """Ask git, in a thread of its own behind the kernel's wall. Blocks for at most `deadline_s`. Raises `ListError`."""

    def ask() -> Finished:
        spawn.enclose(None)
        deadline = Deadline.after(int(deadline_s * 1000))
        listing = (*_FLAGS, "worktree", "list", "--porcelain", "-z")
        return spawn.git(listing, env=_environment(common_dir), cwd=Path("/"), deadline=deadline)

    try:
        done = elsewhere(ask)
    except GitError as error:
        if error.reason == "timeout":
            raise ListError(f"git did not list the worktrees within {deadline_s:g} s.") from error
        if error.reason == "too_large":
            raise ListError("git listed more worktrees than can be: the repository is not sound.") from error
        raise ListError(str(error)) from error
    if done.code:
        lines = done.complaint.strip().splitlines()
        raise ListError(f"git cannot list the worktrees: {lines[-1] if lines else f'exit {done.code}'}")
    return parse(done.out)


def _environment(common_dir: Path) -> dict[str, str]:
    return {
        # Named explicitly, so that neither the search for it nor its owner is in question.
        "GIT_DIR": str(common_dir),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_LAZY_FETCH": "1",
        "LC_ALL": "C",
        "PATH": os.defpath,
    }
