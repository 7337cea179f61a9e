"""A look at single paths gives git's own numbers, or is a full one with a reason; and it is cheap (G1, G2, G6)."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from pipeline import bus, wire
from pipeline.gitdir import resolve
from pipeline.runtime.process import Process
from pipeline.runtime.settings import Settings
from pipeline.wire import encode
from tests.corners import CHANGES, FILES, TEXT, Change, clash
from tests.gitkit import add_worktree, commit, git, make_repo, write
from tests.oracle import changed, expected, job_for, snapshot
from workers import look as engine
from workers.files import SETTLED_NS
from workers.git import GitError, Looker, Seen
from workers.numstat import Blob
from workers.objects import Objects
from workers.worker import Worker

MANY = 1000
WORKTREES, LOOKS = 8, 6
BLOCKS_EACH = 20  # a lineage by the commit is remembered, which is bounded

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("closed_user_config")]


def settle() -> None:
    """What was written in the very moment of a look counts as changed at the next one: let that moment pass."""
    time.sleep(2 * SETTLED_NS / 1e9)


class Watched:
    """A worktree with a watch that names each path, and both looks at it compared with git's own words."""

    def __init__(self, path: Path, root: Path, base: str = "main") -> None:
        self.path, self.root, self.base = path, root, base
        settle()
        self.looker = Looker(root / "cache", young_s=0)
        self.before = snapshot(path)
        self.looker.look(job_for(path, base, why="first sight"))

    def look(self, *more: bytes, check: bool = True) -> Seen:
        """A scoped look at what changed since the last one."""
        now = snapshot(self.path)
        paths = (*changed(self.before, now), *more)
        self.before = now
        seen = self.looker.look(job_for(self.path, self.base, full=False, why="tree", paths=paths))
        if check:
            assert replace(seen.git, operation=None) == expected(self.path, self.root / "scratch", self.base), seen
        assert seen.drift == 0
        return seen

    def check(self) -> Seen:
        """A full look, which must find nothing that was not known."""
        seen = self.looker.look(job_for(self.path, self.base, why="cadence"))
        assert replace(seen.git, operation=None) == expected(self.path, self.root / "scratch", self.base)
        assert seen.drift == 0
        return seen


@pytest.fixture
def worktree(tmp_path: Path, closed_user_config: None) -> Path:
    """A linked worktree, one commit ahead of main and one behind it."""
    repo = make_repo(tmp_path / "repo", FILES)
    linked = add_worktree(repo, tmp_path / "linked", "feature")
    commit(linked, {"b.txt": "one\ntwo\nthree\n"})
    commit(repo, {"elsewhere.txt": "x\n"})
    return linked


@pytest.fixture
def watched(worktree: Path, tmp_path: Path) -> Watched:
    return Watched(worktree, tmp_path)


@pytest.fixture
def rested(watched: Watched) -> Watched:
    """Nothing has changed in the git directories for a while, so that all that a look asks about is asked at once."""
    for content in (TEXT + "last\n", TEXT):
        write(watched.path, {"a.txt": content})
        settle()
        assert watched.look().scoped
    (known,) = watched.looker._known.values()
    assert known.still is not None
    assert known.still.same()
    return watched


# ── every corner ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_number_is_git_s_own(watched: Watched, change: Change) -> None:
    """Before and after the corner, and with a file edited, made and deleted in it."""
    change(watched.path)
    watched.look()
    write(watched.path, {"a.txt/in.txt" if (watched.path / "a.txt").is_dir() else "a.txt": TEXT + "last\n"})
    watched.look()
    write(watched.path, {"fresh.txt": "1\n2\n"})
    watched.look()
    (watched.path / "fresh.txt").unlink()
    watched.look()
    watched.check()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_after_a_rest_every_number_is_git_s_own_too(rested: Watched, change: Change) -> None:
    change(rested.path)
    rested.look()
    rested.check()


