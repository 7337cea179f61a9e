"""The watches, on real directories and with real git: what is noticed, what is not, and what it costs."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from asyncinotify import Inotify, Mask, Watch

from pipeline import gitdir
from pipeline.catalog import Target
from pipeline.runtime.log import setup
from tests.gitkit import add_worktree, commit, git, make_repo, write
from workers import trees, watch
from workers.trees import NO_ROOM, STUCK, News, Trees
from workers.watch import QUIET_STEP_MS, GitWatch, Hit, roots

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
        self.unseen: list[set[str]] = []

    def take(self, hits: set[Hit]) -> None:
        self.hits += hits

    def miss(self, workspaces: set[str]) -> None:
        self.unseen.append(workspaces)

    def of(self, workspace: str) -> set[str]:
        return {hit.kind for hit in self.hits if hit.workspace == workspace}


@asynccontextmanager
async def watching(*targets: Target) -> AsyncIterator[tuple[GitWatch, Seen]]:
    seen = Seen()
    it = GitWatch(seen.take, seen.miss, LOG)
    running = asyncio.create_task(it.run())
    try:
        await it.follow(targets)
        assert it.degraded == ""
        yield it, seen
    finally:
        running.cancel()
        it.close()


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
    async with watching(target(a), target(b)) as (it, seen):
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
        assert it.degraded == ""


async def test_worktrees_that_come_are_watched_and_those_that_go_are_not(tmp_path: Path) -> None:
    _, a, b = three(tmp_path)
    async with watching(target(a)) as (it, seen):
        before = it.watches
        await it.follow([target(a), target(b)])
        assert it.watches == before + 1
        git(b, "reset", "-q", "--soft", "HEAD")
        commit(b, {"x.txt": "x"})
        await until(lambda: "index" in seen.of("b"))
        await it.follow([target(b)])
        await settle(seen)
        commit(a, {"x.txt": "x"})
        await asyncio.sleep(0.4)
        assert seen.of("a") == set()
        await it.follow([])
        assert it.watches == 0


async def test_a_watch_that_ends_says_so_and_comes_back(tmp_path: Path) -> None:
    """The notifier gives up on a name that is no UTF-8; what it missed meanwhile nobody knows."""
    repo, a, _ = three(tmp_path)
    async with watching(target(a)) as (it, seen):
        stray = os.fsencode(repo / ".git") + b"/\xff\xfe"
        os.close(os.open(stray, os.O_CREAT | os.O_WRONLY, 0o600))
        await until(lambda: it.degraded)
        assert "ended" in it.degraded
        os.unlink(stray)
        git(a, "switch", "-q", "-c", "team/other")
        await until(lambda: it.degraded == "", "it comes back")
        await until(lambda: seen.unseen == [{"a"}] * 3, "told when it began, when it ended, and when it was back")
        await settle(seen)
        git(repo, "update-ref", "refs/heads/team/other", git(a, "commit-tree", "-m", "x", "HEAD^{tree}"))
        await until(lambda: "ref" in seen.of("a"), "the branch that it switched to meanwhile is known")
        commit(a, {"x.txt": "x"})
        await until(lambda: "index" in seen.of("a"))


async def test_a_git_directory_that_is_missing_does_not_keep_the_others_from_being_watched(tmp_path: Path) -> None:
    _, a, b = three(tmp_path)
    gone = target(b)
    git(a, "worktree", "remove", "--force", b)
    async with watching(target(a), gone) as (_, seen):
        commit(a, {"x.txt": "x"})
        await until(lambda: "index" in seen.of("a"))


async def test_a_repository_that_hangs_is_left_out_until_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a mount whose server is gone. What hangs here is the question for the directories to watch."""
    good, bad = (make_repo(tmp_path / name, {"a.txt": "x"}) for name in ("good", "bad"))
    answers, ask = threading.Event(), watch.roots

    def hang(targets: list[Target]) -> list[str]:
        if any(each.workspace == "bad" for each in targets):
            answers.wait(20)
        return ask(targets)

    monkeypatch.setattr(watch, "roots", hang)
    monkeypatch.setattr(watch, "PATIENCE_S", 1.0)
    both = [target(good), target(bad)]
    async with watching(*both) as (it, seen):
        assert it.stuck == {"bad"}
        commit(good, {"a.txt": "y"})
        await until(lambda: "index" in seen.of("good"))
        began = time.monotonic()
        await it.follow(both)
        assert time.monotonic() - began < 0.9, "nobody waits for it twice"
        assert it.stuck == {"bad"}
        answers.set()
        await until(lambda: not any(thread.name == "answering" for thread in threading.enumerate()))
        commit(good, {"a.txt": "z"})  # whatever is asked next
        await until(lambda: {"bad"} in seen.unseen, "it is watched")
        assert it.stuck == set()
        commit(bad, {"a.txt": "y"})
        await until(lambda: "index" in seen.of("bad"))


