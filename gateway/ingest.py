"""``POST /v1/events``: what orchestrators and hooks report goes into the catalog first and onto the bus second.

All requests that arrive while a transaction runs are written together in the next one, by a single thread; their
looks leave in the order of the commits. A request is checked whole before any of it is written. Once written it is
accepted, whether the aggregator is there or not: what it misses, a census brings.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from aiohttp import web

from gateway.access import problem
from gateway.hub import Hub
from gateway.tokens import OPERATOR, Caller
from pipeline import catalog
from pipeline.bridges import event as bridge
from pipeline.bridges.event import Event, EventError
from pipeline.catalog import Catalog, CatalogUnavailable, Observed
from pipeline.domain.model import Look, kind_of
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.log import FilteringBoundLogger
from pipeline.runtime.settings import Settings

MAX_BYTES: Final = 1 << 20
MAX_EVENTS: Final = 1000
MAX_WAITING: Final = 5000
MAX_BATCH: Final = 2000
MORE_KNOWN: Final = 1000
RETRY_AFTER: Final = "2"
TAKE_S: Final = 20.0


class Refused(Exception):
    """The client's fault; `index` says which event, `field` what in it. Nothing of the request was written."""

    def __init__(self, index: int, field: str, message: str) -> None:
        super().__init__(message)
        self.index, self.field, self.message = index, field, message


class Busy(Exception):
    """More is waiting to be written than is sensible."""


class Written(NamedTuple):
    """What became of a request: its looks, and which of its events came too late, their workspace being gone."""

    looks: list[Look]
    lost: list[int]


class Batch:
    """One request: its events as decoded, whose it is, the clock as it arrived, and who waits for the outcome.

    It is either begun or given up, never both: who is told that nothing was written can rely on it.
    """

    __slots__ = ("_settled", "caller", "done", "events", "now_ns", "wall_ms")

    def __init__(self, events: list[Any], caller: Caller, done: Callable[[Written | Exception], object]) -> None:
        self.events = events
        self.caller = caller
        self.done = done
        self.now_ns, self.wall_ms = now_ns(), wall_ms()
        self._settled = threading.Lock()

    def begin(self) -> bool:
        """Take it on; false if it was given up, or taken on, before."""
        return self._settled.acquire(blocking=False)

    give_up = begin


