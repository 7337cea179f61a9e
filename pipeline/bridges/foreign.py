"""What another tool's database says becomes facts about workspaces, and what changed in them becomes events. Pure.

Two steps, each a value: rows become a `Picture`, by a mapping or by a bridge of the tool's own, in which every value is
bounded and clean (`text`, `number`, `when` …); `plan` finds the workspace that each home is, and says what to tell.
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from msgspec import Struct

from pipeline.bridges.event import ID, MAX_INT, MAX_TEXT, WEB, Event, EventError, of
from pipeline.domain.model import KINDS, SESSION_PREFIX

Row = Mapping[str, Any]
Rows = Mapping[str, Sequence[Row]]

ARCHIVED: Final = "archived"
# What a group says once the tool has nothing on it any more; of the others the last word stands.
CLEARED: Final = ("pr", "ci")
OWN: Final = ":"
# Ids that sources which see the agent itself give it too.
_SHARED: Final = re.compile(SESSION_PREFIX + r"(claude|codex)-[0-9a-f-]{36}")
MOST_SESSIONS: Final = 20


class Fact(Struct, frozen=True):
    """What the tool says of one group. `at_ms`: since when; `seen_ms`: when the tool itself looked, if it says so."""

    fields: dict[str, Any]
    at_ms: int | None = None
    seen_ms: int | None = None


class Home(Struct, frozen=True):
    """One workspace of the tool. `project` is the tool's id; ``life`` is among the facts."""

    id: str
    project: str
    path: str | None
    facts: dict[str, Fact]

    @property
    def archived(self) -> bool:
        return self.facts["life"].fields.get("phase") == ARCHIVED


class Picture(Struct, frozen=True):
    """All that one reading found. `projects`: the tool's ids and their repositories. `complete`: there is no more."""

    projects: dict[str, str]
    homes: dict[str, Home]
    problems: list[str] = []
    complete: bool = True


class Native(NamedTuple):
    """How a tool's database is read: the columns that each table must have and may have, and what the rows mean."""

    needs: Mapping[str, tuple[str, ...]]
    may: Mapping[str, tuple[str, ...]]
    picture: Callable[[Rows], Picture]


# ── values ───────────────────────────────────────────────────────────────────────────────────────


def text(value: object) -> str | None:
    """Text that may be shown, cut to what an event may hold; ``None`` for nothing."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        value = str(value) if type(value) in (int, float) else ""
    clean = "".join(c if c.isprintable() else "\ufffd" for c in value[:MAX_TEXT].strip())
    return clean or None


def number(value: object, most: int = MAX_INT) -> int | None:
    """A count from 0 to `most`, from a number or its digits."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,16}", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= most else None


def flag(value: object) -> bool | None:
    """A boolean, however a database says it."""
    word = str(value).lower() if isinstance(value, str | int) else ""
    return True if word in ("1", "true", "t", "yes") else False if word in ("0", "false", "f", "no") else None


def when(value: object) -> int | None:
    """Milliseconds of the wall clock: from a number of them, or a date in ISO form; without a zone it is UTC."""
    if (ms := number(value)) is not None:
        return ms
    if isinstance(value, str) and len(value) <= 40:
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    try:
        return number(int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1000))
    except (OverflowError, ValueError):
        return None


def path(value: object) -> str | None:
    """An absolute path without detours."""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value or len(value) > MAX_TEXT:
        return None
    return os.path.normpath(value).replace("//", "/")


def url(value: object) -> str | None:
    link = text(value)
    return link if link and link.lower().startswith(WEB) else None


def ident(tool: str, name: str) -> str:
    """The id of what the tool calls `name`; a name that cannot stand in an id goes in as its fingerprint.

    The colon is in no id that comes from a path, and in no tool's name: what begins with it is the tool's own.
    """
    joined = f"{tool}{OWN}{name}"
    if ID.fullmatch(joined):
        return joined
    return f"{tool}{OWN}{blake2b(name.encode('utf-8', 'surrogatepass'), digest_size=8).hexdigest()}"


# ── whose workspace it is ────────────────────────────────────────────────────────────────────────


class Known(NamedTuple):
    """A workspace of the catalog."""

    id: str
    project: str
    incarnation: int
    path: str | None
    archived: bool


class Target(NamedTuple):
    """The workspace that a home is. `own`: it is there because the tool has it, not because git lists it."""

    id: str
    project: str
    incarnation: int
    own: bool


class Say(NamedTuple):
    """One event, where it goes, and the fact that is told by it."""

    event: Event
    target: Target
    group: str
    fact: Fact


