"""What Codex writes of its sessions, a *rollout* with a line for each event, and what of it concerns us.

That it waits for an approval is not written: such a session reads as working until its hook or its user says more.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from pipeline.bridges.times import time_ms
from pipeline.domain.model import Session, SessionState

PREFIX: Final = "codex-"
PROVIDER: Final = "codex"

# Events were renamed from task to turn.
EVENTS: Final[dict[str, SessionState]] = {
    "task_started": "working",
    "turn_started": "working",
    "task_complete": "idle",
    "turn_complete": "idle",
    "turn_aborted": "idle",
    "error": "error",
    "stream_error": "working",  # it tries again by itself
}


class Reading(Struct):
    """What the lines of a rollout come to, in order."""

    session: str = ""
    cwd: str = ""
    state: SessionState | None = None
    model: str | None = None
    at_ms: int | None = None

    def fields(self) -> Session:
        return Session(provider=PROVIDER, model=self.model, state=self.state or "unknown")


class _Payload(Struct):
    type: Any = None
    id: Any = None
    cwd: Any = None
    model: Any = None


class _Line(Struct):
    type: Any = None
    timestamp: Any = None
    payload: _Payload | None = None


_decoder = msgspec.json.Decoder(_Line)


def read(reading: Reading, line: bytes) -> bool:
    """Take one line into the reading; true if it said anything of the session."""
    try:
        found = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    payload = found.payload
    if payload is None:
        return False
    if found.type == "session_meta":
        if reading.session:
            return False  # a rollout that goes on from another one repeats the other's
        if isinstance(payload.id, str) and payload.id:
            reading.session = PREFIX + payload.id
        _turn(reading, payload)
        reading.state = "idle"
    elif found.type == "turn_context":
        _turn(reading, payload)
        return False
    elif found.type == "event_msg" and isinstance(payload.type, str) and payload.type in EVENTS:
        reading.state = EVENTS[payload.type]
    else:
        return False
    if isinstance(found.timestamp, str) and (at := time_ms(found.timestamp)) is not None:
        reading.at_ms = at
    return True


def _turn(reading: Reading, payload: _Payload) -> None:
    if isinstance(payload.cwd, str) and payload.cwd.startswith("/"):
        reading.cwd = payload.cwd
    if isinstance(payload.model, str) and payload.model:
        reading.model = payload.model