@pytest.mark.parametrize(
    "name",
    [
        "edit",
        "undo what was committed",
        "delete",
        "rename onto an untracked name",
        "untracked, nested",
        "executable",
        "symlink for a file",
        "directory for a file",
        "file for a directory",
        "only touched",
        "edit and stage",
        "commit",
        "rename and stage",
        "binary edited",
        "ignored",
        "odd names",
        "split index",
        "case-only rename",
    ],
)
def test_what_happens_every_day_needs_no_full_look(watched: Watched, name: str) -> None:
    CHANGES[name](watched.path)
    assert watched.look().scoped


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ignored since just now", "ignore rules"),
        ("binary by .gitattributes", "attributes"),
        ("ignored by info/exclude", "settings"),
        ("CRLF by configuration", "settings"),
        ("merge conflict", "conflicts"),
        ("nested repository", "nested repository"),
        ("intent to add", "index format"),
        ("sparse checkout", "settings"),
    ],
)
def test_what_single_paths_do_not_tell_is_a_full_look_with_its_reason(watched: Watched, name: str, why: str) -> None:
    CHANGES[name](watched.path)
    seen = watched.look()
    assert (seen.scoped, seen.why) == (False, why)


def test_names_that_are_not_utf8_count_like_any_other(watched: Watched) -> None:
    for name in (b"caf\xe9", b"dir/\xff\xfe"):
        Path(os.fsdecode(os.fsencode(watched.path) + b"/" + name)).write_text("1\n2\n")
    assert watched.look().scoped
    commit(watched.path)
    assert watched.look().scoped
    Path(os.fsdecode(os.fsencode(watched.path) + b"/caf\xe9")).unlink()
    seen = watched.look()
    assert (seen.scoped, seen.git.unstaged) == (True, 1)


def test_before_the_first_commit_everything_is_new(tmp_path: Path) -> None:
    watched = Watched(make_repo(tmp_path / "new"), tmp_path)
    write(watched.path, {"a": "1\n", "b": "2\n"})
    assert watched.look().scoped
    git(watched.path, "add", "a")
    seen = watched.look()
    assert (seen.scoped, seen.git.files, seen.git.staged, seen.git.untracked) == (True, 2, 1, 1)
    commit(watched.path)
    assert watched.look().why == "new merge base"


def test_without_a_base_it_is_measured_against_head_and_a_commit_is_a_new_start(worktree: Path, tmp_path: Path) -> None:
    watched = Watched(worktree, tmp_path, base="")
    write(worktree, {"a.txt": "x\n"})
    seen = watched.look()
    assert (seen.scoped, seen.git.files, seen.git.ahead) == (True, 1, None)
    git(worktree, "commit", "-q", "-a", "-m", "work")
    seen = watched.look()
    assert (seen.scoped, seen.why, seen.git.files) == (False, "new merge base", 0)


def test_a_shallow_and_a_partial_clone_have_numbers(worktree: Path, tmp_path: Path) -> None:
    git(worktree, "config", "uploadpack.allowFilter", "true")
    for number, flag in enumerate(("--depth=2", "--filter=blob:none")):
        clone = tmp_path / f"clone{number}"
        git(tmp_path, "clone", "-q", flag, "--no-single-branch", f"file://{worktree}", clone)
        watched = Watched(clone, tmp_path, base="feature")
        write(clone, {"b.txt": "x\n", "n.txt": "1\n"})
        assert watched.look().scoped
        commit(clone, {"a.txt": "x\n"})
        watched.look()


def test_an_object_that_is_missing_is_an_error_with_a_name_and_never_a_guess(watched: Watched) -> None:
    blob = git(watched.path, "rev-parse", "HEAD:a.txt")
    path = resolve(watched.path).common_dir / "objects" / blob[:2] / blob[2:]
    content = path.read_bytes()
    path.unlink()
    write(watched.path, {"a.txt": "x\n"})
    with pytest.raises(GitError, match="lacks objects"):
        watched.look()
    path.write_bytes(content)
    assert watched.look().why == "no table"


