"""Looks at worktrees: exact numbers, as cheap as they can be had, and nothing that a worktree names is ever run.

A *full look* leaves behind what it found of each changed path, so that a *scoped look* has to read no more than the
paths that somebody named; where those do not tell exactly what git would say, the look turns full, with the reason.
`Looker` is the way in; `workers.look` takes the looks, `workers.scoped` reads the paths, `workers.table` has the sums.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Set
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from pipeline.domain.model import Git
from pipeline.gitdir import GitDirError, GitDirs, Identity, pinned
from pipeline.runtime.spawn import Deadline, GitError
from pipeline.wire import Job
from workers.jobs import CADENCE, MANY_SCOPED
from workers.look import Configs, Known, Look
from workers.numstat import Malformed
from workers.objects import Lacking, Lineage, Objects
from workers.shadow import MAX_KNOWN, PRUNE_S, Shadow, prune
from workers.walk import Unfit

__all__ = ["GitError", "Looker", "Seen", "measure"]

MAX_BYTES: Final = 128 << 20
MAX_REPOSITORIES: Final = 64
YOUNG_S: Final = 2.0

# After these a path that differs from the table, and that nobody named, is a drift.
JUDGED: Final = frozenset({CADENCE, MANY_SCOPED})
JUDGED_TURNS: Final = frozenset(
    {"eol", "encoding", "filter", "flags", "large file", "special file", "too many paths", "unreadable"}
)

Place: TypeAlias = tuple[str, str, str, int]


class Seen(NamedTuple):
    """A look's outcome. ``why``: what made it full, or else what asked for it. ``note``: what to know about the
    numbers, in words; mostly empty. ``drift``, ``spawned``: as in `pipeline.wire.Done`."""

    git: Git
    scoped: bool
    why: str
    note: str = ""
    drift: int = 0
    spawned: int = 0


def measure(job: Job, cache_dir: Path) -> Git:
    """One full look, with nothing remembered. Raises `GitError`; there are no partial numbers."""
    return Looker(cache_dir).full(job).git


class Looker:
    """Looks at worktrees, one at a time, all from one thread, and remembers what makes the next look cheap.

    What is remembered of worktrees takes about `budget` bytes at most; those not looked at for longest are forgotten.
    `young_s`: a change that is no older may be told yet, and so is no drift.
    """

    def __init__(self, cache_dir: Path, *, budget: int = MAX_BYTES, young_s: float = YOUNG_S) -> None:
        self.cache_dir = cache_dir
        self.configs = Configs()
        self.lineages: OrderedDict[tuple[Path, Identity | None, str, str], Lineage] = OrderedDict()
        self._budget, self._young_s = budget, young_s
        self._shadows: OrderedDict[GitDirs, Shadow] = OrderedDict()
        self._known: OrderedDict[Place, Known] = OrderedDict()
        self._weights: dict[Place, int] = {}
        self.packs: dict[Path, Identity] = {}
        self._objects: OrderedDict[Path, Objects] = OrderedDict()
        self._prune_at = 0.0
        self._weight = 0

    @property
    def tables(self) -> int:
        """Of how many worktrees so much is known that a scoped look could be taken."""
        return len(self._known)

    @property
    def weight(self) -> int:
        """About how many bytes all of that takes."""
        return self._weight

    def look(self, job: Job) -> Seen:
        """Look at no more than the job asks for, if that gives exact numbers, and else at everything.

        Within the job's deadline. Raises `GitError`; there are no partial numbers.
        """
        if job.full:
            return self.full(job)
        deadline = Deadline.after(job.deadline_ms)
        key = _key(job)
        known = self._known.get(key)
        if known is None:
            return self._full(job, deadline, "no table", None, set())
        look = Look(self, job, known.dirs, deadline)
        try:
            if known.scope.unfit:
                raise Unfit(known.scope.unfit)
            look.scoped(known)
        except Unfit as unfit:
            why = unfit.reason
        except Lacking:
            why = "missing object"
        except (GitDirError, GitError) as error:
            why = error.reason.replace("_", " ")
        except Malformed:
            why = "git failed"
        else:
            self._keep(key, known)
            return Seen(_git_of(known), True, job.why, known.note, 0, look.spawned)
        judged = known if why in JUDGED_TURNS and not look.moved else None
        return self._full(job, deadline, why, judged, {*job.paths, *look.told}, look.spawned)

    def full(self, job: Job) -> Seen:
        """Look at everything. Raises as `look` does."""
        known = self._known.get(_key(job)) if job.why in JUDGED else None
        return self._full(job, Deadline.after(job.deadline_ms), job.why, known, set(job.paths))

    def _full(
        self, job: Job, deadline: Deadline, why: str, former: Known | None, told: Set[bytes], spawned: int = 0
    ) -> Seen:
        self._prune_sometimes()
        key = _key(job)
        self._forget(key)
        try:
            dirs = _pinned(job)
            look = Look(self, job, dirs, deadline)
            with look.shadow.held(deadline):
                known = look.full()
            _pinned(job)
        except GitDirError as error:
            raise GitError(error.reason, str(error)) from error
        except Unfit as unfit:  # it went, or another took its place, while git was reading
            raise GitError(
                "busy", f"the worktree changed while it was looked at ({unfit.reason}); it is looked at again later."
            ) from unfit
        except Malformed as error:
            raise GitError(
                "git_failed", f"git answered in an unknown form ({error}); install a supported version."
            ) from error
        drift = 0 if former is None or not _comparable(former, known) else self._drift(job, former, known, told)
        self._keep(key, known)
        return Seen(_git_of(known), False, why, known.note, drift, spawned + look.spawned)

    # ── what is remembered ───────────────────────────────────────────────────────────────────────

    def _keep(self, key: Place, known: Known) -> None:
        self._known[key] = known
        self._known.move_to_end(key)
        weight = known.scope.weight
        self._weight += weight - self._weights.get(key, 0)
        self._weights[key] = weight
        while self._weight > self._budget or len(self._known) > MAX_KNOWN:
            self._forget(next(iter(self._known)))

    def _forget(self, key: Place) -> None:
        self._known.pop(key, None)
        self._weight -= self._weights.pop(key, 0)

    def shadow(self, dirs: GitDirs) -> Shadow:
        shadow = self._shadows.get(dirs)
        if shadow is None:
            shadow = self._shadows[dirs] = Shadow(self.cache_dir, dirs)
        self._shadows.move_to_end(dirs)
        while len(self._shadows) > MAX_KNOWN:
            self._shadows.popitem(last=False)
        return shadow

    def objects(self, common_dir: Path) -> Objects:
        """The object store that all worktrees of a repository share."""
        objects = self._objects.get(common_dir)
        if objects is None:
            objects = self._objects[common_dir] = Objects(common_dir, self.packs)
        self._objects.move_to_end(common_dir)
        while len(self._objects) > MAX_REPOSITORIES:
            self._objects.popitem(last=False)
        return objects

    def _prune_sometimes(self) -> None:
        now = time.monotonic()
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_S
            prune(self.cache_dir)
            self._forget_gone()

    def _forget_gone(self) -> None:
        """Of git directories that are no more, nothing need be remembered."""
        known = {dirs.git_dir for dirs in self._shadows} | {one.dirs.git_dir for one in self._known.values()}
        commons = {*self._objects, *(key[0] for key in self.lineages)}
        gone = {path for path in known | commons if not path.is_dir()}
        for key in [key for key, one in self._known.items() if one.dirs.git_dir in gone]:
            self._forget(key)
        for dirs in [dirs for dirs in self._shadows if dirs.git_dir in gone]:
            del self._shadows[dirs]
        for common in [common for common in self._objects if common in gone]:
            del self._objects[common]
        for lineage in [key for key in self.lineages if key[0] in gone]:
            del self.lineages[lineage]
        for store in [store for store in self.packs if not store.is_dir()]:
            del self.packs[store]

    def _drift(self, job: Job, former: Known, found: Known, told: Set[bytes]) -> int:
        """How many paths turned out to be otherwise although neither they nor a directory of theirs were named."""
        before, now = former.scope.table, found.scope.table
        paths = before.differ(now)
        if told:
            # What was named may have been paired with anything that is new or gone, and the table not know it yet.
            paths = [path for path in paths if not {before.get(path).kind, now.get(path).kind} & {"added", "deleted"}]
        return sum(1 for path in paths if not (_is_told(path, told) or _is_young(job.worktree, path, self._young_s)))


def _is_told(path: bytes, told: Set[bytes]) -> bool:
    while path and path not in told:
        path = path.rpartition(b"/")[0]
    return bool(path)


def _key(job: Job) -> Place:
    return job.worktree, job.git_dir, job.common_dir, job.inode


def _pinned(job: Job) -> GitDirs:
    dirs = GitDirs(Path(job.git_dir), Path(job.common_dir), job.inode)
    pinned(Path(job.worktree), dirs)
    return dirs


def _comparable(former: Known, found: Known) -> bool:
    """Whether nothing but files of the tree can have made the difference."""
    return (
        former.head == found.head
        and former.against == found.against
        and former.index_tail == found.index_tail
        and former.settings == found.settings
        and former.settings_files.paths == found.settings_files.paths
        and former.settings_files.seen == found.settings_files.seen
    )


def _is_young(worktree: str, path: bytes, young_s: float) -> bool:
    """Whether it, or the directory that it is gone from, was changed only just now."""
    name = os.path.join(os.fsencode(worktree), path)
    while True:
        try:
            return time.time() - os.lstat(name).st_ctime < young_s
        except OSError:
            name = os.path.dirname(name)
            if len(name) <= 1:
                return False


def _git_of(known: Known) -> Git:
    scope, lineage = known.scope, known.lineage
    table = scope.table
    return Git(
        head=known.head.head,
        branch=known.head.branch,
        files=table.files,
        insertions=table.insertions,
        deletions=table.deletions,
        staged=scope.staged_count,
        unstaged=table.states["unstaged"],
        untracked=table.states["untracked"],
        conflicted=table.states["conflicted"],
        ahead=lineage.ahead if lineage else None,
        behind=lineage.behind if lineage else None,
        operation=known.operation,
    )
