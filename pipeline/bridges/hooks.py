"""What a coding agent's hook says becomes the state of its session; what it says about the work is not even read.

Claude Code, Codex and Gemini CLI run hooks with much the same JSON: which session, in which folder, what happened. The
rules are the tables below. Of the JSON only the members in `KEPT` are taken out, each a short text: prompts, tool
inputs, results and messages stay behind in the body. Whoever sends hooks on uses the same list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw, Struct

from pipeline.bridges.event import ID, MAX_TEXT
from pipeline.domain.model import SESSION_PREFIX, SessionState, WaitingFor

AGENTS: Final = ("claude", "codex", "gemini")
HOOK: Final = "hook"  # the producer of what they tell
KEPT: Final = frozenset(
    {
        *("session_id", "thread-id", "cwd", "new_cwd", "old_cwd"),
        *("hook_event_name", "type", "source", "model", "tool_name", "notification_type", "agent_id"),
    }
)


LONGEST: Final = 4096  # what the kernel takes for a path


class Says(NamedTuple):
    """A state, or ``None`` for an event that tells only who it is.

    ``still``: no news to whoever knows already that it waits, and what for.
    """

    state: SessionState | None
    waiting_for: WaitingFor | None = None
    still: bool = False


IDLE, WORKING, EXITED, ERROR = Says("idle"), Says("working"), Says("exited"), Says("error")
QUESTION, PLAN, PERMISSION, AUTH = (Says("waiting", kind) for kind in ("question", "plan", "permission", "auth"))
NO_STATE: Final = Says(None)

# Codex took over Claude's names.
EVENTS: Final[Mapping[str, Says]] = {
    "SessionStart": IDLE,
    "UserPromptSubmit": WORKING,
    "PreToolUse": WORKING,
    "PostToolUse": WORKING,
    "PostToolUseFailure": WORKING,
    "PermissionRequest": PERMISSION,
    "PermissionDenied": WORKING,
    "Elicitation": QUESTION,
    "ElicitationResult": WORKING,
    "SubagentStart": WORKING,
    "SubagentStop": WORKING,
    "CwdChanged": WORKING,
    "Stop": IDLE,
    "Interrupt": IDLE,
    "StopFailure": ERROR,
    "SessionEnd": EXITED,
}
# The same under other names, by agent. Codex's `notify` has a type in place of an event's name.
ALSO: Final[Mapping[str, Mapping[str, str]]] = {
    "claude": {},
    "codex": {"agent-turn-complete": "Stop"},
    "gemini": {
        "BeforeAgent": "UserPromptSubmit",
        "AfterAgent": "Stop",
        "BeforeTool": "PreToolUse",
        "AfterTool": "PostToolUse",
    },
}
# Tools that do nothing but ask: from their start to their end the user is waited for.
ASKING: Final[Mapping[str, Says]] = {
    "AskUserQuestion": QUESTION,
    "ExitPlanMode": PLAN,
    "request_user_input": QUESTION,
    "ask_user": QUESTION,
    "exit_plan_mode": PLAN,
}
# A notification comes after the hook that knows what for, where there is one.
NOTIFICATIONS: Final[Mapping[str, Says]] = {
    "permission_prompt": PERMISSION._replace(still=True),
    "ToolPermission": PERMISSION._replace(still=True),
    "elicitation_dialog": QUESTION._replace(still=True),
    "elicitation_complete": WORKING,
    "elicitation_response": WORKING,
    "idle_prompt": IDLE,
    "auth_success": IDLE,
}


# What a session waits for ends with its user's word, and with what the agent that waits does next. The end of another
# tool of the same turn is no such thing: some run side by side.
PROMPTED: Final = "UserPromptSubmit"
ENDED: Final = frozenset({"PostToolUse", "PostToolUseFailure", "PermissionDenied"})


class Wait(NamedTuple):
    """Which agent of a session waits (``""``: the first; ``None``: that is not known), and with which tool.

    The catalog keeps it beside the session, so that any gateway knows what ends it.
    """

    by: str | None
    tool: str


class HookError(ValueError):
    """The sender's fault: this is no hook of that agent. `field` says where."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class Told(Struct, frozen=True):
    """What a hook says of its session: in which folder it is, and some of the fields of its group.

    `left`: the folder that it was in before. `still`: see `Says`. `by`: as `Wait` has it.
    `tool`: the tool that it is about; `ended`: which has ended. `prompted`: the user has spoken.
    """

    group: str
    cwd: str
    fields: dict[str, Any]
    left: str = ""
    still: bool = False
    by: str | None = ""
    tool: str = ""
    ended: bool = False
    prompted: bool = False

    @property
    def waits(self) -> bool:
        return self.fields.get("state") == "waiting"

    @property
    def wait(self) -> Wait | None:
        return Wait(self.by, self.tool) if self.waits else None

    def leaves(self, wait: Wait) -> bool:
        """Whether this wait goes on, whatever it is that happened beside it."""
        if self.still:
            return True
        if self.fields.get("state") != "working" or self.prompted or wait.by is None:
            return False
        other = "" not in (self.tool, wait.tool) and self.tool != wait.tool
        return self.by != wait.by or (self.ended and other)


