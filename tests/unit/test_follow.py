"""Following the aggregator, without a bus: what comes late does not undo what is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from pipeline import follow, wire
from pipeline.domain.versioned import Ledger


class Bus:
    """The bus as the follower sees it; the test plays the aggregator."""

    def __init__(self) -> None:
        self.asked: list[wire.Query] = []
        self.feed_take: Callable[[list[Any]], None]
        self.answer_take: Callable[[list[Any]], None]

    def Queries(self, _: Path, take: Callable[[list[Any]], None]) -> Bus:
        self.answer_take = take
        return self

    def feed(self, _: Path, take: Callable[[list[Any]], None]) -> Bus:
        self.feed_take = take
        return self

    def ask(self, query: wire.Query) -> bool:
        self.asked.append(query)
        return True

    def beat(self, epoch: str, at: int, version: int = 1, **more: Any) -> None:
        heads = {"web": wire.Head(version, ledger(version).hash(), True)}
        self.feed_take([wire.Heartbeat(epoch, at, at, more.pop("heads", heads), census_ns=1)])

    def image(self, epoch: str, version: int) -> None:
        one = ledger(version)
        self.answer_take([wire.Image(1, "web", epoch, version, 0, one.hash(), True, one.dump(), {})])


def ledger(version: int) -> Ledger:
    return Ledger.load(version, 0, {"w": {"git": {"files": (version, version)}}}, {})


@pytest.fixture
def told() -> list[set[str]]:
    return []


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
def follower(bus: Bus, told: list[set[str]]) -> Iterator[follow.Follower]:
    with patch.object(follow, "bus", bus):
        yield follow.Follower(Path("/nowhere"), changed=told.append)


def held(follower: follow.Follower) -> tuple[str, int]:
    replica = follower.replicas["web"]
    assert replica.ledger is not None
    return replica.epoch, replica.ledger.version


def test_the_answer_of_an_aggregator_that_is_no_more_does_not_take_the_copy_back(
    bus: Bus, follower: follow.Follower
) -> None:
    """Found by the simulation."""
    bus.beat("e1", 1, 6)
    bus.image("e1", 6)
    bus.beat("e2", 2, 3)
    bus.image("e2", 3)
    assert held(follower) == ("e2", 3)
    bus.image("e1", 2)
    assert held(follower) == ("e2", 3)


def test_a_heartbeat_that_was_overtaken_is_not_believed(bus: Bus, follower: follow.Follower) -> None:
    """Found by the simulation."""
    bus.beat("e2", 20, 3)
    bus.image("e2", 3)
    bus.beat("e1", 10, 9)
    assert follower.epoch == "e2"
    bus.image("e1", 9)
    assert held(follower) == ("e2", 3)


def test_whoever_begins_in_the_middle_ends_in_the_present_epoch(bus: Bus, follower: follow.Follower) -> None:
    bus.image("e1", 9)  # nobody has said yet which epoch it is
    bus.beat("e2", 2, 3)
    bus.image("e2", 3)
    assert held(follower) == ("e2", 3)


def test_a_project_that_changes_and_ends_in_one_batch_is_not_told_as_changed(
    bus: Bus, follower: follow.Follower, told: list[set[str]]
) -> None:
    """Found by the simulation: whoever looked it up failed."""
    bus.beat("e1", 1, 1)
    bus.image("e1", 1)
    told.clear()
    bus.feed_take([wire.Delta("web", "e1", 1, 2, {"w": None}), wire.Gone("web", "e1")])
    assert told == []
    assert "web" not in follower.replicas
