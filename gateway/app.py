"""The routes."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiohttp import web

from gateway import public
from gateway.access import Access, Page, problem
from gateway.cors import Cors
from gateway.feeds import WAIT_S, Bad, Events, Poll, cursor_of, seconds_of, standing, unshown
from gateway.hooks import Hooks
from gateway.hub import Away, Hub
from gateway.ingest import MAX_BYTES, RETRY_AFTER, Recorder, answer, busy, handler
from gateway.session import Close
from gateway.shelf import Shelf
from gateway.socket import Socket, Tally
from gateway.tokens import Caller
from gateway.webhooks import Webhooks
from pipeline import frames
from pipeline.catalog import CatalogUnavailable, Project
from pipeline.runtime import metrics
from pipeline.runtime.clock import CLOCK, now_ns
from pipeline.runtime.process import Process

MAX_STRANGERS: Final = 32
MODULES: Final = ("ages", "arrange", "board", "card", "client", "html", "live", "page", "story", "theme", "words")
PAGES: Final = {
    "/": "index.html",
    **{f"/{name}.js": f"{name}.js" for name in MODULES},
    **{f"/{name}": name for name in ("page.css", "icon.svg", "vendor/preact.js", "vendor/htm.js")},
}


def make(process: Process, hub: Hub, recorder: Recorder, access: Access, tally: Tally) -> web.Application:
    """The application: every route behind one middleware."""
    routes = Routes(process, hub, recorder, tally, access)
    cors = Cors(access)
    app = web.Application(middlewares=[cors.middleware(), access.middleware()], client_max_size=MAX_BYTES)
    app.on_response_prepare.append(cors.share)
    app.router.add_get("/healthz", routes.healthz)
    app.router.add_get("/readyz", routes.readyz)
    app.router.add_get("/metrics", routes.metrics)
    app.add_routes(access.routes())
    app.router.add_post("/v1/events", handler(recorder, hub))
    app["hooks"] = hooks = Hooks(recorder, hub)
    app.add_routes(hooks.routes())
    app.cleanup_ctx.append(hooks.running)
    app["webhooks"] = webhooks = Webhooks(process.settings)
    app.add_routes(webhooks.routes())
    app.cleanup_ctx.append(webhooks.running)
    app.router.add_get("/v1/stream", routes.stream, allow_head=False)
    app.router.add_get("/v1/projects", routes.projects)
    app.router.add_get("/v1/projects/{project}/snapshot", routes.snapshot)
    app.router.add_get("/v1/projects/{project}/changes", routes.changes, allow_head=False)
    app.router.add_get("/v1/projects/{project}/events", routes.events, allow_head=False)
    app.router.add_get("/v1/schema", routes.schema)
    app.router.add_get("/v1/schema/{name}", routes.schema)
    app.router.add_get("/v1/projects/{project}/workspaces/{workspace}/explain", routes.explain)
    for path, name in PAGES.items():
        app.router.add_get(path, _page(Page(name)))
    return app


class Routes:
    def __init__(self, process: Process, hub: Hub, recorder: Recorder, tally: Tally, access: Access) -> None:
        self._process, self._hub, self._recorder, self._tally = process, hub, recorder, tally
        self._access = access
        # One bound method for all clients, instead of one each.
        self._current, self._redeem_ticket = access.current, self._redeem
        self._settings = process.settings.gateway

    # ── for operators ────────────────────────────────────────────────────────────────────────────

    async def healthz(self, _: web.Request) -> web.Response:
        """That the event loop turns."""
        return answer({"status": "ok"})

    async def readyz(self, _: web.Request) -> web.Response:
        """Whether there is something true to show; and how each part does that it depends on.

        Only the aggregator and a census are needed to serve what is known; the rest makes it fresh.
        """
        hub = self._hub
        head = hub.follower.head
        parts: dict[str, Any] = {
            "aggregator": {"state": "ok" if not hub.stale else "stale" if head else "away", "needed": True},
            "epoch": {"state": "ok" if hub.epoch else "away", "name": hub.epoch, "needed": True},
            "census": {"state": "ok" if hub.settled else "loading", "needed": True},
            "catalog": {"state": self._recorder.state, "needed": False},
            **{part: {"state": state, "needed": False} for part, state in hub.processes().items()},
        }
        ready = all(part["state"] == "ok" for part in parts.values() if part["needed"])
        degraded = [name for name, part in parts.items() if part["state"] != "ok"]
        body = {"ready": ready, "degraded": degraded, "parts": parts}
        response = answer(body, 200 if ready else 503)
        if not ready:
            response.headers["Retry-After"] = RETRY_AFTER
        return response

    async def metrics(self, _: web.Request) -> web.Response:
        run_dir = self._process.settings.run_dir

        def gather() -> bytes:
            metrics.write(self._process.registry, run_dir, self._process.name)
            return metrics.merged(run_dir)

        return web.Response(body=gather(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    # ── for clients ──────────────────────────────────────────────────────────────────────────────

    async def stream(self, request: web.Request) -> web.StreamResponse:
        if len(self._hub.strangers) >= MAX_STRANGERS:
            return busy("too many sockets have not said hello yet; try again")
        if self._process.stopping.is_set():
            return busy("shutting down; try again")
        settings = self._settings
        client = Socket(
            self._hub,
            self._tally,
            settings.heartbeat_ms,
            request,
            caller=request["caller"],
            redeem=self._redeem_ticket,
            current=self._current,
        )
        return await client.run(request, settings.send_buffer, settings.compress)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The stream for whoever can only listen: Server-Sent Events of one project."""
        settings = self._settings
        given = "Last-Event-ID" if "Last-Event-ID" in request.headers else "since"
        asked = request.headers.get(given) if given != "since" else request.query.get(given)
        try:
            cursor = cursor_of(asked, given) if asked else None
        except Bad as bad:
            return _bad(bad)
        project = request.match_info["project"]
        if (refused := self._crowded()) is not None:
            return refused
        if self._hub.settled and self._shelf(request) is None:
            return _no_project()
        feed = Events(self._hub, self._tally, settings.heartbeat_ms, request, self._access.current)
        return await feed.run(request, project, cursor, settings.send_buffer)

    async def changes(self, request: web.Request) -> web.Response:
        """What came after a cursor, as soon as there is anything."""
        try:
            since = cursor_of(request.query.get("since", ""), "since")
            wait_s = seconds_of(request.query.get("wait", f"{WAIT_S:g}"), "wait")
        except Bad as bad:
            return _bad(bad)
        if (refused := self._crowded()) is not None:
            return refused
        assert request.transport is not None
        poll = Poll(
            self._hub,
            request.match_info["project"],
            request["caller"],
            self._access.current,
            request.transport,
        )
        return await poll.answer(since, wait_s)

    async def projects(self, request: web.Request) -> web.Response:
        """The caller's projects with their names, as far as the catalog answers, and how far each has got here."""
        hub, caller = self._hub, _caller(request)
        named: dict[str, Project] = {}
        try:
            named = {project.id: project for project in await asyncio.to_thread(self._read_projects)}
        except CatalogUnavailable:
            pass  # what runs is shown all the same
        told = []
        for id_ in sorted(filter(caller.may, named.keys() | hub.follower.replicas.keys())):
            shelf = hub.shelf(id_)
            shown = shelf if shelf is not None and shelf.loaded else None
            told.append(
                {
                    "id": id_,
                    "name": named[id_].name if id_ in named else id_,
                    "ready": shown is not None,
                    "epoch": shown and shown.epoch,
                    "version": shown and shown.version,
                    "workspaces": shown and shown.size,
                }
            )
        return answer({"projects": told, "settled": hub.settled, "stale": hub.stale})

    async def snapshot(self, request: web.Request) -> web.Response:
        shelf = self._shelf(request)
        refused = unshown(self._hub, shelf)
        if refused is not None or shelf is None:
            return refused or _no_project()
        tag = f'"{shelf.cursor}"' if shelf.complete else f'"{shelf.cursor}.incomplete"'
        headers = {"ETag": tag, "Cache-Control": "no-cache", **standing(self._hub)}
        asked = request.headers.get("If-None-Match", "")
        if any(one.strip().removeprefix("W/") in (tag, "*") for one in asked.split(",")):
            return web.Response(status=304, headers=headers)
        return web.Response(body=shelf.state(), content_type="application/json", headers=headers)

    async def explain(self, request: web.Request) -> web.Response:
        """Why a workspace's values are what they are, in public terms."""
        project, workspace = request.match_info["project"], request.match_info["workspace"]
        group = request.query.get("group", "")
        if self._shelf(request) is None:
            return _no_project()
        try:
            found = await self._hub.explain(workspace, group)
            if group and found is not None and not found.rulings:
                found = await self._hub.explain(workspace, "")
        except Away:
            return busy("the aggregator does not answer; try again")
        if found is None or found.project != project:
            return problem(404, "not_found", "the project has no such workspace")
        told = public.explained(found, now_ns(), CLOCK)
        if group and group not in told["groups"]:
            known = sorted(told["groups"])
            message = f"group: nobody has looked at such a group of this workspace; there are {', '.join(known)}"
            return answer({"code": "not_found", "message": message, "field": "group", "groups": known}, 404)
        return answer(told)

    async def schema(self, request: web.Request) -> web.Response:
        """What the messages look like, for programs."""
        from gateway import schema  # hardly anybody asks

        documents = schema.documents()
        name = request.match_info.get("name")
        if name is None:
            return answer(documents)
        if name not in documents:
            return problem(404, "not_found", f"there is no such document; there are {', '.join(documents)}")
        return answer(documents[name])

    # ── what they share ──────────────────────────────────────────────────────────────────────────

    def _shelf(self, request: web.Request) -> Shelf | None:
        """Of the project in the path; ``None`` if there is none, or none for this caller."""
        project = request.match_info["project"]
        return self._hub.shelf(project) if _caller(request).may(project) else None

    def _crowded(self) -> web.Response | None:
        if self._hub.crowded:
            return busy("there are as many clients as there may be; try again later")
        if self._process.stopping.is_set():
            return busy("shutting down; try again")
        return None

    def _redeem(self, ticket: str) -> Caller | Close:
        caller = self._access.redeem(ticket)
        if caller is not None:
            return caller
        if self._access.expired(ticket):
            return Close(frames.TICKET_EXPIRED, "this ticket has expired: get another one")
        return Close(frames.UNAUTHENTICATED, "this is no ticket, or it was used: get another one")

    def _read_projects(self) -> list[Project]:
        return self._recorder.open().projects()


def _no_project() -> web.Response:
    return problem(404, "not_found", "there is no such project, or you may not see it")


def _bad(bad: Bad) -> web.Response:
    return answer({"code": "bad_request", "message": f"{bad.field}: {bad}", "field": bad.field}, 400)


def _caller(request: web.Request) -> Caller:
    """Whoever is admitted has a name on every route but the stream."""
    caller: Caller = request["caller"]
    return caller


def _page(page: Page) -> Any:
    async def get(_: web.Request) -> web.Response:
        return page.response()

    return get