async def test_who_is_watched_from_now_on_is_told_once(tmp_path: Path) -> None:
    _, a, b = three(tmp_path)
    async with watching(target(a)) as (it, seen):
        assert seen.unseen == [{"a"}]
        await it.follow([target(a), target(b)])
        await it.follow([target(a), target(b)])
        assert seen.unseen == [{"a"}, {"b"}]


async def test_rules_outside_of_the_tree_concern_all_that_share_them(tmp_path: Path) -> None:
    repo, a, b = three(tmp_path)
    shutil.rmtree(repo / ".git/info", ignore_errors=True)
    async with watching(target(a), target(b)) as (_, seen):
        (repo / ".git/info").mkdir()
        await until(lambda: "rules" in seen.of("a") & seen.of("b"))
        await until(lambda: str(repo / ".git/info") in roots([target(a)]))
        await settle(seen)
        (repo / ".git/info/exclude").write_text("*.log\n")
        await until(lambda: "rules" in seen.of("a") & seen.of("b"))


async def test_the_watch_is_brisk_after_signs_of_life_and_slow_after_a_quiet_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo(tmp_path / "r", {"a.txt": "x"})
    async with watching(target(repo)) as (it, seen):
        brisk = it.step_ms()
        monkeypatch.setattr(watch, "STEPS", ((0.0, 10),))
        assert brisk < it.step_ms() == QUIET_STEP_MS
        await asyncio.sleep(2 * QUIET_STEP_MS / 1000)
        commit(repo, {"a.txt": "y"})
        await until(lambda: "index" in seen.of("r"), "a slow watch misses nothing")


# ── trees ────────────────────────────────────────────────────────────────────────────────────────


class Edits:
    """Who is told of trees, and what."""

    def __init__(self, budget: int = 1000) -> None:
        self.told: list[tuple[str, News]] = []
        self.watched: list[tuple[str, bool, str]] = []
        self.trees = Trees(budget, self, LOG)

    def edited(self, workspace: str, news: News) -> None:
        self.told.append((workspace, news))

    def watching(self, workspace: str, watched: bool, why: str) -> None:
        self.watched.append((workspace, watched, why))

    def paths(self, workspace: str) -> set[bytes]:
        return {path for name, news in self.told if name == workspace for path in news.paths}

    def whys(self, workspace: str) -> set[str]:
        """Why everything has to be looked at."""
        told = {news.full for name, news in self.told if name == workspace and news.full}
        return told | {why for name, _, why in self.watched if name == workspace and why}

    async def opened(self, *paths: Path) -> None:
        self.trees.follow([target(path) for path in paths])
        await until(lambda: all(self.trees.watched(path.name) for path in paths), "all are watched")
        await self.settle()

    async def settle(self) -> None:
        known = -1
        while known != len(self.told) + len(self.watched):
            known = len(self.told) + len(self.watched)
            await asyncio.sleep(0.1)
        self.told.clear()
        self.watched.clear()

    async def names(self, workspace: str, *paths: bytes) -> None:
        """Exactly these paths are told, and nothing that would need more than a look at them."""
        await until(lambda: self.paths(workspace) >= set(paths), f"{paths} are named")
        assert self.paths(workspace) == set(paths)
        assert self.whys(workspace) == set()
        await self.settle()

    async def widens(self, workspace: str, why: str) -> None:
        await until(lambda: why in self.whys(workspace), f"everything in {workspace} is to be looked at: {why}")
        await self.settle()

    async def ignores(self, workspace: str) -> None:
        await asyncio.sleep(0.2)
        assert not [news for name, news in self.told if name == workspace]


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


async def test_every_edit_is_told_with_its_path(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "r", {"a.txt": "one\n", "src/b.txt": "two\n"})
    async with editing() as it:
        await it.opened(repo)
        assert it.trees.watches == 2
        write(repo, {"a.txt": "edited\n"})
        await it.names("r", b"a.txt")
        (repo / "src/b.txt").chmod(0o755)
        await it.names("r", b"src/b.txt")
        (repo / "src/b.txt").rename(repo / "src/c.txt")
        await it.names("r", b"src/b.txt", b"src/c.txt")
        (repo / "src/c.txt").unlink()
        await it.names("r", b"src/c.txt")
        os.close(os.open(os.fsencode(repo) + b"/src/\xff\xfe", os.O_CREAT | os.O_WRONLY))
        await it.names("r", b"src/\xff\xfe")
        (repo / "src/\udcff\udcfe").unlink()
        (repo / "link").symlink_to("/etc")
        await it.names("r", b"src/\xff\xfe", b"link")
        assert it.trees.watches == 2, "what a link points to is not part of the tree"
        git(repo, "commit", "-q", "--allow-empty", "-m", "x")
        await it.ignores("r")


