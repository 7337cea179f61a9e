"""`treewire tap` and `treewire explain` of what is not there: they say what is, and never wait for it."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from benchmarks import deployment
from pipeline import catalog as catalogs
from pipeline.catalog import Worktree
from pipeline.catalog.ids import worktree_id
from pipeline.domain.model import Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms
from pipeline.runtime.settings import Settings


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    """An aggregator runs, and its catalog has one project with two workspaces."""
    with deployment.home() as settings:
        catalog = catalogs.open(settings)
        catalog.add_project("/srv/web", wall_ms(), "The web")
        now = now_ns()
        trees = [Worktree(f"/srv/{name}", name, f"/g/{name}", "/g", 1, "main") for name in ("fix-login", "dark-mode")]
        catalog.upsert_worktrees("web", trees, Stamp(now, now, CLOCK), wall_ms())
        catalog.close()
        with deployment.process("aggregator", settings):
            deployment.until((settings.run_dir / "tap.sock").exists, 20, "the aggregator's sockets")
            yield settings


def cli(settings: Settings, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *args, "--home", str(settings.home)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--workspace", "fix-lgoin"), "There is no workspace 'fix-lgoin': did you mean 'fix-login'"),
        (("--workspace", "zzz"), "there are "),
        (("--project", "wbe"), "There is no project 'wbe': did you mean 'web'"),
        (("--project", "zzz"), "`treewire project list`"),
        (("--group", "gti"), "the groups are life, pr, ci, ratchet, git, terminal, run, session:<id>"),
        (("--group", "session"), "there is no group 'session'"),
        (("--group", "git:x"), "there is no group 'git:x'"),
        (("--group", "status"), "follows from"),
    ],
)
def test_a_tap_on_what_is_not_there_says_what_is_instead_of_waiting(
    settings: Settings, options: tuple[str, str], said: str
) -> None:
    done = cli(settings, "tap", *options)
    assert done.returncode in (1, 2)
    assert said in done.stderr


def test_a_tap_takes_names_and_shows_what_concerns_them(settings: Settings) -> None:
    command = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "tap",
        "--json",
        "--workspace",
        "fix-login",
        "--project",
        "The web",
    ]
    tap = subprocess.Popen([*command, "--home", str(settings.home)], stdout=subprocess.PIPE, text=True)
    assert tap.stdout is not None
    catalog = catalogs.open(settings)
    try:
        deadline = time.monotonic() + 20
        while not select.select([tap.stdout], [], [], 0.1)[0]:
            assert time.monotonic() < deadline, "it shows nothing"
            for name in ("dark-mode", "fix-login"):
                cli(settings, "workspace", "archive", name)
            now = now_ns()
            gone = Stamp(now, now, CLOCK)
            catalog.upsert_worktrees("web", [], gone, wall_ms())
            now = now_ns()
            trees = [Worktree(f"/srv/{n}", n, f"/g/{n}", "/g", 1, "main") for n in ("fix-login", "dark-mode")]
            catalog.upsert_worktrees("web", trees, Stamp(now, now, CLOCK), wall_ms())
        told = json.loads(tap.stdout.readline())
        assert told["look"]["workspace"] == worktree_id("/srv/fix-login")
    finally:
        catalog.close()
        tap.terminate()
        tap.communicate(timeout=15)


def test_explain_of_what_is_no_group_names_the_groups_and_of_an_unknown_workspace_the_nearest(
    settings: Settings,
) -> None:
    done = cli(settings, "explain", "fix-login", "gti")
    assert done.returncode == 2
    assert "there is no group 'gti'; the groups are life, pr, ci" in done.stderr
    done = cli(settings, "explain", "fix-lgoin")
    assert done.returncode == 1
    assert "did you mean 'fix-login'" in done.stderr


def test_names_are_taken_as_ids_where_the_catalog_cannot_be_read() -> None:
    with deployment.home() as settings, deployment.process("aggregator", settings):
        deployment.until((settings.run_dir / "query.sock").exists, 20, "the aggregator's sockets")
        (settings.home / "treewire.db").write_bytes(b"x" * 8192)
        done = cli(settings, "explain", "somebody")
        assert done.returncode == 1
        assert "nothing is known of workspace 'somebody'" in done.stderr
        assert "Traceback" not in done.stderr
