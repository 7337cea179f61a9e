"""The ledger: every field with the version that last changed it."""

from __future__ import annotations

from copy import deepcopy

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.domain import patch as merge_patch
from pipeline.domain import versioned
from pipeline.domain.versioned import Ledger
from tests.laws.strategies import Write, content, histories, written


def test_a_write_is_one_version_whatever_it_changes() -> None:
    ledger = Ledger()
    assert ledger.write("w", [("git", {"files": 1}), ("status", {"code": "x"})]) == 1
    assert ledger.write("w", [("git", {"files": 2})]) == 2
    assert ledger.state() == {"w": {"git": {"files": 2}, "status": {"code": "x"}}}


def test_since_gives_only_fields_that_changed() -> None:
    ledger = Ledger()
    ledger.write("w", [("git", {"files": 1, "ahead": 3})])
    ledger.write("w", [("git", {"files": 2})])
    assert ledger.since(1) == {"w": {"git": {"files": 2}}}
    assert ledger.since(2) == {}


def test_since_has_no_answer_ahead_of_the_present_or_below_the_floor() -> None:
    ledger = Ledger(7)
    assert ledger.since(8) is None
    assert ledger.since(6) is None
    assert ledger.since(7) == {}


def test_a_cleared_field_travels_as_null() -> None:
    ledger = Ledger()
    ledger.write("w", [("git", {"files": 1, "ahead": 3})])
    ledger.write("w", [("git", {"files": None})])
    assert ledger.since(1) == {"w": {"git": {"files": None}}}
    assert ledger.state() == {"w": {"git": {"ahead": 3}}}


def test_a_cleared_group_travels_as_null() -> None:
    ledger = Ledger()
    ledger.write("w", [("git", {"files": 1}), ("session:s", {"state": "idle"})])
    ledger.write("w", [("session:s", None)])
    assert ledger.since(1) == {"w": {"sessions": {"s": None}}}
    assert ledger.state() == {"w": {"git": {"files": 1}}}


def test_a_group_that_was_cleared_and_set_again_does_not_keep_its_former_fields() -> None:
    ledger = Ledger()
    ledger.write("w", [("git", {"files": 1})])
    ledger.write("w", [("git", None)])
    ledger.write("w", [("git", {"ahead": 1})])
    assert ledger.since(1) == {"w": {"git": {"files": None, "ahead": 1}}}


def test_a_removed_workspace_travels_as_null() -> None:
    ledger = Ledger()
    ledger.write("w", [("git", {"files": 1})])
    assert ledger.remove("w") == 2
    assert ledger.since(1) == {"w": None}
    assert ledger.state() == {}


def test_removing_what_is_not_there_changes_nothing() -> None:
    ledger = Ledger(3)
    assert ledger.remove("w") == 3
    assert ledger.since(3) == {}


def test_a_workspace_that_left_and_came_back_clears_its_former_fields() -> None:
    ledger = Ledger()
    ledger.write("w", [("git", {"files": 1}), ("pr", {"number": 1})])
    ledger.remove("w")
    ledger.write("w", [("git", {"ahead": 2})])
    assert ledger.since(1) == {"w": {"git": {"files": None, "ahead": 2}, "pr": None}}
    assert ledger.since(2) == {"w": {"git": {"ahead": 2}}}


def test_the_hash_is_that_of_the_public_state() -> None:
    ledger = Ledger()
    assert ledger.hash() == merge_patch.state_hash({})
    ledger.write("w", [("session:s", {"state": "idle"})])
    assert ledger.hash() == merge_patch.state_hash({"w": {"sessions": {"s": {"state": "idle"}}}})
    ledger.remove("w")
    assert ledger.hash() == merge_patch.state_hash({})


def test_encoded_entries_are_the_canonical_form() -> None:
    ledger = Ledger()
    ledger.write("w", [("git", {"files": 1, "ahead": 2}), ("pr", {"number": None})])
    ledger.write("v", [("pr", {"number": 1})])
    ledger.remove("v")
    assert msgspec.json.encode(ledger.encoded()) == b'{"w":{"git":{"ahead":2,"files":1}}}'


def test_what_left_is_remembered_only_so_far_and_then_raises_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versioned, "GONE_CAP", 2)
    ledger = Ledger()
    for name in ("a", "b", "c"):
        ledger.write(name, [("git", {"files": 1})])
    for name in ("a", "b", "c"):
        ledger.remove(name)
    assert list(ledger.gone) == ["b", "c"]
    assert ledger.floor == 4
    assert ledger.since(3) is None
    assert ledger.since(4) == {"b": None, "c": None}


