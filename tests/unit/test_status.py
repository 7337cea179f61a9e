"""Why a workspace stands where it stands: one case for each row, the order among them, and that there is always one."""

from __future__ import annotations

from itertools import combinations
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain import status
from pipeline.domain.model import (
    Ci,
    CiState,
    Group,
    GroupHealth,
    Life,
    Mergeable,
    Phase,
    Pr,
    PrState,
    Ratchet,
    RatchetState,
    Review,
    Run,
    Session,
    SessionState,
    WaitingFor,
)

READY: dict[str, Group] = {"life": Life(phase="ready")}
OPEN: dict[str, Group] = {**READY, "pr": Pr(state="open", mergeable="mergeable")}
CONFLICT: dict[str, Group] = {**READY, "pr": Pr(state="open", mergeable="conflicting")}
ON = Ratchet(enabled=True)


def waits(reason: Any) -> dict[str, Group]:
    return {**READY, "session:s": Session(state="waiting", waiting_for=reason)}


def ratchet(state: Any) -> Ratchet:
    return Ratchet(enabled=True, state=state)


CASES: list[tuple[str, dict[str, Group]]] = [
    ("archiving", {"life": Life(phase="archiving")}),
    ("archived", {"life": Life(phase="archived")}),
    ("merged", {**READY, "pr": Pr(state="merged")}),
    ("pr_closed", {**READY, "pr": Pr(state="closed")}),
    ("needs_plan_approval", waits("plan")),
    ("needs_answer", waits("question")),
    ("needs_answer", waits(None)),
    ("needs_permission", waits("permission")),
    ("needs_auth", waits("auth")),
    ("session_error", {**READY, "session:s": Session(state="error")}),
    ("session_error", {**READY, "session:s": Session(state="exited", crashed=True)}),
    ("setting_up", {"life": Life(phase="new")}),
    ("setting_up", {"life": Life(phase="provisioning")}),
    ("setup_failed", {"life": Life(phase="failed")}),
    ("agent_working", {**READY, "session:s": Session(state="working")}),
    ("starting_session", {**READY, "session:s": Session(state="starting")}),
    ("auto_iterating", {**READY, "ratchet": Ratchet(iterating=True)}),
    ("ratchet_stalled", {**OPEN, "ratchet": Ratchet(enabled=True, stalled=True)}),
    ("fixing_merge_conflict", {**CONFLICT, "ratchet": ON}),
    ("merge_conflict", CONFLICT),
    ("merge_conflict", {**CONFLICT, "ratchet": Ratchet(enabled=False)}),
    ("waiting_for_ci", OPEN),
    ("waiting_for_ci", {**OPEN, "ci": Ci(state="pending")}),
    ("waiting_for_ci", {**OPEN, "ci": Ci(health="failing")}),
    ("fixing_review_comments", {**OPEN, "ci": Ci(state="success"), "ratchet": ratchet("review_pending")}),
    ("fixing_ci_failures", {**OPEN, "ci": Ci(state="failure"), "ratchet": ON}),
    ("ci_failed", {**OPEN, "ci": Ci(state="failure")}),
    ("checking_pr", {**OPEN, "ci": Ci(state="success"), "ratchet": ratchet("ci_running")}),
    ("checking_pr", {**OPEN, "ci": Ci(state="unknown"), "ratchet": ratchet("ci_failed")}),
    ("ready_to_merge", {**OPEN, "ci": Ci(state="success")}),
    ("ready_to_merge", {**OPEN, "ci": Ci(state="success"), "ratchet": ratchet("ready")}),
    ("ready_for_review", {**OPEN, "ci": Ci(state="unknown")}),
    ("ready_for_review", {**READY, "pr": Pr(state="draft"), "ci": Ci(state="success")}),
    ("session_unknown", {**READY, "session:s": Session(state="unknown")}),
    ("no_session_started", READY),
    ("no_session_started", {}),
    ("ready_for_next_prompt", {**READY, "session:s": Session(state="idle")}),
    ("ready_for_next_prompt", {**READY, "session:s": Session(state="exited")}),
]

# What each row says of the column and the user.
ROWS: dict[str, tuple[str | None, bool]] = {
    "archiving": (None, False),
    "archived": (None, False),
    "merged": ("done", False),
    "pr_closed": ("done", False),
    "needs_plan_approval": ("waiting", True),
    "needs_answer": ("waiting", True),
    "needs_permission": ("waiting", True),
    "needs_auth": ("waiting", True),
    "session_error": ("waiting", True),
    "setting_up": ("working", False),
    "setup_failed": ("waiting", True),
    "agent_working": ("working", False),
    "starting_session": ("working", False),
    "auto_iterating": ("working", False),
    "ratchet_stalled": ("waiting", True),
    "fixing_merge_conflict": ("working", False),
    "merge_conflict": ("waiting", True),
    "waiting_for_ci": ("working", False),
    "fixing_review_comments": ("working", False),
    "fixing_ci_failures": ("working", False),
    "ci_failed": ("waiting", True),
    "checking_pr": ("working", False),
    "ready_to_merge": ("waiting", True),
    "ready_for_review": ("waiting", False),
    "session_unknown": ("waiting", False),
    "no_session_started": ("waiting", False),
    "ready_for_next_prompt": ("waiting", False),
}


