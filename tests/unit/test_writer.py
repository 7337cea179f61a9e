"""What the aggregator's single writer makes of time that passed while it stood still."""

from __future__ import annotations

import pytest

from pipeline import wire
from pipeline.aggregator.writer import LEASE_NS, Writer
from pipeline.domain.model import LEASED
from pipeline.domain.store import Store
from tests.laws.looks import CLOCK, WALL, life, session

S = 1_000_000_000


class Silent:
    watched = False

    def publish(self, topic: bytes, message: object) -> None:
        """Nobody listens."""


class Beating:
    """A writer that beats each second, with a session that lives as long as its producer is heard."""

    def __init__(self) -> None:
        self.now = 10
        self.store = Store(CLOCK, 0)
        self.writer = Writer(self.store, "e1", Silent(), Silent(), lambda: self.now, lambda: WALL)
        self.take(life(5), session("working", 6, producer=LEASED + "claude"), wire.Alive("sources"))

    def take(self, *messages: wire.Ingress) -> None:
        self.writer.take([[wire.encode(message)] for message in messages])

    def beats(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += S
            self.writer.beat()

    @property
    def state(self) -> str:
        return str(self.store.projects["web"].state()["w"]["sessions"]["s"]["state"])


@pytest.mark.parametrize("slept", [4, 16, 3600])
def test_a_host_that_slept_makes_no_session_unknown(slept: int) -> None:
    """All stood still; who reports is heard a moment later, and nothing has changed."""
    one = Beating()
    one.beats(3)
    version = one.store.projects["web"].version
    one.now += slept * S
    one.beats(5)
    one.take(wire.Alive("sources"))
    one.beats(LEASE_NS // S - 1)
    assert (one.state, one.store.projects["web"].version) == ("working", version)


def test_a_producer_that_is_not_heard_after_it_is_unknown_as_after_any_silence() -> None:
    one = Beating()
    one.beats(3)
    one.now += 3600 * S
    one.beats(LEASE_NS // S - 4)
    assert one.state == "working"
    one.beats(3)
    assert one.state == "unknown"
