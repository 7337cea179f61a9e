"""A repository whose file system stops answering is left out and named; all others go on as if it were not (G1, O1)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import deployment
from pipeline.runtime.beat import Beat, read_beat, read_beats
from pipeline.runtime.settings import Settings
from tests.gitkit import add_worktree, make_repo, write
from tests.mount import mounted

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("dead mount")]

PATIENCE_S = 60.0
SETTINGS = {
    "TREEWIRE_GIT__DEADLINE_MS": "1000", "TREEWIRE_GIT__ACTIVE_S": "5", "TREEWIRE_GIT__IDLE_S": "5",
    "TREEWIRE_SOURCES__DISCOVER_S": "5", "TREEWIRE_GIT__WORKERS": "2",
}  # fmt: skip


@pytest.fixture
def place() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="tw-mount-"))
    yield root
    shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def deployed(*repositories: Path) -> Iterator[tuple[Settings, str]]:
    """A whole deployment; what its processes said is in the failure."""
    with deployment.home() as settings:
        try:
            with deployment.deployment(settings, *repositories, **SETTINGS) as url:
                yield settings, url
        except AssertionError:
            print(*read_beats(settings.run_dir), sep="\n")
            print(*(f"── {log.name}\n{log.read_text()}" for log in sorted((settings.home / "log").glob("*"))), sep="\n")
            raise


def until(what: str, condition: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)
    return found


def snapshot(settings: Settings, url: str, project: str) -> dict[str, Any]:
    token = settings.token_path.read_text().strip()
    found: dict[str, Any] = json.loads(deployment.get(f"{url}v1/projects/{project}/snapshot", token))
    return found


def files(settings: Settings, url: str, project: str) -> dict[str, int | None]:
    """Of each worktree that is shown, how many files are changed in it."""
    entries = snapshot(settings, url, project)["workspaces"].values()
    return {entry["life"]["name"]: entry.get("git", {}).get("files") for entry in entries}


def beat(settings: Settings, name: str) -> Beat:
    found = read_beat(settings.run_dir / f"{name}.beat")
    assert found is not None, f"{name} has no beat"
    return found


def status(settings: Settings) -> str:
    command = [sys.executable, "-m", "pipeline.cli", "status", "--home", str(settings.home)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout


def test_a_mount_that_dies_holds_up_nobody_else_and_is_counted_again_when_it_is_back(place: Path) -> None:
    make_repo(place / "far-source", {"a.txt": "1\n"})
    (place / "far").mkdir()
    near = make_repo(place / "near", {"a.txt": "1\n", "dir/b.txt": "1\n"})
    task = add_worktree(near, place / "task", "task")
    try:
        entered = mounted(place / "far-source", place / "far")
        dead = entered.__enter__()
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    try:
        with deployed(near, place / "far") as (settings, url):
            until(
                "both are counted",
                lambda: files(settings, url, "near").get("task") == files(settings, url, "far").get("far") == 0,
            )
            assert sorted(os.listdir(place / "far")) == sorted(os.listdir(place / "far-source")), "it mirrors well"
            write(place / "far-source", {"a.txt": "1\n2\n"})
            until("the cadence sees the mount", lambda: files(settings, url, "far")["far"] == 1)
            before = beat(settings, "dispatcher").pid
            dead.touch()
            until("it is left out", lambda: beat(settings, "dispatcher").figures["skipped"] == 1)
            told = until("and named", lambda: "its repository does not answer" in (said := status(settings)) and said)
            assert "near" not in next(line for line in told.splitlines() if "does not answer" in line)
            add_worktree(near, place / "born", "born")
            until("discovery goes on", lambda: files(settings, url, "near").get("born") == 0)
            for number in range(5):
                write(task, {f"new{number}.txt": "1\n"})
                began = time.monotonic()
                until("the other is counted", lambda n=number: files(settings, url, "near")["task"] == n + 1)
                assert time.monotonic() - began < 10
                assert beat(settings, "dispatcher").lag_ms < 1000, "its loop turns all the while"
            assert files(settings, url, "far") == {"far": 1}, "what was known of it stays"
            assert beat(settings, "dispatcher").pid == before
            until(
                "discovery says so too",
                lambda: "does not answer: see" in str(beat(settings, "sources").figures["reason"]),
            )
            dead.unlink()
            until("it is let in again", lambda: beat(settings, "dispatcher").figures["skipped"] == 0)
            until("and fails no more", lambda: beat(settings, "dispatcher").figures["failing"] == 0)
            write(place / "far-source", {"a.txt": "1\n", "new.txt": "1\n", "other.txt": "1\n"})
            until("what changes there is counted again", lambda: files(settings, url, "far")["far"] == 2)
            assert beat(settings, "dispatcher").pid == before
    finally:
        entered.__exit__(None, None, None)