class Recorder:
    """The single writer of this gateway: a thread with the catalog. `state` is ``ok`` or ``degraded``."""

    def __init__(self, settings: Settings, log: FilteringBoundLogger) -> None:
        self.state = "ok"
        self.accepted = 0
        self.refused = 0
        self.commits = 0
        self._settings = settings
        self._log = log
        self._catalog: Catalog | None = None
        self._opening = threading.Lock()
        self._known: dict[str, str] = {}  # workspace → project; looked up again before it holds mostly former ones
        self._most_known = MORE_KNOWN
        self._projects: set[str] = set()
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._waiting = 0
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is waiting, then end."""
        self._batches.put(None)
        self._thread.join()
        if self._catalog is not None:
            self._catalog.close()

    async def take(self, events: list[Any], caller: Caller = OPERATOR) -> Written:
        """Write these events of the caller's projects. Raises `Refused`, `Busy` or `CatalogUnavailable`."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Written] = loop.create_future()

        def settle(result: Written | Exception) -> None:
            if outcome.done():
                return
            if isinstance(result, Exception):
                outcome.set_exception(result)
            else:
                outcome.set_result(result)

        with self._counting:
            if self._waiting + len(events) > MAX_WAITING:
                raise Busy
            self._waiting += len(events)
        batch = Batch(events, caller, lambda result: loop.call_soon_threadsafe(settle, result))
        self._batches.put(batch)
        try:
            return await asyncio.wait_for(asyncio.shield(outcome), TAKE_S)
        except TimeoutError:
            if batch.give_up():
                raise
            return await outcome  # it is being written: only that can tell how it ends

    def open(self) -> Catalog:
        """The catalog; in a thread. Raises `CatalogUnavailable`."""
        with self._opening:
            if self._catalog is None:
                self._catalog = catalog.open(self._settings)
            return self._catalog

    def check(self) -> None:
        """See whether the catalog can be read, and, once it could not be used, whether it can again; in a thread."""
        try:
            store = self.open()
            store.answers()
            if self.state != "ok":
                store.try_writing()
        except CatalogUnavailable as error:
            self._mark("degraded", error)
        else:
            self._mark("ok")

    # ── in the thread ────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        self.check()
        while (first := self._batches.get()) is not None:
            batches, size, last = [first], len(first.events), False
            while size < MAX_BATCH and not self._batches.empty():
                more = self._batches.get()
                if more is None:
                    last = True
                    break
                batches.append(more)
                size += len(more.events)
            batches = [batch for batch in batches if batch.begin()]
            try:
                self._write(batches)
            except Exception as error:
                if isinstance(error, CatalogUnavailable):
                    self._mark("degraded", error)
                else:
                    self._log.error("events not recorded", exc_info=error)
                for batch in batches:
                    batch.done(error)
            finally:
                with self._counting:
                    self._waiting -= size
            if last:
                return

    def _write(self, batches: list[Batch]) -> None:
        """Check each request whole, write all that pass in one transaction, and hand out the looks."""
        store = self.open()
        passed: list[tuple[Batch, list[Observed]]] = []
        looked_up = False
        born: dict[str, str] = {}
        for batch in batches:
            try:
                try:
                    passed.append((batch, self._checked(store, batch, born)))
                except Refused as refused:
                    if looked_up or refused.field not in ("project", "workspace"):
                        raise
                    self._look_up(store)  # it may be new since we last looked, which is once per transaction at most
                    looked_up = True
                    passed.append((batch, self._checked(store, batch, born)))
            except Refused as refused:
                self.refused += 1
                batch.done(refused)
        events = [event for _, observed in passed for event in observed]
        looks = store.record(events)
        self._mark("ok")
        self.commits += bool(events)
        self._known.update(born)
        if len(self._known) > self._most_known:
            self._look_up(store)
        at = 0
        for position, (batch, observed) in enumerate(passed):
            mine = looks[at : at + len(observed)]
            at += len(observed)
            lost = [index for index, look in enumerate(mine) if look is None]
            if lost:  # removed between the check and the write
                self._known.clear()
                self._projects.clear()
            self.accepted += len(mine) - len(lost)
            if position == len(passed) - 1:
                mine += looks[len(events) :]
            batch.done(Written([look for look in mine if look is not None], lost))

    def _checked(self, store: Catalog, batch: Batch, born: dict[str, str]) -> list[Observed]:
        observed, mine = [], dict(born)
        for index, native in enumerate(batch.events):
            try:
                event = bridge.of(self._placed(store, native, batch.caller))
            except EventError as error:
                raise Refused(index, error.path, error.problem) from None
            self._exists(index, event, mine, batch.caller)
            observed.append(
                Observed(
                    project=event.project,
                    workspace=event.workspace,
                    group=event.group,
                    fields=event.fields,
                    stamp=bridge.event_stamp(event.age_ms, batch.now_ns, CLOCK),
                    at_ms=batch.wall_ms - event.age_ms,
                    run=event.run or (event.source if event.seq is not None else ""),
                    seq=event.seq,
                    producer=event.source or "events",
                )
            )
        born.update(mine)
        return observed

    def _placed(self, store: Catalog, native: Any, caller: Caller) -> Any:
        """A hook knows the folder that it runs in, and no id: it may name the workspace by a path."""
        path = native.get("workspace") if isinstance(native, dict) else None
        if not isinstance(path, str) or not os.path.isabs(path):
            return native
        try:
            found = store.workspace_at(path)
        except ValueError:  # a null byte
            found = None
        if found is None or not caller.may(found.project):
            raise EventError("workspace", "no workspace that treewire follows lies at this path")
        self._known[found.id] = found.project
        self._projects.add(found.project)
        return {"project": found.project, **native, "workspace": found.id}

    def _exists(self, index: int, event: Event, born: dict[str, str], caller: Caller) -> None:
        if event.project not in self._projects or not caller.may(event.project):
            raise Refused(index, "project", "there is no such project, or you may not see it")
        home = self._known.get(event.workspace) or born.get(event.workspace)
        if home is None and kind_of(event.group) == "life" and event.fields.get("phase") != "archived":
            if all(value is None for value in event.fields.values()):
                raise Refused(index, "fields", "say nothing of a workspace that is not known yet: give its name")
            born[event.workspace] = event.project
        elif home != event.project:
            raise Refused(index, "workspace", "the project has no such workspace: report its `life` first")

    def _look_up(self, store: Catalog) -> None:
        self._projects = {project.id for project in store.projects()}
        self._known = {workspace.id: workspace.project for workspace in store.workspaces(archived=True)}
        self._most_known = 2 * len(self._known) + MORE_KNOWN

    def _mark(self, state: str, error: Exception | None = None) -> None:
        if state != self.state:
            self._log.warning("catalog " + ("is back" if state == "ok" else "cannot be used"), why=str(error or ""))
        self.state = state


def handler(recorder: Recorder, hub: Hub) -> Callable[[web.Request], Any]:
    """The route."""

    async def post(request: web.Request) -> web.Response:
        if hub.full:
            return busy("the aggregator cannot keep up; send it again")
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return _unfit(413, f"has at most {MAX_BYTES} bytes; send several")
        try:
            native = msgspec.json.decode(body)
        except RecursionError:
            return _unfit(400, "is nested too deeply")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _unfit(400, f"is not JSON: {error}")
        events = native if isinstance(native, list) else [native]
        if len(events) > MAX_EVENTS:
            return _unfit(413, f"has at most {MAX_EVENTS} events; send several")
        try:
            written = await recorder.take(events, request["caller"]) if events else Written([], [])
        except Refused as refused:
            return _refusal(refused, isinstance(native, list))
        except Busy:
            return busy("more events are waiting than can be written; send it again")
        except (CatalogUnavailable, TimeoutError):
            return busy("the catalog cannot be written to now; send it again")
        hub.send(written.looks)
        told: dict[str, Any] = {"accepted": len(events) - len(written.lost)}
        if written.lost:
            told["lost"] = written.lost
        return answer(told, 202)

    return post


def _refusal(refused: Refused, listed: bool) -> web.Response:
    where = f"events[{refused.index}]: {refused.field}" if listed else refused.field
    body = {
        "code": "bad_event",
        "message": f"{where}: {refused.message}",
        "index": refused.index,
        "field": refused.field,
        "accepted": 0,
    }
    return answer(body, 400)


def _unfit(status: int, message: str) -> web.Response:
    code = "too_large" if status == web.HTTPRequestEntityTooLarge.status_code else "bad_event"
    return answer({"code": code, "message": f"body: {message}", "field": "body", "accepted": 0}, status)


def busy(message: str) -> web.Response:
    return problem(503, "busy", message, Retry_After=RETRY_AFTER)


def answer(body: Mapping[str, Any] | list[Any], status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")
