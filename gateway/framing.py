"""WebSocket frames of a server (RFC 6455): unmasked, final, built once and written to many sockets."""

from __future__ import annotations

from struct import pack
from typing import Final

_TEXT: Final = 0x81
_CLOSE: Final = 0x88
_REASON_BYTES: Final = 123  # a control frame holds 125, two of which are the code
_SHORT: Final = 126
_MEDIUM: Final = 1 << 16


def text(payload: bytes) -> bytes:
    """One whole text frame."""
    size = len(payload)
    if size < _SHORT:
        return pack("!BB", _TEXT, size) + payload
    if size < _MEDIUM:
        return pack("!BBH", _TEXT, 126, size) + payload
    return pack("!BBQ", _TEXT, 127, size) + payload


def close(code: int, reason: str) -> bytes:
    """A close frame; a reason that is too long is cut."""
    said = reason.encode()[:_REASON_BYTES].decode(errors="ignore").encode()
    return pack("!BBH", _CLOSE, 2 + len(said), code) + said


def payloads(data: bytes) -> list[bytes]:
    """The payloads of consecutive whole frames: the inverse of `text`."""
    found, at = [], 0
    while at < len(data):
        size, skip = data[at + 1] & 0x7F, 2
        if size >= _SHORT:
            skip = 4 if size == 126 else 10
            size = int.from_bytes(data[at + 2 : at + skip])
        found.append(data[at + skip : at + skip + size])
        at += skip + size
    return found
