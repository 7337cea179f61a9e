"""GitHub's words, remotes' forms, refusals, and the plan: what is asked when, and for how many points."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from graphql import parse
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bridges import github as bridge
from pipeline.bridges.github import Answer, Ask, Budget, Failure, Found
from pipeline.cli import doctor, status
from pipeline.domain.model import Ci, Pr
from pipeline.runtime.settings import Settings
from pipeline.sources.github import client, token
from pipeline.sources.github import plan as planned
from pipeline.sources.github.client import Refused
from pipeline.sources.github.plan import (
    CADENCE_S,
    RESERVE,
    SHOWN_AFTER,
    SIZE,
    WINDOW_S,
    Allowance,
    Branch,
    Interest,
    Plan,
)
from pipeline.sources.github.poller import FIGURES
from pipeline.sources.github.remotes import Pushed, pushed, repository
from pipeline.sources.github.remotes import parse as configured
from pipeline.wire import Hint
from tests import hour
from tests.github import HOUR_S, GitHub, Pull, cost, sha

REPO = "acme/web"
ASK = Ask(REPO, REPO, "feature")
RESETS = "2027-01-15T08:00:00Z"
AT = {"repository": {"full_name": REPO}}
WORDS = (
    *("data", "errors", "rateLimit", "r0", "p0", "c0", "nodes", "number", "state", "path", "type", "message", "limit"),
    *("statusCheckRollup", "contexts", "repository", "full_name", "head", "ref", "sha", "head_branch", "check_suite"),
)
LIMIT = {"limit": 5000, "remaining": 4000, "resetAt": RESETS, "cost": 1}


def node(**more: Any) -> dict[str, Any]:
    return {
        "number": 7,
        "url": "https://github.com/acme/web/pull/7",
        "state": "OPEN",
        "isDraft": False,
        "mergeable": "MERGEABLE",
        "reviewDecision": None,
        "headRefOid": sha(1),
        "isCrossRepository": False,
        "headRepositoryOwner": {"login": "acme"},
        "statusCheckRollup": {"state": "PENDING"},
        **more,
    }


def answered(*nodes: dict[str, Any], ask: Ask = ASK, detail: Any = None, **data: Any) -> Found | Failure | None:
    repo = {"nameWithOwner": REPO, "p0": {"nodes": list(nodes)}, "c0": detail}
    told = bridge.answer({"data": {"rateLimit": LIMIT, "r0": repo, **data}}, [ask])
    assert isinstance(told, Answer)
    return told.found[0]


def found(**more: Any) -> Found:
    told = answered(node(**more))
    assert isinstance(told, Found)
    return told


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("told", "field", "value"),
    [
        ({"state": "OPEN"}, "state", "open"),
        ({"state": "OPEN", "isDraft": True}, "state", "draft"),
        ({"state": "MERGED", "isDraft": True}, "state", "merged"),
        ({"state": "CLOSED"}, "state", "closed"),
        ({"state": "QUEUED"}, "state", None),
        ({"reviewDecision": "APPROVED"}, "review", "approved"),
        ({"reviewDecision": "CHANGES_REQUESTED"}, "review", "changes_requested"),
        ({"reviewDecision": "REVIEW_REQUIRED"}, "review", "required"),
        ({"reviewDecision": "VETOED"}, "review", None),
        ({"mergeable": "CONFLICTING"}, "mergeable", "conflicting"),
        ({"mergeable": "UNKNOWN"}, "mergeable", "unknown"),
        ({"mergeable": "PERHAPS"}, "mergeable", "unknown"),
        ({"url": "javascript:alert(1)"}, "url", None),
        ({"url": "https://github.com/\x1b[2J"}, "url", None),
    ],
)
def test_each_word_of_a_pull_request_is_one_of_ours_and_one_that_is_not_known_is_no_error(told, field, value) -> None:
    assert getattr(found(**told).pr, field) == value


@pytest.mark.parametrize(
    ("rollup", "state"),
    [
        ("SUCCESS", "success"),
        ("FAILURE", "failure"),
        ("ERROR", "failure"),
        ("PENDING", "pending"),
        ("EXPECTED", "pending"),
        ("MAYBE", "unknown"),
    ],
)
def test_each_state_of_checks_is_one_of_ours(rollup: str, state: str) -> None:
    assert found(statusCheckRollup={"state": rollup}).ci == Ci(state=state)  # type: ignore[arg-type]


def test_a_head_without_checks_has_nothing_to_wait_for() -> None:
    assert found(statusCheckRollup=None).ci == Ci(state="unknown")
    assert found(statusCheckRollup=None).counted


def counts(head: str = sha(1), state: str = "PENDING", number: int = 7) -> dict[str, Any]:
    runs = [("SUCCESS", 2), ("SKIPPED", 1), ("TIMED_OUT", 1), ("IN_PROGRESS", 3), ("NEW_WORD", 9)]
    statuses = [("ERROR", 1), ("EXPECTED", 1)]
    return {
        "number": number,
        "headRefOid": head,
        "statusCheckRollup": {
            "state": state,
            "contexts": {
                "checkRunCountsByState": [{"state": word, "count": count} for word, count in runs],
                "statusContextCountsByState": [{"state": word, "count": count} for word, count in statuses],
            },
        },
    }


def test_checks_are_counted_by_how_they_ended() -> None:
    told = answered(node(), detail=counts())
    assert isinstance(told, Found)
    assert told.ci == Ci(state="pending", passed=3, failed=2, pending=4)


@pytest.mark.parametrize("detail", [counts(head=sha(2)), counts(state="SUCCESS"), counts(number=8), {"number": "x"}])
def test_numbers_of_other_checks_than_those_are_not_taken(detail: Any) -> None:
    told = answered(node(), detail=detail)
    assert isinstance(told, Found)
    assert (told.ci, told.counted) == (Ci(state="pending"), False)


def test_of_several_the_newest_that_is_open_is_the_branches_own() -> None:
    several = [node(number=9, state="CLOSED"), node(number=8), node(number=7), node(number=6, state="MERGED")]
    told = answered(*several)
    assert isinstance(told, Found)
    assert told.pr.number == 8
    told = answered(*[{**one, "state": "CLOSED"} for one in several])
    assert isinstance(told, Found)
    assert told.pr.number == 9


def test_a_forks_pull_request_of_the_same_branch_name_is_not_ours_and_our_forks_is() -> None:
    theirs = node(number=9, isCrossRepository=True, headRepositoryOwner={"login": "Somebody"})
    gone = node(number=8, isCrossRepository=True, headRepositoryOwner=None)
    assert answered(theirs, gone) is None
    fork = Ask(REPO, "somebody/web", "feature")
    told = answered(theirs, gone, node(), ask=fork)
    assert isinstance(told, Found)
    assert told.pr.number == 9


def test_a_repository_that_fails_does_not_fail_the_others() -> None:
    asked = [Ask("acme/gone", "acme/gone", "x"), Ask("acme/locked", "acme/locked", "x"), ASK]
    data = {"rateLimit": LIMIT, "r0": None, "r1": None, "r2": {"nameWithOwner": "acme/site", "p2": {"nodes": [node()]}}}
    errors = [
        {"type": "NOT_FOUND", "path": ["r0"], "message": "Could not resolve to a Repository."},
        {"type": "FORBIDDEN", "path": ["r1"], "message": "Resource protected by organization SAML enforcement."},
    ]
    told = bridge.answer({"data": data, "errors": errors}, asked)
    assert isinstance(told, Answer)
    gone, locked, well = told.found
    assert isinstance(gone, Failure)
    assert isinstance(locked, Failure)
    assert (gone.kind, locked.kind) == ("missing", "forbidden")
    assert "check the remote's URL and the token" in gone.why
    assert "SAML" in locked.why
    assert isinstance(well, Found)
    assert told.names == {REPO: "acme/site"}
    assert told.budget == Budget(5000, 4000, 1_800_000_000_000)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ([], "bad"),
        ({}, "bad"),
        ({"data": None, "errors": [{"message": "Something went wrong"}]}, "bad"),
        ({"errors": [{"type": "RATE_LIMITED", "message": "API rate limit exceeded"}]}, "limited"),
    ],
)
def test_an_answer_that_says_nothing_is_a_failure(body: Any, kind: str) -> None:
    told = bridge.answer(body, [ASK])
    assert isinstance(told, Failure)
    assert told.kind == kind


@pytest.mark.parametrize("listed", [None, {"nodes": [{"number": "seven"}]}, {"nodes": "none"}, {"nodes": [None]}])
def test_nothing_that_github_may_answer_is_an_exception(listed: Any) -> None:
    told = bridge.answer({"data": {"r0": {"nameWithOwner": 3, "p0": listed}}}, [ASK])
    assert isinstance(told, Answer)
    assert told.found[0] is None or isinstance(told.found[0], Failure)
    assert told.budget is None


def test_a_full_question_costs_one_point_and_is_understood() -> None:
    asked = [Ask(f"acme/p{n % 3}", f"acme/p{n % 3}", f'x"{n}', n) for n in range(SIZE)]
    query, variables = bridge.question(asked)
    assert cost(parse(query)) == 1
    assert '"' not in query.replace('""', "")  # names are variables
    hub = GitHub(lambda: 1e9)
    for ask in asked:
        hub.pull(ask.repo, Pull(ask.counts or 0, ask.branch, runs=["SUCCESS"]))
    told = bridge.answer(hub.answer(query, variables), asked)
    assert isinstance(told, Answer)
    assert [one.pr.number for one in told.found[1:] if isinstance(one, Found)] == list(range(1, SIZE))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from([sha(1), REPO, "OPEN", "r0", "p0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=20,
)


@given(body=JSON, event=st.sampled_from(sorted(bridge.EVENTS)))
def test_whatever_comes_for_an_answer_or_a_webhook_is_no_exception(body: Any, event: str) -> None:
    told = bridge.answer(body, [ASK])
    assert isinstance(told, Failure | Answer)
    told = bridge.answer({"data": {"r0": {"p0": {"nodes": [body, node()]}, "c0": body}}, "errors": body}, [ASK])
    assert isinstance(told, Failure | Answer)
    assert all(hint.branch or hint.sha for hint in bridge.hints(event, {**AT, event: body, "sha": body, "ref": body}))
    bridge.hints(event, body)


# ── webhooks ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("event", "payload", "hints"),
    [
        ("pull_request", {"pull_request": {"head": {"ref": "a", "sha": sha(1)}}}, [("a", sha(1))]),
        ("pull_request_review", {"pull_request": {"head": {"ref": "a", "sha": sha(1)}}}, [("a", sha(1))]),
        ("check_suite", {"check_suite": {"head_branch": "a", "head_sha": sha(1)}}, [("a", sha(1))]),
        ("check_suite", {"check_suite": {"head_branch": None, "head_sha": sha(1)}}, [("", sha(1))]),
        ("check_run", {"check_run": {"head_sha": sha(1), "check_suite": {"head_branch": "a"}}}, [("a", sha(1))]),
        ("workflow_run", {"workflow_run": {"head_branch": "a", "head_sha": sha(1)}}, [("a", sha(1))]),
        ("status", {"sha": sha(1), "branches": [{"name": "a"}, {"name": "b"}]}, [("a", sha(1)), ("b", sha(1))]),
        ("status", {"sha": sha(1), "branches": []}, [("", sha(1))]),
        ("push", {"ref": "refs/heads/a/b", "after": sha(2)}, [("a/b", sha(2))]),
        ("push", {"ref": "refs/tags/v1", "after": sha(2)}, []),
        ("pull_request", {"pull_request": {"head": "a"}}, []),
        ("pull_request", {}, []),
        ("star", {"action": "created"}, []),
        ("check_run", {"check_run": {"head_sha": "../x", "check_suite": {"head_branch": "\x1b"}}}, []),
    ],
)
def test_a_webhook_says_where_to_look_and_nothing_else(event: str, payload: Any, hints: Any) -> None:
    assert [(hint.branch, hint.sha) for hint in bridge.hints(event, {**AT, **payload})] == hints


@pytest.mark.parametrize("payload", [None, [], "x", {"repository": {"full_name": "no slash"}}, {"repository": 3}])
def test_a_payload_of_no_repository_hints_at_nothing(payload: Any) -> None:
    assert bridge.hints("push", payload) == []


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────

DATE = {"Date": "Fri, 15 Jan 2027 08:00:00 GMT"}


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "retry_s"),
    [
        (401, {}, b'{"message": "Bad credentials"}', "token", None),
        (403, {}, b'{"message": "Resource not accessible by integration"}', "token", None),
        (403, {"Retry-After": "60"}, b"{}", "limited", 60.0),
        (403, {}, b'{"message": "You have exceeded a secondary rate limit"}', "limited", None),
        (403, {**DATE, "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1800000090"}, b"{}", "limited", 90.0),
        (429, {}, b"", "limited", None),
        (200, {"Retry-After": "7"}, b'{"errors": [{"type": "RATE_LIMITED"}]}', "limited", 7.0),
        (200, {}, b'{"errors": [{"message": "You have exceeded a secondary rate limit."}]}', "limited", None),
        (502, {}, b"<html>", "server", None),
        (503, {"Retry-After": "5"}, b"", "server", 5.0),
        (301, {}, b"", "bad", None),
        (404, {}, b'{"message": "Not Found"}', "bad", None),
        (200, {}, b"<html>", "bad", None),
    ],
)
def test_a_refusal_is_told_by_its_fault_and_when_to_come_again(status, headers, body, kind, retry_s) -> None:
    with pytest.raises(Refused) as refused:
        client.judged(status, headers, body)
    assert (refused.value.failure.kind, refused.value.retry_s) == (kind, retry_s)


def test_the_token_goes_nowhere_in_the_clear() -> None:
    assert token.endpoint("github.com", "") == "https://api.github.com/graphql"
    assert token.endpoint("git.acme.org", "") == "https://git.acme.org/api/graphql"
    assert token.endpoint("github.com", "http://127.0.0.1:1/graphql") == "http://127.0.0.1:1/graphql"
    with pytest.raises(ValueError, match="would send the token in the clear"):
        token.endpoint("github.com", "http://api.github.com/graphql")


def test_the_doctor_says_whether_there_is_a_token_and_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GH_TOKEN", "GITHUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def found(**more: object) -> list[tuple[str, str, str]]:
        overrides = {name.replace("_", ".", 1): value for name, value in more.items()}
        settings = Settings.load(tmp_path / "home", overrides, environ={})
        return [(one.check, one.level, one.found) for one in doctor._github(settings)]

    assert found()[0][:2] == ("github", "ok")
    assert "no token, so nothing is asked" in found()[0][2]
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_x")
    assert found() == [("github", "ok", "there is a token for github.com")]
    assert found(github_host="git.acme.org")[0][2].startswith("no token")
    assert found(github_api="http://api.github.com/graphql")[0][:2] == ("github", "fail")
    assert found(sources_github=False) == []
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o644)
    assert found(github_webhook_secret_file=str(secret))[1][:2] == ("webhooks", "fail")


def test_status_shows_what_may_be_spent() -> None:
    told = {"github_branches": 3, "github_points_hour": 12, "github_remaining": 4211, "github_limit": 5000}
    figures = {**told, "github_resets": "14:03", "worktrees": 3}
    words = "github: 3 branches, 12 points used here in the last hour; 4211 of 5000 left until 14:03"
    assert status._github(figures) == words
    assert figures == {"worktrees": 3}
    assert status._github(dict.fromkeys(FIGURES, "")) == status._github({}) == ""


# ── remotes ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://github.com/acme/web", "acme/web"),
        ("https://github.com/acme/web.git", "acme/web"),
        ("https://user:secret@GitHub.com/acme/web.js.git/", "acme/web.js"),
        ("http://www.github.com/acme/web", "acme/web"),
        ("git@github.com:acme/web.git", "acme/web"),
        ("github.com:acme/web", "acme/web"),
        ("ssh://git@github.com/acme/web.git", "acme/web"),
        ("ssh://git@github.com:22/acme/web", "acme/web"),
        ("ssh://git@ssh.github.com:443/acme/web.git", "acme/web"),
        ("git://github.com/acme/web.git", "acme/web"),
        ("https://github.com/acme", None),
        ("https://github.com/acme/web/tree/main", None),
        ("https://gitlab.com/acme/web", None),
        ("https://github.com.evil.org/acme/web", None),
        ("git@evil.org:github.com/acme/web", None),
        ("file:///srv/github.com/acme/web", None),
        ("/srv/acme/web", None),
        ("../web", None),
        ("https://[github.com/acme/web", None),
        ("", None),
    ],
)
def test_each_form_of_a_remotes_url_is_read_and_no_other_host_is_taken_for_it(url: str, name: str | None) -> None:
    assert repository(url, "github.com") == name


def test_an_enterprise_server_is_its_own_host() -> None:
    assert repository("git@git.acme.org:a/b.git", "git.acme.org") == "a/b"
    assert repository("git@github.com:a/b.git", "git.acme.org") is None


ORIGIN = '[remote "origin"]\n\turl = git@github.com:acme/web.git\n'
UPSTREAM = '[remote "upstream"]\n\turl = https://github.com/upper/web\n'
FORK = '[remote "fork"]\n\turl = "https://github.com/me/web" # mine\n'


@pytest.mark.parametrize(
    ("config", "goes"),
    [
        (ORIGIN, Pushed("acme/web", "acme/web", "x", "origin")),
        (ORIGIN + UPSTREAM, Pushed("upper/web", "acme/web", "x", "origin")),
        (
            ORIGIN + UPSTREAM + '[remote "origin"]\n\tgh-resolved = base\n',
            Pushed("acme/web", "acme/web", "x", "origin"),
        ),
        (ORIGIN + '[remote "origin"]\n\tgh-resolved = top/web\n', Pushed("top/web", "acme/web", "x", "origin")),
        (ORIGIN + FORK + "[remote]\n\tpushDefault = fork\n", Pushed("me/web", "me/web", "x", "fork")),
        (ORIGIN + FORK + '[branch "x"]\n\tpushRemote = fork\n', Pushed("me/web", "me/web", "x", "fork")),
        (ORIGIN + FORK + '[branch "x"]\n\tremote = fork\n', Pushed("me/web", "me/web", "x", "fork")),
        (ORIGIN + '[branch "x"]\n\tremote = .\n', Pushed("acme/web", "acme/web", "x", "origin")),
        (
            ORIGIN + '[branch "x"]\n\tremote = origin\n\tmerge = refs/heads/y\n',
            Pushed("acme/web", "acme/web", "x", "origin"),
        ),
        (
            ORIGIN + '[push]\n\tdefault = upstream\n[branch "x"]\n\tremote = origin\n\tmerge = refs/heads/y\n',
            Pushed("acme/web", "acme/web", "y", "origin"),
        ),
        (FORK, Pushed("me/web", "me/web", "x", "fork")),
        ('[remote "origin"]\n\turl = /srv/web\n', None),
        ('[url "git@github.com:"]\n\tinsteadOf = gh:\n[remote "o"]\n\turl = gh:a/b\n', Pushed("a/b", "a/b", "x", "o")),
        ('[remote "o"] url = git@git\\\nhub.com:a/b ; all on one line\n', Pushed("a/b", "a/b", "x", "o")),
        ("[core\nurl = x\n]]\x00 nonsense = [\n", None),
        ("", None),
    ],
)
def test_where_a_branch_goes_is_told_as_git_and_gh_have_it(config: str, goes: Pushed | None) -> None:
    assert pushed(configured(config), "x", "github.com") == goes


@given(st.text(alphabet='[]"\\=#; \nremotuloiginx/:.', max_size=200))
def test_no_configuration_is_an_exception(text: str) -> None:
    pushed(configured(text, text), "x", "github.com")


# ── the plan ─────────────────────────────────────────────────────────────────────────────────────


def branches(count: int) -> list[Branch]:
    return [Branch(REPO, REPO, f"b{n:03}") for n in range(count)]


@pytest.fixture
def as_if_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is looked at counts as hundreds."""
    monkeypatch.setattr(planned, "FEW_S", 1000.0)


