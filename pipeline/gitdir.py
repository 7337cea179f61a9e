"""Where the git of a worktree keeps its things, by plain reads: no process, and no trust in what is read.

Everything under a worktree may be written by an agent. So only regular files are read, never through a
final symlink, never more than a bound, and never waiting for the other end of a FIFO.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from pipeline.domain.model import Operation

Identity: TypeAlias = tuple[int, int, int, int, int]

SMALL: Final = 1 << 16
PACKED_REFS: Final = 1 << 26
SYMREF_DEPTH: Final = 5
ALTERNATES_DEPTH: Final = 5  # as git and libgit2
MAX_STORES: Final = 1024
PER_WORKTREE_REFS: Final = ("refs/bisect/", "refs/worktree/", "refs/rewritten/")

_OBJECT_NAME = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_UNFIT_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|@\{|/\.|\.lock(?:/|$)|[/.]$")


class GitDirError(Exception):
    """A git directory cannot be read. ``reason``: a short stable code; the text: one sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class GitDirs(NamedTuple):
    """The git directory of one worktree, the one that it shares, and the first one's inode, to pin it by."""

    git_dir: Path
    common_dir: Path
    inode: int


class Head(NamedTuple):
    """``head`` is ``None`` before the first commit; ``branch`` is ``None`` when detached."""

    head: str | None
    branch: str | None


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def identify(path: Path) -> Identity | None:
    """What changes whenever the file does (its ctime cannot be forged); ``None``: there is no such file."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise GitDirError("unreadable", f"{path} cannot be read: {error.strerror}; check its permissions.") from error
    return identity_of(found)


def identity_of(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def open_regular(path: Path, limit: int) -> int | None:
    """A descriptor of a regular file of at most `limit` bytes; ``None`` if there is none. Never blocks, never follows.

    The caller closes it. Raises `GitDirError` (``unsafe_file``, ``too_large``, ``unreadable``).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if os.path.islink(path) or not os.path.isfile(path):
            raise GitDirError("unsafe_file", f"{path} is not a regular file; replace it by one.") from error
        raise GitDirError("unreadable", f"{path} cannot be read: {error.strerror}; check its permissions.") from error
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_size <= limit:
        return fd
    os.close(fd)
    if not stat.S_ISREG(found.st_mode):
        raise GitDirError("unsafe_file", f"{path} is not a regular file; replace it by one.")
    raise GitDirError("too_large", f"{path} has {found.st_size} bytes, more than the {limit} that are read of it.")


def read_regular(path: Path, limit: int = SMALL) -> bytes | None:
    """The content of a regular file, or ``None`` if there is none. Raises as `open_regular` does."""
    fd = open_regular(path, limit)
    if fd is None:
        return None
    with open(fd, "rb", buffering=0) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise GitDirError("too_large", f"{path} grew beyond {limit} bytes while it was read.")
    return data


# ── directories ──────────────────────────────────────────────────────────────────────────────────


def resolve(worktree: Path) -> GitDirs:
    """The git directories of a worktree, as absolute paths without symlinks.

    Raises `GitDirError`: ``gone`` (no such worktree), ``not_a_repository``, or as `read_regular` does.
    """
    if not os.path.isdir(worktree):
        raise GitDirError("gone", f"{worktree} is no directory any more; archive the workspace or restore it.")
    dot_git = worktree / ".git"
    if os.path.isdir(dot_git):
        git_dir = _real(dot_git)
    else:
        pointer = read_regular(dot_git)
        if pointer is None:
            raise GitDirError("not_a_repository", f"{worktree} has no .git; it is not the top of a git worktree.")
        if not pointer.startswith(b"gitdir: "):
            raise GitDirError("not_a_repository", f"{dot_git} does not say where the git directory is.")
        git_dir = _real(worktree / _path(pointer.removeprefix(b"gitdir: ")))
    try:
        inode = git_dir.stat().st_ino
    except OSError as error:
        raise GitDirError(
            "not_a_repository", f"the git directory {git_dir} is gone; run git worktree repair."
        ) from error
    shared = read_regular(git_dir / "commondir")
    common_dir = git_dir if shared is None else _real(git_dir / _path(shared))
    if identify(git_dir / "HEAD") is None or not os.path.isdir(common_dir / "objects"):
        raise GitDirError("not_a_repository", f"{git_dir} is not a git directory: it lacks HEAD or objects.")
    return GitDirs(git_dir, common_dir, inode)


