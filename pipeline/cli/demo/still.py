"""A fixed scene: two projects in which every status that there is stands once, and then nothing moves.

Each workspace is told by the acts that bring it about, and by the status that follows from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from pipeline.cli.demo.acts import HEAD, Act, Add, Clash, Commit, Edit, Report, Where
from pipeline.cli.demo.script import FILES

PROJECTS: Final = ("lighthouse", "tidepool")


class Shown(NamedTuple):
    """One workspace: the status that it shall have, its commits and edits as (file, lines), what is reported of it.

    `age_s`: how long ago that was. `behind`: how many commits main has gone on since it left.
    """

    project: str
    branch: str
    code: str
    commits: tuple[tuple[str, int], ...]
    edits: tuple[tuple[str, int], ...]
    reports: tuple[tuple[str, dict[str, Any]], ...]
    age_s: float
    behind: int = 0
    clash: bool = False


def _session(state: str, provider: str = "claude", **more: Any) -> tuple[str, dict[str, Any]]:
    model = {"claude": "claude-opus", "codex": "gpt-codex"}[provider]
    return f"session:{provider}", {"provider": provider, "model": model, "state": state, **more}


def _pr(number: int, state: str = "open", **more: Any) -> tuple[str, dict[str, Any]]:
    url = f"https://github.example/acme/pull/{number}"
    return "pr", {"number": number, "url": url, "state": state, "head": HEAD, **more}


def _ci(state: str, passed: int = 0, failed: int = 0, pending: int = 0) -> tuple[str, dict[str, Any]]:
    return "ci", {"state": state, "passed": passed, "failed": failed, "pending": pending, "head": HEAD}


def _ratchet(state: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "ratchet", {"enabled": True, "state": state, "stalled": False, "iterating": False, **more}


_RUNS: Final = ("run", {"state": "running", "port": 5173})
_LIT, _TIDE = PROJECTS

SCENE: Final = (
    Shown(_LIT, "fix-login-redirect", "needs_permission", (("src/auth.py", 34),), (("src/session.py", 8),),
          (_session("waiting", waiting_for="permission"), _RUNS), 48, 2),
    Shown(_LIT, "dark-mode", "agent_working", (("web/theme.css", 120), ("web/toggle.ts", 46)), (("web/board.css", 31),),
          (_session("working"), ("terminal", {"active": True}), _RUNS), 12, 1),
    Shown(_LIT, "export-to-csv", "needs_answer", (("src/export.py", 88),), (("tests/test_export.py", 20),),
          (_session("waiting", "codex", waiting_for="question"),), 310, 3),
    Shown(_LIT, "upgrade-database", "session_error", (("migrations/0042.sql", 61),), (("src/models.py", 5),),
          (_session("exited", crashed=True),), 1260, 4),
    Shown(_LIT, "rate-limits", "ready_to_merge", (("src/limits.py", 140), ("tests/test_limits.py", 96)), (),
          (_session("idle"), _pr(482, review="approved", mergeable="mergeable"), _ci("success", passed=18)), 840),
    Shown(_LIT, "search-as-you-type", "ci_failed", (("web/search.ts", 210), ("src/index.py", 77)), (),
          (_session("idle"), _pr(479, review="required", mergeable="mergeable"), _ci("failure", 15, 3)), 420, 1),
    Shown(_LIT, "split-billing-service", "merge_conflict", (("billing/api.py", 320), ("billing/jobs.py", 150)), (),
          (_session("idle", "codex"), _pr(465, mergeable="conflicting"), _ci("success", 18)), 5400, 5, clash=True),
    Shown(_LIT, "two-factor", "needs_plan_approval", (), (("docs/two-factor.md", 64),),
          (_session("waiting", waiting_for="plan"),), 95),
    Shown(_LIT, "retry-webhooks", "fixing_ci_failures", (("src/webhooks.py", 72),), (("tests/test_webhooks.py", 12),),
          (_session("idle"), _pr(484, mergeable="mergeable"), _ci("failure", 17, 1), _ratchet("ci_failed")), 66, 1),
    Shown(_LIT, "image-thumbnails", "waiting_for_ci", (("src/images.py", 99),), (),
          (_session("idle"), _pr(485, review="required"), _ci("pending", 6, 0, 12)), 150),
    Shown(_LIT, "faster-startup", "merged", (("src/boot.py", 54),), (),
          (_session("exited", crashed=False), _pr(471, "merged", review="approved"), _ci("success", 18)), 2700, 2),
    Shown(_LIT, "drop-python-39", "ready_for_next_prompt", (("setup.cfg", 3),), (), (_session("idle"),), 3900, 1),
    Shown(_LIT, "onboarding-tour", "starting_session", (), (), (_session("starting"),), 3),
    Shown(_LIT, "audit-log", "setting_up", (), (), (("life", {"phase": "provisioning"}),), 7),
    Shown(_TIDE, "typed-config", "fixing_review_comments", (("tide/config.py", 180),), (("tide/cli.py", 9),),
          (_session("idle"), _pr(91, review="changes_requested", mergeable="mergeable"), _ci("success", 11),
           _ratchet("review_pending")), 210, 1),
    Shown(_TIDE, "sensor-backfill", "auto_iterating", (("tide/backfill.py", 133),), (("tide/plan.py", 27),),
          (_session("idle", "codex"), _ratchet("idle", iterating=True)), 35),
    Shown(_TIDE, "flaky-gauge-test", "ratchet_stalled", (("tests/test_gauge.py", 22),), (),
          (_session("idle"), _pr(88, mergeable="mergeable"), _ci("failure", 10, 1),
           _ratchet("ci_failed", stalled=True)), 1980, 2),
    Shown(_TIDE, "moon-phase-api", "fixing_merge_conflict", (("tide/moon.py", 240),), (),
          (_session("idle"), _pr(86, mergeable="conflicting"), _ci("success", 11), _ratchet("merge_conflict")), 75, 4),
    Shown(_TIDE, "pin-toolchain", "checking_pr", (("Makefile", 11),), (),
          (_session("idle"), _pr(92, mergeable="mergeable"), _ci("success", 11), _ratchet("ci_running")), 20),
    Shown(_TIDE, "station-map", "ready_for_review", (("web/map.ts", 265),), (("web/map.css", 40),),
          (_session("idle"), _pr(90, "draft"), _ci("success", 11)), 1500, 1),
    Shown(_TIDE, "storm-warnings", "needs_auth", (("tide/alerts.py", 58),), (),
          (_session("waiting", "codex", waiting_for="auth"),), 130),
    Shown(_TIDE, "offline-mode", "session_unknown", (("tide/cache.py", 44),), (("tide/sync.py", 16),),
          (_session("unknown"),), 7200, 3),
    Shown(_TIDE, "gpu-forecast", "setup_failed", (), (), (("life", {"phase": "failed"}),), 600),
    Shown(_TIDE, "old-parser", "pr_closed", (("tide/parser.py", 19),), (),
          (_session("exited", crashed=False), _pr(79, "closed")), 14_400, 5),
    Shown(_TIDE, "tidy-fixtures", "no_session_started", (), (("tests/fixtures.py", 13),), (), 0, 1),
)  # fmt: skip


def worktrees() -> Iterator[Act]:
    """What makes the worktrees, before anybody looks."""
    for number, shown in enumerate(SCENE):
        where = Where(shown.project, shown.branch)
        yield Add(where, shown.behind)
        if shown.commits:
            yield Edit(where, f"lib/part{number % FILES}.py", 0, cut=1 + 7 * number % 31)
        for file, lines in shown.commits:
            yield Edit(where, file, lines)
            yield Commit(where, f"{shown.branch}: {file}")
        if shown.clash:
            yield Clash(where)
        for file, lines in shown.edits:
            yield Edit(where, file, lines)


def reports() -> Iterator[Report]:
    """What is said of them, once the worktrees are known. The pull request goes before the checks that are of it."""
    for shown in SCENE:
        for group, fields in shown.reports:
            # That it exists was seen just now, by discovery; nothing older can say otherwise.
            age_s = 0 if group == "life" else shown.age_s
            yield Report(Where(shown.project, shown.branch), group, fields, age_s)
