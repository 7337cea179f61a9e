"""Which repositories treewire follows."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct
from sqlalchemy import Connection, insert, or_, select, update

from pipeline.bridges import workspace
from pipeline.catalog import tables
from pipeline.catalog.ids import project_id, shown
from pipeline.catalog.record import archived, place_of, write_workspaces
from pipeline.domain.model import Look, Stamp

PRODUCER = "project remove"


class Project(Struct, frozen=True):
    """A repository. `path`: its main worktree, or its folder if it is bare. `base`: empty for its default branch."""

    id: str
    name: str
    path: str
    base: str
    created_ms: int


class Added(NamedTuple):
    """The project as it stands, and whether it is new (or had been removed before)."""

    project: Project
    new: bool


def projects(tx: Connection) -> list[Project]:
    table = tables.project
    query = select(table).where(table.c.removed_ms.is_(None)).order_by(table.c.id)
    return [_project(row._asdict()) for row in tx.execute(query)]


def find_project(tx: Connection, project_or_path: str) -> Project | None:
    """The project of this id or path, removed ones left out."""
    table = tables.project
    named = select(table).where(
        or_(table.c.id == project_or_path, table.c.path == project_or_path), table.c.removed_ms.is_(None)
    )
    rows = [_project(row._asdict()) for row in tx.execute(named)]
    return min(rows, key=lambda project: project.id != project_or_path, default=None)


def add_project(tx: Connection, path: str, name: str, base: str, at_ms: int) -> Added:
    """Follow the repository at `path`. One that is there already keeps its id; a name or base that is given counts."""
    table = tables.project
    row = tx.execute(select(table).where(table.c.path == path)).mappings().first()
    if row is None:
        taken = set(tx.scalars(select(table.c.id)))
        made = {
            "id": project_id(path, taken),
            "name": name or shown(path.rstrip("/").rpartition("/")[2]) or path,
            "path": path,
            "base": base,
            "created_ms": at_ms,
            "removed_ms": None,
        }
        tx.execute(insert(table), [made])
        return Added(_project(made), True)
    back = row["removed_ms"] is not None
    now = {**row, "name": name or row["name"], "base": base or row["base"], "removed_ms": None}
    if back:
        now["created_ms"] = at_ms
    if now != dict(row):
        tx.execute(update(table).where(table.c.id == row["id"]).values({k: v for k, v in now.items() if k != "id"}))
    return Added(_project(now), back)


def remove_project(tx: Connection, domain: str, project: str, stamp: Stamp, at_ms: int) -> list[Look]:
    """Follow it no longer: its workspaces are archived; nothing on disk is touched. Returns the looks that say so."""
    table = tables.project
    tx.execute(update(table).where(table.c.id == project).values(removed_ms=at_ms))
    query = select(tables.workspace).where(tables.workspace.c.project_id == project).with_for_update()
    looks, changed = [], []
    for row in tx.execute(query).mappings():
        gone = {**row, "present": False}
        if row["phase"] != "archived":
            gone = archived(gone, stamp, at_ms, PRODUCER)
            looks.append(workspace.look(gone, place_of(gone, domain)))
        changed.append(gone)
    write_workspaces(tx, [], changed)
    return looks


def _project(row: dict[str, object]) -> Project:
    return Project(**{name: row[name] for name in Project.__struct_fields__})  # type: ignore[arg-type]
