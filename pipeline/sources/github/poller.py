"""The source: it asks for what the plan says is due, and tells the catalog what differs from what it told before.

What GitHub said of a branch is kept; telling it is a step of its own, that is tried again while the catalog is away and
costs no point. A branch that cannot be fetched keeps its values, and its pull request says that it is failing. Without
a token, or without a worktree that goes to GitHub, nothing is asked, and nothing that asking needs is loaded.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from pipeline import bus
from pipeline.bridges import github as bridge
from pipeline.bridges.github import Answer, Ask, Failure, Found
from pipeline.catalog import CatalogUnavailable, Observed
from pipeline.domain.model import Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.sources.desk import Desk, Source, Where
from pipeline.sources.github import token
from pipeline.sources.github.plan import RESERVE, Allowance, Branch, Interest, Plan
from pipeline.sources.github.survey import Home, Survey
from pipeline.wire import Hint

if TYPE_CHECKING:
    from pipeline.sources.github.client import Client

SURVEY_S: Final = (10.0, 30.0)  # where somebody looks on, and where nobody does
TOKEN_S: Final = 300.0
INTEREST_S: Final = 5.0
AGAIN_S: Final = 1.0
REPEAT_S: Final = 600.0  # what somebody else said meanwhile is put right
HOUR_S: Final = 3600.0
FIGURES: Final = ("github_branches", "github_points_hour", "github_remaining", "github_limit", "github_resets")


class Seen(NamedTuple):
    """What GitHub said of a branch, and when it was asked."""

    found: Found | None
    stamp: Stamp
    at_ms: int


class Said(NamedTuple):
    """What the catalog was told of a workspace, whether it took it, and when (in the plan's clock)."""

    incarnation: int
    found: Found | None
    failing: bool
    stamp: Stamp
    at: float
    taken: bool = True


class GitHub(Source):
    name: ClassVar[str] = bridge.NAME

    def __init__(self) -> None:
        super().__init__()
        self.plan = Plan()
        self._homes: dict[str, Home] = {}
        self._tips: dict[str, str] = {}
        self._seen: dict[Branch, Seen] = {}
        self._said: dict[str, Said] = {}
        self._ours: set[str] | None = None  # workspaces that a former run told a pull request of
        self._names: dict[str, str] = {}  # what a repository is called by now → what its remote calls it
        self._spent: deque[tuple[float, int]] = deque()
        self._due = asyncio.Event()
        self._client: Client | None = None

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────

    async def run(self, desk: Desk) -> None:
        settings = desk.settings.github
        survey = Survey(settings.host)
        hints = bus.HintsServer(desk.settings.run_dir, self._hinted)
        moved, surveyed, token_at = None, 0.0, 0.0
        try:
            while True:
                now = time.monotonic()
                self._due.clear()
                watched = desk.interested()
                homes = self._homes.values()
                looked_at = any(home.branch is not None and home.where.project in watched for home in homes)
                pause = SURVEY_S[0] if looked_at else SURVEY_S[1]
                if moved is not desk.moved or now >= surveyed + pause:
                    try:
                        if moved is not desk.moved:
                            after = desk.moved
                            await asyncio.to_thread(survey.places, desk.catalog)
                            moved = after
                        self._found(await asyncio.to_thread(survey.look))
                    except CatalogUnavailable:
                        pass  # what was known stays
                    surveyed = now
                self._follow(watched)
                if not self.plan.branches():
                    self.fares("idle", f"no followed worktree is on a branch that goes to {settings.host}")
                    await self._close()
                    token_at = 0.0
                elif self._client is None and now >= token_at:
                    token_at = now + TOKEN_S
                    await self._open(settings.host, settings.api)
                elif self._token_refused() and now >= token_at:
                    await self._close()
                    continue
                if self._client is not None:
                    await self._ask(self._client)
                told = await self._tell(desk)
                self._fare(desk)
                await self._sleep(desk, surveyed + pause, told and moved is desk.moved)
        finally:
            hints.close()
            await self._close()

    async def _sleep(self, desk: Desk, surveyed: float, done: bool) -> None:
        """Until a question is due, a hint comes, the worktrees change, or they have to be looked at again."""
        now = time.monotonic()
        wait = surveyed - now
        if self._client is not None:
            wait = min(wait, self.plan.wait(now), INTEREST_S)  # somebody may begin to look on
        if not done:
            wait = min(wait, AGAIN_S)
        moving = asyncio.create_task(desk.moved.wait())
        hinted = asyncio.create_task(self._due.wait())
        try:
            await asyncio.wait((moving, hinted), timeout=max(0.05, wait), return_when=asyncio.FIRST_COMPLETED)
        finally:
            moving.cancel()
            hinted.cancel()

    # ── what is followed ─────────────────────────────────────────────────────────────────────────

    def _found(self, homes: list[Home]) -> None:
        """Take in a survey. Where something was pushed since the last one, there is news soon."""
        tips = {home.where.workspace: home.tip for home in homes}
        pushed = [
            home.branch
            for home in homes
            if home.branch is not None and home.tip != self._tips.get(home.where.workspace, home.tip)
        ]
        self._homes, self._tips = {home.where.workspace: home for home in homes}, tips
        self.plan.again(pushed)
        for gone in self._said.keys() - self._homes.keys():
            del self._said[gone]

    def _follow(self, watched: frozenset[str]) -> None:
        followed: dict[Branch, Interest] = {}
        for home in self._homes.values():
            if home.branch is not None:
                before = followed.get(home.branch, Interest(False, False))
                looked_at = home.where.project in watched
                followed[home.branch] = Interest(before.watched or looked_at, before.pushed or bool(home.tip))
        self.plan.follow(followed)
        for gone in self._seen.keys() - followed.keys():
            del self._seen[gone]

    def _hinted(self, hints: list[Hint]) -> None:
        for hint in hints:
            self.plan.hint(hint)
            if (old := self._names.get(hint.repo.lower())) is not None:
                self.plan.hint(Hint(old, hint.branch, hint.sha))
        self._due.set()

    # ── asking ───────────────────────────────────────────────────────────────────────────────────

    async def _open(self, host: str, api: str) -> None:
        if (found := await token.token(host)) != "":
            from pipeline.sources.github.client import Client  # heavy: only where there is something to ask

            self._client = Client(token.endpoint(host, api), found)
            self.plan.resume()

    def _token_refused(self) -> bool:
        return self.plan.refusal is not None and self.plan.refusal.kind == "token"

    async def _close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _ask(self, client: Client) -> None:
        from pipeline.sources.github.client import Refused

        asked = self.plan.take(time.monotonic())
        if not asked:
            return
        began, at_ms = now_ns(), wall_ms()
        try:
            reply = await client.ask(*bridge.question(asked))
            told = bridge.answer(reply.body, asked)
            if isinstance(told, Failure):
                raise Refused(told)
        except Refused as refused:
            self.plan.refused(asked, refused.failure, refused.retry_s, time.monotonic())
            return
        now, stamp = time.monotonic(), Stamp(began, now_ns(), CLOCK)
        self.plan.told(asked, told, _allowance(told, reply.wall_ms or wall_ms(), now), now)
        self._spent.append((now, told.cost))
        self._names.update({new.lower(): old for old, new in told.names.items()})
        self._keep(asked, told, stamp, at_ms)
        self.looked()

    def _keep(self, asked: list[Ask], told: Answer, stamp: Stamp, at_ms: int) -> None:
        for ask, found in zip(asked, told.found, strict=True):
            branch = Branch(*ask[:3])
            if not isinstance(found, Failure) and branch in self.plan.branches():
                self._seen[branch] = Seen(self.plan.found(branch), stamp, at_ms)

    # ── telling ──────────────────────────────────────────────────────────────────────────────────

    async def _tell(self, desk: Desk) -> bool:
        """Write what differs from what was told. False: the catalog is away, and it has to be tried again."""
        now = time.monotonic()
        events: list[Observed] = []
        says: list[tuple[Home, Said, int]] = []
        try:
            if self._ours is None:
                self._ours = await asyncio.to_thread(desk.catalog.reported, self.name)
            for home in self._homes.values():
                if (said := self._news(home, now)) is not None:
                    made = _events(home.where, said, self._said.get(home.where.workspace), self._ours)
                    says.append((home, said, len(made)))
                    events += made
            looks = await desk.record(events) if events else []
        except CatalogUnavailable:
            return False
        at = 0
        for home, said, count in says:
            mine, at = looks[at : at + count], at + count
            taken = all(look is None or look.revision is not None for look in mine)
            self._said[home.where.workspace] = said._replace(taken=taken)
            self._ours.discard(home.where.workspace)
            if home.branch is not None and not taken:
                self.plan.again([home.branch])  # somebody said otherwise while GitHub was asked
        return True

    def _news(self, home: Home, now: float) -> Said | None:
        """What is to be told of this workspace; ``None`` if nothing is."""
        name, incarnation = home.where.workspace, home.where.incarnation
        before = self._said.get(name)
        if before is not None and before.incarnation != incarnation:
            before = None
        seen = None if home.branch is None else self._seen.get(home.branch)
        failing = home.branch is not None and self.plan.failure(home.branch) is not None
        if home.branch is not None and seen is None:
            if not failing or (before is not None and before.failing):
                return None  # nothing is known yet, so nothing is taken back
            at = now_ns()
            return Said(incarnation, None if before is None else before.found, True, Stamp(at, at, CLOCK), now)
        found = None if seen is None else seen.found
        told = before is not None and (before.found is not None or before.failing)
        if found is None and not failing and not told and name not in (self._ours or ()):
            return None  # another source may know of one
        at = now_ns()
        stamp = Stamp(at, at, CLOCK) if seen is None else seen.stamp
        if before is None or found != before.found:
            return Said(incarnation, found, failing, stamp, now)
        if failing != before.failing:
            return Said(incarnation, found, failing, stamp if not failing else Stamp(at, at, CLOCK), now)
        fresh = seen is not None and stamp != before.stamp
        if fresh and (not before.taken or (found is not None and now > before.at + REPEAT_S)):
            return Said(incarnation, found, failing, stamp, now)
        return None

    # ── how it fares ─────────────────────────────────────────────────────────────────────────────

    def _fare(self, desk: Desk) -> None:
        now = time.monotonic()
        if not self.plan.branches():
            return
        if self._client is None:
            if not self._token_refused():
                self.fares("idle", "there is no token: set GITHUB_TOKEN, or run `gh auth login`")
            return
        found = (self.plan.failure(branch) for branch in self.plan.branches())
        failures = {failure.why for failure in found if failure is not None}
        if failures:
            why = "; ".join(sorted(failures)[:3])
            if self.fares("failing", why):
                desk.log.warning("pull requests are not fetched; what was known stays", why=why)
        elif self.plan.spendable(now) < 1:
            self.fares("running", f"pauses to leave {RESERVE:.0%} of the limit to you")
        else:
            self.fares("running")

    def figures(self) -> Mapping[str, float | str]:
        """What GitHub lets the token spend, and what was spent here."""
        now = time.monotonic()
        while self._spent and self._spent[0][0] < now - HOUR_S:
            self._spent.popleft()
        if self._client is None:
            return dict.fromkeys(FIGURES, "")
        told: dict[str, float | str] = {
            "github_branches": len(self.plan.branches()),
            "github_points_hour": sum(cost for _, cost in self._spent),
        }
        if (allowance := self.plan.allowance) is not None:
            at = time.localtime(time.time() + max(0.0, allowance.resets - now))
            told |= {"github_remaining": allowance.remaining, "github_limit": allowance.limit}
            told["github_resets"] = time.strftime("%H:%M", at)
        return dict.fromkeys(FIGURES, "") | told


def _allowance(told: Answer, wall: int, now: float) -> Allowance | None:
    if told.budget is None:
        return None
    left_s = min(max(0.0, (told.budget.resets_ms - wall) / 1000), HOUR_S)
    return Allowance(told.budget.limit, told.budget.remaining, now + left_s)


def _events(where: Where, said: Said, before: Said | None, ours: Collection[str]) -> list[Observed]:
    """The pull request first, then its checks: these carry the key of the former.

    Where none was told of by us, nothing is taken back: another source may know of one.
    """

    def event(group: str, fields: dict[str, Any]) -> Observed:
        return Observed(where.project, where.workspace, group, fields, said.stamp, wall_ms(), producer=bridge.NAME)

    health = "failing" if said.failing else None
    told = None if before is None else before.found
    if said.failing and (said.found is None or told == said.found):
        return [event("pr", {"health": health})]  # the last that was good stays
    if said.found is None and told is None and where.workspace not in ours:
        return [event("pr", {"health": health})]
    if said.found is None:
        nothing = dict.fromkeys(("number", "url", "state", "review", "mergeable", "head"))
        none = dict.fromkeys(("state", "passed", "failed", "pending", "health", "pr", "head"))
        return [event("pr", {**nothing, "health": health}), event("ci", none)]
    found = said.found
    pr = {name: getattr(found.pr, name) for name in ("number", "url", "state", "review", "mergeable")}
    ci = {name: getattr(found.ci, name) for name in ("state", "passed", "failed", "pending")}
    return [
        event("pr", {**pr, "head": found.head, "health": health}),
        event("ci", {**ci, "health": None, "pr": found.pr.number, "head": found.head}),
    ]
