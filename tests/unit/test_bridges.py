"""What is native becomes a look, or an error that names the field."""

import json

import pytest

from pipeline.bridges import event, git, pull_request, ratchet, run_script, session, terminal, workspace
from pipeline.bridges.event import EventError
from pipeline.bridges.row import Place, RowError
from pipeline.domain.model import Ci, Git, Key, Life, Look, Pr, Ratchet, Run, Session, Stamp, Terminal
from pipeline.wire import Done, decode_ingress, encode

PLACE = Place("web", "web-1", 2, "catalog:abc")
SEEN = {
    "revision": 7,
    "observed_began": 100,
    "observed_ended": 110,
    "observed_clock": "boot",
    "run": "r1",
    "seq": 3,
    "producer": "hook",
    "at_ms": 5,
}
READ = Stamp(200, 210, "boot")

ROWS = [
    (workspace.look, {"name": "n", "phase": "ready", "branch": "b", "base": None}, "life", Life("n", "ready", "b")),
    (
        ratchet.look,
        {"enabled": True, "state": "idle", "stalled": None, "iterating": None},
        "ratchet",
        Ratchet(True, "idle"),
    ),
    (run_script.look, {"state": "running", "port": 3000}, "run", Run("running", 3000)),
    (
        session.look,
        {
            "id": "s1",
            "provider": "claude",
            "name": None,
            "model": None,
            "state": "idle",
            "waiting_for": None,
            "crashed": None,
        },
        "session:s1",
        Session(provider="claude", state="idle"),
    ),
    (
        pull_request.look,
        {"number": 4, "url": None, "state": "open", "review": None, "mergeable": None, "health": None, "head": "abc"},
        "pr",
        Pr(number=4, state="open"),
    ),
    (
        pull_request.checks_look,
        {"state": "pending", "passed": 1, "failed": 0, "pending": 2, "health": None, "pr": 4, "head": "abc"},
        "ci",
        Ci("pending", 1, 0, 2),
    ),
]


@pytest.mark.parametrize(("bridge", "columns", "group", "value"), ROWS)
def test_a_row_becomes_a_look_that_says_when_it_was_read_and_survives_the_wire(bridge, columns, group, value):
    look = bridge({**columns, **SEEN, "path": "/secret"}, PLACE, READ)
    assert (look.group, look.value, look.stamp) == (group, value, READ)
    assert (look.project, look.workspace, look.incarnation) == ("web", "web-1", 2)
    assert (look.source, look.domain, look.revision, look.run, look.seq) == ("catalog", "catalog:abc", 7, "r1", 3)
    assert look.key == (Key(4, "abc") if group in ("pr", "ci") else None)
    assert decode_ingress(encode(look)) == look


@pytest.mark.parametrize(("bridge", "columns", "group", "value"), ROWS)
def test_without_a_reading_a_row_is_stamped_with_its_own_observation(bridge, columns, group, value):
    assert bridge({**columns, **SEEN}, PLACE).stamp == Stamp(100, 110, "boot")


def test_a_terminal_row_is_only_as_new_as_its_own_observation_since_activity_is_not_always_written():
    row = {"active": True, "last_output": 9, **SEEN}
    assert terminal.look(row, PLACE, READ).stamp == Stamp(100, 110, "boot")
    assert terminal.look(row, PLACE, Stamp(1, 2, "next boot")).stamp == Stamp(1, 2, "next boot")
    assert terminal.look(row, PLACE).value == Terminal(True, 9)


@pytest.mark.parametrize(
    "bad", [{"phase": "sleeping"}, {"name": 3}, {"phase": "ready", "base": b"x"}], ids=["word", "number", "bytes"]
)
def test_a_row_with_what_no_look_may_say_is_an_error_that_names_the_column(bad):
    row = {"name": "n", "phase": "ready", "branch": None, "base": None, **SEEN, **bad}
    with pytest.raises(RowError, match=r"a life row cannot be read: .*\$\.(phase|name|base)"):
        workspace.look(row, PLACE)


def test_a_session_no_longer_kept_is_a_look_without_a_value_above_the_rows_last_revision():
    gone = session.gone({"id": "s1", **SEEN}, PLACE, READ)
    assert (gone.group, gone.value, gone.revision) == ("session:s1", None, 8)


def test_a_finished_git_job_is_a_look_at_git_and_a_failed_one_is_none():
    done = Done(id=1, worker="worker-0", workspace="web-1", began=10, ended=20, git=Git(files=3))
    look = git.look(done, "web", 2, "boot")
    assert look == Look("web", "web-1", "git", Git(files=3), Stamp(10, 20, "boot"), "git", 2, producer="worker-0, full")
    assert git.look(Done(1, "worker-0", "web-1", 10, 20, error="deadline"), "web", 2, "boot") is None


# ── events ───────────────────────────────────────────────────────────────────────────────────────


def body(**changes):
    return {"project": "web", "workspace": "web-1", "group": "session:s1", "fields": {"state": "idle"}, **changes}


