"""The GitHub source against a GitHub on loopback: its answers reach catalog and bus, whatever goes wrong there."""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pipeline import bus
from pipeline.catalog import Observed
from pipeline.domain.model import Ci, Pr, Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.settings import Settings
from pipeline.sources.github import GitHub, plan, poller
from pipeline.wire import Hint
from tests import github
from tests.github import Pull, sha
from tests.gitkit import git
from tests.sourcekit import Running, made
from tests.world import Child

REPO = "acme/web"
SOON = dict.fromkeys(plan.CADENCE_S, (0.2, 0.4))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Seconds instead of minutes, and nothing of whoever runs this."""
    monkeypatch.setattr(plan, "CADENCE_S", SOON)
    monkeypatch.setattr(plan, "GAP_S", 0.02)
    monkeypatch.setattr(plan, "HINT_GAP_S", (0.05, 0.1))
    monkeypatch.setattr(plan, "RETRY_S", (0.1, 0.2))
    monkeypatch.setattr(plan, "BRANCH_RETRY_S", (0.1, 0.2))
    monkeypatch.setattr(plan, "TOKEN_S", 0.2)
    monkeypatch.setattr(poller, "TOKEN_S", 0.3)
    monkeypatch.setattr(poller, "SURVEY_S", (0.1, 0.1))
    for name in ("GH_TOKEN", "GITHUB_TOKEN", "GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GITHUB_TOKEN", github.TOKEN)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    path = made(tmp_path)
    git(path, "checkout", "-q", "-b", "feature")
    git(path, "remote", "add", "origin", f"git@github.com:{REPO}.git")
    return path


class Session:
    """The source at work on one repository, and what became of it."""

    def __init__(self, running: Running, hub: github.GitHub, source: GitHub) -> None:
        self.running, self.hub, self.source = running, hub, source

    def last(self, group: str) -> Any:
        values = [look for look in self.running.said if look.group == group]
        return values[-1].value if values else None

    async def until(self, condition: Callable[[], Any]) -> None:
        await self.running.until(lambda: self.hub.broken or condition())
        assert not self.hub.broken, self.hub.broken

    async def sees(self, pr: Pr, ci: Ci) -> None:
        await self.until(lambda: (self.last("pr"), self.last("ci")) == (pr, ci))

    @property
    def health(self) -> tuple[str, str]:
        return self.source.health.state, self.source.health.why


Play = Callable[[Session], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a scene: ``play(scene)``, or with a fake that was set up before."""

    def run(scene: Play, hub: github.GitHub | None = None, **more: Any) -> None:
        async def body() -> None:
            fake = hub or github.GitHub(limit=1_000_000)
            fake.pulls.setdefault(REPO, [])
            server = await fake.start()
            (tmp_path / "home").mkdir(mode=0o700, exist_ok=True)
            off = {"sources.processes": False, "sources.tmux": False, "github.api": fake.url, **more}
            settings = Settings.load(tmp_path / "home", off, environ={})
            source = GitHub()
            try:
                async with Running(settings, monkeypatch, source) as running:
                    desk = await running.follow(repo)
                    projects = frozenset(place.project for place in desk.places())
                    desk.interested = lambda: projects
                    await scene(Session(running, fake, source))
            finally:
                await server.cleanup()

        asyncio.run(body())

    return run


OPEN = Pr(number=7, url=f"https://github.com/{REPO}/pull/7", state="open", mergeable="mergeable")


def test_a_pull_request_and_its_checks_show_and_follow_what_happens_to_them(play) -> None:
    async def scene(on: Session) -> None:
        pull = on.hub.pull(REPO, Pull(7, "feature", runs=["IN_PROGRESS", "SUCCESS"], statuses=["PENDING"]))
        await on.sees(OPEN, Ci(state="pending", passed=1, failed=0, pending=2))
        pull.runs, pull.statuses, pull.review = ["SUCCESS", "SUCCESS"], ["SUCCESS"], "APPROVED"
        await on.sees(Pr(**{**_fields(OPEN), "review": "approved"}), Ci(state="success", passed=3, failed=0, pending=0))
        pull.state = "MERGED"
        await on.until(lambda: on.last("pr").state == "merged")
        assert on.health == ("running", "")

    play(scene)


