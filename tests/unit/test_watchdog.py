"""When the watchdog kills, when it revives, and when it holds its hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from pipeline import watchdog
from pipeline.runtime.supervisor import Fault, Unreachable, call
from pipeline.watchdog import Heard, Listener, Watch

S = 1_000_000_000
SILENT, REVIVE, TICK = 20, 30, 5


@pytest.fixture
def watch() -> Watch:
    watch = Watch(SILENT, REVIVE, now=0)
    watch.state("worker:worker-0", "RUNNING", 7, now=0)
    return watch


def ticks(watch: Watch, first: int, last: int, beats: dict[str, Heard]) -> list[tuple[int, str, str, int]]:
    """Tick regularly from second to second; what was ordered, and when."""
    return [
        (at, order.verb, order.program, order.pid)
        for at in range(first, last + 1, TICK)
        for order in watch.tick(at * S, beats)
    ]


def test_a_process_that_beats_is_left_alone(watch: Watch) -> None:
    for at in range(0, 200, TICK):
        assert watch.tick(at * S, {"worker-0": Heard(7, at * S - S)}) == []


def test_a_process_that_stops_beating_is_killed_once_per_silence(watch: Watch) -> None:
    orders = ticks(watch, 0, 65, {"worker-0": Heard(7, 10 * S)})
    assert orders == [(35, "kill", "worker:worker-0", 7), (60, "kill", "worker:worker-0", 7)]


def test_a_process_that_never_beat_has_as_long_from_its_start(watch: Watch) -> None:
    assert ticks(watch, 0, 20, {}) == []
    assert ticks(watch, 25, 25, {}) == [(25, "kill", "worker:worker-0", 7)]


def test_the_beat_of_a_predecessor_does_not_count(watch: Watch) -> None:
    ticks(watch, 0, 20, {})
    assert [order.pid for order in watch.tick(25 * S, {"worker-0": Heard(6, 24 * S)})] == [7]


def test_a_beat_from_before_the_last_boot_does_not_count(watch: Watch) -> None:
    assert ticks(watch, 0, 25, {"worker-0": Heard(7, 10**9 * S)}) == [(25, "kill", "worker:worker-0", 7)]


def test_a_beat_that_could_not_be_read_once_is_not_a_silence(watch: Watch) -> None:
    for at in range(0, 100, TICK):
        torn = at == 50
        assert watch.tick(at * S, {} if torn else {"worker-0": Heard(7, at * S)}) == []


def test_after_late_ticks_nobody_is_judged_until_all_had_time_to_beat(watch: Watch) -> None:
    ticks(watch, 0, 10, {"worker-0": Heard(7, 10 * S)})
    slept = {"worker-0": Heard(7, 10 * S)}
    assert ticks(watch, 3600, 3615, slept) == []
    assert ticks(watch, 3620, 3620, slept) == [(3620, "kill", "worker:worker-0", 7)]


@pytest.mark.parametrize("slept", [4, 5, 9])
def test_a_sleep_that_is_too_short_to_be_noticed_ends_nobody(slept: int) -> None:
    """Of those who may be silent only for a short time: at the next tick they look silent, and they are well."""
    watch = Watch(silent_s=3, revive_s=REVIVE, now=0)
    watch.state("worker:worker-0", "RUNNING", 7, now=0)
    for at in range(5, 20, TICK):
        assert watch.tick(at * S, {"worker-0": Heard(7, at * S - S)}) == []
    woke = 15 + max(slept, TICK)
    assert watch.tick(woke * S, {"worker-0": Heard(7, 15 * S)}) == []
    assert watch.tick((woke + TICK) * S, {"worker-0": Heard(7, (woke + TICK - 1) * S)}) == []
    assert ticks(watch, woke + 2 * TICK, woke + 3 * TICK, {})[:1] == [
        (woke + 3 * TICK, "kill", "worker:worker-0", 7)
    ], "who stays silent is ended"


def test_a_restarted_process_has_its_time_from_the_restart(watch: Watch) -> None:
    ticks(watch, 0, 20, {})
    watch.state("worker:worker-0", "RUNNING", 8, now=21 * S)
    assert ticks(watch, 25, 40, {}) == []
    assert ticks(watch, 45, 45, {}) == [(45, "kill", "worker:worker-0", 8)]


@pytest.mark.parametrize("state", ["STOPPING", "EXITED", "BACKOFF", "STARTING", "STOPPED"])
def test_what_does_not_run_cannot_be_silent(watch: Watch, state: str) -> None:
    watch.state("worker:worker-0", state, 0, now=S)
    assert ticks(watch, 0, 200, {}) == []


def test_what_was_given_up_is_revived_and_again_if_that_fails(watch: Watch) -> None:
    watch.state("worker:worker-0", "FATAL", 0, now=3 * S)
    revive = ("revive", "worker:worker-0", 0)
    assert ticks(watch, 5, 65, {}) == [(35, *revive), (65, *revive)]
    watch.state("worker:worker-0", "STARTING", 0, now=66 * S)
    assert ticks(watch, 70, 200, {}) == []


def test_a_revival_is_due_even_after_late_ticks(watch: Watch) -> None:
    watch.state("worker:worker-0", "FATAL", 0, now=0)
    assert [order.verb for order in watch.tick(3600 * S, {})] == ["revive"]


def event(name: str, payload: str) -> bytes:
    return f"ver:3.0 server:x serial:1 eventname:{name} len:{len(payload)}\n{payload}".encode()


def test_the_listener_answers_each_event_and_ends_with_its_stdin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rpc(_: Path, method: str, *args: Any) -> Any:
        calls.append((method, *args))
        return [{"group": "a", "name": "b", "statename": "RUNNING", "pid": 5, "start": 0}]

    calls: list[Any] = []
    monkeypatch.setattr(watchdog, "call", rpc)
    listener = Listener(tmp_path, Watch(SILENT, REVIVE, 0), own="watchdog")
    state = "processname:worker-0 groupname:worker from_state:STARTING pid:"
    events = (
        event("PROCESS_STATE_RUNNING", f"{state}12")
        + event("PROCESS_STATE_RUNNING", "processname:watchdog groupname:watchdog from_state:STARTING pid:3")
        + event("TICK_5", "when:5")
        + event("TICK_5", "when:10")
        + event("PROCESS_STATE_FATAL", "processname:sources groupname:sources from_state:BACKOFF")
    )
    answers = io.BytesIO()
    listener.serve(io.BytesIO(events), answers)
    assert answers.getvalue() == b"READY\nRESULT 2\nOK" * 5 + b"READY\n"
    assert set(listener.watch.running) == {"worker:worker-0", "a:b"}
    assert set(listener.watch.fatal) == {"sources:sources"}
    assert calls == [("getAllProcessInfo",)]
    assert "gave up" in (tmp_path / watchdog.NOTES).read_text()


def test_a_supervisord_that_cannot_be_reached_is_a_line_and_not_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = Listener(tmp_path, Watch(SILENT, REVIVE, 0), own="watchdog")
    listener.watch.state("a:a", "FATAL", 0, now=0)
    listener.event("TICK_5", {"when": "1"})
    said = capsys.readouterr().err
    assert "supervisord does not answer" in said
    assert "cannot revive a:a" in said
    assert listener.restarts == {}


def test_what_supervisord_answers_is_decoded_by_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import xmlrpc.client

    from pipeline.runtime import supervisor

    def answer(value: Any) -> bytes:
        body = xmlrpc.client.dumps(
            value if isinstance(value, xmlrpc.client.Fault) else (value,), methodresponse=True, allow_none=True
        )
        return b"HTTP/1.0 200 OK\r\n\r\n" + body.encode()

    for value in (True, 3, "a<b&c", "", [1, [2]], {"a": 1, "b": [{"c": ""}]}, []):
        assert supervisor._result(answer(value)) == value
    with pytest.raises(Fault, match="BAD_NAME"):
        supervisor._result(answer(xmlrpc.client.Fault(10, "BAD_NAME: x")))
    params, method = xmlrpc.client.loads(supervisor._request("startProcess", ("a<&:b", False)).decode())
    assert (params, method) == (("a<&:b", False), "supervisor.startProcess")
    with pytest.raises(Unreachable):
        call(tmp_path, "getState")
