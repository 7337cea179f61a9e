"""Which evidence of a session wins."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain.model import Session, Stamp
from pipeline.sources.ladder import Ladder, Rung, Sighting, outdated, weigh


def sighting(
    rung: Rung, at: int, state: Any = None, *, cwd: str = "/w", waiting_for: Any = None, **rest: Any
) -> Sighting:
    fields = Session(state=state, waiting_for=waiting_for, **rest)
    return Sighting("s", cwd, rung, fields, Stamp(at, at, "here"), at_ms=at)


def test_the_highest_rung_that_knows_a_state_wins_whoever_was_heard_last() -> None:
    best = weigh({"tail": sighting(Rung.TRANSCRIPT, 20, "working"), "registry": sighting(Rung.REGISTRY, 10, "waiting")})
    assert best is not None
    assert (best.source, best.fields.state, best.stamp.began) == ("registry", "waiting", 10)


def test_a_rung_that_does_not_know_leaves_the_field_to_the_next() -> None:
    best = weigh(
        {
            "registry": sighting(Rung.REGISTRY, 10, None, name="one"),
            "tail": sighting(Rung.TRANSCRIPT, 5, "idle", model="opus", name="two"),
        }
    )
    assert best is not None
    assert best.fields == Session(name="one", model="opus", state="idle")
    assert best.source == "tail"


def test_unknown_loses_against_whoever_knows_and_is_what_nobody_knows() -> None:
    registry, tail = sighting(Rung.REGISTRY, 10, "unknown"), sighting(Rung.TRANSCRIPT, 5, "working")
    assert weigh({"a": registry, "b": tail}).fields.state == "working"  # type: ignore[union-attr]
    assert weigh({"a": registry}).fields.state == "unknown"  # type: ignore[union-attr]
    assert weigh({"a": sighting(Rung.EXISTS, 1)}).fields.state == "unknown"  # type: ignore[union-attr]


def test_what_a_session_waits_for_comes_with_the_state_and_from_nobody_else() -> None:
    best = weigh(
        {
            "registry": sighting(Rung.REGISTRY, 10, "working"),
            "tail": sighting(Rung.TRANSCRIPT, 20, "waiting", waiting_for="plan"),
        }
    )
    assert best is not None
    assert best.fields.waiting_for is None


@pytest.mark.parametrize(
    ("registry", "tail", "kind"),
    [
        (("waiting", "permission"), ("waiting", "plan"), "plan"),
        (("waiting", "permission"), ("waiting", "question"), "question"),
        (("waiting", "permission"), ("working", None), "permission"),
        (("waiting", "question"), ("waiting", "plan"), "question"),
        (("waiting", "auth"), ("waiting", "plan"), "auth"),
    ],
)
def test_what_the_registry_has_one_word_for_the_lines_tell_apart(registry: Any, tail: Any, kind: str) -> None:
    best = weigh(
        {
            "registry": sighting(Rung.REGISTRY, 10, registry[0], waiting_for=registry[1]),
            "tail": sighting(Rung.TRANSCRIPT, 5, tail[0], waiting_for=tail[1]),
        }
    )
    assert best is not None
    assert (best.source, best.fields.waiting_for) == ("registry", kind)


def test_a_death_overrides_all_and_a_session_that_is_resumed_lives() -> None:
    ladder = Ladder()
    assert ladder.saw("registry", sighting(Rung.REGISTRY, 10, "waiting", waiting_for="permission", name="n"))
    assert ladder.ended("death", "s", Stamp(20, 20, "here"), 20, crashed=True)
    assert not ladder.ended("death", "s", Stamp(21, 21, "here"), 21, crashed=False)
    assert ladder.best("s").fields == Session(name="n", state="exited", crashed=True)  # type: ignore[union-attr]
    ladder.saw("tail", sighting(Rung.TRANSCRIPT, 15, "working"))  # written before the death, read after it
    assert ladder.best("s").fields.state == "exited"  # type: ignore[union-attr]
    ladder.lost("registry", "s")
    assert ladder.saw("tail", sighting(Rung.TRANSCRIPT, 30, "working"))
    assert ladder.best("s").fields == Session(state="working")  # type: ignore[union-attr]


def test_a_session_is_lost_only_when_nobody_sees_it() -> None:
    ladder = Ladder()
    ladder.saw("a", sighting(Rung.REGISTRY, 10, "working"))
    ladder.saw("b", sighting(Rung.TRANSCRIPT, 11, "idle"))
    assert not ladder.lost("a", "s")
    assert ladder.best("s").fields.state == "idle"  # type: ignore[union-attr]
    assert ladder.lost("b", "s")
    assert not ladder.lost("b", "s")
    assert not ladder.lost("c", "never")


def test_the_same_said_again_is_no_news() -> None:
    ladder = Ladder()
    assert ladder.saw("a", sighting(Rung.TRANSCRIPT, 10, "working"))
    assert not ladder.saw("a", sighting(Rung.TRANSCRIPT, 11, "working"))
    assert ladder.saw("a", sighting(Rung.TRANSCRIPT, 12, "working", cwd="/elsewhere"))


_sightings = st.builds(
    sighting,
    st.sampled_from(list(Rung)),
    st.integers(0, 9),
    st.sampled_from([None, "unknown", "starting", "working", "idle", "waiting", "error"]),
    name=st.sampled_from([None, "n"]),
)


@given(st.dictionaries(st.sampled_from("abcd"), _sightings, min_size=1))
def test_no_lower_rung_ever_decides_what_a_higher_one_knows(seen: dict[str, Sighting]) -> None:
    best = weigh(seen)
    assert best is not None
    knowing = [one for one in seen.values() if one.fields.state not in (None, "unknown")]
    if knowing:
        top = max(one.rung for one in knowing)
        assert best.fields.state in {one.fields.state for one in knowing if one.rung == top}
    else:
        assert best.fields.state == "unknown"
    assert best.fields.name == ("n" if any(one.fields.name for one in seen.values()) else None)


@pytest.mark.parametrize(
    ("told", "by", "over"),
    [
        (("working", 10), (Rung.REGISTRY, 11, "idle"), True),
        (("working", 10), (Rung.REGISTRY, 10, "idle"), False),
        (("working", 10), (Rung.REGISTRY, 11, None), False),
        (("working", 10), (Rung.REGISTRY, 11, "unknown"), False),
        (("waiting", 10), (Rung.REGISTRY, 11, "working"), True),
        (("waiting", 10), (Rung.TRANSCRIPT, 11, "working"), False),
        (("waiting", 10), (Rung.REGISTRY, 11, "waiting"), False),  # it agrees, and knows less of what for
        (("waiting", 10), (Rung.TRANSCRIPT, 11, "idle"), True),
        (("idle", 10), (Rung.TRANSCRIPT, 11, "working"), True),
        (("idle", 10), (Rung.TRANSCRIPT, 9, "working"), False),
        (("idle", 10), (Rung.TERMINAL, 11, "working"), False),
        (("idle", 10), (Rung.EXISTS, 11, "error"), False),
    ],
)
def test_what_a_hook_told_stands_until_something_certain_is_dated_after_it(told: Any, by: Any, over: bool) -> None:
    state, at = told
    rung, later, other = by
    assert outdated(sighting(Rung.HOOK, at, state), sighting(rung, later, other)) is over


def test_a_hook_of_another_boot_stands_only_while_nothing_else_is_known() -> None:
    former = Sighting("s", "/w", Rung.HOOK, Session(state="waiting"), Stamp(99, 99, "before"))
    assert outdated(former, sighting(Rung.TRANSCRIPT, 1, "idle"))
    assert not outdated(former, sighting(Rung.EXISTS, 1, "idle"))


def test_a_hook_that_is_outdated_does_not_return_and_a_later_one_counts() -> None:
    ladder = Ladder()
    ladder.saw("told", sighting(Rung.HOOK, 10, "waiting"))
    assert ladder.saw("tail", sighting(Rung.TRANSCRIPT, 11, "idle"))
    ladder.saw("tail", sighting(Rung.TRANSCRIPT, 12, "working"))
    assert not ladder.saw("told", sighting(Rung.HOOK, 10, "waiting"))  # found in the catalog once more
    assert ladder.best("s").fields.state == "working"  # type: ignore[union-attr]
    assert ladder.told() == []
    assert ladder.saw("told", sighting(Rung.HOOK, 13, "waiting"))
    assert ladder.ended("death", "s", Stamp(20, 20, "here"), 20, crashed=True)
    assert not ladder.saw("told", sighting(Rung.HOOK, 19, "working"))  # in flight as the agent died
    assert ladder.best("s").fields.state == "exited"  # type: ignore[union-attr]
    assert ladder.saw("told", sighting(Rung.HOOK, 21, "idle"))  # resumed
    assert ladder.best("s").fields.state == "idle"  # type: ignore[union-attr]


@given(st.lists(_sightings, max_size=12))
def test_whatever_is_seen_a_wait_that_a_hook_told_of_is_hidden_by_nothing_unsure(seen: list[Sighting]) -> None:
    ladder = Ladder()
    ladder.saw("told", sighting(Rung.HOOK, 5, "waiting"))
    over = False
    for one in seen:
        if one.rung is Rung.HOOK:
            continue
        ladder.saw(one.rung.name, one)
        over = over or outdated(sighting(Rung.HOOK, 5, "waiting"), one)
        assert (ladder.told() == []) == over
        if not over:
            assert ladder.best("s").fields.state == "waiting"  # type: ignore[union-attr]