def test_a_head_that_moves_takes_the_checks_of_the_old_one_away(play) -> None:
    async def scene(on: Session) -> None:
        pull = on.hub.pull(REPO, Pull(7, "feature", runs=["FAILURE"], head=sha(1)))
        await on.sees(OPEN, Ci(state="failure", passed=0, failed=1, pending=0))
        pull.head, pull.runs = sha(2), ["QUEUED"]
        await on.sees(OPEN, Ci(state="pending", passed=0, failed=0, pending=1))
        assert {look.key.head for look in on.running.said if look.group == "ci"} == {sha(1), sha(2)}
        assert all(
            look.key.head == sha(1) for look in on.running.said if look.value and getattr(look.value, "failed", 0)
        )

    play(scene)


def test_another_pull_request_of_the_branch_clears_what_the_old_one_had(play) -> None:
    async def scene(on: Session) -> None:
        first = on.hub.pull(REPO, Pull(7, "feature", runs=["FAILURE"], review="CHANGES_REQUESTED"))
        await on.until(lambda: on.last("ci") == Ci(state="failure", passed=0, failed=1, pending=0))
        first.state = "CLOSED"
        await on.until(lambda: on.last("pr").state == "closed")
        on.hub.pull(REPO, Pull(9, "feature", draft=True))
        url = f"https://github.com/{REPO}/pull/9"
        await on.sees(Pr(number=9, url=url, state="draft", mergeable="mergeable"), Ci(state="unknown"))

    play(scene)


def test_a_pull_request_that_is_reopened_is_shown_again_before_a_newer_one_that_is_closed(play) -> None:
    async def scene(on: Session) -> None:
        first = on.hub.pull(REPO, Pull(7, "feature", state="CLOSED"))
        await on.until(lambda: on.last("pr") and on.last("pr").state == "closed")
        on.hub.pull(REPO, Pull(9, "feature", state="CLOSED"))
        await on.until(lambda: on.last("pr").number == 9)
        first.state = "OPEN"
        await on.until(lambda: (on.last("pr").number, on.last("pr").state) == (7, "open"))

    play(scene)


def test_a_worktree_that_goes_to_another_branch_leaves_the_pull_request_of_the_first(play, repo) -> None:
    async def scene(on: Session) -> None:
        on.hub.pull(REPO, Pull(7, "feature", runs=["SUCCESS"]))
        await on.until(lambda: on.last("ci") and on.last("ci").passed == 1)
        git(repo, "checkout", "-q", "-b", "other")
        await on.sees(Pr(), Ci())
        git(repo, "checkout", "-q", "--detach")
        git(repo, "checkout", "-q", "feature")
        await on.sees(OPEN, Ci(state="success", passed=1, failed=0, pending=0))

    play(scene)


def test_a_server_that_fails_is_shown_at_the_pull_request_and_the_last_that_was_good_stays(play) -> None:
    """S7: a fetch that fails is news too."""

    async def scene(on: Session) -> None:
        on.hub.pull(REPO, Pull(7, "feature", runs=["SUCCESS"]))
        await on.until(lambda: on.last("ci") and on.last("ci").passed == 1)
        on.hub.refusals.extend([(502, {}, "Bad Gateway")] * 100)
        await on.until(lambda: on.last("pr").health == "failing")
        assert on.last("pr") == Pr(**{**_fields(OPEN), "health": "failing"})
        assert on.last("ci") == Ci(state="success", passed=1, failed=0, pending=0)
        assert on.health == ("failing", "GitHub answers 502; it is tried again.")
        on.hub.refusals.clear()
        await on.until(lambda: on.last("pr") == OPEN)
        await on.until(lambda: on.health == ("running", ""))

    play(scene)


def test_a_github_that_cannot_be_reached_is_told_apart_and_nothing_is_lost(play) -> None:
    async def scene(on: Session) -> None:
        await on.until(lambda: on.last("pr") == Pr(health="failing"))
        assert on.health[0] == "failing"
        assert on.health[1].startswith("GitHub cannot be reached: ")

    with socket.create_server(("127.0.0.1", 0)) as nobody:
        api = f"http://127.0.0.1:{nobody.getsockname()[1]}/graphql"
    play(scene, **{"github.api": api})


