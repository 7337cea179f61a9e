"""What Codex writes of its sessions, a *rollout* with a line for each event, and what of it concerns us.

That it waits for an approval is not written: such a session reads as working until its hook or its user says more. A
question to the user is a tool call like others, and is written. Each subagent has a rollout of its own, which says that
it is one: its parent is at work anyway, so nothing is read there.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from pipeline.bridges.times import time_ms
from pipeline.domain.model import Session, SessionState, WaitingFor

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
CALLS: Final = ("function_call", "custom_tool_call")
ANSWERS: Final = ("function_call_output", "custom_tool_call_output")
ASKING: Final = "request_user_input"
SUBAGENT: Final = "subagent"


class Reading(Struct):
    """What the lines of a rollout come to, in order."""

    session: str = ""
    cwd: str = ""
    state: SessionState | None = None
    waiting_for: WaitingFor | None = None
    model: str | None = None
    at_ms: int | None = None
    asked: str = ""  # the call that is a question to the user
    foreign: bool = False  # a subagent's

    def fields(self) -> Session:
        return Session(provider=PROVIDER, model=self.model, state=self.state or "unknown", waiting_for=self.waiting_for)


class _Payload(Struct):
    type: Any = None
    id: Any = None
    cwd: Any = None
    model: Any = None
    name: Any = None
    call_id: Any = None
    source: Any = None
    thread_source: Any = None


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
    if payload is None or reading.foreign:
        return False
    if found.type == "session_meta":
        if reading.session:
            return False  # a rollout that goes on from another one repeats the other's
        if _subagents(payload):
            reading.foreign = True
            return False
        if isinstance(payload.id, str) and payload.id:
            reading.session = PREFIX + payload.id
        _turn(reading, payload)
        reading.state = "idle"
    elif found.type == "turn_context":
        _turn(reading, payload)
        return False
    elif found.type == "event_msg" and isinstance(payload.type, str) and payload.type in EVENTS:
        reading.state, reading.waiting_for, reading.asked = EVENTS[payload.type], None, ""
    elif found.type != "response_item" or not _asked(reading, payload):
        return False
    if isinstance(found.timestamp, str) and (at := time_ms(found.timestamp)) is not None:
        reading.at_ms = at
    return True


def _subagents(payload: _Payload) -> bool:
    """Whether the rollout is a subagent's: said in two ways, of which releases have one or both."""
    by_source = isinstance(payload.source, dict) and SUBAGENT in payload.source
    return by_source or payload.thread_source == SUBAGENT


def _asked(reading: Reading, payload: _Payload) -> bool:
    """Whether this is a question to the user, or its answer. A turn may make other calls beside it."""
    call = payload.call_id if isinstance(payload.call_id, str) else ""
    if payload.type in CALLS and payload.name == ASKING:
        reading.state, reading.waiting_for, reading.asked = "waiting", "question", call
        return True
    if payload.type in ANSWERS and reading.state == "waiting" and call == reading.asked:
        reading.state, reading.waiting_for, reading.asked = "working", None, ""
        return True
    return False


def _turn(reading: Reading, payload: _Payload) -> None:
    if isinstance(payload.cwd, str) and payload.cwd.startswith("/"):
        reading.cwd = payload.cwd
    if isinstance(payload.model, str) and payload.model:
        reading.model = payload.model
