"""GitHub's words: what is asked of its GraphQL API, what its answers say of `pr` and `ci`, and what a webhook hints at.

A question is many branches at once, by aliases. The list of a branch's pull requests is one connection, and counting
the checks of a known one is another: so a whole question stays far below what costs a second point. A word that this
release does not know is never an error; it is not known, or unknown where the field has that word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Struct

from pipeline.domain.model import Ci, CiState, Mergeable, Pr, PrState, Review
from pipeline.wire import Hint

NAME: Final = "github"
CANDIDATES: Final = 5  # pull requests of one branch name: forks may have the same, and a branch may have had several
MAX_NUMBER: Final = 2**53 - 1
MAX_URL: Final = 512
MAX_REF: Final = 255
MAX_HINTS: Final = 20
EVENTS: Final = frozenset(
    {"pull_request", "pull_request_review", "check_suite", "check_run", "workflow_run", "status", "push"}
)

STATES: Final[Mapping[str, PrState]] = {"OPEN": "open", "MERGED": "merged", "CLOSED": "closed"}
REVIEWS: Final[Mapping[str, Review]] = {
    "APPROVED": "approved",
    "CHANGES_REQUESTED": "changes_requested",
    "REVIEW_REQUIRED": "required",
}
MERGEABLE: Final[Mapping[str, Mergeable]] = {"MERGEABLE": "mergeable", "CONFLICTING": "conflicting"}
ROLLUPS: Final[Mapping[str, CiState]] = {
    "SUCCESS": "success",
    "FAILURE": "failure",
    "ERROR": "failure",
    "PENDING": "pending",
    "EXPECTED": "pending",
}
PASSED: Final = frozenset({"SUCCESS", "NEUTRAL", "SKIPPED", "COMPLETED"})
FAILED: Final = frozenset({"FAILURE", "ERROR", "ACTION_REQUIRED", "CANCELLED", "STARTUP_FAILURE", "TIMED_OUT"})
PENDING: Final = frozenset({"PENDING", "EXPECTED", "IN_PROGRESS", "QUEUED", "WAITING", "STALE"})

_OBJECT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9-_]*/[A-Za-z0-9._-]+")

_FRAGMENTS = """
fragment P on PullRequest {
  number url state isDraft mergeable reviewDecision headRefOid isCrossRepository
  headRepositoryOwner { login }
  statusCheckRollup { state }
}
fragment C on PullRequest {
  number headRefOid
  statusCheckRollup {
    state
    contexts(first: 1) {
      checkRunCountsByState { state count }
      statusContextCountsByState { state count }
    }
  }
}
"""

Kind: TypeAlias = Literal["token", "limited", "server", "unreachable", "missing", "forbidden", "bad"]


class Ask(NamedTuple):
    """One branch: the repository that its pull requests are in, the one that it is pushed to, and its name there.

    `counts`: the pull request whose checks shall be counted.
    """

    repo: str
    head: str
    branch: str
    counts: int | None = None


class Found(NamedTuple):
    """A pull request with its checks. `counted`: whether the checks' numbers are known too."""

    pr: Pr
    ci: Ci
    head: str
    counted: bool


class Failure(NamedTuple):
    """Why something was not answered; a sentence with what to do."""

    kind: Kind
    why: str


class Budget(NamedTuple):
    """What the token may still spend, in GitHub's points. `resets_ms`: when it may spend `limit` again, wall clock."""

    limit: int
    remaining: int
    resets_ms: int


class Answer(NamedTuple):
    """What became of each branch, in the order asked. `names`: repositories that are called otherwise by now."""

    found: list[Found | Failure | None]
    budget: Budget | None
    cost: int
    names: dict[str, str]


# ── asking ───────────────────────────────────────────────────────────────────────────────────────


def question(asked: Sequence[Ask]) -> tuple[str, dict[str, Any]]:
    """The query for these branches, and its variables. Names travel as variables only."""
    declared: list[str] = []
    values: dict[str, Any] = {}

    def variable(name: str, kind: str, value: object) -> str:
        declared.append(f"${name}: {kind}!")
        values[name] = value
        return f"${name}"

    parts = []
    for at, (repo, places) in enumerate(_by_repo(asked).items()):
        owner, _, name = repo.partition("/")
        inner = ["nameWithOwner"]
        for n in places:
            branch = variable(f"b{n}", "String", asked[n].branch)
            order = "orderBy: {field: CREATED_AT, direction: DESC}"
            inner.append(
                f"p{n}: pullRequests(headRefName: {branch}, first: {CANDIDATES}, {order}) {{ nodes {{ ...P }} }}"
            )
            if asked[n].counts is not None:
                number = variable(f"c{n}", "Int", asked[n].counts)
                inner.append(f"c{n}: pullRequest(number: {number}) {{ ...C }}")
        of = f"owner: {variable(f'o{at}', 'String', owner)}, name: {variable(f'n{at}', 'String', name)}"
        parts.append(f"r{at}: repository({of}) {{ {' '.join(inner)} }}")
    used = _FRAGMENTS if any(one.counts is not None for one in asked) else _FRAGMENTS.partition("fragment C")[0]
    head = f"query({', '.join(declared)}) {{ rateLimit {{ cost limit remaining resetAt }}"
    return f"{head} {' '.join(parts)} }}{used}", values


