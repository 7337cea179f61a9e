"""What `treewire status` says of the git pipeline, in words."""

from __future__ import annotations

from pipeline.cli.status import _git

FIGURES = {
    "worktrees": 300,
    "workers": 2,
    "queue": 4,
    "running": 2,
    "git_looks": 312,
    "looks_full": 302,
    "looks_full_why": "first sight 300, cadence 2",
    "looks_scoped": 10,
    "git_processes": 310,
    "watches": 2990,
    "watch_budget": 3000,
    "watched_trees": 244,
    "unwatched_trees": 0,
    "watch_overflows": 0,
    "git_drift": 0,
    "failing": 0,
    "skipped": 0,
    "epoch": "e1",
}


def test_a_healthy_pipeline_is_told_in_four_lines_and_the_rest_stays_figures() -> None:
    figures = dict(FIGURES)
    assert _git(figures) == [
        "git: 300 worktrees, 2 workers, 4 waiting, 2 running",
        "  looks      10 scoped, 302 full (first sight 300, cadence 2)",
        "  cost       310 git processes for 312 jobs",
        "  watched    244 worktrees; 2990 of 3000 watches",
    ]
    assert figures == {"epoch": "e1"}


def test_what_is_not_well_is_told_with_its_reason() -> None:
    trouble = {
        "unwatched_trees": 56,
        "unwatched_why": "56 no room within git.max_watches",
        "watch_overflows": 1,
        "watch_degraded": "the watch of git directories ended: x",
        "git_drift": 3,
        "failing": 2,
        "failing_why": "web-a: gone: /w/a is no directory any more",
        "skipped": 1,
        "skipped_why": "web-b: its path is not UTF-8",
    }
    assert _git(FIGURES | trouble)[4:] == [
        "  unwatched  56 no room within git.max_watches",
        "  overflows  1 of the watch",
        "  degraded   the watch of git directories ended: x",
        "  drift      3 paths had changed though nothing had told so; the log says where",
        "  failing    2, such as web-a: gone: /w/a is no directory any more",
        "  skipped    1: web-b: its path is not UTF-8",
    ]


def test_a_dispatcher_that_has_said_nothing_yet_is_not_described() -> None:
    assert _git({}) == []