def test_emptied_groups_are_remembered_only_so_far_and_then_raise_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versioned, "EMPTY_GROUPS_CAP", 2)
    ledger = Ledger()
    ledger.write("w", [(f"session:{n}", {"state": "idle"}) for n in range(3)])
    for n in range(3):
        ledger.write("w", [(f"session:{n}", None)])
    assert set(ledger.entries["w"].groups) == {"session:1", "session:2"}
    assert ledger.floor == 2
    assert ledger.since(1) is None
    assert ledger.since(2) == {"w": {"sessions": {"1": None, "2": None}}}


def test_groups_of_former_lives_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versioned, "EMPTY_GROUPS_CAP", 2)
    ledger = Ledger()
    for n in range(20):
        ledger.write("w", [(f"session:{n}", {"state": "idle"})])
        ledger.remove("w")
    assert len(ledger.gone["w"][1]) <= 3


def test_a_step_in_which_something_left_has_no_answer_for_cursors_within_it() -> None:
    follower = Ledger.load(3, 0, {}, {})
    follower.apply({"w": None}, 8)
    follower.apply({"v": {"pr": None, "git": {"files": 1}}}, 12)
    assert {version for version in range(13) if follower.since(version) is not None} == {0, 1, 2, 3, 8, 12}


def test_a_step_of_one_version_or_without_a_departure_leaves_every_cursor() -> None:
    follower = Ledger()
    follower.apply({"w": {"git": {"files": 1}, "sessions": {"s": {"state": "idle"}}}}, 4)
    follower.apply({"w": {"git": None, "sessions": {"s": None}}}, 5)
    follower.apply({"w": None}, 6)
    follower.apply({"w": {"run": {"port": 1, "state": None}}}, 9)
    assert all(follower.since(version) is not None for version in range(10))


def test_steps_are_remembered_only_so_far_and_then_raise_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versioned, "STEPS_CAP", 1)
    follower = Ledger()
    follower.apply({"w": None}, 5)
    assert follower.floor == 0
    follower.apply({"w": None}, 10)
    assert follower.floor == 5


def test_an_entry_whose_last_change_left_no_trace_does_not_hide_others_once_loaded() -> None:
    ledger = Ledger()
    ledger.write("a", [("git", {"files": 1})])
    ledger.write("b", [("git", {"files": 1})])
    ledger.write("a", [("pr", None)])
    loaded = Ledger.load(ledger.version, ledger.floor, ledger.dump(), dict(ledger.gone))
    changed = loaded.since(1)
    assert changed is not None
    assert changed["b"] == {"git": {"files": 1}}


@given(histories)
def test_since_any_version_equals_what_brute_force_finds(history: list[Write]) -> None:
    ledger = Ledger()
    states = {0: content(ledger.state())}
    for write in history:
        written(ledger, write)
        states[ledger.version] = content(ledger.state())
    now = states[ledger.version]
    for version, state in states.items():
        delta = ledger.since(version)
        assert delta is not None
        assert content(merge_patch.merge(state, delta)) == now
        changed = {name for name in {*state, *now} if state.get(name) != now.get(name)}
        assert changed <= set(delta)


@given(histories, st.integers(0, 25))
def test_a_loaded_ledger_answers_as_the_original_does(history: list[Write], cut: int) -> None:
    ledger = Ledger()
    for write in history[:cut]:
        written(ledger, write)
    image = msgspec.msgpack.decode(msgspec.msgpack.encode((ledger.dump(), dict(ledger.gone))))
    loaded = Ledger.load(ledger.version, ledger.floor, *image)
    for write in history[cut:]:
        written(ledger, deepcopy(write))
        written(loaded, deepcopy(write))
    assert (loaded.version, loaded.floor, loaded.hash()) == (ledger.version, ledger.floor, ledger.hash())
    assert content(loaded.state()) == content(ledger.state())


@given(histories)
def test_the_hash_kept_up_by_changes_is_that_of_the_whole(history: list[Write]) -> None:
    ledger = Ledger()
    for write in history:
        written(ledger, write)
        assert ledger.hash() == merge_patch.state_hash(ledger.state())
