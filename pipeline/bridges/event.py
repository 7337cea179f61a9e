"""The body of ``POST /v1/events`` becomes a checked event, or an error that names the field."""

from __future__ import annotations

import re
from typing import Any, Final, get_args, get_type_hints

import msgspec
from msgspec import Struct

from pipeline.domain.model import KINDS, SESSION_PREFIX, Stamp, kind_of

ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,79}")
MAX_TEXT: Final = 512
MAX_INT: Final = 2**53 - 1
MAX_AGE_MS: Final = 24 * 3600 * 1000
MAX_PORT: Final = 65535
WEB: Final = ("http://", "https://")

REPORTED: Final = ("life", "pr", "ci", "ratchet", "terminal", "run", "session")
NOT_REPORTED: Final = {
    "git": "git is measured by treewire; it cannot be reported",
    "status": "status is derived by treewire from the other groups; report those",
}

# Fields that a client may report and nobody is shown: they place the value, or say what ends it, and are no part of it.
PLACING: Final[dict[str, dict[str, type]]] = {
    "life": {"path": str},
    "pr": {"head": str},
    "ci": {"pr": int, "head": str},
    "session": {"waiting_by": str, "waiting_tool": str},
}


class EventError(ValueError):
    """The client's fault. `path` names the field, `problem` says what is wrong with it."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class Event(Struct, frozen=True, forbid_unknown_fields=True):
    """Something that its source saw happen, `age_ms` ago, to one group of one workspace.

    `fields` may be partial: an absent field stays as it is, ``None`` clears it. `seq` counts within `run`
    (or within `source`, if the source has no runs); it orders events better than any clock.
    """

    project: str
    workspace: str
    group: str
    fields: dict[str, Any]
    age_ms: int = 0
    seq: int | None = None
    source: str = ""
    run: str = ""


def parse(body: bytes | str) -> Event:
    """Decode and check one JSON body. Raises `EventError`."""
    try:
        return _checked(msgspec.json.decode(body, type=Event))
    except msgspec.ValidationError as error:
        raise _from_msgspec(error, "") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EventError("body", f"is not JSON: {error}") from None
    except RecursionError:
        raise EventError("body", "is nested too deeply") from None


def of(native: object) -> Event:
    """Check an event that is already decoded: a mapping with the fields of `Event`. Raises `EventError`."""
    try:
        return _checked(msgspec.convert(native, Event))
    except msgspec.ValidationError as error:
        raise _from_msgspec(error, "") from None


def event_stamp(age_ms: int, now_ns: int, clock: str) -> Stamp:
    """The instant of an event that happened `age_ms` before `now_ns`: its source witnessed it."""
    at = max(0, now_ns - age_ms * 1_000_000)
    return Stamp(at, at, clock)


def _checked(event: Event) -> Event:
    for name in ("project", "workspace"):
        _check_id(name, getattr(event, name))
    kind = kind_of(event.group)
    if kind in NOT_REPORTED:
        raise EventError("group", NOT_REPORTED[kind])
    if kind not in REPORTED or event.group == "session":
        raise EventError("group", f"is not one of {', '.join(REPORTED[:-1])}, session:<id>")
    if kind == "session":
        _check_id("group", event.group.removeprefix(SESSION_PREFIX))
    _check_int("age_ms", event.age_ms, MAX_AGE_MS)
    if event.seq is not None:
        _check_int("seq", event.seq)
        if not (event.run or event.source):
            raise EventError("seq", "counts within a run: name the run or the source as well")
    for name in ("source", "run"):
        _check_text(name, getattr(event, name))
    _check_fields(kind, event.fields)
    return event


def _check_fields(kind: str, fields: dict[str, Any]) -> None:
    placing = PLACING.get(kind, {})
    public = {}
    for name, value in fields.items():
        if name in placing:
            if value is not None and type(value) is not placing[name]:
                raise EventError(f"fields.{name}", f"Expected `{placing[name].__name__} | null`")
        elif name not in KINDS[kind].__struct_fields__:
            _check_text("fields", name)
            known = ", ".join((*KINDS[kind].__struct_fields__, *placing))
            raise EventError(f"fields.{name}", f"is not a field of {kind}; those are {known}")
        else:
            public[name] = value
    try:
        msgspec.convert(public, KINDS[kind])
    except msgspec.ValidationError as error:
        found = _from_msgspec(error, "fields")
        raise EventError(found.path, found.problem + _instead(kind, found.path.removeprefix("fields."))) from None
    for name, value in fields.items():
        if type(value) is int:
            _check_int(f"fields.{name}", value, MAX_PORT if (kind, name) == ("run", "port") else MAX_INT)
        elif type(value) is str:
            _check_text(f"fields.{name}", value)
    path = fields.get("path") if "path" in placing else None
    if path is not None and not path.startswith("/"):
        raise EventError("fields.path", "is not an absolute path")
    # It becomes a link on the page, where any other scheme could run something.
    url = fields.get("url") if kind == "pr" else None
    if url is not None and not url.lower().startswith(WEB):
        raise EventError("fields.url", "does not begin with http:// or https://")


def _check_id(where: str, text: str) -> None:
    if not ID.fullmatch(text):
        raise EventError(where, "is not an id: a letter or digit, then at most 79 letters, digits or any of . _ : -")


def _check_int(where: str, number: int, most: int = MAX_INT) -> None:
    if not 0 <= number <= most:
        raise EventError(where, f"is not between 0 and {most}")


def _check_text(where: str, text: str) -> None:
    if len(text) > MAX_TEXT:
        raise EventError(where, f"is longer than {MAX_TEXT} characters")
    if any(c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in text):
        raise EventError(where, "holds a control character or half of a surrogate pair")


def _instead(kind: str, field: str) -> str:
    """The values that a field may have, if they can be counted."""
    kinds: tuple[Any, ...] = get_args(get_type_hints(KINDS[kind]).get(field))
    known = [value for one in kinds for value in get_args(one)]
    return f"; it is one of {', '.join(known)}" if known else ""


def _from_msgspec(error: msgspec.ValidationError, prefix: str) -> EventError:
    """msgspec says ``Expected `int` - at `$.age_ms```; we say it the other way round."""
    problem, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`").lstrip(".")
    return EventError(".".join(part for part in (prefix, path) if part) or "body", problem)
