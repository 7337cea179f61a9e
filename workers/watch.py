"""Notices what git does: one non-recursive watch over all git directories, and whom each changed file concerns.

A linked worktree shares its repository with its siblings, so a branch that moves concerns only those that are on it
or measured against it. After ``packed-refs`` was rewritten, or directories of refs came or went, the refs themselves
tell whom that concerns: they are read again and compared.

A watch is a hint. When it cannot be had, or ends, the cadence covers, and ``degraded`` says why. A repository that
does not answer, as on a mount that vanished, is left out until it does, and ``stuck`` says whom that concerns.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, TypeVar

from watchfiles._rust_notify import RustNotify

from pipeline import gitdir
from pipeline.runtime.aside import Stuck, aside

if TYPE_CHECKING:
    from pipeline.catalog import Target
    from pipeline.runtime.log import FilteringBoundLogger

T = TypeVar("T")
Kind: TypeAlias = Literal["index", "head", "ref", "operation", "config", "rules"]

GROUP_MS: Final = 100
# The notifier looks for news at each step: after signs of life more often, and seldom while all is quiet. Until so
# many seconds after the last one it takes steps of so many milliseconds.
STEPS: Final = ((2.0, 10), (30.0, 50))
QUIET_STEP_MS: Final = 250
WAIT_MS: Final = 60_000  # how long one call of the notifier lasts that has nothing to say
PATIENCE_S: Final = 5.0
SETTLE_S: Final = 0.1
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
MAX_REF_DIRS: Final = 2000

# What counts in a worktree's own git directory. All else is noise: locks, messages, logs, ORIG_HEAD, FETCH_HEAD, …
_OWN: Final[dict[str, Kind]] = {
    "HEAD": "head",
    "index": "index",
    "config.worktree": "config",
    "MERGE_HEAD": "operation",
    "CHERRY_PICK_HEAD": "operation",
    "REVERT_HEAD": "operation",
    "BISECT_LOG": "operation",
    "rebase-merge": "operation",
    "rebase-apply": "operation",
    "sequencer": "operation",
}
_COMMON: Final[dict[str, Kind]] = {"shallow": "config", "info": "rules"}
_INFO: Final[dict[str, Kind]] = {"exclude": "rules", "attributes": "rules"}


class Site(NamedTuple):
    """A worktree's git directories, and the refs whose movement concerns it, with the objects that they stand for."""

    workspace: str
    git_dir: str
    common_dir: str
    refs: Mapping[str, str | None]


class Hit(NamedTuple):
    """Something of this kind changed for this workspace."""

    workspace: str
    kind: Kind


class Map:
    """From a changed path to those whom it concerns. Pure."""

    def __init__(self, sites: Iterable[Site]) -> None:
        self.sites = {site.workspace: site for site in sites}
        self._own: dict[str, list[str]] = {}
        self._common: dict[str, list[str]] = {}
        self._refs: dict[str, dict[str, list[str]]] = {}
        for site in self.sites.values():
            self._own.setdefault(site.git_dir, []).append(site.workspace)
            self._common.setdefault(site.common_dir, []).append(site.workspace)
            concerned = self._refs.setdefault(site.common_dir, {})
            for ref in site.refs:
                concerned.setdefault(ref, []).append(site.workspace)

    def sharing(self, path: str) -> list[str]:
        """The worktrees whose refs a change of this path may have moved without touching the refs' own files."""
        if path.endswith("/packed-refs"):
            return self._common.get(path.removesuffix("/packed-refs"), [])
        return [workspace for common, _ in self._as_refs(path) for workspace in self._common[common]]

    def beside(self, path: str) -> list[str]:
        """The worktrees of the repository in whose common directory, or as whose git directory, this path is."""
        common = path.rpartition("/")[0]
        return self._common.get(common, []) or self._own.get(path, [])

    def hits(self, path: str) -> set[Hit]:
        """Whom a change of this path concerns, and in which way."""
        found: set[Hit] = set()
        parent, _, name = path.rpartition("/")
        if (kind := _OWN.get(name)) is not None:
            found.update(Hit(workspace, kind) for workspace in self._own.get(parent, ()))
        if (kind := _COMMON.get(name)) is not None:
            found.update(Hit(workspace, kind) for workspace in self._common.get(parent, ()))
        if (kind := _INFO.get(name)) is not None and parent.endswith("/info"):
            found.update(Hit(workspace, kind) for workspace in self._common.get(parent.removesuffix("/info"), ()))
        for common, ref in self._as_refs(path):
            for known, workspaces in self._refs[common].items():
                if known == ref or known.startswith(f"{ref}/"):
                    found.update(Hit(workspace, "ref") for workspace in workspaces)
        return found

    def moved(self, former: Map) -> set[str]:
        """The worktrees that both know and for which a ref stands for something else than it did in the former map."""
        return {
            name for name, site in self.sites.items() if name in former.sites and former.sites[name].refs != site.refs
        }

    def _as_refs(self, path: str) -> Iterator[tuple[str, str]]:
        if path.endswith(".lock"):
            return
        at = path.find("/refs/")
        while at >= 0:
            if path[:at] in self._refs:
                yield path[:at], path[at + 1 :]
            at = path.find("/refs/", at + 1)


