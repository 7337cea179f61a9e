"""A GitHub to test against: its GraphQL endpoint on loopback, with a schema, a cost and limits as documented.

Every query is checked against the recorded part of the schema; what GitHub does not have, fails here too. The cost is
by the rule that its documentation gives: one request for each connection, times what the connections around it may
hold, divided by a hundred and rounded, and at least one point.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from functools import cache
from pathlib import Path
from typing import Any

from aiohttp import web
from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    OperationDefinitionNode,
    build_schema,
    execute_sync,
    parse,
    validate,
)

from pipeline.bridges.github import FAILED, PENDING

SDL = Path(__file__).parent / "fixtures/github/schema.graphql"
TOKEN = "ghp_test"
HOUR_S = 3600
MAX_NODES = 500_000


def sha(n: int) -> str:
    return f"{n:040x}"


@dataclass
class Pull:
    """A pull request. `runs`: the states of its check runs; ``None``: the head has no checks at all."""

    number: int
    branch: str
    state: str = "OPEN"
    draft: bool = False
    mergeable: str = "MERGEABLE"
    review: str | None = None
    head: str = ""
    owner: str | None = None  # of the fork that it comes from
    runs: list[str] | None = None
    statuses: list[str] = field(default_factory=list)

    def node(self, repo: str) -> dict[str, Any]:
        return {
            "number": self.number,
            "url": f"https://github.com/{repo}/pull/{self.number}",
            "state": self.state,
            "isDraft": self.draft,
            "mergeable": self.mergeable,
            "reviewDecision": self.review,
            "headRefName": self.branch,
            "headRefOid": self.head or sha(self.number),
            "isCrossRepository": self.owner is not None,
            "headRepositoryOwner": {"__typename": "User", "login": self.owner or repo.partition("/")[0]},
            "statusCheckRollup": self._rollup(),
        }

    def _rollup(self) -> dict[str, Any] | None:
        if self.runs is None:
            return None
        every = [*self.runs, *self.statuses]
        failed, pending = any(one in FAILED for one in every), any(one in PENDING for one in every)
        return {
            "state": "FAILURE" if failed else "PENDING" if pending else "SUCCESS",
            "contexts": lambda _, **__: {
                "checkRunCountsByState": _counts(self.runs or []),
                "statusContextCountsByState": _counts(self.statuses),
            },
        }


def _counts(states: list[str]) -> list[dict[str, Any]]:
    return [{"state": state, "count": count} for state, count in sorted(Counter(states).items())]


@dataclass
class Asked:
    """A request that was answered. `branches`: those whose pull requests it listed; `counted`: whose checks."""

    at: float
    branches: list[str]
    counted: list[int]
    cost: int


class GitHub:
    """Repositories and a limit; `clock` says what time it is there, in seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time, limit: int = 5000) -> None:
        self.clock = clock
        self.limit = limit
        self.used = 0
        self.resets = clock() + HOUR_S
        self.pulls: dict[str, list[Pull]] = {}
        self.renamed: dict[str, str] = {}
        self.token = TOKEN
        self.asked: list[Asked] = []
        self.refusals: deque[tuple[int, dict[str, str], Any]] = deque()
        self.refused = 0
        self.forbidden: set[str] = set()
        self.url = ""
        self.broken: list[Exception] = []  # queries that GitHub would not understand

    @property
    def remaining(self) -> int:
        if self.clock() >= self.resets:
            self.used, self.resets = 0, self.clock() + HOUR_S
        return max(0, self.limit - self.used)

    def pull(self, repo: str, pull: Pull) -> Pull:
        self.pulls.setdefault(repo, []).append(pull)
        return pull

    # ── answering ────────────────────────────────────────────────────────────────────────────────

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """As the endpoint answers with 200. What is no valid query is an error, as there."""
        document, price = _checked(query)
        if self.remaining < price:
            return {"errors": [{"type": "RATE_LIMITED", "message": "API rate limit exceeded for user ID 1."}]}
        self.used += price
        asked = Asked(self.clock(), [], [], price)
        resets = datetime.fromtimestamp(self.resets, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        told = {"cost": price, "limit": self.limit, "remaining": self.remaining, "used": self.used, "resetAt": resets}
        root = {
            "rateLimit": told,
            "repository": lambda _, owner, name, **__: self._repository(f"{owner}/{name}", asked),
        }
        result = execute_sync(_schema(), document, root, variable_values=variables)
        self.asked.append(asked)
        body: dict[str, Any] = {"data": result.data}
        if result.errors:
            body["errors"] = [_error(error) for error in result.errors]
        return body

    def _repository(self, name: str, asked: Asked) -> dict[str, Any]:
        called = next((new for old, new in self.renamed.items() if old.lower() == name.lower()), name)
        repo = next((one for one in self.pulls if one.lower() == called.lower()), None)
        if repo is None:
            message = f"Could not resolve to a Repository with the name '{name}'."
            raise GraphQLError(message, extensions={"type": "NOT_FOUND"})
        if repo in self.forbidden:
            raise GraphQLError("Resource protected by organization SAML enforcement.", extensions={"type": "FORBIDDEN"})

        def listed(_: Any, headRefName: str, first: int, orderBy: Any) -> dict[str, Any]:
            asked.branches.append(headRefName)
            own = sorted((one for one in self.pulls[repo] if one.branch == headRefName), key=lambda one: -one.number)
            return {"nodes": [one.node(repo) for one in own[:first]], "totalCount": len(own)}

        def one(_: Any, number: int) -> Any:
            asked.counted.append(number)
            return next((pull.node(repo) for pull in self.pulls[repo] if pull.number == number), None)

        return {"nameWithOwner": repo, "pullRequests": listed, "pullRequest": one}

    # ── over HTTP ────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> web.AppRunner:
        """Serve on loopback; clean up the runner that this returns."""
        app = web.Application(client_max_size=1 << 20)
        app.router.add_post("/graphql", self._post)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/graphql"
        return runner

    async def _post(self, request: web.Request) -> web.Response:
        headers = {"Date": formatdate(self.clock(), usegmt=True)}
        if self.refusals:
            self.refused += 1
            status, more, body = self.refusals.popleft()
            return _response(status, {**headers, **more}, body)
        if request.headers.get("Authorization") != f"Bearer {self.token}" or not request.headers.get("User-Agent"):
            self.refused += 1
            return _response(401, headers, {"message": "Bad credentials"})
        native = await request.json()
        try:
            body = self.answer(native["query"], native["variables"])
        except Exception as error:
            self.broken.append(error)
            raise
        headers |= {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(int(self.resets)),
        }
        return _response(200, headers, body)


def _response(status: int, headers: dict[str, str], body: Any) -> web.Response:
    text = body if isinstance(body, str) else json.dumps(body)
    return web.Response(status=status, headers=headers, text=text, content_type="application/json")


def _error(error: GraphQLError) -> dict[str, Any]:
    return {"type": (error.extensions or {}).get("type", ""), "path": error.path, "message": error.message}


# ── the schema and the cost ──────────────────────────────────────────────────────────────────────


@cache
def _schema() -> GraphQLSchema:
    schema = build_schema(SDL.read_text())
    schema.type_map["RepositoryOwner"].resolve_type = lambda value, *_: value["__typename"]  # type: ignore[attr-defined]
    return schema


@cache
def _checked(query: str) -> tuple[DocumentNode, int]:
    document = parse(query)
    wrong = validate(_schema(), document)
    assert not wrong, [error.message for error in wrong]
    return document, cost(document)


def cost(document: DocumentNode) -> int:
    """The points of a query by the documented rule. Asserts that it has no more nodes than it may."""
    fragments = {one.name.value: one for one in document.definitions if isinstance(one, FragmentDefinitionNode)}
    requests = nodes = 0

    def walk(selections: Any, times: int) -> None:
        nonlocal requests, nodes
        for one in selections.selections if selections is not None else ():
            if isinstance(one, FragmentSpreadNode):
                walk(fragments[one.name.value].selection_set, times)
            elif isinstance(one, InlineFragmentNode):
                walk(one.selection_set, times)
            elif isinstance(one, FieldNode):
                most = [int(arg.value.value) for arg in one.arguments or () if arg.name.value in ("first", "last")
                        if isinstance(arg.value, IntValueNode)]  # fmt: skip
                if most:
                    assert 1 <= most[0] <= 100
                    requests += times
                    nodes += times * most[0]
                walk(one.selection_set, times * most[0] if most else times)

    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            walk(definition.selection_set, 1)
    assert nodes <= MAX_NODES
    return max(1, round(requests / 100))
