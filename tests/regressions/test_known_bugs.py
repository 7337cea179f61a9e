"""Bugs that systems of this kind are known for, in the merge: each test is named after what holds here instead.

What the gateway, the catalog and the workers are known for is in the other files of this folder; the table of all of
them is in docs/reliability.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline import wire
from pipeline.aggregator.writer import Writer
from pipeline.domain.model import Census, Ci, Git, Key, Life, Look, Pr, Session, Terminal
from pipeline.domain.store import Store
from tests.laws.looks import CLOCK, WALL, census, git, life, look, session, stamp, store, told

ROOT = Path(__file__).parents[2]
SECOND = 1_000_000_000


class Feed:
    """What the aggregator publishes; a tap that nobody watches is one too."""

    def __init__(self) -> None:
        self.watched = False
        self.said: list[object] = []

    def publish(self, topic: bytes, message: object) -> None:
        self.said.append(message)


class Aggregator:
    """The single writer without its sockets. The boot clock goes forward; the wall clock is the test's."""

    def __init__(self) -> None:
        self.now, self.wall = 10, WALL
        self.feed = Feed()
        self.store = Store(CLOCK, 0)
        self.writer = Writer(self.store, "e1", self.feed, Feed(), lambda: self.now, lambda: self.wall)

    def take(self, *messages: Look | Census | bytes) -> list[wire.Delta]:
        """One batch, as the queue hands it over."""
        raw = [one if isinstance(one, bytes) else wire.encode(one) for one in messages]
        return self.writer.take([[one] for one in raw])

    def relooks(self) -> list[object]:
        """What is asked for again, a moment later."""
        self.now += SECOND
        self.writer.ask_relooks()
        return [said for said in self.feed.said if isinstance(said, wire.Relook)]

    def state(self, project: str = "web") -> dict[str, Any]:
        return self.store.projects[project].state()


@pytest.fixture
def aggregator() -> Aggregator:
    return Aggregator()


def shown(store: Store, group: str, workspace: str = "w", project: str = "web") -> dict[str, Any] | None:
    """The public fields of a group, without the time of their change."""
    fields = store.projects[project].state()[workspace].get(group)
    return fields and {name: value for name, value in fields.items() if name != "changed_at"}


def test_a_workspace_born_while_the_census_ran_stays() -> None:
    """R2, S5. Known as: reconciling removes a newborn, because it is not among the rows that were read before it."""
    s = store()
    told(s, life(5, workspace="old"), life(25, workspace="born"))
    tally = s.census(census(20, 30, [life(20, 30, workspace="old")]), WALL)
    assert (tally.buried, tally.held) == ([], False)
    assert set(s.entries) == {"old", "born"}
    s.sweep()
    assert set(s.entries) == {"old", "born"}
    assert s.census(census(40, 50, [life(40, 50, workspace="old")]), WALL).buried == ["born"]  # it did go, later


def test_a_poll_that_arrives_after_an_event_and_began_before_it_changes_nothing(aggregator: Aggregator) -> None:
    """S5, R2. Known as: a late poll reverts an event, because what arrives last wins."""
    aggregator.take(life(1), look("terminal", Terminal(active=False), 2))
    aggregator.take(look("terminal", Terminal(active=True), 25))
    version = aggregator.store.projects["web"].version
    for poll in (stamp(20, 30), stamp(20, 24)):
        row = look("terminal", Terminal(active=False), poll.began, poll.ended)
        aggregator.take(Census(poll, "catalog", "db", ["web"], [life(poll.began, poll.ended), row]))
        assert shown(aggregator.store, "terminal") == {"active": True}
    assert aggregator.store.projects["web"].version == version
    assert aggregator.writer.drift == {}
    assert aggregator.relooks() == [wire.Relook("w", "terminal")]  # the one that overlapped: somebody reads again


