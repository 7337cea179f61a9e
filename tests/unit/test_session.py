"""One client's protocol without its socket, against real ledgers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway import framing, public
from gateway.session import AHEAD_WAIT_NS, WRITE_BYTES, Close, Limits, Session
from gateway.tokens import Caller
from pipeline import frames
from pipeline.domain import patch as merge_patch
from pipeline.domain.versioned import Ledger
from tests.board import Board, forget_the_start

SECOND = 1_000_000_000
HEARTBEAT_MS = 1000


class Client:
    """The other end: speaks through the session and keeps what it was told."""

    def __init__(self, board: Board, limits: Limits | None = None, greet: bool = True, **who: Any) -> None:
        self.now = 0
        self.board = board
        self.session = Session(board, HEARTBEAT_MS, 0, limits, **who)
        self.states: dict[int, Any] = {}
        if greet:
            assert self.say(type="hello") is None
            self.hear()

    def say(self, **message: Any) -> Close | None:
        return self.session.receive(json.dumps(message).encode(), self.now)

    def hear(self) -> list[dict[str, Any]]:
        heard = [json.loads(one) for data in self.session.due(self.now) for one in framing.payloads(data)]
        for frame in heard:
            if frame["type"] == "snapshot":
                self.states[frame["id"]] = frame["workspaces"]
            elif frame["type"] == "delta":
                self.states[frame["id"]] = merge_patch.merge(self.states.get(frame["id"], {}), frame["patch"])
        return heard

    def ask(self, **message: Any) -> dict[str, Any]:
        assert self.say(**message) is None
        (frame,) = self.hear()
        return frame


@pytest.fixture
def board() -> Board:
    return Board()


def write(board: Board, insertions: int, workspace: str = "w1", project: str = "web") -> int:
    ledger = board.replicas[project].ledger
    assert ledger is not None
    version = ledger.write(workspace, [("git", {"insertions": insertions})])
    board.changed(project)
    return version


def test_hello_is_answered_with_the_epoch_and_the_limits(board: Board) -> None:
    client = Client(board, greet=False)
    told = client.ask(type="hello")
    assert told["type"] == "welcome"
    assert (told["protocol"], told["epoch"], told["heartbeat_ms"]) == (1, "e1", HEARTBEAT_MS)
    assert told["limits"] == {"subscriptions": 32, "frame_bytes": 65_536}


def test_a_subscription_gets_a_snapshot_then_deltas_and_ends_equal(board: Board) -> None:
    ledger = board.project()
    write(board, 1)
    client = Client(board)
    snapshot = client.ask(type="subscribe", id=7, project="web")
    assert (snapshot["type"], snapshot["reason"], snapshot["version"]) == ("snapshot", "initial", 1)
    assert snapshot["hash"] == merge_patch.state_hash(snapshot["workspaces"])
    write(board, 2)
    write(board, 3, "w2")
    (delta,) = client.hear()
    assert (delta["type"], delta["id"], delta["from"], delta["to"]) == ("delta", 7, 1, 3)
    assert client.states[7] == ledger.state()
    assert client.hear() == []


def test_a_client_that_slept_gets_one_frame_however_much_happened(board: Board) -> None:
    ledger = board.project()
    client = Client(board)
    client.ask(type="subscribe", id=1, project="web")
    for n in range(1000):
        write(board, n)
    (delta,) = client.hear()
    assert delta["patch"] == {"w1": {"git": {"insertions": 999}}}
    assert client.states[1] == ledger.state()


def test_clients_at_the_same_cursor_share_one_encoded_frame(board: Board) -> None:
    board.project()
    clients = [Client(board) for _ in range(50)]
    for client in clients:
        client.ask(type="subscribe", id=1, project="web")
    write(board, 5)
    before = board.shelves["web"].encoded
    sent = [client.session.due(0) for client in clients]
    assert all(one[0] is sent[0][0] for one in sent)
    assert board.shelves["web"].encoded - before == 2  # the patch, and the frame around it


def test_while_nothing_is_complete_it_says_loading_once_and_then_the_snapshot(board: Board) -> None:
    board.settled = False
    client = Client(board)
    assert client.ask(type="subscribe", id=1, project="web") == {"type": "loading", "id": 1}
    assert client.hear() == []
    board.project()
    (snapshot,) = client.hear()
    assert snapshot["reason"] == "initial"


def test_a_replica_that_is_still_forming_is_not_shown(board: Board) -> None:
    board.project(complete=False)
    client = Client(board)
    assert client.ask(type="subscribe", id=1, project="web")["type"] == "loading"


def test_a_project_that_a_census_does_not_know_ends_the_wait(board: Board) -> None:
    board.settled = False
    client = Client(board)
    client.ask(type="subscribe", id=1, project="nowhere")
    board.settled = True
    assert client.hear() == [{"type": "end", "id": 1, "code": "not_found"}]
    assert client.session.subscriptions == {}


def test_an_unknown_project_is_an_error_that_does_not_end_the_session(board: Board) -> None:
    board.project()
    client = Client(board)
    assert client.ask(type="subscribe", id=1, project="nowhere")["code"] == "not_found"
    assert client.ask(type="subscribe", id=1, project="web")["type"] == "snapshot"


def test_a_project_that_goes_ends_its_subscription(board: Board) -> None:
    board.project()
    client = Client(board)
    client.ask(type="subscribe", id=1, project="web")
    del board.shelves["web"]
    assert client.hear() == [{"type": "end", "id": 1, "code": "not_found"}]


# ── cursors ──────────────────────────────────────────────────────────────────────────────────────


def test_a_cursor_resumes_with_a_delta_of_what_it_missed(board: Board) -> None:
    board.project()
    for n in range(1, 6):
        write(board, n, f"w{n}")
    client = Client(board)
    delta = client.ask(type="subscribe", id=1, project="web", epoch="e1", version=3)
    assert (delta["type"], delta["from"], delta["to"]) == ("delta", 3, 5)
    assert set(delta["patch"]) == {"w4", "w5"}


def test_a_cursor_at_the_head_is_answered_with_an_empty_delta_never_with_silence(board: Board) -> None:
    board.project()
    write(board, 1)
    delta = Client(board).ask(type="subscribe", id=1, project="web", epoch="e1", version=1)
    assert (delta["from"], delta["to"], delta["patch"]) == (1, 1, {})


def test_a_cursor_of_another_epoch_gets_a_snapshot_that_says_so(board: Board) -> None:
    board.project()
    told = Client(board).ask(type="subscribe", id=1, project="web", epoch="e0", version=0)
    assert (told["type"], told["reason"]) == ("snapshot", "epoch")


def test_a_cursor_below_the_floor_gets_a_snapshot_that_says_so(board: Board) -> None:
    ledger = board.project()
    forget_the_start(ledger)
    board.changed()
    told = Client(board).ask(type="subscribe", id=1, project="web", epoch="e1", version=1)
    assert (told["type"], told["reason"]) == ("snapshot", "floor")


def test_a_client_too_slow_for_what_is_remembered_gets_a_snapshot_that_says_so(board: Board) -> None:
    ledger = board.project()
    client = Client(board)
    client.ask(type="subscribe", id=1, project="web")
    forget_the_start(ledger)
    board.changed()
    (told,) = client.hear()
    assert (told["type"], told["reason"]) == ("snapshot", "slow")


def test_a_cursor_above_the_head_waits_a_moment_for_our_own_replica(board: Board) -> None:
    board.project()
    write(board, 1)
    client = Client(board)
    client.say(type="subscribe", id=1, project="web", epoch="e1", version=2)
    assert client.hear() == []
    assert client.session.waits
    write(board, 2)
    write(board, 3)
    (delta,) = client.hear()
    assert (delta["from"], delta["to"]) == (2, 3)


def test_a_cursor_that_stays_above_the_head_gets_a_snapshot_that_says_so(board: Board) -> None:
    board.project()
    client = Client(board)
    client.say(type="subscribe", id=1, project="web", epoch="e1", version=99)
    client.hear()
    client.now = AHEAD_WAIT_NS
    assert [frame["reason"] for frame in client.hear() if frame["type"] == "snapshot"] == ["ahead"]


def test_a_new_epoch_reaches_a_live_subscription_as_a_snapshot(board: Board) -> None:
    board.project()
    write(board, 1)
    client = Client(board)
    client.ask(type="subscribe", id=1, project="web")
    fresh = Ledger()
    fresh.write("w9", [("life", {"name": "new"})])
    board.project(ledger=fresh, epoch="e2")
    (told,) = client.hear()
    assert (told["reason"], told["epoch"], told["workspaces"]) == ("epoch", "e2", {"w9": {"life": {"name": "new"}}})


def test_a_gap_is_answered_from_where_the_client_is(board: Board) -> None:
    ledger = board.project()
    for n in range(1, 5):
        write(board, n, f"w{n}")
    client = Client(board)
    client.ask(type="subscribe", id=1, project="web")
    delta = client.ask(type="resync", id=1, reason="gap", version=2)
    assert (delta["type"], delta["from"], delta["to"]) == ("delta", 2, ledger.version)


def test_another_hash_is_answered_with_the_whole_state(board: Board) -> None:
    board.project()
    write(board, 1)
    client = Client(board)
    client.ask(type="subscribe", id=1, project="web")
    told = client.ask(type="resync", id=1, reason="hash", version=1)
    assert (told["type"], told["reason"]) == ("snapshot", "hash")


def test_a_gap_right_after_a_hash_still_gets_the_whole_state(board: Board) -> None:
    board.project()
    client = Client(board)
    client.ask(type="subscribe", id=1, project="web")
    client.say(type="resync", id=1, reason="hash")
    client.say(type="resync", id=1, reason="gap", version=0)
    assert [frame["type"] for frame in client.hear()] == ["snapshot"]


# ── heartbeats ───────────────────────────────────────────────────────────────────────────────────


def test_a_heartbeat_follows_the_delta_and_names_the_hash_of_exactly_that_version(board: Board) -> None:
    board.project()
    client = Client(board)
    client.ask(type="subscribe", id=1, project="web")
    write(board, 1)
    client.now = HEARTBEAT_MS * 1_000_000
    delta, heartbeat = client.hear()
    assert (delta["type"], heartbeat["type"], heartbeat["n"]) == ("delta", "heartbeat", 1)
    assert heartbeat["health"] == {"aggregator": "ok"}
    assert heartbeat["subscriptions"]["1"] == {"version": delta["to"], "hash": merge_patch.state_hash(client.states[1])}


def test_a_heartbeat_leaves_out_what_is_not_shown_yet(board: Board) -> None:
    board.settled = False
    client = Client(board)
    client.ask(type="subscribe", id=1, project="web")
    client.now = HEARTBEAT_MS * 1_000_000
    (heartbeat,) = client.hear()
    assert heartbeat["subscriptions"] == {}


def test_a_client_that_never_acknowledges_is_closed(board: Board) -> None:
    client = Client(board)
    for n in range(1, 4):
        client.now = n * HEARTBEAT_MS * 1_000_000
        assert client.session.check(client.now) is None
        assert [frame["n"] for frame in client.hear()] == [n]
    client.now += HEARTBEAT_MS * 1_000_000
    close = client.session.check(client.now)
    assert close is not None
    assert close.code == frames.NO_ACK


def test_a_client_that_acknowledges_stays(board: Board) -> None:
    client = Client(board)
    for n in range(1, 20):
        client.now = n * HEARTBEAT_MS * 1_000_000
        assert client.session.check(client.now) is None
        (heartbeat,) = client.hear()
        client.say(type="ack", n=heartbeat["n"], subscriptions={})


# ── hostile and clumsy clients ───────────────────────────────────────────────────────────────────


def test_whoever_does_not_say_hello_in_time_is_closed(board: Board) -> None:
    session = Session(board, HEARTBEAT_MS, 0)
    assert session.check(5 * SECOND) is None
    close = session.check(5 * SECOND + 1)
    assert close is not None
    assert close.code == frames.HELLO_TIMEOUT


@pytest.mark.parametrize(
    ("greet", "data", "code"),
    [
        (False, b'{"type":"subscribe","id":1,"project":"web"}', frames.WRONG_PROTOCOL),
        (False, b'{"type":"hello","ticket":"' + b"x" * 4096 + b'"}', frames.BAD_FRAME),
        (True, b'{"type":"hello"}', frames.WRONG_PROTOCOL),
        (True, b'{"type":"hello","ticket":"' + b"x" * 65_536 + b'"}', frames.BAD_FRAME),
        (True, b"[" * 60_000, frames.BAD_FRAME),
        (True, b'{"type":"ack","n":1,"subscriptions":' + b'{"a":' * 10_000 + b"}" * 10_001, frames.BAD_FRAME),
        (True, b"\xff\xfe", frames.BAD_FRAME),
        (True, b'{"type":"shout"}', frames.BAD_FRAME),
        (True, b'{"type":"subscribe","id":"1","project":"web"}', frames.BAD_FRAME),
    ],
)
def test_what_breaks_the_protocol_closes_the_session_with_its_code(
    board: Board, greet: bool, data: bytes, code: int
) -> None:
    close = Client(board, greet=greet).session.receive(data, 0)
    assert close is not None
    assert close.code == code
    assert close.reason


def test_a_flood_is_closed_and_the_permitted_rate_is_not(board: Board) -> None:
    board.project()
    flood = Client(board)
    closes = [flood.say(type="unsubscribe", id=1) for _ in range(100)]
    assert next(one.code for one in closes if one) == frames.RATE
    steady = Client(board)
    for n in range(400):
        steady.now = n * SECOND // 20
        assert steady.say(type="unsubscribe", id=1) is None
        steady.session.answers.clear()


def test_a_client_may_subscribe_to_all_it_may_have_at_once_and_no_more(board: Board) -> None:
    for n in range(33):
        board.project(f"p{n}")
    client = Client(board)
    for n in range(33):
        assert client.say(type="subscribe", id=n, project=f"p{n}") is None
    heard = client.hear()
    assert sum(frame["type"] == "snapshot" for frame in heard) == 32
    assert [frame["code"] for frame in heard if frame["type"] == "error"] == ["too_many"]


def test_an_id_in_use_is_an_error_and_the_subscription_goes_on(board: Board) -> None:
    board.project()
    client = Client(board)
    client.ask(type="subscribe", id=1, project="web")
    assert client.ask(type="subscribe", id=1, project="web")["code"] == "duplicate"
    write(board, 1)
    assert [frame["type"] for frame in client.hear()] == ["delta"]


def test_what_is_unsubscribed_is_silent_and_its_id_is_free(board: Board) -> None:
    board.project()
    client = Client(board)
    client.ask(type="subscribe", id=1, project="web")
    assert client.ask(type="unsubscribe", id=1) == {"type": "end", "id": 1, "code": "unsubscribed"}
    write(board, 1)
    assert client.hear() == []
    assert client.ask(type="unsubscribe", id=1)["code"] == "not_found"
    assert client.ask(type="resync", id=1, reason="hash")["code"] == "not_found"
    assert client.ask(type="subscribe", id=1, project="web")["type"] == "snapshot"


def test_one_write_is_bounded_and_the_rest_follows(board: Board) -> None:
    for name in ("a", "b", "c"):
        board.project(name).write("w1", [("life", {"name": "x" * WRITE_BYTES})])
        board.changed(name)
    client = Client(board)
    for n, name in enumerate(("a", "b", "c")):
        client.say(type="subscribe", id=n, project=name)
    rounds = []
    while not rounds or client.session.waits:
        rounds.append(len(client.hear()))
    assert rounds == [1, 1, 1]


# ── who it is, and what he may see ───────────────────────────────────────────────────────────────

WEB = Caller("t1", projects=frozenset({"web"}))
BOTH = Caller("t1", projects=frozenset({"web", "api"}))


def test_a_project_that_the_caller_may_not_see_is_answered_like_one_that_there_is_not(board: Board) -> None:
    """W1: at a subscribe and at a resume, before and after a census has told which projects there are."""
    board.project("web")
    board.project("api").write("w1", [("life", {"name": "canary"})])
    board.changed("api")
    for cursor in ({}, {"epoch": "e1", "version": 0}):
        client = Client(board, caller=WEB)
        told = [client.ask(type="subscribe", id=1, project=name, **cursor) for name in ("api", "nowhere")]
        assert told[0] == told[1]
        assert told[0]["code"] == "not_found"
    board.settled = False
    client = Client(board, caller=WEB)
    assert client.ask(type="subscribe", id=1, project="api")["type"] == "loading"
    assert client.ask(type="subscribe", id=2, project="nowhere")["type"] == "loading"
    board.settled = True
    assert [(frame["type"], frame["code"]) for frame in client.hear()] == [("end", "not_found")] * 2
    assert client.states == {}


def test_a_grant_that_is_taken_away_ends_its_subscription_and_no_other(board: Board) -> None:
    """W1."""
    for name in ("web", "api"):
        board.project(name)
    client = Client(board, caller=BOTH)
    client.ask(type="subscribe", id=1, project="web")
    client.ask(type="subscribe", id=2, project="api")
    write(board, 1, project="api")
    write(board, 1, project="web")
    assert client.session.regrant(WEB) is None
    assert [(frame["type"], frame["id"], frame.get("code")) for frame in client.hear()] == [
        ("end", 2, "revoked"),
        ("delta", 1, None),
    ]
    assert client.session.projects == {"web"}
    assert client.ask(type="resync", id=2, reason="hash")["code"] == "not_found"
    assert client.ask(type="subscribe", id=2, project="api")["code"] == "not_found"
    assert client.session.regrant(BOTH) is None
    assert client.ask(type="subscribe", id=2, project="api")["type"] == "snapshot"


def test_a_token_that_is_gone_closes_the_session(board: Board) -> None:
    board.project()
    client = Client(board, caller=WEB)
    close = client.session.regrant(None)
    assert close is not None
    assert close.code == frames.REVOKED


def test_a_ticket_says_who_an_unknown_client_is(board: Board) -> None:
    board.project("web")
    board.project("api")
    client = Client(board, greet=False, caller=None, redeem={"good": WEB}.__getitem__)
    assert client.ask(type="hello", ticket="good")["type"] == "welcome"
    assert client.ask(type="subscribe", id=1, project="api")["code"] == "not_found"
    assert client.ask(type="subscribe", id=1, project="web")["type"] == "snapshot"


@pytest.mark.parametrize(
    ("hello", "answer", "code"),
    [
        ({}, WEB, frames.UNAUTHENTICATED),
        ({"ticket": "used"}, Close(frames.UNAUTHENTICATED, "used"), frames.UNAUTHENTICATED),
        ({"ticket": "old"}, Close(frames.TICKET_EXPIRED, "too late"), frames.TICKET_EXPIRED),
        ({"ticket": "t"}, Caller("t1", projects=frozenset()), frames.FORBIDDEN),
    ],
)
def test_without_a_ticket_that_opens_something_there_is_no_welcome(
    board: Board, hello: dict[str, str], answer: Caller | Close, code: int
) -> None:
    client = Client(board, greet=False, caller=None, redeem=lambda _: answer)
    close = client.say(type="hello", **hello)
    assert close is not None
    assert close.code == code
    assert not client.session.greeted


def test_when_there_are_as_many_clients_as_there_may_be_a_hello_is_refused(board: Board) -> None:
    board.crowded = True
    close = Client(board, greet=False).say(type="hello")
    assert close is not None
    assert close.code == frames.TOO_MANY


def test_a_client_that_waits_for_an_aggregator_that_is_not_there_is_sent_elsewhere(board: Board) -> None:
    """W6: it is never shown an empty list, and not kept for ever either."""
    board.settled, board.stale = False, True
    client = Client(board)
    client.now = 1
    client.ask(type="subscribe", id=1, project="web")
    wait = client.session.limits.unready_ns
    acknowledge(client, wait)
    assert client.session.check(wait) is None
    close = client.session.check(1 + wait)
    assert close is not None
    assert close.code == frames.NOT_READY
    board.stale = False
    assert client.session.check(1 + wait) is None


def test_a_client_that_has_something_to_show_is_not_sent_elsewhere(board: Board) -> None:
    board.project()
    board.stale = True
    client = Client(board)
    client.ask(type="subscribe", id=1, project="web")
    wait = client.session.limits.unready_ns
    acknowledge(client, 10 * wait)
    assert client.session.check(10 * wait) is None


def acknowledge(client: Client, now: int) -> None:
    client.now = now
    for frame in client.hear():
        if frame["type"] == "heartbeat":
            client.say(type="ack", n=frame["n"])


# ── other forms ──────────────────────────────────────────────────────────────────────────────────


def test_who_can_only_listen_gets_the_same_messages_as_events_that_carry_the_cursor(board: Board) -> None:
    """W10."""
    board.project()
    write(board, 1)
    session = Session(board, HEARTBEAT_MS, 0, form=framing.event)
    session.follow("web", "", -1, 0)
    welcome, snapshot = session.due(0)
    assert welcome.startswith(b'data: {"type":"welcome"')
    assert snapshot.startswith(b'id: e1.1\ndata: {"type":"snapshot","id":1,')
    write(board, 2)
    (delta,) = session.due(0)
    assert delta == b"id: e1.2\ndata: %b\n\n" % framing.payloads(board.shelves["web"].delta(1, 1) or b"")[0]
    for n in range(1, 10):
        now = n * HEARTBEAT_MS * 1_000_000
        assert session.check(now) is None  # it cannot acknowledge, and need not
        (beat,) = session.due(now)
        assert beat.startswith(b'data: {"type":"heartbeat"')


def test_who_resumes_as_a_listener_gets_a_delta(board: Board) -> None:
    """W3, W10."""
    board.project()
    write(board, 1)
    write(board, 2)
    session = Session(board, HEARTBEAT_MS, 0, form=framing.event)
    session.follow("web", "e1", 1, 0)
    assert session.due(0)[1].startswith(b'id: e1.2\ndata: {"type":"delta","id":1,"epoch":"e1","from":1,"to":2,')


def test_a_packed_frame_is_packed_once_for_all_who_take_it_so(board: Board) -> None:
    board.project().write("w1", [("life", {"name": "x" * 400})])
    board.changed()
    clients = [Client(board, form=framing.deflated) for _ in range(20)]
    sent = []
    for client in clients:
        client.say(type="subscribe", id=1, project="web")
        sent += client.session.due(0)
    assert all(one is sent[0] for one in sent)
    assert len(sent[0]) < 400
    plain = Client(board).ask(type="subscribe", id=1, project="web")
    assert [json.loads(one) for one in framing.payloads(sent[0])] == [plain]


# ── what may leave ───────────────────────────────────────────────────────────────────────────────


def test_what_is_not_public_never_leaves_and_the_hash_is_that_of_what_does(board: Board) -> None:
    ledger = board.project()
    ledger.write("w1", [("life", {"name": "fix"})])
    board.changed()
    client = Client(board)
    client.ask(type="subscribe", id=1, project="web")
    ledger.write("w1", [("life", {"path": "/home/canary"}), ("secret", {"pid": 4711}), ("git", {"files": 1})])
    ledger.write("w1", [("session:s1", {"state": "working", "pid": 4711})])
    board.changed()
    (delta,) = client.hear()
    assert delta["patch"] == {"w1": {"git": {"files": 1}, "life": {}, "sessions": {"s1": {"state": "working"}}}}
    other = Client(board)
    snapshot = other.ask(type="subscribe", id=1, project="web")
    assert "canary" not in json.dumps(snapshot)
    assert "4711" not in json.dumps(snapshot)
    assert merge_patch.state_hash(client.states[1]) == merge_patch.state_hash(other.states[1]) == snapshot["hash"]
    assert "canary" not in board.shelves["web"].state().decode()


def test_every_group_of_the_model_is_public_and_nothing_else() -> None:
    assert set(public.ALLOWED) == {"life", "git", "pr", "ci", "ratchet", "terminal", "run", "session", "status"}
    assert not any({"path", "pid", "cwd"} & fields for fields in public.ALLOWED.values())


def test_a_change_of_who_is_needed_is_urgent_and_others_are_not(board: Board) -> None:
    ledger = board.project()
    ledger.write("w1", [("git", {"files": 1})])
    assert not board.changed()
    ledger.write("w1", [("status", {"needs_user": True})])
    assert board.changed()
    ledger.write("w1", [("status", {"code": "agent_working"})])
    assert not board.changed()
