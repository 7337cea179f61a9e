"""The repositories of the demo, on disk and real; what the actors do to them is done by git."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pipeline import gitdir
from pipeline.catalog.ids import worktree_id
from pipeline.cli.demo.acts import Act, Add, Advance, Clash, Commit, Edit, Rebase, Remove, Where
from pipeline.cli.demo.script import FILES
from pipeline.gitdir import GitDirError

SHARED: Final = "CHANGELOG.md"  # the file that main goes on changing
HISTORY: Final = 6  # commits that main has from the beginning
LINES: Final = 40

# The same commits each time, whoever runs it and whatever they have configured.
_DATE = "2025-01-01T12:00:00Z"
_ENVIRONMENT: Final = {
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_EDITOR": "true",
    "GIT_AUTHOR_NAME": "Agent",
    "GIT_AUTHOR_EMAIL": "agent@example.invalid",
    "GIT_AUTHOR_DATE": _DATE,
    "GIT_COMMITTER_NAME": "Agent",
    "GIT_COMMITTER_EMAIL": "agent@example.invalid",
    "GIT_COMMITTER_DATE": _DATE,
}


class StageError(Exception):
    """git refused something that the play asked for; the message has git's own words."""


class Stage:
    """One folder with a repository per project, and beside each a folder of its worktrees. Every method blocks."""

    def __init__(self, folder: Path, projects: Iterable[str]) -> None:
        self.folder = folder
        self.projects = tuple(projects)
        self._advances = dict.fromkeys(self.projects, 0)

    def build(self) -> None:
        """Make the repositories, each with a little history."""
        for project in self.projects:
            repository = self.repository(project)
            repository.mkdir(parents=True)
            _git(repository, "init", "-q", "-b", "main")
            for n in range(FILES):
                _append(repository / "lib" / f"part{n}.py", LINES, f"part {n}")
            _append(repository / SHARED, 1, "release 0")
            _git(repository, "add", "-A")
            _git(repository, "commit", "-q", "-m", "start")
            for n in range(HISTORY):
                self.perform(Advance(project, f"release {n + 1}"))

    def repository(self, project: str) -> Path:
        return self.folder / project

    def worktree(self, where: Where) -> Path:
        return self.folder / f"{where.project}-worktrees" / where.branch

    def workspace(self, where: Where) -> str:
        """The id that its worktree has, or will have."""
        return worktree_id(os.path.realpath(self.worktree(where)))

    def head(self, where: Where) -> str | None:
        """The commit that the worktree stands at."""
        try:
            return gitdir.read_head(gitdir.resolve(self.worktree(where))).head
        except GitDirError:
            return None

    def perform(self, act: Act) -> None:
        """Do what the act says. Raises `StageError` if git cannot."""
        match act:
            case Add(where, behind):
                start = f"main~{behind}" if behind else "main"
                repository = self.repository(where.project)
                _git(repository, "worktree", "add", "-q", "-b", where.branch, str(self.worktree(where)), start)
            case Remove(where):
                repository = self.repository(where.project)
                _git(repository, "worktree", "remove", "--force", str(self.worktree(where)))
                _git(repository, "branch", "-q", "-D", where.branch)
            case Edit(where, file, lines, cut):
                path = self.worktree(where) / file
                if cut and path.exists():
                    path.write_text("".join(path.read_text().splitlines(keepends=True)[cut:]))
                _append(path, lines, where.branch)
            case Commit(where, message):
                _commit(self.worktree(where), message)
            case Rebase(where):
                _commit(self.worktree(where), "work in progress")
                _git(self.worktree(where), "rebase", "-q", "main")
            case Clash(where):
                tree = self.worktree(where)
                (tree / SHARED).write_text(f"{where.branch}\n")
                _commit(tree, "note the change")
                if _run(tree, "merge", "-q", "main").returncode != 1:
                    raise StageError(f"{where.branch} merged without a conflict")
            case Advance(project, message):
                repository = self.repository(project)
                self._advances[project] += 1
                (repository / SHARED).write_text(f"release {self._advances[project]}\n")
                _commit(repository, message)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _append(path: Path, lines: int, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(f"# {text}, line {n}\n" for n in range(lines))


def _commit(tree: Path, message: str) -> None:
    _git(tree, "add", "-A")
    _git(tree, "commit", "-q", "--allow-empty", "-m", message)


def _git(tree: Path, *args: str) -> None:
    done = _run(tree, *args)
    if done.returncode:
        raise StageError(f"git {args[0]} in {tree.name}: {done.stderr.strip() or f'exit {done.returncode}'}")


def _run(tree: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-c", "gc.auto=0", "-c", "core.hooksPath=/dev/null", *args],
        cwd=tree,
        env={"PATH": os.environ.get("PATH", os.defpath), **_ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