def _by_repo(asked: Sequence[Ask]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for n, one in enumerate(asked):
        places.setdefault(one.repo, []).append(n)
    return places


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


class _Rollup(Struct):
    state: str = ""


class _Owner(Struct):
    login: str = ""


class _Node(Struct):
    number: int
    url: str = ""
    state: str = ""
    isDraft: bool = False
    mergeable: str | None = None
    reviewDecision: str | None = None
    headRefOid: str = ""
    isCrossRepository: bool = False
    headRepositoryOwner: _Owner | None = None
    statusCheckRollup: _Rollup | None = None


class _Count(Struct):
    state: str
    count: int


class _Contexts(Struct):
    checkRunCountsByState: list[_Count] | None = None
    statusContextCountsByState: list[_Count] | None = None


class _Counted(Struct):
    state: str = ""
    contexts: _Contexts | None = None


class _Detail(Struct):
    number: int
    headRefOid: str = ""
    statusCheckRollup: _Counted | None = None


class _Error(Struct):
    type: str = ""
    message: str = ""
    path: list[str | int] = []


class _Limit(Struct):
    limit: int
    remaining: int
    resetAt: str
    cost: int = 1


def answer(body: Any, asked: Sequence[Ask]) -> Answer | Failure:
    """What an answer says of each branch that was asked for; a `Failure` if it says nothing at all."""
    if not isinstance(body, dict):
        return Failure("bad", "GitHub's answer is no JSON object; it is tried again.")
    errors = [one for one in map(_error, _list(body.get("errors"))) if one is not None]
    for error in errors:
        if error.type == "RATE_LIMITED":
            return Failure("limited", _sentence(error))
    data = body.get("data")
    if not isinstance(data, dict):
        return Failure("bad", f"GitHub did not answer: {_sentence(errors[0]) if errors else 'it gave no data'}")
    found: list[Found | Failure | None] = [None] * len(asked)
    names: dict[str, str] = {}
    for at, (repo, places) in enumerate(_by_repo(asked).items()):
        told = data.get(f"r{at}")
        if not isinstance(told, dict):
            failure = _missing(repo, errors, f"r{at}")
            for n in places:
                found[n] = failure
            continue
        name = told.get("nameWithOwner")
        if isinstance(name, str) and name.lower() != repo.lower() and _REPOSITORY.fullmatch(name):
            names[repo] = name
        for n in places:
            found[n] = _branch(asked[n], told, n, errors)
    return Answer(found, *_budget(data.get("rateLimit")), names)


def _branch(ask: Ask, told: Mapping[str, Any], n: int, errors: Iterable[_Error]) -> Found | Failure | None:
    listed = told.get(f"p{n}")
    if not isinstance(listed, dict):
        for error in errors:
            if f"p{n}" in error.path:
                return Failure("server", _sentence(error))
        return Failure("bad", f"GitHub did not say which pull requests {ask.branch} has; it is tried again.")
    try:
        nodes = msgspec.convert([node for node in _list(listed.get("nodes")) if node is not None], list[_Node])
    except msgspec.ValidationError as error:
        return Failure("bad", f"GitHub's answer is not understood: {error}")
    chosen = _chosen(ask, nodes)
    return None if chosen is None else _found(chosen, _detail(told.get(f"c{n}")))


def _chosen(ask: Ask, nodes: Iterable[_Node]) -> _Node | None:
    """The branch's own pull request: the newest that is open, else the newest. Forks' with its name are not its own."""
    own = [node for node in nodes if _is_own(node, ask)]
    return max(own, key=lambda node: (node.state == "OPEN", node.number), default=None)


def _is_own(node: _Node, ask: Ask) -> bool:
    """By the owner where it comes from another repository: that one may have been renamed since."""
    if not node.isCrossRepository or ask.head.lower() == ask.repo.lower():
        return node.isCrossRepository == (ask.head.lower() != ask.repo.lower())
    login = "" if node.headRepositoryOwner is None else node.headRepositoryOwner.login
    return login.lower() == ask.head.partition("/")[0].lower()


def _found(node: _Node, detail: _Detail | None) -> Found:
    head = node.headRefOid if _OBJECT.fullmatch(node.headRefOid) else ""
    rollup = node.statusCheckRollup
    # Without any check there is nothing to wait for: that is `unknown`, and not a value that is missing.
    state: CiState = "unknown" if rollup is None else ROLLUPS.get(rollup.state, "unknown")
    shown = STATES.get(node.state)
    pr = Pr(
        number=node.number if 0 < node.number <= MAX_NUMBER else None,
        url=_url(node.url),
        state="draft" if shown == "open" and node.isDraft else shown,
        review=REVIEWS.get(node.reviewDecision or ""),
        mergeable=None if node.mergeable is None else MERGEABLE.get(node.mergeable, "unknown"),
    )
    counts = None if detail is None or rollup is None else _counts(detail, node.number, node.headRefOid, rollup.state)
    if counts is None:
        return Found(pr, Ci(state=state), head, rollup is None)
    return Found(pr, Ci(state=state, passed=counts[0], failed=counts[1], pending=counts[2]), head, True)


def _counts(detail: _Detail, number: int, head: str, state: str) -> tuple[int, int, int] | None:
    """How many passed, failed and are pending; ``None`` if that was counted of something else."""
    rollup = detail.statusCheckRollup
    if (detail.number, detail.headRefOid) != (number, head) or rollup is None or rollup.state != state:
        return None
    if (contexts := rollup.contexts) is None:
        return None
    every = [*(contexts.checkRunCountsByState or []), *(contexts.statusContextCountsByState or [])]
    return tuple(sum(one.count for one in every if one.state in words) for words in (PASSED, FAILED, PENDING))  # type: ignore[return-value]


def _detail(told: object) -> _Detail | None:
    try:
        return None if told is None else msgspec.convert(told, _Detail)
    except msgspec.ValidationError:
        return None  # the numbers are not known, the rest is


def _budget(told: object) -> tuple[Budget | None, int]:
    """An Enterprise server may have no limit."""
    try:
        limit = msgspec.convert(told, _Limit)
        resets = datetime.fromisoformat(limit.resetAt)
    except (msgspec.ValidationError, ValueError):
        return None, 1
    return Budget(limit.limit, limit.remaining, round(resets.timestamp() * 1000)), limit.cost


def _missing(repo: str, errors: Iterable[_Error], alias: str) -> Failure:
    for error in errors:
        if error.path[:1] == [alias]:
            if error.type == "NOT_FOUND":
                why = f"GitHub has no {repo}, or the token may not see it: check the remote's URL and the token."
                return Failure("missing", why)
            if error.type == "FORBIDDEN":
                return Failure("forbidden", f"GitHub does not show {repo} to this token: {_sentence(error)}")
            return Failure("server", _sentence(error))
    return Failure("bad", f"GitHub said nothing of {repo}; it is tried again.")


def _error(told: object) -> _Error | None:
    try:
        return msgspec.convert(told, _Error)
    except msgspec.ValidationError:
        return None


def _sentence(error: _Error) -> str:
    return clean(error.message) or error.type or "it gave no reason"


def clean(text: str) -> str:
    """Somebody else's text: bounded, and without what could disturb a terminal."""
    return "".join(c for c in text if c.isprintable())[:200]


def _url(url: str) -> str | None:
    fit = url.lower().startswith(("https://", "http://")) and len(url) <= MAX_URL and url.isprintable()
    return url if fit else None


def _list(told: object) -> list[Any]:
    return told if isinstance(told, list) else []


# ── webhooks ─────────────────────────────────────────────────────────────────────────────────────


def hints(event: str, payload: object) -> list[Hint]:
    """Where to look again after this webhook: repository, and branch or commit. No value is taken from it."""
    repo = _at(payload, "repository", "full_name")
    if event not in EVENTS or not isinstance(repo, str) or not _REPOSITORY.fullmatch(repo):
        return []
    found: list[tuple[object, object]] = []
    if event in ("pull_request", "pull_request_review"):
        found = [(_at(payload, "pull_request", "head", "ref"), _at(payload, "pull_request", "head", "sha"))]
    elif event in ("check_suite", "workflow_run"):
        found = [(_at(payload, event, "head_branch"), _at(payload, event, "head_sha"))]
    elif event == "check_run":
        found = [(_at(payload, event, "check_suite", "head_branch"), _at(payload, event, "head_sha"))]
    elif event == "status":
        sha = _at(payload, "sha")
        found = [(_at(branch, "name"), sha) for branch in _list(_at(payload, "branches"))] or [(None, sha)]
    elif event == "push":
        ref = _at(payload, "ref")
        if isinstance(ref, str) and ref.startswith("refs/heads/"):
            found = [(ref.removeprefix("refs/heads/"), _at(payload, "after"))]
    told = [Hint(repo, _ref(branch), _sha(sha)) for branch, sha in found[:MAX_HINTS]]
    return [hint for hint in told if hint.branch or hint.sha]


def _at(told: object, *path: str) -> object:
    for name in path:
        told = told.get(name) if isinstance(told, dict) else None
    return told


def _ref(told: object) -> str:
    return told if isinstance(told, str) and len(told) <= MAX_REF and told.isprintable() else ""


def _sha(told: object) -> str:
    return told if isinstance(told, str) and _OBJECT.fullmatch(told) else ""
