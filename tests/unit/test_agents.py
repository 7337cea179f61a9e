"""What agents write of their sessions, and what is made of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bridges import claude, codex
from pipeline.domain.model import Session
from pipeline.sources.tail import Tail
from pipeline.sources.transcripts import Transcripts

FIXTURES = Path(__file__).parents[1] / "fixtures"
ID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"


def states(reading: Any, read: Any, file: str) -> list[Any]:
    return [reading.state for line in (FIXTURES / file).read_bytes().splitlines() if read(reading, line)]


def assistant(stop: Any, *blocks: Any, **rest: Any) -> bytes:
    message = {"role": "assistant", "model": "m", "stop_reason": stop, "content": list(blocks)}
    return json.dumps({"type": "assistant", "sessionId": "s", "cwd": "/w", "message": message, **rest}).encode()


# ── Claude ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("file", "state", "waiting_for"),
    [
        ("busy", "working", None),
        ("shell", "idle", None),
        ("idle", "idle", None),
        ("permission", "waiting", "permission"),
        ("plan", "waiting", "plan"),
        ("future", "unknown", None),  # present, unrecognised
        ("2.1.150-busy", "working", None),
        ("2.1.150-permission", "waiting", "permission"),
        ("2.1.150-sandbox", "waiting", "permission"),
        ("2.1.150-worker", "waiting", "permission"),
        ("2.1.150-dialog", "waiting", "question"),
        ("2.1.150-input", "waiting", "question"),
    ],
)
def test_the_registry_tells_the_state_and_whom_it_is_of(file: str, state: Any, waiting_for: Any) -> None:
    found = claude.registered((FIXTURES / f"claude/registry-{file}.json").read_bytes())
    assert found is not None
    assert found.fields == Session(provider="claude", name="fix-login", state=state, waiting_for=waiting_for)
    assert (found.pid, found.started, found.session, found.cwd) == (4242, 123456, "claude-" + ID, "/work/web")
    assert found.at_ms == 1767323045000


@pytest.mark.parametrize("file", ["sdk", "2.1.150-starting"])
def test_an_entry_without_a_status_leaves_it_to_others_and_dates_nothing(file: str) -> None:
    found = claude.registered((FIXTURES / f"claude/registry-{file}.json").read_bytes())
    assert found is not None
    assert found.fields == Session(provider="claude")
    assert found.at_ms is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"pid": "1"}', b"\xff", b"[" * 5000, b'{"pid": 1}'])
def test_what_is_no_registry_entry_is_none(body: bytes) -> None:
    assert claude.registered(body) is None


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("permission prompt", "permission"),
        ("plan approval", "plan"),
        ("user input", "question"),
        ("login", "auth"),
        (None, "permission"),
        (7, "permission"),
    ],
)
def test_what_a_session_waits_for_is_one_of_four_kinds(words: Any, kind: str) -> None:
    assert claude.asked_for(words) == kind


def test_a_transcript_tells_the_state_by_its_last_line_and_subagents_do_not_count() -> None:
    reading = claude.Reading()
    assert states(reading, claude.read, "claude/transcript-1.jsonl") == ["working"] * 4 + ["idle"]
    assert reading.fields() == Session(provider="claude", model="claude-opus-4-1", state="idle")
    assert (reading.session, reading.cwd, reading.at_ms) == ("claude-" + ID, "/work/web", 1767323049000)


def test_what_the_program_does_by_itself_is_no_work() -> None:
    """A conversation that was made shorter, and a command that only the program has run."""
    reading = claude.Reading()
    seen = states(reading, claude.read, "claude/transcript-2.1.jsonl")
    assert seen == ["working", "working", "working", "idle", "working", "idle"]
    assert reading.fields() == Session(provider="claude", model="claude-opus-4-6", state="idle")


def test_nothing_of_what_was_said_is_kept() -> None:
    """G4: no prompt, message or tool's input leaves the file that it is in."""
    files = [
        *((claude, path) for path in sorted((FIXTURES / "claude").glob("*.jsonl"))),
        *((codex, path) for path in sorted((FIXTURES / "codex").glob("*.jsonl"))),
    ]
    assert len(files) >= 5
    for module, file in files:
        assert b"CANARY" in file.read_bytes()
        reading = module.Reading()  # type: ignore[attr-defined]
        for line in file.read_bytes().splitlines():
            module.read(reading, line)  # type: ignore[attr-defined]
            assert "CANARY" not in repr(reading)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (assistant("end_turn"), ("idle", None)),
        (assistant("max_tokens"), ("idle", None)),
        (assistant(None), ("working", None)),
        (assistant("tool_use", {"type": "tool_use", "name": "Edit"}), ("working", None)),
        (assistant("tool_use", {"type": "tool_use", "name": "AskUserQuestion"}), ("waiting", "question")),
        (assistant("tool_use", {"type": "tool_use", "name": "ExitPlanMode"}), ("waiting", "plan")),
        (assistant("stop_sequence", isApiErrorMessage=True), ("error", None)),
        (b'{"type":"user","message":{"content":"[Request interrupted by user for tool use]"}}', ("idle", None)),
        (b'{"type":"user","message":{"content":[{"text":"[Request interrupted by user]"}]}}', ("idle", None)),
        (b'{"type":"user","message":{"content":[{"type":"tool_result"}]}}', ("working", None)),
        (b'{"type":"user","isMeta":true,"message":{"content":"x"}}', (None, None)),
        (b'{"type":"system"}', (None, None)),
        (b'{"type":["?"],"message":7}', (None, None)),
        (b'{"type":"assistant","message":7}', ("working", None)),
        (b"not json", (None, None)),
    ],
)  # fmt: skip
def test_the_last_line_decides(line: bytes, expected: Any) -> None:
    reading = claude.Reading()
    claude.read(reading, line)
    assert (reading.state, reading.waiting_for) == expected


