"""The full look gives git's own numbers, in every corner that is tried, and disturbs nothing (G1, G2)."""

from __future__ import annotations

import os
import re
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

from pipeline.domain.model import Git
from pipeline.gitdir import resolve
from pipeline.wire import Job, encode
from tests.gitkit import IDENTITY, add_worktree, commit, git, make_repo, write
from workers import git as full
from workers import shadow
from workers.git import GitError, measure

pytestmark = pytest.mark.timeout(60)

TEXT = "".join(f"line {number}\n" for number in range(40))
FILES: dict[str, str | bytes] = {
    "a.txt": TEXT,
    "b.txt": "one\ntwo\n",
    "dir/c.txt": "deep\n",
    "dir/d.txt": TEXT.replace("line", "row"),
    "logo.png": bytes(range(256)),
    ".gitignore": "*.log\nbuild/\n",
}


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


def job_for(worktree: Path, base: str = "main", deadline_ms: int = 30_000) -> Job:
    dirs = resolve(worktree)
    return Job(
        id=1,
        workspace="w1",
        worktree=str(worktree),
        git_dir=str(dirs.git_dir),
        common_dir=str(dirs.common_dir),
        inode=dirs.inode,
        base=base,
        deadline_ms=deadline_ms,
    )


def user_env() -> dict[str, str]:
    """The home that the look sees, for git itself."""
    home = os.environ["HOME"]
    return {"HOME": home, "GIT_CONFIG_GLOBAL": f"{home}/.gitconfig"}