def test_neither_the_token_nor_a_remotes_password_is_told_anywhere(play, repo, monkeypatch, capfd) -> None:
    async def scene(on: Session) -> None:
        on.hub.refusals.extend([(500, {}, "x"), (403, {}, {"message": "no"}), (200, {}, {"data": None})])
        on.hub.pull(REPO, Pull(7, "feature"))
        await on.until(lambda: on.health[0] == "failing")
        told = [repr(on.running.said), repr(dict(on.running.process.figures)), repr(on.health)]
        await on.until(lambda: on.last("pr") == OPEN)
        told += [repr(on.running.said), repr(dict(on.running.process.figures)), *capfd.readouterr()]
        for secret in (github.TOKEN, "sesame"):
            assert all(secret not in text for text in told)

    git(repo, "remote", "set-url", "origin", f"https://me:sesame@github.com/{REPO}.git")
    play(scene)


def test_one_answer_that_fails_is_no_news(play) -> None:
    async def scene(on: Session) -> None:
        on.hub.refusals.append((503, {}, "{}"))
        on.hub.pull(REPO, Pull(7, "feature", runs=["SUCCESS"]))
        await on.until(lambda: on.last("ci") and on.last("ci").passed == 1)
        assert on.hub.refused == 1
        assert all(getattr(look.value, "health", None) is None for look in on.running.said)

    play(scene)


def test_a_token_that_is_refused_is_said_and_a_new_one_is_taken_up(play, monkeypatch) -> None:
    async def scene(on: Session) -> None:
        on.hub.pull(REPO, Pull(7, "feature"))
        await on.until(lambda: on.last("pr") == Pr(health="failing"))
        assert on.health[0] == "failing"
        assert "set GITHUB_TOKEN to a valid one" in on.health[1]
        monkeypatch.setenv("GITHUB_TOKEN", github.TOKEN)
        await on.until(lambda: on.last("pr") == OPEN)

    monkeypatch.setenv("GITHUB_TOKEN", "ghp_expired")
    play(scene)


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (403, {"Retry-After": "1"}, {"message": "You have exceeded a secondary rate limit."}),
        (429, {"Retry-After": "1"}, {"message": "Too many requests"}),
        (200, {"Retry-After": "1"}, {"errors": [{"type": "RATE_LIMITED", "message": "API rate limit exceeded"}]}),
    ],
)
def test_a_limit_is_waited_out_for_as_long_as_github_says(status, headers, body, play) -> None:
    async def scene(on: Session) -> None:
        on.hub.pull(REPO, Pull(7, "feature"))
        on.hub.refusals.append((status, headers, body))
        await on.until(lambda: on.last("pr") == Pr(health="failing"))
        refused, at = on.hub.refused, asyncio.get_running_loop().time()
        assert "limits the rate" in on.health[1]
        await on.until(lambda: on.last("pr") == OPEN)
        assert on.hub.refused == refused == 1
        assert asyncio.get_running_loop().time() - at > 0.5

    play(scene)


def test_points_that_are_used_up_are_waited_for_and_the_users_share_is_left(play) -> None:
    hub = github.GitHub(limit=10)
    hub.used = 5
    hub.pull(REPO, Pull(7, "feature"))

    async def scene(on: Session) -> None:
        await on.until(lambda: on.last("pr") == OPEN)
        await on.until(lambda: on.health[1].startswith("pauses to leave 40% of the limit"))
        asked = len(on.hub.asked)
        assert on.hub.remaining == 4
        await asyncio.sleep(1.0)
        assert len(on.hub.asked) == asked
        figures = on.running.process.figures
        await on.until(lambda: figures.get("github_points_hour") == 1)
        assert [figures[f"github_{name}"] for name in ("branches", "remaining", "limit")] == [1, 4, 10]

    play(scene, hub)


