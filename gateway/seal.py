"""What we hand out and believe when it comes back: cookies and tickets, signed with a key made of the home's token.

A new home token ends them all. Each purpose has a key of its own, so that none passes for another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


class Seal(Generic[T]):
    """Signs values of one type for one purpose."""

    def __init__(self, secret: str, purpose: str, kind: type[T]) -> None:
        self._key = hmac.digest(secret.encode("utf-8", "surrogateescape"), f"treewire {purpose}".encode(), "sha256")
        self._decode = msgspec.json.Decoder(kind, strict=True).decode

    def close(self, value: T) -> str:
        """The value as text that shows whether somebody changed it."""
        body = msgspec.json.encode(value)
        return f"{_text(body)}.{_text(self._sign(body))}"

    def open(self, text: str) -> T | None:
        """The value; ``None`` if it was not signed by us for this purpose."""
        body, _, signature = text.partition(".")
        try:
            value, given = _bytes(body), _bytes(signature)
        except (ValueError, binascii.Error):
            return None
        if not hmac.compare_digest(self._sign(value), given):
            return None
        try:
            return self._decode(value)
        except msgspec.DecodeError:  # signed by another release
            return None

    def _sign(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
