"""Derived status: why a workspace stands where it stands. Pure, total, no clock.

The rows of `TABLE` are in order of precedence. `code` picks the first one that holds; the row then decides
the column and whether the user is needed. A timeout never decides here: a timeout is an observation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from pipeline.domain.model import Ci, Column, Life, Pr, Ratchet, Session, Status


class Row(NamedTuple):
    column: Column | None
    needs_user: bool


TABLE: Final[dict[str, Row]] = {
    "archiving": Row(None, False),
    "archived": Row(None, False),
    "merged": Row("done", False),
    "pr_closed": Row("done", False),
    "needs_plan_approval": Row("waiting", True),
    "needs_answer": Row("waiting", True),
    "needs_permission": Row("waiting", True),
    "needs_auth": Row("waiting", True),
    "session_error": Row("waiting", True),
    "setting_up": Row("working", False),
    "setup_failed": Row("waiting", True),
    "agent_working": Row("working", False),
    "starting_session": Row("working", False),
    "auto_iterating": Row("working", False),
    "ratchet_stalled": Row("waiting", True),
    "fixing_merge_conflict": Row("working", False),
    "merge_conflict": Row("waiting", True),
    "waiting_for_ci": Row("working", False),
    "fixing_review_comments": Row("working", False),
    "fixing_ci_failures": Row("working", False),
    "ci_failed": Row("waiting", True),
    "checking_pr": Row("working", False),
    "ready_to_merge": Row("waiting", True),
    "ready_for_review": Row("waiting", False),
    "session_unknown": Row("waiting", False),
    "no_session_started": Row("waiting", False),
    "ready_for_next_prompt": Row("waiting", False),
}

# What a waiting session waits for, most pressing first.
WAITS: Final = (
    ("plan", "needs_plan_approval"),
    ("question", "needs_answer"),
    ("permission", "needs_permission"),
    ("auth", "needs_auth"),
)

# What needs the user, most pressing first; within a kind the older one comes first.
ATTENTION: Final = (
    ("session_error", "setup_failed"),
    ("needs_permission",),
    ("needs_plan_approval",),
    ("needs_answer", "needs_auth"),
    ("merge_conflict", "ci_failed", "ratchet_stalled"),
    ("ready_to_merge",),
)
_RANK: Final = {code: rank for rank, codes in enumerate(ATTENTION) for code in codes}

# Groups that status depends on; a look at any other group leaves it as it is.
INPUTS: Final = frozenset({"life", "pr", "ci", "ratchet"})

_NO_LIFE: Final = Life()
_NO_RATCHET: Final = Ratchet()
_ROWS: Final = {code: Status(code=code, column=row.column, needs_user=row.needs_user) for code, row in TABLE.items()}


def derive(groups: Mapping[str, Any]) -> Status:
    """The status of a workspace that holds these groups (each session a group of its own).

    Checks of another pull request or head never get here: the store refuses them (``wrong_key``).
    """
    return _ROWS[_code(groups)]


def _code(groups: Mapping[str, Any]) -> str:
    get = groups.get
    phase: str = get("life", _NO_LIFE).phase
    pr = get("pr")
    if phase == "archiving" or phase == "archived":
        return phase
    if pr is not None:
        if pr.state == "merged":
            return "merged"
        if pr.state == "closed":
            return "pr_closed"
    states = [value.state for value in groups.values() if type(value) is Session]
    if "waiting" in states:
        return _waiting(_sessions(groups))
    if "error" in states or ("exited" in states and any(s.crashed for s in _sessions(groups) if s.state == "exited")):
        return "session_error"
    if phase == "new" or phase == "provisioning":
        return "setting_up"
    if phase == "failed":
        return "setup_failed"
    if "working" in states:
        return "agent_working"
    if "starting" in states:
        return "starting_session"
    ratchet = get("ratchet", _NO_RATCHET)
    if ratchet.iterating:
        return "auto_iterating"
    if pr is not None and (pr.state == "open" or pr.state == "draft"):
        return _open_pr(pr, get("ci"), ratchet)
    if "unknown" in states:
        return "session_unknown"
    return "ready_for_next_prompt" if states else "no_session_started"


def _sessions(groups: Mapping[str, Any]) -> Iterable[Session]:
    return (value for value in groups.values() if type(value) is Session)


def _waiting(sessions: Iterable[Session]) -> str:
    kinds = {session.waiting_for for session in sessions if session.state == "waiting"}
    for kind, code in WAITS:
        if kind in kinds:
            return code
    return "needs_answer"  # it waits and does not say for what: the user has to look


def _open_pr(pr: Pr, ci: Ci | None, ratchet: Ratchet) -> str:
    on = bool(ratchet.enabled)
    if on and ratchet.stalled:
        return "ratchet_stalled"
    if pr.mergeable == "conflicting":
        return "fixing_merge_conflict" if on else "merge_conflict"
    checks = None if ci is None else ci.state
    if checks is None or checks == "pending":
        return "waiting_for_ci"
    if on and ratchet.state == "review_pending":
        return "fixing_review_comments"
    if checks == "failure":
        return "fixing_ci_failures" if on else "ci_failed"
    if on and ratchet.state in ("ci_running", "ci_failed", "merge_conflict"):
        return "checking_pr"  # the checks pass, but the ratchet has not caught up yet
    if checks == "success" and pr.state == "open":
        return "ready_to_merge"
    return "ready_for_review"


def attention(code: str) -> int | None:
    """How pressing a status is for the user, 0 first; ``None`` where the user is not needed."""
    return _RANK.get(code)
