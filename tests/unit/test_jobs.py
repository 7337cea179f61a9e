"""The job table, with a clock of its own: what runs when, where, and how often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.catalog import Target
from workers.jobs import (
    ACTIVE_NS,
    FEW_PATHS,
    FIRST_BACKOFF_NS,
    JOB_LOST_NS,
    LEASE_MARGIN_NS,
    LONGEST_BACKOFF_NS,
    LOUD_NS,
    MAX_SCOPED,
    MOST_PATHS,
    MS,
    PATH_NS,
    PATIENCE_NS,
    SILENT_NS,
    SPARE_TIMERS,
    SPLIT_NS,
    STEAL_NS,
    UNSEEN,
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
        "common_dir": "/r/.git",
    }
    return Target(workspace=name, project="p", **{**fields, **other})  # type: ignore[arg-type]


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
        return self.table.done(lease.id, error, self.now, scoped=not lease.full)

    def settle(self, watched: bool = False) -> None:
        """Everything was looked at, and a quiet while has passed."""
        for name in self.table.workspaces if watched else ():
            self.table.watch(name, True, self.now)
        for _ in range(2):
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


def test_a_host_that_slept_costs_no_worker_its_job_and_no_idle_one_its_place() -> None:
    bench = Bench("a", workers=2)
    lease = bench.only()
    bench.now += 3600 * S
    bench.table.slept(3600 * S)
    assert bench.assign() == []
    assert (bench.table.outstayed, bench.table.workers, bench.table.running) == ([], 2, 1)
    bench.now = lease.until_ns
    bench.assign()
    assert bench.table.outstayed == [lease.address], "awake it has as long as any"


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
    bench.pass_ns(STEAL_NS)
    assert bench.only().target.workspace == "good"


# ── which worker ─────────────────────────────────────────────────────────────────────────────────


def spread(bench: Bench) -> dict[str, bytes]:
    """Who is given which worktree when many wait for longer than a repository's worker is waited for."""
    bench.pass_ns(SPLIT_NS)
    homes = {}
    while leases := bench.assign():
        for lease in leases:
            homes[lease.target.workspace] = lease.address
        for lease in leases:
            bench.finish(lease)
    bench.pass_ns(1 * S)
    return homes


def test_a_worktree_goes_back_to_the_worker_that_knows_it() -> None:
    bench = Bench("a", "b", "c", "d", workers=2)
    first = spread(bench)
    assert len(set(first.values())) == 2
    for name in ("b", "a", "d", "b", "c", "a"):
        bench.table.mark(name, "tree", bench.now)
        lease = bench.only()
        assert lease.address == first[name]
        bench.finish(lease)
        bench.pass_ns(1 * S)


def test_worktrees_of_one_repository_keep_to_one_worker_while_it_keeps_up() -> None:
    bench = Bench(workers=2)
    repositories = {"r1": ["a", "b", "c"], "r2": ["x", "y", "z"]}
    targets = [target(name, common_dir=f"/{repo}") for repo, names in repositories.items() for name in names]
    bench.table.retarget(targets, bench.now)
    homes = {}
    while leases := bench.assign():
        for lease in leases:
            homes[lease.target.workspace] = lease.address
            bench.finish(lease, took=MS)
    assert [len({homes[name] for name in names}) for names in repositories.values()] == [1, 1]
    assert homes["a"] != homes["x"]


def test_a_new_repository_goes_where_least_is() -> None:
    bench = Bench(workers=2)
    bench.table.retarget([target(name, common_dir="/r1") for name in ("a", "b")], bench.now)
    homes = set()
    for _ in range(2):
        lease = bench.only()
        homes.add(lease.address)
        bench.finish(lease, took=MS)
    (loaded,) = homes
    other = next(address for address in bench.addresses if address != loaded)
    bench.table._workers[other].since_ns = bench.now  # the loaded one is idle for longer
    bench.table.retarget([*(target(n, common_dir="/r1") for n in ("a", "b")), target("x", common_dir="/r2")], bench.now)
    assert bench.only().address == other


