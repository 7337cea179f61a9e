"""The full look at one worktree: exact numbers from git itself, and nothing that the worktree names is ever run.

git sees a shadow of the worktree's git directory (see `workers.shadow`), never the real one. A look is

    status     counts of staged, unstaged, untracked and conflicted files; refreshes our copy of the index
    lineage    merge base with the base branch, ahead and behind; remembered by (HEAD, base)
    diff       the worktree against the merge base, over a copy of the index to which untracked files were added

and writes nothing in the worktree, its git directory or its object store.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.domain.model import Git
from pipeline.gitdir import (
    GitDirError,
    GitDirs,
    Head,
    Identity,
    has_replacements,
    identify,
    read_branch,
    read_head,
    read_operation,
    resolve,
)
from pipeline.wire import Job
from workers import spawn
from workers.numstat import Malformed, Status, Totals, parse_numstat, parse_pairs, parse_status
from workers.shadow import (
    MAX_KNOWN,
    PRUNE_S,
    ConfigReader,
    Pairs,
    Settings,
    Shadow,
    distil,
    is_true,
    prune,
    user_configs,
)
from workers.spawn import Deadline, Finished, GitError

__all__ = ["GitError", "measure"]

MAX_LINEAGES: Final = 4096
TRIES: Final = 5

# By whether the repository is of SHA-256.
_EMPTY_BLOB: Final = {
    False: "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
    True: "473a0f4c3be8a93681a267e3b1e9a7dcda1185436fe141f7749120a303721813",
}
_EMPTY_TREE: Final = {
    False: "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    True: "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
_MISSING: Final = ("missing", "unable to read", "bad object", "could not read", "unable to find", "not a valid object")
_SUBMODULES: Final = "--ignore-submodules=dirty"  # their commits count; what is dirty inside them is not looked at


class Lineage(NamedTuple):
    merge_base: str | None
    ahead: int
    behind: int


_configs = ConfigReader()
_shadows: OrderedDict[tuple[Path, GitDirs], Shadow] = OrderedDict()
_lineages: OrderedDict[tuple[Path, Identity | None, str, str], Lineage] = OrderedDict()
_pruned: dict[Path, float] = {}


def measure(job: Job, cache_dir: Path) -> Git:
    """Look at the job's worktree, within the job's deadline. Raises `GitError`; there are no partial numbers."""
    deadline = Deadline.after(job.deadline_ms)
    _prune_sometimes(cache_dir)
    try:
        dirs = _pinned(job)
        shadow = _shadow(cache_dir, dirs)
        with shadow.held(deadline):
            git = _Look(job, dirs, shadow, deadline).take()
        _pinned(job)
    except GitDirError as error:
        raise GitError(error.reason, str(error)) from error
    except Malformed as error:
        raise GitError(
            "git_failed", f"git answered in an unknown form ({error}); install a supported version."
        ) from error
    return git


def _pinned(job: Job) -> GitDirs:
    dirs = resolve(Path(job.worktree))
    if dirs != GitDirs(Path(job.git_dir), Path(job.common_dir), job.inode):
        raise GitError(
            "pinned_changed",
            f"{job.worktree} belongs to another git directory than when it was registered; register it again.",
        )
    return dirs


def _shadow(cache_dir: Path, dirs: GitDirs) -> Shadow:
    shadow = _shadows.setdefault((cache_dir, dirs), Shadow(cache_dir, dirs))
    _shadows.move_to_end((cache_dir, dirs))
    while len(_shadows) > MAX_KNOWN:
        _shadows.popitem(last=False)
    return shadow


def _prune_sometimes(cache_dir: Path) -> None:
    now = time.monotonic()
    if now >= _pruned.get(cache_dir, 0.0):
        _pruned[cache_dir] = now + PRUNE_S
        prune(cache_dir)


class _Look:
    """One measurement, while its shadow is held."""

    def __init__(self, job: Job, dirs: GitDirs, shadow: Shadow, deadline: Deadline) -> None:
        self.job = job
        self.dirs = dirs
        self.shadow = shadow
        self.deadline = deadline

    def take(self) -> Git:
        if has_replacements(self.dirs.common_dir):
            raise GitError(
                "rewritten_history", "grafts or replace refs rewrite the history as git shows it; remove them."
            )
        self.shadow.lay_out()
        settings = self._settings()
        self.shadow.furnish(settings)
        head = self._copy_head_and_index()
        base = read_branch(self.dirs.common_dir, self.job.base)
        lineage = None if head.head is None or base is None else self._lineage(head.head, base)
        status = self._status()
        self._refuse_filtered(status, settings)
        totals = Totals(0, 0, 0)
        against = (lineage and lineage.merge_base) or head.head
        if against != head.head or not status.clean or against is None:
            totals = self._totals(against or _EMPTY_TREE[settings.sha256], status, _EMPTY_BLOB[settings.sha256])
        return Git(
            head=head.head,
            branch=head.branch,
            files=totals.files,
            insertions=totals.insertions,
            deletions=totals.deletions,
            staged=status.staged,
            unstaged=status.unstaged,
            untracked=len(status.untracked),
            conflicted=len(status.unmerged),
            ahead=lineage.ahead if lineage else None,
            behind=lineage.behind if lineage else None,
            operation=read_operation(self.dirs.git_dir),
        )

    # ── what git is shown ────────────────────────────────────────────────────────────────────────

    def _settings(self) -> Settings:
        outside = [pair for path in user_configs() for pair in _configs.read(path, self._parse)]
        inside = _configs.read(self.dirs.common_dir / "config", self._parse)
        main = self.dirs.common_dir == self.dirs.git_dir
        if is_true(dict(inside).get("extensions.worktreeconfig", "")):
            inside = inside + _configs.read(self.dirs.git_dir / "config.worktree", self._parse)
            main = True
        settings = distil(outside, inside)
        if main and settings.worktree:  # git ignores it for a linked worktree
            meant = os.path.realpath(self.dirs.git_dir / settings.worktree)
            if meant != os.path.realpath(self.job.worktree):
                raise GitError("foreign_worktree", f"core.worktree points to {meant}; register that directory instead.")
        return settings

    def _parse(self, content: bytes) -> Pairs:
        done = self._git("config", "--file", "-", "--no-includes", "-z", "--list", given=content or b"\n")
        if done.code:
            raise GitError("bad_config", f"a git config file is malformed{_because(done)}; correct it.")
        return parse_pairs(done.out)

    def _copy_head_and_index(self) -> Head:
        """HEAD and the index as they were at one moment, so that nothing counts as staged that is being committed."""
        for _ in range(TRIES):
            head = read_head(self.dirs)
            self.shadow.copy_index()
            if read_head(self.dirs) == head:
                self.shadow.write("HEAD", f"{head.head or 'ref: refs/heads/unborn'}\n")
                return head
        raise GitError("busy", "HEAD moves faster than it can be read; the worktree is looked at again later.")

    # ── what git is asked ────────────────────────────────────────────────────────────────────────

    def _status(self) -> Status:
        done = self._git("status", "--porcelain=v2", "-z", "--untracked-files=all", "--no-ahead-behind", _SUBMODULES)
        return parse_status(self._checked(done))

    def _lineage(self, head: str, base: str) -> Lineage:
        if head == base:
            return Lineage(head, 0, 0)
        shallow = identify(self.dirs.common_dir / "shallow")
        key = self.dirs.common_dir, shallow, head, base
        known = _lineages.get(key)
        if known is None:
            known = _lineages[key] = self._trace(head, base, shallow is not None)
            while len(_lineages) > MAX_LINEAGES:
                _lineages.popitem(last=False)
        _lineages.move_to_end(key)
        return known

    def _trace(self, head: str, base: str, shallow: bool) -> Lineage:
        found = self._git("merge-base", base, head)
        if found.code == 1 and not found.complaint and shallow:
            raise GitError("shallow", "the merge base lies beyond this shallow clone; run git fetch --unshallow.")
        none = found.code == 1 and not found.complaint
        merge_base = None if none else self._checked(found).decode("ascii").strip()
        counted = self._checked(self._git("rev-list", "--count", "--left-right", f"{base}...{head}"))
        behind, ahead = counted.split()
        return Lineage(merge_base, int(ahead), int(behind))

    def _refuse_filtered(self, status: Status, settings: Settings) -> None:
        """What a filter would make of a changed file is only known to the filter, which is not run."""
        paths = status.edited + status.untracked + [path for _, path in status.unmerged]
        if not paths or not settings.drivers:
            return
        given = b"".join(path + b"\0" for path in paths)
        answer = self._checked(self._git("check-attr", "-z", "--stdin", "filter", given=given)).split(b"\0")
        for path, driver in zip(answer[::3], answer[2::3], strict=False):
            if os.fsdecode(driver) in settings.drivers:
                shown = ascii(os.fsdecode(path))
                raise GitError(
                    "filtered",
                    f"{shown} was changed and has a filter, which is never run here; commit it to be counted.",
                )

    def _totals(self, against: str, status: Status, some_blob: str) -> Totals:
        index = self.shadow.index
        if status.untracked or status.unmerged:
            # As `git add -A` would: these paths become entries that differ from their file, whatever it holds, so
            # that diff reads the file. No object is written.
            self.shadow.start_added_index()
            index = self.shadow.added_index
            given = bytearray()
            for mode, path in status.unmerged + [_entry(path) for path in status.untracked]:
                given += b"%s %s\t%s\0" % (mode, some_blob.encode(), path)
            self._checked(self._git("update-index", "-z", "--index-info", given=bytes(given), index=index))
        done = self._git(
            "diff", "--numstat", "-z", "-M", "--no-ext-diff", "--no-textconv", "--no-color", _SUBMODULES, against, "--",
            index=index,
        )  # fmt: skip
        return parse_numstat(self._checked(done))

    def _git(self, *args: str, given: bytes = b"", index: Path | None = None) -> Finished:
        env = {
            "PATH": os.defpath,
            "LC_ALL": "C",
            "GIT_DIR": os.fspath(self.shadow.path),
            "GIT_WORK_TREE": self.job.worktree,
            "GIT_INDEX_FILE": os.fspath(index or self.shadow.index),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_SYSTEM": os.devnull,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ALLOW_PROTOCOL": "none",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSH_COMMAND": "false",
            "GIT_LITERAL_PATHSPECS": "1",
            # Optional locks are those on the index, and this one is ours: let git refresh it.
            "GIT_OPTIONAL_LOCKS": "1",
        }
        flags = ("--no-pager", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
        return spawn.git([*flags, *args], env=env, cwd=self.shadow.path, deadline=self.deadline, given=given)

    def _checked(self, done: Finished) -> bytes:
        if done.code == 0:
            return done.out
        if any(sign in done.complaint for sign in _MISSING):
            raise GitError(
                "missing_object",
                f"the repository lacks objects{_because(done)}; fetch them, since nothing is fetched from here.",
            )
        raise GitError("git_failed", f"git failed with code {done.code}{_because(done)}; run git fsck in the worktree.")


def _entry(path: bytes) -> tuple[bytes, bytes]:
    """The mode to start from: a nested repository is a commit, and whether a file is executable its stat will tell."""
    return (b"160000", path[:-1]) if path.endswith(b"/") else (b"100644", path)


def _because(done: Finished) -> str:
    lines = [line for line in done.complaint.splitlines() if line.startswith(("fatal: ", "error: "))]
    return f" ({lines[0][:200]!a})" if lines else ""
