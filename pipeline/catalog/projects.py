"""Which repositories treewire follows."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct
from sqlalchemy import Connection, delete, insert, or_, select, update

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
    """The project as it stands, whether it is new (or had been removed before), and what was set differently until now.

    `changed`: the former values by name; empty for a new project.
    """

    project: Project
    new: bool
    changed: dict[str, str]


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


def add_project(tx: Connection, path: str, name: str | None, base: str | None, at_ms: int) -> Added:
    """Follow the repository at `path`. One that is there already keeps its id; a name or base that is given counts.

    An empty name or base goes back to what it is when none is given.
    """
    table = tables.project
    row = tx.execute(select(table).where(table.c.path == path)).mappings().first()
    folder = shown(path.rstrip("/").rpartition("/")[2]) or path
    if row is None:
        taken = set(tx.scalars(select(table.c.id)))
        made = {
            "id": project_id(path, taken),
            "name": name or folder,
            "path": path,
            "base": base or "",
            "created_ms": at_ms,
            "removed_ms": None,
        }
        tx.execute(insert(table), [made])
        return Added(_project(made), True, {})
    back = row["removed_ms"] is not None
    now = {**row, "removed_ms": None}
    now["name"] = row["name"] if name is None else name or folder
    now["base"] = row["base"] if base is None else base
    if back:
        now["created_ms"] = at_ms
    if now != dict(row):
        tx.execute(update(table).where(table.c.id == row["id"]).values({k: v for k, v in now.items() if k != "id"}))
    changed = {} if back else {key: row[key] for key in ("name", "base") if now[key] != row[key]}
    return Added(_project(now), back, changed)


def remove_project(tx: Connection, domain: str, project: str, stamp: Stamp, at_ms: int) -> list[Look]:
    """Follow it no longer: its workspaces are archived; nothing on disk is touched. Returns the looks that say so.

    Should it be followed again, what is archived here comes back; what somebody had archived before stays archived.
    """
    table = tables.project
    tx.execute(update(table).where(table.c.id == project).values(removed_ms=at_ms))
    # Nobody was granted what is followed under this id one day.
    tx.execute(delete(tables.token_project).where(tables.token_project.c.project_id == project))
    home = tables.workspace
    query = (
        select(home).where(home.c.project_id == project, home.c.phase.is_distinct_from("archived")).with_for_update()
    )
    gone = [archived({**row, "present": False}, stamp, at_ms, PRODUCER) for row in tx.execute(query).mappings()]
    write_workspaces(tx, [], gone)
    return [workspace.look(row, place_of(row, domain)) for row in gone]


def _project(row: dict[str, object]) -> Project:
    return Project(**{name: row[name] for name in Project.__struct_fields__})  # type: ignore[arg-type]
