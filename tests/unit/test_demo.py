"""The demo's script: the same seed tells the same story, and every story makes sense. And the still scene."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bridges import event
from pipeline.cli.demo import still
from pipeline.cli.demo.acts import (
    HEAD,
    Act,
    Add,
    Advance,
    Clash,
    Commit,
    Edit,
    Rebase,
    Reconnect,
    Remove,
    Report,
    Where,
)
from pipeline.cli.demo.script import Cast
from pipeline.cli.demo.stage import HISTORY
from pipeline.domain.model import KINDS, Group, kind_of
from pipeline.domain.status import TABLE, derive

SEEDS = st.integers(0, 2**32)
HOUR = 3600.0


def told(cast: Cast, until: float) -> list[list[Act]]:
    return [actor.step(until) for actor in cast.actors()]


@given(seed=SEEDS, agents=st.integers(1, 20), cuts=st.lists(st.floats(0, 600), max_size=20))
def test_the_same_seed_tells_the_same_story_in_whichever_steps(seed: int, agents: int, cuts: list[float]) -> None:
    whole = told(Cast(agents, seed), 600)
    for actor, expected in zip(Cast(agents, seed).actors(), whole, strict=True):
        assert [act for now in (*sorted(cuts), 600) for act in actor.step(now)] == expected
        assert actor.due > 600


def test_another_seed_is_another_story() -> None:
    assert told(Cast(3, 1), 300) != told(Cast(3, 2), 300)


@given(seed=SEEDS)
def test_no_story_does_anything_to_a_worktree_that_is_not_there(seed: int) -> None:
    """Each worktree is announced, made, worked in, archived and removed, in this order, and its name is its own."""
    cast = Cast(4, seed)
    made: set[Where] = set()
    for acts in told(cast, HOUR):
        announced: set[Where] = set()
        there: set[Where] = set()
        for act in acts:
            match act:
                case Report(where, "life", {"phase": "provisioning"}):
                    assert where not in announced
                    announced.add(where)
                case Report(where, "life", {"phase": "archived"}):
                    announced.remove(where)
                case Report(where):
                    assert where in announced
                case Add(where, behind):
                    assert where in announced
                    assert where not in made
                    assert behind <= HISTORY
                    made.add(where)
                    there.add(where)
                case Remove(where):
                    assert where not in announced
                    there.remove(where)
                case Edit(where) | Commit(where) | Rebase(where):
                    assert where in there
                case Advance(project):
                    assert project in cast.projects
        assert len(there) <= 1, "an agent works in one worktree at a time"


@given(seed=SEEDS)
def test_every_report_is_one_that_ingest_takes(seed: int) -> None:
    for act in (act for acts in told(Cast(2, seed), HOUR) for act in acts):
        if isinstance(act, Report):
            native = {"project": "p", "workspace": "w", "group": act.group, "fields": act.fields}
            event.of(native)  # raises where it is none
            assert not (act.lost and kind_of(act.group) in ("life", "pr", "ci"))


def test_everything_that_can_happen_happens_within_an_hour_of_a_few_agents() -> None:
    acts = [act for acts in told(Cast(12, 1), HOUR) for act in acts]
    assert {type(act) for act in acts} == {Add, Remove, Edit, Commit, Rebase, Advance, Report, Reconnect}
    shown: dict[str, set[Any]] = defaultdict(set)
    for act in acts:
        if isinstance(act, Report):
            for field, value in act.fields.items():
                shown[f"{kind_of(act.group)}.{field}"].add(value)
    assert shown["session.state"] >= {"starting", "working", "idle", "waiting", "exited"}
    assert shown["session.waiting_for"] >= {"permission", "question", "plan", "auth"}
    assert shown["session.crashed"] >= {True, False}
    assert shown["life.phase"] == {"provisioning", "ready", "failed", "archived"}
    assert shown["pr.state"] >= {"open", "merged"}
    assert shown["pr.review"] >= {"required", "changes_requested"}
    assert shown["ci.state"] == {"pending", "failure", "success"}
    assert shown["ratchet.state"] >= {"ci_running", "ci_failed", "review_pending", "ready"}
    assert any(isinstance(act, Report) and act.lost for act in acts)


# ── the still scene ──────────────────────────────────────────────────────────────────────────────


def groups(shown: still.Shown) -> dict[str, Group]:
    """What the store would hold of it."""
    found: dict[str, Group] = {"life": KINDS["life"](phase="ready")}  # type: ignore[call-arg]
    for group, fields in shown.reports:
        event.of({"project": "p", "workspace": "w", "group": group, "fields": {**fields, **_head(fields)}})
        public = {name: value for name, value in fields.items() if name != "head"}
        found[group] = msgspec.convert(public, KINDS[kind_of(group)])
    return found


def _head(fields: dict[str, Any]) -> dict[str, str]:
    return {"head": "0" * 40} if fields.get("head") == HEAD else {}


@pytest.mark.parametrize("shown", still.SCENE, ids=lambda shown: shown.branch)
def test_each_workspace_of_the_still_scene_has_the_status_that_it_is_there_for(shown: still.Shown) -> None:
    assert derive(groups(shown)).code == shown.code


def test_the_still_scene_shows_every_status_that_can_be_shown_once_and_enough_of_them_at_once() -> None:
    codes = [shown.code for shown in still.SCENE]
    assert sorted(codes) == sorted(set(TABLE) - {"archiving", "archived"})
    first = [shown for shown in still.SCENE if shown.project == still.PROJECTS[0]]
    assert len(first) == 14
    assert len({(shown.project, shown.branch) for shown in still.SCENE}) == len(still.SCENE)


def test_the_worktrees_of_the_still_scene_can_be_made_and_one_of_them_clashes() -> None:
    acts = list(still.worktrees())
    assert sum(isinstance(act, Clash) for act in acts) == 1
    assert all(act.behind <= HISTORY for act in acts if isinstance(act, Add))
    assert [act.where for act in acts if isinstance(act, Clash)] == [
        Where(shown.project, shown.branch) for shown in still.SCENE if shown.clash and shown.behind
    ]
