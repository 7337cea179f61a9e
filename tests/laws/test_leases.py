"""What a session is shown as while nobody is heard of who would know."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.model import LEASED, Look, Session
from pipeline.domain.store import Store
from tests.laws.looks import WALL, life, look, session, store

STATES = ("starting", "working", "idle", "waiting", "error", "exited", "unknown")


def known() -> Store:
    made = store()
    made.admit(life(10), WALL)
    return made


def shown(of: Store, id: str = "s") -> Any:
    return of.entries["w"].values["session:" + id]


def code(of: Store) -> Any:
    return of.projects["web"].state()["w"]["status"]["code"]


def waiting(began: int, **rest: Any) -> Look:
    value = Session(provider="claude", state="waiting", waiting_for="permission")
    return look("session:s", value, began, producer=LEASED + "claude", **rest)


def test_a_session_is_unknown_and_never_idle_once_its_producer_falls_silent() -> None:
    s = known()
    s.admit(waiting(20), WALL)
    assert code(s) == "needs_permission"
    assert s.lease(False, WALL) == 1
    assert shown(s) == Session(provider="claude", state="unknown")
    assert code(s) == "session_unknown"


def test_what_was_said_last_is_shown_again_once_the_producer_is_back() -> None:
    s = known()
    s.admit(waiting(20), WALL)
    s.lease(False, WALL)
    assert s.lease(True, WALL) == 1
    assert shown(s).state == "waiting"
    assert shown(s).waiting_for == "permission"
    assert code(s) == "needs_permission"


def test_only_leased_sessions_lapse_and_one_that_exited_stays_so() -> None:
    s = known()
    s.admit(session("working", 20, id="hook", producer="claude hook"), WALL)
    s.admit(session("exited", 20, id="gone", producer=LEASED + "claude"), WALL)
    assert s.lease(False, WALL) == 0
    assert (shown(s, "hook").state, shown(s, "gone").state) == ("working", "exited")


def test_saying_the_same_of_a_lease_again_spends_no_version() -> None:
    s = known()
    s.admit(waiting(20), WALL)
    s.lease(False, WALL)
    before = s.projects["web"].version
    assert s.lease(False, WALL) == 0
    s.admit(waiting(30), WALL)
    assert s.projects["web"].version == before


def test_a_look_that_comes_during_the_silence_shows_only_with_its_lease() -> None:
    s = known()
    s.lease(False, WALL)
    s.admit(waiting(20), WALL)
    assert shown(s).state == "unknown"
    s.admit(session("working", 30, producer="claude hook"), WALL)
    assert shown(s).state == "working"  # somebody else knows better


_looks = st.builds(
    lambda id, state, began, leased: session(state, began, id=id, producer=(LEASED if leased else "") + "p"),
    st.sampled_from(["a", "b"]),
    st.sampled_from(STATES),
    st.integers(20, 30),
    st.booleans(),
)


@given(st.lists(_looks | st.booleans(), max_size=30))
def test_a_lease_that_lapses_and_returns_leaves_nothing_behind(steps: list[Look | bool]) -> None:
    lapsing, steady = known(), known()
    for step in steps:
        if isinstance(step, bool):
            lapsing.lease(step, WALL)
        else:
            assert lapsing.admit(step, WALL).verdict == steady.admit(step, WALL).verdict or not lapsing.heard
    lapsing.lease(False, WALL)
    for look_ in lapsing.entries["w"].looks.values():
        if look_.producer.startswith(LEASED) and isinstance(look_.value, Session):
            assert shown(lapsing, look_.group.removeprefix("session:")).state in ("unknown", "exited")
    lapsing.lease(True, WALL)
    assert lapsing.entries["w"].values == steady.entries["w"].values
    assert lapsing.entries["w"].looks == steady.entries["w"].looks
