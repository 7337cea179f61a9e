"""A follower's copy of one project."""

from __future__ import annotations

from pipeline.domain.replica import Replica
from pipeline.domain.versioned import Ledger

ONE = {"w": {"git": {"files": 1}}}
TWO = {"w": {"git": {"files": 2}}}


def image(version: int, files: int = 1) -> Ledger:
    return Ledger.load(version, 0, {"w": {"git": {"files": (files, version)}}}, {})


def replica(version: int = 5, epoch: str = "e1") -> Replica:
    copy = Replica()
    assert copy.load(epoch, image(version), True)
    return copy


def shown(copy: Replica) -> object:
    assert copy.ledger is not None
    return copy.ledger.state()


def test_a_new_copy_holds_nothing() -> None:
    copy = Replica()
    assert copy.ledger is None
    assert copy.version("e1") == -1
    assert copy.take("e1", 0, 1, ONE) == "epoch"
    assert copy.check("e1", 0, "", True) == "epoch"


def test_a_delta_that_continues_the_copy_is_applied() -> None:
    copy = replica()
    assert copy.take("e1", 5, 7, TWO) == "applied"
    assert copy.version("e1") == 7
    assert shown(copy) == TWO


def test_a_delta_from_before_is_applied_if_it_reaches_beyond() -> None:
    copy = replica()
    assert copy.take("e1", 3, 7, TWO) == "applied"
    assert copy.version("e1") == 7


def test_a_delta_that_reaches_no_further_is_old() -> None:
    copy = replica()
    assert copy.take("e1", 3, 5, TWO) == "old"
    assert copy.take("e1", 3, 4, TWO) == "old"
    assert (copy.version("e1"), shown(copy)) == (5, ONE)


def test_a_delta_that_begins_later_is_a_gap_and_changes_nothing() -> None:
    copy = replica()
    assert copy.take("e1", 6, 7, TWO) == "gap"
    assert (copy.version("e1"), shown(copy)) == (5, ONE)


def test_a_delta_of_another_epoch_is_not_applied() -> None:
    copy = replica()
    assert copy.take("e2", 5, 6, TWO) == "epoch"
    assert shown(copy) == ONE


def test_a_heartbeat_with_a_later_version_shows_a_gap() -> None:
    copy = replica()
    assert copy.check("e1", 6, "", True) == "gap"


def test_a_heartbeat_with_another_hash_shows_that_the_copy_is_wrong() -> None:
    copy = replica()
    assert copy.check("e1", 5, image(5).hash(), True) == "same"
    assert copy.check("e1", 5, image(5, files=9).hash(), True) == "hash"


def test_a_heartbeat_from_before_says_nothing() -> None:
    copy = replica()
    assert copy.check("e1", 4, "whatever", True) == "same"


def test_a_heartbeat_of_another_epoch_asks_for_it() -> None:
    assert replica().check("e2", 5, "", True) == "epoch"


def test_a_heartbeat_tells_whether_the_project_is_complete() -> None:
    copy = replica()
    copy.check("e1", 5, image(5).hash(), False)
    assert copy.complete is False


def test_a_new_epoch_is_not_shown_before_it_is_complete() -> None:
    copy = replica()
    assert copy.load("e2", image(1, files=9), False) is False
    assert (copy.epoch, shown(copy)) == ("e1", ONE)
    assert copy.version("e2") == 1
    assert copy.take("e2", 1, 2, TWO) == "applied"
    assert shown(copy) == ONE
    assert copy.check("e2", 2, image(2, files=2).hash(), False) == "same"
    assert copy.epoch == "e1"
    assert copy.check("e2", 2, image(2, files=2).hash(), True) == "same"
    assert (copy.epoch, copy.complete, shown(copy)) == ("e2", True, TWO)
    assert copy.version("e1") == -1


def test_a_forming_copy_behind_its_heartbeat_is_not_shown() -> None:
    copy = replica()
    copy.load("e2", image(1), False)
    assert copy.check("e2", 3, "", True) == "gap"
    assert copy.epoch == "e1"


def test_a_complete_image_of_a_new_epoch_is_shown_at_once() -> None:
    copy = replica()
    assert copy.load("e2", image(1, files=2), True) is True
    assert (copy.epoch, shown(copy)) == ("e2", TWO)


def test_an_image_of_the_shown_epoch_is_shown_even_if_it_is_not_complete() -> None:
    copy = replica()
    assert copy.load("e1", image(8, files=2), False) is True
    assert (copy.complete, shown(copy)) == (False, TWO)


def test_an_image_that_comes_late_does_not_take_the_copy_back() -> None:
    copy = replica()
    copy.take("e1", 5, 7, TWO)
    assert copy.load("e1", image(6), True) is False
    assert (copy.version("e1"), shown(copy)) == (7, TWO)


def test_a_copy_known_to_be_wrong_takes_any_image() -> None:
    copy = replica()
    assert copy.check("e1", 5, "wrong", True) == "hash"
    copy.take("e1", 5, 7, ONE)
    assert copy.load("e1", image(6, files=2), True) is True
    assert (copy.version("e1"), shown(copy)) == (6, TWO)
    assert copy.load("e1", image(5), True) is False