def test_a_repository_that_was_renamed_goes_on_under_its_old_name_and_hints_of_the_new_one_arrive(
    play, monkeypatch
) -> None:
    async def scene(on: Session) -> None:
        on.hub.pulls["acme/site"] = []
        on.hub.renamed[REPO] = "acme/site"
        pull = on.hub.pull("acme/site", Pull(7, "feature", runs=["PENDING"]))
        await on.until(lambda: on.last("ci") and on.last("ci").pending == 1)
        assert on.last("pr").url == "https://github.com/acme/site/pull/7"
        monkeypatch.setattr(plan, "CADENCE_S", dict.fromkeys(plan.CADENCE_S, (600.0, 600.0)))
        pull.runs = ["SUCCESS"]
        hints = bus.Hints(on.running.process.settings.run_dir)
        await on.until(lambda: hints.send(Hint("acme/site", "feature")))
        await on.until(lambda: on.last("ci").passed == 1)
        hints.close()

    play(scene)


def test_a_repository_that_is_not_there_fails_alone_and_says_what_to_do(play, repo, tmp_path) -> None:
    async def scene(on: Session) -> None:
        on.hub.pull(REPO, Pull(7, "feature"))
        await on.until(lambda: on.last("pr") == OPEN)
        other = made(tmp_path / "two")
        git(other, "remote", "add", "origin", "https://github.com/acme/gone")
        await on.running.follow(other)
        await on.until(lambda: on.last("pr") == Pr(health="failing"))
        assert "GitHub has no acme/gone, or the token may not see it" in on.health[1]
        await on.until(lambda: len(on.hub.asked) > 5)
        assert on.source.plan.failure(plan.Branch(REPO, REPO, "feature")) is None

    play(scene)


def test_what_somebody_pushes_from_here_is_asked_for_at_once(play, repo, monkeypatch) -> None:
    async def scene(on: Session) -> None:
        await on.until(lambda: on.hub.asked)
        monkeypatch.setattr(plan, "CADENCE_S", dict.fromkeys(plan.CADENCE_S, (600.0, 600.0)))
        on.hub.pull(REPO, Pull(7, "feature"))
        git(repo, "update-ref", "refs/remotes/origin/feature", "HEAD")
        await on.until(lambda: on.last("pr") == OPEN)

    play(scene)


def test_a_webhook_at_the_gateway_makes_the_source_ask_at_once(play, tmp_path, monkeypatch) -> None:
    async def scene(on: Session) -> None:
        settings = on.running.process.settings
        secret = settings.webhook_secret_path
        secret.write_bytes(b"of ours")
        secret.chmod(0o600)
        (settings.home / "treewire.toml").write_text("[gateway]\nport = 0\n")
        await on.until(lambda: on.hub.asked)
        monkeypatch.setattr(plan, "CADENCE_S", dict.fromkeys(plan.CADENCE_S, (600.0, 600.0)))
        on.hub.pull(REPO, Pull(7, "feature"))
        gateway = Child(settings, "gateway")
        try:
            await on.until(lambda: settings.url_path.exists() or gateway.process.poll() is not None)
            assert gateway.process.poll() is None, gateway.said
            body = json.dumps({"ref": "refs/heads/feature", "repository": {"full_name": REPO}}).encode()
            signature = "sha256=" + hmac.new(b"of ours", body, "sha256").hexdigest()
            headers = {"X-GitHub-Event": "push", "X-Hub-Signature-256": signature}
            url = settings.url_path.read_text().strip() + "v1/webhooks/github"
            async with aiohttp.ClientSession() as http, asyncio.timeout(30):
                while on.last("pr") != OPEN:
                    async with http.post(url, data=body, headers=headers) as answer:
                        assert answer.status == 204
                    await asyncio.sleep(0.1)
        finally:
            gateway.end()

    play(scene)


def test_checks_that_have_all_ended_are_counted_once(play) -> None:
    async def scene(on: Session) -> None:
        pull = on.hub.pull(REPO, Pull(7, "feature", runs=["IN_PROGRESS"]))
        await on.until(lambda: on.last("ci") and on.last("ci").pending == 1)
        pull.runs = ["SUCCESS"]
        await on.until(lambda: on.last("ci").passed == 1)
        ended = len(on.hub.asked)
        await on.until(lambda: len(on.hub.asked) > ended + 4)
        assert not any(asked.counted for asked in on.hub.asked[ended + 1 :])
        pull.runs = ["QUEUED"]  # somebody runs them again
        await on.until(lambda: on.last("ci").pending == 1)

    play(scene)


