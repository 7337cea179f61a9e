"""A census of treewire's own catalog, read in one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection, select

from pipeline.bridges import pull_request, ratchet, run_script, session, terminal, workspace
from pipeline.bridges.row import SOURCE, Place, Row, RowError
from pipeline.catalog import Catalog, tables
from pipeline.domain.model import Census, Look, Stamp
from pipeline.reconciler.readers import Reading

# After `life`, and the pull request before the checks that belong to it.
GROUPS: Final = (
    (tables.pull_request, pull_request.look),
    (tables.checks, pull_request.checks_look),
    (tables.ratchet, ratchet.look),
    (tables.terminal, terminal.look),
    (tables.run_script, run_script.look),
    (tables.session, session.look),
)


class CatalogReader:
    """Reads the catalog with the clock that is handed in."""

    def __init__(self, catalog: Catalog, now_ns: Callable[[], int], clock: str) -> None:
        self._catalog = catalog
        self._now_ns = now_ns
        self._clock = clock

    def read(self) -> Reading:
        """See `Reader.read`."""
        return read(self._catalog, self._now_ns, self._clock)


def read(catalog: Catalog, now_ns: Callable[[], int], clock: str) -> Reading:
    """Take a census: all projects, and every group of every workspace that is not archived.

    Workspace by workspace: ``life`` first, then ``pr`` before ``ci``, then the others. A row that holds what no look
    may say is left out and named, and its workspace is told as unread: one bad row neither hides nor ends anything
    else. Raises `CatalogUnavailable`.
    """
    domain = catalog.domain()
    began = now_ns()
    with catalog.database.read() as tx:
        projects, homes, groups = _rows(tx)
    stamp = Stamp(began, now_ns(), clock)
    looks: list[Look] = []
    problems: list[str] = []
    unread: list[str] = []
    for home in homes:
        place = Place(home["project_id"], home["id"], home["incarnation"], domain)
        for row, bridge in ((home, workspace.look), *groups[home["id"]]):
            try:
                looks.append(bridge(row, place, stamp))
            except RowError as error:
                problems.append(f"workspace {place.workspace}: {error}")
                unread.append(place.workspace)
    census = Census(stamp=stamp, source=SOURCE, domain=domain, projects=projects, looks=looks, unread=unread)
    return Reading(census, problems)


def _rows(tx: Connection) -> tuple[list[str], list[Row], dict[str, list[tuple[Row, Any]]]]:
    project, home = tables.project, tables.workspace
    projects = list(tx.scalars(select(project.c.id).where(project.c.removed_ms.is_(None)).order_by(project.c.id)))
    live = (home.c.phase != "archived", project.c.removed_ms.is_(None))
    homes = tx.execute(select(home).join(project).where(*live).order_by(home.c.id)).mappings().all()
    groups: dict[str, list[tuple[Row, Any]]] = defaultdict(list)
    for table, bridge in GROUPS:
        query = select(table).join(home, home.c.id == table.c.workspace_id).join(project).where(*live)
        for row in tx.execute(query.order_by(*table.primary_key.columns)).mappings():
            groups[row["workspace_id"]].append((dict(row), bridge))
    return projects, [dict(row) for row in homes], groups