@pytest.mark.parametrize("group", ["git", "session:s", "pr"])
def test_an_update_that_waited_in_the_queue_does_not_bring_back_what_was_archived(
    aggregator: Aggregator, group: str
) -> None:
    """S1, S5. Known as: archive while an update is queued; the update makes the entry anew."""
    values = {"git": Git(files=9), "session:s": Session(state="working"), "pr": Pr(number=1)}
    aggregator.take(life(1), git(1, 2))
    queued = look(group, values[group], 9)
    aggregator.take(life(8, phase="archived"), queued, life(7), queued)
    assert aggregator.state() == {}
    aggregator.take(queued, life(8, 9))
    assert (aggregator.state(), aggregator.store.entries) == ({}, {})
    assert aggregator.store.rulings("w", group)[group][-1].ruling.verdict == "buried"


def test_an_equal_look_at_one_group_does_not_make_an_older_look_at_another_stale() -> None:
    """S4, S6. Known as: an equal update blocks an older one, because the time is kept for the entry as a whole."""
    s = store()
    told(s, life(1), git(1, 2), look("terminal", Terminal(active=False), 2))
    assert told(s, git(1, 50)) == ["confirmed"]
    assert told(s, look("terminal", Terminal(active=True), 40)) == ["applied"]


def test_an_event_that_fell_into_an_equal_reading_is_asked_for_again_and_shown(aggregator: Aggregator) -> None:
    """S5, R2. Known as: an equal update blocks an older one, because it is taken for as new as its end. The poll read
    the old value, then the event happened, then the poll ended: it proves nothing against the event."""
    aggregator.take(life(1), look("terminal", Terminal(active=False), 2))
    aggregator.take(look("terminal", Terminal(active=False), 20, 40))
    aggregator.take(look("terminal", Terminal(active=True), 30))
    assert aggregator.relooks() == [wire.Relook("w", "terminal")]
    aggregator.take(look("terminal", Terminal(active=True), 50))
    assert shown(aggregator.store, "terminal") == {"active": True}


def test_what_an_equal_look_saw_later_is_not_undone_by_what_was_read_before_it() -> None:
    """S4, S5. Known as: an update without a change is thrown away with its time, and a late one from before it wins."""
    s = store()
    told(s, life(1), git(1, 10), git(1, 50))
    assert told(s, git(2, 30)) == ["older"]
    assert shown(s, "git") == {"files": 1}


def test_the_order_in_which_sessions_are_listed_is_no_change() -> None:
    """R3, W2. Known as: session lists that come in another order count as a change, and as drift."""
    s = store()
    rows = [session("working", 20, 30, id="a"), session("idle", 20, 30, id="b"), session("error", 20, 30, id="c")]
    s.census(census(20, 30, [life(20, 30), *rows]), WALL)
    ledger = s.projects["web"]
    version, hash_ = ledger.version, ledger.hash()
    again = [look(row.group, row.value, 40, 50) for row in reversed(rows)]
    tally = s.census(census(40, 50, [*again[:2], life(40, 50), again[2]]), WALL + 1)
    assert {ruling.verdict for ruling in tally.rulings} == {"confirmed"}
    assert tally.drift == {}
    assert (ledger.version, ledger.hash(), ledger.since(version)) == (version, hash_, {})


def test_another_pull_request_or_head_does_not_inherit_the_checks_of_the_former_one() -> None:
    """S4. Known as: the workspace shows the old pull request's CI beside the new one."""
    s = store()
    one, two, pushed = Key(1, "aa"), Key(2, "bb"), Key(2, "cc")
    told(s, life(1), look("pr", Pr(number=1, state="open"), 2, key=one), look("ci", Ci(state="failure"), 3, key=one))
    version = s.projects["web"].version
    told(s, look("pr", Pr(number=2, state="open"), 10, key=two))
    assert shown(s, "ci") is None
    patch = s.projects["web"].since(version)
    assert s.projects["web"].version == version + 1  # nobody sees the new number with the old result
    assert patch is not None
    assert patch["w"]["ci"] is None
    assert patch["w"]["status"]["code"] == "waiting_for_ci"
    assert told(s, look("ci", Ci(state="failure"), 11, key=one)) == ["wrong_key"]
    told(s, look("ci", Ci(state="success"), 12, key=two), look("pr", Pr(number=2, state="open"), 20, key=pushed))
    assert shown(s, "ci") is None