def followed(watched: int, others: int = 0, pushed: bool = True) -> Plan:
    plan = Plan()
    plan.follow({branch: Interest(n < watched, pushed) for n, branch in enumerate(branches(watched + others))})
    return plan


def pull(state: Any = "open", ci: Ci | None = None, mergeable: Any = "mergeable", head: str = sha(1)) -> Found:
    checks = ci or Ci(state="success", passed=1, failed=0, pending=0)
    return Found(Pr(number=7, state=state, mergeable=mergeable), checks, head, checks.passed is not None)


def tell(
    plan: Plan, asked: list[Ask], now: float, one: Found | Failure | None, allowance: Allowance | None = None
) -> None:
    plan.told(asked, Answer([one] * len(asked), None, 1, {}), allowance, now)


@pytest.mark.parametrize(
    ("one", "state"),
    [
        (pull(ci=Ci(state="pending", passed=0, failed=0, pending=1)), "moving"),
        (pull(ci=Ci(state="failure", passed=0, failed=1, pending=1)), "moving"),
        (pull(mergeable="unknown"), "moving"),
        (pull(ci=Ci(state="unknown", passed=0)), "moving"),
        (pull(), "open"),
        (pull(state="draft"), "open"),
        (None, "none"),
        (pull(state="merged"), "over"),
        (pull(state="closed", ci=Ci(state="pending", passed=0, failed=0, pending=1)), "over"),
    ],
)
@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.usefixtures("as_if_many")
def test_the_cadence_follows_from_what_is_known_and_from_who_looks_on(one, state, watched) -> None:
    plan = followed(int(watched), int(not watched))
    tell(plan, plan.take(0.0), 0.0, one)
    assert plan.wait(0.0) == CADENCE_S[state][not watched]


