"""Notices edits: directory watches over the trees of worktrees, most active first, within a budget.

An edit leaves no trace in a git directory, so only the tree itself can tell. Every directory that may hold files
which count gets a watch of its own: set first and listed then, so that nothing is made unseen in between. Symbolic
links, repositories inside the tree, and ignored or heavy directories (unless git tracks something in them) are left
out. A hint like any watch: what overflows, or finds no room in the budget, is left to the cadence.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from asyncinotify import Event, Inotify, Mask, Watch

from pipeline import gitdir
from pipeline.runtime.clock import now_ns
from workers.ignored import HEAVY, Rules
from workers.jobs import ACTIVE_NS

if TYPE_CHECKING:
    from pipeline.catalog import Target
    from pipeline.runtime.log import FilteringBoundLogger

State: TypeAlias = Literal["closed", "open", "absent"]
What: TypeAlias = Literal["tree", "watched"]

BATCH: Final = 1000
MAX_INDEX: Final = 1 << 26
READ_AHEAD: Final = 64
RETRY_S: Final = 60.0
MASK: Final = (
    Mask.MODIFY | Mask.ATTRIB | Mask.CREATE | Mask.DELETE | Mask.MOVED_FROM | Mask.MOVED_TO
    | Mask.ONLYDIR | Mask.DONT_FOLLOW | Mask.EXCL_UNLINK
)  # fmt: skip
_APPEARS: Final = Mask.CREATE | Mask.MOVED_TO


class Place(NamedTuple):
    """A watched directory: whose, where below its root (as bytes, empty for the root), and what is ignored in it."""

    tree: Tree
    below: bytes
    rules: Rules


class Tree:
    """One worktree. ``size``: how many directories it had when last counted; 0 before."""

    __slots__ = ("active_ns", "dirs", "size", "state", "target")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.dirs: dict[bytes, Watch] = {}
        self.state: State = "closed"
        self.active_ns = 0
        self.size = 0

    @property
    def root(self) -> bytes:
        return os.fsencode(self.target.path)

    def path(self, below: bytes) -> bytes:
        return self.root + b"/" + below if below else self.root


class OverBudget(Exception):
    """There is no room for all directories of this tree."""


class Trees:
    def __init__(self, budget: int, changed: Callable[[str, What], None], log: FilteringBoundLogger) -> None:
        """`changed` gets the workspace in whose tree something happened, in the loop, as often as it happens, and
        each one that is watched from now on."""
        self.degraded = ""
        self.overflows = 0
        self._budget = budget
        self._changed, self._log = changed, log
        self._trees: dict[str, Tree] = {}
        self._places: dict[int, Place] = {}
        self._work: deque[tuple[Tree, bytes]] = deque()
        self._ending: list[Tree] = []
        self._wake = asyncio.Event()
        self._inotify: Inotify | None = None

    @property
    def watches(self) -> int:
        return len(self._places)

    @property
    def open(self) -> int:
        return sum(1 for tree in self._trees.values() if tree.state == "open")

    def watched(self, workspace: str) -> bool:
        """Whether an edit in this worktree would be noticed."""
        tree = self._trees.get(workspace)
        return tree is not None and tree.state == "open"

    def follow(self, targets: Iterable[Target]) -> None:
        """These worktrees and no others."""
        wanted = {target.workspace: target for target in targets}
        for workspace, tree in list(self._trees.items()):
            target = wanted.get(workspace)
            if target is None or (target.path, target.inode) != (tree.target.path, tree.target.inode):
                self._ending.append(self._trees.pop(workspace))
            else:
                tree.target = target
                if tree.state == "absent":
                    tree.state = "closed"
        for workspace, target in wanted.items():
            if workspace not in self._trees:
                self._trees[workspace] = Tree(target)
        self._wake.set()

    def touch(self, workspace: str) -> None:
        """Somebody works in this worktree."""
        tree = self._trees.get(workspace)
        if tree is not None:
            tree.active_ns = now_ns()
            if tree.state == "closed":
                self._wake.set()

    async def run(self) -> None:
        """Open what fits, and tell what happens, until cancelled."""
        if self._budget == 0:
            return
        while self._inotify is None:
            try:
                self._inotify = Inotify(cache_size=READ_AHEAD, sync_timeout=0)
            except OSError as error:
                self._degrade(f"worktrees cannot be watched: {error.strerror}")
                await asyncio.sleep(RETRY_S)
        loop, fd = asyncio.get_running_loop(), self._inotify.fd
        loop.add_reader(fd, self._drain)
        try:
            await self._keep_open()
        finally:
            loop.remove_reader(fd)
            self._inotify.close()
            self._inotify = None

    # ── opening and closing: one after the other, so that no two threads set watches ─────────────

    async def _keep_open(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            for tree in self._ending:
                self._close(tree)
            self._ending.clear()
            while self._work:
                tree, below = self._work.popleft()
                if tree.state == "open" and below not in tree.dirs:
                    await self._extend(tree, below)
            for tree in self._closed():
                if tree.state == "closed" and self._make_room(tree):
                    tree.state = "open"
                    await self._extend(tree, b"")
                if self._work or self._ending:
                    self._wake.set()
                    break
            self._judge()

    def _closed(self) -> list[Tree]:
        """What is not watched, most active first."""
        closed = [tree for tree in self._trees.values() if tree.state == "closed"]
        return sorted(closed, key=lambda tree: -tree.active_ns)

    def _make_room(self, tree: Tree) -> bool:
        """Whether the tree may be opened now. Only an idle one has to leave, and only for an active one."""
        need = max(tree.size, 1)
        if need > self._budget:
            return False
        active_since = now_ns() - ACTIVE_NS
        if tree.active_ns > active_since:
            idle = [
                other for other in self._trees.values() if other.state == "open" and other.active_ns <= active_since
            ]
            for other in sorted(idle, key=lambda other: other.active_ns):
                if self.watches + need <= self._budget:
                    break
                self._close(other)
        return self.watches + need <= self._budget

    async def _extend(self, tree: Tree, below: bytes) -> None:
        try:
            await asyncio.to_thread(self._watch_below, tree, below)
        except OverBudget:
            tree.size = max(tree.size, len(tree.dirs) + 1)
            self._close(tree)
            return
        except OSError:
            # The machine's own limit is what there is.
            self._close(tree)
            self._budget = max(1, self.watches)
            self._degrade("fs.inotify.max_user_watches is used up; raise it, or lower git.max_watches")
            return
        if b"" in tree.dirs:
            tree.size = max(tree.size, len(tree.dirs))
            # What happened before the watches were set is only seen by looking.
            self._changed(tree.target.workspace, "watched")
        else:
            self._close(tree, "absent")

    def _watch_below(self, tree: Tree, below: bytes) -> None:
        """Runs in a thread, beside the loop. Raises `OverBudget`, or `OSError` at the kernel's limit."""
        tracked = _Tracked(tree.target.git_dir)
        above = self._rules_above(tree, below)
        if below and _unwanted(below.rpartition(b"/")[2], below, above, tracked):
            return
        waiting = [(below, above)]
        while waiting:
            below, above = waiting.pop()
            if below in tree.dirs:
                continue
            if len(self._places) >= self._budget:
                raise OverBudget
            watch = self._add(tree.path(below))
            if watch is None or watch.wd in self._places:
                continue
            path = tree.path(below)
            rules = above.below(_gitignore(path))
            self._places[watch.wd] = Place(tree, below, rules)
            tree.dirs[below] = watch
            try:
                children = _children(path)
            except OSError:
                continue
            if below and b".git" in children:  # a repository of its own
                self._drop(tree, below)
                continue
            for name, is_directory in children.items():
                inner = below + b"/" + name if below else name
                if is_directory and not _unwanted(name, inner, rules, tracked):
                    waiting.append((inner, rules))

    def _rules_above(self, tree: Tree, below: bytes) -> Rules:
        if not below:
            return Rules([]).below(_read(os.path.join(os.fsencode(tree.target.common_dir), b"info/exclude")))
        watch = tree.dirs.get(below.rpartition(b"/")[0])
        place = None if watch is None else self._places.get(watch.wd)
        return Rules([]) if place is None else place.rules

    def _add(self, path: bytes) -> Watch | None:
        assert self._inotify is not None
        try:
            return self._inotify.add_watch(path, MASK)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise
            return None  # gone again, no directory, a symbolic link, or not ours to read

    def _drop(self, tree: Tree, below: bytes) -> None:
        watch = tree.dirs.pop(below, None)
        if watch is not None:
            self._remove(watch)

    def _remove(self, watch: Watch) -> None:
        self._places.pop(watch.wd, None)
        if self._inotify is not None:
            try:
                self._inotify.rm_watch(watch)
            except OSError:  # the kernel was faster: the directory is gone
                pass

    def _close(self, tree: Tree, state: State = "closed") -> None:
        for watch in list(tree.dirs.values()):
            self._remove(watch)
        tree.dirs.clear()
        tree.state = state

    def _reopen(self, tree: Tree) -> None:
        """Not at once: a thread may be busy with it."""
        self._ending.append(tree)
        self._wake.set()

    # ── events ───────────────────────────────────────────────────────────────────────────────────

    def _drain(self) -> None:
        if self._inotify is None:
            return
        for _ in range(BATCH):
            event = self._inotify.sync_get()
            if event is None:
                return
            self._take(event)
        # The library may hold more than the descriptor would tell.
        asyncio.get_running_loop().call_soon(self._drain)

    def _take(self, event: Event) -> None:
        mask = event.mask
        if Mask.Q_OVERFLOW in mask:
            self._overflow()
            return
        watch = event.watch
        place = None if watch is None else self._places.get(watch.wd)
        if watch is None or place is None:
            return
        tree, below, rules = place
        workspace = tree.target.workspace
        if Mask.IGNORED in mask:
            self._places.pop(watch.wd, None)
            if tree.dirs.get(below) is watch:
                del tree.dirs[below]
            if not below:
                self._reopen(tree)
            self._changed(workspace, "tree")
            return
        name = b"" if event.name is None else os.fsencode(event.name)
        if name == b".git":
            return
        directory = Mask.ISDIR in mask and bool(name)
        if directory:
            inner = below + b"/" + name if below else name
            if mask & _APPEARS:
                self._work.append((tree, inner))
                self._wake.set()
            elif Mask.MOVED_FROM in mask:
                for moved in [path for path in list(tree.dirs) if path == inner or path.startswith(inner + b"/")]:
                    self._drop(tree, moved)
        elif name == b".gitignore":
            self._reopen(tree)
        if not (name and rules.ignore(name, directory)):
            self._changed(workspace, "tree")

    def _overflow(self) -> None:
        self.overflows += 1
        self._log.warning("watch overflowed", watches=self.watches)
        self._ending += [tree for tree in self._trees.values() if tree.state == "open"]
        self._wake.set()

    def _judge(self) -> None:
        left_out = sum(1 for tree in self._trees.values() if tree.state == "closed")
        if not left_out:
            self.degraded = ""
        elif not self.degraded:
            self._degrade(f"{left_out} worktrees are not watched: git.max_watches is too small for them")

    def _degrade(self, why: str) -> None:
        if why != self.degraded:
            self._log.warning("watch degraded", why=why)
        self.degraded = why


class _Tracked:
    """Whether git tracks anything below a directory, by a glance at the index, read only if somebody asks."""

    def __init__(self, git_dir: str) -> None:
        self._path = Path(git_dir) / "index"
        self._content: bytes | None = None

    def below(self, path: bytes) -> bool:
        if self._content is None:
            try:
                self._content = gitdir.read_regular(self._path, MAX_INDEX) or b""
            except gitdir.GitDirError:
                self._content = b""
        return path + b"/" in self._content


def _unwanted(name: bytes, path: bytes, rules: Rules, tracked: _Tracked) -> bool:
    return name == b".git" or ((name in HEAVY or rules.ignore(name, True)) and not tracked.below(path))


def _children(path: bytes) -> dict[bytes, bool]:
    """Names, and whether each is a directory (a symbolic link is none)."""
    with os.scandir(path) as entries:
        return {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}


def _gitignore(path: bytes) -> bytes | None:
    return _read(path + b"/.gitignore")


def _read(path: bytes) -> bytes | None:
    try:
        return gitdir.read_regular(Path(os.fsdecode(path)))
    except gitdir.GitDirError:
        return None