def test_a_repository_of_sha256_has_full_looks_with_that_reason(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    git(repo, "init", "-q", "-b", "main", "--object-format=sha256")
    commit(repo, {"a": "1\n"})
    watched = Watched(repo, tmp_path)
    write(repo, {"b": "2\n"})
    seen = watched.look(check=False)
    assert (seen.scoped, seen.why, seen.git.files, seen.git.insertions) == (False, "sha256", 1, 1)


# ── what a change costs ──────────────────────────────────────────────────────────────────────────


def test_an_edit_starts_no_process_at_all(watched: Watched) -> None:
    write(watched.path, {"a.txt": "x\n"})
    watched.look()  # the first one asks which files git was told not to look at
    for number in range(3):
        write(watched.path, {"a.txt": f"{number}\n", "b.txt": f"{number}\n"})
        seen = watched.look()
        assert (seen.scoped, seen.spawned) == (True, 0)


def test_a_base_branch_that_moves_changes_what_is_ahead_and_behind_and_no_line(watched: Watched) -> None:
    for number in range(3):
        commit(watched.root / "repo", {"elsewhere.txt": f"{number}\n"})
        seen = watched.look()
        assert (seen.scoped, seen.spawned, seen.git.behind) == (True, 0, 2 + number)


def test_worktrees_of_one_repository_share_what_is_known_of_its_history(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = add_worktree(watched.root / "repo", watched.root / "other", "other", "feature")
    settle()
    watched.looker.look(job_for(other))
    asked = []
    really = engine.Objects.lineage
    monkeypatch.setattr(engine.Objects, "lineage", lambda self, *two: (asked.append(two), really(self, *two))[1])
    commit(watched.root / "repo", {"elsewhere.txt": "y\n"})
    for path in (watched.path, other):
        seen = watched.looker.look(job_for(path, full=False, why="refs"))
        assert (seen.scoped, seen.git.behind) == (True, 2)
    assert len(asked) == 1


def test_a_commit_keeps_the_lines_and_costs_two_processes(watched: Watched) -> None:
    write(watched.path, {"a.txt": "x\n"})
    before = watched.look().git
    git(watched.path, "commit", "-q", "-a", "-m", "work")
    seen = watched.look()
    assert (seen.scoped, seen.spawned) == (True, 2)
    assert (seen.git.insertions, seen.git.deletions, seen.git.unstaged) == (before.insertions, before.deletions, 0)


def test_several_merge_bases_are_left_to_git(watched: Watched) -> None:
    repo, linked = watched.root / "repo", watched.path
    git(repo, "branch", "was-main")
    git(repo, "merge", "-q", "--no-edit", "feature")
    git(linked, "merge", "-q", "--no-edit", "was-main")
    assert len(git(linked, "merge-base", "--all", "main", "HEAD").splitlines()) == 2
    assert watched.look().why == "new merge base"
    commit(linked, {"n.txt": "1\n"})
    watched.look()


def test_more_paths_than_are_worth_it_are_a_full_look(watched: Watched) -> None:
    write(watched.path, {f"new/{number}.txt": "1\n" for number in range(60)})
    assert watched.look().why == "too many paths"


def test_an_index_that_only_git_status_refreshed_is_nothing_new(watched: Watched) -> None:
    os.utime(watched.path / "a.txt", (1, 1))
    watched.look()
    git(watched.path, "update-index", "-q", "--refresh")
    assert watched.look().scoped


# ── renames ──────────────────────────────────────────────────────────────────────────────────────


def test_a_rename_that_becomes_too_unlike_and_like_again_is_git_s_own_each_time(watched: Watched) -> None:
    (watched.path / "a.txt").rename(watched.path / "moved.txt")
    assert watched.look().git.files == 2
    for content in ("unlike\n" * 30, TEXT + "more\n", "small\n", TEXT):
        write(watched.path, {"moved.txt": content})
        assert watched.look().scoped
    (watched.path / "moved.txt").rename(watched.path / "a.txt")
    seen = watched.look()
    assert (seen.scoped, seen.git.files) == (True, 1)


def test_a_second_file_of_the_same_name_takes_the_first_one_its_advantage(watched: Watched) -> None:
    """git pairs equal names first, but only where the name is the only one."""
    write(watched.path, {"x/a.txt": TEXT[:160], "far.txt": TEXT[:200]})
    (watched.path / "a.txt").unlink()
    watched.look()
    write(watched.path, {"y/a.txt": "another\n"})
    watched.look()
    (watched.path / "y/a.txt").unlink()
    assert watched.look().scoped


def test_a_new_file_that_cannot_be_a_renamed_one_starts_no_process(watched: Watched) -> None:
    (watched.path / "dir/d.txt").unlink()
    write(watched.path, {"n.txt": "small\n"})
    watched.look()
    write(watched.path, {"n.txt": "also small\n"})
    seen = watched.look()
    assert (seen.scoped, seen.spawned) == (True, 0)


# ── filters ──────────────────────────────────────────────────────────────────────────────────────


def test_files_with_a_filter_count_without_lines_and_the_look_says_so(worktree: Path, tmp_path: Path) -> None:
    git(worktree, "config", "filter.upper.clean", "tr a-z A-Z")
    git(worktree, "config", "filter.upper.smudge", "tr A-Z a-z")
    commit(worktree, {".gitattributes": "*.big filter=upper\n", "one.big": "a\nb\n", "two.big": "c\n"})
    index = resolve(worktree).git_dir / "index"
    os.utime(index, ns=(os.stat(worktree / "two.big").st_mtime_ns,) * 2)  # so that git would look inside
    watched = Watched(worktree, tmp_path)
    clean = watched.looker.look(job_for(worktree))
    assert (clean.git.unstaged, clean.note) == (0, "")
    write(worktree, {"one.big": "a\nb\nc\n", "three.big": "d\n", "a.txt": "x\n"})
    seen = watched.look(check=False)
    assert (seen.scoped, seen.why) == (False, "filter")
    assert seen.note == "filtered: 2 paths have a filter, which is never run"
    assert (seen.git.unstaged, seen.git.untracked) == (2, 1)
    assert seen.git.files == (clean.git.files or 0) + 2
    assert (seen.git.insertions, seen.git.deletions) == (
        (clean.git.insertions or 0) + 1 - 2,
        (clean.git.deletions or 0) + 40,
    )
    write(worktree, {"a.txt": "x\ny\n"})
    other = watched.look(check=False)
    assert (other.scoped, other.note, other.git.insertions) == (True, seen.note, (seen.git.insertions or 0) + 1)


# ── drift ────────────────────────────────────────────────────────────────────────────────────────


def test_a_change_that_nobody_told_is_found_by_the_cadence_and_counted(watched: Watched) -> None:
    write(watched.path, {"a.txt": "x\n", "n.txt": "1\n", "told.txt": "1\n"})
    watched.looker.look(job_for(watched.path, full=False, paths=(b"told.txt",)))
    assert watched.looker.look(job_for(watched.path, why="overflow")).drift == 0, "whatever changed was to be expected"
    write(watched.path, {"a.txt": "y\nz\n"})
    (watched.path / "n.txt").unlink()
    seen = watched.looker.look(job_for(watched.path, why="cadence"))
    assert (seen.drift, seen.scoped) == (2, False)
    assert watched.check().drift == 0


def test_a_change_too_young_to_have_been_told_is_no_drift(worktree: Path, tmp_path: Path) -> None:
    looker = Looker(tmp_path / "cache")
    looker.look(job_for(worktree))
    write(worktree, {"a.txt": "x\n"})
    assert looker.look(job_for(worktree, why="cadence")).drift == 0


# ── what is remembered ───────────────────────────────────────────────────────────────────────────


def test_tables_are_bounded_and_the_longest_unused_goes_first(worktree: Path, tmp_path: Path) -> None:
    others = [add_worktree(tmp_path / "repo", tmp_path / f"w{number}", f"w{number}") for number in range(3)]
    settle()
    looker = Looker(tmp_path / "cache", budget=40_000)
    for path in others:
        looker.look(job_for(path))
    assert looker.tables == 2
    assert looker.weight <= 40_000
    assert looker.look(job_for(others[2], full=False)).scoped
    assert looker.look(job_for(others[0], full=False)).why == "no table"
    assert looker.look(job_for(others[2], full=False)).scoped


def test_what_is_looked_up_in_a_commit_is_found_whatever_stands_beside_it(tmp_path: Path) -> None:
    names = ["a", "a-b", "a.b", "a0", "ab/c", "ab-", "ab.d/e", "ab0", "b", "z/y/x"]
    repo = make_repo(tmp_path / "repo", {name: name for name in names})
    objects = Objects(repo / ".git", {})
    view = objects.at(git(repo, "rev-parse", "HEAD"))
    told = [line.split() for line in git(repo, "ls-tree", "-r", "-t", "HEAD").splitlines()]
    assert len(told) == len(names) + 4
    known = {name: Blob(int(mode, 8), id_) for mode, _, id_, name in told}
    for name in known:
        for asked in (name, name + "0", name + "-", name[:-1] + "_", name + "/x", "0", "zz"):
            assert view.get(asked.encode()) == known.get(asked), asked


def test_looking_up_names_in_a_commit_keeps_none_of_them_in_memory(worktree: Path) -> None:
    """Counted in blocks of memory: tables that are bounded cannot bound what a library keeps for ever."""
    view = Objects(resolve(worktree).common_dir, {}).at(git(worktree, "rev-parse", "HEAD"))

    def look_up(count: int) -> int:
        for number in range(count):
            view._look_up(b"dir")
            view._look_up(b"none %d" % number)
        gc.collect()
        return sys.getallocatedblocks()

    before = look_up(10)
    assert look_up(MANY) - before < MANY // 10


def test_worktrees_that_come_and_go_leave_nothing_in_a_worker(tmp_path: Path) -> None:
    """Blocks of memory that Python holds, full and scoped looks, commits among them."""
    repo = make_repo(tmp_path / "repo", FILES)
    looker = Looker(tmp_path / "cache")
    held = []
    for number in range(3 * WORKTREES):
        path = add_worktree(repo, tmp_path / f"w{number}", f"w{number}")
        for step in range(LOOKS):
            write(path, {f"dir/new{step}.txt": f"{number}\n"})
            looker.look(job_for(path, full=not step, paths=(b"dir/new%d.txt" % step,)))
        commit(path, {})
        looker.look(job_for(path, full=False))
        git(repo, "worktree", "remove", "--force", path)
        if number % WORKTREES == WORKTREES - 1:
            looker._prune_at = 0.0
            looker.look(job_for(repo))
            gc.collect()
            held.append(sys.getallocatedblocks())
    assert (len(looker._known), len(looker._shadows), len(looker.configs._parsed)) == (1, 1, 1)
    assert held[2] - held[1] < BLOCKS_EACH * WORKTREES, held


def test_another_base_is_another_table(watched: Watched) -> None:
    seen = watched.looker.look(job_for(watched.path, "feature", full=False))
    assert (seen.scoped, seen.why, seen.git.ahead) == (False, "base changed", 0)


def test_libgit2_is_loaded_by_the_first_scoped_look_and_not_before(worktree: Path, tmp_path: Path) -> None:
    settle()
    script = (
        "import sys; from pathlib import Path\n"
        "from pipeline.wire import decode_job; from workers.git import Looker\n"
        "looker = Looker(Path(sys.argv[2]))\n"
        "for job in sys.argv[3:]:\n"
        "    seen = looker.look(decode_job(bytes.fromhex(job)))\n"
        "    print(seen.scoped, 'pygit2' in sys.modules)\n"
    )
    jobs = [encode(job_for(worktree, full=full)).hex() for full in (True, False)]
    done = subprocess.run(
        [sys.executable, "-c", script, "", str(tmp_path / "cache"), *jobs], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False False\nTrue True\n"


# ── hostile ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [".gitignore", "dir/.gitignore", ".gitattributes", "dir/.gitattributes"])
def test_a_fifo_in_the_place_of_a_rule_file_does_not_hold_a_scoped_look_up(watched: Watched, name: str) -> None:
    (watched.path / name).unlink(missing_ok=True)
    os.mkfifo(watched.path / name)
    write(watched.path, {"dir/c.txt": "changed\n", "dir/new.txt": "1\n"})
    job = job_for(watched.path, full=False, paths=(b"dir/c.txt",), deadline_ms=300)
    with pytest.raises(GitError) as caught:
        watched.looker.look(job)
    assert caught.value.reason == "timeout"


def test_nothing_is_read_through_a_symbolic_link_or_beyond_the_worktree(watched: Watched) -> None:
    secret = watched.root / "secret"
    secret.mkdir()
    write(secret, {"c.txt": "1\n" * 500})
    shutil.rmtree(watched.path / "dir")
    (watched.path / "dir").symlink_to(secret)
    seen = watched.look(b"dir/c.txt", b"../secret/c.txt", b"/etc/passwd", b".git/HEAD", b"", b"dir/../../secret/c.txt")
    assert seen.scoped
    assert (seen.git.insertions or 0) < 500


def test_a_file_that_is_no_regular_one_does_not_hold_a_scoped_look_up(watched: Watched) -> None:
    (watched.path / "a.txt").unlink()
    os.mkfifo(watched.path / "a.txt")
    os.mkfifo(watched.path / "fifo")
    with pytest.raises(GitError) as caught:
        watched.look()
    assert caught.value.reason == "special_file"
    (watched.path / "a.txt").unlink()
    watched.look()
    assert watched.look().scoped


def test_a_fifo_in_the_place_of_an_object_does_not_hold_a_scoped_look_up(watched: Watched) -> None:
    blob = git(watched.path, "rev-parse", "HEAD:a.txt")
    path = resolve(watched.path).common_dir / "objects" / blob[:2] / blob[2:]
    path.unlink()
    os.mkfifo(path)
    write(watched.path, {"a.txt": "x\n"})
    with pytest.raises(GitError):
        watched.looker.look(job_for(watched.path, full=False, paths=(b"a.txt",), deadline_ms=300))


def test_a_path_of_any_depth_is_counted(watched: Watched) -> None:
    deep = "d/" * 900
    write(watched.path, {deep + "n.txt": "1\n", "shallow.txt": "1\n"})
    seen = watched.look()
    assert (seen.scoped, seen.why, seen.git.untracked) == (False, "deep path", 2)


@pytest.mark.parametrize("kind", ["commit", "tree"])
def test_a_head_whose_objects_are_not_what_they_should_be_is_an_error_and_no_end_of_the_worker(
    watched: Watched, kind: str
) -> None:
    blob = git(watched.path, "rev-parse", "HEAD:a.txt")
    if kind == "tree":
        body = f"tree {blob}\nparent {git(watched.path, 'rev-parse', 'HEAD')}\n" + "".join(
            f"{who} Ada <ada@example.invalid> 0 +0000\n" for who in ("author", "committer")
        )
        (watched.root / "commit").write_text(body + "\nbad\n")
        blob = git(watched.path, "hash-object", "-t", "commit", "-w", "--literally", watched.root / "commit")
    (resolve(watched.path).git_dir / "HEAD").write_text(f"{blob}\n")
    with pytest.raises(GitError) as caught:
        watched.looker.look(job_for(watched.path, full=False, paths=(b"a.txt",)))
    assert caught.value.reason in ("missing_object", "git_failed")


@asynccontextmanager
async def worker_at(cache: Path) -> AsyncIterator[Worker]:
    """A worker in this process that nobody gives a job."""
    settings = Settings(home=Path(tempfile.mkdtemp(prefix="tw-")))
    settings.run_dir.mkdir()
    process = Process("worker", settings, 0)
    worker = Worker(process, cache)
    try:
        yield worker
    finally:
        worker.close()
        process.close()
        bus.close()
        shutil.rmtree(settings.home)


async def test_a_look_that_never_ends_takes_its_worker_along(
    worktree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S5: what is at work in this process cannot be killed but with it; supervisord starts it afresh."""
    release = threading.Event()

    def turn(*_: object) -> None:
        while not release.is_set():
            pass

    monkeypatch.setattr(Looker, "look", turn)
    async with worker_at(tmp_path / "cache") as worker:
        try:
            with pytest.raises(RuntimeError, match="hangs"):
                await worker._do(job_for(worktree, deadline_ms=50))
        finally:
            release.set()


async def test_a_look_that_waits_for_ever_is_left_behind_and_another_thread_goes_on(
    worktree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G1: a process whose thread waits in a dead file system could not even die."""
    release, told = threading.Event(), []
    really = Looker.look

    def wait(looker: Looker, job: wire.Job) -> Seen:
        if job.why == "dead":
            release.wait(60)
        return really(looker, job)

    monkeypatch.setattr(Looker, "look", wait)
    monkeypatch.setattr("workers.worker.MAX_LEFT_BEHIND", 2)
    async with worker_at(tmp_path / "cache") as worker:
        monkeypatch.setattr(worker._client, "send", lambda done: told.append(done) or True)
        dead, alive = job_for(worktree, why="dead", deadline_ms=50), job_for(worktree, deadline_ms=20_000)
        try:
            for _ in range(2):
                await worker._do(dead)
                await worker._do(alive)
            assert [done.error.partition(":")[0] for done in told] == [wire.UNRESPONSIVE, "", wire.UNRESPONSIVE, ""]
            assert [thread.is_alive() for thread in worker._left_behind] == [True, True]
            with pytest.raises(RuntimeError, match="hangs"):
                await worker._do(dead)
        finally:
            release.set()
        for thread in worker._left_behind:
            thread.join(20)
            assert not thread.is_alive(), "it ends as soon as it can"
        assert len(told) == 4, "and what it found is nobody's"


def test_a_worktree_that_moved_to_another_git_directory_is_refused(rested: Watched) -> None:
    make_repo(rested.root / "trap", {"a": "1\n"})
    job = job_for(rested.path, full=False, paths=(b"a.txt",))
    (rested.path / ".git").write_text(f"gitdir: {rested.root}/trap/.git\n")
    with pytest.raises(GitError) as caught:
        rested.looker.look(job)
    assert caught.value.reason == "pinned_changed"


def test_after_a_rest_it_is_noticed_that_the_git_directory_or_what_is_packed_is_another(rested: Watched) -> None:
    dirs = resolve(rested.path)
    job = job_for(rested.path, full=False, paths=(b"a.txt",))
    os.mkfifo(dirs.common_dir / "objects/pack/pack-x.idx")
    assert rested.looker.look(job)[1:3] == (False, "unsafe file")
    (dirs.common_dir / "objects/pack/pack-x.idx").unlink()
    settle()
    rested.looker.look(job)
    assert rested.looker.look(job).scoped
    shutil.copytree(dirs.git_dir, rested.root / "copy")
    dirs.git_dir.rename(rested.root / "former")
    (rested.root / "copy").rename(dirs.git_dir)
    with pytest.raises(GitError) as caught:
        rested.looker.look(job)
    assert caught.value.reason == "pinned_changed"


def test_a_conflict_stays_scoped_while_its_files_are_edited(watched: Watched) -> None:
    clash(watched.path, "merge", "other")
    assert watched.look().why == "conflicts"
    for content in ("both\n", "one\ntwo\n", TEXT):
        write(watched.path, {"b.txt": content})
        seen = watched.look()
        assert (seen.scoped, seen.git.conflicted) == (True, 2)
    assert seen.git.operation == "merge"
    git(watched.path, "commit", "-q", "-a", "-m", "both")
    assert watched.look().git.operation is None


def test_a_scoped_look_changes_nothing(watched: Watched) -> None:
    write(watched.path, {"a.txt": "x\n", "n.txt": "1\n"})
    before = snapshot(watched.path), snapshot(resolve(watched.path).common_dir)
    watched.looker.look(job_for(watched.path, full=False, paths=(b"a.txt", b"n.txt")))
    assert (snapshot(watched.path), snapshot(resolve(watched.path).common_dir)) == before
