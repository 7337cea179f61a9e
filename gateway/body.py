"""The body of a request, read no further than a bound: the application's own is for events, which are small."""

from __future__ import annotations

from aiohttp import web


async def whole(request: web.Request, most: int) -> bytes | None:
    """``None`` if it has more bytes than `most`, announced or not."""
    if (request.content_length or 0) > most:
        return None
    parts, size = [], 0
    async for part in request.content.iter_any():
        size += len(part)
        if size > most:
            return None
        parts.append(part)
    return b"".join(parts)