def test_an_event_keeps_absent_and_null_apart():
    parsed = event.parse(
        json.dumps(body(fields={"state": "waiting", "waiting_for": None}, age_ms=20, seq=1, source="x"))
    )
    assert parsed.fields == {"state": "waiting", "waiting_for": None}
    assert (parsed.age_ms, parsed.seq, parsed.source) == (20, 1, "x")
    assert event.of(body()) == event.parse(json.dumps(body()))


@pytest.mark.parametrize(
    ("group", "fields"),
    [
        ("life", {"phase": "provisioning", "path": "/srv/a"}),
        ("pr", {"number": 1, "state": "open", "head": "abc"}),
        ("ci", {"state": "success", "pr": 1, "head": "abc"}),
        ("ratchet", {"enabled": False}),
        ("terminal", {"active": True, "last_output": 2**53 - 1}),
        ("pr", {"url": "https://forge.example/web/1"}),
        ("pr", {"url": None}),
        ("run", {"state": "running", "port": 1}),
        ("run", {"port": 65535}),
        ("session:a.b:c_d-1", {}),
    ],
)
def test_every_group_that_a_client_may_report_is_taken(group, fields):
    assert event.of(body(group=group, fields=fields)).fields == fields


@pytest.mark.parametrize(
    ("changes", "path", "problem"),
    [
        ({"group": "git"}, "group", "measured by treewire"),
        ({"group": "status"}, "group", "derived"),
        ({"group": "weather"}, "group", "session:<id>"),
        ({"group": "session"}, "group", "session:<id>"),
        ({"group": "session:"}, "group", "not an id"),
        ({"group": "session:a/b"}, "group", "not an id"),
        ({"group": "session:a\n"}, "group", "not an id"),
        ({"group": "session:" + "a" * 81}, "group", "not an id"),
        ({"workspace": "../x"}, "workspace", "not an id"),
        ({"project": ""}, "project", "not an id"),
        ({"fields": {"state": "busy"}}, "fields.state", "Invalid enum value"),
        ({"fields": {"mood": 1}}, "fields.mood", "not a field of session"),
        ({"fields": {"kind": "session"}}, "fields.kind", "not a field of session"),
        ({"fields": {"name": 3}}, "fields.name", "Expected `str | null`"),
        ({"fields": {"crashed": 1}}, "fields.crashed", "Expected `bool | null`"),
        ({"fields": {"name": "x" * 513}}, "fields.name", "longer"),
        ({"fields": {"name": "\x1b[31m"}}, "fields.name", "control character"),
        ({"group": "run", "fields": {"port": -1}}, "fields.port", "between 0"),
        ({"group": "run", "fields": {"port": 65536}}, "fields.port", "between 0 and 65535"),
        ({"group": "ci", "fields": {"passed": 2**53}}, "fields.passed", "between 0"),
        ({"group": "pr", "fields": {"url": "javascript:alert(1)"}}, "fields.url", "begin with http:// or https://"),
        ({"group": "pr", "fields": {"url": ""}}, "fields.url", "begin with http:// or https://"),
        ({"group": "ci", "fields": {"pr": True}}, "fields.pr", "Expected `int"),
        ({"group": "ci", "fields": {"head": 3}}, "fields.head", "Expected `str"),
        ({"group": "life", "fields": {"path": "a/b"}}, "fields.path", "absolute"),
        ({"group": "run", "fields": {"head": "abc"}}, "fields.head", "not a field of run"),
        ({"age_ms": -1}, "age_ms", "between 0"),
        ({"age_ms": 24 * 3600 * 1000 + 1}, "age_ms", "between 0"),
        ({"age_ms": 1.5}, "age_ms", "Expected `int`"),
        ({"age_ms": "1"}, "age_ms", "Expected `int`"),
        ({"seq": 1}, "seq", "name the run or the source"),
        ({"seq": -1, "source": "x"}, "seq", "between 0"),
        ({"source": "x" * 513}, "source", "longer"),
        ({"fields": []}, "fields", "Expected `object`"),
        ({"extra": 1}, "body", "unknown field `extra`"),
    ],
)
def test_what_is_wrong_with_an_event_is_said_with_the_path_of_the_field(changes, path, problem):
    for attempt in (lambda: event.of(body(**changes)), lambda: event.parse(json.dumps(body(**changes)))):
        with pytest.raises(EventError) as caught:
            attempt()
        assert caught.value.path == path
        assert problem in caught.value.problem


def test_half_of_a_surrogate_pair_is_refused_whoever_decodes_it():
    half = body(fields={"name": "\ud800"})
    with pytest.raises(EventError, match=r"fields\.name: .*surrogate"):
        event.of(half)
    with pytest.raises(EventError, match="body: is not JSON"):
        event.parse(json.dumps(half))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff", b'{"fields":' + b"[" * 100_000])
def test_what_is_no_event_at_all_is_an_error_too(raw):
    with pytest.raises(EventError):
        event.parse(raw)


def test_an_event_is_an_instant_of_our_clock_reckoned_from_its_age():
    assert event.event_stamp(20, 1_000_000_000, "boot") == Stamp(980_000_000, 980_000_000, "boot")
    assert event.event_stamp(24 * 3600 * 1000, 5, "boot") == Stamp(0, 0, "boot")