async def test_files_in_a_new_directory_are_named_one_by_one(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "r", {"a.txt": "one\n", ".gitignore": "*.log\n"})
    async with editing() as it:
        await it.opened(repo)
        write(repo, {"new/er/x.txt": "x", "new/er/noise.log": "x", "new/y.txt": "y"})
        await it.names("r", b"new/er/x.txt", b"new/y.txt")
        (repo / "empty").mkdir()
        await it.ignores("r")
        write(tmp_path, {"elsewhere/z.txt": "z"})
        (tmp_path / "elsewhere").rename(repo / "moved-in")
        await it.names("r", b"moved-in/z.txt")
        shutil.rmtree(repo / "new")
        await it.names("r", b"new/er/x.txt", b"new/y.txt")


@pytest.mark.parametrize(
    ("why", "act"),
    [
        ("directory renamed", lambda repo: (repo / "src").rename(repo / "other")),
        ("ignore file", lambda repo: (repo / ".gitignore").write_text("x\n")),
        ("ignore file", lambda repo: write(repo, {"fresh/.gitignore": "x\n"})),
        ("attributes file", lambda repo: (repo / "src/.gitattributes").write_text("* text\n")),
        ("attributes file", lambda repo: write(repo, {"fresh/.gitattributes": "* text\n"})),
        ("permissions of a directory", lambda repo: (repo / "src").chmod(0o711)),
        ("permissions of a directory", lambda repo: repo.chmod(0o711)),
        ("a repository inside", lambda repo: git(repo / "src", "init", "-q")),
        ("a repository inside", lambda repo: make_repo(repo / "lib", {"x": "x"})),
        ("a directory that is not watched", lambda repo: write(repo, {"node_modules/x.js": "x"})),
        ("its directory was removed", shutil.rmtree),
        ("its directory was moved", lambda repo: repo.rename(repo.parent / "away")),
    ],
)
async def test_what_no_list_of_paths_covers_is_told_with_its_reason(
    tmp_path: Path, why: str, act: Callable[[Path], object]
) -> None:
    repo = make_repo(tmp_path / "r", {"a.txt": "one\n", "src/b.txt": "two\n"})
    async with editing() as it:
        await it.opened(repo)
        act(repo)
        await it.widens("r", why)


async def test_a_directory_that_went_before_it_could_be_listed_is_told_too(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "r", {"a.txt": "one\n"})
    async with editing() as it:
        await it.opened(repo)
        write(repo, {"brief/x.txt": "x"})
        shutil.rmtree(repo / "brief")
        await it.widens("r", "directory removed")


async def test_directories_that_are_made_in_a_hurry_are_all_watched(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "r", {"a.txt": "one\n"})
    async with editing() as it:
        await it.opened(repo)
        deep = "/".join(f"d{n}" for n in range(20))
        write(repo, {f"{deep}/f{n}.txt": "x" for n in range(50)})
        await until(lambda: it.trees.watches == 21)
        await it.settle()
        write(repo, {f"{deep}/f49.txt": "y"})
        await it.names("r", f"{deep}/f49.txt".encode())
        (repo / "d0").rename(repo / "moved")
        await until(lambda: it.trees.watches == 21, "the same number under new names")
        await it.settle()
        moved = f"{deep.replace('d0', 'moved', 1)}/f1.txt"
        write(repo, {moved: "z"})
        await it.names("r", moved.encode())
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
        await it.names("r", b"dist/kept.js")
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
        await until(lambda: it.paths("inner") == {b"a.txt"})
        assert it.paths("r") == set()


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
        await it.names(left_out.name, b"d0/x.txt")
        assert it.trees.unwatched() == {NO_ROOM: 1}
        it.trees.touch(others[1].name)
        await asyncio.sleep(0.2)
        assert not it.trees.watched(others[1].name), "no active one is driven out"
        it.trees.follow([target(others[1])])
        await until(lambda: it.trees.watched(others[1].name))
        await until(lambda: it.trees.degraded == "")
        assert it.trees.watches == 5
        assert it.trees.unwatched() == {}


