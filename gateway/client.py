"""Follow a project from Python: ``async for change in subscribe(url, project, token=…)``. The rules it keeps, beside
those of `Copy`:

1. A lost connection is made again, for ever, with full jitter; only a close code or an answer that says so ends it.
   What is held is told as stale meanwhile, and its cursor goes on from there.
2. Who was stopped or slept looks first at what came meanwhile, and then at whether anything did.
3. Whoever does not keep up misses no state, only states in between: changes that nobody took are joined.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from msgspec import Struct

from gateway.copy import SECOND, SILENCE, Answer, Copy, Kind, Standing
from pipeline import frames
from pipeline.runtime.clock import now_ns

RECONNECT_MIN_S: Final = 0.25
RECONNECT_FIRST_S: Final = 1.0
RECONNECT_MAX_S: Final = 15.0
TICK_S: Final = 1.0
GRACE_S: Final = 0.5
FAREWELL_S: Final = 1.0
LATE: Final = 3 * SECOND
LONGEST_FRAME: Final = 64 << 20
_WEIGHT: Final[dict[Kind, int]] = {"status": 0, "verified": 1, "delta": 2, "snapshot": 3}


class Refused(Exception):
    """The server does not want this client, and trying again would not help: the token is wrong, or the project not for
    it. `code` is an HTTP status or a close code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"treewire refused the connection ({code}): {reason}")
        self.code = code


class Change(Struct, frozen=True):
    """A project as it is now, and what kind of news made it so.

    ``snapshot`` and ``delta`` changed the state; ``verified`` says that its hash was found equal to the server's;
    ``status`` that only the standing did. ``workspaces`` is never changed afterwards, and ``None`` while nothing is
    known. ``changed`` are the ids that came, changed or left. ``verified`` is the last version that was proven.
    """

    kind: Kind
    project: str
    state: Standing
    workspaces: Mapping[str, Any] | None
    epoch: str
    version: int
    complete: bool
    verified: int
    changed: frozenset[str]
    health: Mapping[str, Any]
    hash: str
    heard_ns: int
    proven_ns: int = 0

    @property
    def is_verified(self) -> bool:
        return self.workspaces is not None and self.verified == self.version

    def age_s(self) -> float:
        """How long ago the server last confirmed this."""
        return (now_ns() - self.heard_ns) / SECOND

    def proof_age_s(self) -> float:
        """How long ago what was held had last the server's hash."""
        return (now_ns() - self.proven_ns) / SECOND