@pytest.mark.parametrize(("watched", "cadence"), [(1, 50), (125, 50), (200, 80), (300, 120), (400, 120)])
def test_while_few_are_looked_at_checks_that_begin_and_end_between_pushes_are_seen_in_time(watched, cadence) -> None:
    """However short they are, and wherever the push came from."""
    plan, now = followed(watched), 0.0
    while asked := plan.take(now):
        tell(plan, asked, now, pull())
        now += 1
    assert plan.wait(now) == cadence - now


def test_nobody_looking_on_makes_it_slow_at_once_and_somebody_fast() -> None:
    plan = followed(1)
    tell(plan, plan.take(0.0), 0.0, pull())
    watched = plan.wait(0.0)
    plan.follow({branches(1)[0]: Interest(False, True)})
    assert plan.wait(0.0) > 5 * watched
    plan.follow({branches(1)[0]: Interest(True, True)})
    assert plan.wait(0.0) == watched


@pytest.mark.usefixtures("as_if_many")
def test_checks_that_are_not_announced_yet_are_waited_for_only_so_long() -> None:
    plan, now = followed(1), 0.0
    while now < HOUR_S / 2:
        tell(plan, plan.take(now), now, pull(ci=Ci(state="unknown", passed=0)))
        now += plan.wait(now)
    assert plan.wait(now) == 0
    plan.take(now)
    assert plan.wait(now) == CADENCE_S["open"][0]


