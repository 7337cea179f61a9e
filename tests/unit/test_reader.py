"""What clients send, cut into messages: beside the frames that another implementation makes."""

from __future__ import annotations

import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from gateway.framing import TAIL
from gateway.reader import FRAGMENTS, Kind, Message, Reader, Unreadable

MOST = 4096


def frame(kind: Opcode, data: bytes, fin: bool = True, packed: bool = False, mask: bool = True) -> bytes:
    made = Frame(kind, data, fin).serialize(mask=mask)
    return bytes([made[0] | 0x40 * packed]) + made[1:]


def packed(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return (packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)


def read(reader: Reader, data: bytes, most: int = MOST) -> list[Message]:
    reader.take(data)
    return [*iter(lambda: reader.next(most), None)]


MESSAGES = st.lists(
    st.tuples(st.sampled_from([Opcode.TEXT, Opcode.BINARY, Opcode.PING, Opcode.PONG]), st.binary(max_size=125)),
    max_size=8,
)


@given(MESSAGES, st.lists(st.integers(0, 2000), max_size=12), st.lists(st.integers(1, 60), min_size=1, max_size=4))
def test_messages_come_out_as_they_were_sent_however_they_are_cut(
    sent: list[tuple[Opcode, bytes]], cuts: list[int], sizes: list[int]
) -> None:
    stream, told = b"", []
    for kind, data in sent:
        if kind in (Opcode.PING, Opcode.PONG):
            stream += frame(kind, data)
            told.append((kind, data))
            continue
        parts, at = [], 0
        for size in sizes:
            parts.append(data[at : at + size])
            at += size
        parts.append(data[at:])
        for place, part in enumerate(parts):
            stream += frame(kind if place == 0 else Opcode.CONT, part, fin=place == len(parts) - 1)
            if place == 0 and len(parts) > 1:
                stream += frame(Opcode.PING, b"between")
                told.append((Opcode.PING, b"between"))
        told.append((kind, data))
    reader, heard, at = Reader(), [], 0
    for cut in [*sorted(cuts), len(stream)]:
        heard += read(reader, stream[at:cut])
        at = max(at, cut)
    assert [(message.kind.value, message.data) for message in heard] == [(kind.value, data) for kind, data in told]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_every_length_is_read_and_whoever_is_silent_costs_nothing(size: int) -> None:
    reader, data = Reader(), os.urandom(size)
    assert read(reader, frame(Opcode.BINARY, data) + frame(Opcode.CLOSE, b"\x03\xe8"), 70_000) == [
        Message(Kind.BINARY, data),
        Message(Kind.CLOSE, b"\x03\xe8"),
    ]
    assert (reader._rest, reader._begun) == (b"", None)


def test_packed_messages_are_read_where_that_was_agreed_and_only_there() -> None:
    data = b'{"type":"hello"}' * 40
    sent = frame(Opcode.TEXT, packed(data), packed=True) + frame(Opcode.TEXT, b"plain")
    whole = packed(data)
    parts = frame(Opcode.TEXT, whole[:5], fin=False, packed=True) + frame(Opcode.CONT, whole[5:])
    assert [message.data for message in read(Reader(packs=True), sent + parts)] == [data, b"plain", data]
    with pytest.raises(Unreadable, match="not agreed"):
        read(Reader(), sent)


WRONG = {
    "unmasked": frame(Opcode.TEXT, b"hello", mask=False),
    "of an unknown kind": b"\x83\x80\0\0\0\0",
    "with a reserved bit": b"\xa1\x80\0\0\0\0",
    "a continuation of nothing": frame(Opcode.CONT, b"x"),
    "begun within another": frame(Opcode.TEXT, b"x", fin=False) + frame(Opcode.TEXT, b"y"),
    "a ping in fragments": b"\x09\x80\0\0\0\0",
    "a ping that is packed": b"\xc9\x80\0\0\0\0",
    "a ping that is too long": b"\x89\xfe\0\x7e",
    "a packed continuation": frame(Opcode.TEXT, b"x", fin=False) + b"\xc0\x80\0\0\0\0",
    "packed badly": frame(Opcode.TEXT, b"\xff\xff\xff", packed=True),
    "too long": b"\x81\xfe\x10\x01",
    "far too long": b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff",
    "too long in all": frame(Opcode.TEXT, bytes(4000), fin=False) + b"\x80\xe1",
    "too long when unpacked": frame(Opcode.TEXT, packed(bytes(MOST + 1)), packed=True),
    "in fragments without end": frame(Opcode.TEXT, b"", fin=False) + frame(Opcode.CONT, b"", fin=False) * FRAGMENTS,
}


@pytest.mark.parametrize("sent", WRONG.values(), ids=WRONG)
def test_what_is_no_frame_or_too_long_is_refused_by_its_head(sent: bytes) -> None:
    with pytest.raises(Unreadable):
        read(Reader(packs=True), sent)


def test_the_longest_message_is_let_through_in_each_form() -> None:
    data = bytes(MOST)
    sent = frame(Opcode.TEXT, data) + frame(Opcode.TEXT, packed(data), packed=True)
    sent += frame(Opcode.TEXT, data[:1], fin=False) + frame(Opcode.CONT, data[1:])
    assert [message.data for message in read(Reader(packs=True), sent)] == [data] * 3


def test_a_small_packet_cannot_unfold_to_much() -> None:
    bomb = packed(bytes(1 << 26))
    assert len(bomb) < 1 << 17
    reader = Reader(packs=True)
    reader.take(frame(Opcode.TEXT, bomb, packed=True))
    with pytest.raises(Unreadable, match="longer than"):
        reader.next(1 << 17)