async def test_a_larger_budget_lets_in_who_waited_for_it(tmp_path: Path) -> None:
    repos = [make_repo(tmp_path / name, {"d/x.txt": "x"}) for name in ("a", "b")]
    async with editing(budget=2) as it:
        it.trees.follow([target(repo) for repo in repos])
        await until(lambda: it.trees.open == 1 and it.trees.degraded)
        it.trees.budget = 4
        await until(lambda: it.trees.open == 2 and not it.trees.degraded)
        it.trees.touch("a")
        it.trees.budget = 3
        await until(lambda: it.trees.open == 1 and it.trees.degraded, "a smaller one is kept to")
        assert it.trees.watched("a")


async def test_the_kernels_limit_is_met_named_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's answer is played here: its limit is one for all of the machine."""
    room, add = 6, Inotify.add_watch

    def limited(inotify: Inotify, path: bytes, mask: Mask) -> Watch:
        if it.trees.watches >= room:
            raise OSError(errno.ENOSPC, "no space left on device")
        return add(inotify, path, mask)

    monkeypatch.setattr(Inotify, "add_watch", limited)
    monkeypatch.setattr("workers.trees.RETRY_S", 0.5)
    repos = [make_repo(tmp_path / name, {f"d{n}/x.txt": "x" for n in range(3)}) for name in ("a", "b")]
    async with editing() as it:
        it.trees.follow([target(repo) for repo in repos])
        await until(lambda: it.trees.open == 1 and "max_user_watches" in it.trees.degraded)
        await until(lambda: sum("max_user_watches" in why for why in it.trees.unwatched()) == 1)
        (left_out,) = [repo for repo in repos if not it.trees.watched(repo.name)]
        it.trees.touch(left_out.name)
        await until(lambda: it.trees.watched(left_out.name), "the active one gets what there is")
        room = 100
        await until(lambda: it.trees.open == 2 and not it.trees.degraded, "there is room again")


async def test_a_directory_that_hangs_holds_up_no_other_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a mount whose server is gone. What hangs here is a listing."""
    answers, list_ = threading.Event(), trees._children

    def children(path: bytes) -> dict[bytes, bool]:
        if b"/dead/" in path:
            answers.wait(20)
        return list_(path)

    monkeypatch.setattr(trees, "_children", children)
    monkeypatch.setattr(trees, "PATIENCE_S", 0.5)
    dead = [make_repo(tmp_path / "dead" / name, {"d/x.txt": "x"}) for name in ("a", "b", "c")]
    good = make_repo(tmp_path / "z", {"d/x.txt": "x"})
    targets = [target(repo) for repo in [*dead, good]]
    async with editing() as it:
        it.trees.follow(targets)
        await until(lambda: it.trees.watched("z"), "the good one is watched")
        assert it.trees.unwatched() == {STUCK: 3}
        assert sum(thread.name == "_watch_below" for thread in threading.enumerate()) == 1, "one waits for all three"
        await it.settle()
        write(good, {"d/x.txt": "y"})
        await it.names("z", b"d/x.txt")
        answers.set()
        await until(lambda: not any(thread.name == "_watch_below" for thread in threading.enumerate()))
        assert it.trees.watches == 2, "a thread that nobody waits for sets no watch any more"
        it.trees.follow(targets)
        await until(lambda: it.trees.open == 4)


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
        overflowed = "the watch overflowed"
        await until(lambda: overflowed in it.whys("a") & it.whys("b"), "both are looked at again")
        assert ("a", False, "") in it.watched, "until then, none is said to be watched"
        await it.settle()
        write(b, {"x.txt": "y"})
        await it.names("b", b"x.txt")


async def test_a_tree_that_vanishes_is_told_and_one_that_comes_back_is_watched_again(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "main", {"a.txt": "x"})
    path = add_worktree(repo, tmp_path / "w", "w")
    async with editing() as it:
        await it.opened(path)
        git(repo, "worktree", "remove", "--force", path)
        await it.widens("w", "its directory was removed")
        await until(lambda: it.trees.watches == 0)
        assert it.trees.unwatched() == {"its directory is gone": 1}
        git(repo, "worktree", "add", "-q", path, "w")
        await it.opened(path)
        write(path, {"a.txt": "y"})
        await it.names("w", b"a.txt")


async def test_a_worktree_that_is_moved_is_watched_at_its_new_place(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "main", {"a.txt": "x"})
    path = add_worktree(repo, tmp_path / "w", "w")
    async with editing() as it:
        await it.opened(path)
        git(repo, "worktree", "move", path, tmp_path / "v")
        await it.widens("w", "its directory was moved")
        await it.opened(tmp_path / "v")
        write(tmp_path / "v", {"a.txt": "y"})
        await it.names("v", b"a.txt")
        assert it.trees.watches == 1


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
