"""Worktrees that go while they are looked at: bad luck, told as such, and never the end of a worker."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.gitkit import add_worktree, git, make_repo, write
from tests.oracle import job_for
from workers import look as engine
from workers.git import GitError, Looker
from workers.worker import look_at

ROUNDS = 60


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return make_repo(tmp_path / "repo", {f"dir{n % 5}/file{n}.txt": "one\n" for n in range(40)})


@pytest.fixture
def looker(tmp_path: Path) -> Looker:
    (tmp_path / "cache").mkdir(mode=0o700)
    return Looker(tmp_path / "cache")


@pytest.mark.parametrize("full", [True, False])
def test_a_worktree_that_goes_at_the_very_end_of_a_look_is_an_error_with_a_reason(
    repo: Path, looker: Looker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    """G1: it is found gone by the last step, after git has told all its numbers."""
    worktree = add_worktree(repo, tmp_path / "work", "task")
    job = replace(job_for(worktree), full=full, paths=() if full else (b"dir0/file0.txt",))
    read = engine.read_operation

    def then_gone(git_dir: Path) -> object:
        found = read(git_dir)
        shutil.rmtree(worktree)
        return found

    monkeypatch.setattr(engine, "read_operation", then_gone)
    with pytest.raises(GitError) as bad_luck:
        looker.look(job)
    assert bad_luck.value.reason == "busy"
    assert look_at(job, "worker-0", looker).git is None


def test_worktrees_that_go_at_any_moment_never_end_a_worker(repo: Path, looker: Looker, tmp_path: Path) -> None:
    """G1, O1: `git worktree remove` and `rm -rf` beside full and scoped looks, at random moments."""
    draw = random.Random(7)
    fates: Counter[str] = Counter()
    until = time.monotonic() + 12
    for number in range(ROUNDS):
        if time.monotonic() > until:
            break
        worktree = add_worktree(repo, tmp_path / f"work{number}", f"task{number}")
        write(worktree, {"dir1/file1.txt": "two\n", "new.txt": "new\n"})
        job = job_for(worktree)
        look_at(job, "worker-0", looker)
        gone = threading.Timer(draw.uniform(0, 0.03), _remove, (repo, worktree, draw.random() < 0.5))
        gone.start()
        while True:
            over = not gone.is_alive()
            paths = (b"dir1/file1.txt", b"new.txt", b"dir2")
            one = job if draw.random() < 0.5 else replace(job, full=False, paths=paths)
            done = look_at(one, "worker-0", looker)  # whatever else it raises ends a worker
            fates[done.error.partition(":")[0] or "numbers"] += 1
            if over:
                assert done.git is None
                break
    assert fates["numbers"] > 0
    assert len(fates) > 1


def _remove(repo: Path, worktree: Path, by_git: bool) -> None:
    if by_git:
        git(repo, "worktree", "remove", "--force", worktree, check=False)
    shutil.rmtree(worktree, ignore_errors=True)


def test_of_worktrees_that_are_gone_nothing_is_remembered(
    repo: Path, looker: Looker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O3: tables, shadows and what was read of repositories go with them, not only when others need the room."""
    other = make_repo(tmp_path / "other", {"a.txt": "one\n"})
    stays = add_worktree(repo, tmp_path / "stays", "stays")
    gone = [add_worktree(repo, tmp_path / f"gone{n}", f"gone{n}") for n in range(5)]
    for worktree in (stays, *gone, other):
        write(worktree, {"new.txt": "new\n"})
        for full in (True, False):
            job = replace(job_for(worktree), full=full, paths=() if full else (b"new.txt",))
            assert look_at(job, "worker-0", looker).git is not None
    assert looker.tables == 7
    for worktree in gone:
        git(repo, "worktree", "remove", "--force", worktree)
    shutil.rmtree(other)
    monkeypatch.setattr("workers.git.PRUNE_S", 0.0)
    looker._prune_at = 0.0
    assert look_at(job_for(stays), "worker-0", looker).git is not None
    assert looker.tables == 1
    held = (looker._shadows, looker._objects, looker.packs, {key[0] for key in looker.lineages})
    assert [len(one) <= 1 for one in held] == [True] * 4
    assert len(list((tmp_path / "cache").iterdir())) <= 2  # the shadow of the one that stays