def test_the_folder_of_transcripts_is_named_as_claude_names_it() -> None:
    assert claude.slug("/home/me/code/web_app.2") == "-home-me-code-web-app-2"


# ── Codex ────────────────────────────────────────────────────────────────────────────────────────


def test_a_rollout_tells_when_a_turn_begins_and_ends() -> None:
    reading = codex.Reading()
    assert states(reading, codex.read, "codex/rollout-1.jsonl") == ["idle", "working", "idle"]
    assert reading.fields() == Session(provider="codex", model="gpt-5-codex", state="idle")
    assert (reading.session, reading.cwd) == ("codex-0199a213-81c0-7800-8aa1-bbab2a035a53", "/work/web")


@pytest.mark.parametrize(
    ("event", "state"),
    [
        ("turn_started", "working"),
        ("turn_complete", "idle"),
        ("turn_aborted", "idle"),
        ("error", "error"),
        ("new_thing", None),
    ],
)
def test_events_are_known_by_their_old_and_new_names(event: str, state: Any) -> None:
    reading = codex.Reading()
    codex.read(reading, json.dumps({"type": "event_msg", "payload": {"type": event}}).encode())
    assert reading.state == state


def test_a_rollout_that_goes_on_from_another_keeps_its_own_name() -> None:
    reading = codex.Reading()
    for name in ("mine", "former"):
        codex.read(reading, json.dumps({"type": "session_meta", "payload": {"id": name, "cwd": "/w"}}).encode())
    assert reading.session == "codex-mine"


def test_a_question_to_the_user_is_a_call_that_has_no_answer_yet() -> None:
    reading = codex.Reading()
    found = []
    for line in (FIXTURES / "codex/rollout-0.144-question.jsonl").read_bytes().splitlines():
        if codex.read(reading, line):
            found.append((reading.state, reading.waiting_for))
    # A call beside it that has ended is no answer.
    assert found == [("idle", None), ("working", None), ("waiting", "question"), ("working", None), ("idle", None)]
    assert reading.model == "gpt-5.3-codex"


@pytest.mark.parametrize(
    "whose",
    [
        {"thread_source": "subagent"},
        {"source": {"subagent": "review"}},
        {"source": {"subagent": {"thread_spawn": {}}}},
    ],
)
def test_a_rollout_of_a_subagent_is_no_session(whose: Any) -> None:
    reading = codex.Reading()
    meta = {"type": "session_meta", "payload": {"id": "child", "cwd": "/w", **whose}}
    assert not codex.read(reading, json.dumps(meta).encode())
    for line in (FIXTURES / "codex/rollout-0.144-subagent.jsonl").read_bytes().splitlines():
        assert not codex.read(reading, line)
    assert (reading.session, reading.state) == ("", None)


