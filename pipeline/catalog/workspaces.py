"""Reading workspaces, and archiving one."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Select, and_, or_, select, true

from pipeline.bridges import workspace
from pipeline.bridges.hooks import HOOK, Wait
from pipeline.bridges.row import RowError, stamp_of, value_of
from pipeline.catalog import tables
from pipeline.catalog.record import archived, place_of, write_workspaces
from pipeline.domain.model import LEASED, Look, Phase, Session, Stamp


class Workspace(Struct, frozen=True):
    """One workspace, as the catalog knows it. Paths never leave the host."""

    id: str
    project: str
    incarnation: int
    name: str | None
    phase: Phase | None
    branch: str | None
    base: str | None
    path: str | None
    at_ms: int | None


class Known(Struct, frozen=True):
    """A session that the catalog keeps, of a workspace that is not archived."""

    project: str
    workspace: str
    incarnation: int
    id: str
    value: Session
    producer: str
    stamp: Stamp
    at_ms: int
    revision: int


class Standing(NamedTuple):
    """Where a session that is not over was seen last, and what waits there, if a hook told."""

    project: str
    workspace: str
    wait: Wait | None = None


class Target(Struct, frozen=True):
    """A worktree that git can look at; its git directories and inode as they were when it was registered."""

    workspace: str
    project: str
    incarnation: int
    path: str
    git_dir: str
    common_dir: str
    inode: int
    base: str


def workspaces(tx: Connection, project: str = "", archived_too: bool = False) -> list[Workspace]:
    query = _known(archived_too)
    if project:
        query = query.where(tables.workspace.c.project_id == project)
    return [_workspace(row) for row in tx.execute(query.order_by(tables.workspace.c.id)).mappings()]


def workspace_by_id(tx: Connection, name: str) -> Workspace | None:
    """Archived or not."""
    row = tx.execute(_known(archived_too=True).where(tables.workspace.c.id == name)).mappings().first()
    return None if row is None else _workspace(row)


def workspace_at(tx: Connection, path: str | os.PathLike[str]) -> Workspace | None:
    """The live workspace whose worktree contains this path; of nested ones the innermost."""
    real = PurePath(os.path.realpath(path))
    upwards = [str(real), *(str(parent) for parent in real.parents)]
    rows = tx.execute(_known(archived_too=False).where(tables.workspace.c.path.in_(upwards))).mappings().all()
    row = max(rows, key=lambda row: len(row["path"]), default=None)
    return None if row is None else _workspace(row)


def targets(tx: Connection) -> list[Target]:
    """All live workspaces whose worktree discovery has found."""
    query = _known(archived_too=False).where(tables.workspace.c.present).order_by(tables.workspace.c.id)
    return [
        Target(
            workspace=row["id"],
            project=row["project_id"],
            incarnation=row["incarnation"],
            path=row["path"],
            git_dir=row["git_dir"],
            common_dir=row["common_dir"],
            inode=row["inode"],
            base=row["base"] or "",
        )
        for row in tx.execute(query).mappings()
    ]


def sessions(tx: Connection) -> list[Known]:
    """All sessions of live workspaces. One that holds what cannot be read is left out."""
    return _sessions(tx, true())


def told_sessions(tx: Connection, also: Collection[str]) -> list[Known]:
    """The sessions of live workspaces of which somebody told last who does not watch them: those that are not over,
    and these."""
    table = tables.session
    current = or_(table.c.state != "exited", table.c.state.is_(None), table.c.id.in_(also))
    return _sessions(tx, and_(~table.c.producer.startswith(LEASED), current))


def _sessions(tx: Connection, which: ColumnElement[bool]) -> list[Known]:
    home, row_of = tables.workspace, tables.session
    query = (
        select(row_of, home.c.project_id, home.c.incarnation)
        .join(home, home.c.id == row_of.c.workspace_id)
        .where(home.c.phase != "archived", which)
    )
    known = []
    for row in tx.execute(query).mappings():
        try:
            value = value_of(Session, dict(row))
        except RowError:
            continue
        known.append(
            Known(
                row["project_id"],
                row["workspace_id"],
                row["incarnation"],
                row["id"],
                value,
                row["producer"],
                stamp_of(dict(row)),
                row["at_ms"],
                row["revision"],
            )
        )
    return known


def standing(tx: Connection, session: str) -> list[Standing]:
    """Where a session is, by what it told or who watches it: the place where it was seen last first. Others may have
    chosen the same name for something else."""
    home, row_of = tables.workspace, tables.session
    query = (
        select(home.c.project_id, home.c.id, row_of.c.state, row_of.c.waiting_by, row_of.c.waiting_tool)
        .join(home, home.c.id == row_of.c.workspace_id)
        .where(
            row_of.c.id == session,
            home.c.phase != "archived",
            or_(row_of.c.state != "exited", row_of.c.state.is_(None)),
            or_(row_of.c.producer == HOOK, row_of.c.producer.startswith(LEASED)),
        )
        .order_by(row_of.c.at_ms.desc(), row_of.c.observed_ended.desc())
    )
    return [
        Standing(project, workspace, Wait(by, tool) if state == "waiting" and tool is not None else None)
        for project, workspace, state, by, tool in tx.execute(query)
    ]


def reported(tx: Connection, producer: str, group: Literal["pr", "run"]) -> set[str]:
    """The workspaces of which this producer reported the group last, those left out of which it says nothing."""
    says: ColumnElement[bool]
    if group == "pr":
        table = tables.pull_request
        says = or_(table.c.number.is_not(None), table.c.health.is_not(None))
    else:
        table = tables.run_script
        says = table.c.state == "running"
    return set(tx.scalars(select(table.c.workspace_id).where(table.c.producer == producer, says)))


def archive_workspace(tx: Connection, domain: str, name: str, stamp: Stamp, at_ms: int, producer: str) -> Look | None:
    """Archive it and return the look that says so; ``None`` if there is no such workspace or it is archived already."""
    query = select(tables.workspace).where(tables.workspace.c.id == name, tables.workspace.c.phase != "archived")
    row = tx.execute(query.with_for_update()).mappings().first()
    if row is None:
        return None
    changed = archived(dict(row), stamp, at_ms, producer)
    write_workspaces(tx, [], [changed])
    return workspace.look(changed, place_of(changed, domain))


def _known(archived_too: bool) -> Select[Any]:
    table = tables.workspace
    query = select(table).join(tables.project).where(tables.project.c.removed_ms.is_(None))
    return query if archived_too else query.where(table.c.phase != "archived")


def _workspace(row: Any) -> Workspace:
    return Workspace(
        id=row["id"],
        project=row["project_id"],
        incarnation=row["incarnation"],
        name=row["name"],
        phase=row["phase"],
        branch=row["branch"],
        base=row["base"],
        path=row["path"],
        at_ms=row["at_ms"],
    )
