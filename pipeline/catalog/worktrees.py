"""What discovery found becomes workspaces: new ones, vanished ones, and ones that came back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import Connection, select

from pipeline.bridges import workspace
from pipeline.catalog import tables
from pipeline.catalog.ids import fingerprint, shown, worktree_id
from pipeline.catalog.record import archived, forget_groups, judge, observed, place_of, write_workspaces
from pipeline.catalog.retention import first_incarnation
from pipeline.domain.model import Look, Stamp

PRODUCER: Final = "discovery"


class Worktree(Struct, frozen=True):
    """One worktree, as git lists it. `branch` is empty on a detached head, `base` where none is known."""

    path: str
    branch: str
    git_dir: str
    common_dir: str
    inode: int
    base: str


def upsert_worktrees(
    tx: Connection,
    domain: str,
    project: str,
    found: Sequence[Worktree],
    stamp: Stamp,
    at_ms: int,
    unsure: Collection[str],
) -> list[Look]:
    """Bring the project's workspaces in line with `found`; returns the looks of those that changed.

    A worktree never seen is ready; one that is gone is archived; one that came back (or was made anew under the same
    path) is a new incarnation, without the groups of the former one. A workspace that was archived by somebody stays
    so for as long as its worktree is there. Paths in `unsure` could not be read and stay as they are.
    A workspace whose life was observed after this reading began is left alone.
    """
    known = select(tables.project.c.id).where(tables.project.c.id == project, tables.project.c.removed_ms.is_(None))
    if tx.scalar(known) is None:
        return []
    query = select(tables.workspace).where(tables.workspace.c.project_id == project)
    rows = [dict(row) for row in tx.execute(query.with_for_update()).mappings()]
    # Live rows come last, so that of several at one path a live one is taken.
    by_path = {row["path"]: row for row in sorted(rows, key=lambda row: row["phase"] != "archived")}
    made, changed = [], []
    for worktree in found:
        row = by_path.get(worktree.path)
        if row is None:
            made.append(_made(tx, project, worktree, stamp, at_ms))
        elif (now := _seen(tx, row, worktree, domain, stamp, at_ms)) is not None:
            changed.append(now)
    here = {worktree.path for worktree in found} | set(unsure)
    for row in rows:
        if row["present"] and row["path"] not in here and _before(row, stamp):
            gone = {**row, "present": False}
            changed.append(gone if row["phase"] == "archived" else archived(gone, stamp, at_ms, PRODUCER))
    write_workspaces(tx, made, changed)
    before = {row["id"]: row["revision"] for row in rows}
    moved = [row for row in (*made, *changed) if before.get(row["id"]) != row["revision"]]
    return [workspace.look(row, place_of(row, domain)) for row in moved]


def _made(tx: Connection, project: str, worktree: Worktree, stamp: Stamp, at_ms: int) -> dict[str, Any]:
    name = worktree_id(worktree.path)
    if tx.scalar(select(tables.workspace.c.id).where(tables.workspace.c.id == name)) is not None:
        name += "-" + fingerprint(worktree.path + "/")
    return {
        "id": name,
        "project_id": project,
        "incarnation": first_incarnation(tx),
        **_pins(worktree),
        "present": True,
        "revision_floor": 0,
        "name": shown(worktree.path.rpartition("/")[2]) or worktree.path,
        "phase": "ready",
        "branch": worktree.branch or None,
        "base": worktree.base or None,
        **observed(stamp, 1, at_ms, "", None, PRODUCER),
    }


def _pins(worktree: Worktree) -> dict[str, Any]:
    return {
        "path": worktree.path,
        "git_dir": worktree.git_dir,
        "common_dir": worktree.common_dir,
        "inode": worktree.inode,
    }


def _seen(
    tx: Connection, row: dict[str, Any], worktree: Worktree, domain: str, stamp: Stamp, at_ms: int
) -> dict[str, Any] | None:
    """The row as this reading leaves it, ``None`` if nothing changed."""
    now = {**row, "branch": worktree.branch or None, "base": worktree.base or None}
    came_back = row["present"] is False
    replaced = bool(row["present"]) and row["inode"] != worktree.inode
    if came_back or replaced:
        if not _before(row, stamp):
            return None
        now |= {**_pins(worktree), "present": True, "phase": "ready", "incarnation": row["incarnation"] + 1}
        forget_groups(tx, now)
        return {**now, **observed(stamp, row["revision"] + 1, at_ms, "", None, PRODUCER)}
    first = row["present"] is None
    if first:
        # Its phase stays what its orchestrator says it is.
        now |= {**_pins(worktree), "present": True}
    if row["phase"] == "archived":
        return {**row, **_pins(worktree), "present": True} if first else None
    place = place_of(row, domain)
    reading = {**now, **observed(stamp, None, at_ms, "", None, PRODUCER)}
    current, look = workspace.look(row, place), workspace.look(reading, place)
    if look.value != current.value and judge(current, look).verdict == "applied":
        return {**reading, "revision": row["revision"] + 1}
    return {**row, **_pins(worktree), "present": True} if first else None


def _before(row: dict[str, Any], stamp: Stamp) -> bool:
    """The row's life was observed before this reading began (or before the last boot)."""
    return bool(row["observed_clock"] != stamp.clock or row["observed_ended"] < stamp.began)
