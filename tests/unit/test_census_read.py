"""A census of the catalog, and when to take one."""

import itertools
import threading

import pytest

from pipeline import catalog as catalogs
from pipeline.catalog import CatalogUnavailable, Observed, Worktree
from pipeline.domain.model import Ci, Key, Pr, Stamp, kind_of
from pipeline.reconciler.census import Schedule
from pipeline.reconciler.readers.catalog import CatalogReader, read


def tree(name):
    path = f"/srv/{name}"
    return Worktree(path, "main", path, path, 1, "main")


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request, tmp_path):
    server = request.param == "postgresql"
    url = request.getfixturevalue("postgresql").database() if server else f"sqlite:///{tmp_path}/treewire.db"
    catalog = catalogs.open_url(url)
    catalog.add_project("/srv/web", 1)
    catalog.add_project("/srv/empty", 1)
    catalog.upsert_worktrees("web", [tree("web"), tree("fix")], Stamp(1, 2, "c"), 1)
    yield catalog
    catalog.close()


def fill(catalog, workspace):
    fields = {
        "session:b": {"state": "idle"},
        "session:a": {"state": "working"},
        "run": {"port": 1},
        "terminal": {"active": True},
        "ci": {"state": "pending", "pr": 7, "head": "abc"},
        "ratchet": {"enabled": True},
        "pr": {"number": 7, "head": "abc"},
    }
    catalog.record([Observed("web", workspace, group, f, Stamp(9, 9, "c"), 5) for group, f in fields.items()])


def test_a_census_has_every_group_of_every_live_workspace_life_first_and_pr_before_ci(catalog):
    first, second = [workspace.id for workspace in catalog.workspaces()]
    fill(catalog, first)
    clock = itertools.count(100)
    census, problems = read(catalog, lambda: next(clock), "c")
    assert (problems, census.complete, census.projects) == ([], True, ["empty", "web"])
    assert (census.stamp, census.source, census.domain) == (Stamp(100, 101, "c"), "catalog", catalog.domain())
    groups = [(look.workspace, look.group) for look in census.looks]
    assert groups[0] == (first, "life")
    assert groups[-1] == (second, "life")
    ours = [group for workspace, group in groups if workspace == first]
    assert ours[0] == "life"
    assert ours.index("pr") < ours.index("ci")
    assert {*ours} == {"life", "pr", "ci", "ratchet", "terminal", "run", "session:a", "session:b"}
    by_group = {look.group: look for look in census.looks if look.workspace == first}
    assert (by_group["pr"].value, by_group["ci"].value) == (Pr(number=7), Ci(state="pending"))
    assert by_group["ci"].key == Key(7, "abc")
    assert all(look.stamp == census.stamp for look in census.looks if kind_of(look.group) != "terminal")
    assert by_group["terminal"].stamp == Stamp(9, 9, "c")


def test_archived_workspaces_and_removed_projects_are_left_out(catalog):
    first, second = [workspace.id for workspace in catalog.workspaces()]
    fill(catalog, first)
    catalog.archive_workspace(first, Stamp(20, 20, "c"), 1)
    census = read(catalog, lambda: 30, "c").census
    assert [look.workspace for look in census.looks] == [second]
    catalog.remove_project("web", Stamp(40, 40, "c"), 1)
    census = read(catalog, lambda: 50, "c").census
    assert (census.looks, census.projects, census.complete) == ([], ["empty"], True)


def test_a_row_that_cannot_be_read_is_named_and_its_workspace_told_as_unread(catalog):
    [first, _] = catalog.workspaces()
    fill(catalog, first.id)
    with catalog.database.write() as tx:
        tx.exec_driver_sql("UPDATE run_script SET state = 'dancing'")
    census, problems = read(catalog, lambda: 1, "c")
    assert census.complete
    assert census.unread == [first.id]
    assert len(problems) == 1
    assert first.id in problems[0]
    assert "dancing" in problems[0]
    assert "run" not in {look.group for look in census.looks}
    assert len(census.looks) == 8