def read(agent: str, body: bytes) -> Told | None:
    """The hook in this JSON; ``None`` if it says nothing of the session's state. Raises `HookError`."""
    hook = _kept(body)
    event = hook.get("hook_event_name") or hook.get("type", "")
    event = ALSO[agent].get(event, event)
    says = _says(event, hook)
    if says is None:
        return None
    session, cwd = hook.get("session_id") or hook.get("thread-id", ""), hook.get("new_cwd") or hook.get("cwd", "")
    named = f"{agent}-{session}"
    if not session or not ID.fullmatch(named):
        raise HookError("session_id", "is missing or no id")
    if not cwd.startswith("/"):
        raise HookError("cwd", "is missing or no absolute path")
    fields: dict[str, Any] = {"provider": agent}
    if len(hook.get("model", "")) in range(1, MAX_TEXT + 1):
        fields["model"] = hook["model"]
    if says.state is not None:
        fields |= {"state": says.state, "waiting_for": says.waiting_for, "crashed": False}
    return Told(
        group=SESSION_PREFIX + named,
        cwd=cwd,
        fields=fields,
        left=hook.get("old_cwd", ""),
        still=says.still,
        by=None if says.still else hook.get("agent_id", "")[:MAX_TEXT],
        tool=hook.get("tool_name", "")[:MAX_TEXT],
        ended=event in ENDED,
        prompted=event == PROMPTED,
    )


def _says(event: str, hook: Mapping[str, str]) -> Says | None:
    if event == "Notification":
        kind = hook.get("notification_type", "")
        return NOTIFICATIONS.get(kind) or (AUTH if kind.startswith("auth") else None)
    if event in ("PreToolUse", "PermissionRequest"):
        return ASKING.get(hook.get("tool_name", ""), EVENTS[event])
    if event == "SessionStart" and hook.get("source") == "compact":
        return NO_STATE  # in the middle of a turn, or not: it goes on as it was
    return EVENTS.get(event)


def _kept(body: bytes) -> dict[str, str]:
    try:
        members = msgspec.json.decode(body, type=dict[str, Raw])
    except msgspec.ValidationError:
        raise HookError("body", "is not a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError):  # what it says could quote the body
        raise HookError("body", "is not JSON") from None
    except RecursionError:
        raise HookError("body", "is nested too deeply") from None
    texts = {name: _text(members[name]) for name in KEPT & members.keys()}
    return {name: text for name, text in texts.items() if text}


def _text(raw: Raw) -> str:
    """A text that can be shown, or nothing: another release of the agent may put something else there."""
    try:
        text = msgspec.json.decode(raw, type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""
    return text if text.isprintable() and len(text) <= LONGEST else ""
