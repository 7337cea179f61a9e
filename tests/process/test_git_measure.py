"""The full look gives git's own numbers, in every corner that is tried, and disturbs nothing (G1, G2)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.domain.model import Git
from pipeline.gitdir import resolve
from pipeline.wire import Job, encode
from tests.corners import CHANGES, FILES, TEXT, Change, clash
from tests.gitkit import add_worktree, commit, git, make_repo, write
from tests.oracle import expected, job_for
from workers import look as engine
from workers import shadow
from workers.git import GitError, Looker, measure

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def closed_user_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The developer's own git configuration stays out; tests may put one into this home."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("GIT_CONFIG_GLOBAL", "XDG_CONFIG_HOME", "GIT_CONFIG_SYSTEM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return home


@pytest.fixture
def worktree(tmp_path: Path) -> Path:
    """A linked worktree, one commit ahead of main and one behind it."""
    repo = make_repo(tmp_path / "repo", FILES)
    linked = add_worktree(repo, tmp_path / "linked", "feature")
    commit(linked, {"b.txt": "one\ntwo\nthree\n"})
    commit(repo, {"elsewhere.txt": "x\n"})
    return linked


def totals(git: Git) -> tuple[int | None, int | None, int | None]:
    return git.files, git.insertions, git.deletions


def assert_exact(worktree: Path, tmp_path: Path, base: str = "main") -> Git:
    """Measure, and compare every number with what git says by other commands."""
    found = measure(job_for(worktree, base), tmp_path / "cache")
    assert replace(found, operation=None) == expected(worktree, tmp_path / "scratch", base)
    return found


# ── corners ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_number_is_git_s_own(worktree: Path, tmp_path: Path, change: Change) -> None:
    assert_exact(worktree, tmp_path)  # so that the change meets what an earlier look has left behind
    change(worktree)
    assert_exact(worktree, tmp_path)
    assert_exact(worktree, tmp_path)


@pytest.mark.parametrize(
    ("command", "operation", "conflicted"),
    [("merge", "merge", 2), ("rebase", "rebase", 1), ("cherry-pick", "cherry-pick", 2)],
)
def test_an_operation_under_way_is_told_with_its_conflicts(
    worktree: Path, tmp_path: Path, command: str, operation: str, conflicted: int
) -> None:
    clash(worktree, command, "other")
    found = assert_exact(worktree, tmp_path)
    assert (found.operation, found.conflicted) == (operation, conflicted)


def test_names_that_are_not_utf8_count_like_any_other(worktree: Path, tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"dir/\xff\xfe"):
        Path(os.fsdecode(os.fsencode(worktree) + b"/" + name)).write_text("1\n2\n")
    found = assert_exact(worktree, tmp_path)
    assert found.untracked == 2


def test_before_the_first_commit_everything_is_new(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "new")
    found = assert_exact(repo, tmp_path)
    assert (found.head, found.branch, found.files) == (None, "main", 0)
    write(repo, {"a": "1\n", "b": "2\n"})
    git(repo, "add", "a")
    found = assert_exact(repo, tmp_path)
    assert (found.files, found.insertions, found.staged, found.untracked) == (2, 2, 1, 1)


def test_without_a_base_or_a_common_ancestor_it_is_measured_against_head(worktree: Path, tmp_path: Path) -> None:
    write(worktree, {"a.txt": "x\n"})
    for base in ("", "none"):
        found = measure(job_for(worktree, base), tmp_path / "cache")
        assert totals(found) == (1, 1, 40)
        assert (found.ahead, found.behind) == (None, None)
    git(worktree, "stash", "-q")
    git(worktree, "checkout", "-q", "--orphan", "island")
    commit(worktree)
    git(worktree, "stash", "pop", "-q")
    found = assert_exact(worktree, tmp_path)
    assert (totals(found), found.ahead, found.behind) == ((1, 1, 40), 1, 2)


def test_a_repository_of_sha256_is_measured_as_well(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    git(repo, "init", "-q", "-b", "main", "--object-format=sha256")
    write(repo, {"a": "1\n"})
    assert totals(measure(job_for(repo), tmp_path / "cache")) == (1, 1, 0)
    commit(repo)
    git(repo, "checkout", "-q", "-b", "feature")
    commit(repo, {"b": "1\n"})
    write(repo, {"c": "2\n"})
    found = measure(job_for(repo), tmp_path / "cache")
    assert (totals(found), found.ahead) == ((2, 2, 0), 1)
    assert found.head == git(repo, "rev-parse", "HEAD")
    assert len(found.head or "") == 64


def test_objects_that_a_clone_borrows_from_another_repository_are_found(worktree: Path, tmp_path: Path) -> None:
    clone = tmp_path / 'clo"ne\n'
    git(tmp_path, "clone", "-q", "--shared", worktree, clone)
    git(clone, "branch", "main", "origin/feature")
    commit(clone, {"n.txt": "1\n"})
    assert_exact(clone, tmp_path)


def test_the_users_own_ignore_file_and_settings_count(worktree: Path, tmp_path: Path, closed_user_config: Path) -> None:
    write(worktree, {"n.swp": "1\n", "n.bak": "1\n", "n.txt": "1\r\n"})
    assert assert_exact(worktree, tmp_path).untracked == 3
    write(closed_user_config, {".config/git/ignore": "*.swp\n"})
    assert assert_exact(worktree, tmp_path).untracked == 2
    write(closed_user_config, {"mine": "*.bak\n", "more": "[core]\n\tautocrlf = input\n\texcludesFile = ~/mine\n"})
    write(closed_user_config, {".gitconfig": "[include]\n\tpath = more\n"})
    assert assert_exact(worktree, tmp_path).untracked == 2
    write(closed_user_config, {"mine": "*.bak\n*.swp\n"})
    assert assert_exact(worktree, tmp_path).untracked == 1


def test_a_change_in_the_moment_in_which_the_index_was_written_is_not_taken_for_clean(
    worktree: Path, tmp_path: Path
) -> None:
    """Same size, same time: only the time of the index tells git to look inside, so our copy must keep that."""
    moment = (1_600_000_000, 1_600_000_000)
    git(worktree, "config", "core.trustctime", "false")
    write(worktree, {"b.txt": "1\n"})
    os.utime(worktree / "b.txt", moment)
    git(worktree, "add", "b.txt")
    write(worktree, {"b.txt": "2\n"})
    os.utime(worktree / "b.txt", moment)
    os.utime(resolve(worktree).git_dir / "index", moment)
    assert assert_exact(worktree, tmp_path).unstaged == 1


@settings(
    max_examples=12,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["edit", "delete", "rename", "stage", "unstage", "commit", "ignore", "chmod", "look"]),
            st.sampled_from(["a.txt", "b.txt", "dir/c.txt", "dir", "new/e.txt", "f.log"]),
            st.sampled_from(["", "1\n", "1\n2\n3", TEXT, TEXT + "more\n", "\0\1", "1\r\n"]),
        ),
        min_size=3,
        max_size=8,
    )
)
def test_any_sequence_of_edits_gives_git_s_own_numbers(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, str]]
) -> None:
    tmp_path = tmp_path_factory.mktemp("edits")
    repo = make_repo(tmp_path / "repo", FILES)
    git(repo, "checkout", "-q", "-b", "feature")
    for action, name, content in steps:
        path = repo / name
        if action == "edit" and not path.is_dir() and not path.parent.is_file():
            write(repo, {name: content})
        elif action == "delete" and path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif action == "rename" and path.exists() and not (repo / "moved").exists():
            path.rename(repo / "moved")
        elif action == "stage":
            git(repo, "add", "-A", "--", name, check=False)
        elif action == "unstage":
            git(repo, "reset", "-q")
        elif action == "commit":
            git(repo, "commit", "-q", "--allow-empty", "-m", name)
        elif action == "ignore":
            write(repo, {".gitignore": f"{name}\n"})
        elif action == "chmod" and path.is_file():
            path.chmod(0o755)
        elif action == "look":
            assert_exact(repo, tmp_path)
    assert_exact(repo, tmp_path)
    shutil.rmtree(tmp_path)


# ── not disturbing ───────────────────────────────────────────────────────────────────────────────


def everything(*roots: Path) -> dict[str, tuple[int, ...]]:
    """Every stat field but the time of last access, of every file below."""
    found = {}
    for root in roots:
        for directory, names, files in os.walk(root):
            for name in [".", *names, *files]:
                path = os.path.join(directory, name)
                stat = os.lstat(path)
                found[path] = (
                    stat.st_ino,
                    stat.st_mode,
                    stat.st_size,
                    stat.st_mtime_ns,
                    stat.st_ctime_ns,
                    stat.st_nlink,
                )
    return found


def test_a_look_changes_nothing_in_the_worktree_nor_in_its_git_directories(worktree: Path, tmp_path: Path) -> None:
    clash(worktree, "merge", "other")
    write(worktree, {"a.txt": "x\n", "n.txt": "1\n"})
    for name in ("dir/d.txt", "logo.png"):
        os.utime(worktree / name, (1, 1))
    before = everything(worktree, tmp_path / "repo")
    for _ in range(3):
        measure(job_for(worktree), tmp_path / "cache")
    assert everything(worktree, tmp_path / "repo") == before


def test_an_agent_that_holds_the_index_lock_does_not_stop_a_look(worktree: Path, tmp_path: Path) -> None:
    lock = resolve(worktree).git_dir / "index.lock"
    lock.touch()
    write(worktree, {"a.txt": "x\n"})
    found = measure(job_for(worktree), tmp_path / "cache")
    assert found.unstaged == 1
    lock.unlink()


def test_no_command_of_an_agent_fails_beside_looks_in_a_loop(worktree: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from pipeline.wire import decode_job; from workers.git import measure\n"
        "for _ in range(25): measure(decode_job(bytes.fromhex(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    looker = subprocess.Popen(
        [sys.executable, "-c", script, encode(job_for(worktree)).hex(), str(tmp_path / "cache")],
        stderr=subprocess.PIPE,
        text=True,
    )
    number = 0
    while looker.poll() is None:
        number += 1
        write(worktree, {"a.txt": f"{number}\n"})
        git(worktree, "add", "a.txt")  # raises if it fails
        git(worktree, "commit", "-q", "-m", f"{number}")
    assert looker.returncode == 0, looker.communicate()[1]
    assert number > 1
    assert_exact(worktree, tmp_path)


# ── what is remembered ───────────────────────────────────────────────────────────────────────────


def test_the_private_index_is_refreshed_once_and_copied_again_only_when_the_real_one_changed(
    worktree: Path, tmp_path: Path
) -> None:
    for name in FILES:
        os.utime(worktree / name, (1, 1))
    job = job_for(worktree)
    looker = Looker(tmp_path / "cache")
    looker.look(job)
    ours = tmp_path / "cache" / shadow.shadow_name(Path(job.git_dir)) / "index"
    refreshed = ours.stat()
    real = (Path(job.git_dir) / "index").read_bytes()
    assert ours.read_bytes() != real, "ours knows the new times of the files"
    looker.look(job)
    assert (ours.stat().st_ino, ours.stat().st_mtime_ns) == (refreshed.st_ino, refreshed.st_mtime_ns)
    git(worktree, "add", "--refresh", ".")
    looker.look(job)
    # A file system may give the number of the one that is gone to the next.
    assert (ours.stat().st_ino, ours.stat().st_mtime_ns) != (refreshed.st_ino, refreshed.st_mtime_ns)


def test_history_is_walked_once_per_head_and_base(
    worktree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    really = engine.spawn.git
    monkeypatch.setattr(engine.spawn, "git", lambda args, **more: (asked.append(args[5]), really(args, **more))[1])
    looker = Looker(tmp_path / "cache")
    for _ in range(3):
        assert looker.look(job_for(worktree)).git.ahead == 1
    assert asked.count("merge-base") == asked.count("rev-list") == 1
    commit(worktree, {"n.txt": "1\n"})
    assert looker.look(job_for(worktree)).git.ahead == 2
    assert asked.count("merge-base") == 2


def test_two_processes_may_use_one_cache_in_turn(
    worktree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process remembers of a shadow does not hold once another one wrote to it."""
    looker = Looker(tmp_path / "cache")
    looker.look(job_for(worktree))
    mine = shadow._RUN
    monkeypatch.setattr(shadow, "_RUN", b"x" * len(mine))
    git(worktree, "checkout", "-q", "--detach", "HEAD~1")
    assert_exact(worktree, tmp_path)
    monkeypatch.setattr(shadow, "_RUN", mine)
    git(worktree, "checkout", "-q", "feature")
    assert looker.look(job_for(worktree)).git == expected(worktree, tmp_path / "scratch")


