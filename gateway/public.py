"""What may leave: the groups and fields of the model, and nothing else whoever put it there.

A replica holds public state only, so nothing should ever have to be taken out. If something has (an aggregator of
another release, or a mistake), it is left out of states and patches alike, and the hash is that of what is left.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from pipeline import wire
from pipeline.domain.model import KINDS, Group, Look, Status, kind_of

# `changed_at`: wall clock, milliseconds, at which the group last changed; for display only.
_GROUPS: Final[Mapping[str, type[Group]]] = {**KINDS, "status": Status}
ALLOWED: Final = {kind: frozenset((*group.__struct_fields__, "changed_at")) for kind, group in _GROUPS.items()}
SESSIONS: Final = "sessions"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._: -]{0,79}")

Patch = Mapping[str, Any]


def is_clean(patch: Patch) -> bool:
    """Whether a state or patch over workspaces holds nothing but public fields."""
    return all(entry is None or _is_clean(entry) for entry in patch.values())


def _is_clean(entry: Mapping[str, Any]) -> bool:
    session = ALLOWED["session"]
    for group, fields in entry.items():
        if group == SESSIONS:
            if fields and not all(one is None or session.issuperset(one) for one in fields.values()):
                return False
        elif (
            group not in ALLOWED or group == "session" or (fields is not None and not ALLOWED[group].issuperset(fields))
        ):
            return False
    return True


def clean(patch: Patch) -> dict[str, Any]:
    """The same without what is not public."""
    return {workspace: None if entry is None else clean_entry(entry) for workspace, entry in patch.items()}


def clean_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for group, fields in entry.items():
        if group == SESSIONS:
            kept[group] = fields and {name: _fields("session", one) for name, one in fields.items()}
        elif group in ALLOWED and group != "session":
            kept[group] = _fields(group, fields)
    return kept


def _fields(kind: str, fields: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if fields is None else {name: value for name, value in fields.items() if name in ALLOWED[kind]}


# ── explain ──────────────────────────────────────────────────────────────────────────────────────


def explained(answer: wire.Explained, now_ns: int, clock: str) -> dict[str, Any]:
    """Why the values are what they are. Readings are dated by their age: the host's clock is nobody's business."""
    return {
        "project": answer.project,
        "workspace": answer.workspace,
        "version": answer.version,
        "state": clean_entry(answer.state),
        "groups": {
            group: [_ruled(ruled, now_ns, clock) for ruled in rulings]
            for group, rulings in answer.rulings.items()
            if kind_of(group) in ALLOWED
        },
    }


def _ruled(ruled: wire.Ruled, now_ns: int, clock: str) -> dict[str, Any]:
    look = ruled.look
    told = {
        "verdict": ruled.verdict,
        "cause": ruled.cause,
        "times": ruled.times,
        "at_ms": ruled.wall_ms,
        "source": look.source,
        "producer": look.producer if _NAME.fullmatch(look.producer) else None,
        "value": _value(look),
        "interval": None,
        "incarnation": look.incarnation,
        "seq": look.seq,
        "revision": look.revision,
    }
    if look.stamp.clock == clock:
        told["interval"] = {
            "began_ms_ago": _ago_ms(now_ns, look.stamp.began),
            "ended_ms_ago": _ago_ms(now_ns, look.stamp.ended),
        }
    return {name: value for name, value in told.items() if value is not None or name in ("value", "interval")}


def _ago_ms(now_ns: int, then_ns: int) -> float:
    return round((now_ns - then_ns) / 1e6, 3)


def _value(look: Look) -> dict[str, Any] | None:
    value: Group | None = look.value
    if value is None:
        return None
    fields = msgspec.to_builtins(value)
    return {name: fields[name] for name in fields if name in ALLOWED[kind_of(look.group)]}
