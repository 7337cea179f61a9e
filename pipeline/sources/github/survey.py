"""Which branch each followed worktree is on, and where on GitHub that branch goes. Plain reads, no process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pipeline.catalog import Catalog
from pipeline.gitdir import GitDirError, GitDirs, Identity, identify, read_head, read_ref, read_regular
from pipeline.sources.desk import Where
from pipeline.sources.github.plan import Branch
from pipeline.sources.github.remotes import Config, Pushed, parse, pushed

HEADS: Final = "refs/heads/"
MAX_CONFIG: Final = 1 << 20


class Home(NamedTuple):
    """A worktree's branch on GitHub; ``None``: it goes nowhere there. `tip`: what was pushed last from here, or ""."""

    where: Where
    branch: Branch | None
    tip: str


class Survey:
    """Blocks; one call at a time. What cannot be read now is as it was."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._dirs: dict[str, tuple[Where, GitDirs]] = {}
        self._configs: dict[Path, tuple[object, Config]] = {}
        self._homes: dict[str, tuple[object, Home]] = {}

    def places(self, catalog: Catalog) -> None:
        """Ask anew which worktrees there are. Raises `CatalogUnavailable`."""
        self._dirs = {
            one.workspace: (
                Where(one.project, one.workspace, one.incarnation, one.path),
                GitDirs(Path(one.git_dir), Path(one.common_dir), one.inode),
            )
            for one in catalog.targets()
        }
        for gone in self._homes.keys() - self._dirs.keys():
            del self._homes[gone]

    def look(self) -> list[Home]:
        """Each followed worktree, as it stands now."""
        texts = [(path, _identity(path)) for path in _own_files()]
        configs: dict[Path, Config | None] = {}
        found = []
        for workspace, (where, dirs) in self._dirs.items():
            if dirs.common_dir not in configs:
                configs[dirs.common_dir] = self._config(dirs.common_dir, texts)
            config = configs[dirs.common_dir]
            trace, before = self._homes.get(workspace, (None, None))
            home = None if config is None else self._home(where, dirs, config, trace, before)
            if home is None:
                home = before or Home(where, None, "")
            found.append(home._replace(where=where))
        return found

    def _home(self, where: Where, dirs: GitDirs, config: Config, trace: object, before: Home | None) -> Home | None:
        """``None`` if it cannot be told now: it is unreadable, or on no branch in the middle of something."""
        try:
            head = identify(dirs.git_dir / "HEAD"), id(config), self._packed(dirs)
            if (
                before is not None
                and isinstance(trace, tuple)
                and trace[0] == head
                and trace[1] == _ref(dirs, trace[2])
            ):
                return before
            branch = read_head(dirs).branch or _rebased(dirs)
            if branch is None:
                return None
            goes = pushed(config, branch, self._host)
            ref = "" if goes is None else f"refs/remotes/{goes.remote}/{goes.name}"
            state = _ref(dirs, ref)
            tip = (read_ref(dirs.common_dir, ref) or "") if ref else ""
        except (GitDirError, OSError, ValueError):
            return None
        home = Home(where, _branch(goes), tip)
        self._homes[where.workspace] = ((head, state, ref), home)
        return home

    def _packed(self, dirs: GitDirs) -> Identity | None:
        return identify(dirs.common_dir / "packed-refs")

    def _config(self, common_dir: Path, own: Sequence[tuple[Path, object]]) -> Config | None:
        """The repository's configuration over the user's; ``None`` if it cannot be read."""
        path = common_dir / "config"
        trace = _identity(path), own
        known = self._configs.get(common_dir)
        if known is not None and known[0] == trace:
            return known[1]
        try:
            texts = [_text(path) for path, _ in own]
            config = parse(*texts, (read_regular(path, MAX_CONFIG) or b"").decode(errors="replace"))
        except GitDirError:
            return None if known is None else known[1]
        self._configs[common_dir] = (trace, config)
        return config


def _branch(goes: Pushed | None) -> Branch | None:
    return None if goes is None else Branch(goes.repo, goes.head, goes.name)


def _ref(dirs: GitDirs, ref: object) -> Identity | None:
    return identify(dirs.common_dir / str(ref)) if ref else None


def _rebased(dirs: GitDirs) -> str | None:
    """The branch that is being rebased, while HEAD is on none."""
    for folder in ("rebase-merge", "rebase-apply"):
        name = (read_regular(dirs.git_dir / folder / "head-name") or b"").decode(errors="replace").strip()
        if name.startswith(HEADS):
            return name.removeprefix(HEADS)
    return None


def _own_files() -> list[Path]:
    """The user's own configuration, as git looks for it."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    chosen = os.environ.get("GIT_CONFIG_GLOBAL")
    return [Path(chosen)] if chosen else [Path(config) / "git/config", Path(os.path.expanduser("~/.gitconfig"))]


def _text(path: Path) -> str:
    """The user's: it may be a link, as dotfiles are."""
    try:
        return (read_regular(Path(os.path.realpath(path)), MAX_CONFIG) or b"").decode(errors="replace")
    except (GitDirError, OSError):
        return ""


def _identity(path: Path) -> Identity | None:
    try:
        return identify(Path(os.path.realpath(path)))
    except (GitDirError, OSError):
        return None
