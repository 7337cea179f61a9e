"""The ingest write: events go into their rows by the merge rule, all in one transaction.

Rows are read once, weighed in memory and written back together: a batch costs a few statements, not a few per event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Table, bindparam, case, delete, func, insert, select, update

from pipeline.bridges import pull_request, ratchet, run_script, session, terminal, workspace
from pipeline.bridges.row import Place, Row, stamp_of
from pipeline.catalog import tables
from pipeline.catalog.retention import first_incarnation
from pipeline.domain import order
from pipeline.domain.model import SESSION_PREFIX, Look, Stamp, kind_of

KEPT_SESSIONS: Final = 20
MOST_SESSIONS: Final = 60
# Which sessions a workspace that has too many keeps; within a row the newer ones.
KEPT_FIRST: Final = {"waiting": 0, "error": 0, "working": 1, "starting": 1, "exited": 3}
OTHERWISE: Final = 2
ACTIVITY_NS: Final = 3_000_000_000
# What a session says in one state only: an event that brings it into another need not take it back.
OF_STATE: Final = {"waiting_for": "waiting", "waiting_by": "waiting", "waiting_tool": "waiting", "crashed": "exited"}

OBSERVED: Final = ("revision", "observed_began", "observed_ended", "observed_clock", "run", "seq", "producer", "at_ms")

# group kind → its table, how its rows become looks, and whose rows it is read beside
TABLES: Final[Mapping[str, Table]] = {
    "session": tables.session,
    "pr": tables.pull_request,
    "ci": tables.checks,
    "ratchet": tables.ratchet,
    "terminal": tables.terminal,
    "run": tables.run_script,
}
BRIDGES: Final = {
    "session": session.look,
    "pr": pull_request.look,
    "ci": pull_request.checks_look,
    "ratchet": ratchet.look,
    "terminal": terminal.look,
    "run": run_script.look,
}


class Observed(Struct, frozen=True):
    """One event, as the catalog takes it: some fields of one group, and when and by whom they were seen.

    `fields` may be partial: an absent field stays, ``None`` clears it. ``life`` may carry a ``path``, ``pr`` a
    ``head``, ``ci`` a ``pr`` and a ``head``, a session ``waiting_by`` and ``waiting_tool``. `at_ms` is the wall clock
    at the event, for display. `onto`: the revision of the row in view of which it is said, 0 for none; a row of another
    revision stays, and is what is answered.
    """

    project: str
    workspace: str
    group: str
    fields: Mapping[str, Any]
    stamp: Stamp
    at_ms: int
    run: str = ""
    seq: int | None = None
    producer: str = ""
    onto: int | None = None


def record(tx: Connection, domain: str, events: Sequence[Observed]) -> list[Look | None]:
    """Write the events. Returns one look per event, in order, and after those any that followed from them.

    An event that took its place gives the whole row as it now stands, with its revision. An older one changes
    nothing and gives the look that it would have been, without a revision, for the store to rule on. ``None``: there
    is no such workspace (or project) to write to. What follows are sessions no longer kept, and workspaces whose
    worktree another one took over.
    """
    batch = _Batch(tx, domain, events)
    looks = [batch.take(event) for event in events]
    batch.flush()
    return [*looks, *batch.aftermath, *batch.prune()]


def judge(current: Look, look: Look) -> order.Ruling:
    """The merge rule, as the catalog applies it: commits are in order here, which settles what clocks cannot.

    A row stamped by another clock was written before the last boot. And where a witness's instant falls into the
    interval of a reading, the witness is believed: nobody could ask it again.
    """
    ruling = order.weigh(current, look)
    if current.stamp.clock != look.stamp.clock and ruling in (order.AGREES, order.OTHER_CLOCK):
        return order.LATER
    if ruling is order.DISAGREES and look.stamp.began == look.stamp.ended:
        return order.LATER
    return ruling


def observed(
    stamp: Stamp, revision: int | None, at_ms: int, run: str, seq: int | None, producer: str
) -> dict[str, Any]:
    """The columns that say how a row was observed."""
    return {
        "revision": revision,
        "observed_began": stamp.began,
        "observed_ended": stamp.ended,
        "observed_clock": stamp.clock,
        "run": run,
        "seq": seq,
        "producer": producer,
        "at_ms": at_ms,
    }


def place_of(row: Row, domain: str) -> Place:
    """Where the groups of this workspace row stand."""
    return Place(row["project_id"], row["id"], row["incarnation"], domain)


def write_workspaces(tx: Connection, made: Iterable[Row], changed: Iterable[Row]) -> None:
    """Insert and update whole workspace rows."""
    _write(tx, tables.workspace, ("id",), list(made), list(changed))


def forget_groups(tx: Connection, row: dict[str, Any]) -> None:
    """Delete what a former incarnation of the workspace left behind, and let no revision of it be given again."""
    for table in TABLES.values():
        for revision in tx.scalars(select(table.c.revision).where(table.c.workspace_id == row["id"])):
            row["revision_floor"] = max(row["revision_floor"], revision)
        tx.execute(delete(table).where(table.c.workspace_id == row["id"]))


class _Batch:
    """The rows that a batch of events touches, in memory until `flush`."""

    def __init__(self, tx: Connection, domain: str, events: Sequence[Observed]) -> None:
        self.tx = tx
        self.domain = domain
        self.aftermath: list[Look] = []
        self._dirty: set[tuple[str, str, str]] = set()
        self._fresh: set[tuple[str, str, str]] = set()
        self._exited: dict[str, Stamp] = {}
        ids = {event.workspace for event in events}
        self._projects = set(
            tx.scalars(
                select(tables.project.c.id).where(
                    tables.project.c.id.in_({event.project for event in events}), tables.project.c.removed_ms.is_(None)
                )
            )
        )
        # (kind, workspace, session id or "") → the row
        self._rows: dict[tuple[str, str, str], dict[str, Any]] = {}
        found = select(tables.workspace).where(tables.workspace.c.id.in_(ids)).order_by(tables.workspace.c.id)
        for row in tx.execute(found.with_for_update()).mappings():
            self._rows["life", row["id"], ""] = dict(row)
        self._load(events)

    def _load(self, events: Sequence[Observed]) -> None:
        wanted: dict[str, set[str]] = {}
        for event in events:
            kind = kind_of(event.group)
            for needed in ("ci", "pr") if kind == "ci" else (kind,):
                wanted.setdefault(needed, set()).add(event.workspace)
        sessions = {event.group.removeprefix(SESSION_PREFIX) for event in events if kind_of(event.group) == "session"}
        for kind, workspaces in wanted.items():
            if kind == "life":
                continue
            table = TABLES[kind]
            query = select(table).where(table.c.workspace_id.in_(workspaces))
            if kind == "session":
                query = query.where(table.c.id.in_(sessions))
            for row in self.tx.execute(query).mappings():
                self._rows[kind, row["workspace_id"], row.get("id", "")] = dict(row)

    def take(self, event: Observed) -> Look | None:
        home = self._rows.get(("life", event.workspace, ""))
        if event.project not in self._projects or (home is not None and home["project_id"] != event.project):
            return None
        kind = kind_of(event.group)
        if kind == "life":
            return self._create(event) if home is None else self._life(event, home)
        return None if home is None else self._group(event, kind, home)

    # ── life ─────────────────────────────────────────────────────────────────────────────────────

    def _create(self, event: Observed) -> Look | None:
        fields = event.fields
        phase = fields.get("phase") or "ready"
        if phase == "archived":
            return None
        row: dict[str, Any] = {
            "id": event.workspace,
            "project_id": event.project,
            "incarnation": first_incarnation(self.tx),
            "path": fields.get("path"),
            "git_dir": None,
            "common_dir": None,
            "inode": None,
            "present": None,
            "revision_floor": 0,
            "name": fields.get("name") or event.workspace,
            "phase": phase,
            "branch": fields.get("branch"),
            "base": fields.get("base"),
            **observed(event.stamp, 1, event.at_ms, event.run, event.seq, event.producer),
        }
        if row["path"]:
            self._take_over(row, event)
        look = workspace.look(row, place_of(row, self.domain))
        self._put("life", event.workspace, "", row, fresh=True)
        return look

    def _take_over(self, row: dict[str, Any], event: Observed) -> None:
        """The worktree was discovered before its orchestrator named it: there shall be one workspace, not two."""
        found = select(tables.workspace).where(
            tables.workspace.c.path == row["path"],
            tables.workspace.c.project_id == row["project_id"],
            tables.workspace.c.phase != "archived",
            tables.workspace.c.present,
        )
        for other in self.tx.execute(found).mappings():
            old = self._rows.get(("life", other["id"], "")) or dict(other)
            row.update({name: old[name] for name in ("git_dir", "common_dir", "inode", "present")})
            changed = archived({**old, "present": False}, event.stamp, event.at_ms, event.producer)
            self._put("life", old["id"], "", changed)
            self.aftermath.append(workspace.look(changed, place_of(changed, self.domain)))

    def _life(self, event: Observed, row: dict[str, Any]) -> Look:
        merged = {name: event.fields.get(name, row[name]) for name in ("name", "phase", "branch", "base")}
        reborn = row["phase"] == "archived" and merged["phase"] != "archived"
        seen = observed(event.stamp, None, event.at_ms, event.run, event.seq, event.producer)
        would = {**row, **merged, **seen}
        place = place_of(row, self.domain)
        current, look = workspace.look(row, place), workspace.look(would, place)
        ruling = judge(current, look)
        if ruling is order.SAME_SEQ:
            return current
        if ruling.verdict not in ("applied", "confirmed"):
            return look
        if look.value == current.value:
            would["at_ms"] = row["at_ms"]
        if "path" in event.fields and row["present"] is None:
            would["path"] = event.fields["path"]
        if reborn:
            would["incarnation"] += 1
            self._forget(would)
        return self._written("life", event.workspace, "", would, row, ruling)

    def _forget(self, row: dict[str, Any]) -> None:
        for key in [key for key in self._rows if key[0] != "life" and key[1] == row["id"]]:
            row["revision_floor"] = max(row["revision_floor"], self._rows.pop(key)["revision"])
            self._dirty.discard(key)
            self._fresh.discard(key)
        forget_groups(self.tx, row)

    # ── the other groups ─────────────────────────────────────────────────────────────────────────

    def _group(self, event: Observed, kind: str, home: dict[str, Any]) -> Look:
        name = event.group.removeprefix(SESSION_PREFIX) if kind == "session" else ""
        row = self._rows.get((kind, event.workspace, name))
        would = {
            **self._merged(event, kind, row),
            **observed(event.stamp, None, event.at_ms, event.run, event.seq, event.producer),
            "workspace_id": event.workspace,
        }
        if kind == "session":
            would["id"] = name
        place, bridge = place_of(home, self.domain), BRIDGES[kind]
        look = bridge(would, place)
        if home["phase"] == "archived":
            return look
        if row is None:
            return self._written(kind, event.workspace, name, would, home, order.FIRST)
        current = bridge(row, place)
        if event.onto is not None and event.onto != row["revision"]:
            return current
        ruling = judge(current, look)
        if ruling is order.SAME_SEQ:
            return current
        if ruling.verdict not in ("applied", "confirmed"):
            return look
        if kind == "terminal" and _only_activity(row, would):
            return bridge({**would, "revision": row["revision"]}, place)
        if look.value == current.value:
            would["at_ms"] = row["at_ms"]
        return self._written(kind, event.workspace, name, would, row, ruling)

    def _merged(self, event: Observed, kind: str, row: dict[str, Any] | None) -> dict[str, Any]:
        """The row's columns with the event's over them.

        Another pull request or head inherits nothing from the last, and another state not what the last one waited for.
        """
        fields = dict(event.fields)
        columns = [c.name for c in TABLES[kind].columns if c.name not in (*OBSERVED, "workspace_id", "id")]
        if kind == "ci":
            current = self._rows.get(("pr", event.workspace, ""))
            if "pr" not in fields:
                fields["pr"] = current["number"] if current else None
            if "head" not in fields:
                same = current is not None and current["number"] == fields["pr"]
                fields["head"] = current["head"] if current is not None and same else None
        if kind == "session" and "state" in fields:
            for name, state in OF_STATE.items():
                if fields["state"] != state:
                    fields.setdefault(name, None)
        identity = {"pr": ("number",), "ci": ("pr", "head")}.get(kind, ())
        if row is None or any(name in fields and fields[name] != row[name] for name in identity):
            row = {}
        return {column: fields.get(column, row.get(column)) for column in columns}

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def _written(
        self, kind: str, home: str, name: str, would: dict[str, Any], before: dict[str, Any], ruling: order.Ruling
    ) -> Look:
        """`before`: the row that this one follows; for a first row the workspace, whose floor it starts above."""
        if ruling is order.FIRST:
            would["revision"] = before["revision_floor"] + 1
        else:
            would["revision"] = before["revision"] + 1
            if ruling is order.AGREES:
                joined = order.join(stamp_of(before), stamp_of(would))
                would["observed_began"], would["observed_ended"] = joined.began, joined.ended
        self._put(kind, home, name, would, fresh=ruling is order.FIRST)
        if kind == "session" and would["state"] == "exited":
            self._exited[home] = stamp_of(would)
        if kind == "life":
            return workspace.look(would, place_of(would, self.domain))
        return BRIDGES[kind](would, place_of(self._rows["life", home, ""], self.domain))

    def _put(self, kind: str, home: str, name: str, row: dict[str, Any], fresh: bool = False) -> None:
        key = (kind, home, name)
        self._rows[key] = row
        if fresh:
            self._fresh.add(key)
        elif key not in self._fresh:
            self._dirty.add(key)

    def flush(self) -> None:
        for kind, table in {"life": tables.workspace, **TABLES}.items():
            keys = {"life": ("id",), "session": ("workspace_id", "id")}.get(kind, ("workspace_id",))
            made = [self._rows[key] for key in sorted(self._fresh) if key[0] == kind]
            changed = [self._rows[key] for key in sorted(self._dirty) if key[0] == kind]
            _write(self.tx, table, keys, made, changed)

    def prune(self) -> list[Look]:
        """Of the sessions that have exited, keep the newest of each workspace; of all, those that matter most.

        An agent that dies without a word stays idle for ever: without the second bound such sessions would pile up.
        """
        looks = []
        table = tables.session
        for home, stamp in {**self._crowded(), **self._exited}.items():
            rank = case(KEPT_FIRST, value=table.c.state, else_=OTHERWISE)
            of_home = select(table).where(table.c.workspace_id == home)
            newest = (table.c.at_ms.desc(), table.c.id.desc())
            exited = of_home.where(table.c.state == "exited").order_by(*newest).offset(KEPT_SESSIONS)
            too_many = of_home.order_by(rank, *newest).offset(MOST_SESSIONS)
            found = [row for query in (exited, too_many) for row in self.tx.execute(query).mappings()]
            surplus = list({row["id"]: dict(row) for row in found}.values())
            if not surplus:
                continue
            row = self._rows["life", home, ""]
            floor = max(row["revision_floor"], *(old["revision"] + 1 for old in surplus))
            self.tx.execute(update(tables.workspace).where(tables.workspace.c.id == home).values(revision_floor=floor))
            ids = [old["id"] for old in surplus]
            self.tx.execute(delete(table).where(table.c.workspace_id == home, table.c.id.in_(ids)))
            looks += [session.gone(old, place_of(row, self.domain), stamp) for old in surplus]
        return looks

    def _crowded(self) -> dict[str, Stamp]:
        """The workspaces that got a session more than they may have, and when that was read."""
        got = {key[1]: stamp_of(self._rows[key]) for key in sorted(self._fresh) if key[0] == "session"}
        if not got:
            return {}
        home = tables.session.c.workspace_id
        crowded = select(home).where(home.in_(got)).group_by(home).having(func.count() > MOST_SESSIONS)
        return {name: got[name] for name in self.tx.scalars(crowded)}


def archived(row: dict[str, Any], stamp: Stamp, at_ms: int, producer: str) -> dict[str, Any]:
    """The workspace row, archived."""
    seen = observed(stamp, row["revision"] + 1, at_ms, "", None, producer)
    return {**row, "phase": "archived", **seen}


def _only_activity(row: Row, would: Row) -> bool:
    """Nothing but the time of the last output moved, and that was written a moment ago."""
    same = row["active"] == would["active"] and row["observed_clock"] == would["observed_clock"]
    return bool(same and would["observed_ended"] - row["observed_ended"] < ACTIVITY_NS)


def _write(tx: Connection, table: Table, keys: tuple[str, ...], made: Sequence[Row], changed: Sequence[Row]) -> None:
    if made:
        tx.execute(insert(table), [dict(row) for row in made])
    if changed:
        where: list[ColumnElement[bool]] = [table.c[key] == bindparam(f"at_{key}") for key in keys]
        values: dict[str, Any] = {c.name: bindparam(c.name) for c in table.columns if c.name not in keys}
        rows = [{**row, **{f"at_{key}": row[key] for key in keys}} for row in changed]
        tx.execute(update(table).where(*where).values(values), rows)
