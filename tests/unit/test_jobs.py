"""The job table, with a clock of its own: what runs when, where, and how often."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.catalog import Target
from workers.jobs import (
    ACTIVE_NS,
    FIRST_BACKOFF_NS,
    JOB_LOST_NS,
    LEASE_MARGIN_NS,
    LONGEST_BACKOFF_NS,
    MS,
    PATIENCE_NS,
    SILENT_NS,
    SPARE_TIMERS,
    Lease,
    Policy,
    S,
    Table,
    unfit,
)

POLICY = Policy(deadline_ns=10 * S, active_ns=30 * S, idle_ns=300 * S, debounce_ns=20 * MS, max_wait_ns=100 * MS)


def target(name: str, **other: object) -> Target:
    fields = {
        "incarnation": 1,
        "path": f"/w/{name}",
        "git_dir": f"/r/.git/worktrees/{name}",
        "inode": 7,
        "base": "main",
    }
    return Target(workspace=name, project="p", common_dir="/r/.git", **{**fields, **other})  # type: ignore[arg-type]


class Bench:
    """A table, its clock, and workers that do what the test says."""

    def __init__(self, *names: str, workers: int = 1) -> None:
        self.now = 1000 * S
        self.table = Table(POLICY)
        self.addresses = [f"w{n}".encode() for n in range(workers)]
        self.table.retarget([target(name) for name in names], self.now)
        self.greet()

    def greet(self) -> None:
        for address in self.addresses:
            self.table.ready(address, address.decode(), self.now)

    def pass_ns(self, ns: int) -> None:
        self.now += ns
        self.greet()

    def assign(self) -> list[Lease]:
        return self.table.assign(self.now)

    def only(self) -> Lease:
        (lease,) = self.assign()
        return lease

    def finish(self, lease: Lease, error: str = "", took: int = 5 * MS) -> Lease | None:
        self.now += took
        return self.table.done(lease.id, error, self.now)

    def settle(self) -> None:
        """Everything was looked at, and a quiet while has passed."""
        while leases := self.assign():
            for lease in leases:
                self.finish(lease)
        self.pass_ns(1 * S)

    def told(self, event: str) -> list[str]:
        return [told.workspace for told in self.table.told if told.event == event]


def test_a_worktree_never_seen_is_looked_at_at_once() -> None:
    bench = Bench("a")
    lease = bench.only()
    assert (lease.target.workspace, bench.table.state("a")) == ("a", "running")
    assert bench.finish(lease) is lease
    assert bench.table.state("a") == "clean"


def test_the_first_mark_after_a_quiet_while_is_due_at_once() -> None:
    bench = Bench("a")
    bench.settle()
    bench.table.mark("a", "index", bench.now)
    assert bench.only().why == "index"


def test_marks_in_a_row_wait_for_a_pause() -> None:
    bench = Bench("a")
    bench.settle()
    bench.table.mark("a", "index", bench.now)
    lease = bench.only()
    bench.table.mark("a", "tree", bench.now + MS)
    bench.finish(lease, took=5 * MS)
    assert bench.assign() == []
    bench.now = bench.table.next_wakeup(bench.now) or 0
    assert bench.only().why == "tree"


def test_marks_that_never_pause_are_served_after_a_bounded_wait() -> None:
    bench = Bench("a")
    bench.settle()
    bench.table.mark("a", "tree", bench.now)
    bench.finish(bench.only())
    first = bench.now + MS
    served = None
    for _ in range(1000):
        bench.now += MS
        bench.table.mark("a", "tree", bench.now)
        if bench.assign():
            served = bench.now
            break
    assert served is not None
    assert served - first <= POLICY.max_wait_ns


def test_many_marks_during_a_run_lead_to_one_more_run() -> None:
    bench = Bench("a")
    lease = bench.only()
    for n in range(50):
        bench.table.mark("a", "tree", bench.now + n)
    assert bench.table.state("a") == "running+dirty"
    assert bench.assign() == []
    bench.finish(lease)
    bench.pass_ns(1 * S)
    bench.finish(bench.only())
    bench.pass_ns(1 * S)
    assert bench.assign() == []
    assert bench.table.state("a") == "clean"


def test_a_worktree_rests_for_as_long_as_its_run_took() -> None:
    bench = Bench("a")
    lease = bench.only()
    bench.finish(lease, took=3 * S)
    bench.table.mark("a", "tree", bench.now)
    bench.pass_ns(2 * S)
    assert bench.assign() == []
    bench.pass_ns(1 * S)
    assert bench.only().why == "tree"


def test_an_idle_worktree_is_looked_at_again_by_the_cadence_and_an_active_one_sooner() -> None:
    bench = Bench("idle", "active", workers=2)
    bench.settle()
    bench.table.touch("active", bench.now)
    bench.pass_ns(POLICY.active_ns)
    lease = bench.only()
    assert (lease.target.workspace, lease.why) == ("active", "cadence")
    bench.finish(lease)
    bench.pass_ns(POLICY.idle_ns)
    assert {lease.target.workspace for lease in bench.assign()} == {"idle", "active"}


def test_with_nothing_to_do_the_next_wakeup_is_the_cadence() -> None:
    bench = Bench("a")
    bench.settle()
    wakeup = bench.table.next_wakeup(bench.now)
    assert wakeup is not None
    assert wakeup - bench.now > POLICY.idle_ns * 0.85
    assert Table(POLICY).next_wakeup(bench.now) is None


def test_a_worker_that_dies_gives_its_job_back_and_another_one_takes_it() -> None:
    bench = Bench("a", workers=2)
    lease = bench.only()
    bench.table.lost(lease.address, "died", bench.now)
    bench.addresses.remove(lease.address)
    again = bench.only()
    assert again.address != lease.address
    assert again.again
    assert bench.told("requeued") == ["a"]
    assert bench.table.done(lease.id, "", bench.now) is None, "the dead worker's answer is nobody's"
    assert bench.finish(again) is again


def test_a_job_that_kills_its_second_worker_too_is_a_failure() -> None:
    bench = Bench("a", workers=3)
    for _ in range(2):
        lease = bench.only()
        bench.table.lost(lease.address, "died", bench.now)
        bench.addresses.remove(lease.address)
    assert bench.assign() == []
    assert bench.table.failing() == {"a": (1, "died")}
    assert bench.told("requeued") == ["a"]
    assert bench.table.state("a") == "dirty"


def test_a_lease_that_is_outstayed_goes_to_another_worker() -> None:
    bench = Bench("a", workers=2)
    lease = bench.only()
    assert bench.table.next_wakeup(bench.now) == bench.now + POLICY.deadline_ns + LEASE_MARGIN_NS
    bench.now += POLICY.deadline_ns + LEASE_MARGIN_NS
    bench.table.ready(b"w1" if lease.address == b"w0" else b"w0", "other", bench.now)
    assert bench.only().address != lease.address


def test_a_job_that_never_reached_its_worker_is_given_out_again() -> None:
    bench = Bench("a")
    lease = bench.only()
    bench.pass_ns(JOB_LOST_NS // 2)
    assert bench.assign() == [], "its ready may have crossed the job"
    bench.pass_ns(JOB_LOST_NS)
    assert bench.only().id != lease.id


def test_a_worker_that_falls_silent_gets_no_job() -> None:
    bench = Bench()
    bench.now += SILENT_NS + 1
    bench.table.retarget([target("a")], bench.now)
    assert bench.assign() == []
    assert bench.table.workers == 0


def test_failures_are_tried_again_after_growing_and_bounded_pauses_and_say_why() -> None:
    bench = Bench("a")
    pauses = []
    for _ in range(12):
        lease = bench.only()
        assert bench.finish(lease, error="timeout: too slow") is None
        due = bench.table.next_wakeup(bench.now)
        assert due is not None
        pauses.append(due - bench.now)
        bench.table.mark("a", "tree", bench.now)
        assert bench.assign() == [], "a mark does not shorten the pause"
        bench.pass_ns(due - bench.now)
    assert pauses[0] == FIRST_BACKOFF_NS
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_BACKOFF_NS
    assert bench.table.failing() == {"a": (12, "timeout: too slow")}
    bench.finish(bench.only())
    assert bench.table.failing() == {}


def test_active_worktrees_go_first_and_then_whoever_waits_longest() -> None:
    bench = Bench("b", "a", "c")
    bench.settle()
    for name in ("c", "b", "a"):
        bench.table.mark(name, "tree", bench.now)
        bench.now += MS
    bench.table.touch("a", bench.now)
    order = []
    for _ in range(3):
        lease = bench.only()
        order.append(lease.target.workspace)
        bench.finish(lease)
    assert order == ["a", "c", "b"]


def test_an_idle_worktree_is_not_starved_by_active_ones() -> None:
    bench = Bench("busy1", "busy2", "quiet")
    bench.settle()
    bench.table.mark("quiet", "cadence", bench.now)
    began = bench.now
    for _ in range(100_000):
        for name in ("busy1", "busy2"):
            bench.table.touch(name, bench.now)
            bench.table.mark(name, "tree", bench.now)
        leases = bench.assign()
        if any(lease.target.workspace == "quiet" for lease in leases):
            break
        for lease in leases:
            bench.finish(lease, took=100 * MS)
        bench.pass_ns(MS)
    assert bench.now - began < PATIENCE_NS + S


def test_worktrees_that_fail_leave_workers_to_the_others() -> None:
    bench = Bench("bad1", "bad2", "good", workers=2)
    while leases := bench.assign():
        for lease in leases:
            bench.finish(lease, error="timeout" if lease.target.workspace.startswith("bad") else "")
    bench.pass_ns(LONGEST_BACKOFF_NS)
    (hanging,) = bench.assign()
    assert hanging.target.workspace.startswith("bad")
    bench.table.mark("good", "tree", bench.now)
    assert bench.only().target.workspace == "good"


def test_a_worktree_goes_back_to_the_worker_that_knows_it() -> None:
    bench = Bench("a", "b", workers=2)
    first = {lease.target.workspace: lease.address for lease in bench.assign()}
    for lease in list(bench.table._leases.values()):
        bench.finish(lease)
    bench.pass_ns(1 * S)
    for name in ("b", "a", "b", "a"):
        bench.table.mark(name, "tree", bench.now)
        lease = bench.only()
        assert lease.address == first[name]
        bench.finish(lease)
        bench.pass_ns(1 * S)


def test_what_was_under_way_for_a_replaced_worktree_counts_for_nothing() -> None:
    bench = Bench("a", workers=2)
    old = bench.only()
    bench.table.retarget([target("a", incarnation=2)], bench.now)
    assert bench.table.state("a") == "running+dirty"
    assert bench.assign() == [], "two jobs at once are never given, not even for another incarnation"
    assert bench.finish(old) is None
    assert bench.only().target.incarnation == 2


def test_a_worktree_that_left_and_came_back_during_its_run_waits_for_the_end_of_it() -> None:
    bench = Bench("a", workers=2)
    old = bench.only()
    bench.table.retarget([], bench.now)
    bench.table.retarget([target("a")], bench.now)
    assert bench.assign() == []
    bench.table.lost(old.address, "died", bench.now)
    assert bench.only().id != old.id


def test_another_base_branch_is_a_mark_and_keeps_what_is_known() -> None:
    bench = Bench("a")
    bench.settle()
    bench.table.retarget([target("a", base="next")], bench.now)
    assert bench.only().target.base == "next"


def test_a_mark_for_a_worktree_that_is_not_there_is_harmless() -> None:
    bench = Bench()
    bench.table.mark("nobody", "tree", bench.now)
    bench.table.touch("nobody", bench.now)
    assert bench.assign() == []
    assert bench.table.done(99, "", bench.now) is None


def test_a_worktree_whose_path_cannot_go_over_the_bus_is_unfit() -> None:
    assert unfit(target("a")) == ""
    assert "UTF-8" in unfit(target("a", path="/w/\udcff"))
    assert "absolute" in unfit(target("a", git_dir="r/.git"))


def test_a_worktree_stays_active_only_for_a_while() -> None:
    bench = Bench("a")
    bench.settle()
    bench.table.touch("a", bench.now)
    bench.pass_ns(ACTIVE_NS + POLICY.active_ns)
    bench.finish(bench.only())
    wakeup = bench.table.next_wakeup(bench.now)
    assert wakeup is not None
    assert wakeup - bench.now > POLICY.active_ns


def test_a_long_storm_of_marks_leaves_nothing_behind() -> None:
    bench = Bench("a", "b")
    runs = 0
    for _ in range(5000):
        bench.table.mark("a", "tree", bench.now)
        for lease in bench.assign():
            bench.finish(lease)
            runs += 1
        bench.pass_ns(7 * MS)
    assert runs > 100
    assert len(bench.table._timers) <= 2 * 2 + SPARE_TIMERS
    bench.pass_ns(1 * S)
    bench.settle()
    assert (bench.table.state("a"), bench.table.state("b")) == ("clean", "clean")
    wakeup = bench.table.next_wakeup(bench.now)
    assert wakeup is not None
    assert wakeup > bench.now


NAMES = st.sampled_from(["a", "b", "c", "d"])
ADDRESSES = st.sampled_from([b"w0", b"w1", b"w2"])


class Story(RuleBasedStateMachine):
    """Anything may happen, in any order: marks, deaths, failures, silence, worktrees that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000 * S
        self.table = Table(POLICY)
        self.held: dict[int, Lease] = {}
        self.owed: dict[str, int] = {}  # workspace → when it was last marked and not yet looked at since
        self.marked_in_run: dict[str, int] = {}
        self.incarnations: dict[str, int] = {}

    @initialize()
    def begin(self) -> None:
        self.retarget({"a", "b"})

    def give_out(self) -> None:
        for lease in self.table.assign(self.now):
            name = lease.target.workspace
            alive = {held.target.workspace for held in self.held.values() if self.table.holds(held.id)}
            assert name not in alive, "two jobs for one worktree at once"
            self.held[lease.id] = lease
            self.owed.pop(name, None)

    def known(self) -> list[str]:
        return self.table.workspaces

    @rule(names=st.sets(NAMES))
    def retarget(self, names: set[str]) -> None:
        before = set(self.known())
        for name in names - before:
            self.incarnations[name] = self.incarnations.get(name, 0) + 1
        self.table.retarget([target(name, incarnation=self.incarnations[name]) for name in sorted(names)], self.now)
        self.owed = {name: at for name, at in self.owed.items() if name in names}
        self.owed.update(dict.fromkeys(names - before, self.now))

    @rule(name=NAMES)
    def mark(self, name: str) -> None:
        self.table.mark(name, "tree", self.now)
        if name in self.known():
            self.owed[name] = self.now

    @rule(name=NAMES)
    def touch(self, name: str) -> None:
        self.table.touch(name, self.now)

    @rule(ms=st.sampled_from([0, 1, 5, 20, 100, 1000, 4000, 13_000, 40_000]))
    def wait(self, ms: int) -> None:
        self.now += ms * MS

    @rule(address=ADDRESSES)
    def ready(self, address: bytes) -> None:
        self.table.ready(address, address.decode(), self.now)
        self.give_out()

    @rule()
    def assign(self) -> None:
        self.give_out()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), error=st.sampled_from(["", "", "timeout: too slow"]))
    def answer(self, data: st.DataObject, error: str) -> None:
        id = data.draw(st.sampled_from(sorted(self.held)))
        lease = self.held.pop(id)
        counts = self.table.holds(id) and not lease.void
        taken = self.table.done(id, error, self.now)
        assert (taken is lease) == (counts and not error)
        if counts and error:
            self.owed.setdefault(lease.target.workspace, self.now)

    @rule(address=ADDRESSES)
    def die(self, address: bytes) -> None:
        self.table.lost(address, "died", self.now)

    @invariant()
    def the_state_is_one_of_four(self) -> None:
        for name in self.known():
            assert self.table.state(name) in ("clean", "dirty", "running", "running+dirty")

    @invariant()
    def a_mark_is_not_forgotten(self) -> None:
        for name in self.owed:
            assert self.table.state(name) in ("dirty", "running+dirty")

    @invariant()
    def a_job_is_given_back_at_most_once_in_a_row(self) -> None:
        given_back: dict[str, int] = {}
        for told in self.table.told:
            if told.event == "requeued":
                given_back[told.workspace] = given_back.get(told.workspace, 0) + 1
                assert given_back[told.workspace] <= 1
            elif told.event in ("done", "failed", "dropped"):
                given_back.pop(told.workspace, None)

    def teardown(self) -> None:
        """With one healthy worker and nothing new, everything comes to rest, and each worktree was looked at."""
        for address in (b"w0", b"w1", b"w2"):
            self.table.lost(address, "died", self.now)
        self.held.clear()
        end = self.now + LONGEST_BACKOFF_NS + 20 * S
        while self.now < end:
            self.table.ready(b"w3", "w3", self.now)
            self.give_out()
            for id in list(self.held):
                self.now += MS
                self.table.done(id, "", self.now)
                del self.held[id]
            wakeup = self.table.next_wakeup(self.now)
            if wakeup is None:
                break
            self.now = max(self.now + 1, min(wakeup, self.now + S))
        assert not self.owed
        assert {self.table.state(name) for name in self.known()} <= {"clean"}
        assert self.table.queue == self.table.running == 0


TestStory = Story.TestCase


@given(marks=st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_marks_during_a_run_are_worth_exactly_one_more_run(marks: list[int]) -> None:
    bench = Bench("a")
    lease = bench.only()
    for gap in marks:
        bench.now += gap * MS
        bench.table.mark("a", "tree", bench.now)
        assert bench.assign() == []
    bench.table.done(lease.id, "", bench.now)
    runs = 0
    for _ in range(100):
        bench.pass_ns(100 * MS)
        for again in bench.assign():
            runs += 1
            bench.finish(again)
    assert runs == 1
