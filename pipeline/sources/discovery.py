"""Finds every worktree of every project, and tells when one comes, goes, or switches its branch.

The catalog first, the bus second. A watch on the git directories says when to look; the cadence is the guarantee.
A repository that does not answer keeps what was known of it: only git's own list archives anything.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from pipeline import gitdir
from pipeline.catalog import Catalog, CatalogUnavailable, ChangeWatch, Project, Worktree
from pipeline.catalog.ids import shown
from pipeline.domain.model import Look, Stamp
from pipeline.gitdir import GitDirError
from pipeline.runtime.aside import Stuck, aside
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.process import Process
from pipeline.sources import retention
from pipeline.sources.outbox import Outbox
from pipeline.sources.watching import Watching
from pipeline.sources.worktree_list import Listed, ListError, list_worktrees

GIT_DIR: Final = ".git"
THREADS: Final = 4
PATIENCE_S: Final = 5.0


class Unreadable(Exception):
    """A repository cannot be looked at now. The message is one sentence; nothing may be concluded from it."""


class Repository(NamedTuple):
    """A repository on disk. `path`: its main worktree, or its own folder if it is bare."""

    path: Path
    common_dir: Path


class Found(NamedTuple):
    """What one reading of a project came to. `unsure`: listed, but not to be read now, each with why."""

    common_dir: Path
    worktrees: list[Worktree]
    unsure: dict[str, str]
    stamp: Stamp


# ── finding ──────────────────────────────────────────────────────────────────────────────────────


def repository_at(path: Path) -> Repository | None:
    """The repository that `path` is the main worktree, a linked worktree or the bare folder of."""
    if (path / GIT_DIR).exists():
        try:
            dirs = gitdir.resolve(path)
        except (GitDirError, OSError):
            return None
        return Repository(Path(os.path.realpath(_owner(path, dirs))), dirs.common_dir)
    bare = Path(os.path.realpath(path))
    if (bare / "HEAD").is_file() and (bare / "objects").is_dir() and (bare / "refs").is_dir():
        owner = bare.parent if bare.name == GIT_DIR else bare
        return Repository(owner, bare)
    return None


def repositories_in(path: Path) -> list[Repository]:
    """The repository at `path`; failing that, those directly below it. Raises `OSError` if it cannot be listed."""
    if (here := repository_at(path)) is not None:
        return [here]
    below = (repository_at(child) for child in sorted(path.iterdir()) if child.is_dir())
    return list({found.common_dir: found for found in below if found is not None}.values())


def find(project: Project, deadline_s: float) -> Found:
    """Read the worktrees of a project. Blocks. Raises `Unreadable`."""
    try:
        repository = repository_at(Path(project.path))
        if repository is None:
            raise Unreadable(f"{shown(project.path)} is no git repository any more: restore or remove the project.")
        base = project.base or gitdir.default_base(repository.common_dir)
        began = now_ns()
        listed = list_worktrees(repository.common_dir, deadline_s)
        worktrees: list[Worktree] = []
        unsure: dict[str, str] = {}
        for record in listed:
            _sort(record, repository.common_dir, base, worktrees, unsure)
        return Found(repository.common_dir, worktrees, unsure, Stamp(began, now_ns(), CLOCK))
    except (GitDirError, ListError, OSError) as error:
        raise Unreadable(f"{shown(project.path)}: {error}") from error


def _sort(record: Listed, common_dir: Path, base: str, found: list[Worktree], unsure: dict[str, str]) -> None:
    """Decide whether a listed worktree is there, is gone, or cannot be told now."""
    if record.bare or record.prunable:
        return
    path = os.path.realpath(record.path)
    try:
        dirs = gitdir.resolve(Path(path))
    except (GitDirError, OSError) as error:
        if not _is_gone(path):
            unsure[path] = str(error)
        return
    if dirs.common_dir != common_dir:
        unsure[path] = f"{shown(path)} points to another repository than the one that lists it."
        return
    found.append(
        Worktree(
            path=path,
            branch=shown(record.branch),
            git_dir=str(dirs.git_dir),
            common_dir=str(dirs.common_dir),
            inode=dirs.inode,
            base=shown(base),
        )
    )


def _is_gone(path: str) -> bool:
    """The directory is certainly not there. An error that says anything else (a dead mount, no permission) is none."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _owner(path: Path, dirs: gitdir.GitDirs) -> Path:
    """The folder that a person would call the repository."""
    common = dirs.common_dir
    if common.name == GIT_DIR or (common.parent / GIT_DIR).is_file():
        return common.parent
    # Of its own, but elsewhere: a submodule, or made with --separate-git-dir.
    return path if dirs.git_dir == common else common


# ── the running part ─────────────────────────────────────────────────────────────────────────────