def pinned(worktree: Path, expected: GitDirs) -> None:
    """See that a worktree is still the one that was registered: the same git directories, at the very same path.

    Raises `GitDirError`: ``pinned_changed``, or as `resolve` does.
    """
    found = resolve(worktree)
    if found != expected:
        raise GitDirError(
            "pinned_changed",
            f"{worktree} belongs to another git directory than when it was registered; register it again.",
        )
    # It was registered without symbolic links in its path: one that is there now leads to another directory, which may
    # well point back to the same git directory.
    if _real(worktree) != worktree:
        raise GitDirError(
            "pinned_changed", f"{worktree} is behind a symbolic link since it was registered; register it again."
        )


def check_packs(objects: Path, seen: dict[Path, Identity]) -> list[Path]:
    """An object store and those that it names; their packs can be opened without waiting for anybody.

    A library that reads objects in this process could not be called back from a FIFO in place of an index of a pack.
    `seen` remembers the directories that were found well, until they change. Raises `GitDirError`: ``unsafe_file``, or
    as `read_regular` does.
    """
    found: list[Path] = []
    waiting, depth = [objects], 0
    while waiting and depth <= ALTERNATES_DEPTH:
        below: list[Path] = []
        for store in waiting:
            found.append(store)
            _check_pack_directory(store / "pack", seen)
            named = read_regular(store / "info/alternates") or b""
            below += [store / os.fsdecode(line) for line in named.splitlines() if line and not line.startswith(b"#")]
        waiting, depth = [store for store in below if store not in found][:MAX_STORES], depth + 1
    return found


