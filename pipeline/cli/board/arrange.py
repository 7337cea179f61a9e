"""Which workspaces stand where: from what is held and what is looked for to the columns of the board. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, get_args

from pipeline.cli.board.words import Entry, branch_of, doing, part, plain, printable, sessions_of, status
from pipeline.domain.model import Column
from pipeline.domain.status import ATTENTION, WAITS, attention

COLUMNS: Final[tuple[str, ...]] = get_args(Column)
_KINDS: Final = {code: kind for kind, code in WAITS}


class Held(NamedTuple):
    """A project as the board knows it; `workspaces` is ``None`` before its first snapshot."""

    id: str
    name: str
    workspaces: Mapping[str, Any] | None


class Row(NamedTuple):
    """An entry with its place."""

    key: tuple[str, str]
    project: str
    entry: Entry
    at: float | None
    needs: bool
    rank: int
    column: str


class Arranged(NamedTuple):
    """`needs` has the most pressing first. `needed` counts in all projects, whatever is looked for; `total` are the
    workspaces before the search, `shown` those after it, `loading` the projects without a first snapshot."""

    columns: dict[str, list[Row]]
    needs: list[Row]
    needed: int
    total: int
    shown: int
    loading: int


class Arrangement:
    """Makes rows, the same ones again for entries that did not change."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], Row] = {}

    def arrange(self, held: Iterable[Held], project: str = "", search: str = "") -> Arranged:
        """The board for one project, or for all with an empty name."""
        terms = search.casefold().split()
        columns: dict[str, list[Row]] = {column: [] for column in COLUMNS}
        needs: list[Row] = []
        rows: dict[tuple[str, str], Row] = {}
        needed = total = shown = loading = 0
        for of in held:
            wanted = project in ("", of.id)
            if of.workspaces is None:
                loading += wanted
                continue
            for name, entry in of.workspaces.items():
                row = self._rows.get((of.id, name))
                if row is None or row.entry is not entry or row.project != of.name:
                    row = row_of(of, name, entry)
                rows[row.key] = row
                needed += row.needs
                if not wanted:
                    continue
                total += 1
                if terms and not _matches(row, terms):
                    continue
                shown += 1
                columns[row.column].append(row)
                if row.needs:
                    needs.append(row)
        self._rows = rows
        needs.sort(key=_most_pressing)
        for column, there in columns.items():
            there.sort(key=_needs_first if column == "waiting" else _newest_first)
        return Arranged(columns, needs, needed, total, shown, loading)


def row_of(of: Held, name: str, entry: Any) -> Row:
    entry = entry if isinstance(entry, Mapping) else {}
    now = part(entry, "status")
    column, rank = now.get("column"), attention(str(now.get("code")))
    return Row(
        key=(of.id, name),
        project=of.name,
        entry=entry,
        at=since(entry),
        needs=now.get("needs_user") is True,
        rank=len(ATTENTION) if rank is None else rank,
        column=column if column in COLUMNS else "waiting",
    )


def since(entry: Entry) -> float | None:
    """Since when it has been so, in milliseconds of the wall clock: as the deciding session says, else as the status
    does."""
    kind = _KINDS.get(str(part(entry, "status").get("code")))
    if kind is not None:
        sessions = part(entry, "sessions")
        waiting = (part(sessions, name) for name in sessions)
        told = [
            at
            for one in waiting
            if one.get("state") == "waiting" and (one.get("waiting_for") or "question") == kind
            if (at := moment(one)) is not None
        ]
        if told:
            return min(told)
    at = moment(part(entry, "status"))
    return moment(part(entry, "life")) if at is None else at


def moment(group: Entry) -> float | None:
    """When it became so; nothing that is no time."""
    at = group.get("changed_at")
    return float(at) if isinstance(at, int | float) and not isinstance(at, bool) and math.isfinite(at) else None


def _most_pressing(row: Row) -> tuple[int, float, tuple[str, str]]:
    return row.rank, math.inf if row.at is None else row.at, row.key


def _newest_first(row: Row) -> tuple[float, tuple[str, str]]:
    return -(row.at or 0), row.key


def _needs_first(row: Row) -> tuple[Any, ...]:
    return (0, *_most_pressing(row)) if row.needs else (1, *_newest_first(row))


def _matches(row: Row, terms: list[str]) -> bool:
    """Whether every word of the search is found in what the card says."""
    entry = row.entry
    code = part(entry, "status").get("code")
    pr = part(entry, "pr").get("number")
    told = [
        *(row.key[1], part(entry, "life").get("name"), branch_of(entry), status(code)[0], plain(code), row.project),
        *(part(entry, "git").get("operation"), None if pr is None else f"#{pr}"),
    ]
    for session in sessions_of(entry):
        told += [session.get("provider"), session.get("name"), session.get("model"), doing(session)[0]]
    text = "\n".join(printable(one) for one in told if one is not None).casefold()
    return all(term in text for term in terms)
