"""Both clients as processes of their own, against the real gateway: whatever is killed, stopped or cut, they end with
the state of the aggregator, and prove it."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clientkit import JS, ROOT, Follower, World, agrees, environment, until, world

NAMES = ("w1", "w2", "w3")


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.ready(*NAMES)
        yield made


@pytest.fixture
def followers(shared: World) -> Iterator[list[Follower]]:
    """One in Python, one in JavaScript, both of which hold what the aggregator holds."""
    made = [Follower.python(shared)]
    try:
        if shutil.which("node") and (JS / "node_modules").is_dir():
            made.append(Follower.node(shared))
        else:
            warnings.warn("no node on this host, or its packages are missing (make js): only Python", stacklevel=1)
        converge(made, shared)
        yield made
    finally:
        for one in made:
            one.end()


def converge(followers: list[Follower], world: World) -> None:
    """One more change reaches all, and all prove the very version and hash that the aggregator announces."""
    for one in followers:
        one.until(lambda last: last["state"] == "live", "live")
    world.change()
    until(lambda: all(agrees(one, world) for one in followers), lambda: f"{[one.last for one in followers]}")


def kinds(follower: Follower, start: int) -> set[str]:
    return {line["kind"] for line in follower.lines[start:]}


def test_a_killed_gateway_is_resumed_with_a_difference(followers: list[Follower], shared: World) -> None:
    """W3."""
    seen = [len(one.lines) for one in followers]
    shared.kill("gateway")
    for one in followers:
        one.until(lambda last: last["state"] == "stale" and last["workspaces"] == 3, "stale, and not empty")
    shared.change("w2")
    shared.start("gateway")
    converge(followers, shared)
    for one, start in zip(followers, seen, strict=True):
        assert "snapshot" not in kinds(one, start)
        assert "delta" in kinds(one, start)


def test_a_killed_aggregator_leaves_the_last_state_as_stale_and_comes_back_in_another_epoch(
    followers: list[Follower], shared: World
) -> None:
    seen, epoch = [len(one.lines) for one in followers], followers[0].last["epoch"]
    shared.kill("aggregator")
    for one in followers:
        one.until(lambda last: last["state"] == "stale", "stale")
    shared.start("aggregator")

    def anew() -> bool:
        shared.census()
        return all(one.last["epoch"] != epoch for one in followers)

    until(anew, "another epoch")
    converge(followers, shared)
    for one, start in zip(followers, seen, strict=True):
        assert all(line["workspaces"] for line in one.lines[start:]), "an empty list was shown as truth"


def test_a_client_that_was_stopped_catches_up(followers: list[Follower], shared: World) -> None:
    """Long enough for the gateway to give it up: three heartbeats without an answer."""
    seen = [len(one.lines) for one in followers]
    for one in followers:
        one.freeze()
    for _ in range(60):
        shared.change("w3")
        time.sleep(0.03)
    for one in followers:
        one.thaw()
    converge(followers, shared)
    for one, start in zip(followers, seen, strict=True):
        assert "snapshot" not in kinds(one, start)


def test_a_line_that_breaks_at_random_ends_with_equal_hashes(followers: list[Follower], shared: World) -> None:
    shared.line.shaky = random.Random(7)
    shared.line.cut()
    before = shared.line.cuts
    for turn in range(80):
        shared.change(f"w{turn % 3 + 1}")
        shared.session("w1", ("working", "idle")[turn % 2])
        if turn % 10 == 0:
            shared.line.cut()
        time.sleep(0.05)
    shared.line.shaky = None
    shared.line.cut()
    assert shared.line.cuts > before + 3 * len(followers)
    converge(followers, shared)
    for one in followers:
        assert one.last.get("malformed", 0) == 0
        assert all(line["workspaces"] == 3 for line in one.lines if line["workspaces"] is not None)


def test_a_follower_ends_well_when_it_is_told_to(followers: list[Follower]) -> None:
    assert [one.end() for one in followers] == [0] * len(followers)


def test_what_watch_shows_is_readable_and_names_what_needs_the_user(shared: World) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "watch", "web", "--url", shared.url, "--home", str(shared.home)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stdout is not None
        shared.session("w1", "error")
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if "w1: session error" in line and "✓" in line:
                break
        assert " connecting" in lines[0], lines
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


def test_watch_says_what_to_do_where_it_cannot_follow(shared: World, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("another home's\n")

    def watch(home: Path, *more: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pipeline.cli", "watch", *more, "--home", str(home)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, env=environment())
        return done.returncode, done.stderr

    for code, words, said in (
        (1, "treewire project list", watch(shared.home, "nothing-of-the-kind", "--json")),
        (2, "say it as http://HOST:PORT/", watch(shared.home, "web", "--url", "gopher://127.0.0.1/")),
        (1, "is the token right", watch(tmp_path, "web", "--url", shared.url)),
        (3, "treewire up", watch(tmp_path, "web")),
    ):
        assert code == said[0], said
        assert words in said[1]