def test_a_branch_that_was_never_pushed_is_hardly_asked_for() -> None:
    plan = followed(1, pushed=False)
    tell(plan, plan.take(0.0), 0.0, None)
    assert plan.wait(0.0) == CADENCE_S["unpushed"][0]


@pytest.mark.usefixtures("as_if_many")
def test_a_question_is_filled_up_with_what_is_past_half_of_its_cadence() -> None:
    plan = followed(3)
    tell(plan, plan.take(0.0), 0.0, pull())
    plan.hint(Hint(REPO, "b001"))
    assert [ask.branch for ask in plan.take(50.0)] == ["b001"]
    tell(plan, [], 50.0, None)
    plan.hint(Hint(REPO, "b001"))
    assert [ask.branch for ask in plan.take(60.0)] == ["b001", "b000", "b002"]


@pytest.mark.usefixtures("as_if_many")
def test_a_question_is_never_too_large_and_no_branch_is_left_out() -> None:
    plan = followed(10, 100)
    first = plan.take(0.0)
    assert [ask.branch for ask in first] == [branch.name for branch in branches(SIZE)]
    tell(plan, first, 0.0, pull())
    for now in (1.0, 2.0, 3.0, 4.0):
        tell(plan, plan.take(now), now, pull())
    assert plan.take(5.0) == []
    again = plan.take(CADENCE_S["open"][0])
    assert [ask.branch for ask in again] == [branch.name for branch in branches(10)]  # the others are far from due
    tell(plan, again, 120.0, pull())
    assert len(plan.take(CADENCE_S["open"][1] + 4)) == SIZE


