"""What the values of an entry are called on the board in a terminal, and which colour speaks of them. Pure.

The words are those of the page (`gateway/web/words.js`); a test compares them. Entries are taken as they come: what a
later server says in another form is shown as unknown, and breaks nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

Tone = Literal["fail", "call", "work", "good", "done", "calm"]
Entry = Mapping[str, Any]

# What a status is called, and why it is so.
CODES: Final[dict[str, tuple[str, str]]] = {
    "merged": ("merged", "the pull request is merged"),
    "pr_closed": ("PR closed", "the pull request was closed"),
    "needs_plan_approval": ("approve plan", "an agent waits for its plan to be approved"),
    "needs_answer": ("answer question", "an agent waits for an answer"),
    "needs_permission": ("give permission", "an agent waits for a permission"),
    "needs_auth": ("sign in", "an agent waits for somebody to sign in"),
    "session_error": ("agent failed", "an agent reported an error, or ended although nobody ended it"),
    "setting_up": ("setting up", "the workspace is being set up"),
    "setup_failed": ("setup failed", "the workspace could not be set up"),
    "agent_working": ("working", "an agent works"),
    "starting_session": ("starting", "an agent is being started"),
    "auto_iterating": ("iterating", "an automatic iteration is running"),
    "ratchet_stalled": ("ratchet stalled", "the ratchet is on and cannot go on by itself"),
    "fixing_merge_conflict": ("fixing conflict", "the pull request conflicts, and the ratchet mends it"),
    "merge_conflict": ("resolve conflict", "the pull request conflicts with its base, and no ratchet is on"),
    "waiting_for_ci": ("waiting for CI", "the pull request is open, and its checks are not through"),
    "fixing_review_comments": ("fixing review", "the ratchet works on review comments"),
    "fixing_ci_failures": ("fixing CI", "checks failed, and the ratchet mends them"),
    "ci_failed": ("fix CI", "checks of the pull request failed, and no ratchet is on"),
    "checking_pr": ("checking PR", "the checks pass, and the ratchet has still to see it"),
    "ready_to_merge": ("ready to merge", "the pull request is open and its checks passed"),
    "ready_for_review": ("ready for review", "the pull request is open, and no check speaks against it"),
    "session_unknown": ("unknown", "nothing was heard of an agent for too long"),
    "no_session_started": ("no agent yet", "no agent has been started here"),
    "ready_for_next_prompt": ("idle", "agents have been here, and none works now"),
}
# Groups that a status follows from, most deciding first; of those that are not here, from the agents.
FOLLOWS: Final[dict[str, tuple[str, ...]]] = {
    "merged": ("pr",),
    "pr_closed": ("pr",),
    "setting_up": ("life",),
    "setup_failed": ("life",),
    "auto_iterating": ("ratchet",),
    "ratchet_stalled": ("ratchet", "pr"),
    "fixing_merge_conflict": ("pr", "ratchet"),
    "merge_conflict": ("pr", "ratchet"),
    "waiting_for_ci": ("ci", "pr"),
    "fixing_review_comments": ("ratchet", "pr"),
    "fixing_ci_failures": ("ci", "ratchet"),
    "ci_failed": ("ci", "pr"),
    "checking_pr": ("ratchet", "ci"),
    "ready_to_merge": ("ci", "pr"),
    "ready_for_review": ("pr", "ci"),
}
PARTS: Final = {
    "aggregator": "The aggregator is not heard of: what you see is the last that was known.",
    "database": "The database cannot be used: new events are refused, what is known stays.",
    "reconciler": "No census is taken: what events missed is not put right.",
    "git": "Worktrees are not measured: changes, ahead and behind may be old.",
    "sources": "Worktrees are not discovered: new ones do not appear.",
}
_FAILURES: Final = frozenset({"session_error", "setup_failed", "ratchet_stalled", "merge_conflict", "ci_failed"})
_SESSIONS: Final = ("waiting", "error", "working", "starting", "unknown", "idle", "exited")
_WAITS_FOR: Final = {"auth": "sign-in", "plan": "plan approval", None: "an answer"}
_STATES: Final[dict[str, Tone]] = {"working": "work", "starting": "work", "error": "fail"}


def printable(text: object) -> str:
    """Names come from anywhere, and a terminal obeys what it is shown."""
    return "".join(char if char.isprintable() else "�" for char in str(text))


def plain(code: object) -> str:
    """``needs_plan_approval`` and the like, where there is no better word."""
    return printable("unknown" if code is None else code).replace("_", " ")


def part(entry: Entry, name: str) -> Entry:
    """One group of an entry, or one session; empty if it is not known."""
    found = entry.get(name)
    return found if isinstance(found, Mapping) else {}


def number(group: Entry, name: str) -> int | None:
    found = group.get(name)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def status(code: object) -> tuple[str, str, tuple[str, ...]]:
    """What a status is called, why it is so, and the groups that it follows from."""
    known = CODES.get(code) if isinstance(code, str) else None
    if known is None:
        return plain(code), f"this board does not know the status {plain(code)}", ()
    return *known, FOLLOWS.get(str(code), ("session",))


def tone(of: Entry) -> Tone:
    """The colour of a status."""
    code = str(of.get("code"))
    if code in _FAILURES:
        return "fail"
    if code in ("ready_to_merge", "ready_for_review"):
        return "good"
    if of.get("needs_user") is True:
        return "call"
    if of.get("column") == "working":
        return "work"
    return "done" if code == "merged" else "calm"


def title(id_: str, entry: Entry) -> str:
    return printable(part(entry, "life").get("name") or id_)


def branch_of(entry: Entry) -> str | None:
    found = part(entry, "git").get("branch") or part(entry, "life").get("branch")
    return None if found is None else printable(found)


def sessions_of(entry: Entry) -> list[Entry]:
    """The most pressing first."""
    sessions = part(entry, "sessions")

    def rank(name: str) -> tuple[int, str]:
        one = part(sessions, name)
        state = one.get("state")
        return 1 if one.get("crashed") else _SESSIONS.index(state) if state in _SESSIONS else len(_SESSIONS), name

    return [part(sessions, name) for name in sorted(sessions, key=rank)]


def doing(session: Entry) -> tuple[str, Tone]:
    """What an agent does, in words, and the colour for it."""
    if session.get("crashed"):
        return "crashed", "fail"
    state, kind = session.get("state"), session.get("waiting_for")
    if state == "waiting":
        known = kind is None or isinstance(kind, str)
        return f"waits for {(_WAITS_FOR.get(kind) if known else None) or plain(kind)}", "call"
    return plain(state), _STATES.get(str(state), "calm")


def agent(session: Entry) -> str:
    return printable(session.get("provider") or session.get("name") or "agent")


def age(then_ms: float, now_ms: float) -> str:
    """Seconds, minutes, hours or days: what a glance needs."""
    seconds = max(0, int((now_ms - then_ms) / 1000))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def count(many: int, one: str, more: str = "") -> str:
    return f"{many:,} {one if many == 1 else more or one + 's'}"


def ailing(health: Entry) -> list[tuple[str, str, str]]:
    """Each part that is not well: what it is called, how it does, and what that means for who looks at the board."""
    told: list[tuple[str, str, str]] = []
    for name, state in health.items():
        if isinstance(state, Mapping):
            told += ailing(state)
        elif state != "ok":
            told.append((plain(name), plain(state), PARTS.get(name, "")))
    return told
