"""What the catalog forgets: workspaces that were archived long ago, and projects that were removed long ago.

An archived workspace is kept for a while: somebody may ask what became of it, and should its worktree come back, its
numbers go on. Without an end to that the catalog would grow with all that ever was. A workspace that was archived by
hand stays for as long as its worktree does, since its row is what keeps it archived.

What is forgotten leaves one number behind: no workspace of that name may return as the incarnation that others still
remember as gone. So whatever is made anew begins above all incarnations that were ever forgotten.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, Select, delete, exists, func, insert, or_, select, update

from pipeline.catalog import tables

MOST: Final = 500
FLOOR: Final = "incarnation_floor"


def first_incarnation(tx: Connection) -> int:
    """The incarnation of a workspace that the catalog does not know."""
    return _floor(tx) + 1


def is_due(tx: Connection, before_ms: int) -> bool:
    """Whether there is anything to forget."""
    return any(tx.execute(query.limit(1)).first() is not None for query in (_workspaces(before_ms), _empty(before_ms)))


def forget(tx: Connection, before_ms: int, most: int = MOST) -> int:
    """Forget what ended before this time of the wall clock, so many rows at most; returns how many it were."""
    rows = tx.execute(_workspaces(before_ms).limit(most).with_for_update(of=tables.workspace)).all()
    if rows:
        _raise_floor(tx, max(row.incarnation for row in rows))
        tx.execute(delete(tables.workspace).where(tables.workspace.c.id.in_([row.id for row in rows])))
    projects = list(tx.scalars(_empty(before_ms).limit(most - len(rows)))) if len(rows) < most else []
    if projects:
        tx.execute(delete(tables.project).where(tables.project.c.id.in_(projects)))
    return len(rows) + len(projects)


def _workspaces(before_ms: int) -> Select[tuple[str, int]]:
    home, project = tables.workspace, tables.project
    ended = (home.c.phase == "archived") & home.c.present.is_not(True) & (home.c.at_ms < before_ms)
    return (
        select(home.c.id, home.c.incarnation)
        .join(project)
        .where(or_(ended, project.c.removed_ms < before_ms))
        .order_by(home.c.at_ms, home.c.id)
    )


def _empty(before_ms: int) -> Select[tuple[str]]:
    """The projects that were removed and have no workspace any more."""
    home, project = tables.workspace, tables.project
    occupied = exists().where(home.c.project_id == project.c.id)
    return select(project.c.id).where(project.c.removed_ms < before_ms, ~occupied).order_by(project.c.id)


def _floor(tx: Connection) -> int:
    return int(tx.scalar(select(tables.meta.c.value).where(tables.meta.c.name == FLOOR)) or 0)


def _raise_floor(tx: Connection, incarnation: int) -> None:
    if incarnation > _floor(tx):
        there = tx.scalar(select(func.count()).where(tables.meta.c.name == FLOOR))
        write = update(tables.meta).where(tables.meta.c.name == FLOOR) if there else insert(tables.meta)
        tx.execute(write.values(name=FLOOR, value=str(incarnation)))