def test_a_hint_makes_a_branch_due_but_not_again_within_moments() -> None:
    plan = followed(2)
    tell(plan, plan.take(0.0), 0.0, pull())
    assert plan.hint(Hint("ACME/web", "b000")) == 1
    assert plan.hint(Hint(REPO, "nobody's")) == 0
    assert plan.hint(Hint("else/where", "b000")) == 0
    assert plan.take(4.0) == []
    assert [ask.branch for ask in plan.take(5.0)] == ["b000"]
    plan.hint(Hint(REPO, "", sha(1)))  # a commit that both have as their head
    assert [ask.branch for ask in plan.take(7.0)] == ["b001"]


def test_checks_are_counted_until_they_have_ended_and_again_when_they_change() -> None:
    plan = followed(1)
    tell(plan, plan.take(0.0), 0.0, pull(ci=Ci(state="pending")))
    assert [ask.counts for ask in plan.take(6.0)] == [7]
    tell(plan, [Ask(*branches(1)[0])], 6.0, pull())
    assert [ask.counts for ask in plan.take(200.0)] == [None]
    tell(plan, [Ask(*branches(1)[0])], 200.0, pull(ci=Ci(state="success")))
    known = plan.found(branches(1)[0])
    assert known is not None
    assert known.ci == Ci(state="success", passed=1, failed=0, pending=0)
    for at in (400.0, 500.0):  # one has failed already, others still run
        running = Ci(state="failure", passed=0, failed=1, pending=1)
        tell(plan, [Ask(*branches(1)[0])], at, pull(ci=running))
        assert [ask.counts for ask in plan.take(at + 50)] == [7]


