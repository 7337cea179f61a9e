"""An agent at work never notices that it is looked at (G2): nothing is locked, nothing changes, nothing fails."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asyncinotify import Inotify, Mask
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.wire import Done
from tests.gitkit import IDENTITY, commit, git, write
from tests.hostile import Field, harmless, oracle
from workers.git import Looker
from workers.worker import look_at

pytestmark = pytest.mark.timeout(90)

COMMANDS = 200
LOOKERS = 2
TOUCHES = (
    Mask.MODIFY | Mask.ATTRIB | Mask.CREATE | Mask.DELETE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.CLOSE_WRITE
    | Mask.DELETE_SELF | Mask.MOVE_SELF
)  # fmt: skip


# ── nothing changes ──────────────────────────────────────────────────────────────────────────────


def clean(field: Field) -> None:
    pass


def edited(field: Field) -> None:
    field.edit()
    write(field.tree, {"sub/deep/n.txt": "1\n"})


def staged(field: Field) -> None:
    field.edit()
    git(field.tree, "add", "-A")
    write(field.tree, {"a.txt": "other\n"})


def touched(field: Field) -> None:
    """Every file is as it was, but the index does not know: git would refresh it in passing."""
    for path in (field.tree / "a.txt", field.tree / "b.txt"):
        os.utime(path, ns=(1, 1))


def split_index(field: Field) -> None:
    git(field.tree, "update-index", "--split-index")
    edited(field)


def untracked_cache(field: Field) -> None:
    git(field.tree, "config", "core.untrackedCache", "true")
    git(field.tree, "update-index", "--untracked-cache")
    git(field.tree, "status")
    edited(field)


def sparse(field: Field) -> None:
    write(field.tree, {"in/x": "1\n", "out/y": "1\n"})
    commit(field.tree)
    git(field.tree, "sparse-checkout", "set", "in")
    edited(field)


def merging(field: Field) -> None:
    commit(field.repo, {"a.txt": "theirs\n"})
    commit(field.tree, {"a.txt": "ours\n"})
    git(field.tree, "merge", "main", check=False)


def rebasing(field: Field) -> None:
    commit(field.repo, {"a.txt": "theirs\n"})
    commit(field.tree, {"a.txt": "ours\n"})
    git(field.tree, "rebase", "main", check=False)


def packed(field: Field) -> None:
    commit(field.tree, {"a.txt": "ours\n"})
    git(field.repo, "gc", "-q")
    edited(field)


def with_commit_graph(field: Field) -> None:
    git(field.tree, "config", "fetch.writeCommitGraph", "true")
    git(field.tree, "commit-graph", "write", "--reachable")
    edited(field)


def main_worktree(field: Field) -> None:
    field.settle(field.repo)
    edited(field)


def unborn(field: Field) -> None:
    git(field.tree, "switch", "-q", "--orphan", "nothing")
    edited(field)


STATES: tuple[Callable[[Field], None], ...] = (
    clean, edited, staged, touched, split_index, untracked_cache, sparse, merging, rebasing, packed, with_commit_graph,
    main_worktree, unborn,
)  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_no_byte_inode_or_time_changes_whichever_way_one_looks(field: Field, state: Callable[[Field], None]) -> None:
    state(field)
    with harmless(field), untouched(field):
        first = field.look()
        assert first.numbers is not None
        assert field.look("a.txt", "new.txt").numbers == first.numbers
        assert field.look(walled=True).numbers == first.numbers
        assert field.discover() == ""
        assert field.watch()
    field.edit()
    with harmless(field), untouched(field):
        assert field.look("a.txt", "new.txt").numbers == field.look().numbers


def test_following_a_repository_writes_nothing_into_it(field: Field) -> None:
    field.edit()
    home = field.root / "tw"
    with harmless(field), untouched(field):
        for words in (["project", "add", str(field.tree)], ["project", "remove", str(field.repo), "--yes"]):
            done = CliRunner().invoke(main, ["--home", str(home), *words])
            assert done.exit_code == 0, done.output


def test_the_snapshot_would_notice_what_plain_git_does(field: Field) -> None:
    """So that the tests above say something: `git status` refreshes the index in passing, and `git diff` too."""
    for words in (["status"], ["--no-optional-locks", "diff"]):
        touched(field)
        git(field.tree, "update-index", "-q", "--refresh")
        os.utime(field.tree / "a.txt")
        with pytest.raises(AssertionError, match=r"index"), untouched(field):
            git(field.tree, *words)


@contextmanager
def untouched(field: Field) -> Iterator[None]:
    """The kernel reports no change below the repository or the worktree, be it undone at once: a lock that came and
    went would be told."""
    with Inotify(sync_timeout=0) as inotify:
        for top in (field.repo, field.tree):
            for folder, _, _ in os.walk(top):
                inotify.add_watch(folder, TOUCHES)
        yield
        told = []
        while (event := inotify.sync_get()) is not None:
            told.append(f"{event.mask!r} {event.path}")
    assert not told, f"touched: {told}"


# ── nothing fails ────────────────────────────────────────────────────────────────────────────────


class Agent:
    """Works in a worktree with git, as fast as it can, and keeps what failed."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.commands = 0
        self.failures: list[str] = []
        self.random = random.Random(7)

    def git(self, *words: str, at: Path | None = None) -> None:
        done = subprocess.run(
            ["git", *words], cwd=at or self.field.tree, env=IDENTITY, capture_output=True, text=True, check=False
        )
        self.commands += 1
        if done.returncode:
            self.failures.append(f"git {words}: {done.stderr.strip()}")

    def turn(self, number: int) -> None:
        tree = self.field.tree
        write(tree, {f"file{number % 7}.txt": f"{self.random.random()}\n" * 20, f"new{number}.txt": "1\n"})
        self.git("add", "-A")
        self.git("commit", "-q", "-m", f"turn {number}")
        write(tree, {f"file{number % 7}.txt": "unfinished\n"})
        self.git("stash", "-q")
        self.git("stash", "pop", "-q")
        self.git("status", "--short")
        self.git("checkout", "-q", "--", ".")
        if number % 4 == 0:
            write(self.field.repo, {f"main{number}.txt": "1\n"})
            self.git("add", "-A", at=self.field.repo)
            self.git("commit", "-q", "-m", "upstream", at=self.field.repo)
            self.git("rebase", "-q", "main")
        if number % 5 == 0:
            self.git("commit", "-q", "--amend", "-m", f"turn {number}, amended")