@pytest.mark.parametrize(("code", "groups"), CASES, ids=[f"{code}-{n}" for n, (code, _) in enumerate(CASES)])
def test_each_row_of_the_table_holds_where_it_says(code: str, groups: dict[str, Group]) -> None:
    column, needs_user = ROWS[code]
    derived = status.derive(groups)
    assert (derived.code, derived.column, derived.needs_user) == (code, column, needs_user)


def test_every_row_has_a_case() -> None:
    assert {code for code, _ in CASES} == set(status.TABLE) == set(ROWS)


# From the top; where two rows can hold at once, the upper one decides.
ORDER: list[dict[str, Group]] = [
    {"life": Life(phase="archived")},
    {"pr": Pr(state="merged")},
    {"session:1": Session(state="waiting", waiting_for="plan")},
    {"session:2": Session(state="waiting", waiting_for="question")},
    {"session:3": Session(state="waiting", waiting_for="permission")},
    {"session:4": Session(state="waiting", waiting_for="auth")},
    {"session:5": Session(state="error")},
    {"life": Life(phase="provisioning")},
    {"session:6": Session(state="working")},
    {"session:7": Session(state="starting")},
    {"ratchet": Ratchet(enabled=True, iterating=True, stalled=True)},
    {"pr": Pr(state="open", mergeable="conflicting")},
    {"session:8": Session(state="unknown")},
    {"session:9": Session(state="idle")},
]


@pytest.mark.parametrize(("upper", "lower"), list(combinations(range(len(ORDER)), 2)))
def test_the_upper_row_decides(upper: int, lower: int) -> None:
    assert status.derive({**ORDER[lower], **ORDER[upper]}) == status.derive(ORDER[upper])


def test_a_stalled_ratchet_comes_before_the_conflict_that_it_stalls_on() -> None:
    stalled = Ratchet(enabled=True, stalled=True)
    assert status.derive({**CONFLICT, "ratchet": stalled}).code == "ratchet_stalled"


def test_a_conflict_comes_before_failed_checks_and_those_before_the_review() -> None:
    assert status.derive({**CONFLICT, "ci": Ci(state="failure")}).code == "merge_conflict"
    acting = {**OPEN, "ci": Ci(state="failure"), "ratchet": ratchet("review_pending")}
    assert status.derive(acting).code == "fixing_review_comments"


def test_a_ratchet_that_is_off_does_nothing() -> None:
    off = Ratchet(enabled=False, state="review_pending", stalled=True)
    assert status.derive({**OPEN, "ci": Ci(state="failure"), "ratchet": off}).code == "ci_failed"


def test_one_crashed_session_is_not_hidden_by_another_that_ended_well() -> None:
    groups: dict[str, Group] = {
        **READY,
        "session:a": Session(state="exited"),
        "session:b": Session(state="exited", crashed=True),
    }
    assert status.derive(groups).code == "session_error"


def _maybe(words: Any) -> st.SearchStrategy[Any]:
    return st.none() | st.sampled_from(get_args(words))


def _some(kind: type[Group], **fields: Any) -> st.SearchStrategy[Any]:
    return st.builds(kind, **fields)


_flag = st.none() | st.booleans()
_session = _some(Session, state=_maybe(SessionState), waiting_for=_maybe(WaitingFor), crashed=_flag)
anything = st.fixed_dictionaries(
    {},
    optional={
        "life": _some(Life, phase=_maybe(Phase)),
        "pr": _some(
            Pr,
            state=_maybe(PrState),
            review=_maybe(Review),
            mergeable=_maybe(Mergeable),
            health=_maybe(GroupHealth),
        ),
        "ci": _some(Ci, state=_maybe(CiState), health=_maybe(GroupHealth)),
        "ratchet": _some(Ratchet, enabled=_flag, state=_maybe(RatchetState), stalled=_flag, iterating=_flag),
        "run": _some(Run, state=st.just("running")),
        "session:a": _session,
        "session:b": _session,
    },
)


@given(anything)
def test_every_workspace_stands_somewhere(groups: dict[str, Group]) -> None:
    derived = status.derive(groups)
    assert derived.code in status.TABLE
    assert (derived.column, derived.needs_user) == status.TABLE[derived.code]
    assert status.derive(dict(reversed(groups.items()))) == derived


@given(anything)
def test_only_sessions_setup_and_automation_make_a_workspace_work(groups: dict[str, Group]) -> None:
    if status.derive(groups).column == "working":
        life, automation = groups.get("life", Life()), groups.get("ratchet", Ratchet())
        assert isinstance(life, Life)
        assert isinstance(automation, Ratchet)
        sessions = [one for one in groups.values() if isinstance(one, Session)]
        checks_run = status.derive(groups).code == "waiting_for_ci"
        assert (
            life.phase in ("new", "provisioning")
            or any(one.state in ("working", "starting") for one in sessions)
            or automation.enabled
            or automation.iterating
            or checks_run
        )


def test_what_needs_the_user_has_a_rank_and_nothing_else_has() -> None:
    for code, row in status.TABLE.items():
        assert (status.attention(code) is not None) == row.needs_user, code
    assert status.attention("no such code") is None


def test_the_user_is_called_to_errors_first_and_to_merges_last() -> None:
    pressing = [
        "session_error",
        "needs_permission",
        "needs_plan_approval",
        "needs_answer",
        "ci_failed",
        "ready_to_merge",
    ]
    ranks = [status.attention(code) for code in pressing]
    assert ranks == list(range(len(pressing)))
    assert status.attention("setup_failed") == status.attention("session_error")
    assert status.attention("merge_conflict") == status.attention("ratchet_stalled") == status.attention("ci_failed")
