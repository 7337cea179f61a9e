"""One request to GitHub's GraphQL API, and what is meant where it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec

from pipeline.bridges.github import Failure, clean
from pipeline.sources.github.token import LOOPBACK

DEADLINE_S: Final = 30.0
MAX_BYTES: Final = 8 << 20
OK, UNAUTHORIZED, FORBIDDEN, TOO_MANY, SERVER = 200, 401, 403, 429, 500
AGENT: Final = "treewire"


class Refused(Exception):
    """The request as a whole came to nothing. `retry_s`: when GitHub says that it may be tried again."""

    def __init__(self, failure: Failure, retry_s: float | None = None) -> None:
        super().__init__(failure.why)
        self.failure, self.retry_s = failure, retry_s


class Reply(NamedTuple):
    """`wall_ms`: GitHub's own clock as it answered, if it told; what it dates is measured by that."""

    body: Any
    wall_ms: int | None


class Client:
    """Keeps one connection. `close` it."""

    def __init__(self, url: str, token: str) -> None:
        self.token = token
        self._url = url
        parts = urlsplit(url)
        proxied = parts.hostname not in LOOPBACK and not proxy_bypass(parts.hostname or "")
        self._proxy = getproxies().get(parts.scheme) if proxied else None
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=DEADLINE_S),
            connector=aiohttp.TCPConnector(limit=1),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        await self._session.close()

    async def ask(self, query: str, variables: Mapping[str, Any]) -> Reply:
        """Raises `Refused`."""
        headers = {
            "Authorization": f"Bearer {self.token}",
            "Content-Type": "application/json",
            "User-Agent": AGENT,
        }
        body = msgspec.json.encode({"query": query, "variables": variables})
        try:
            # A redirect is not followed: the token is for this host.
            async with self._session.post(
                self._url, data=body, headers=headers, proxy=self._proxy, allow_redirects=False
            ) as answer:
                text = await _bounded(answer.content)
                return judged(answer.status, answer.headers, text)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said = clean(str(error)) or type(error).__name__
            raise Refused(Failure("unreachable", f"GitHub cannot be reached: {said}; it is tried again.")) from None


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    parts, size = [], 0
    async for part in content.iter_any():
        size += len(part)
        if size > MAX_BYTES:
            raise Refused(Failure("bad", f"GitHub's answer is longer than {MAX_BYTES} bytes; it is tried again."))
        parts.append(part)
    return b"".join(parts)


def judged(status: int, headers: Mapping[str, str], text: bytes) -> Reply:
    """The answer, or why it is none. Raises `Refused`.

    A limit is told by status 403, 429 or 200, with Retry-After, or with nothing remaining until a time, or in words.
    """
    wall_ms = _date(headers.get("Date", ""))
    try:
        body = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = None
    said = clean(str(body.get("message", ""))) if isinstance(body, dict) else ""
    if status in (FORBIDDEN, TOO_MANY) and _is_limit(status, headers, said):
        retry_s = _retry(headers, wall_ms)
        raise Refused(Failure("limited", f"GitHub limits the rate: {said or 'too many requests'}"), retry_s)
    if status == UNAUTHORIZED:
        raise Refused(
            Failure("token", "GitHub refuses the token: set GITHUB_TOKEN to a valid one, or run `gh auth login`.")
        )
    if status == FORBIDDEN:
        raise Refused(Failure("token", f"GitHub forbids it: {said or 'the token may not read this'}."))
    if status >= SERVER:
        raise Refused(Failure("server", f"GitHub answers {status}; it is tried again."), _seconds(headers))
    if status != OK or body is None:
        why = f"GitHub answers {status}{': ' + said if said else ''}; check github.host and github.api."
        raise Refused(Failure("bad", why))
    if _is_limited(body):
        raise Refused(Failure("limited", "GitHub limits the rate: the points are used up."), _retry(headers, wall_ms))
    return Reply(body, wall_ms)


def _is_limit(status: int, headers: Mapping[str, str], said: str) -> bool:
    told = "Retry-After" in headers or headers.get("X-RateLimit-Remaining") == "0"
    return told or status == TOO_MANY or "rate limit" in said.lower()


def _is_limited(body: Any) -> bool:
    errors = body.get("errors") if isinstance(body, dict) else None
    return any(
        isinstance(one, dict)
        and (one.get("type") == "RATE_LIMITED" or "secondary rate limit" in str(one.get("message", "")).lower())
        for one in (errors if isinstance(errors, list) else [])
    )


def _retry(headers: Mapping[str, str], wall_ms: int | None) -> float | None:
    """Seconds until it may be tried again: by Retry-After, else until the limit is new if nothing remains of it."""
    if (seconds := _seconds(headers)) is not None:
        return seconds
    resets = headers.get("X-RateLimit-Reset", "")
    if headers.get("X-RateLimit-Remaining") == "0" and resets.isascii() and resets.isdigit() and wall_ms is not None:
        return max(1.0, int(resets[:12]) - wall_ms / 1000)
    return None


def _seconds(headers: Mapping[str, str]) -> float | None:
    told = headers.get("Retry-After", "")
    return min(float(told[:9]), 3600.0) if told.isascii() and told.isdigit() else None


def _date(text: str) -> int | None:
    try:
        return round(parsedate_to_datetime(text).timestamp() * 1000)
    except (ValueError, TypeError):
        return None