def test_checks_that_were_run_again_or_of_which_there_is_news_are_counted_anew() -> None:
    plan, branch = followed(1), branches(1)[0]
    tell(plan, plan.take(0.0), 0.0, pull())
    assert [ask.counts for ask in plan.take(120.0)] == [None]
    tell(plan, [Ask(*branch)], 120.0, pull(ci=Ci(state="pending")))
    assert [ask.counts for ask in plan.take(170.0)] == [7]
    tell(plan, [Ask(*branch)], 170.0, pull(ci=Ci(state="success")))
    assert plan.found(branch) == pull(ci=Ci(state="success"))  # not the numbers from before
    assert [ask.counts for ask in plan.take(175.0)] == [7]
    tell(plan, [Ask(*branch)], 175.0, pull(ci=Ci(state="success", passed=2, failed=0, pending=0)))
    plan.hint(Hint(REPO, branch.name))
    assert [ask.counts for ask in plan.take(180.0)] == [7]


@pytest.mark.usefixtures("as_if_many")
def test_a_limit_without_any_points_is_asked_about_now_and_then() -> None:
    plan = followed(1)
    tell(plan, plan.take(0.0), 0.0, pull(), Allowance(0, 0, 10.0))
    assert plan.wait(0.0) == 120  # nothing is due before that
    plan.hint(Hint(REPO, "b000"))
    assert plan.take(59.0) == []
    assert len(plan.take(60.0)) == 1


