"""Notices edits, and which paths they concern: directory watches over the trees of worktrees, within a budget.

An edit leaves no trace in a git directory, so only the tree itself can tell. Every directory that may hold files
which count gets a watch of its own: set first and listed then, so that nothing is made unseen in between. Symbolic
links, repositories inside the tree, and ignored or heavy directories (unless git tracks something in them) are left
out. The most active trees come first. What overflows, or finds no room in the budget, is left to the cadence.

Whoever is told gets the paths that changed. Where they cannot all be named, as after a rename of a directory, the
reason is told instead, and everything has to be looked at.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, TypeAlias

from asyncinotify import Event, Inotify, Mask, Watch

from pipeline import gitdir
from pipeline.runtime.aside import Stuck, aside
from pipeline.runtime.clock import now_ns
from workers.ignored import HEAVY, Rules
from workers.jobs import ACTIVE_NS, WATCHED

if TYPE_CHECKING:
    from pipeline.catalog import Target
    from pipeline.runtime.log import FilteringBoundLogger

State: TypeAlias = Literal["closed", "opening", "open", "absent", "stuck"]

BATCH: Final = 1000
MAX_INDEX: Final = 1 << 26
MAX_NAMED: Final = 1000
READ_AHEAD: Final = 64
RETRY_S: Final = 60.0
PATIENCE_S: Final = 5.0
MASK: Final = (
    Mask.MODIFY | Mask.ATTRIB | Mask.CREATE | Mask.DELETE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.MOVE_SELF
    | Mask.ONLYDIR | Mask.DONT_FOLLOW | Mask.EXCL_UNLINK
)  # fmt: skip
_APPEARS: Final = Mask.CREATE | Mask.MOVED_TO

NO_ROOM: Final = "no room within git.max_watches"
STUCK: Final = "its directories do not answer"
LIMIT: Final = "fs.inotify.max_user_watches is used up; raise it, or lower git.max_watches"


class News:
    """What happened in one tree. ``paths``: from its root, as the file system spells them; ``full``: why they are not
    all. ``since``: nor are they for a look that was under way at this time or later; 0: they are."""

    __slots__ = ("full", "paths", "since")

    def __init__(self, paths: Iterable[bytes] = (), full: str = "", since: int = 0) -> None:
        self.paths, self.full, self.since = set(paths), full, since


class Listener(Protocol):
    """Who is told, in the loop."""

    def edited(self, workspace: str, news: News) -> None:
        """Somebody changed something in a tree; as often as it happens, but once per batch of it."""

    def watching(self, workspace: str, watched: bool, why: str) -> None:
        """Whether each edit is told from now on. ``why`` something may have gone unseen before; empty: it did not."""


class Place(NamedTuple):
    """A watched directory: whose, where below its root (as bytes, empty for the root), and what is ignored in it."""

    tree: Tree
    below: bytes
    rules: Rules


class Tree:
    """One worktree. ``size``: how many directories it had when last counted; 0 before. ``owes``: why everything has
    to be looked at once it is watched again. ``ticket``: which opening this is; a thread with an older one stops.
    ``gone``: directories that are no more, until the one above says so too."""

    __slots__ = ("active_ns", "dirs", "gone", "owes", "size", "state", "target", "thread", "ticket", "why")

    def __init__(self, target: Target) -> None:
        self.target = target
        self.dirs: dict[bytes, Watch] = {}
        self.gone: set[bytes] = set()
        self.state: State = "closed"
        self.why = "about to be watched"
        self.owes = ""
        self.ticket = 0
        self.thread: threading.Thread | None = None
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
    def __init__(self, budget: int, listener: Listener, log: FilteringBoundLogger) -> None:
        self.degraded = ""
        self.overflows = 0
        self._budget = budget
        self._limit: int | None = None  # what the machine allows, as it turned out
        self._listener, self._log = listener, log
        self._trees: dict[str, Tree] = {}
        self._places: dict[int, Place] = {}
        self._work: deque[tuple[Tree, bytes, int]] = deque()
        self._ending: list[Tree] = []
        self._news: dict[str, News] = {}
        self._behind = False
        self._wake = asyncio.Event()
        self._inotify: Inotify | None = None

    @property
    def budget(self) -> int:
        return self._budget if self._limit is None else min(self._budget, self._limit)

    @budget.setter
    def budget(self, budget: int) -> None:
        if budget != self._budget:
            self._budget = budget
            self._wake.set()

    @property
    def watches(self) -> int:
        return len(self._places)

    @property
    def open(self) -> int:
        return sum(1 for tree in self._trees.values() if tree.state == "open")

    def watched(self, workspace: str) -> bool:
        """Whether each edit in this worktree is told."""
        tree = self._trees.get(workspace)
        return tree is not None and tree.state == "open"

    def unwatched(self) -> Counter[str]:
        """How many worktrees are not watched, by the reason."""
        return Counter(tree.why for tree in self._trees.values() if tree.state != "open")

    def follow(self, targets: Iterable[Target]) -> None:
        """These worktrees and no others."""
        wanted = {target.workspace: target for target in targets}
        for workspace, tree in list(self._trees.items()):
            target = wanted.get(workspace)
            if target is None or (target.path, target.inode) != (tree.target.path, tree.target.inode):
                self._ending.append(self._trees.pop(workspace))
                self._listener.watching(workspace, False, "")
            else:
                tree.target = target
                if tree.state == "absent" or (tree.thread is not None and not tree.thread.is_alive()):
                    tree.state, tree.thread = "closed", None
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

    def reopen(self, workspace: str, why: str) -> None:
        """What is worth a watch in this worktree has to be decided anew."""
        if (tree := self._trees.get(workspace)) is not None:
            self._reopen(tree, why)

    def drain(self) -> None:
        """Tell now what has happened until now."""
        self._drain()

    async def run(self) -> None:
        """Open what fits, and tell what happens, until cancelled."""
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
                self._close(tree, "about to be watched again")
            self._ending.clear()
            while self._work:
                tree, below, since = self._work.popleft()
                if tree.state == "open" and below not in tree.dirs:
                    await self._extend(tree, below, since)
            self._shed()
            for tree in self._closed():
                if tree.state == "closed" and self._make_room(tree):
                    tree.state = "opening"
                    await self._extend(tree, b"", 0)
                if self._work or self._ending:
                    self._wake.set()
                    break
            self._judge()

    def _shed(self) -> None:
        """Keep to a budget that has become smaller."""
        if self.watches > self.budget:
            for tree in sorted(self._trees.values(), key=lambda tree: tree.active_ns):
                if self.watches <= self.budget:
                    break
                if tree.state == "open":
                    self._close(tree, NO_ROOM)

    def _closed(self) -> list[Tree]:
        """What is not watched, most active first."""
        closed = [tree for tree in self._trees.values() if tree.state == "closed"]
        return sorted(closed, key=lambda tree: -tree.active_ns)

    def _make_room(self, tree: Tree) -> bool:
        """Whether the tree may be opened now. Only an idle one has to leave, and only for an active one."""
        need = max(tree.size, 1)
        if need > self.budget:
            self._leave_out(tree)
            return False
        active_since = now_ns() - ACTIVE_NS
        if self.watches + need > self.budget and tree.active_ns > active_since:
            idle = [
                other for other in self._trees.values() if other.state == "open" and other.active_ns <= active_since
            ]
            for other in sorted(idle, key=lambda other: other.active_ns):
                if self.watches + need <= self.budget:
                    break
                self._close(other, NO_ROOM)
        if self.watches + need > self.budget:
            self._leave_out(tree)
            return False
        return True

    def _leave_out(self, tree: Tree) -> None:
        tree.why = NO_ROOM if self._limit is None else LIMIT
        if tree.owes:
            self._pay(tree)

    def _pay(self, tree: Tree) -> None:
        """It will not be watched again for now, so what may have gone unseen is looked at."""
        self._listener.watching(tree.target.workspace, False, tree.owes)
        tree.owes = ""

    async def _extend(self, tree: Tree, below: bytes, since: int) -> None:
        news = News(since=since)
        try:
            await aside(PATIENCE_S, self._watch_below, tree, below, tree.ticket, news)
        except OverBudget:
            tree.size = max(tree.size, len(tree.dirs) + 1)
            self._lose(tree, NO_ROOM)
            self._leave_out(tree)
            return
        except Stuck as stuck:
            self._lose(tree, STUCK)
            self._set_aside(tree, stuck.thread)
            return
        except OSError:
            self._lose(tree, LIMIT)
            self._meet_limit()
            return
        if self._trees.get(tree.target.workspace) is not tree:
            return  # replaced meanwhile, and about to be closed
        if b"" not in tree.dirs:
            self._close(tree, "its directory is gone", "absent")
            return
        tree.size = max(tree.size, len(tree.dirs))
        if tree.state == "opening":
            tree.state, tree.why = "open", ""
            owes, tree.owes = tree.owes or WATCHED, ""
            # What happened before the watches were set is only seen by looking.
            self._listener.watching(tree.target.workspace, True, owes)
        elif news.full or news.paths:
            self._listener.edited(tree.target.workspace, news)

    def _lose(self, tree: Tree, why: str) -> None:
        if tree.state == "open":
            tree.owes = tree.owes or why
        self._close(tree, why)

    def _set_aside(self, tree: Tree, thread: threading.Thread) -> None:
        """Until the thread has its answer. What lies beside this tree would hang too."""
        self._close(tree, STUCK, "stuck")
        beside = os.path.dirname(tree.target.path)
        for other in [tree, *(tree for tree in self._trees.values() if tree.state == "closed")]:
            if os.path.dirname(other.target.path) == beside:
                other.state, other.why, other.thread = "stuck", STUCK, thread

    def _meet_limit(self) -> None:
        """The machine's own limit is what there is, for a while."""
        if self._limit is None:
            asyncio.get_running_loop().call_later(RETRY_S, self._try_limit)
        self._limit = max(1, self.watches)
        self._degrade(LIMIT)
        self._wake.set()

    def _try_limit(self) -> None:
        self._limit = None
        self._wake.set()

    def _watch_below(self, tree: Tree, below: bytes, ticket: int, news: News) -> None:
        """Runs in a thread, beside the loop. Raises `OverBudget`, or `OSError` at the kernel's limit.

        What it finds in directories that are new goes to `news`.
        """
        tracked = _Tracked(tree.target.git_dir)
        above = self._rules_above(tree, below)
        if below and _unwanted(name := below.rpartition(b"/")[2], below, above, tracked):
            if name in HEAVY and not above.ignore(name, True):
                news.full = "a directory that is not watched"
            return
        top, waiting = below, [(below, above)]
        while waiting:
            below, above = waiting.pop()
            if below in tree.dirs:
                continue
            if len(self._places) >= self.budget:
                raise OverBudget
            path = tree.path(below)
            watch = self._add(path)
            if tree.ticket != ticket:  # nobody waits for this any more
                if watch is not None and watch.wd not in self._places:
                    self._remove(watch)
                return
            if watch is None or watch.wd in self._places:
                continue
            rules = above.below(_gitignore(path))
            self._places[watch.wd] = Place(tree, below, rules)
            tree.dirs[below] = watch
            try:
                children = _children(path)
            except OSError:
                continue
            if below and b".git" in children:  # a repository of its own
                self._drop(tree, below)
                news.full = "a repository inside"
                continue
            for name, is_directory in children.items():
                inner = below + b"/" + name if below else name
                if not is_directory:
                    if top and not rules.ignore(name, False):
                        _name(news, name, inner)
                elif not _unwanted(name, inner, rules, tracked):
                    waiting.append((inner, rules))
                elif top and name in HEAVY and not rules.ignore(name, True):
                    news.full = "a directory that is not watched"

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

    def _close(self, tree: Tree, why: str, state: State = "closed") -> None:
        if tree.state == "open" and self._trees.get(tree.target.workspace) is tree:
            unread = any(other is tree for other, _, _ in self._work)
            self._listener.watching(tree.target.workspace, False, "new directory" if unread else "")
        tree.ticket += 1
        for watch in list(tree.dirs.values()):
            self._remove(watch)
        tree.dirs.clear()
        tree.gone.clear()
        tree.state, tree.why = state, why
        if state != "closed" and tree.owes:
            self._pay(tree)

    def _reopen(self, tree: Tree, why: str) -> None:
        """Not at once: a thread may be busy with it."""
        if tree.state not in ("open", "opening"):
            return
        tree.owes = tree.owes or why
        if tree.state == "open":
            tree.state = "opening"
            self._listener.watching(tree.target.workspace, False, "")
        self._ending.append(tree)
        self._wake.set()

    # ── events ───────────────────────────────────────────────────────────────────────────────────

    def _drain(self) -> None:
        if self._inotify is None:
            return
        self._behind = False
        for _ in range(BATCH):
            event = self._inotify.sync_get()
            if event is None:
                break
            self._take(event)
        else:
            # The library may hold more than the descriptor would tell.
            self._behind = True
            asyncio.get_running_loop().call_soon(self._drain)
        told, self._news = self._news, {}
        for workspace, news in told.items():
            self._listener.edited(workspace, news)

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
        if Mask.IGNORED in mask:
            self._places.pop(watch.wd, None)
            if tree.dirs.get(below) is watch:
                del tree.dirs[below]
                if below:
                    tree.gone.add(below)
            if not below:
                self._reopen(tree, "its directory was removed")
        elif Mask.UNMOUNT in mask:
            self._tell(tree, full="unmounted")
        elif event.name is None:
            if not below and Mask.MOVE_SELF in mask:
                self._reopen(tree, "its directory was moved")
            elif not below and Mask.ATTRIB in mask:
                self._tell(tree, full="permissions of a directory")
        else:
            name = os.fsencode(event.name)
            inner = below + b"/" + name if below else name
            if name == b".git":
                if below:
                    self._reopen(tree, "a repository inside")
            elif Mask.ISDIR in mask:
                self._take_directory(tree, inner, mask, rules.ignore(name, True))
            elif not rules.ignore(name, False):
                self._take_file(tree, name, inner)

    def _take_file(self, tree: Tree, name: bytes, inner: bytes) -> None:
        if name == b".gitignore":
            self._reopen(tree, "ignore file")
        elif name == b".gitattributes":
            self._tell(tree, full="attributes file")
        else:
            self._tell(tree, path=inner)

    def _take_directory(self, tree: Tree, inner: bytes, mask: Mask, ignored: bool) -> None:
        if mask & _APPEARS:
            tree.gone.discard(inner)
            # Of what came before this, a look may have seen what is gone again by the time it is listed.
            self._work.append((tree, inner, 1 if self._behind else now_ns()))
            self._wake.set()
        elif Mask.MOVED_FROM in mask:
            moved = [path for path in tree.dirs if path == inner or path.startswith(inner + b"/")]
            for path in moved:
                self._drop(tree, path)
            if moved or not ignored:
                self._tell(tree, full="directory renamed")
        elif Mask.DELETE in mask:
            # What was in a watched directory was told one by one.
            known = tree.dirs.pop(inner, None) is not None or inner in tree.gone
            tree.gone.discard(inner)
            if not known and not ignored:
                self._tell(tree, full="directory removed")
        elif Mask.ATTRIB in mask and inner in tree.dirs:
            self._tell(tree, full="permissions of a directory")

    def _tell(self, tree: Tree, path: bytes = b"", full: str = "") -> None:
        news = self._news.get(tree.target.workspace)
        if news is None:
            news = self._news[tree.target.workspace] = News()
        if path:
            news.paths.add(path)
        news.full = news.full or full

    def _overflow(self) -> None:
        self.overflows += 1
        self._log.warning("watch overflowed", watches=self.watches)
        for tree in self._trees.values():
            self._reopen(tree, "the watch overflowed")

    def _judge(self) -> None:
        left_out = sum(1 for tree in self._trees.values() if tree.state == "closed")
        if not left_out:
            self.degraded = ""
        elif self._limit is None:
            if NO_ROOM not in self.degraded and self._budget:
                self._log.warning("watch degraded", why=NO_ROOM, worktrees=left_out)
            self.degraded = f"{left_out} worktrees are not watched: {NO_ROOM}"

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


def _name(news: News, name: bytes, inner: bytes) -> None:
    if name in (b".gitignore", b".gitattributes"):
        news.full = "ignore file" if name == b".gitignore" else "attributes file"
    elif len(news.paths) < MAX_NAMED:
        news.paths.add(inner)
    else:
        news.full = "a large new directory"


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