def test_without_a_token_nothing_is_asked_and_it_says_what_to_do(play, monkeypatch) -> None:
    async def scene(on: Session) -> None:
        await on.until(lambda: on.health == ("idle", "there is no token: set GITHUB_TOKEN, or run `gh auth login`"))
        assert not on.hub.asked
        assert set(on.source.figures().values()) == {""}

    monkeypatch.delenv("GITHUB_TOKEN")
    play(scene)


def test_the_token_of_gh_is_used_where_the_environment_has_none(play, monkeypatch, tmp_path) -> None:
    async def scene(on: Session) -> None:
        on.hub.pull(REPO, Pull(7, "feature"))
        await on.until(lambda: on.last("pr") == OPEN)

    program = tmp_path / "bin" / "gh"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$*" = "auth token --hostname github.com" ] && echo {github.TOKEN}\n')
    program.chmod(0o755)
    monkeypatch.delenv("GITHUB_TOKEN")
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    play(scene)


def test_without_a_remote_at_github_nothing_is_asked(play, repo) -> None:
    async def scene(on: Session) -> None:
        await on.until(lambda: on.health[1] == "no followed worktree is on a branch that goes to github.com")
        assert on.health[0] == "idle"
        assert not on.hub.asked

    git(repo, "remote", "set-url", "origin", "https://gitlab.com/acme/web")
    play(scene)


def test_a_remote_that_leads_elsewhere_for_a_while_takes_the_pull_request_along(play, repo, monkeypatch) -> None:
    async def scene(on: Session) -> None:
        on.hub.pull(REPO, Pull(7, "feature"))
        await on.until(lambda: on.last("pr") == OPEN)
        git(repo, "remote", "set-url", "origin", "https://gitlab.com/acme/web")
        await on.sees(Pr(), Ci())
        assert on.health[0] == "idle"
        git(repo, "remote", "set-url", "origin", f"https://github.com/{REPO}")
        await on.until(lambda: on.last("pr") == OPEN)
        await on.until(lambda: on.health == ("running", ""))

    monkeypatch.setattr(poller, "TOKEN_S", 600.0)
    play(scene)


def test_a_restart_takes_back_what_is_no_more(play) -> None:
    async def first(on: Session) -> None:
        on.hub.pull(REPO, Pull(7, "feature"))
        await on.until(lambda: on.last("pr") == OPEN)

    async def second(on: Session) -> None:
        await on.sees(Pr(), Ci())

    play(first)
    play(second)


def test_a_pull_request_that_only_others_know_of_is_theirs(play, monkeypatch) -> None:
    """Whether GitHub has none of that branch, cannot be asked, or can be again."""

    async def reported(on: Session) -> None:
        desk = on.running.played.desk
        assert desk is not None
        place, at = desk.places()[0], now_ns()
        fields = {"number": 3, "state": "open"}
        await desk.record([Observed(place.project, place.workspace, "pr", fields, Stamp(at, at, CLOCK), wall_ms())])

    async def scene(on: Session) -> None:
        await on.until(lambda: len(on.hub.asked) > 3)
        assert on.last("pr") is None  # nothing was said
        on.hub.refusals.extend([(502, {}, "")] * 100)
        await on.until(lambda: on.last("pr") == Pr(number=3, state="open", health="failing"))
        on.hub.refusals.clear()
        await on.until(lambda: on.last("pr") == Pr(number=3, state="open"))
        asked = len(on.hub.asked)
        await on.until(lambda: len(on.hub.asked) > asked + 3)
        assert on.last("pr") == Pr(number=3, state="open")

    monkeypatch.delenv("GITHUB_TOKEN")
    play(reported)
    monkeypatch.setenv("GITHUB_TOKEN", github.TOKEN)
    play(scene)


def test_what_only_asking_needs_is_not_loaded_where_nothing_is_asked() -> None:
    script = "import sys, pipeline.sources.github; print('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def _fields(pr: Pr) -> dict[str, Any]:
    return {name: getattr(pr, name) for name in pr.__struct_fields__}
