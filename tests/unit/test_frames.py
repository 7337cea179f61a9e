"""The client protocol's messages."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import msgspec
import pytest

from gateway import framing
from pipeline import frames

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"


@pytest.mark.parametrize(
    "message",
    [
        frames.Hello("t"),
        frames.Subscribe(1, "web", "e", 412),
        frames.Unsubscribe(1),
        frames.Ack(88, {"1": frames.Mark(421, "5ab2")}),
        frames.Resync(1, "gap", 420),
    ],
)
def test_every_message_of_a_client_decodes_to_itself(message: frames.FromClient) -> None:
    assert frames.decode_client(frames.encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        frames.Welcome(1, "e", 10_000, frames.Bounds(32, 65_536)),
        frames.Loading(1),
        frames.Snapshot(1, "e", 419, "9c0f", "initial", True, {"w1": {"life": {"name": "fix"}}}),
        frames.Delta(1, "e", 419, 421, {"w1": {"git": {"insertions": None}}, "w7": None}),
        frames.Heartbeat(88, {"1": frames.Mark(421, "5ab2", False)}, {"database": "ok"}),
        frames.End(1, "not_found"),
        frames.Error(1, "forbidden", "no"),
    ],
)
def test_every_message_of_a_server_decodes_to_itself(message: frames.FromServer) -> None:
    assert frames.decode_server(frames.encode(message)) == message


def test_a_delta_says_from_and_keeps_the_nulls_that_clear() -> None:
    told = json.loads(frames.encode(frames.Delta(1, "e", 4, 5, {"w1": {"git": None}})))
    assert told == {"type": "delta", "id": 1, "epoch": "e", "from": 4, "to": 5, "patch": {"w1": {"git": None}}}


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"hello",
        b'{"type":"subscribe","id":"1","project":"web"}',
        b'{"type":"subscribe","id":1.5,"project":"web"}',
        b'{"type":"subscribe","id":-1,"project":"web"}',
        b'{"type":"subscribe","id":true,"project":"web"}',
        b'{"type":"subscribe","id":1}',
        b'{"type":"subscribe","id":1,"project":"' + b"x" * 129 + b'"}',
        b'{"type":"subscribe","id":1,"project":"web","version":-1}',
        b'{"type":"resync","id":1,"reason":"because"}',
        b'{"type":"snapshot","id":1}',
        b'{"type":"hello","ticket":"\xff"}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_message_is_refused_and_never_coerced(bad: bytes) -> None:
    with pytest.raises(frames.DecodeError):
        frames.decode_client(bad)


def test_fields_that_a_release_does_not_know_are_ignored_on_both_sides() -> None:
    assert frames.decode_client(b'{"type":"hello","colour":"blue"}') == frames.Hello()
    assert frames.decode_server(b'{"type":"loading","id":1,"percent":40}') == frames.Loading(1)


def test_values_that_a_release_does_not_know_are_read_and_types_that_it_does_not_know_are_skipped() -> None:
    """W7."""
    told = frames.read_server(b'{"type":"end","id":1,"code":"moved"}')
    assert isinstance(told, frames.End)
    assert told.code == "moved"
    assert frames.read_server(b'{"type":"weather","sky":"clear"}') is None
    for bad in (b"{}", b"[]", b'{"type":3}', b'{"type":"end"}'):
        with pytest.raises(frames.DecodeError):
            frames.read_server(bad)


def test_a_client_comes_back_after_every_code_but_those_that_say_not_to() -> None:
    again = [frames.INTERNAL, frames.SHUTTING_DOWN, frames.STALLED, frames.NO_ACK, frames.RATE, 1006]
    never = [frames.BAD_FRAME, frames.UNAUTHENTICATED, frames.HELLO_TIMEOUT, frames.WRONG_PROTOCOL, frames.REVOKED]
    assert all(map(frames.reconnects, again))
    assert not any(map(frames.reconnects, never))


def test_every_close_code_is_documented_with_whether_to_come_again() -> None:
    rows = re.findall(r"^\| (4\d\d\d) \|.*\| (yes|no) \|$", PROTOCOL.read_text(), re.MULTILINE)
    codes = {
        value for name, value in vars(frames).items() if name.isupper() and isinstance(value, int) and value >= 4000
    }
    assert {int(code) for code, _ in rows} == codes
    assert all(frames.reconnects(int(code)) is (again == "yes") for code, again in rows)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 200_000])
def test_a_text_frame_carries_any_size(size: int) -> None:
    payload = b"x" * size
    assert framing.payloads(framing.text(payload) + framing.text(b"next")) == [payload, b"next"]


@pytest.mark.parametrize("size", [0, 255, 256, 70_000, 2_000_000])
def test_a_packed_frame_is_the_same_message_and_never_longer(size: int) -> None:
    payload = b"x" * size
    packed = framing.deflated(payload)
    assert framing.payloads(packed + framing.deflated(b"next")) == [payload, b"next"]
    assert len(packed) <= len(framing.text(payload))
    assert (packed[0] == 0xC1) == (size >= 256)


def test_what_packing_does_not_make_smaller_is_not_packed() -> None:
    noise = random.Random(1).randbytes(4096)
    assert framing.deflated(noise) == framing.text(noise)


@pytest.mark.parametrize(
    ("offers", "agreed"),
    [
        ("permessage-deflate", True),
        ("permessage-deflate; client_max_window_bits", True),  # what browsers send
        ("permessage-deflate; client_max_window_bits=12; server_no_context_takeover", True),
        ("x-webkit-deflate-frame, permessage-deflate; client_no_context_takeover", True),
        ("permessage-deflate; server_max_window_bits=10, permessage-deflate", True),
        ("", False),
        ("permessage-bzip2", False),
        ("permessage-deflate; server_max_window_bits=10", False),  # ours are packed in the full window
        ("permessage-deflate; client_max_window_bits=99", False),
        ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", False),
        ("permessage-deflate; speed=11", False),
    ],
)
def test_packing_is_agreed_to_only_as_one_frame_for_all(offers: str, agreed: bool) -> None:
    assert framing.deflates(offers) is agreed


def test_an_event_is_one_line_with_the_cursor_as_its_id() -> None:
    assert framing.event(b'{"a":1}', "e.7") == b'id: e.7\ndata: {"a":1}\n\n'
    assert framing.event(b"{}") == b"data: {}\n\n"
    assert framing.event_chunk(b"{}") == b"a\r\ndata: {}\n\n\r\n"


def test_a_mark_says_complete_only_where_it_is_not() -> None:
    assert msgspec.json.decode(frames.encode(frames.Mark(1, "h"))) == {"version": 1, "hash": "h"}
    assert msgspec.json.decode(frames.encode(frames.Mark(1, "h", False)))["complete"] is False


def test_a_close_frame_says_its_code_and_cuts_a_reason_between_characters() -> None:
    frame = framing.close(4503, "é" * 100)
    assert frame[0] == 0x88
    assert frame[1] == len(frame) - 2 <= 125
    assert int.from_bytes(frame[2:4]) == 4503
    assert set(frame[4:].decode()) == {"é"}
