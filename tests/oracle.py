"""What git itself says of a worktree, by commands that no look uses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from pipeline.domain.model import Git
from pipeline.gitdir import resolve
from pipeline.wire import Job
from tests.gitkit import IDENTITY, git

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


def job_for(
    worktree: Path,
    base: str = "main",
    deadline_ms: int = 30_000,
    *,
    full: bool = True,
    why: str = "",
    paths: tuple[bytes, ...] = (),
) -> Job:
    dirs = resolve(worktree)
    return Job(
        id=1,
        workspace="w1",
        worktree=str(worktree),
        git_dir=str(dirs.git_dir),
        common_dir=str(dirs.common_dir),
        inode=dirs.inode,
        base=base,
        deadline_ms=deadline_ms,
        full=full,
        why=why,
        paths=paths,
    )


def user_env() -> dict[str, str]:
    """The home that the look sees, for git itself."""
    home = os.environ["HOME"]
    return {"HOME": home, "GIT_CONFIG_GLOBAL": f"{home}/.gitconfig"}


def shortstat(worktree: Path, against: str, scratch: Path) -> tuple[int, int, int]:
    """What a commit of everything would differ from `against`, from git alone, without writing to the repository."""
    dirs = resolve(worktree)
    scratch.mkdir(exist_ok=True)
    index = scratch / "index"
    index.unlink(missing_ok=True)
    if (dirs.git_dir / "index").exists():
        shutil.copy2(dirs.git_dir / "index", index)
    for shared in dirs.git_dir.glob("sharedindex.*"):
        shutil.copy2(shared, scratch / shared.name)
    env = {
        **user_env(),
        "GIT_DIR": str(dirs.git_dir),
        "GIT_WORK_TREE": str(worktree),
        "GIT_INDEX_FILE": str(index),
        "GIT_OBJECT_DIRECTORY": str(scratch),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(dirs.common_dir / "objects"),
    }
    for command in (["add", "-A", "--sparse"], ["diff", "--cached", "--shortstat", "-M", against]):
        done = subprocess.run(
            ["git", "-c", "advice.addEmbeddedRepo=false", *command],
            cwd=worktree,
            env={**IDENTITY, **env},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
    counts = {word[:3]: int(count) for count, word in re.findall(r"(\d+) (\w+)", done.stdout.decode())}
    return counts.get("fil", 0), counts.get("ins", 0), counts.get("del", 0)


def states(worktree: Path) -> tuple[int, int, int, int]:
    """Staged, unstaged, untracked and conflicted files, counted from the short status."""
    env = {"GIT_OPTIONAL_LOCKS": "0", **user_env()}
    out = git(worktree, "status", "--porcelain", "-z", "--untracked-files=all", env=env)
    staged = unstaged = untracked = conflicted = 0
    records = iter(out.split("\0")[:-1])
    for record in records:
        code = record[:2]
        if "R" in code:
            next(records)
        if code == "??":
            untracked += 1
        elif "U" in code or code in ("AA", "DD"):
            conflicted += 1
        else:
            staged += code[0] != " "
            unstaged += code[1] != " "
    return staged, unstaged, untracked, conflicted


def expected(worktree: Path, scratch: Path, base: str = "main") -> Git:
    """All that git says, but for the operation under way."""
    head = git(worktree, "rev-parse", "-q", "--verify", "HEAD", check=False) or None
    known = bool(base) and git(worktree, "rev-parse", "-q", "--verify", base, check=False) != ""
    merge_base = git(worktree, "merge-base", base, "HEAD", check=False) if head and known else ""
    files, insertions, deletions = shortstat(worktree, merge_base or head or EMPTY_TREE, scratch)
    staged, unstaged, untracked, conflicted = states(worktree)
    behind = ahead = None
    if head and known:
        behind, ahead = map(int, git(worktree, "rev-list", "--count", "--left-right", f"{base}...HEAD").split())
    return Git(
        head=head,
        branch=git(worktree, "symbolic-ref", "-q", "--short", "HEAD", check=False) or None,
        files=files,
        insertions=insertions,
        deletions=deletions,
        staged=staged,
        unstaged=unstaged,
        untracked=untracked,
        conflicted=conflicted,
        ahead=ahead,
        behind=behind,
    )


def snapshot(worktree: Path) -> dict[bytes, tuple[int, ...]]:
    """How each file and directory of a worktree is, its git directory aside."""
    top = os.fsencode(worktree)
    found: dict[bytes, tuple[int, ...]] = {}
    for directory, names, files in os.walk(top):
        if directory == top:
            names[:] = [name for name in names if name != b".git"]
            files = [name for name in files if name != b".git"]
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            stat = os.lstat(path)
            kept = (stat.st_ino, stat.st_mode, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)
            found[os.path.relpath(path, top)] = kept[:1] if name in names and not os.path.islink(path) else kept
    return found


def changed(before: dict[bytes, tuple[int, ...]], after: dict[bytes, tuple[int, ...]]) -> tuple[bytes, ...]:
    """What a watch of every directory would have named."""
    return tuple(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
