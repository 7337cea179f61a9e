"""What `treewire status` says of each source."""

from __future__ import annotations

from pipeline.cli import status


def test_status_tells_of_each_source_how_it_fares_when_it_looked_and_for_how_long_that_holds() -> None:
    figures = {
        "source_claude": "running",
        "source_claude_age_s": 3.0,
        "source_claude_lease_s": 42.0,
        "source_codex": "failing: ValueError: a: b",
        "source_codex_age_s": 60.0,
        "source_codex_lease_s": 0.0,
        "source_tmux": "idle: tmux is not installed",
        "worktrees": 3,
    }
    found = status._sources(figures, beat_age_s=2.0)
    assert figures == {"worktrees": 3}
    assert found == {
        "claude": {"health": "running", "why": "", "age_s": 5.0, "lease_s": 40.0},
        "codex": {"health": "failing", "why": "ValueError: a: b", "age_s": 62.0, "lease_s": 0.0},
        "tmux": {"health": "idle", "why": "tmux is not installed", "age_s": None, "lease_s": None},
    }
    assert [status._source(one) for one in found.values()] == [
        "running; looked 5 s ago; holds for 40 s",
        "failing: ValueError: a: b; looked 62 s ago; what it saw is not known any more",
        "idle: tmux is not installed",
    ]
    assert status._sources({"worktrees": 3}, 0) == {}