def test_the_caches_of_worktrees_that_are_gone_or_long_unused_are_removed(worktree: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    others = [add_worktree(tmp_path / "repo", tmp_path / f"other{n}", f"other{n}", "main") for n in range(3)]
    for number, path in enumerate([*others, worktree]):
        job = job_for(path)
        measure(job, cache)
        os.utime(cache / shadow.shadow_name(Path(job.git_dir)) / "lock", (number + 1, number + 1))
    git(tmp_path / "repo", "worktree", "remove", "--force", others[2])
    assert shadow.prune(cache) == 1
    assert shadow.prune(cache, most=2) == 1
    kept = {shadow.shadow_name(Path(job_for(path).git_dir)) for path in (others[1], worktree)}
    assert set(os.listdir(cache)) == kept
    assert_exact(others[0], tmp_path)
    assert shadow.prune(tmp_path / "none") == 0


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


def reason_of(job: Job, tmp_path: Path) -> str:
    with pytest.raises(GitError) as caught:
        measure(job, tmp_path / "cache")
    assert str(caught.value).endswith(".")
    assert str(caught.value).isprintable()
    return caught.value.reason


def test_a_worktree_that_is_gone_or_no_repository_any_more_has_a_reason(worktree: Path, tmp_path: Path) -> None:
    job = job_for(worktree)
    (worktree / ".git").unlink()
    assert reason_of(job, tmp_path) == "not_a_repository"
    shutil.rmtree(worktree)
    assert reason_of(job, tmp_path) == "gone"


def test_a_missing_object_has_a_reason_and_leaves_the_next_look_intact(worktree: Path, tmp_path: Path) -> None:
    write(worktree, {"a.txt": "x\n"})
    blob = git(worktree, "rev-parse", "HEAD:a.txt")
    path = resolve(worktree).common_dir / "objects" / blob[:2] / blob[2:]
    content = path.read_bytes()
    path.unlink()
    assert reason_of(job_for(worktree), tmp_path) == "missing_object"
    path.write_bytes(content)
    assert_exact(worktree, tmp_path)


def test_a_shallow_clone_has_numbers_where_its_history_reaches_and_else_a_reason(
    worktree: Path, tmp_path: Path
) -> None:
    for number in range(3):
        commit(worktree, {"n.txt": f"{number}\n"})
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--depth=2", "--no-single-branch", f"file://{worktree}", clone)
    write(clone, {"a.txt": "x\n"})
    assert_exact(clone, tmp_path, base="feature")
    assert reason_of(job_for(clone, "origin/main"), tmp_path) == "shallow"


def test_what_is_not_understood_is_refused_by_name(worktree: Path, tmp_path: Path) -> None:
    config = resolve(worktree).common_dir / "config"
    plain = config.read_text()
    for reason, text in {
        "bad_config": "[core\n",
        "unsupported_format": "[core]\nrepositoryformatversion = 2\n",
        "reftable": "[core]\nrepositoryformatversion = 1\n[extensions]\nrefStorage = reftable\n",
        "conditional_config": plain + '[includeIf "onbranch:x"]\npath = more\n',
    }.items():
        config.write_text(text)
        (config.parent / "more").write_text("[core]\nautocrlf = true\n")
        assert reason_of(job_for(worktree), tmp_path) == reason
    for text in ("[core]\nautocrlf = maybe\n", "[include]\npath = config\n"):
        config.write_text(text)
        assert reason_of(job_for(worktree), tmp_path) == "bad_config"
    config.write_text("[core]\nrepositoryformatversion = 1\n[extensions]\nnovelty = true\n")
    assert reason_of(job_for(worktree), tmp_path) == "unsupported_format"
    config.write_text(plain)
    git(worktree, "replace", "HEAD", "HEAD~1")
    assert reason_of(job_for(worktree), tmp_path) == "rewritten_history"
    git(worktree, "replace", "-d", "HEAD")
    assert_exact(worktree, tmp_path)


def test_a_directory_that_is_not_what_core_worktree_names_is_refused(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo", FILES)
    git(repo, "config", "core.worktree", "../../elsewhere")
    assert reason_of(job_for(repo), tmp_path) == "foreign_worktree"
    config = repo / ".git/config"
    config.write_text(config.read_text().replace("../../elsewhere", ".."))
    assert_exact(repo, tmp_path)


def test_a_corrupt_index_is_an_error_and_not_zeros(worktree: Path, tmp_path: Path) -> None:
    index = resolve(worktree).git_dir / "index"
    content = index.read_bytes()
    index.write_bytes(b"DIRC" + b"\xff" * 100)
    assert reason_of(job_for(worktree), tmp_path) == "git_failed"
    index.write_bytes(content)
    assert_exact(worktree, tmp_path)


def test_a_cache_that_cannot_be_written_has_a_reason(worktree: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the cache should be")
    assert reason_of(job_for(worktree), tmp_path) == "cache_failed"


def test_a_worktree_that_another_process_looks_at_is_busy_until_the_deadline(worktree: Path, tmp_path: Path) -> None:
    job = job_for(worktree, deadline_ms=200)
    dirs = resolve(worktree)
    with shadow.Shadow(tmp_path / "cache", dirs).held(engine.Deadline.after(1000)):
        assert reason_of(job, tmp_path) == "busy"
    assert_exact(worktree, tmp_path)


def test_a_worker_that_is_killed_leaves_no_git_behind(worktree: Path, tmp_path: Path) -> None:
    """S5: git hangs on a FIFO; the worker gets SIGKILL; the kernel takes git with it."""
    os.mkfifo(worktree / "dir/.gitignore")
    script = (
        "import sys; from pathlib import Path\n"
        "from pipeline.wire import decode_job; from workers.git import measure\n"
        "measure(decode_job(bytes.fromhex(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", script, encode(job_for(worktree, deadline_ms=60_000)).hex(), str(tmp_path / "cache")]
    )
    try:
        children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children")
        hung = wait_for(lambda: [pid for pid in children.read_text().split() if is_git_status(pid)])
        assert isinstance(hung, list)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        wait_for(lambda: not is_git_status(hung[0]))
    finally:
        worker.kill()
        worker.wait()
        os.close(os.open(worktree / "dir/.gitignore", os.O_RDWR))


def is_git_status(pid: str) -> bool:
    words = command_of(pid).split("\0")
    return words[0].endswith("git") and "status" in words


def command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_for(condition: Callable[[], list[str] | bool], seconds: float = 20.0) -> list[str] | bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError("the condition did not come true in time")
