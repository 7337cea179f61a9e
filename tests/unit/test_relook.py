"""Which groups have to be read again."""

from __future__ import annotations

from pipeline.domain import relook
from pipeline.domain.relook import FIRST_NS, LONGEST_NS, Relooks


def test_a_relook_is_asked_for_after_a_short_while() -> None:
    relooks = Relooks()
    relooks.want("w", "git", 0)
    assert relooks.due(FIRST_NS - 1) == []
    assert relooks.due(FIRST_NS) == [("w", "git")]


def test_one_relook_is_outstanding_however_often_looks_disagree() -> None:
    relooks = Relooks()
    relooks.want("w", "git", 0)
    relooks.want("w", "git", FIRST_NS - 1)
    assert len(relooks) == 1
    assert relooks.due(FIRST_NS) == [("w", "git")]
    relooks.want("w", "git", FIRST_NS)
    assert relooks.due(FIRST_NS) == []


def test_it_is_asked_for_less_and_less_often_but_never_given_up() -> None:
    relooks = Relooks()
    relooks.want("w", "git", 0)
    now, wait = 0, FIRST_NS
    for _ in range(10):
        assert relooks.due(now + wait - 1) == []
        assert relooks.due(now + wait) == [("w", "git")]
        now, wait = now + wait, min(2 * wait, LONGEST_NS)
    assert wait == LONGEST_NS


def test_a_settled_group_is_not_asked_for() -> None:
    relooks = Relooks()
    relooks.want("w", "git", 0)
    relooks.want("w", "pr", 0)
    relooks.settle("w", "git")
    relooks.settle("w", "never wanted")
    assert relooks.due(LONGEST_NS) == [("w", "pr")]


def test_after_it_was_settled_a_new_relook_begins_anew() -> None:
    relooks = Relooks()
    relooks.want("w", "git", 0)
    relooks.due(FIRST_NS)
    relooks.settle("w", "git")
    relooks.want("w", "git", LONGEST_NS)
    assert relooks.due(LONGEST_NS + FIRST_NS) == [("w", "git")]


def test_only_so_many_groups_wait() -> None:
    relooks = Relooks()
    for number in range(relook.CAP + 10):
        relooks.want("w", f"session:{number}", 0)
    assert len(relooks) == relook.CAP
