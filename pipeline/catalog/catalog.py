"""The catalog: the authority for what exists. Each method is one transaction, synchronous; call it in a thread.

Every method raises `CatalogUnavailable`, with a sentence, when the database cannot be used.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Engine, update

from pipeline.catalog import migrate, projects, record, retention, tables, tokens, workspaces, worktrees
from pipeline.catalog.database import Database
from pipeline.catalog.projects import Added, Project
from pipeline.catalog.record import Observed
from pipeline.catalog.tokens import Created, Token
from pipeline.catalog.workspaces import Known, Standing, Target, Workspace
from pipeline.catalog.worktrees import Worktree
from pipeline.domain.model import Look, Stamp

if TYPE_CHECKING:
    from pipeline.runtime.settings import Settings
from pipeline.runtime.supervisor import supervised

DOMAIN = "catalog:"


def open(settings: Settings) -> Catalog:
    """The catalog that the settings name, brought to the schema of this release; made if there is none.

    The home is made too where the database lies in it; any other folder has to be there. Under supervisord nothing is
    made: whoever started the deployment did that, and a file that is away for a moment is not to be replaced by an
    empty one, in which there are no projects. Raises `CatalogUnavailable`.
    """
    if supervised():
        Database(settings.database_url).exists()
    return open_url(settings.database_url, make_folder=not settings.database.url)


def open_url(url: str, *, make_folder: bool = False) -> Catalog:
    migrate.upgrade(url, make_folder=make_folder)
    return Catalog(url)


class Catalog:
    """Thread-safe. Connects on first use, and again when the database file was replaced."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)

    @property
    def engine(self) -> Engine:
        return self.database.engine

    def identity(self) -> str:
        """The name that this database was given when it was made: another one is another catalog."""
        return self.database.identity()

    def answers(self) -> None:
        """Ask the database itself. Raises `CatalogUnavailable`."""
        with self.database.read():
            pass

    def domain(self) -> str:
        """Whose revisions its looks carry."""
        return DOMAIN + self.identity()

    def close(self) -> None:
        self.database.close()

    # ── reads ────────────────────────────────────────────────────────────────────────────────────

    def projects(self) -> list[Project]:
        """All projects that were not removed, by id."""
        with self.database.read() as tx:
            return projects.projects(tx)

    def project(self, project_or_path: str) -> Project | None:
        """The project of this id or path."""
        with self.database.read() as tx:
            return projects.find_project(tx, project_or_path)

    def workspaces(self, project: str = "", archived: bool = False) -> list[Workspace]:
        """The workspaces of one project or of all, by id; archived ones only if asked for."""
        with self.database.read() as tx:
            return workspaces.workspaces(tx, project, archived)

    def workspace(self, workspace: str) -> Workspace | None:
        """The workspace of this id, archived or not."""
        with self.database.read() as tx:
            return workspaces.workspace_by_id(tx, workspace)

    def workspace_at(self, path: str | os.PathLike[str]) -> Workspace | None:
        """The live workspace whose worktree contains this path; of nested ones the innermost."""
        with self.database.read() as tx:
            return workspaces.workspace_at(tx, path)

    def targets(self) -> list[Target]:
        """The worktrees that git can look at, by workspace."""
        with self.database.read() as tx:
            return workspaces.targets(tx)

    def sessions(self) -> list[Known]:
        """All sessions of workspaces that are not archived."""
        with self.database.read() as tx:
            return workspaces.sessions(tx)

    def told_sessions(self, also: Collection[str]) -> list[Known]:
        """The sessions that others told of last than those who watch them: all that are not over, and these."""
        with self.database.read() as tx:
            return workspaces.told_sessions(tx, also)

    def standing(self, session: str) -> list[Standing]:
        """Where this session is that agents' hooks tell of; see `workspaces.standing`."""
        with self.database.read() as tx:
            return workspaces.standing(tx, session)

    def reported(self, producer: str, group: Literal["pr", "run"] = "pr") -> set[str]:
        """The workspaces of which this producer reported last that they have a pull request, or that something runs."""
        with self.database.read() as tx:
            return workspaces.reported(tx, producer, group)

    def tokens(self) -> list[Token]:
        """All tokens in the order in which they were made, those that have ended too."""
        with self.database.read() as tx:
            return tokens.tokens(tx)

    def token_hashes(self) -> dict[str, Token]:
        """The tokens that were not revoked, by the hash of their secret."""
        with self.database.read() as tx:
            return tokens.token_hashes(tx, ended=False)

    # ── writes ───────────────────────────────────────────────────────────────────────────────────

    def add_project(
        self, path: str | os.PathLike[str], at_ms: int, name: str | None = None, base: str | None = None
    ) -> Added:
        """Follow the repository whose main worktree (or bare folder) this is; see `projects.add_project`."""
        with self.database.write() as tx:
            return projects.add_project(tx, os.path.realpath(path), name, base, at_ms)

    def remove_project(self, project: str, stamp: Stamp, at_ms: int) -> list[Look]:
        """Follow it no longer, archive its workspaces; returns the looks that say so. Nothing on disk is touched."""
        domain = self.domain()
        with self.database.write() as tx:
            return projects.remove_project(tx, domain, project, stamp, at_ms)

    def upsert_worktrees(
        self, project: str, found: Sequence[Worktree], stamp: Stamp, at_ms: int, unsure: Collection[str] = ()
    ) -> list[Look]:
        """Bring a project's workspaces in line with what git listed; see `worktrees.upsert_worktrees`."""
        domain = self.domain()
        with self.database.write() as tx:
            return worktrees.upsert_worktrees(tx, domain, project, found, stamp, at_ms, unsure)

    def record(self, events: Sequence[Observed]) -> list[Look | None]:
        """Write events by the merge rule; see `record.record`."""
        if not events:
            return []
        domain = self.domain()
        with self.database.write() as tx:
            return record.record(tx, domain, events)

    def archive_workspace(self, workspace: str, stamp: Stamp, at_ms: int, producer: str = "archive") -> Look | None:
        """Archive a workspace; ``None`` if there is none of this id, or it is archived already."""
        domain = self.domain()
        with self.database.write() as tx:
            return workspaces.archive_workspace(tx, domain, workspace, stamp, at_ms, producer)

    def forget(self, before_ms: int) -> int:
        """Forget what was archived or removed before this time; returns how many rows. Takes a few at a time."""
        with self.database.read() as tx:
            if not retention.is_due(tx, before_ms):
                return 0
        count = 0
        while True:
            with self.database.write() as tx:
                gone = retention.forget(tx, before_ms)
            count += gone
            if gone < retention.MOST:
                return count

    def create_token(
        self,
        at_ms: int,
        projects: Iterable[str] | None,
        name: str = "",
        may_write: bool = True,
        expires_ms: int | None = None,
    ) -> Created:
        """Make a token for these projects, ``None`` for all; see `tokens.create_token`."""
        with self.database.write() as tx:
            return tokens.create_token(tx, at_ms, projects, name, may_write, expires_ms)

    def revoke_token(self, id_or_name: str, at_ms: int) -> Token:
        """End a token; see `tokens.revoke_token`."""
        with self.database.write() as tx:
            return tokens.revoke_token(tx, id_or_name, at_ms)

    def try_writing(self) -> None:
        """Commit a change that changes nothing. That it can be written to, only a write can tell."""
        with self.database.write() as tx:
            tx.execute(update(tables.meta).values(value=tables.meta.c.value))

    def note_token_use(self, used: Mapping[str, int]) -> None:
        """When tokens were used last."""
        with self.database.write() as tx:
            tokens.note_token_use(tx, used)
