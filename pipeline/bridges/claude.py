"""What Claude Code writes of its sessions, and what of it concerns us: never a prompt, a message or a tool's input.

Two formats. The *registry* has a file for each running session, which the session rewrites as its status changes. A
*transcript* is a line for each message; it tells of the state only by what came last. Both change between releases,
so whatever is not known is passed over, and a status that is not known is ``unknown``, which is not nothing.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from pipeline.bridges.times import time_ms
from pipeline.domain.model import Session, SessionState, WaitingFor

PREFIX: Final = "claude-"
PROVIDER: Final = "claude"

# shell: idle, with a shell command that goes on in the background.
STATES: Final[dict[str, SessionState]] = {"busy": "working", "shell": "idle", "idle": "idle", "waiting": "waiting"}
# Tools that do nothing but ask the user.
ASKING: Final[dict[str, WaitingFor]] = {"AskUserQuestion": "question", "ExitPlanMode": "plan"}
# How a turn that was stopped by the user is noted, in the place of what he would have said.
INTERRUPTED: Final = "[Request interrupted by user"
# What the program itself notes: the output of a command that only it has run, after which it is the user's turn.
COMMAND_ENDED: Final = ("<local-command-stdout>", "<local-command-stderr>", "<bash-stdout>", "<bash-stderr>")
SYNTHETIC: Final = "<synthetic>"


class Registered(Struct, frozen=True):
    """A registry entry. `started`: field 22 of the process's stat, if the entry has it. `at_ms`: of the status."""

    pid: int
    started: int | None
    session: str
    cwd: str
    fields: Session
    at_ms: int | None


class _Entry(Struct):
    pid: int
    sessionId: str
    cwd: str
    procStart: Any = None
    status: Any = None
    waitingFor: Any = None
    name: Any = None
    statusUpdatedAt: Any = None
    updatedAt: Any = None


def registered(body: bytes) -> Registered | None:
    """A registry file's entry; ``None`` if it is none. Sessions of the SDK have no status: their state is not known."""
    try:
        entry = msgspec.json.decode(body, type=_Entry)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    state: SessionState | None = None
    if entry.status is not None:
        state = STATES.get(entry.status, "unknown") if isinstance(entry.status, str) else "unknown"
    waiting_for = asked_for(entry.waitingFor) if state == "waiting" else None
    name = entry.name if isinstance(entry.name, str) and entry.name else None
    fields = Session(provider=PROVIDER, name=name, state=state, waiting_for=waiting_for)
    return Registered(entry.pid, _ticks(entry.procStart), PREFIX + entry.sessionId, entry.cwd, fields, _ms(entry))


def asked_for(words: Any) -> WaitingFor:
    """What a session waits for, told in words that differ between releases."""
    text = words.lower() if isinstance(words, str) else ""
    if "plan" in text:
        return "plan"
    if "question" in text or "input" in text or "elicit" in text or "dialog" in text:
        return "question"
    if "auth" in text or "login" in text or "sign" in text:
        return "auth"
    return "permission"


def _ticks(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value if type(value) is int else None


def _ms(entry: _Entry) -> int | None:
    # Most releases date the entry as a whole, whenever they write its status. A date without a status dates nothing.
    at = entry.updatedAt if entry.statusUpdatedAt is None and entry.status is not None else entry.statusUpdatedAt
    if isinstance(at, str):
        return time_ms(at)
    return int(at) if type(at) in (int, float) and 0 < at < 2**53 else None


# ── transcripts ──────────────────────────────────────────────────────────────────────────────────


class Reading(Struct):
    """What the lines of a transcript come to, in order."""

    session: str = ""
    cwd: str = ""
    state: SessionState | None = None
    waiting_for: WaitingFor | None = None
    model: str | None = None
    at_ms: int | None = None

    def fields(self) -> Session:
        return Session(provider=PROVIDER, model=self.model, state=self.state or "unknown", waiting_for=self.waiting_for)


class _Message(Struct):
    model: Any = None
    stop_reason: Any = None
    content: Any = None


class _Line(Struct):
    type: Any = None
    sessionId: Any = None
    cwd: Any = None
    timestamp: Any = None
    isSidechain: Any = None
    isMeta: Any = None
    isCompactSummary: Any = None
    isApiErrorMessage: Any = None
    message: Any = None


_decoder = msgspec.json.Decoder(_Line)


def read(reading: Reading, line: bytes) -> bool:
    """Take one line into the reading; true if it said anything of the session."""
    try:
        found = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    if found.isSidechain is True:
        return False  # a subagent's, whose parent is at work anyway
    if isinstance(found.sessionId, str) and found.sessionId:
        reading.session = PREFIX + found.sessionId
    if isinstance(found.cwd, str) and found.cwd.startswith("/"):
        reading.cwd = found.cwd
    said = _state(reading, found)
    if said and isinstance(found.timestamp, str) and (at := time_ms(found.timestamp)) is not None:
        reading.at_ms = at
    return said


def _state(reading: Reading, line: _Line) -> bool:
    try:
        message = msgspec.convert(line.message, _Message) if isinstance(line.message, dict) else _Message()
    except msgspec.ValidationError:
        return False
    content = message.content
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    if line.type == "user":
        if line.isMeta is True or line.isCompactSummary is True:
            return False  # the program's own remarks
        texts = [content] if isinstance(content, str) else [block.get("text") for block in blocks]
        over = any(isinstance(text, str) and text.startswith((INTERRUPTED, *COMMAND_ENDED)) for text in texts)
        reading.state, reading.waiting_for = ("idle" if over else "working"), None
        return True
    if line.type != "assistant":
        return False
    if line.isApiErrorMessage is True:
        reading.state, reading.waiting_for = "error", None
        return True
    if isinstance(message.model, str) and message.model and message.model != SYNTHETIC:
        reading.model = message.model
    asking = [ASKING[name] for block in blocks if (name := _tool(block)) in ASKING]
    if asking:
        reading.state, reading.waiting_for = "waiting", asking[-1]
    elif message.stop_reason in (None, "tool_use", "pause_turn"):
        reading.state, reading.waiting_for = "working", None
    else:
        reading.state, reading.waiting_for = "idle", None
    return True


def _tool(block: dict[str, Any]) -> str:
    name = block.get("name")
    return name if block.get("type") == "tool_use" and isinstance(name, str) else ""


def slug(path: str) -> str:
    """The name of the folder in which the transcripts of a folder's sessions lie. Several folders may have one name."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in path)