@pytest.mark.usefixtures("as_if_many")
def test_checks_that_cannot_be_counted_are_not_asked_for_again_and_again() -> None:
    plan, now, gaps = followed(1), 0.0, []
    for _ in range(6):
        tell(plan, plan.take(now), now, pull(ci=Ci(state="success")))
        gaps.append(plan.wait(now))
        now += gaps[-1]
    assert gaps == [5, 5, 5, 120, 120, 120]


def test_whoever_begins_to_look_on_soon_sees_how_many_checks_there_are() -> None:
    plan = followed(0, 1)
    tell(plan, plan.take(0.0), 0.0, pull(ci=Ci(state="success")))
    assert plan.wait(0.0) == CADENCE_S["open"][1]
    plan.follow({branches(1)[0]: Interest(True, True)})
    assert plan.wait(0.0) == 5
    assert [ask.counts for ask in plan.take(5.0)] == [7]


def test_a_repository_that_fails_is_asked_for_less_and_less_and_holds_up_no_other() -> None:
    plan = followed(2)
    failure = Failure("missing", "gone")
    asked, now, gaps = plan.take(0.0), 0.0, []
    assert len(asked) == 2
    plan.told(asked, Answer([failure, pull()], None, 1, {}), None, now)
    for _ in range(8):
        assert plan.failure(branches(2)[0]) == failure
        assert plan.failure(branches(2)[1]) is None
        plan.follow({branches(2)[0]: Interest(True, True)})
        gaps.append(plan.wait(now))
        now += gaps[-1]
        tell(plan, plan.take(now), now, failure)
        plan.follow(dict.fromkeys(branches(2), Interest(True, True)))
        tell(plan, [Ask(*branches(2)[1])], now, pull())
    assert gaps == [30, 60, 120, 240, 480, 900, 900, 900]


def test_what_fails_as_a_whole_is_tried_less_and_less_and_in_smaller_questions() -> None:
    plan, now, sizes = followed(SIZE), 0.0, []
    for n in range(8):
        asked = plan.take(now)
        sizes.append(len(asked))
        plan.refused(asked, Failure("server", "502"), None, now)
        assert (plan.failure(branches(1)[0]) is not None) == (n + 1 >= SHOWN_AFTER)
        assert plan.take(now + 1) == []
        now += plan.wait(now)
    assert sizes[:5] == [40, 20, 10, 5, 4]
    assert now > 500
    tell(plan, plan.take(now), now, pull())
    assert plan.failure(branches(1)[0]) is None


def test_github_says_how_long_to_wait() -> None:
    plan = followed(1)
    plan.refused(plan.take(0.0), Failure("limited", "slow down"), 90.0, 0.0)
    assert plan.wait(0.0) == 90
    assert plan.failure(branches(1)[0]) is not None
    assert len(plan.take(90.0)) == 1


def test_below_the_users_share_nothing_is_asked_until_the_limit_is_new() -> None:
    plan = followed(1)
    tell(plan, plan.take(0.0), 0.0, pull(), Allowance(5000, 2000, 600.0))
    assert plan.spendable(0.0) == 0
    assert plan.take(599.0) == []
    assert plan.wait(0.0) == 600
    assert len(plan.take(600.0)) == 1


