"""The watches, on real directories and with real git: what is noticed, what is not, and what it costs."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from pipeline import gitdir
from pipeline.catalog import Target
from pipeline.runtime.log import setup
from tests.gitkit import add_worktree, commit, git, make_repo, write
from workers.trees import Trees
from workers.watch import GitWatch, Hit, roots

LOG = setup("test", level="error")


def target(path: Path, name: str = "", base: str = "main") -> Target:
    dirs = gitdir.resolve(path)
    return Target(name or path.name, "p", 1, str(path), str(dirs.git_dir), str(dirs.common_dir), dirs.inode, base)


async def until(condition: Callable[[], object], what: str = "the condition", seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        await asyncio.sleep(0.005)


# ── git directories ──────────────────────────────────────────────────────────────────────────────


class Seen:
    """What a watch told."""

    def __init__(self) -> None:
        self.hits: list[Hit] = []
        self.lost = 0

    def take(self, hits: set[Hit]) -> None:
        self.hits += hits

    def lose(self) -> None:
        self.lost += 1

    def of(self, workspace: str) -> set[str]:
        return {hit.kind for hit in self.hits if hit.workspace == workspace}


@asynccontextmanager
async def watching(*targets: Target) -> AsyncIterator[tuple[GitWatch, Seen]]:
    seen = Seen()
    watch = GitWatch(seen.take, seen.lose, LOG)
    running = asyncio.create_task(watch.run())
    try:
        await watch.follow(targets)
        assert watch.degraded == ""
        yield watch, seen
    finally:
        running.cancel()
        watch.close()


async def settle(seen: Seen) -> None:
    """Late words of what was done before are over."""
    known = -1
    while known != len(seen.hits):
        known = len(seen.hits)
        await asyncio.sleep(0.3)
    seen.hits.clear()


def three(tmp_path: Path) -> tuple[Path, Path, Path]:
    repo = make_repo(tmp_path / "main", {"a.txt": "one\n"})
    return repo, add_worktree(repo, tmp_path / "a", "team/a"), add_worktree(repo, tmp_path / "b", "team/b")


async def test_a_commit_in_one_worktree_is_told_of_that_one_alone(tmp_path: Path) -> None:
    repo, a, b = three(tmp_path)
    async with watching(target(repo), target(a), target(b)) as (_, seen):
        commit(a, {"a.txt": "two\n"})
        await until(lambda: {"index", "ref"} <= seen.of("a"))
        await settle(seen)
        git(a, "switch", "-q", "-c", "team/other")
        await until(lambda: "head" in seen.of("a"))
        await settle(seen)
        commit(a, message="on the new branch")
        await until(lambda: "ref" in seen.of("a"))
        await asyncio.sleep(0.3)
        assert seen.of("main") == seen.of("b") == set()


async def test_a_base_that_moves_is_told_of_all_and_an_operation_of_its_worktree(tmp_path: Path) -> None:
    repo, a, b = three(tmp_path)
    commit(a, {"a.txt": "ours\n"})
    async with watching(target(a), target(b)) as (_, seen):
        commit(repo, {"a.txt": "theirs\n"})
        await until(lambda: "ref" in seen.of("a") and "ref" in seen.of("b"))
        await settle(seen)
        git(a, "merge", "main", check=False)
        await until(lambda: "operation" in seen.of("a"))
        assert "operation" not in seen.of("b")


async def test_packed_refs_are_told_only_of_whom_they_moved(tmp_path: Path) -> None:
    repo, a, b = three(tmp_path)
    async with watching(target(a), target(b)) as (watch, seen):
        git(repo, "pack-refs", "--all")
        await until((repo / ".git/packed-refs").exists)
        await settle(seen)
        # All loose refs and their directories are gone; nothing points elsewhere. Now one moves as a packed ref.
        packed = repo / ".git/packed-refs"
        new = git(a, "commit-tree", "-m", "x", "HEAD^{tree}")
        old = git(repo, "rev-parse", "team/b")
        lines = [
            line.replace(old, new) if line.endswith("team/b") else line for line in packed.read_text().splitlines()
        ]
        (repo / ".git/packed-refs.new").write_text("\n".join(lines) + "\n")
        (repo / ".git/packed-refs.new").rename(packed)
        await until(lambda: "ref" in seen.of("b"))
        assert seen.of("a") == set()
        await settle(seen)
        # A directory of refs that comes back is watched again.
        commit(a, {"new.txt": "x"})
        await until(lambda: "ref" in seen.of("a"))
        await until(lambda: str(repo / ".git/refs/heads/team") in roots([target(a)]))
        await settle(seen)
        git(repo, "update-ref", "refs/heads/team/a", old)
        await until(lambda: "ref" in seen.of("a"))
        assert watch.degraded == ""


async def test_worktrees_that_come_are_watched_and_those_that_go_are_not(tmp_path: Path) -> None:
    _, a, b = three(tmp_path)
    async with watching(target(a)) as (watch, seen):
        before = watch.watches
        await watch.follow([target(a), target(b)])
        assert watch.watches == before + 1
        git(b, "reset", "-q", "--soft", "HEAD")
        commit(b, {"x.txt": "x"})
        await until(lambda: "index" in seen.of("b"))
        await watch.follow([target(b)])
        await settle(seen)
        commit(a, {"x.txt": "x"})
        await asyncio.sleep(0.4)
        assert seen.of("a") == set()
        await watch.follow([])
        assert watch.watches == 0


async def test_a_watch_that_ends_says_so_and_comes_back(tmp_path: Path) -> None:
    """The notifier gives up on a name that is no UTF-8; what it missed meanwhile nobody knows."""
    repo, a, _ = three(tmp_path)
    async with watching(target(a)) as (watch, seen):
        stray = os.fsencode(repo / ".git") + b"/\xff\xfe"
        os.close(os.open(stray, os.O_CREAT | os.O_WRONLY, 0o600))
        await until(lambda: seen.lost == 1)
        assert "ended" in watch.degraded
        os.unlink(stray)
        await until(lambda: watch.degraded == "", "it comes back")
        await settle(seen)
        commit(a, {"x.txt": "x"})
        await until(lambda: "index" in seen.of("a"))


async def test_a_git_directory_that_is_missing_does_not_keep_the_others_from_being_watched(tmp_path: Path) -> None:
    _, a, b = three(tmp_path)
    gone = target(b)
    git(a, "worktree", "remove", "--force", b)
    async with watching(target(a), gone) as (_, seen):
        commit(a, {"x.txt": "x"})
        await until(lambda: "index" in seen.of("a"))


# ── trees ────────────────────────────────────────────────────────────────────────────────────────


class Edits:
    def __init__(self, budget: int = 1000) -> None:
        self.told: Counter[tuple[str, str]] = Counter()
        self.trees = Trees(budget, self._changed, LOG)

    def _changed(self, workspace: str, what: str) -> None:
        self.told[workspace, what] += 1

    def edits(self, workspace: str) -> int:
        return self.told[workspace, "tree"]

    async def opened(self, *paths: Path) -> None:
        self.trees.follow([target(path) for path in paths])
        await until(lambda: all(self.trees.watched(path.name) for path in paths), "all are watched")
        await self.settle()

    async def settle(self) -> None:
        known = -1
        while known != self.told.total():
            known = self.told.total()
            await asyncio.sleep(0.1)
        self.told.clear()

    async def notices(self, workspace: str) -> None:
        await until(lambda: self.edits(workspace), f"an edit in {workspace} is noticed")
        await self.settle()

    async def ignores(self, workspace: str) -> None:
        await asyncio.sleep(0.2)
        assert self.edits(workspace) == 0


@asynccontextmanager
async def editing(budget: int = 1000) -> AsyncIterator[Edits]:
    edits = Edits(budget)
    running = asyncio.create_task(edits.trees.run())
    try:
        yield edits
    finally:
        running.cancel()
        await asyncio.wait((running,))
        if not running.cancelled() and (error := running.exception()) is not None:
            raise error


async def test_every_kind_of_edit_is_noticed(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "r", {"a.txt": "one\n", "src/b.txt": "two\n"})
    async with editing() as it:
        await it.opened(repo)
        assert it.trees.watches == 2
        write(repo, {"a.txt": "edited\n"})
        await it.notices("r")
        (repo / "src/b.txt").chmod(0o755)
        await it.notices("r")
        (repo / "src/b.txt").rename(repo / "src/c.txt")
        await it.notices("r")
        (repo / "src/c.txt").unlink()
        await it.notices("r")
        os.close(os.open(os.fsencode(repo) + b"/src/\xff\xfe", os.O_CREAT | os.O_WRONLY))
        await it.notices("r")
        (repo / "src/\udcff\udcfe").unlink()
        (repo / "link").symlink_to("/etc")
        await it.notices("r")
        assert it.trees.watches == 2, "what a link points to is not part of the tree"
        git(repo, "commit", "-q", "--allow-empty", "-m", "x")
        await it.ignores("r")


async def test_directories_that_are_made_in_a_hurry_are_all_watched(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "r", {"a.txt": "one\n"})
    async with editing() as it:
        await it.opened(repo)
        deep = "/".join(f"d{n}" for n in range(20))
        write(repo, {f"{deep}/f{n}.txt": "x" for n in range(50)})
        await until(lambda: it.trees.watches == 21)
        await it.settle()
        write(repo, {f"{deep}/f49.txt": "y"})
        await it.notices("r")
        (repo / "d0").rename(repo / "moved")
        await until(lambda: it.trees.watches == 21, "the same number under new names")
        await it.settle()
        write(repo, {f"{deep.replace('d0', 'moved', 1)}/f1.txt": "z"})
        await it.notices("r")
        git(repo, "clean", "-qfdx")
        await until(lambda: it.trees.watches == 1)


async def test_ignored_and_heavy_directories_are_left_out_unless_git_tracks_something_there(tmp_path: Path) -> None:
    files = {".gitignore": "out/\n*.log\n", "src/a.txt": "x", "dist/kept.js": "x", "out/tracked/k.txt": "x"}
    repo = make_repo(tmp_path / "r", {name: text for name, text in files.items() if not name.startswith("out")})
    write(
        repo, {"out/tracked/k.txt": "x", "sub/out/no.txt": "x", "node_modules/m/x.js": "x", "src/node_modules/y": "x"}
    )
    git(repo, "add", "-f", "out/tracked/k.txt")
    git(repo, "commit", "-q", "-m", "kept")
    async with editing() as it:
        await it.opened(repo)
        # The root, src, dist, out, out/tracked, sub.
        assert it.trees.watches == 6
        write(repo, {"node_modules/m/x.js": "y", "sub/out/no.txt": "y", "noise.log": "1", "src/more.log": "2"})
        await it.ignores("r")
        write(repo, {"dist/kept.js": "y"})
        await it.notices("r")
        write(repo, {".gitignore": "*.log\n"})
        await until(lambda: it.trees.watches == 7, "what is no longer ignored is watched")


async def test_a_repository_inside_the_tree_is_another_one(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "r", {"a.txt": "x"})
    inner = add_worktree(repo, repo / ".worktrees" / "inner", "inner")
    make_repo(repo / "vendor" / "lib", {"deep/b.txt": "x"})
    async with editing() as it:
        await it.opened(repo, inner)
        assert it.trees.watches == 4, "the root, .worktrees, vendor, and the inner one's own root"
        write(inner, {"a.txt": "y"})
        await it.notices("inner")
        write(inner, {"a.txt": "z"})
        await until(lambda: it.edits("inner"))
        assert it.edits("r") == 0


async def test_the_budget_goes_to_the_active(tmp_path: Path) -> None:
    files = {f"d{n}/x.txt": "x" for n in range(4)}
    repos = [make_repo(tmp_path / name, files) for name in ("a", "b", "c")]
    async with editing(budget=11) as it:
        it.trees.follow([target(repo) for repo in repos])
        await until(lambda: it.trees.open == 2 and it.trees.degraded)
        assert it.trees.watches == 10
        (left_out,) = [repo for repo in repos if not it.trees.watched(repo.name)]
        others = [repo for repo in repos if repo is not left_out]
        it.trees.touch(others[0].name)
        it.trees.touch(left_out.name)
        await until(lambda: it.trees.watched(left_out.name), "the active one is let in")
        assert it.trees.watched(others[0].name), "the idle one had to leave, not the active one"
        assert not it.trees.watched(others[1].name)
        await it.settle()
        write(left_out, {"d0/x.txt": "y"})
        await it.notices(left_out.name)
        it.trees.touch(others[1].name)
        await asyncio.sleep(0.2)
        assert not it.trees.watched(others[1].name), "no active one is driven out"
        it.trees.follow([target(others[1])])
        await until(lambda: it.trees.watched(others[1].name))
        assert it.trees.degraded == ""
        assert it.trees.watches == 5


async def test_a_tree_beyond_the_whole_budget_is_left_out_and_said_to_be(tmp_path: Path) -> None:
    big = make_repo(tmp_path / "big", {f"d{n}/x.txt": "x" for n in range(40)})
    small = make_repo(tmp_path / "small", {"a.txt": "x"})
    async with editing(budget=20) as it:
        it.trees.follow([target(big), target(small)])
        await until(lambda: it.trees.watched("small") and it.trees.degraded)
        assert it.trees.watches == 1
        it.trees.touch("big")
        await it.settle()
        assert not it.trees.watched("big")
        assert it.trees.watched("small")


async def test_an_overflow_leads_to_another_look_at_everything(tmp_path: Path) -> None:
    a, b = (make_repo(tmp_path / name, {"x.txt": "x"}) for name in ("a", "b"))
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    async with editing() as it:
        await it.opened(a, b)
        one, two = (os.open(a / name, os.O_CREAT | os.O_WRONLY) for name in ("one", "two"))
        for _ in range(limit // 2 + 100):  # without a pause for the loop to read; equal events in a row are one
            os.pwrite(one, b"x", 0)
            os.pwrite(two, b"x", 0)
        os.close(one)
        os.close(two)
        await until(lambda: it.trees.overflows == 1)
        await until(lambda: it.told["a", "watched"] and it.told["b", "watched"], "both are looked at again")
        await it.settle()
        write(b, {"x.txt": "y"})
        await it.notices("b")


async def test_a_tree_that_vanishes_is_told_and_one_that_comes_back_is_watched_again(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "main", {"a.txt": "x"})
    path = add_worktree(repo, tmp_path / "w", "w")
    async with editing() as it:
        await it.opened(path)
        git(repo, "worktree", "remove", "--force", path)
        await it.notices("w")
        await until(lambda: it.trees.watches == 0)
        assert not it.trees.watched("w")
        git(repo, "worktree", "add", "-q", path, "w")
        await it.opened(path)
        write(path, {"a.txt": "y"})
        await it.notices("w")


@contextmanager
def cpu() -> Iterator[Callable[[], float]]:
    began, started = time.process_time(), time.monotonic()
    yield lambda: (time.process_time() - began) / (time.monotonic() - started)


async def test_watching_costs_next_to_nothing_while_nothing_happens(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "main", {f"d{n}/x.txt": "x" for n in range(30)})
    paths = [add_worktree(repo, tmp_path / f"w{n}", f"w{n}") for n in range(10)]
    async with watching(*map(target, paths)), editing() as it:
        await it.opened(*paths)
        with cpu() as share:
            await asyncio.sleep(1.5)
            assert share() < 0.05
