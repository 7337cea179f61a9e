"""What following 300 pull requests costs of a token's points in an hour, and how soon the end of checks shows.

On a virtual clock, with the real plan and questions, against the tests' GitHub: it prices each query by the documented
rule. Nothing but the cadence tells: there are no webhooks, and pushes come from elsewhere. Beside it: what asks for one
branch at a time and as often.
"""

from __future__ import annotations

import os

import graphql

from benchmarks import figures
from pipeline.bridges.github import Ask, question
from pipeline.sources.github.plan import CADENCE_S, RESERVE, SIZE
from tests import hour
from tests.github import HOUR_S, cost

WORKSPACES = int(os.environ.get("GITHUB_WORKSPACES", "300"))
SEEDS = (1, 2, 3)
SHARES = (0.0, 0.2, 0.5, 1.0)
GOAL_POINTS, GOAL_S = 600, 60


def main() -> None:
    figures.heading(f"GitHub: {WORKSPACES} pull requests for an hour, by how many of them somebody looks at")
    for share in SHARES:
        watched = round(WORKSPACES * share)
        played = [hour.play(WORKSPACES, watched, seed) for seed in SEEDS]
        figures.line(
            f"points, {watched} looked at", [one.points for one in played], "points/h", f"≤ {GOAL_POINTS} with 60"
        )
        if watched:
            name = f"end of checks → seen, {watched} looked at"
            figures.line(f"{name}, p50", [figures.percentile(one.delays_s, 0.5) for one in played], "s")
            figures.line(f"{name}, slowest", [one.delays_s[-1] for one in played], "s", f"≤ {GOAL_S}")
            figures.line("  pushed over before they were seen", [one.unseen for one in played], "checks")
        if watched == round(WORKSPACES * 0.2):
            points = sum(one.points for one in played) / len(played)
    one = cost(graphql.parse(question([Ask("acme/web", "acme/web", "x", 1)])[0]))
    full = cost(graphql.parse(question([Ask("acme/web", "acme/web", "x", n) for n in range(SIZE)])[0]))
    print(
        f"a question of {SIZE} branches costs {full} point, one of a single branch {one}; {RESERVE:.0%} are the user's"
    )
    alone = WORKSPACES * HOUR_S / CADENCE_S["moving"][0] * one
    figures.ratio("points with 60 looked at, of those of one branch at a time", points, alone)