def test_what_may_be_spent_is_spread_over_the_time_until_the_limit_is_new() -> None:
    plan = followed(300)
    tell(plan, plan.take(0.0), 0.0, pull(), Allowance(5000, 2100, 3600.0))
    assert plan.wait(0.0) == pytest.approx(36.0)
    assert plan.take(35.0) == []
    assert len(plan.take(36.0)) == SIZE


def test_where_not_all_can_be_asked_for_those_that_are_looked_at_go_first_and_take_turns() -> None:
    plan, now, turns = followed(60, 240), 0.0, []
    while now < WINDOW_S:
        if asked := plan.take(now):
            turns.append([ask.branch for ask in asked])
            waiting = Ci(state="pending", passed=0, failed=0, pending=1)
            tell(plan, asked, now, pull(ci=waiting), Allowance(100, 40 + 8 - len(turns), WINDOW_S))
        now += 5.0
    assert len(turns) == 8
    watched = [branch.name for branch in branches(60)]
    times = {name: sum(name in turn for turn in turns) for name in watched}
    assert min(times.values()) >= 2
    assert sum(len(turn) for turn in turns) == sum(times.values())


@pytest.mark.usefixtures("as_if_many")
def test_after_a_hint_a_branch_is_asked_for_as_if_something_went_on_for_a_while() -> None:
    plan = followed(1)
    tell(plan, plan.take(0.0), 0.0, pull())
    plan.hint(Hint(REPO, "b000"))
    now, gaps = 5.0, []
    for _ in range(5):
        tell(plan, plan.take(now), now, pull())
        gaps.append(plan.wait(now))
        now += gaps[-1]
    assert gaps == [50, 50, 50, 120, 120]


def test_a_hint_that_met_a_server_that_failed_is_not_forgotten() -> None:
    plan = followed(1)
    tell(plan, plan.take(0.0), 0.0, pull())
    plan.hint(Hint(REPO, "b000"))
    plan.refused(plan.take(5.0), Failure("server", "502"), None, 5.0)
    assert plan.take(9.0) == []
    tell(plan, plan.take(10.0), 10.0, pull())
    assert plan.wait(10.0) == CADENCE_S["moving"][0]


@given(
    watched=st.integers(1, 80),
    others=st.integers(0, 80),
    limit=st.integers(10, 6000),
    used=st.floats(0, 1),
    spending=st.lists(st.floats(0, 0.3), min_size=1, max_size=6),
    states=st.lists(st.sampled_from(["pending", "success"]), min_size=1, max_size=7),
)
def test_the_users_share_is_never_touched_and_no_branch_that_is_looked_at_starves(
    watched, others, limit, used, spending, states
) -> None:
    """Over three windows, while the user spends of the same limit and checks do what they like."""
    plan = followed(watched, others)
    share = math.ceil(limit * RESERVE)
    remaining, resets, now = limit - int(limit * used), WINDOW_S, 0.0
    turn, last = 0, dict.fromkeys(branches(watched), 0.0)
    rounds = math.ceil(watched / SIZE)
    while now < 3 * WINDOW_S:
        if now >= resets:
            remaining, resets = limit, resets + WINDOW_S
        asked = plan.take(now)
        if not asked:
            now = min(now + max(0.5, plan.wait(now)), resets if now < resets else now + 1)
            continue
        known = plan.allowance
        assert known is None or known.remaining >= share - 1e-9  # by what was known as it asked
        remaining = max(0, remaining - 1)
        turn += 1
        # The user takes some of what is above his share, which leaves rounds enough for everybody.
        free = remaining - share - 4 * rounds
        remaining -= int(max(0, free) * spending[turn % len(spending)] / 10)
        state = states[turn % len(states)]
        ci = Ci(state=state, passed=0, failed=0, pending=int(state == "pending"))  # type: ignore[arg-type]
        tell(plan, asked, now, pull(ci=ci), Allowance(limit, remaining, resets))
        for ask in asked:
            last[Branch(*ask[:3])] = now
        now += 0.5
    # With so little that not everybody can be asked for in a window, nobody can be promised anything.
    if limit - share >= 5 * rounds:
        assert all(now - at <= 2 * WINDOW_S for branch, at in last.items() if branch in branches(watched))


# ── an hour ──────────────────────────────────────────────────────────────────────────────────────


def test_an_hour_of_300_pull_requests_costs_little_and_shows_the_end_of_checks_within_a_minute() -> None:
    """A fifth of them are looked at: one project of five."""
    figures = hour.play(workspaces=300, watched=60)
    assert figures.points <= 600
    assert len(figures.delays_s) > 50
    assert figures.delays_s[-1] <= 60
    assert figures.least_remaining > 5000 * RESERVE