KEYS = ["type", "sessionId", "cwd", "timestamp", "message", "content", "name", "payload", "id", "isSidechain", "text"]
KEYS += ["source", "thread_source", "call_id"]
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
)


@given(st.lists(_json.map(lambda one: json.dumps(one).encode()) | st.binary(max_size=20)))
def test_no_line_breaks_a_reading_and_its_state_is_always_one_of_ours(lines: list[bytes]) -> None:
    for module in (claude, codex):
        reading = module.Reading()  # type: ignore[attr-defined]
        for line in lines:
            module.read(reading, line)  # type: ignore[attr-defined]
        assert reading.fields().state in ("working", "idle", "waiting", "error", "unknown")
        assert isinstance(reading.session, str)
        assert isinstance(reading.cwd, str)
    for line in lines:
        claude.registered(line)


# ── tails ────────────────────────────────────────────────────────────────────────────────────────


def test_lines_come_once_and_only_whole(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"one\ntw")
    tail = Tail(str(path))
    assert tail.read().lines == [b"one"]
    assert tail.read().lines == []
    with path.open("ab") as file:
        file.write(b"o\n\nthree\n")
    assert tail.read().lines == [b"two", b"three"]


def test_a_file_that_was_cut_or_replaced_is_read_anew_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"one\ntwo\n")
    tail = Tail(str(path))
    assert tail.read().anew
    path.write_bytes(b"x\n")
    again = tail.read()
    assert (again.lines, again.anew) == ([b"x"], True)
    other = tmp_path / "o"
    other.write_bytes(b"longer than before\n")
    other.replace(path)
    assert tail.read() == ([b"longer than before"], True, False, int(path.stat().st_mtime_ns // 1_000_000))


def test_of_a_file_of_a_gigabyte_only_the_tail_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t"
    with path.open("wb") as file:
        file.write(b"head\n")
        file.seek(1 << 30)
        file.write(b"\nlast\n")
    tail = Tail(str(path), head=True)
    assert tail.read().lines == [b"head", b"last"]


def test_a_line_without_end_is_passed_over_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"a\n")
    tail = Tail(str(path), piece=8)
    assert tail.read().lines == [b"a"]
    with path.open("ab") as file:
        file.write(b"x" * 8)
    assert tail.read().lines == []
    with path.open("ab") as file:
        file.write(b"xx\nb\n")
    lines = tail.read().lines + tail.read().lines
    assert lines == [b"b"]


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "absent"])
def test_what_is_no_regular_file_is_not_read_and_blocks_nobody(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "secret").write_bytes(b"x\n")
        path.symlink_to(tmp_path / "secret")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(OSError):  # noqa: PT011 - of several sorts
        Tail(str(path)).read()


@given(st.lists(st.binary(max_size=30).map(lambda one: one.replace(b"\n", b"")), max_size=20), st.integers(1, 40))
def test_however_a_file_grows_its_lines_come_in_order_and_none_twice(lines: list[bytes], step: int) -> None:
    import tempfile

    whole = b"".join(line + b"\n" for line in lines)
    with tempfile.NamedTemporaryFile() as file:
        tail, seen = Tail(file.name, piece=64), []
        for at in range(0, len(whole), step):
            file.write(whole[at : at + step])
            file.flush()
            seen += tail.read().lines
        while tail.read().more:
            pass
        assert seen == [line for line in lines if line]


def test_a_file_that_goes_takes_its_session_along_and_one_that_is_left_out_too(tmp_path: Path) -> None:
    found = Transcripts(claude.Reading, claude.read)
    body = (FIXTURES / "claude/transcript-1.jsonl").read_bytes()
    for name, session in (("a", ID), ("b", "other")):
        (tmp_path / name).write_bytes(body.replace(ID.encode(), session.encode()))
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert found.follow(paths) == set()
    assert [one.session for one in found.step().seen] == ["claude-" + ID, "claude-other"]
    assert found.step() == ([], set())
    (tmp_path / "a").unlink()
    assert found.step().gone == {"claude-" + ID}
    assert found.follow([]) == {"claude-other"}