def test_no_command_of_an_agent_fails_beside_a_pool_that_never_stops_looking(field: Field) -> None:
    """G2: add, commit, stash, rebase, amend, while workers take full and scoped looks and discovery lists."""
    agent = Agent(field)
    over = threading.Event()
    outcomes: Counter[str] = Counter()
    trouble: list[str] = []

    def keep_looking(number: int) -> None:
        looker = Looker(field.root / f"cache{number}")
        turn = 0
        while not over.is_set():
            turn += 1
            job = field.job(*(() if turn % 3 == 0 else (f"file{turn % 7}.txt", "a.txt")))
            done: Done = look_at(job, f"worker-{number}", looker)
            outcomes["error" if done.git is None else "scoped" if done.scoped else "full"] += 1
            if done.git is None and done.error.partition(":")[0] not in ("busy", "bad_ref", "missing_object"):
                trouble.append(done.error)

    def keep_listing() -> None:
        while not over.is_set():
            field.discover()
            time.sleep(0.05)

    threads = [threading.Thread(target=keep_looking, args=(number,)) for number in range(LOOKERS)]
    threads.append(threading.Thread(target=keep_listing))
    for thread in threads:
        thread.start()
    try:
        number = 0
        while agent.commands < COMMANDS:
            number += 1
            agent.turn(number)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert agent.failures == []
    assert not trouble
    assert outcomes["full"] > 5, "the pool was not busy, so this test says nothing"
    assert outcomes["scoped"] + outcomes["full"] > outcomes["error"]
    assert not list(field.dirs.common_dir.rglob("*.lock"))
    assert field.look().numbers == oracle(field), "and what it sees in the end is exact"
