"""What a client sends over a WebSocket, cut into messages (RFC 6455). Of a client that says nothing, nothing is kept.

Only what clients send: masked frames, whole or in fragments, packed only where that was agreed, each message by itself.
What is too long is refused by its head, before it is read.
"""

from __future__ import annotations

import zlib
from enum import IntEnum
from typing import Final, NamedTuple

from gateway.framing import TAIL

FRAGMENTS: Final = 256
CONTROL_BYTES: Final = 125

_FINAL: Final = 0x80
_PACKED: Final = 0x40
_RESERVED: Final = 0x30
_MASKED: Final = 0x80
_MASK: Final = 4
_HEADS: Final = {126: 4, 127: 10}


class Kind(IntEnum):
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


_KINDS: Final = {kind.value: kind for kind in Kind}


class Message(NamedTuple):
    kind: Kind
    data: bytes


class Unreadable(Exception):
    """What came is no frame, or too long; what follows it cannot be read either."""


class Reader:
    """`packs`: both sides have agreed that messages may be packed."""

    __slots__ = ("_at", "_begun", "_fragments", "_kind", "_packed", "_packs", "_rest")

    def __init__(self, packs: bool = False) -> None:
        self._packs = packs
        self._rest, self._at = b"", 0
        self._begun: bytes | None = None  # of a message in fragments
        self._kind, self._packed, self._fragments = Kind.TEXT, False, 0

    def take(self, data: bytes) -> None:
        self._rest = self._rest[self._at :] + data if self._rest else data
        self._at = 0

    def next(self, most: int) -> Message | None:
        """The next message that is whole; ``None``: more must come first. Raises `Unreadable`."""
        while (frame := self._frame(most)) is not None:
            first, data = frame
            kind = Kind(first & 0x0F)
            if kind >= Kind.CLOSE:
                return Message(kind, data)
            if self._begun is None:
                self._kind, self._packed, self._fragments, self._begun = kind, bool(first & _PACKED), 0, b""
            self._begun += data
            self._fragments += 1
            if first & _FINAL:
                whole, self._begun = self._begun, None
                return Message(self._kind, _unpacked(whole, most) if self._packed else whole)
            if self._fragments >= FRAGMENTS:
                raise Unreadable(f"more than {FRAGMENTS} fragments")
        return None

    def _frame(self, most: int) -> tuple[int, bytes] | None:
        """A frame's first byte and its payload."""
        rest, at = self._rest, self._at
        have = len(rest) - at
        if have >= 2:
            size = rest[at + 1] & ~_MASKED
            head = _HEADS.get(size, 2)
            if have >= head:
                if head > 2:
                    size = int.from_bytes(rest[at + 2 : at + head])
                self._judge(rest[at], rest[at + 1], size, most)
                start = at + head + _MASK
                end = start + size
                if end <= len(rest):
                    self._at = end
                    if end == len(rest):
                        self._rest, self._at = b"", 0
                    return rest[at], _unmasked(rest[start:end], rest[start - _MASK : start])
        return None

    def _judge(self, first: int, second: int, size: int, most: int) -> None:
        kind = _KINDS.get(first & 0x0F)
        if kind is None or first & _RESERVED:
            raise Unreadable("not a frame of RFC 6455")
        if not second & _MASKED:
            raise Unreadable("a client's frames are masked")
        if kind >= Kind.CLOSE:
            if not first & _FINAL or first & _PACKED or size > CONTROL_BYTES:
                raise Unreadable("not a control frame of RFC 6455")
            return
        if (kind is Kind.CONTINUATION) is (self._begun is None):
            raise Unreadable("fragments out of order")
        if first & _PACKED and (kind is Kind.CONTINUATION or not self._packs):
            raise Unreadable("packed, which was not agreed")
        if len(self._begun or b"") + size > most:
            raise Unreadable(f"longer than {most} bytes")


def _unmasked(data: bytes, mask: bytes) -> bytes:
    size = len(data)
    over = (mask * (size // _MASK + 1))[:size]
    return (int.from_bytes(data) ^ int.from_bytes(over)).to_bytes(size)


def _unpacked(data: bytes, most: int) -> bytes:
    """Never more than `most`, whatever it says. Raises `Unreadable`."""
    opener = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = opener.decompress(data + TAIL, most + 1)
    except zlib.error:
        raise Unreadable("packed badly") from None
    if len(found) > most:
        raise Unreadable(f"longer than {most} bytes")
    return found
