"""Real git repositories for tests, made in milliseconds, the same on every machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

IDENTITY = {
    "PATH": os.environ.get("PATH", os.defpath),
    "LC_ALL": "C",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.invalid",
    "GIT_AUTHOR_DATE": "2024-01-01T00:00:00Z",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.invalid",
    "GIT_COMMITTER_DATE": "2024-01-01T00:00:00Z",
    "GIT_EDITOR": "true",
}


def git(path: Path, *args: str | bytes | Path, check: bool = True, env: Mapping[str, str] | None = None) -> str:
    """What git prints, without the last newline. With ``check``, a failure raises with git's own words."""
    done = subprocess.run(
        ["git", "-c", "gc.auto=0", "-c", "protocol.file.allow=always", *args],
        cwd=path,
        env={**IDENTITY, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    if check and done.returncode:
        raise AssertionError(f"git {args} failed with {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")


def write(path: Path, files: Mapping[str, str | bytes]) -> None:
    """Files by their name under `path`, directories made as needed."""
    for name, content in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)


def commit(path: Path, files: Mapping[str, str | bytes] | None = None, message: str = "work") -> str:
    """Write, add and commit everything; the commit's name."""
    write(path, files or {})
    git(path, "add", "-A")
    git(path, "commit", "-q", "--allow-empty", "-m", message)
    return git(path, "rev-parse", "HEAD")


def make_repo(
    path: Path, files: Mapping[str, str | bytes] | None = None, *, branch: str = "main", hash: str = "sha1"
) -> Path:
    """A repository with one commit of `files` on `branch`; without files, one before its first commit."""
    path.mkdir(parents=True, exist_ok=True)
    git(path, "init", "-q", "-b", branch, f"--object-format={hash}")
    if files is not None:
        commit(path, files, "first")
    return path


def add_worktree(repo: Path, path: Path, branch: str, start: str = "HEAD") -> Path:
    """A linked worktree on a new branch."""
    git(repo, "worktree", "add", "-q", "-b", branch, path, start)
    return path