def test_a_census_beside_a_writer_sees_one_state_of_the_database(catalog):
    """Two workspaces are always written together, so they must always be read together."""
    homes = [workspace.id for workspace in catalog.workspaces()]
    stop = threading.Event()

    def write():
        for n in itertools.count(10):
            if stop.is_set():
                return
            catalog.record([Observed("web", home, "run", {"port": n}, Stamp(n, n, "c"), n) for home in homes])

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    try:
        while len(seen) < 20:
            census = read(catalog, lambda: 1, "c").census
            ports = [look.value.port for look in census.looks if look.group == "run"]
            assert len(set(ports)) <= 1
            seen.update(ports)
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("catalog", ["sqlite"], indirect=True)
def test_a_census_without_a_database_is_an_error_and_no_empty_census(catalog):
    catalog.database.path.unlink()
    with pytest.raises(CatalogUnavailable, match="missing"):
        CatalogReader(catalog, lambda: 1, "c").read()


# ── when ─────────────────────────────────────────────────────────────────────────────────────────

S = 1_000_000_000


@pytest.fixture
def schedule():
    """Every 60 s, at least 2 s apart; the first census was taken at second 0."""
    schedule = Schedule(60, 2000, 0)
    schedule.begin()
    schedule.end(0)
    return schedule


def test_the_first_census_is_due_at_once():
    assert Schedule(60, 2000, 5 * S).due(5 * S) == "start"


def test_without_anything_asked_the_next_census_comes_on_the_cadence(schedule):
    assert schedule.due(59 * S) is None
    assert (schedule.due(60 * S), schedule.next_ns()) == ("cadence", 60 * S)


@pytest.mark.parametrize("reason", ["change", "relook"])
def test_a_change_or_a_relook_keeps_the_distance(schedule, reason):
    schedule.ask(reason)
    assert schedule.due(2 * S - 1) is None
    assert schedule.due(2 * S) == reason


def test_a_new_epoch_waits_for_nothing_but_the_census_that_runs(schedule):
    schedule.ask("epoch")
    assert schedule.due(1) == "epoch"
    schedule.begin()
    schedule.ask("epoch")
    assert (schedule.due(2), schedule.next_ns(), schedule.running) == (None, None, True)
    schedule.end(3)
    assert schedule.due(3) == "epoch"


def test_a_census_that_the_aggregator_does_not_show_to_have_taken_is_taken_again(schedule):
    schedule.sent(9 * S, 10 * S)
    schedule.heard(8 * S, 13 * S)
    assert schedule.due(13 * S) is None
    schedule.heard(8 * S, 13 * S + 1)
    assert schedule.due(13 * S + 1) == "lost"


def test_one_that_it_shows_to_have_taken_is_not(schedule):
    schedule.sent(9 * S, 10 * S)
    schedule.heard(9 * S, 11 * S)
    schedule.heard(8 * S, 30 * S)
    assert schedule.due(30 * S) is None


def test_the_more_censuses_are_not_taken_in_a_row_the_longer_is_the_wait_until_one_is(schedule):
    now = 10 * S
    for wait in (3 * S, 6 * S, 12 * S):
        schedule.sent(now, now)
        schedule.heard(0, now + wait)
        assert schedule.due(now + wait) is None
        now += wait + 1
        schedule.heard(0, now)
        assert schedule.due(now) == "lost"
        schedule.begin()
        schedule.end(now)
    schedule.sent(now, now)
    schedule.heard(now, now)
    schedule.sent(now, now)
    schedule.heard(0, now + 3 * S + 1)
    assert schedule.due(now + 3 * S + 1) == "lost"


def test_what_was_asked_while_a_census_ran_means_another_one(schedule):
    schedule.ask("change")
    schedule.begin()
    schedule.ask("change")
    schedule.end(4 * S)
    assert schedule.due(5 * S) is None
    assert schedule.due(6 * S) == "change"
    schedule.begin()
    schedule.end(6 * S)
    assert schedule.due(8 * S) is None


def test_a_failed_census_is_owed_but_not_at_once(schedule):
    schedule.ask("epoch")
    schedule.begin()
    schedule.end(1 * S, ok=False)
    assert schedule.due(1 * S) is None
    assert schedule.due(3 * S) == "epoch"
    schedule.begin()
    schedule.end(3 * S)
    assert schedule.due(5 * S) is None


def test_a_failed_census_of_the_cadence_is_owed_too(schedule):
    schedule.begin()
    schedule.end(60 * S, ok=False)
    assert schedule.due(62 * S) == "cadence"


def test_two_censuses_never_overlap(schedule):
    schedule.begin()
    with pytest.raises(AssertionError):
        schedule.begin()