def test_a_repository_that_outgrows_its_worker_is_split_and_each_worktree_stays_where_it_went() -> None:
    bench = Bench(*(f"w{n}" for n in range(40)), workers=2)
    began = bench.now
    homes: dict[str, bytes] = {}
    under_way: list[tuple[int, Lease]] = []
    while len(homes) < 40:
        for lease in bench.assign():
            homes[lease.target.workspace] = lease.address
            under_way.append((bench.now + 20 * MS, lease))
        bench.now += MS
        for at, lease in [each for each in under_way if each[0] <= bench.now]:
            under_way.remove((at, lease))
            bench.table.done(lease.id, "", bench.now)
        bench.greet()
    assert bench.now - began < 40 * 20 * MS * 0.6, "both of them worked"
    assert min(list(homes.values()).count(address) for address in bench.addresses) > 10
    for _, lease in under_way:
        bench.table.done(lease.id, "", bench.now)
    bench.pass_ns(1 * S)
    for name in homes:
        bench.table.mark(name, "tree", bench.now)
        lease = bench.only()
        assert lease.address == homes[name]
        bench.finish(lease)
        bench.pass_ns(1 * S)


def test_a_worktree_waits_for_its_worker_but_not_for_longer_than_a_look_elsewhere_takes() -> None:
    bench = Bench("a", "b", workers=2)
    bench.table.retarget([target("a"), target("b")], bench.now)
    first = bench.only()
    bench.finish(first, took=300 * MS)  # what a full look costs here
    second = bench.only()
    assert second.address == first.address, "its repository is there"
    bench.finish(second, took=300 * MS)
    bench.pass_ns(1 * S)
    bench.table.mark("a", "tree", bench.now)
    busy = bench.only()
    bench.now += MS
    bench.table.mark("b", "tree", bench.now)
    assert bench.assign() == [], "its worker is busy"
    wakeup = bench.table.next_wakeup(bench.now)
    assert wakeup == bench.now + 300 * MS
    bench.now = wakeup
    bench.greet()
    stolen = bench.only()
    assert stolen.address != busy.address
    assert stolen.full, "the other one knows nothing of it"
    bench.finish(stolen)
    bench.pass_ns(1 * S)
    bench.table.mark("b", "tree", bench.now)
    assert bench.only().address == stolen.address, "and there it stays"


def test_the_worktrees_of_a_worker_that_died_move_and_are_looked_at_in_full() -> None:
    bench = Bench("a", "b", workers=2)
    bench.settle(watched=True)
    bench.table.mark("a", "tree", bench.now, paths=[b"x"])
    lease = bench.only()
    assert not lease.full
    bench.finish(lease)
    bench.table.lost(lease.address, "died", bench.now)
    bench.addresses.remove(lease.address)
    bench.pass_ns(1 * S)
    bench.table.mark("a", "tree", bench.now, paths=[b"x"])
    moved = bench.only()
    assert (moved.address, moved.full) == (bench.addresses[0], "another worker")


def test_a_worker_that_starts_anew_under_its_name_gets_its_worktrees_back_without_what_it_knew() -> None:
    bench = Bench("a", workers=2)
    bench.settle(watched=True)
    bench.table.mark("a", "tree", bench.now, paths=[b"x"])
    former = bench.only()
    bench.finish(former)
    bench.table.lost(former.address, "died", bench.now)
    bench.addresses.remove(former.address)
    bench.table.ready(b"anew", former.worker, bench.now)
    bench.pass_ns(1 * S)
    bench.table.ready(b"anew", former.worker, bench.now)
    bench.table.mark("a", "tree", bench.now, paths=[b"x"])
    lease = bench.only()
    assert (lease.address, lease.full) == (b"anew", "another worker")


def test_a_worker_that_outstays_its_lease_is_named() -> None:
    bench = Bench("a")
    lease = bench.only()
    bench.now = lease.until_ns
    bench.assign()
    assert bench.table.outstayed == [lease.address]


# ── full or scoped ───────────────────────────────────────────────────────────────────────────────


