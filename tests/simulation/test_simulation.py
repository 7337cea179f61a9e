"""Ten thousand deployments on a simulated clock, each with its own faults; and that a wrong rule would be noticed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest

from gateway.copy import Copy
from gateway.session import Session
from pipeline.domain import order, store
from pipeline.domain.replica import Replica
from pipeline.domain.versioned import Ledger
from pipeline.reconciler.census import Schedule
from tests.simulation.parts import counters
from tests.simulation.run import run
from tests.validators import Graves, Published, Violation, Watcher, bounded, converged

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "10000"))
SHARES = 20


@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", range(SHARES))
def test_whatever_goes_wrong_nobody_is_shown_what_never_was_and_all_agree_in_the_end(share: int) -> None:
    """S1, S3, S4, S5, R1, W2, W3: seeds in shares, so that several workers take them."""
    for seed in range(share, SEEDS, SHARES):
        run(seed)


def test_a_run_follows_from_its_seed_alone() -> None:
    told: list[list[str]] = [[], []]
    for one in told:
        run(7, one.append)
    assert told[0] == told[1]
    assert len(told[0]) > 10


# ── a wrong rule is noticed ──────────────────────────────────────────────────────────────────────


def _always(ruling: order.Ruling) -> Callable[..., order.Ruling]:
    def weigh(current: Any, look: Any) -> order.Ruling:
        return order.FIRST if current is None else ruling

    return weigh


def _deaf(self: Any, *_: Any) -> str:
    return "old" if self.ledger is not None else "epoch"


def _never_wrong(self: Any, epoch: str, version: int, hash_: str, complete: bool) -> str:
    checked = CHECK(self, epoch, version, hash_, complete)
    return "same" if checked == "gap" else checked


CHECK, APPLY, DELTA, ASK = Replica.check, Ledger.apply, Copy._delta, Schedule.ask


def _skipping(self: Any, epoch: str, from_: int, to: int, patch_: Any) -> str:
    ledger = self._of(epoch)
    if ledger is None:
        return "epoch"
    if to <= ledger.version:
        return "old"
    ledger.apply(patch_, to)
    return "applied"


def _deaf_to_epochs(self: Any, reason: str) -> None:
    if reason in ("relook",):
        ASK(self, reason)


def _forgetful(self: Any, patch_: Any, to: int) -> None:
    APPLY(self, {name: entry for name, entry in patch_.items() if entry is not None}, to)


def _gullible(self: Any, frame: Any, now: int) -> Any:
    if self.workspaces is not None and frame.epoch == self.epoch and frame.from_ > self.version:
        self.version = frame.from_
    return DELTA(self, frame, now)


def _hasty(self: Any, epoch: str, ledger: Ledger, complete: bool) -> bool:
    self._show(epoch, ledger, complete)
    return True


BUGS: dict[str, list[tuple[Any, str, Any]]] = {
    "the last to arrive wins": [(store.order, "weigh", _always(order.LATER))],
    "the first to arrive wins": [(store.order, "weigh", _always(order.EARLIER))],
    "the buried come back": [(store, "_found_again", lambda *_: True)],
    "no gap is seen in the feed": [(Replica, "take", _skipping)],
    "no gap is seen by a heartbeat": [(Replica, "check", _never_wrong), (Replica, "take", _deaf)],
    "removals are forgotten": [(Ledger, "apply", _forgetful)],
    "a client believes any delta": [(Copy, "_delta", _gullible)],
    "an image that is late replaces a newer copy": [(Replica, "load", _hasty)],
    "a resync is not answered": [(Session, "_resync", lambda *_: None)],
    "a census buries nobody": [(store.Store, "_absent", lambda *_: [])],
    "what an emptied database lacks is buried at once": [(store.Store, "_mass_delete", lambda *_: False)],
    "a new epoch is not told everything": [(Schedule, "ask", _deaf_to_epochs)],
}


def _found(name: str, seeds: int) -> Violation | None:
    with ExitStack() as stack:
        for place, attribute, instead in BUGS[name]:
            stack.enter_context(patch.object(place, attribute, instead))
        for seed in range(seeds):
            try:
                run(seed)
            except Violation as violation:
                return violation
    return None


@pytest.mark.parametrize("name", BUGS)
def test_a_wrong_rule_is_found_within_a_few_runs(name: str) -> None:
    assert _found(name, 600) is not None


def test_the_message_says_how_to_see_it_again() -> None:
    violation = _found("the first to arrive wins", 100)
    assert violation is not None
    assert "python -m tests.simulation" in violation.__notes__[0]


# ── the validators themselves ────────────────────────────────────────────────────────────────────


def test_each_validator_can_fail() -> None:
    published = Published()
    published.note("e", "web", 1, "x")
    published.note("e", "web", 1, "x")
    with pytest.raises(Violation, match="two states"):
        published.note("e", "web", 1, "y")
    published.check("c", "e", "web", 1, "x")
    with pytest.raises(Violation, match="nobody published"):
        published.check("c", "e", "web", 2, "x")
    with pytest.raises(Violation, match="published was"):
        published.check("c", "e", "web", 1, "y")
    watcher = Watcher("c", counters)
    entry = {"life": {"name": "a-0.1"}, "git": {"files": 3}}
    watcher.check("e", 5, False, {"a": entry})
    with pytest.raises(Violation, match="went back from version"):
        watcher.check("e", 4, False, {"a": entry})
    with pytest.raises(Violation, match="go back from 3 to 2"):
        watcher.check("e", 6, False, {"a": {**entry, "git": {"files": 2}}})
    graves = Graves()
    graves.end("a", 1, 10)
    graves.left({("a", 1)}, set())
    graves.left({("a", 1), ("b", 1)}, {("b", 1)})
    with pytest.raises(Violation, match="nobody had archived"):
        graves.left({("a", 1), ("b", 1)}, set())
    graves.check(10, "a", 1)
    with pytest.raises(Violation, match="is back"):
        graves.check(11, "a", 1)
    with pytest.raises(Violation, match="has not converged"):
        converged("c", {}, {"a": 1})
    with pytest.raises(Violation, match="may be 1"):
        bounded("x", 2, 1)
