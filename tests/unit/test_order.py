"""Which of two looks is newer."""

from __future__ import annotations

import pytest

from pipeline.domain import order
from pipeline.domain.model import Key, Look, Pr, Stamp
from pipeline.domain.order import confirm, join, weigh
from tests.laws.looks import ELSEWHERE, git, life, look, stamp


def ruled(current: Look | None, new: Look) -> order.Ruling:
    return weigh(current, new)


def test_the_first_look_is_applied() -> None:
    assert ruled(None, git(1, 10)) is order.FIRST


def test_a_look_that_began_after_the_current_one_had_ended_is_applied() -> None:
    assert ruled(git(1, 10, 20), git(2, 21, 30)) is order.LATER


def test_a_look_that_began_as_the_current_one_ended_proves_nothing() -> None:
    assert ruled(git(1, 10, 20), git(2, 20, 30)) is order.DISAGREES


def test_a_look_that_ended_before_the_current_one_began_is_older() -> None:
    assert ruled(git(1, 10, 20), git(2, 1, 9)) is order.EARLIER


def test_a_look_that_ended_as_the_current_one_began_proves_nothing() -> None:
    assert ruled(git(1, 10, 20), git(2, 1, 10)) is order.DISAGREES


def test_a_poll_that_began_before_an_event_cannot_undo_it() -> None:
    assert ruled(git(2, 15), git(1, 10, 30)) is order.DISAGREES


def test_looks_that_overlap_and_agree_confirm_each_other() -> None:
    assert ruled(git(1, 10, 20), git(1, 15, 25)) is order.AGREES


def test_a_value_with_another_key_does_not_agree() -> None:
    assert ruled(look("pr", Pr(number=1), 10, 20), look("pr", Pr(number=1), 15, 25, key=None)) is order.AGREES
    other = look("pr", Pr(number=1), 15, 25, key=Key(1, "abc"))
    assert ruled(look("pr", Pr(number=1), 10, 20), other) is order.DISAGREES


def test_life_in_another_project_does_not_agree() -> None:
    assert ruled(life(10, 20), life(15, 25, project="api")) is order.DISAGREES


def test_other_groups_only_pass_the_project_on() -> None:
    assert ruled(git(1, 10, 20), git(1, 15, 25, project="api")) is order.AGREES


@pytest.mark.parametrize(("seq", "expected"), [(6, order.NEWER_SEQ), (4, order.OLDER_SEQ), (5, order.OLDER_SEQ)])
def test_within_a_run_the_sequence_decides_whatever_the_clock_says(seq: int, expected: order.Ruling) -> None:
    current = git(1, 100, 200, run="r", seq=5)
    assert ruled(current, git(2, 10, 20, run="r", seq=seq)) is expected
    assert ruled(current, git(2, 300, 400, run="r", seq=seq)) is expected


def test_the_same_sequence_again_confirms() -> None:
    assert ruled(git(1, 10, run="r", seq=5), git(1, 50, run="r", seq=5)) is order.SAME_SEQ


def test_sequences_of_two_runs_are_not_compared() -> None:
    assert ruled(git(1, 10, run="r", seq=9), git(2, 20, run="q", seq=1)) is order.LATER


def test_sequences_of_two_sources_are_not_compared() -> None:
    current = look("terminal", None, 10, run="r", seq=9, source="catalog")
    assert ruled(current, look("terminal", None, 20, run="r", seq=1, source="live")) is order.LATER


@pytest.mark.parametrize(("revision", "expected"), [(6, order.NEWER_REVISION), (4, order.OLDER_REVISION)])
def test_of_two_revisions_of_a_row_the_higher_wins_whatever_the_clock_says(
    revision: int, expected: order.Ruling
) -> None:
    current = git(1, 100, 200, domain="db", revision=5)
    assert ruled(current, git(2, 10, 20, domain="db", revision=revision)) is expected
    assert ruled(current, git(2, 10, 20, domain="db", revision=revision, clock=ELSEWHERE)) is expected


def test_the_same_revision_is_judged_by_the_clock() -> None:
    assert ruled(git(1, 10, domain="db", revision=5), git(1, 20, domain="db", revision=5)) is order.LATER


def test_revisions_of_two_databases_are_not_compared() -> None:
    assert ruled(git(1, 10, domain="a", revision=9), git(2, 20, domain="b", revision=1)) is order.LATER


@pytest.mark.parametrize("began", [1, 1000])
def test_stamps_of_another_clock_prove_nothing(began: int) -> None:
    assert ruled(git(1, 100), git(2, began, clock=ELSEWHERE)) is order.OTHER_CLOCK
    assert ruled(git(1, 100), git(1, began, clock=ELSEWHERE)) is order.AGREES


def test_joined_intervals_cover_both() -> None:
    assert join(stamp(10, 20), stamp(15, 40)) == Stamp(10, 40, stamp(0).clock)
    assert join(stamp(15, 40), stamp(10, 20)) == Stamp(10, 40, stamp(0).clock)


def test_intervals_of_two_clocks_are_not_joined() -> None:
    assert join(stamp(10, 20), stamp(15, 40, ELSEWHERE)) == stamp(10, 20)


def test_a_confirmed_look_keeps_the_sequence_only_if_both_have_it() -> None:
    current = git(1, 10, 20, run="r", seq=5)
    assert confirm(current, git(1, 15, 40)).seq is None
    assert confirm(current, git(1, 15, 40, run="r", seq=5)).seq == 5


def test_a_confirmed_look_keeps_the_revision_only_if_both_have_one_of_the_same_database() -> None:
    current = git(1, 10, 20, domain="db", revision=5)
    assert confirm(current, git(1, 15, 40)).revision is None
    assert confirm(current, git(1, 15, 40, domain="other", revision=5)).revision is None
    assert confirm(current, git(1, 15, 40, domain="db", revision=6)).revision == 6


def test_an_event_within_a_confirmed_poll_is_not_taken_for_newer_by_its_sequence() -> None:
    confirmed = confirm(git(1, 10, run="r", seq=5), git(1, 5, 40))
    assert ruled(confirmed, git(2, 30, run="r", seq=6)) is order.DISAGREES
