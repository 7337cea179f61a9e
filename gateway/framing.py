"""The forms in which a message leaves, built once and written to many sockets: WebSocket frames, Server-Sent Events.

A *form* is a function from a message (and the cursor that it moves a client to, if it does) to finished bytes. A
deflated frame is packed by itself, with no memory of the frames before it (RFC 7692, ``no_context_takeover`` both
ways): so one and the same serves every client, and none costs a compressor.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from struct import pack
from typing import Final, TypeAlias

Form: TypeAlias = Callable[[bytes, str], bytes]

DEFLATE: Final = "permessage-deflate"
NO_TAKEOVER: Final = ("server_no_context_takeover", "client_no_context_takeover")
AGREED: Final = "; ".join((DEFLATE, *NO_TAKEOVER))

_TEXT: Final = 0x81
_PACKED_TEXT: Final = 0xC1
_PACKED: Final = 0x40
_CLOSE: Final = 0x88
_PONG: Final = 0x8A
_REASON_BYTES: Final = 123  # a control frame holds 125, two of which are the code
_SHORT: Final = 126
_MEDIUM: Final = 1 << 16
_WORTH: Final = 256  # below this, a packet is a packet
_LEVEL: Final = 3
TAIL: Final = b"\0\0\xff\xff"


def text(payload: bytes, _: str = "") -> bytes:
    """One whole text frame (RFC 6455): unmasked, final."""
    return _head(_TEXT, len(payload)) + payload


def deflated(payload: bytes, _: str = "") -> bytes:
    """The same, packed if that makes it smaller."""
    if len(payload) < _WORTH:
        return text(payload)
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(payload) + packer.flush(zlib.Z_SYNC_FLUSH).removesuffix(TAIL)
    if len(packed) >= len(payload):
        return text(payload)
    return _head(_PACKED_TEXT, len(packed)) + packed


def event(payload: bytes, cursor: str = "") -> bytes:
    """One Server-Sent Event; a message of ours is one line."""
    named = b"id: %b\n" % cursor.encode() if cursor else b""
    return b"%bdata: %b\n\n" % (named, payload)


def event_chunk(payload: bytes, cursor: str = "") -> bytes:
    """The same as a chunk of an HTTP/1.1 body."""
    return chunk(event(payload, cursor))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def close(code: int, reason: str) -> bytes:
    """A close frame; a reason that is too long is cut."""
    said = reason.encode()[:_REASON_BYTES].decode(errors="ignore").encode()
    return pack("!BBH", _CLOSE, 2 + len(said), code) + said


def pong(payload: bytes) -> bytes:
    """The answer to a ping."""
    return _head(_PONG, len(payload)) + payload


def deflates(offers: str) -> bool:
    """Whether a ``Sec-WebSocket-Extensions`` header offers what we can agree to: packing in the full window."""
    for offer in offers.split(","):
        name, *terms = (part.strip().lower() for part in offer.split(";"))
        known = [term for term in terms if term in NO_TAKEOVER or _is_window(term)]
        if name == DEFLATE and len(known) == len(terms) == len(set(terms)):
            return True
    return False


def _is_window(term: str) -> bool:
    name, _, bits = term.partition("=")
    return name == "client_max_window_bits" and (not bits or bits.strip('"') in map(str, range(8, 16)))


def payloads(data: bytes) -> list[bytes]:
    """The payloads of consecutive whole frames: the inverse of `text` and `deflated`."""
    found, at = [], 0
    while at < len(data):
        packed, size, skip = data[at] & _PACKED, data[at + 1] & 0x7F, 2
        if size >= _SHORT:
            skip = 4 if size == 126 else 10
            size = int.from_bytes(data[at + 2 : at + skip])
        payload = data[at + skip : at + skip + size]
        found.append(zlib.decompress(payload + TAIL + b"\x03\0", -zlib.MAX_WBITS) if packed else payload)
        at += skip + size
    return found


def _head(kind: int, size: int) -> bytes:
    if size < _SHORT:
        return pack("!BB", kind, size)
    if size < _MEDIUM:
        return pack("!BBH", kind, 126, size)
    return pack("!BBQ", kind, 127, size)
