"""``POST /v1/webhooks/github``: what GitHub sends is a hint where to look again, and nothing more is taken from it.

Who sends it proves by a signature that he knows the secret. It is checked over the whole body, before anything of that
is understood, and in constant time; bodies are bounded in size, in number and in the time that they may take. A hint
goes to the process that asks GitHub, or is lost if that is away: the cadence is the guarantee. Without a secret there
is no such route.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from gateway.access import GITHUB, Failures, private_text, problem
from gateway.body import whole
from pipeline import bus
from pipeline.bridges import github as bridge
from pipeline.runtime.settings import Settings

VARIABLE: Final = "GITHUB_WEBHOOK_SECRET"
MAX_BYTES: Final = 5 << 20  # GitHub sends up to 25 MB; what is that long is a push of very much, and found without it
MAX_AT_ONCE: Final = 8
READ_S: Final = 10.0
MAX_KNOWN: Final = 4096
MAX_ID: Final = 100
RETRY_AFTER: Final = "2"
OUTCOMES: Final = ("hinted", "ignored", "again", "lost", "refused")
_SIGNATURE = re.compile(r"sha256=[0-9a-f]{64}")


def secret_of(settings: Settings) -> bytes | None:
    """The secret of the environment, else of its file; ``None`` if there is neither. Raises `OperatorError`."""
    if text := os.environ.get(VARIABLE, "").strip():
        return text.encode()
    path: Path = settings.webhook_secret_path
    return private_text(path, "webhook secret").encode() if path.exists() else None


class Webhooks(Collector):
    """The route, and which deliveries there were. `counts` is by outcome."""

    def __init__(self, settings: Settings) -> None:
        self.counts: Counter[str] = Counter()
        self._secret = secret_of(settings)
        self._run_dir = settings.run_dir
        self._failures = Failures()
        self._known: OrderedDict[str, None] = OrderedDict()
        self._reading = 0
        self._hints: bus.Hints | None = None

    def routes(self) -> list[web.RouteDef]:
        return [web.post(GITHUB, self.post)]

    async def running(self, _: web.Application) -> AsyncIterator[None]:
        """For `web.Application.cleanup_ctx`."""
        if self._secret is not None:
            self._hints = bus.Hints(self._run_dir)
        yield
        if self._hints is not None:
            self._hints.close()

    def collect(self) -> list[Metric]:
        webhooks = CounterMetricFamily("treewire_webhooks", "Webhooks of GitHub, by outcome.", labels=["outcome"])
        for outcome in OUTCOMES:
            webhooks.add_metric([outcome], self.counts[outcome])
        return [webhooks]

    async def post(self, request: web.Request) -> web.Response:
        if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
            return problem(415, "unsupported", "send the body as it is, without Content-Encoding")
        if self._secret is None:
            return problem(404, "not_found", "there are no webhooks here: see webhooks in docs/github.md")
        refusal, body = await self._read(request, self._secret)
        if refusal is not None:
            self.counts["refused"] += 1
            return refusal
        if self._is_known(request.headers.get("X-GitHub-Delivery", "")[:MAX_ID]):
            self.counts["again"] += 1
            return web.Response(status=204)
        try:
            payload = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.counts["refused"] += 1
            return problem(
                400, "bad_webhook", "the body is no JSON: set the webhook's content type to application/json"
            )
        hints = bridge.hints(request.headers.get("X-GitHub-Event", ""), payload)
        sent = [self._hints is not None and self._hints.send(hint) for hint in hints]
        self.counts["ignored" if not sent else "hinted" if all(sent) else "lost"] += 1
        return web.Response(status=204)

    async def _read(self, request: web.Request, secret: bytes) -> tuple[web.Response | None, bytes]:
        """The body of whoever knows the secret, or why it is refused."""
        given = request.headers.getall("X-Hub-Signature-256", [])
        if len(given) != 1 or _SIGNATURE.fullmatch(given[0]) is None:
            return self._wrong(), b""
        if self._reading >= MAX_AT_ONCE:
            return problem(503, "busy", "too many webhooks at once; send it again", Retry_After=RETRY_AFTER), b""
        self._reading += 1
        try:
            body = await asyncio.wait_for(whole(request, MAX_BYTES), READ_S)
        except TimeoutError:
            return problem(408, "too_slow", f"the body took longer than {READ_S:g} s"), b""
        finally:
            self._reading -= 1
        if body is None:
            return problem(413, "too_large", f"the body has more than {MAX_BYTES} bytes"), b""
        expected = "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
        return (None, body) if hmac.compare_digest(expected, given[0]) else (self._wrong(), b"")

    def _wrong(self) -> web.Response:
        if self._failures.too_many():
            return problem(429, "too_many", "too many wrong signatures; wait a moment", Retry_After="1")
        return problem(401, "unauthenticated", "X-Hub-Signature-256 is not that of this body with our secret")

    def _is_known(self, delivery: str) -> bool:
        """Whether it came before; GitHub and whoever listens in may send one again."""
        if not delivery:
            return False
        if delivery in self._known:
            return True
        self._known[delivery] = None
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return False