class Plan(NamedTuple):
    """`agents`: all sessions that other sources see too, by id, each with its home; any other is said like a group.

    `gone`: own workspaces that the tool no longer has. `skipped`: homes of projects that nobody follows, and archived
    ones that there is no need to make.
    """

    says: list[Say]
    agents: dict[str, tuple[Home, Fact]]
    gone: list[Known]
    skipped: int
    problems: list[str]


# What was told of each workspace, in this incarnation of it.
Told = Mapping[tuple[str, int], Mapping[str, Fact]]


def plan(
    tool: str,
    picture: Picture,
    known: Sequence[Known],
    projects: Mapping[str, str],
    told: Told,
    real: Callable[[str], str] = str,
) -> Plan:
    """What to tell of this picture, after what was `told` already.

    A home is the live workspace at its path, else the workspace that was made for it, else the archived one at its
    path; failing that, it becomes a workspace of the project at its repository. `projects`: the followed ones, by path.
    `real`: a path as the catalog has it. A workspace that is archived stays so, unless this tool was seen to archive it
    and now says otherwise: its operator may have archived it by hand.
    """
    by_id = {one.id: one for one in known}
    by_path: dict[str, Known] = {}
    for one in sorted(known, key=lambda one: not one.archived):
        if one.path is not None:
            by_path[one.path] = one
    planned = Plan([], {}, [], 0, list(picture.problems))
    here: set[str] = set()
    skipped = 0
    for home in picture.homes.values():
        own_id = ident(tool, home.id)
        found = _found(by_path.get(real(home.path)) if home.path else None, by_id.get(own_id))
        project = projects.get(real(picture.projects.get(home.project, "")), "")
        if found is None and (home.archived or not project):
            skipped += 1
            continue
        if found is None:
            found = Known(own_id, project, 1, None, False)
        here.add(found.id)
        target = Target(found.id, found.project, found.incarnation, found.id == own_id)
        if not found.archived:
            _tell(planned, tool, home, target, told, real)
        elif not home.archived and _was_archived(target, told):
            _tell(planned, tool, home, target, {}, real)
    gone = [one for one in known if one.id.startswith(tool + OWN) and not one.archived and one.id not in here]
    return planned._replace(gone=gone if picture.complete else [], skipped=skipped)


def _tell(plan: Plan, tool: str, home: Home, target: Target, told: Told, real: Callable[[str], str]) -> None:
    before = told.get((target.id, target.incarnation), {})
    for group, fact in _said(tool, home, before).items():
        if _SHARED.fullmatch(group):
            plan.agents.setdefault(group.removeprefix(SESSION_PREFIX), (home, fact))
        elif before.get(group) != fact:
            try:
                plan.says.append(Say(_event(tool, target, home, group, fact, real), target, group, fact))
            except EventError as error:
                plan.problems.append(f"{home.id}: {error}")


def _said(tool: str, home: Home, before: Mapping[str, Fact]) -> dict[str, Fact]:
    """The groups of a home as they are to be told: sessions by their ids, and what is no more as cleared or ended."""
    if home.archived:
        return {"life": home.facts["life"]}
    said = {group: fact for group, fact in home.facts.items() if not group.startswith(SESSION_PREFIX)}
    sessions = [(group, fact) for group, fact in home.facts.items() if group.startswith(SESSION_PREFIX)]
    sessions.sort(key=lambda one: one[1].at_ms or 0, reverse=True)
    for group, fact in sessions[:MOST_SESSIONS]:
        name = group.removeprefix(SESSION_PREFIX)
        said[group if _SHARED.fullmatch(group) else SESSION_PREFIX + ident(tool, name)] = fact
    for group in before.keys() - said.keys():
        if group in CLEARED:
            said[group] = Fact(dict.fromkeys(KINDS[group].__struct_fields__))
        elif group.startswith(SESSION_PREFIX):
            said[group] = Fact({"state": "exited"})
    return said


def _found(at: Known | None, own: Known | None) -> Known | None:
    if at is not None and not at.archived:
        return at
    return own or at


def _was_archived(target: Target, told: Told) -> bool:
    last = told.get((target.id, target.incarnation), {}).get("life")
    return last is not None and last.fields.get("phase") == ARCHIVED


def _event(tool: str, target: Target, home: Home, group: str, fact: Fact, real: Callable[[str], str]) -> Event:
    fields = dict(fact.fields)
    if group == "life":
        if target.own and home.path:
            fields["path"] = real(home.path)
        if not target.own:
            # git knows better, and without a look from somebody else's database.
            fields = {name: value for name, value in fields.items() if name in ("name", "phase")}
        fields = {name: value for name, value in fields.items() if value is not None}
    return _checked(tool, target, group, fields)


def _checked(tool: str, target: Target, group: str, fields: Mapping[str, Any]) -> Event:
    return of(
        {"project": target.project, "workspace": target.id, "group": group, "fields": dict(fields), "source": tool}
    )