def refs_of(branch: str | None, base: str, read: Callable[[str], str | None]) -> dict[str, str | None]:
    """The refs that numbers depend on: the worktree's branch, and what its base may stand for, up to what it does."""
    refs = {} if branch is None else {f"refs/heads/{branch}": read(f"refs/heads/{branch}")}
    for prefix in ("refs/heads/", "refs/remotes/", "refs/remotes/origin/") if base else ():
        ref = prefix + base
        refs[ref] = read(ref)
        if refs[ref] is not None:
            break
    return refs


# ── reading the disk ─────────────────────────────────────────────────────────────────────────────


def survey(targets: Iterable[Target]) -> list[Site]:
    """Read which refs concern each worktree. What cannot be read concerns nobody: the look itself will say why."""
    known: dict[tuple[str, str], str | None] = {}
    sites = []
    for target in targets:

        def read(ref: str, common: str = target.common_dir) -> str | None:
            if (common, ref) not in known:
                try:
                    known[common, ref] = gitdir.read_ref(Path(common), ref)
                except gitdir.GitDirError:
                    known[common, ref] = None
            return known[common, ref]

        dirs = gitdir.GitDirs(Path(target.git_dir), Path(target.common_dir), target.inode)
        try:
            branch = gitdir.read_head(dirs).branch
        except gitdir.GitDirError:
            branch = None
        sites.append(Site(target.workspace, target.git_dir, target.common_dir, refs_of(branch, target.base, read)))
    return sites


def roots(targets: Iterable[Target]) -> list[str]:
    """The directories to watch that exist: git directories, common ones, and all that hold branches or rules."""
    targets = list(targets)
    found = {target.git_dir for target in targets if _watchable(target.git_dir)}
    for common in {target.common_dir for target in targets}:
        if _watchable(common):
            found.add(common)
        for holder in ("heads", "remotes"):
            found.update(_directories(f"{common}/refs/{holder}"))
        found.update(path for path in (f"{common}/refs", f"{common}/info") if _watchable(path))
    return sorted(found)


def answering(targets: Iterable[Target]) -> list[str]:
    """`roots`, after a touch of each worktree: whatever lies on a file system that hangs hangs here."""
    targets = list(targets)
    for target in targets:
        os.path.isdir(target.path)
    return roots(targets)


def _directories(top: str) -> Iterator[str]:
    waiting, count = [top], 0
    while waiting and count < MAX_REF_DIRS:
        path = waiting.pop()
        if not _watchable(path):
            continue
        count += 1
        yield path
        try:
            with os.scandir(path) as entries:
                waiting += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue


def _watchable(path: str) -> bool:
    """A name that is no UTF-8 would end the whole watch."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return os.path.isdir(path) and not os.path.islink(path) and os.access(path, os.R_OK | os.X_OK)


# ── the watch ────────────────────────────────────────────────────────────────────────────────────


class _Notifier:
    """One set of watched directories, read in a thread of its own until told to stop."""

    def __init__(
        self,
        paths: list[str],
        step_ms: Callable[[], int],
        changed: Callable[[set[str]], None],
        ended: Callable[[str], None],
    ) -> None:
        """Sets the watches: from here on nothing is missed. Raises `OSError` if they cannot be had."""
        self.paths = frozenset(paths)
        self._notify = RustNotify(paths, False, False, 0, False, True)
        self._step_ms, self._changed, self._ended = step_ms, changed, ended
        self._step = QUIET_STEP_MS
        self._stopped = False
        self._thread = threading.Thread(target=self._read, name="git watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True

    def is_set(self) -> bool:
        """The notifier asks at each step whether to return: for good, or to go on in steps of another length."""
        return self._stopped or self._step_ms() != self._step

    def _read(self) -> None:
        why = "it ended"
        try:
            while not self._stopped:
                self._step = self._step_ms()
                found = self._notify.watch(GROUP_MS, self._step, WAIT_MS, self)
                if isinstance(found, str):
                    if found not in ("timeout", "stop"):
                        break
                else:
                    self._changed({path for _, path in found})
        except Exception as error:  # whatever the notifier chokes on, such as a name that is no UTF-8
            why = str(error) or type(error).__name__
        self._notify.close()
        if not self._stopped:
            self._ended(why)


class GitWatch:
    """Watches the git directories of all targets, and tells whom each change concerns."""

    def __init__(
        self, hit: Callable[[set[Hit]], None], unseen: Callable[[set[str]], None], log: FilteringBoundLogger
    ) -> None:
        """`hit` gets what changed; `unseen` the worktrees where changes may have gone unseen until now, as before
        they were watched. Both in the loop."""
        self.degraded = ""
        self.map = Map(())
        self._hit, self._unseen, self._log = hit, unseen, log
        self._loop = asyncio.get_running_loop()
        self._targets: dict[str, Target] = {}
        self._notifier: _Notifier | None = None
        self._lock = asyncio.Lock()
        self._stuck: dict[str, threading.Thread] = {}  # common directory → who waits for it
        self._watched: frozenset[str] = frozenset()
        self._stale: set[str] = set()  # worktrees whose refs have to be read again
        self._told: set[str] = set()  # of these, the ones that were reported already
        self._reshaped = False
        self._suspects: set[str] = set()  # paths that may be directories which came
        self._wake = asyncio.Event()
        self._stirred = self._since = time.monotonic()
        self._pause_s = FIRST_PAUSE_S
        self._retry: asyncio.TimerHandle | None = None

    @property
    def watches(self) -> int:
        return len(self._notifier.paths) if self._notifier is not None else 0

    @property
    def stuck(self) -> set[str]:
        """The worktrees whose repository does not answer."""
        return {name for name, target in self._targets.items() if target.common_dir in self._stuck}

    def stir(self) -> None:
        """There are signs of life: more may come."""
        self._stirred = time.monotonic()

    def step_ms(self) -> int:
        quiet_s = time.monotonic() - self._stirred
        return next((step for seconds, step in STEPS if quiet_s < seconds), QUIET_STEP_MS)

    async def follow(self, targets: Iterable[Target], doubt: bool = False) -> None:
        """Watch these and no others. Returns when the watch is up, or when it is known that it cannot be had.

        With the same ones as before there is nothing to do, unless something was missing, or is in `doubt`.
        """
        former, self._targets = self._targets, {target.workspace: target for target in targets}
        changed = {name for name, target in self._targets.items() if former.get(name) != target}
        if not changed and len(former) == len(self._targets) and self._whole() and not doubt:
            return
        self._stale |= changed
        self._reshaped = True
        await self._renew()

    def _whole(self) -> bool:
        watched = self._notifier.paths if self._notifier is not None else frozenset()
        return not self._stuck and all(target.git_dir in watched for target in self._targets.values())

    async def run(self) -> None:
        """Keep the map in line with the repositories: branches move, directories of refs come and go."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(SETTLE_S)
            self._wake.clear()
            await self._renew()

    def close(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        if self._notifier is not None:
            self._notifier.stop()

    async def _renew(self) -> None:
        async with self._lock:
            await self._suspect()
            former = self.map
            reshaped, self._reshaped = self._reshaped, False
            stale, self._stale = self._stale, set()
            told, self._told = self._told, set()
            if reshaped:
                # The watches first: whatever is read after that is either as it was, or a change that is noticed.
                await self._rewatch()
            kept = {name: site for name, site in former.sites.items() if name in self._targets and name not in stale}
            fresh = await self._survey([self._targets[name] for name in self._targets if name not in kept])
            self.map = Map({**kept, **fresh}.values())
            if moved := self.map.moved(former) - told:
                self._hit({Hit(workspace, "ref") for workspace in moved})
            watched = self._notifier.paths if self._notifier is not None else frozenset()
            now_watched = frozenset(name for name, target in self._targets.items() if target.git_dir in watched)
            if new := now_watched - self._watched:
                self._unseen(set(new))
            self._watched = now_watched

    def _groups(self, targets: Iterable[Target]) -> Iterator[tuple[str, list[Target]]]:
        """By repository, without those that somebody waits for still."""
        groups: dict[str, list[Target]] = {}
        for target in targets:
            groups.setdefault(target.common_dir, []).append(target)
        for common, group in groups.items():
            waiting = self._stuck.get(common)
            if waiting is None or not waiting.is_alive():
                if self._stuck.pop(common, None) is not None:  # it answers again, and is to be watched again
                    self._reshaped = True
                    self._wake.set()
                yield common, group

    async def _ask(self, question: Callable[[list[Target]], T], targets: Iterable[Target]) -> list[T]:
        """Put it to all repositories at once, so that those which hang hold up nobody for longer than one would."""

        async def ask(common: str, group: list[Target]) -> list[T]:
            try:
                return [await aside(PATIENCE_S, question, group)]
            except Stuck as stuck:
                self._log.warning("repository does not answer", common_dir=common)
                self._stuck[common] = stuck.thread
                return []

        answers = await asyncio.gather(*(ask(common, group) for common, group in self._groups(targets)))
        return [found for answer in answers for found in answer]

    async def _survey(self, targets: Iterable[Target]) -> dict[str, Site]:
        return {site.workspace: site for sites in await self._ask(survey, targets) for site in sites}

    async def _suspect(self) -> None:
        """Directories of refs or rules that came are watched too."""
        suspects, self._suspects = self._suspects, set()
        try:
            came = await aside(PATIENCE_S, lambda: [path for path in suspects if os.path.isdir(path)])
        except Stuck:
            return
        for path in came:
            self._reshaped = True
            self._stale.update(self.map.sharing(path) or self.map.beside(path))

    async def _rewatch(self) -> None:
        commons = {target.common_dir for target in self._targets.values()}
        self._stuck = {common: thread for common, thread in self._stuck.items() if common in commons}
        paths = {path for found in await self._ask(answering, self._targets.values()) for path in found}
        former = self._notifier
        if former is not None and former.paths == paths:
            return
        hear = self._from_thread, self._ended_in_thread
        try:
            fresh = await aside(PATIENCE_S, _Notifier, sorted(paths), self.step_ms, *hear) if paths else None
        except (OSError, RuntimeError, Stuck) as error:
            self._degrade(f"git directories cannot be watched: {error}")
            return
        self._notifier = fresh
        if fresh is not None:
            fresh.start()
        if former is not None:
            former.stop()  # after the new one is up, so that nothing falls between the two
        self.degraded, self._since = "", time.monotonic()

    def _from_thread(self, paths: set[str]) -> None:
        self._call(self._take, paths)

    def _ended_in_thread(self, why: str) -> None:
        self._call(self._end, why)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop is gone, and with it whoever would care
            pass

    def _take(self, paths: set[str]) -> None:
        hits: set[Hit] = set()
        watched = self._notifier.paths if self._notifier is not None else frozenset()
        for path in paths:
            found = self.map.hits(path)
            hits |= found
            self._stale |= {hit.workspace for hit in found if hit.kind in ("head", "ref")}
            sharing = self.map.sharing(path)
            if path.endswith("/packed-refs"):
                self._stale.update(sharing)
            elif path in watched:
                # A directory that came or went: what moved in it before it was watched, the refs themselves tell.
                self._reshaped = True
                self._stale.update(sharing or self.map.beside(path))
            elif sharing or path.endswith("/info"):
                self._suspects.add(path)
        self._told |= {hit.workspace for hit in hits}
        if self._stale or self._reshaped or self._suspects:
            self._wake.set()
        if hits:
            self.stir()
            self._hit(hits)

    def _end(self, why: str) -> None:
        self._notifier = None
        if time.monotonic() - self._since > LONGEST_PAUSE_S:
            self._pause_s = FIRST_PAUSE_S
        unseen, self._watched = self._watched, frozenset()
        self._degrade(f"the watch of git directories ended: {why}")
        self._unseen(set(unseen))

    def _degrade(self, why: str) -> None:
        if why != self.degraded:
            self._log.warning("watch degraded", why=why)
        self.degraded = why
        if self._retry is not None:
            self._retry.cancel()
        self._retry = self._loop.call_later(self._pause_s, self._again)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _again(self) -> None:
        self._stale |= set(self._targets)
        self._reshaped = True
        self._wake.set()
