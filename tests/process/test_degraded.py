"""A process that runs and does badly says so itself, and the operator's status believes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import deployment
from pipeline import catalog as catalogs
from pipeline.catalog import Catalog
from pipeline.cli import deployment as members
from pipeline.cli.project import add_paths
from pipeline.runtime.beat import Beat, read_beat
from pipeline.runtime.clock import now_ns, wall_ms
from pipeline.runtime.settings import Settings
from pipeline.watchdog import NOTES
from tests.gitkit import add_worktree, make_repo


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("TREEWIRE_SOURCES__DISCOVER_S", "0.3")
    monkeypatch.setenv("TREEWIRE_RECONCILER__POLL_MS", "50")
    monkeypatch.setenv("TREEWIRE_GIT__ACTIVE_S", "0.3")
    monkeypatch.setenv("TREEWIRE_GIT__IDLE_S", "0.3")
    with deployment.home() as settings:
        yield settings


@pytest.fixture
def catalog(settings: Settings) -> Iterator[Catalog]:
    catalog = catalogs.open(settings)
    yield catalog
    catalog.close()


def beat(settings: Settings, name: str) -> Beat | None:
    return read_beat(settings.run_dir / f"{name}.beat")


def says(settings: Settings, name: str, state: str, reason: str) -> bool:
    found = beat(settings, name)
    return found is not None and found.state == state and reason in str(found.figures.get("reason", ""))


def until_it_says(settings: Settings, name: str, state: str, reason: str = "") -> None:
    try:
        deployment.until(lambda: says(settings, name, state, reason), 40, f"{name} to be {state}: {reason}")
    except TimeoutError as error:
        raise AssertionError(f"{error}; it says {beat(settings, name)}") from None


def well(settings: Settings, name: str, monkeypatch: pytest.MonkeyPatch, **told: Any) -> bool:
    """What `treewire status` makes of it, when supervisord says that it runs."""
    found = beat(settings, name)
    process = {"name": name, "statename": "RUNNING", "pid": found.pid if found else 0, "description": ""}
    process |= {"start": 100, "now": 101, **told}
    monkeypatch.setattr(members, "call", lambda *_: [process])
    [member] = members.members(settings)
    return member.well


def test_sources_are_degraded_while_a_project_cannot_be_read_and_say_which(
    settings: Settings, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine, moved = make_repo(tmp_path / "fine", {"a": "1\n"}), make_repo(tmp_path / "web", {"a": "1\n"})
    for repository in (fine, moved):
        catalog.add_project(repository, wall_ms())
    with deployment.process("sources", settings):
        deployment.until(lambda: len(catalog.workspaces()) == 2, 30, "both to be found")
        until_it_says(settings, "sources", "running")
        assert well(settings, "sources", monkeypatch)
        moved.rename(tmp_path / "away")
        until_it_says(settings, "sources", "degraded", f"web: {moved} is no git repository any more")
        assert not well(settings, "sources", monkeypatch)
        (tmp_path / "away").rename(moved)
        until_it_says(settings, "sources", "running")


def test_a_dispatcher_of_which_every_look_fails_is_degraded_and_says_why(
    settings: Settings, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = make_repo(tmp_path / "web", {"a": "1\n"})
    fix = add_worktree(repository, tmp_path / "fix", "fix")
    add_paths(settings, [repository])
    indexes = [repository / ".git/index", repository / f".git/worktrees/{fix.name}/index"]
    sound = [index.read_bytes() for index in indexes]
    for index in indexes:
        index.write_bytes(b"DIRC" + b"\xff" * 100)
    with deployment.process("aggregator", settings), deployment.process("dispatcher", settings):
        until_it_says(settings, "dispatcher", "degraded", "no worker is there")
        with deployment.process("worker", settings):
            until_it_says(settings, "dispatcher", "degraded", "every look fails, ")
            assert not well(settings, "dispatcher", monkeypatch)
            indexes[1].write_bytes(sound[1])
            until_it_says(settings, "dispatcher", "running")
            assert beat(settings, "dispatcher").figures["failing"] == 1  # type: ignore[union-attr]
            assert well(settings, "dispatcher", monkeypatch)


def test_a_watchdog_that_hangs_is_not_well_although_supervisord_says_that_it_runs(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no beat; that its notes grow old is the only sign."""
    settings.run_dir.mkdir(parents=True, mode=0o700)

    def noted(age_s: float, pid: int = 7) -> None:
        (settings.run_dir / NOTES).write_text(json.dumps({"pid": pid, "boot_ns": now_ns() - int(age_s * 1e9)}))

    noted(1)
    assert well(settings, "watchdog", monkeypatch, pid=7)
    noted(60)
    assert not well(settings, "watchdog", monkeypatch, pid=7)
    noted(60, pid=6)
    assert well(settings, "watchdog", monkeypatch, pid=7), "those are its predecessor's"
    assert not well(settings, "watchdog", monkeypatch, pid=7, now=160), "it should have noted something by now"
    assert not well(settings, "watchdog", monkeypatch, pid=7, statename="FATAL")