async def subscribe(url: str, project: str, *, token: str, every_proof: bool = False) -> AsyncGenerator[Change, None]:
    """The changes of a project, for ever; after ``state == "gone"`` there are no more.

    `url` is the server's, as in the file ``url`` of its home. With `every_proof` each heartbeat that proves what is
    held is told as ``verified``, and not only the first one at a version.

    Raises `Refused` where trying again would not help, `ValueError` for an address that is none.
    Whoever leaves the loop before its end closes it: ``async with contextlib.aclosing(subscribe(…)) as changes``.
    """
    follower = _Follower(url, project, token)
    follower.copy.tells_all = every_proof
    task = asyncio.create_task(follower.run(), name=f"treewire {project}")
    task.add_done_callback(lambda _: follower.news.set())
    try:
        while True:
            await follower.news.wait()
            follower.news.clear()
            change = follower.collect()
            if change is not None:
                yield change
            if task.done():
                task.result()
                return
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _Follower:
    """The connection, and the news that nobody took yet."""

    def __init__(self, url: str, project: str, token: str) -> None:
        self.url = stream_url(url)
        self.copy = Copy(project)
        self.news = asyncio.Event()
        self.news.set()  # that it is about to connect
        self._headers = {"Authorization": f"Bearer {token}"}
        self._tries = 0
        self._at_once = False
        self._kind: Kind | None = "status"
        self._changed: frozenset[str] = frozenset()

    def collect(self) -> Change | None:
        """All news since the last call, as one."""
        if self._kind is None:
            return None
        copy, kind, changed = self.copy, self._kind, self._changed
        self._kind, self._changed = None, frozenset()
        return Change(
            kind=kind,
            project=copy.project,
            state=copy.state,
            workspaces=copy.workspaces,
            epoch=copy.epoch,
            version=copy.version,
            complete=copy.complete,
            verified=copy.verified,
            changed=changed,
            health=copy.health,
            hash=copy.hash(),
            heard_ns=copy.heard,
            proven_ns=copy.proven,
        )

    def _tell(self, answer: Answer) -> None:
        if answer.kind is None:
            return
        if self._kind is None or _WEIGHT[answer.kind] > _WEIGHT[self._kind]:
            self._kind = answer.kind
        self._changed |= answer.changed
        self.news.set()

    async def run(self) -> None:
        """Until the project is gone, or the server refuses."""
        async with aiohttp.ClientSession(headers=self._headers) as http:
            while True:
                code, reason = await self._connect(http)
                if self.copy.state == "gone":
                    return
                if not frames.reconnects(code):
                    raise Refused(code, reason)
                self._tell(self.copy.lose())
                if not self._at_once:
                    most = min(RECONNECT_MAX_S, RECONNECT_FIRST_S * 2 ** min(self._tries, 10))
                    self._tries += 1
                    await asyncio.sleep(_jitter(most))
                self._at_once = False

    async def _connect(self, http: aiohttp.ClientSession) -> tuple[int, str]:
        """One connection, from the handshake to its end; the close code, 0 if there was none."""
        try:
            async with asyncio.timeout(SILENCE / SECOND):
                socket = await http.ws_connect(self.url, protocols=[frames.SUBPROTOCOL], max_msg_size=LONGEST_FRAME)
        except aiohttp.WSServerHandshakeError as error:
            if error.status in (401, 403):
                raise Refused(error.status, "is the token right, and the host one of its allowed ones?") from None
            return 0, error.message
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            return 0, str(error)
        try:
            return await self._talk(socket)
        except (aiohttp.ClientError, OSError) as error:
            return 0, str(error)
        finally:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with asyncio.timeout(FAREWELL_S):
                    await socket.close()

    async def _talk(self, socket: aiohttp.ClientWebSocketResponse) -> tuple[int, str]:
        copy = self.copy
        copy.beat = ticked = now_ns()
        slept = False
        later: tuple[int, dict[str, Any]] | None = None
        await socket.send_json({"type": "hello"})
        while copy.state != "gone":
            try:
                message = await socket.receive(GRACE_S if slept else TICK_S)
            except TimeoutError:
                message = None
            now = now_ns()
            late, ticked = now - ticked > LATE, now
            if message is not None:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    return socket.close_code or 0, str(message.extra or "")
                answer = copy.take(message.data, now)
                for said in answer.says:
                    await socket.send_json(said)
                if answer.later is not None:
                    later = now + int(_jitter(RECONNECT_MAX_S) * SECOND), answer.later
                if copy.heard_here:  # a greeting alone is no reason to be quick the next time
                    self._tries = 0
                self._tell(answer)
            if copy.waits and later is not None and now >= later[0]:
                copy.waits = False
                await socket.send_json(later[1])
            # What came during a sleep is taken before it is judged whether anything came.
            missed = slept and message is None
            if not late and now - copy.beat > copy.patience(missed):
                self._at_once = missed
                return 0, "nothing was heard"
            slept = late
        return 0, "gone"


def stream_url(url: str) -> str:
    """Where the stream of this server is; raises `ValueError` for an address that is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname:
        raise ValueError(f"say it as http://HOST:PORT/, not as {url!r}")
    return f"{url.rstrip('/').removesuffix('/v1/stream')}/v1/stream"


def _jitter(most: float) -> float:
    return random.uniform(RECONNECT_MIN_S, most)  # noqa: S311 - not a secret
