"""``POST /v1/events/<agent>``: hooks of coding agents. An agent stands still while it is answered, so it is, at once.

What `bridges.hooks` makes of a hook is an event like any other: into the catalog first, by the same `Recorder`. But the
sender is no orchestrator that could be told to come again. So the answer is 2xx and empty whatever becomes of it: 204
once that is known, 202 where it takes longer. What the catalog cannot take now is held here, the newest of each
session, and tried again with the instant at which it happened. An agent in a folder that is no worktree of the
caller's is none of our business, and is only counted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

from aiohttp import web
from msgspec.structs import replace
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.access import problem
from gateway.body import whole
from gateway.hub import Hub
from gateway.ingest import Busy, Recorder, Refused
from gateway.tokens import Caller
from pipeline.bridges import hooks as bridge
from pipeline.bridges.event import MAX_AGE_MS
from pipeline.bridges.hooks import AGENTS, HOOK, HookError, Told
from pipeline.catalog import CatalogUnavailable, Standing
from pipeline.domain.model import SESSION_PREFIX
from pipeline.runtime.clock import now_ns

ANSWER_S: Final = 0.03
AGAIN_S: Final = 1.0
MAX_BYTES: Final = 16 << 20  # a tool's input may be a whole file; nearly all of it is passed over
MAX_AT_ONCE: Final = 500
MAX_KNOWN: Final = 4096
FORGOTTEN_NS: Final = 3600 * 10**9
THREADS: Final = 2  # of their own: a folder on a dead mount shall hold up hooks and nothing else

OUTCOMES: Final = ("taken", "ignored", "elsewhere", "joined", "lost")


class Hook(NamedTuple):
    """One hook that says something: whose it is, and when it happened."""

    agent: str
    told: Told
    caller: Caller
    at_ns: int


class Hooks(Collector):
    """The routes, and what they have to remember. `counts` is by agent and outcome."""

    def __init__(self, recorder: Recorder, hub: Hub) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._recorder, self._hub = recorder, hub
        self._held: dict[str, Hook] = {}
        self._busy: set[str] = set()
        self._working: set[asyncio.Task[bool]] = set()
        self._pool = ThreadPoolExecutor(THREADS, "hooks")

    def routes(self) -> list[web.RouteDef]:
        return [web.post(f"/v1/events/{agent}", self._route(agent)) for agent in AGENTS]

    async def running(self, _: web.Application) -> AsyncIterator[None]:
        """For `web.Application.cleanup_ctx`: while it serves, what is held is tried again."""
        again = asyncio.create_task(self._again())
        yield
        again.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await again
        if self._working:
            await asyncio.wait(self._working, timeout=AGAIN_S)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def collect(self) -> list[Metric]:
        hooks = CounterMetricFamily("treewire_hooks", "Hooks of agents, by outcome.", labels=["agent", "outcome"])
        for agent in AGENTS:
            for outcome in OUTCOMES:
                hooks.add_metric([agent, outcome], self.counts[agent, outcome])
        held = GaugeMetricFamily("treewire_hooks_held", "Hooks that wait for the catalog.", value=len(self._held))
        return [hooks, held]

    # ── answering ────────────────────────────────────────────────────────────────────────────────

    def _route(self, agent: str) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def post(request: web.Request) -> web.Response:
            at_ns = now_ns()
            age_ms = request.query.get("age_ms", "0")
            if not (age_ms.isascii() and age_ms.isdigit() and len(age_ms) < 10 and int(age_ms) <= MAX_AGE_MS):
                return problem(400, "bad_hook", f"age_ms: is not between 0 and {MAX_AGE_MS}")
            body = await whole(request, MAX_BYTES)
            if body is None or len(self._working) >= MAX_AT_ONCE:
                self.counts[agent, "lost"] += 1
                return web.Response(status=202)
            try:
                told = bridge.read(agent, body)
            except HookError as error:
                return problem(400, "bad_hook", str(error))
            if told is None:
                self.counts[agent, "ignored"] += 1
                return web.Response(status=204)
            work = self._begin(Hook(agent, told, request["caller"], at_ns - int(age_ms) * 1_000_000))
            done, _ = await asyncio.wait({work}, timeout=ANSWER_S)
            return web.Response(status=204 if done and work.result() else 202)

        return post

    # ── taking ───────────────────────────────────────────────────────────────────────────────────

    def _begin(self, hook: Hook) -> asyncio.Task[bool]:
        work = asyncio.create_task(self._take(hook))
        self._working.add(work)
        work.add_done_callback(self._working.discard)
        return work

    async def _take(self, hook: Hook) -> bool:
        """Whether it is known what became of it; else it is held. Of one session one is written at a time."""
        group = hook.told.group
        if group in self._busy:
            return not self._hold(hook)
        if (other := self._held.pop(group, None)) is not None:
            hook = self._joined(other, hook)
        self._busy.add(group)
        try:
            outcome = await self._record(hook)
        except (Busy, CatalogUnavailable, TimeoutError):
            return not self._hold(hook)
        finally:
            self._busy.discard(group)
        self.counts[hook.agent, outcome] += 1
        if (other := self._held.pop(group, None)) is not None:
            self._begin(other)
        return True

    async def _record(self, hook: Hook) -> str:
        """Place it and write it. Raises `Busy`, `CatalogUnavailable` or `TimeoutError`."""
        told, caller = hook.told, hook.caller
        here, left, before = await asyncio.get_running_loop().run_in_executor(self._pool, self._placed, told, caller)
        here = here or before  # an agent that works elsewhere for a while still belongs where it came from
        if here is None:
            return "elsewhere"
        if before is not None and before.wait and before.workspace == here.workspace and told.leaves(before.wait):
            return "ignored"
        age_ms = max(0, (now_ns() - hook.at_ns) // 1_000_000)
        waits = {"waiting_by": told.by, "waiting_tool": told.tool} if told.waits else {}
        events = [_event(here, told.group, {**told.fields, **waits}, age_ms)]
        for home in {home.workspace: home for home in (left, before) if home is not None}.values():
            if home.workspace != here.workspace:
                gone = {"state": "exited", "waiting_for": None, "crashed": False}
                events.append(_event(home, told.group, gone, age_ms))
        try:
            written = await self._recorder.take(events, caller)
        except Refused:  # removed in between
            return "elsewhere"
        if self._hub.full:
            self._hub.unsent += len(written.looks)  # a census brings them
        else:
            self._hub.send(written.looks)
        return "taken"

    def _placed(self, told: Told, caller: Caller) -> tuple[Standing | None, Standing | None, Standing | None]:
        """In a thread: the live workspaces of the caller's that hold the folder in which the agent is, and the one
        that it left; and where its session was seen last, and what waits there."""
        store = self._recorder.open()

        def at(folder: str) -> Standing | None:
            found = store.workspace_at(folder) if folder.startswith("/") else None
            return Standing(found.project, found.id) if found is not None and caller.may(found.project) else None

        known = store.standing(told.group.removeprefix(SESSION_PREFIX))
        return at(told.cwd), at(told.left), next((one for one in known if caller.may(one.project)), None)

    # ── holding ──────────────────────────────────────────────────────────────────────────────────

    def _hold(self, hook: Hook) -> bool:
        """Keep it, joined with the others of its session; whether there is room."""
        group = hook.told.group
        other = self._held.get(group)
        if other is None and len(self._held) >= MAX_KNOWN:
            self.counts[hook.agent, "lost"] += 1
            return False
        self._held[group] = hook if other is None else self._joined(other, hook)
        return True

    def _joined(self, other: Hook, hook: Hook) -> Hook:
        self.counts[hook.agent, "joined"] += 1
        return joined(other, hook)

    async def _again(self) -> None:
        while True:
            await asyncio.sleep(AGAIN_S)
            held, self._held = self._held, {}
            for group, hook in held.items():
                if now_ns() - hook.at_ns > FORGOTTEN_NS:
                    self.counts[hook.agent, "lost"] += 1
                elif group in self._busy:
                    self._hold(hook)
                else:
                    self._begin(hook)


def joined(one: Hook, other: Hook) -> Hook:
    """Two hooks of a session as one: the later one's, with what only the earlier one told."""
    earlier, later = sorted((one, other), key=lambda hook: hook.at_ns)
    goes_on = earlier.told.wait is not None and later.told.leaves(earlier.told.wait)
    last = earlier.told if goes_on else later.told
    told = replace(
        last,
        cwd=later.told.cwd,
        fields={**earlier.told.fields, **last.fields},
        left=later.told.left or earlier.told.left,
        still=later.told.still and earlier.told.still,
    )
    return later._replace(told=told)


def _event(home: Standing, group: str, fields: dict[str, Any], age_ms: int) -> dict[str, Any]:
    return {
        "project": home.project,
        "workspace": home.workspace,
        "group": group,
        "fields": fields,
        "age_ms": age_ms,
        "source": HOOK,
    }
