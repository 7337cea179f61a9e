"""Times as programs write them."""

from __future__ import annotations

from datetime import datetime


def time_ms(text: str) -> int | None:
    """An ISO time with its zone, in milliseconds since the epoch; ``None`` if it is none."""
    try:
        at = datetime.fromisoformat(text)
        return int(at.timestamp() * 1000) if at.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