class Discovery:
    """Looks at projects when told to, one look at a time per project, and sends what changed."""

    def __init__(self, process: Process, catalog: Catalog, send: Callable[[Iterable[Look]], None]) -> None:
        self._process = process
        self._catalog = catalog
        self._send = send
        self._deadline_s = process.settings.git.deadline_ms / 1000
        # Each in a thread of its own, which a dead mount may keep for ever, and then takes no room from the others.
        self._room = asyncio.Semaphore(THREADS)
        self._stuck: dict[str, threading.Thread] = {}
        self._projects: dict[str, Project] = {}
        self._asked: set[str] = set()
        self._running: set[str] = set()
        self._complaints: dict[str, str] = {}
        self._found: dict[str, Found] = {}
        self.watching = Watching(self.touched)

    async def reload(self) -> None:
        """Read the list of projects, and look at those that are new or whose settings changed."""
        now = {project.id: project for project in await asyncio.to_thread(self._catalog.projects)}
        before, self._projects = self._projects, now
        for gone in before.keys() - now.keys():
            self._found.pop(gone, None)
            self._complaints.pop(gone, None)
        if before.keys() - now.keys():
            await self._rewatch()
            self._show()
        self.ask(project.id for project in now.values() if before.get(project.id) != project)

    def ask(self, projects: Iterable[str] | None = None) -> None:
        """Look at these projects (at all, without a list) soon. Asking again while a look runs means one more after."""
        for name in list(self._projects) if projects is None else projects:
            self._asked.add(name)
            self._start(name)

    def touched(self, paths: set[str]) -> None:
        """Something changed at these watched paths."""
        for name, found in self._found.items():
            if any(_concerns(path, found) for path in paths):
                self.ask([name])

    def close(self) -> None:
        self.watching.close()

    def _start(self, name: str) -> None:
        if name in self._running or name in self._stuck or name not in self._projects:
            return
        self._asked.discard(name)
        self._running.add(name)
        self._process.spawn(self._look(self._projects[name]), name=f"discover {name}")

    async def _look(self, project: Project) -> None:
        try:
            found = await self._find(project)
            looks = await asyncio.to_thread(
                self._catalog.upsert_worktrees, project.id, found.worktrees, found.stamp, wall_ms(), found.unsure
            )
        except (Unreadable, CatalogUnavailable) as error:
            self._complain(project.id, str(error))
        else:
            if project.id in self._projects:
                self._found[project.id] = found
            self._send(looks)
            self._complain(project.id, " ".join(found.unsure.values()))
            if looks:
                self._process.log.info("worktrees changed", project=project.id, changed=len(looks))
            await self._rewatch()
        finally:
            self._running.discard(project.id)
        if project.id in self._asked:
            self._start(project.id)

    async def _find(self, project: Project) -> Found:
        async with self._room:
            try:
                return await aside(self._deadline_s + PATIENCE_S, find, project, self._deadline_s)
            except Stuck as stuck:
                self._stuck[project.id] = stuck.thread
        raise Unreadable(f"{shown(project.path)} does not answer: see whether its file system is still there.")

    @property
    def hangs(self) -> bool:
        """Whether a repository does not answer."""
        return bool(self._stuck)

    def ask_who_answers_again(self) -> None:
        """Look at projects of which a look hung, once it came to an end."""
        for name in [name for name, thread in self._stuck.items() if not thread.is_alive()]:
            del self._stuck[name]
            self.ask([name])

    def _complain(self, project: str, why: str) -> None:
        """Log a complaint once, and its end. A project that is followed no longer has none, however late it comes."""
        if project not in self._projects:
            return
        if why and self._complaints.get(project) != why:
            self._complaints[project] = why
            self._process.log.warning("project not readable", project=project, why=why)
        elif not why and self._complaints.pop(project, None) is not None:
            self._process.log.info("project readable again", project=project)
        self._show()

    def _show(self) -> None:
        self._process.figures["projects"] = len(self._projects)
        self._process.figures["projects_failing"] = len(self._complaints)
        self._process.state = "degraded" if self._complaints else "running"
        self._process.figures["reason"] = next((f"{id_}: {why}" for id_, why in sorted(self._complaints.items())), "")
        self._process.figures["worktrees"] = sum(len(found.worktrees) for found in self._found.values())

    async def _rewatch(self) -> None:
        groups: dict[str, set[str]] = {}
        for name, found in self._found.items():
            admin = found.common_dir / "worktrees"
            groups[name] = {str(found.common_dir), str(admin)}
            for worktree in found.worktrees:
                # The parent tells of `rm -rf`, which touches nothing below the common directory.
                groups[name] |= {worktree.git_dir, os.path.dirname(worktree.path)}
        await self.watching.watch(groups)


def _concerns(path: str, found: Found) -> bool:
    """Whether a change at this path can be a worktree that came, went, or switched its branch."""
    common = str(found.common_dir)
    folder, _, name = path.rpartition("/")
    if path in (common, f"{common}/worktrees", f"{common}/HEAD", f"{common}/config"):
        return True
    if folder == f"{common}/worktrees":
        return True
    for worktree in found.worktrees:
        if path == worktree.path or (folder == worktree.git_dir and name in ("HEAD", "gitdir", "locked")):
            return True
    return False


async def discover(process: Process, catalog: Catalog, outbox: Outbox) -> None:
    """Follow all projects until the process stops."""
    discovery = Discovery(process, catalog, outbox.put)
    watch = ChangeWatch(catalog)
    settings = process.settings
    process.spawn(discovery.watching.run(), name="discovery watch")
    process.spawn(retention.keep(process, catalog), name="retention")
    cadence = asyncio.get_running_loop().time() + settings.sources.discover_s
    stale = True
    stopping = asyncio.ensure_future(process.stopping.wait())
    stopping.add_done_callback(lambda _: watch.stir())
    try:
        while not process.stopping.is_set():
            if not watch.quiet():
                stale = await asyncio.to_thread(watch.changed) or stale
            process.figures["database"] = watch.last
            if stale and watch.last in ("same", "changed", "replaced"):
                try:
                    await discovery.reload()
                    stale = False
                except CatalogUnavailable as error:
                    process.log.warning("catalog not readable", why=str(error))
            discovery.ask_who_answers_again()
            if asyncio.get_running_loop().time() >= cadence:
                cadence = asyncio.get_running_loop().time() + settings.sources.discover_s
                discovery.ask()
            process.figures["looks_waiting"] = len(outbox)
            left_s = 0.0 if stale or discovery.hangs else cadence - asyncio.get_running_loop().time()
            await watch.rest(settings.reconciler.poll_ms / 1000, left_s)
    finally:
        discovery.close()
        watch.close()