def shortstat(worktree: Path, against: str, scratch: Path) -> tuple[int, int, int]:
    """What a commit of everything would differ from `against`, from git alone, without writing to the repository."""
    dirs = resolve(worktree)
    scratch.mkdir(exist_ok=True)
    index = scratch / "index"
    index.unlink(missing_ok=True)
    if (dirs.git_dir / "index").exists():
        shutil.copy2(dirs.git_dir / "index", index)
    env = {
        **user_env(),
        "GIT_DIR": str(dirs.git_dir),
        "GIT_WORK_TREE": str(worktree),
        "GIT_INDEX_FILE": str(index),
        "GIT_OBJECT_DIRECTORY": str(scratch),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(dirs.common_dir / "objects"),
    }
    for command in (["add", "-A", "--sparse"], ["diff", "--cached", "--shortstat", against]):
        done = subprocess.run(
            ["git", "-c", "advice.addEmbeddedRepo=false", *command],
            cwd=worktree,
            env={**IDENTITY, **env},
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
    counts = {word[:3]: int(count) for count, word in re.findall(r"(\d+) (\w+)", done.stdout.decode())}
    return counts.get("fil", 0), counts.get("ins", 0), counts.get("del", 0)


def states(worktree: Path) -> tuple[int, int, int, int]:
    """Staged, unstaged, untracked and conflicted files, counted from the short status."""
    env = {"GIT_OPTIONAL_LOCKS": "0", **user_env()}
    out = git(worktree, "status", "--porcelain", "-z", "--untracked-files=all", env=env)
    staged = unstaged = untracked = conflicted = 0
    records = iter(out.split("\0")[:-1])
    for record in records:
        code = record[:2]
        if "R" in code:
            next(records)
        if code == "??":
            untracked += 1
        elif "U" in code or code in ("AA", "DD"):
            conflicted += 1
        else:
            staged += code[0] != " "
            unstaged += code[1] != " "
    return staged, unstaged, untracked, conflicted


def totals(git: Git) -> tuple[int | None, int | None, int | None]:
    return git.files, git.insertions, git.deletions


def assert_exact(worktree: Path, tmp_path: Path, base: str = "main") -> Git:
    """Measure, and compare every number with what git says by other commands."""
    found = measure(job_for(worktree, base), tmp_path / "cache")
    unborn = git(worktree, "rev-parse", "-q", "--verify", "HEAD", check=False) == ""
    merge_base = "" if unborn else git(worktree, "merge-base", base, "HEAD", check=False)
    against = merge_base or ("4b825dc642cb6eb9a060e54bf8d69288fbee4904" if unborn else "HEAD")
    assert totals(found) == shortstat(worktree, against, tmp_path / "scratch")
    assert (found.staged, found.unstaged, found.untracked, found.conflicted) == states(worktree)
    if unborn or not git(worktree, "rev-parse", "-q", "--verify", base, check=False):
        assert (found.ahead, found.behind) == (None, None)
    else:
        counted = git(worktree, "rev-list", "--count", "--left-right", f"{base}...HEAD").split()
        assert [str(found.behind), str(found.ahead)] == counted
    assert found.head == (None if unborn else git(worktree, "rev-parse", "HEAD"))
    assert found.branch == (git(worktree, "symbolic-ref", "-q", "--short", "HEAD", check=False) or None)
    return found


# ── corners ──────────────────────────────────────────────────────────────────────────────────────

Change = Callable[[Path], object]
CHANGES: dict[str, Change] = {
    "nothing": lambda w: None,
    "edit": lambda w: write(w, {"a.txt": TEXT + "more\n"}),
    "edit and stage": lambda w: (write(w, {"a.txt": "x\n"}), git(w, "add", "a.txt")),
    "stage and edit back": lambda w: (
        write(w, {"b.txt": "x\n"}),
        git(w, "add", "-A"),
        write(w, {"b.txt": "one\ntwo\n"}),
    ),
    "commit": lambda w: commit(w, {"new.txt": "1\n2\n"}),
    "undo what was committed": lambda w: write(w, {"b.txt": "one\ntwo\n"}),
    "delete": lambda w: (w / "a.txt").unlink(),
    "delete and stage": lambda w: git(w, "rm", "-q", "a.txt"),
    "forget but keep": lambda w: git(w, "rm", "-q", "--cached", "a.txt"),
    "forget, keep and edit": lambda w: (git(w, "rm", "-q", "--cached", "a.txt"), write(w, {"a.txt": "x\n"})),
    "rename and stage": lambda w: git(w, "mv", "a.txt", "moved.txt"),
    "rename onto an untracked name": lambda w: (w / "a.txt").rename(w / "moved.txt"),
    "rename into an untracked directory and edit": lambda w: (
        write(w, {"far/away/moved.txt": TEXT + "more\n"}),
        (w / "a.txt").unlink(),
    ),
    "two renames and a copy": lambda w: (
        write(w, {"copy.txt": TEXT}),
        (w / "a.txt").rename(w / "z.txt"),
        (w / "dir/d.txt").rename(w / "d.txt"),
    ),
    "untracked, nested": lambda w: write(w, {"n/e/s/t.txt": "1\n", "n/u.txt": "2\n3\n"}),
    "ignored": lambda w: write(w, {"x.log": "1\n", "build/out.txt": "1\n"}),
    "ignored but tracked": lambda w: (
        write(w, {"kept.log": "1\n"}),
        git(w, "add", "-f", "kept.log"),
        write(w, {"kept.log": "2\n3\n"}),
    ),
    "ignored since just now": lambda w: write(w, {"n.tmp": "1\n", ".gitignore": "*.log\n*.tmp\n"}),
    "ignored by info/exclude": lambda w: (
        (resolve(w).common_dir / "info/exclude").write_text("*.tmp\n"),
        write(w, {"n.tmp": "1\n", "n.txt": "1\n"}),
    ),
    "binary edited": lambda w: write(w, {"logo.png": bytes(range(255))}),
    "binary untracked": lambda w: write(w, {"new.png": b"\0\1\2"}),
    "binary by info/attributes": lambda w: (
        (resolve(w).common_dir / "info/attributes").write_text("*.dat -diff\n"),
        write(w, {"n.dat": "1\n2\n"}),
    ),
    "binary by .gitattributes": lambda w: write(w, {".gitattributes": "b.txt binary\n", "b.txt": "x\n"}),
    "binary by diff driver": lambda w: (
        write(w, {".gitattributes": "*.txt diff=opaque\n", "b.txt": "x\n"}),
        git(w, "config", "diff.opaque.binary", "true"),
    ),
    "executable": lambda w: (w / "a.txt").chmod(0o755),
    "executable, where modes do not count": lambda w: (
        git(w, "config", "core.fileMode", "false"),
        (w / "a.txt").chmod(0o755),
        write(w, {"run.sh": "#!\n"}),
        (w / "run.sh").chmod(0o755),
    ),
    "symlink for a file": lambda w: ((w / "a.txt").unlink(), (w / "a.txt").symlink_to("b.txt")),
    "symlink, untracked": lambda w: (w / "link").symlink_to("nowhere"),
    "symlink for a directory": lambda w: (shutil.rmtree(w / "dir"), (w / "dir").symlink_to(w / ".git")),
    "directory for a file": lambda w: ((w / "a.txt").unlink(), write(w, {"a.txt/in.txt": "1\n"})),
    "file for a directory": lambda w: (shutil.rmtree(w / "dir"), write(w, {"dir": "1\n"})),
    "empty file": lambda w: write(w, {"empty": ""}),
    "emptied file": lambda w: write(w, {"a.txt": ""}),
    "no newline at the end": lambda w: write(w, {"a.txt": TEXT.rstrip("\n"), "n.txt": "1\n2"}),
    "only touched": lambda w: os.utime(w / "a.txt", (1, 1)),
    "intent to add": lambda w: (write(w, {"n.txt": "1\n"}), git(w, "add", "-N", "n.txt")),
    "assumed unchanged": lambda w: (git(w, "update-index", "--assume-unchanged", "a.txt"), write(w, {"a.txt": "x\n"})),
    "skipped in the worktree": lambda w: (git(w, "update-index", "--skip-worktree", "a.txt"), (w / "a.txt").unlink()),
    "detached": lambda w: (git(w, "checkout", "-q", "--detach"), write(w, {"a.txt": "x\n"})),
    "case-only rename": lambda w: (w / "a.txt").rename(w / "A.TXT"),
    "odd names": lambda w: write(
        w, {"-rf": "1\n", "--help": "1\n", ":(top)x": "1\n", "new\nline\t\"quoted\"": "1\n", "*": "1\n", " ": "1\n"}
    ),
    "CRLF by .gitattributes": lambda w: write(w, {".gitattributes": "* text=auto\n", "b.txt": "one\r\ntwo\r\n"}),
    "CRLF by configuration": lambda w: (
        git(w, "config", "core.autocrlf", "true"),
        write(w, {"b.txt": "one\r\ntwo\r\nthree\r\n", "n.txt": "1\r\n"}),
    ),
    "encoded by .gitattributes": lambda w: write(
        w, {".gitattributes": "*.u16 text working-tree-encoding=UTF-16\n", "n.u16": "1\n2\n".encode("utf-16")}
    ),
    "ident keyword": lambda w: write(w, {".gitattributes": "*.txt ident\n", "n.txt": "$Id: whatever $\n"}),
    "merge conflict": lambda w: clash(w, "merge", "other"),
    "merge conflict, resolved but not staged": lambda w: (clash(w, "merge", "other"), write(w, {"b.txt": "both\n"})),
    "merge conflict, resolved as the base": lambda w: (
        clash(w, "merge", "other"),
        write(w, {"b.txt": "one\ntwo\n"}),
    ),
    "merge conflict, resolved by deleting": lambda w: (clash(w, "merge", "other"), (w / "b.txt").unlink()),
    "merge conflict, resolved as the base but for our mode, which only the index knows": lambda w: (
        (w / "b.txt").chmod(0o755),
        commit(w),
        clash(w, "merge", "other"),
        git(w, "config", "core.fileMode", "false"),
        write(w, {"b.txt": "one\ntwo\n"}),
    ),
    "rebase conflict": lambda w: clash(w, "rebase", "other"),
    "cherry-pick conflict": lambda w: clash(w, "cherry-pick", "other"),
    "nested repository": lambda w: make_repo(w / "vendored", {"v": "1\n"}),
    "submodule, moved": lambda w: (
        make_repo(w.parent / "lib", {"v": "1\n"}),
        git(w, "submodule", "add", "-q", str(w.parent / "lib"), "lib"),
        commit(w),
        commit(w / "lib", {"v": "2\n"}),
        write(w / "lib", {"dirty": "1\n"}),
    ),
    "fifo beside the files": lambda w: os.mkfifo(w / "pipe"),
    "packed": lambda w: (git(w, "gc", "-q"), write(w, {"a.txt": "x\n"})),
    "split index": lambda w: (
        git(w, "update-index", "--split-index"),
        commit(w, {"s.txt": "1\n"}),
        write(w, {"a.txt": "x\n", "n.txt": "1\n"}),
    ),
    "sparse checkout": lambda w: (git(w, "sparse-checkout", "set", "dir"), write(w, {"dir/c.txt": "x\n"})),
    "sparse index": lambda w: (
        git(w, "sparse-checkout", "set", "--cone", "--sparse-index", "other"),
        write(w, {"other/n.txt": "x\n", "b.txt": "x\n"}),
    ),
    "worktree configuration": lambda w: (
        git(w, "config", "extensions.worktreeConfig", "true"),
        git(w, "config", "--worktree", "core.autocrlf", "input"),
        write(w, {"n.txt": "1\r\n"}),
    ),
}  # fmt: skip


def clash(worktree: Path, *command: str) -> None:
    """A conflict in b.txt (changed on both sides) and in dir/c.txt (deleted here, changed there)."""
    git(worktree, "checkout", "-q", "-b", "other", git(worktree, "merge-base", "main", "HEAD"))
    commit(worktree, {"b.txt": "one\nTWO\n", "dir/c.txt": "deeper\n", "theirs.txt": "1\n"})
    git(worktree, "checkout", "-q", "feature")
    git(worktree, "rm", "-q", "dir/c.txt")
    commit(worktree)
    git(worktree, *command, check=False)


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
    measure(job, tmp_path / "cache")
    ours = tmp_path / "cache" / shadow.shadow_name(Path(job.git_dir)) / "index"
    refreshed = ours.stat()
    real = (Path(job.git_dir) / "index").read_bytes()
    assert ours.read_bytes() != real, "ours knows the new times of the files"
    measure(job, tmp_path / "cache")
    assert (ours.stat().st_ino, ours.stat().st_mtime_ns) == (refreshed.st_ino, refreshed.st_mtime_ns)
    git(worktree, "add", "--refresh", ".")
    measure(job, tmp_path / "cache")
    assert ours.stat().st_ino != refreshed.st_ino


def test_history_is_walked_once_per_head_and_base(
    worktree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    really = full.spawn.git
    monkeypatch.setattr(full.spawn, "git", lambda args, **more: (asked.append(args[5]), really(args, **more))[1])
    for _ in range(3):
        assert measure(job_for(worktree), tmp_path / "cache").ahead == 1
    assert asked.count("merge-base") == asked.count("rev-list") == 1
    commit(worktree, {"n.txt": "1\n"})
    assert measure(job_for(worktree), tmp_path / "cache").ahead == 2
    assert asked.count("merge-base") == 2


def test_two_processes_may_use_one_cache_in_turn(
    worktree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process remembers of a shadow does not hold once another one wrote to it."""
    assert_exact(worktree, tmp_path)
    mine = shadow._RUN
    monkeypatch.setattr(shadow, "_RUN", b"x" * len(mine))
    remembered = dict(full._shadows)
    full._shadows.clear()
    git(worktree, "checkout", "-q", "--detach", "HEAD~1")
    assert_exact(worktree, tmp_path)
    monkeypatch.setattr(shadow, "_RUN", mine)
    full._shadows.update(remembered)
    git(worktree, "checkout", "-q", "feature")
    assert_exact(worktree, tmp_path)


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
    full._shadows.clear()
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
    with shadow.Shadow(tmp_path / "cache", dirs).held(full.Deadline.after(1000)):
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