def _check_pack_directory(path: Path, seen: dict[Path, Identity]) -> None:
    try:
        found = identity_of(os.stat(path))
        if seen.get(path) == found:
            return
        with os.scandir(path) as entries:
            odd = [entry.path for entry in entries if not entry.is_file(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise GitDirError("unreadable", f"{path} cannot be read: {error.strerror}; check its permissions.") from error
    if odd:
        raise GitDirError("unsafe_file", f"{odd[0]} is not a regular file; replace it by one.")
    if len(seen) >= MAX_STORES:
        seen.clear()
    seen[path] = found


def _path(data: bytes) -> str:
    text = os.fsdecode(data.rstrip(b"\r\n"))
    if not text or "\0" in text:
        raise GitDirError("not_a_repository", "a file in the git directory should name a path and does not.")
    return text


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


# ── refs ─────────────────────────────────────────────────────────────────────────────────────────


def is_object_name(text: str) -> bool:
    """Whether `text` is a full object name, in either of git's hashes."""
    return _OBJECT_NAME.fullmatch(text) is not None


def read_head(dirs: GitDirs) -> Head:
    """HEAD's commit and branch. Raises `GitDirError` (``reftable``, ``bad_ref``, or as `read_regular` does)."""
    content = read_regular(dirs.git_dir / "HEAD")
    if content is None:
        raise GitDirError("not_a_repository", f"{dirs.git_dir} has no HEAD; it is not a git directory any more.")
    if os.path.isdir(dirs.common_dir / "reftable"):
        raise GitDirError("reftable", "the repository keeps its refs in a reftable, which is not read yet.")
    text = _text(content)
    if not text.startswith("ref: "):
        return Head(_object_name(text, "HEAD"), None)
    ref = text.removeprefix("ref: ").strip()
    if not _fit(ref):
        raise GitDirError("bad_ref", "HEAD names a ref that git would not allow; check out a branch.")
    branch = ref.removeprefix("refs/heads/") if ref.startswith("refs/heads/") else None
    shown = None if branch is None else os.fsencode(branch).decode("utf-8", "replace")
    return Head(read_ref(dirs.common_dir, ref, dirs.git_dir), shown)


def read_ref(common_dir: Path, ref: str, git_dir: Path | None = None) -> str | None:
    """The object that a full ref name stands for, or ``None`` if there is no such ref.

    `git_dir` is where refs that belong to one worktree are. Raises as `read_head` does.
    """
    for _ in range(SYMREF_DEPTH):
        if not _fit(ref):
            return None
        home = git_dir if git_dir is not None and ref.startswith(PER_WORKTREE_REFS) else common_dir
        content = None if os.path.isdir(home / ref) else read_regular(home / ref)
        if content is None:
            return _packed(common_dir, ref)
        text = _text(content)
        if not text.startswith("ref: "):
            return _object_name(text, ref)
        ref = text.removeprefix("ref: ").strip()
    raise GitDirError("bad_ref", f"{ref} leads through too many symbolic refs.")


def read_branch(common_dir: Path, name: str) -> str | None:
    """The commit of a local branch; failing that, of the remote-tracking one of that name; else ``None``."""
    for prefix in ("refs/heads/", "refs/remotes/", "refs/remotes/origin/"):
        found = read_ref(common_dir, prefix + name) if name else None
        if found is not None:
            return found
    return None


def default_base(common_dir: Path) -> str:
    """The name of the project's base branch, or empty: as origin's HEAD, main, master, the main worktree's branch."""
    names = [_symbolic(common_dir / "refs/remotes/origin/HEAD", "refs/remotes/origin/"), "main", "master"]
    names.append(_symbolic(common_dir / "HEAD", "refs/heads/"))
    for name in names:
        if name and read_ref(common_dir, "refs/heads/" + name) is not None:
            return name
    return ""


def has_replacements(common_dir: Path) -> bool:
    """Whether grafts or replace refs rewrite the history as git shows it."""
    if identify(common_dir / "info/grafts") is not None:
        return True
    loose = common_dir / "refs/replace"
    if os.path.isdir(loose) and os.listdir(loose):
        return True
    return b" refs/replace/" in (read_regular(common_dir / "packed-refs", PACKED_REFS) or b"")


def _symbolic(path: Path, prefix: str) -> str:
    text = _text(read_regular(path) or b"")
    return text.removeprefix("ref: " + prefix).strip() if text.startswith("ref: " + prefix) else ""


def _packed(common_dir: Path, ref: str) -> str | None:
    packed = read_regular(common_dir / "packed-refs", PACKED_REFS)
    if packed is None:
        return None
    end = packed.find(b" " + os.fsencode(ref) + b"\n")
    if end < 0:
        return None
    return _object_name(os.fsdecode(packed[packed.rfind(b"\n", 0, end) + 1 : end]), ref)


def _text(content: bytes) -> str:
    return os.fsdecode(content).strip()


def _object_name(text: str, ref: str) -> str:
    if not is_object_name(text):
        raise GitDirError("bad_ref", f"{ref} holds no object name; repair it with git update-ref.")
    return text


def _fit(ref: str) -> bool:
    return ref.startswith("refs/") and _UNFIT_REF.search(ref) is None


# ── operations ───────────────────────────────────────────────────────────────────────────────────


def read_operation(git_dir: Path) -> Operation | None:
    """What git is in the middle of in this worktree. A rebase stands above the picks and merges that it makes."""
    if os.path.isdir(git_dir / "rebase-merge"):
        return "rebase"
    if os.path.isdir(git_dir / "rebase-apply") and not os.path.exists(git_dir / "rebase-apply/applying"):
        return "rebase"
    if identify(git_dir / "MERGE_HEAD") is not None:
        return "merge"
    if identify(git_dir / "CHERRY_PICK_HEAD") is not None:
        return "cherry-pick"
    if identify(git_dir / "REVERT_HEAD") is not None:
        return "revert"
    # Between two picks of a sequence only its list of what is left tells.
    verb = (read_regular(git_dir / "sequencer/todo") or b"").split(b" ", 1)[0]
    if verb in (b"pick", b"p"):
        return "cherry-pick"
    if verb == b"revert":
        return "revert"
    return "bisect" if identify(git_dir / "BISECT_LOG") is not None else None
