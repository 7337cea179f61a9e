"""The store, verdict by verdict: what is admitted, what is not, and why."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.domain import order
from pipeline.domain import store as rules
from pipeline.domain.model import Ci, Git, Key, Life, Look, Pr, Ratchet, Session, Terminal
from pipeline.domain.store import EXPLAIN_DEPTH, LOST_DEPTH, NAME_MAX, Store, Told
from tests.laws.looks import ELSEWHERE, WALL, census, git, life, look, session, store, told

K1, K2 = Key(1, "aaa"), Key(2, "bbb")


def started(**limits: int) -> Store:
    """A store that knows workspace ``w`` since 10."""
    made = store(**limits)
    assert told(made, life(10)) == ["applied"]
    return made


def admit(to: Store, one: Look) -> order.Ruling:
    return to.admit(one, WALL)


def state(of: Store, project: str = "web") -> dict[str, Any]:
    """The public state without the times of changes."""
    return _timeless(of.projects[project].state()) if project in of.projects else {}


def _timeless(value: Any) -> Any:
    return {k: _timeless(v) for k, v in value.items() if k != "changed_at"} if isinstance(value, dict) else value


def pr(number: int, began: int, key: Key | None, **rest: Any) -> Look:
    return look("pr", Pr(number=number, state="open"), began, key=key, **rest)


def ci(word: Any, began: int, key: Key | None, **rest: Any) -> Look:
    return look("ci", Ci(state=word), began, key=key, **rest)


# ── applied, confirmed, older, overlap ───────────────────────────────────────────────────────────


def test_a_first_look_is_applied_and_is_one_version() -> None:
    s = started()
    version = s.projects["web"].version
    assert admit(s, git(1, 20)) is order.FIRST
    assert s.projects["web"].version == version + 1
    assert state(s)["w"]["git"] == {"files": 1}


def test_a_later_look_is_applied_and_changes_only_what_differs() -> None:
    s = started()
    told(s, look("git", Git(files=1, ahead=2), 20))
    version = s.projects["web"].version
    assert admit(s, look("git", Git(files=3, ahead=2), 30)) is order.LATER
    assert s.projects["web"].since(version) == {"w": {"git": {"files": 3, "changed_at": WALL}}}


def test_a_field_that_a_later_look_does_not_know_is_cleared() -> None:
    s = started()
    told(s, look("git", Git(files=1, ahead=2), 20), git(1, 30))
    assert state(s)["w"]["git"] == {"files": 1}


def test_a_later_look_at_the_same_value_is_evidence_and_no_version() -> None:
    s = started()
    told(s, git(1, 20))
    version = s.projects["web"].version
    ruling = admit(s, git(1, 30))
    assert ruling.verdict == "confirmed"
    assert ruling.cause.endswith("the value stays")
    assert s.projects["web"].version == version
    assert told(s, git(2, 25)) == ["older"]


def test_a_poll_that_began_before_an_event_cannot_undo_it() -> None:
    s = started()
    told(s, look("terminal", Terminal(active=True), 25))
    assert admit(s, look("terminal", Terminal(active=False), 20, 30)) is order.DISAGREES
    assert state(s)["w"]["terminal"] == {"active": True}


def test_a_look_that_ended_before_the_current_one_began_is_older() -> None:
    s = started()
    told(s, git(2, 30, 40))
    assert admit(s, git(1, 20, 29)) is order.EARLIER
    assert state(s)["w"]["git"] == {"files": 2}


def test_looks_that_agree_join_and_what_falls_within_both_proves_nothing() -> None:
    s = started()
    told(s, git(1, 20, 30))
    version = s.projects["web"].version
    assert admit(s, git(1, 25, 50)) is order.AGREES
    assert s.projects["web"].version == version
    assert admit(s, git(2, 40)) is order.DISAGREES
    assert admit(s, git(2, 51)) is order.LATER


def test_within_a_run_the_higher_sequence_is_applied_and_a_lower_one_is_older() -> None:
    s = started()
    assert told(s, session("working", 30, run="r", seq=2), session("idle", 20, run="r", seq=1)) == ["applied", "older"]
    assert admit(s, session("idle", 25, run="r", seq=3)) is order.NEWER_SEQ
    assert admit(s, session("idle", 26, run="r", seq=3)) is order.SAME_SEQ
    assert state(s)["w"]["sessions"] == {"s": {"state": "idle"}}


def test_of_one_row_the_higher_revision_is_applied_and_a_lower_one_is_older() -> None:
    s = started()
    rows = [look("ratchet", Ratchet(enabled=on), 20, 90, domain="db", revision=n) for n, on in ((4, True), (5, False))]
    assert told(s, rows[0], rows[1], rows[0]) == ["applied", "applied", "older"]


def test_looks_by_two_clocks_prove_nothing() -> None:
    s = started()
    told(s, git(1, 20))
    assert admit(s, git(2, 900, clock=ELSEWHERE)) is order.OTHER_CLOCK


def test_a_look_that_became_the_evidence_dates_the_change_by_its_source() -> None:
    s = started()
    told(s, look("git", Git(files=1), 20, at_ms=123), git(1, 30))
    told(s, git(2, 40))
    assert s.projects["web"].state()["w"]["git"] == {"files": 2, "changed_at": WALL}
    told(s, look("git", Git(files=3), 50, at_ms=456))
    assert s.projects["web"].state()["w"]["git"]["changed_at"] == 456


# ── unknown ──────────────────────────────────────────────────────────────────────────────────────


def test_only_life_creates_an_entry() -> None:
    s = store()
    assert admit(s, git(1, 20)) is rules.NO_ENTRY
    assert s.entries == {}


def test_a_look_that_began_before_the_store_started_creates_nothing() -> None:
    s = store(started=100)
    assert admit(s, life(100, 200)) is rules.FENCED
    assert admit(s, life(101, 200)) is order.FIRST


def test_a_look_by_another_clock_creates_nothing() -> None:
    assert admit(store(), life(20, clock=ELSEWHERE)) is rules.OTHER_HOST


@pytest.mark.parametrize("phase", ["archiving", "archived"])
def test_an_archived_workspace_is_not_created_and_nothing_before_creates_it_either(phase: Any) -> None:
    s = store()
    assert admit(s, life(20, phase=phase)) is rules.NOT_LIVE
    assert admit(s, life(15)) is rules.BURIED
    assert s.entries == {}


def test_a_workspace_that_a_later_census_did_not_find_is_not_created() -> None:
    s = store()
    s.census(census(30, 40), WALL)
    assert admit(s, life(29)) is rules.NOT_SEEN
    assert admit(s, life(30)) is order.FIRST


def test_a_workspace_that_the_census_saw_may_be_created_by_an_earlier_look() -> None:
    s = store(max_entries=1)
    told(s, life(5, workspace="other"))
    s.census(census(30, 40, [life(30, 40, workspace="other"), life(30, 40)]), WALL)
    told(s, life(50, workspace="other", phase="archived"))
    assert admit(s, life(29)) is order.FIRST


def test_a_session_that_a_later_census_did_not_find_is_not_created() -> None:
    s = started()
    s.census(census(30, 40, [life(30, 40)]), WALL)
    assert admit(s, session("working", 29, domain="db")) is rules.SESSION_NOT_SEEN
    assert told(s, session("working", 29, id="live", source="live")) == ["applied"]
    assert told(s, session("working", 41, domain="db")) == ["applied"]


# ── foreign ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (look("git", Life(), 20), rules.WRONG_TYPE),
        (look("git", None, 20), rules.WRONG_TYPE),
        (look("status", None, 20), rules.WRONG_TYPE),
        (look("nonsense", Git(), 20), rules.WRONG_TYPE),
        (look("git", Git(), 20, source="catalog"), rules.NOT_OWNER),
        (look("life", Life(), 20, source="live"), rules.NOT_OWNER),
        (look("pr", Pr(), 20, source="git"), rules.NOT_OWNER),
        (look("git", Git(), 20, 19), rules.BAD_STAMP),
        (look("session", Session(), 20), rules.BAD_NAME),
        (look("session:", Session(), 20), rules.BAD_NAME),
        (look("session:é", Session(), 20), rules.BAD_NAME),
        (look("session:" + "x" * NAME_MAX, Session(), 20), rules.BAD_NAME),
        (life(20, workspace="é"), rules.BAD_NAME),
        (life(20, workspace=""), rules.BAD_NAME),
        (life(20, workspace="x" * (NAME_MAX + 1)), rules.BAD_NAME),
    ],
)
def test_what_may_not_be_said_is_foreign_and_changes_nothing(one: Look, expected: order.Ruling) -> None:
    s = started()
    before = s.projects["web"].version, s.projects["web"].state()
    assert admit(s, one) is expected
    assert expected.verdict == "foreign"
    assert (s.projects["web"].version, s.projects["web"].state()) == before


def test_a_workspace_has_only_so_many_sessions_at_once() -> None:
    s = started(max_sessions=2)
    told(s, session("idle", 20, id="a"), session("idle", 20, id="b"))
    assert admit(s, session("idle", 20, id="c")) is rules.TOO_MANY
    assert told(s, session("working", 30, id="a"), session(None, 30, id="b")) == ["applied", "applied"]
    assert told(s, session("idle", 40, id="c")) == ["applied"]


# ── incarnations ─────────────────────────────────────────────────────────────────────────────────


def test_a_later_incarnation_replaces_the_former_whole() -> None:
    s = started()
    told(s, git(1, 20), life(30, name="two", incarnation=2))
    assert state(s)["w"].keys() == {"life", "status"}
    assert state(s)["w"]["life"]["name"] == "two"
    assert admit(s, git(9, 40)) is rules.OLD_INCARNATION
    assert admit(s, life(40)) is rules.OLD_INCARNATION
    assert told(s, git(2, 40, incarnation=2)) == ["applied"]


def test_only_life_announces_an_incarnation() -> None:
    s = started()
    assert admit(s, git(1, 20, incarnation=2)) is rules.NEW_INCARNATION
    assert s.entries["w"].incarnation == 1


def test_an_incarnation_that_began_before_the_fence_is_not_announced() -> None:
    s = store(started=5)
    told(s, life(10))
    assert admit(s, life(5, incarnation=2)) is rules.FENCED
    assert s.entries["w"].incarnation == 1


def test_a_later_incarnation_that_has_come_and_gone_buries_the_entry() -> None:
    s = started()
    assert told(s, life(30, phase="archived", incarnation=2)) == ["applied"]
    assert s.entries == {}
    assert admit(s, life(40, incarnation=2)) is rules.BURIED
    assert admit(s, life(40, incarnation=1)) is rules.BURIED
    assert told(s, life(40, incarnation=3)) == ["applied"]


# ── tombstones ───────────────────────────────────────────────────────────────────────────────────


def test_an_archive_is_final() -> None:
    s = started()
    assert told(s, life(20, phase="archived")) == ["applied"]
    assert state(s) == {}
    assert admit(s, life(15)) is rules.BURIED
    assert admit(s, life(90)) is rules.BURIED
    assert admit(s, git(1, 90)) is rules.BURIED
    assert told(s, life(90, incarnation=2)) == ["applied"]


def test_archiving_ends_the_entry_until_it_is_taken_back() -> None:
    s = started()
    assert told(s, life(20, phase="archiving")) == ["applied"]
    assert admit(s, life(20)) is rules.BURIED
    assert told(s, life(21)) == ["applied"]


def test_archiving_becomes_final_with_the_archive() -> None:
    s = started()
    told(s, life(20, phase="archiving"))
    assert admit(s, life(30, phase="archived")) is rules.NOT_LIVE
    assert admit(s, life(40)) is rules.BURIED


def test_an_absence_is_undone_by_a_later_look_at_life_and_nothing_else() -> None:
    s = started()
    told(s, life(10, workspace="other"))
    assert s.census(census(30, 40, [life(30, 40, workspace="other")]), WALL).buried == ["w"]
    assert admit(s, life(40)) is rules.BURIED
    assert admit(s, git(1, 50)) is rules.BURIED
    assert admit(s, life(50, clock=ELSEWHERE)) is rules.BURIED
    assert told(s, life(41)) == ["applied"]


def test_an_absence_is_not_undone_by_a_former_incarnation() -> None:
    s = store()
    told(s, life(10, incarnation=2), life(10, workspace="other"))
    s.census(census(30, 40, [life(30, 40, workspace="other")]), WALL)
    assert admit(s, life(50, incarnation=1)) is rules.BURIED
    assert told(s, life(50, incarnation=2)) == ["applied"]


def test_forgetting_a_tombstone_raises_the_fence() -> None:
    s = store(max_tombstones=1)
    told(s, life(10, workspace="a"), life(10, workspace="b"))
    told(s, life(20, 25, workspace="a", phase="archived"))
    assert s.fence == 0
    told(s, life(30, workspace="b", phase="archived"))
    assert list(s.tombstones) == ["b"]
    assert s.fence == 25
    assert admit(s, life(15, workspace="a")) is rules.FENCED
    assert admit(s, life(25, workspace="c")) is rules.FENCED
    assert told(s, life(26, workspace="c")) == ["applied"]


# ── keys: whose checks ───────────────────────────────────────────────────────────────────────────


def test_checks_of_another_pull_request_or_head_are_refused() -> None:
    s = started()
    told(s, pr(1, 20, K1))
    assert admit(s, ci("failure", 30, K2)) is rules.WRONG_KEY
    assert admit(s, ci("failure", 30, Key(1, "bbb"))) is rules.WRONG_KEY
    assert admit(s, ci("failure", 30, None)) is rules.WRONG_KEY
    assert told(s, ci("success", 30, K1)) == ["applied"]
    assert state(s)["w"]["status"]["code"] == "ready_to_merge"


def test_checks_before_any_pull_request_are_refused() -> None:
    assert admit(started(), ci("success", 20, K1)) is rules.WRONG_KEY


def test_that_there_are_no_checks_is_said_by_nobody_though_they_are_unknown() -> None:
    s = started()
    for one in (pr(1, 20, K1), ci("success", 25, K1), pr(2, 30, K2)):
        assert admit(s, one).verdict == "applied"
    assert s.entries["w"].looks["ci"].value is None
    assert admit(s, look("ci", None, 40, key=K2)) is rules.WRONG_TYPE


@pytest.mark.parametrize("key", [K2, Key(1, "bbb"), Key(2, "aaa")])
def test_another_pull_request_or_head_makes_the_checks_unknown_in_the_same_version(key: Key) -> None:
    s = started()
    told(s, pr(1, 20, K1), ci("success", 20, K1))
    version = s.projects["web"].version
    assert told(s, pr(key.pr, 30, key)) == ["applied"]
    assert s.projects["web"].version == version + 1
    assert "ci" not in state(s)["w"]
    assert state(s)["w"]["status"]["code"] == "waiting_for_ci"
    assert told(s, ci("failure", 35, K1), ci("failure", 35, key)) == ["wrong_key", "applied"]


def test_the_same_pull_request_again_leaves_its_checks() -> None:
    s = started()
    told(s, pr(1, 20, K1), ci("success", 20, K1), look("pr", Pr(number=1, state="draft"), 30, key=K1))
    assert state(s)["w"]["ci"] == {"state": "success"}


def test_checks_from_before_a_key_returned_are_still_older() -> None:
    s = started()
    told(s, pr(1, 20, K1), ci("success", 50, K1), pr(2, 60, K2), pr(1, 70, K1))
    assert told(s, ci("pending", 40, K1)) == ["older"]
    assert told(s, ci("failure", 80, K1)) == ["applied"]


def test_a_row_of_checks_made_anew_need_not_have_a_higher_revision() -> None:
    s = started()
    told(s, pr(1, 20, K1), ci("success", 20, K1, domain="db", revision=9), pr(2, 30, K2))
    assert told(s, ci("pending", 30, K2, domain="db", revision=1)) == ["applied"]


# ── sessions ─────────────────────────────────────────────────────────────────────────────────────


def test_two_agents_in_one_worktree_do_not_overwrite_each_other() -> None:
    s = started()
    told(s, session("working", 20, id="a"), session("waiting", 20, id="b"))
    assert state(s)["w"]["sessions"] == {"a": {"state": "working"}, "b": {"state": "waiting"}}
    assert state(s)["w"]["status"]["code"] == "needs_answer"


def test_a_deleted_session_leaves_and_late_looks_at_it_are_older() -> None:
    s = started()
    told(s, session("working", 20))
    version = s.projects["web"].version
    assert told(s, session(None, 30)) == ["applied"]
    delta = s.projects["web"].since(version)
    assert delta is not None
    assert delta["w"]["sessions"] == {"s": None}
    assert state(s)["w"]["status"]["code"] == "no_session_started"
    assert told(s, session("working", 25)) == ["older"]
    assert told(s, session("working", 40)) == ["applied"]


def test_deleting_a_session_that_nobody_knew_changes_nothing() -> None:
    s = started()
    version = s.projects["web"].version
    assert told(s, session(None, 30)) == ["confirmed"]
    assert s.projects["web"].version == version
    assert told(s, session("working", 25)) == ["older"]


def test_a_session_deleted_last_is_forgotten_last_and_forgetting_raises_a_fence() -> None:
    s = started(max_sessions=2)
    told(s, session("idle", 20, id="a"))
    told(s, session(None, 30, id="b"), session(None, 40, id="c"), session(None, 50, id="a"))
    assert {name for name in s.entries["w"].looks if name != "life"} == {"session:a", "session:c"}
    assert told(s, session("working", 45, id="a")) == ["older"]
    assert admit(s, session("working", 25, id="b")) is rules.ENDED
    assert admit(s, session("working", 30, id="new")) is rules.ENDED
    assert told(s, session("working", 31, id="new")) == ["applied"]
    assert set(s.entries["w"].history) <= set(s.entries["w"].looks)


def test_a_census_ends_the_sessions_of_its_catalog_that_it_did_not_find() -> None:
    s = started()
    told(s, session("working", 20, id="row", domain="db"), session("working", 20, id="live", source="live"))
    told(s, session("working", 35, id="young", domain="db"))
    tally = s.census(census(30, 40, [life(30, 40)]), WALL)
    assert state(s)["w"]["sessions"].keys() == {"live", "young"}
    assert tally.drift == {"session": 1}


# ── census ───────────────────────────────────────────────────────────────────────────────────────


def homes(*names: str, began: int, ended: int) -> list[Look]:
    return [life(began, ended, workspace=name) for name in names]


def test_a_census_creates_what_it_found_and_completes_the_store() -> None:
    s = store()
    assert s.is_complete("web") is False
    tally = s.census(census(10, 20, homes("a", "b", began=10, ended=20)), WALL)
    assert [ruling.verdict for ruling in tally.rulings] == ["applied", "applied"]
    assert (tally.drift, tally.buried, tally.held) == ({}, [], False)
    assert s.is_complete("web") is True
    assert s.live == 2


def test_a_census_shows_even_an_empty_project() -> None:
    s = store()
    s.census(census(10, 20, projects=["web", "api"]), WALL)
    assert set(s.projects) == {"web", "api"}


def test_a_census_buries_at_its_own_stamp_what_it_did_not_find() -> None:
    s = store()
    told(s, *homes("a", "b", began=10, ended=15))
    tally = s.census(census(30, 40, homes("a", began=30, ended=40)), WALL)
    assert (tally.buried, tally.drift) == (["b"], {"life": 1})
    assert s.tombstones["b"].stamp == census(30, 40).stamp
    assert s.tombstones["b"].final is False
    assert state(s).keys() == {"a"}


@pytest.mark.parametrize("born", [30, 35, 40, 50])
def test_a_newborn_survives_a_census_that_did_not_find_it(born: int) -> None:
    s = store()
    told(s, *homes("a", began=10, ended=15), life(born, workspace="new"))
    assert s.census(census(30, 40, homes("a", began=30, ended=40)), WALL).buried == []
    assert set(s.entries) == {"a", "new"}


def test_drift_is_a_census_look_that_changed_a_known_value() -> None:
    s = store()
    told(s, *homes("a", "b", began=10, ended=15))
    looks = [
        life(30, 40, workspace="a", name="renamed"),
        *homes("b", "c", began=30, ended=40),
        look("pr", Pr(number=1), 30, 40, workspace="a"),
    ]
    assert s.census(census(30, 40, looks), WALL).drift == {"life": 1}


def test_an_incomplete_census_buries_nobody_and_confirms_nothing() -> None:
    s = started()
    tally = s.census(census(30, 40, [life(30, 40, workspace="v")], complete=False), WALL)
    assert (tally.buried, tally.held) == ([], False)
    assert set(s.entries) == {"w", "v"}
    assert s.is_complete("web") is False
    assert s.sweep() == []


def test_a_census_begun_before_the_store_started_confirms_nothing() -> None:
    s = store(started=30)
    s.census(census(30, 40), WALL)
    assert s.is_complete("web") is False
    s.census(census(41, 50), WALL)
    assert s.is_complete("web") is True


def test_a_census_by_another_clock_buries_nobody_and_confirms_nothing() -> None:
    s = started()
    told(s, life(10, workspace="v"))
    assert s.census(census(900, 950, [], clock=ELSEWHERE), WALL).buried == []
    assert s.is_complete("web") is False
    assert s.census(census(30, 40, [life(30, 40)]), WALL).buried == ["v"]


MANY = [f"w{number}" for number in range(12)]


def test_a_census_that_would_bury_everything_is_held_until_a_second_one_says_the_same() -> None:
    s = started()
    assert s.census(census(30, 40), WALL).held is True
    assert set(s.entries) == {"w"}
    assert s.sweep() == []
    tally = s.census(census(50, 60), WALL)
    assert (tally.held, tally.buried) == (False, ["w"])


def test_a_held_census_has_not_settled_anything_until_it_is_confirmed_and_nor_has_its_double() -> None:
    s = started()
    before = s.settled
    for _ in range(2):
        s.census(census(30, 40), WALL)
        assert s.settled == before
    s.census(census(50, 60), WALL)
    assert s.settled == 60
    s.census(census(30, 40), WALL)
    assert s.settled == 60


def test_a_census_that_would_bury_more_than_half_and_more_than_a_few_is_held() -> None:
    s = store()
    told(s, *homes(*MANY, began=10, ended=15))
    assert s.census(census(30, 40, homes(*MANY[:5], began=30, ended=40)), WALL).held is True
    assert len(s.entries) == 12


def test_half_of_many_and_most_of_few_are_buried_at_once() -> None:
    s = store()
    told(s, *homes(*MANY, began=10, ended=15))
    assert len(s.census(census(30, 40, homes(*MANY[:6], began=30, ended=40)), WALL).buried) == 6
    assert len(s.census(census(50, 60, homes(*MANY[:1], began=50, ended=60)), WALL).buried) == 5


def test_a_held_census_is_not_confirmed_by_another_database() -> None:
    s = started()
    assert s.census(census(30, 40), WALL).held is True
    assert s.census(census(50, 60, domain="other"), WALL).held is True
    assert s.census(census(70, 80), WALL).held is True
    assert s.census(census(90, 99), WALL).buried == ["w"]


def test_a_database_put_in_anothers_place_never_deletes_in_mass_what_came_from_that_one() -> None:
    s = store()
    assert told(s, life(10, domain="db", revision=1)) == ["applied"]
    for at in (30, 50, 70, 90):
        tally = s.census(census(at, at + 1, domain="other"), WALL)
        assert (tally.held, tally.buried) == (True, [])
    assert s.census(census(110, 111), WALL).held is True
    assert s.census(census(130, 131), WALL).buried == ["w"]


def test_a_held_census_is_not_confirmed_by_its_own_double() -> None:
    s = started()
    assert s.census(census(30, 40), WALL).held is True
    again = s.census(census(30, 40), WALL)
    assert again.buried == []
    assert set(s.entries) == {"w"}
    assert s.census(census(41, 50), WALL).buried == ["w"]


def test_a_census_that_finds_everybody_again_lifts_the_hold() -> None:
    s = started()
    s.census(census(30, 40), WALL)
    assert s.census(census(50, 60, [life(50, 60)]), WALL).held is False
    assert s.census(census(70, 80), WALL).held is True


def test_a_census_that_comes_late_does_not_bring_back_what_it_saw() -> None:
    s = store()
    told(s, *homes("a", began=5, ended=6))
    late = census(10, 20, homes("a", "gone", began=10, ended=20))
    s.census(census(30, 40, homes("a", began=30, ended=40)), WALL)
    assert [ruling.verdict for ruling in s.census(late, WALL).rulings] == ["older", "unknown"]
    assert admit(s, life(22, workspace="gone")) is rules.NOT_SEEN
    assert s.live == 1


def test_sweep_buries_what_the_last_census_should_have_found() -> None:
    s = started()
    told(s, life(10, workspace="v"))
    assert s.sweep() == []
    s.census(census(30, 40, [life(30, 40)]), WALL)
    assert s.sweep() == []
    s.entries["v"] = rules.Entry("web", 1)
    s.entries["v"].looks["life"] = life(12, workspace="v")
    s.ledger("web").write("v", [("life", {"name": "stray"})])
    assert s.sweep() == ["v"]
    assert state(s).keys() == {"w"}


# ── bound ────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_store_refuses_and_says_that_the_project_is_not_complete() -> None:
    s = store(max_entries=1)
    s.census(census(10, 20, homes("a", began=10, ended=20)), WALL)
    assert s.is_complete("web") is True
    assert admit(s, life(30, workspace="b")) is rules.FULL
    assert s.is_complete("web") is False
    assert set(s.entries) == {"a"}


def test_a_project_that_somebody_watches_gets_room_from_one_that_nobody_does() -> None:
    s = store(max_entries=2)
    looks = [life(10, 20, workspace="a", project="still"), life(10, 20, workspace="b", project="web")]
    s.census(census(10, 20, looks, projects=["still", "web"]), WALL)
    s.interest = frozenset({"web"})
    assert told(s, life(30, workspace="c")) == ["applied"]
    assert set(s.entries) == {"b", "c"}
    assert (s.is_complete("still"), s.is_complete("web")) == (False, True)
    assert s.evictions == 1


def test_watched_projects_do_not_take_room_from_each_other() -> None:
    s = store(max_entries=1)
    told(s, life(10, workspace="a", project="api"))
    s.interest = frozenset({"web", "api"})
    assert admit(s, life(30, workspace="c")) is rules.FULL


def test_the_project_that_has_been_still_for_longest_gives_up_its_oldest_change() -> None:
    s = store(max_entries=3)
    told(s, life(10, workspace="a", project="x"), life(11, workspace="b", project="x"))
    told(s, life(12, workspace="c", project="y"), git(1, 90, workspace="b"))
    s.interest = frozenset({"web"})
    told(s, life(95, workspace="d"))
    assert set(s.entries) == {"a", "b", "d"}
    told(s, life(96, workspace="e"))
    assert set(s.entries) == {"b", "d", "e"}


def test_an_evicted_workspace_returns_only_with_news_of_it() -> None:
    s = store(max_entries=1)
    told(s, life(10, 40, workspace="a", project="x"))
    s.interest = frozenset({"web"})
    told(s, life(50), life(60, phase="archived"))
    assert admit(s, life(20, workspace="a", project="x", name="former")) is rules.BURIED
    assert told(s, life(70, workspace="a", project="x")) == ["applied"]


def test_a_project_is_complete_again_when_a_census_finds_all_of_it_in_the_store() -> None:
    s = store(max_entries=1)
    s.census(census(10, 20, homes("a", "b", began=10, ended=20)), WALL)
    assert s.is_complete("web") is False
    s.census(census(30, 40, homes("a", began=30, ended=40)), WALL)
    assert s.is_complete("web") is True


# ── projects ─────────────────────────────────────────────────────────────────────────────────────


def test_a_workspace_that_moves_leaves_one_stream_and_enters_the_other_whole() -> None:
    s = started()
    told(s, git(1, 20), session("idle", 20))
    before = state(s)["w"]
    assert told(s, life(30, project="api")) == ["applied"]
    assert state(s) == {}
    assert state(s, "api") == {"w": before}
    assert s.touched == {"web", "api"}
    assert told(s, git(2, 40)) == ["applied"]
    assert state(s, "api")["w"]["git"] == {"files": 2}


def test_a_move_is_not_confirmed_away_by_an_overlapping_look() -> None:
    s = store()
    told(s, life(10, 20))
    assert told(s, life(15, 25, project="api")) == ["overlap"]


def test_a_project_that_is_no_more_is_removed_once_it_is_empty() -> None:
    s = started()
    s.census(census(30, 40, [life(30, 40)], projects=[]), WALL)
    assert "web" in s.projects
    told(s, life(50, phase="archived"))
    s.census(census(60, 70, [], projects=["api"]), WALL)
    assert set(s.projects) == {"api"}
    assert s.removed_projects == {"web"}


def test_no_cursor_of_a_removed_project_fits_the_one_that_returns() -> None:
    s = started()
    told(s, git(1, 20))
    cursors = range(s.projects["web"].version + 1)
    told(s, life(30, phase="archived"))
    last = s.projects["web"].version
    s.census(census(40, 50, projects=["api"]), WALL)
    told(s, life(60, incarnation=2))
    returned = s.projects["web"]
    assert s.removed_projects == set()
    assert returned.version > last
    assert [returned.since(cursor) for cursor in cursors] == [None] * len(cursors)


# ── status and explain ───────────────────────────────────────────────────────────────────────────


def test_status_is_derived_in_the_same_version() -> None:
    s = started()
    version = s.projects["web"].version
    told(s, session("working", 20))
    assert s.projects["web"].version == version + 1
    delta = s.projects["web"].since(version)
    assert delta is not None
    assert delta["w"]["status"]["code"] == "agent_working"


def test_explain_tells_the_last_rulings_of_a_group_oldest_first() -> None:
    s = started()
    told(s, git(1, 20), git(2, 30), git(3, 25))
    assert [one.ruling for one in s.rulings("w")["git"]] == [order.FIRST, order.LATER, order.EARLIER]
    assert s.rulings("w", "life").keys() == {"life"}
    assert s.rulings("nobody") == {}


def test_explain_folds_a_row_of_the_same_confirmation() -> None:
    s = started()
    told(s, git(1, 20), git(1, 30), git(1, 40), git(1, 50))
    first, folded = s.rulings("w")["git"]
    assert (first.times, folded.times) == (1, 3)
    assert folded.look == git(1, 50)


def test_explain_does_not_fold_what_was_refused() -> None:
    s = started()
    told(s, git(1, 20), git(2, 10), git(3, 11))
    assert [one.times for one in s.rulings("w")["git"]] == [1, 1, 1]


def test_explain_tells_of_a_workspace_that_is_not_there() -> None:
    s = store()
    told(s, git(1, 20), git(1, 30, workspace="v"))
    assert s.rulings("w") == {"git": [Told(git(1, 20), rules.NO_ENTRY, WALL, 1)]}


def test_explain_tells_what_was_refused_before_the_group_was_there() -> None:
    s = started()
    told(s, ci("success", 20, K1), pr(1, 30, K1), ci("success", 40, K1))
    assert [one.ruling for one in s.rulings("w")["ci"]] == [rules.WRONG_KEY, order.FIRST]


def test_explain_remembers_only_so_much() -> None:
    s = started()
    for number in range(LOST_DEPTH + EXPLAIN_DEPTH):
        told(s, git(number, 20 + number), git(1, 20, workspace=f"v{number}"))
        told(s, session("idle", 20, id=f"s{number}", incarnation=9))
    assert len(s.rulings("w")["git"]) == EXPLAIN_DEPTH
    assert len(s.lost) == LOST_DEPTH
    assert set(s.entries["w"].history) == {"life", "git"}
