"""An hour of GitHub on a virtual clock: the real plan and questions, a GitHub with a cost, and checks that come and go.

Pushes come from elsewhere and there are no webhooks, so that nothing but the cadence can tell. A push moves the head
and starts checks, which run for some minutes, and end well or not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.bridges import github as bridge
from pipeline.bridges.github import Answer
from pipeline.sources.github.plan import Allowance, Branch, Interest, Plan
from tests.github import HOUR_S, GitHub, Pull, sha

EPOCH = 1_800_000_000.0
ANSWER_S = 0.7
PROJECTS = 5
RUNS_S = (180.0, 900.0)  # how long checks run
BETWEEN_S = 1800.0  # mean time from their end to the next push


class Figures(NamedTuple):
    """`points`: in the hour. `delays_s`: from the end of checks until it was seen, of branches that are looked at."""

    points: int
    questions: int
    delays_s: list[float]
    unseen: int
    least_remaining: int


@dataclass
class _Life:
    """One pull request: when its checks end, or when the next push comes."""

    branch: Branch
    pull: Pull
    at: float
    watched: bool
    ended: float | None = None
    delays: list[float] = field(default_factory=list)
    unseen: int = 0

    def step(self, rng: random.Random, now: float) -> None:
        if now < self.at:
            return
        if self.pull.runs and "IN_PROGRESS" in self.pull.runs:
            self.pull.runs = ["SUCCESS"] * 3 + [rng.choice(("SUCCESS", "FAILURE"))]
            self.ended, self.at = self.at, self.at + rng.expovariate(1 / BETWEEN_S)
            return
        self.unseen += self.ended is not None  # the next push was quicker
        self.ended = None
        self.pull.head = sha(rng.getrandbits(150))
        self.pull.runs, self.at = ["IN_PROGRESS"] * 4, self.at + rng.uniform(*RUNS_S)

    def see(self, plan: Plan, now: float) -> None:
        found = plan.found(self.branch)
        if self.ended is None or found is None or found.head != self.pull.head:
            return
        if found.ci.state in ("success", "failure") and not found.ci.pending:
            self.delays.append(now - self.ended)
            self.ended = None


def play(workspaces: int = 300, watched: int = 60, seed: int = 1, hours: float = 1.0) -> Figures:
    """Follow so many pull requests, of which somebody looks at the first so many."""
    rng, now = random.Random(seed), 0.0
    hub = GitHub(lambda: EPOCH + now)
    plan = Plan()
    lives = []
    for n in range(workspaces):
        repo = f"acme/project-{n * PROJECTS // workspaces}"
        pull = hub.pull(repo, Pull(n + 1, f"agent-{n}", runs=["SUCCESS"] * 4, head=sha(n)))
        first = rng.uniform(0, BETWEEN_S)
        lives.append(_Life(Branch(repo, repo, pull.branch), pull, first, n < watched))
    plan.follow({life.branch: Interest(life.watched, True) for life in lives})
    while now < hours * HOUR_S:
        for life in lives:
            life.step(rng, now)
        asked = plan.take(now)
        if not asked:
            now += min(max(0.05, plan.wait(now)), 5.0)
            continue
        body = hub.answer(*bridge.question(asked))  # as of the moment at which it was asked
        now += ANSWER_S
        told = bridge.answer(body, asked)
        assert isinstance(told, Answer), told
        assert told.budget is not None
        resets = told.budget.resets_ms / 1000 - EPOCH
        plan.told(asked, told, Allowance(told.budget.limit, told.budget.remaining, resets), now)
        for life in lives:
            life.see(plan, now)
    looked_at = [life for life in lives if life.watched]
    return Figures(
        points=round(sum(asked.cost for asked in hub.asked) / hours),
        questions=len(hub.asked),
        delays_s=sorted(delay for life in looked_at for delay in life.delays),
        unseen=sum(life.unseen for life in looked_at),
        least_remaining=hub.remaining,
    )