def watched(*names: str, workers: int = 1) -> Bench:
    """All is known, and each edit is told."""
    bench = Bench(*names, workers=workers)
    bench.settle(watched=True)
    return bench


def test_named_paths_are_all_that_is_looked_at() -> None:
    bench = watched("a")
    bench.table.mark("a", "tree", bench.now, paths=[b"src/x", b"\xff"])
    bench.table.mark("a", "tree", bench.now, paths=[b"src/x", b"y"])
    lease = bench.only()
    assert (lease.full, lease.paths, lease.told) == ("", {b"src/x", b"\xff", b"y"}, "tree; scoped, 3 paths")


def test_what_git_did_needs_no_path() -> None:
    bench = watched("a")
    bench.table.mark("a", "index", bench.now)
    bench.table.mark("a", "ref", bench.now)
    bench.table.mark("a", "index", bench.now)
    lease = bench.only()
    assert (lease.full, lease.paths, lease.why) == ("", frozenset(), "index, ref")


def test_hints_are_marks_but_rare_ones_where_a_watch_tells_what_changed() -> None:
    bench = watched("a")
    bench.pass_ns(LOUD_NS)
    looks = 0
    for _ in range(100):
        bench.table.hint("a", "activity", bench.now)
        for lease in bench.assign():
            assert lease.told == "activity; scoped, 0 paths"
            bench.finish(lease)
            looks += 1
        bench.pass_ns(LOUD_NS // 20)
    assert looks == 5
    bench.table.watch("a", False, bench.now)
    bench.table.hint("a", "activity", bench.now)
    bench.pass_ns(POLICY.max_wait_ns)
    assert bench.only().full == "not watched"
    bench.table.hint("nobody", "activity", bench.now)


def test_paths_named_during_a_run_are_looked_at_in_the_next_one() -> None:
    bench = watched("a")
    bench.table.mark("a", "tree", bench.now, paths=[b"x"])
    lease = bench.only()
    bench.table.mark("a", "tree", bench.now, paths=[b"y"])
    bench.finish(lease)
    bench.pass_ns(1 * S)
    assert bench.only().paths == {b"y"}


def test_the_first_look_is_full_and_so_is_any_while_edits_are_not_told() -> None:
    bench = Bench("a")
    lease = bench.only()
    assert lease.full == "first sight"
    bench.finish(lease)
    bench.pass_ns(1 * S)
    bench.table.mark("a", "index", bench.now)
    lease = bench.only()
    assert (lease.full, lease.told) == ("not watched", "index; full: not watched")
    bench.finish(lease)
    bench.pass_ns(1 * S)
    bench.table.watch("a", True, bench.now)
    lease = bench.only()
    assert lease.full == "newly watched", "what happened before that was not told"
    bench.finish(lease)
    bench.pass_ns(1 * S)
    bench.table.mark("a", "index", bench.now)
    lease = bench.only()
    assert lease.full == ""
    bench.table.watch("a", False, bench.now)
    bench.finish(lease)
    bench.pass_ns(1 * S)
    bench.table.mark("a", "index", bench.now)
    assert bench.only().full == "not watched"


def test_a_reason_for_a_full_look_outlives_the_paths_named_beside_it() -> None:
    bench = watched("a")
    bench.table.mark("a", "tree", bench.now, paths=[b"x"])
    bench.table.mark("a", "ignore file", bench.now, full=True)
    bench.table.mark("a", "tree", bench.now, paths=[b"y"])
    lease = bench.only()
    assert (lease.full, lease.paths) == ("ignore file", frozenset())
    bench.finish(lease)
    bench.pass_ns(1 * S)
    bench.table.mark("a", "tree", bench.now, paths=[b"y"])
    assert bench.only().full == ""


@pytest.mark.parametrize("took", [MS, 100 * MS, 10_000 * MS])
def test_more_paths_than_a_full_look_is_worth_are_one(took: int) -> None:
    bench = watched("a")
    bench.table.mark("a", "relook", bench.now, full=True)
    bench.finish(bench.only(), took=took)
    bench.pass_ns(20 * S)
    most = max(FEW_PATHS, min(took // PATH_NS, MOST_PATHS))
    for n in range(most):
        bench.table.mark("a", "tree", bench.now, paths=[b"%d" % n])
    lease = bench.only()
    assert len(lease.paths) == most
    bench.finish(lease)
    bench.pass_ns(1 * S)
    for n in range(most + 1):
        bench.table.mark("a", "tree", bench.now, paths=[b"%d" % n])
    assert bench.only().full == "many paths"


def test_files_found_in_a_new_directory_are_enough_unless_a_look_was_under_way_meanwhile() -> None:
    bench = watched("a")
    bench.table.mark("a", "tree", bench.now, paths=[b"d/x"], since=bench.now - 1)
    lease = bench.only()
    assert lease.paths == {b"d/x"}
    bench.finish(lease)
    bench.pass_ns(1 * S)
    bench.table.mark("a", "tree", bench.now, paths=[b"d/y"], since=lease.began_ns)
    lease = bench.only()
    assert lease.full == "new directory"
    bench.table.mark("a", "tree", bench.now, paths=[b"d/z"], since=bench.now + 1)
    bench.finish(lease)
    bench.pass_ns(1 * S)
    assert bench.only().full == "new directory", "one was under way"


def test_the_cadence_counts_from_the_last_full_look_however_many_scoped_ones_came_since() -> None:
    bench = watched("a")
    fulls = []
    began = bench.now
    while bench.now - began < 3 * POLICY.active_ns:
        bench.table.touch("a", bench.now)
        bench.table.mark("a", "tree", bench.now, paths=[b"x"])
        for lease in bench.assign():
            bench.finish(lease)
            if lease.full:
                fulls.append(lease.full)
        bench.pass_ns(200 * MS)
    assert fulls in (["cadence"] * 2, ["cadence"] * 3)


def test_after_many_scoped_looks_in_a_row_there_is_a_full_one() -> None:
    bench = watched("a")
    told = []
    for _ in range(MAX_SCOPED + 1):
        bench.table.mark("a", "tree", bench.now, paths=[b"x"])
        lease = bench.only()
        bench.finish(lease, took=0)
        told.append(lease.full)
        bench.now += POLICY.debounce_ns
        bench.greet()
    assert told == [""] * MAX_SCOPED + ["many scoped looks"]


def test_a_look_that_the_worker_made_full_says_why_and_starts_the_cadence_anew() -> None:
    bench = watched("a")
    bench.table.mark("a", "index", bench.now)
    lease = bench.only()
    bench.table.done(lease.id, "", bench.now, scoped=False, why="no table")
    assert bench.table.told[-1].why == "index; scoped, 0 paths; turned full: no table"
    wakeup = bench.table.next_wakeup(bench.now)
    assert wakeup is not None
    assert wakeup - bench.now > POLICY.idle_ns * 0.85


def test_after_a_failure_everything_is_looked_at() -> None:
    bench = watched("a")
    bench.table.mark("a", "tree", bench.now, paths=[b"x"])
    bench.finish(bench.only(), error="timeout: too slow")
    bench.pass_ns(FIRST_BACKOFF_NS)
    assert bench.only().full == "again after a failure"


def test_a_job_that_is_given_back_gives_back_its_paths_too() -> None:
    bench = watched("a")
    bench.table.mark("a", "tree", bench.now, paths=[b"x"])
    lease = bench.only()
    bench.table.mark("a", "tree", bench.now, paths=[b"y"])
    bench.pass_ns(JOB_LOST_NS + 1)
    again = bench.only()
    assert (again.address, again.full, again.paths) == (lease.address, "", {b"x", b"y"})


# ── whoever looks on ─────────────────────────────────────────────────────────────────────────────


def test_worktrees_that_no_client_looks_at_are_on_a_slow_cadence() -> None:
    bench = watched("a")
    bench.table.interest(frozenset({"another"}), bench.now)
    bench.table.touch("a", bench.now)
    bench.pass_ns(POLICY.active_ns)
    assert bench.assign() == [], "somebody works there, and nobody looks on"
    bench.pass_ns(POLICY.idle_ns - POLICY.active_ns)
    bench.table.touch("a", bench.now)
    lease = bench.only()
    assert lease.full == "cadence"
    bench.finish(lease)
    bench.pass_ns(ACTIVE_NS + POLICY.idle_ns)
    assert bench.assign() == [], "nobody works there either"
    wakeup = bench.table.next_wakeup(bench.now)
    assert wakeup is not None
    assert wakeup - bench.now > (UNSEEN * 0.85 - 2) * POLICY.idle_ns
    bench.table.mark("a", "tree", bench.now, paths=[b"x"])
    bench.pass_ns(POLICY.max_wait_ns)
    assert bench.only().full == "", "what happens is looked at all the same"


def test_a_client_that_comes_brings_the_cadence_back() -> None:
    bench = watched("a")
    bench.table.interest(frozenset(), bench.now)
    bench.table.mark("a", "relook", bench.now, full=True)
    bench.finish(bench.only())
    bench.pass_ns(2 * POLICY.idle_ns)
    assert bench.assign() == []
    bench.table.interest(frozenset({"p"}), bench.now)
    assert bench.only().full == "cadence"


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
    wakeup = bench.table.next_wakeup(bench.now)
    assert wakeup is not None
    assert wakeup - bench.now <= POLICY.active_ns
    bench.pass_ns(ACTIVE_NS + 1)
    assert bench.assign() == []
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
PATHS = st.sampled_from([b"x", b"y", b"z"])


class Story(RuleBasedStateMachine):
    """Anything may happen, in any order: edits, marks, deaths, failures, silence, lost jobs, worktrees come and go.

    Whatever happens, a scoped look that counts leaves its worker knowing what a full one would have found.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000 * S
        self.table = Table(POLICY)
        self.held: dict[int, Lease] = {}
        self.owed: dict[str, int] = {}  # workspace → when it was last marked and not yet looked at since
        self.incarnations: dict[str, int] = {}
        self.truth: dict[str, dict[bytes, int]] = {}  # what a full look would find
        self.seen_at: dict[int, dict[bytes, int]] = {}  # job → the truth when it was given out
        self.known_by: dict[tuple[bytes, str, int], dict[bytes, int]] = {}  # what each worker's table holds
        self.unseen: set[str] = set()  # worktrees whose edits are not told

    @initialize()
    def begin(self) -> None:
        """Two workers, and two worktrees that were looked at and are watched."""
        self.retarget({"a", "b"})
        for name in ("a", "b"):
            self.watch(name, True)
        for address in (b"w0", b"w1"):
            self.table.ready(address, address.decode(), self.now)
        self.work()
        self.now += S
        for address in (b"w0", b"w1"):
            self.table.ready(address, address.decode(), self.now)

    @rule()
    def work(self) -> None:
        """All that is due is done, without trouble."""
        self.give_out()
        while self.held:
            lease = self.held.pop(min(self.held))
            self.look(lease)
            if self.table.done(lease.id, "", self.now, scoped=not lease.full) is not None:
                self.compare(lease)
            self.give_out()

    def give_out(self) -> None:
        for lease in self.table.assign(self.now):
            name = lease.target.workspace
            alive = {held.target.workspace for held in self.held.values() if self.table.holds(held.id)}
            assert name not in alive, "two jobs for one worktree at once"
            self.held[lease.id] = lease
            self.seen_at[lease.id] = dict(self.truth.get(name, {}))
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
        self.unseen |= names - before

    @rule(name=NAMES)
    def mark(self, name: str) -> None:
        self.table.mark(name, "tree", self.now)
        if name in self.known():
            self.owed[name] = self.now

    @rule(name=NAMES, path=PATHS)
    def edit(self, name: str, path: bytes) -> None:
        """Somebody writes a file; where edits are told, this one is."""
        if name not in self.known():
            return
        files = self.truth.setdefault(name, {})
        files[path] = files.get(path, 0) + 1
        if name not in self.unseen:
            self.table.mark(name, "tree", self.now, paths=[path])
            self.owed[name] = self.now

    @rule(name=NAMES, watched=st.booleans())
    def watch(self, name: str, watched: bool) -> None:
        if name not in self.known():
            return
        self.table.watch(name, watched, self.now)
        if watched and name in self.unseen:
            self.owed[name] = self.now
        (self.unseen.discard if watched else self.unseen.add)(name)

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
        # A worker takes its jobs in turn.
        first = {lease.address: id for id, lease in sorted(self.held.items(), reverse=True)}
        lease = self.held.pop(data.draw(st.sampled_from(sorted(first.values()))))
        if not error:
            self.look(lease)
        counts = self.table.holds(lease.id) and not lease.void
        taken = self.table.done(lease.id, error, self.now, scoped=not lease.full)
        assert (taken is lease) == (counts and not error)
        if counts and error:
            self.owed.setdefault(lease.target.workspace, self.now)
        if taken is not None:
            self.compare(taken)

    def look(self, lease: Lease) -> None:
        """What a worker does: a full look reads everything, a scoped one reads these paths anew and no others."""
        known = self.known_by.setdefault(self.key(lease), {})
        found = self.seen_at[lease.id]
        if lease.full:
            known.clear()
            known.update(found)
        else:
            known.update({path: found[path] for path in lease.paths if path in found})

    def key(self, lease: Lease) -> tuple[bytes, str, int]:
        return lease.address, lease.target.workspace, lease.target.incarnation

    def compare(self, lease: Lease) -> None:
        assert self.known_by[self.key(lease)] == self.seen_at[lease.id], "a scoped look that is not the whole truth"

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """A job does not reach its worker."""
        del self.held[data.draw(st.sampled_from(sorted(self.held)))]

    @rule(address=ADDRESSES)
    def die(self, address: bytes) -> None:
        self.table.lost(address, "died", self.now)
        self.held = {id: lease for id, lease in self.held.items() if lease.address != address}
        self.known_by = {key: known for key, known in self.known_by.items() if key[0] != address}

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
            self.die(address)
        end = self.now + LONGEST_BACKOFF_NS + 20 * S
        while self.now < end:
            self.table.ready(b"w3", "w3", self.now)
            self.give_out()
            for id in list(self.held):
                self.now += MS
                lease = self.held.pop(id)
                self.look(lease)
                if self.table.done(id, "", self.now, scoped=not lease.full) is not None:
                    self.compare(lease)
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


@given(steps=st.lists(st.sampled_from(["x", "y", "z", "give", "give", "answer", "fail", "lose", "wait"]), max_size=30))
def test_no_path_is_lost_whatever_becomes_of_the_jobs_that_had_it(steps: list[str]) -> None:
    """One worktree, one worker that lives: edits, and jobs that are done, that fail, or that never arrive."""
    bench = watched("a")
    truth: dict[bytes, int] = {}
    known: dict[bytes, int] = {}
    pending: tuple[Lease, dict[bytes, int]] | None = None

    def give() -> None:
        nonlocal pending
        for lease in bench.assign():
            pending = lease, dict(truth)

    def answer(error: str = "") -> None:
        nonlocal pending
        if pending is None:
            return
        (lease, found), pending = pending, None
        if not error:
            known.update(found if lease.full else {path: found[path] for path in lease.paths})
        if bench.finish(lease, error=error) is not None:
            assert known == found

    for step in steps:
        if step == "give":
            give()
        elif step in ("answer", "fail"):
            answer("timeout" if step == "fail" else "")
        elif step == "lose" and pending is not None:
            pending = None
            bench.pass_ns(JOB_LOST_NS + 1)
        elif step == "wait":
            bench.pass_ns(POLICY.max_wait_ns)
        elif step in ("x", "y", "z"):
            path = step.encode()
            truth[path] = truth.get(path, 0) + 1
            bench.table.mark("a", "tree", bench.now, paths=[path])
    answer()
    while bench.table.state("a") != "clean":
        bench.pass_ns(100 * MS)
        give()
        answer()
    assert known == truth