def test_a_step_of_the_wall_clock_holds_up_no_group(aggregator: Aggregator) -> None:
    """S4. Known as: the clock is set back, and a group takes nothing until it has caught up with its former time."""
    aggregator.take(life(1), git(1, 2))
    for n, step_ms in enumerate((-3_600_000, 7_200_000, -86_400_000)):
        aggregator.wall += step_ms
        at = 10 + n
        assert len(aggregator.take(git(n + 2, at, at_ms=aggregator.wall), session("working", at, id=f"s{n}"))) == 1
        assert shown(aggregator.store, "git") == {"files": n + 2}
    assert len(aggregator.state()["w"]["sessions"]) == 3


def test_a_workspace_that_moves_to_another_project_leaves_nothing_behind(aggregator: Aggregator) -> None:
    """S1, W1. Known as: a project move leaves a ghost in the former project's list."""
    aggregator.take(life(1), life(1, workspace="other"), git(3, 2), session("working", 2))
    whole = {name: group for name, group in aggregator.state()["w"].items() if name != "life"}
    moved = {delta.project: delta.patch for delta in aggregator.take(life(10, project="api"))}
    assert moved["web"] == {"w": None}
    assert {name: moved["api"]["w"][name] for name in whole} == whole
    assert (set(aggregator.state()), set(aggregator.state("api"))) == ({"other"}, {"w"})
    deltas = aggregator.take(git(4, 20))  # by somebody who has not heard of the move
    assert [delta.project for delta in deltas] == ["api"]
    aggregator.take(life(30, project="api", phase="archived"))
    assert (set(aggregator.state()), aggregator.state("api")) == ({"other"}, {})


def test_a_rename_alone_is_published() -> None:
    """W2. Known as: a rename emits nothing, because only the state is compared."""
    aggregator = Aggregator()
    aggregator.take(life(1, name="one"))
    (delta,) = aggregator.take(life(10, name="two"))
    assert delta.patch == {"w": {"life": {"name": "two", "changed_at": WALL}}}
    (delta,) = aggregator.take(look("life", Life(name="two", phase="ready", branch="fix"), 20))
    assert delta.patch["w"]["life"]["branch"] == "fix"


def test_messages_that_cannot_be_read_cost_nothing_but_themselves(aggregator: Aggregator) -> None:
    """W7. Known as: one bad entry kills the message, and one bad message the batch."""
    aggregator.take(life(1))
    good = wire.encode(git(5, 10))
    bad = (b"", b"\xff\x00", good[:-3], good.replace(b"git", b"tig"), wire.encode(look("no such group", None, 9)))
    (delta,) = aggregator.take(*bad, good, b"more")
    assert delta.patch["w"]["git"]["files"] == 5
    assert aggregator.writer.bad >= 4


def test_sessions_of_a_producer_that_died_are_unknown_until_it_is_heard_again(aggregator: Aggregator) -> None:
    """S3. Known as: a session that was running when everything stopped is shown as working after a restart."""
    row = session("working", 5, producer="live: registry")
    at = stamp(5, 6)
    aggregator.take(Census(at, "catalog", "db", ["web"], [life(5, 6), row]))
    assert aggregator.state()["w"]["status"]["code"] == "agent_working"  # whoever is there has a while to say so
    for _ in range(20):
        aggregator.now += SECOND
        aggregator.writer.beat()
    assert aggregator.state()["w"]["sessions"]["s"]["state"] == "unknown"
    assert aggregator.state()["w"]["status"]["code"] == "session_unknown"


def test_the_table_of_known_bugs_names_every_test_of_this_folder_and_no_other() -> None:
    """O3: docs/reliability.md says what is known, and by which test it is held."""
    table = (ROOT / "docs/reliability.md").read_text().partition("## Known bugs of its kind")[2].partition("\n## ")[0]
    named = re.findall(r"`(test_\w+)`", table)
    defined = {
        name
        for path in Path(__file__).parent.glob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) == len(set(named))
    assert set(named) == defined - {"test_the_table_of_known_bugs_names_every_test_of_this_folder_and_no_other"}
