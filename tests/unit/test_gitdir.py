"""Git directories are found by plain reads, which agree with git and never wait."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.gitdir import (
    GitDirError,
    Identity,
    check_packs,
    default_base,
    has_replacements,
    identify,
    pinned,
    read_branch,
    read_head,
    read_operation,
    read_regular,
    resolve,
)
from tests.gitkit import add_worktree, commit, git, make_repo

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return make_repo(tmp_path / "repo", {"a": "1\n"})


def reason_of(path: Path) -> str:
    with pytest.raises(GitDirError) as caught:
        resolve(path)
    assert str(caught.value)
    return caught.value.reason


# ── directories ──────────────────────────────────────────────────────────────────────────────────


def test_the_main_worktree_shares_nothing_but_its_own_directory(repo: Path) -> None:
    dirs = resolve(repo)
    assert dirs.git_dir == dirs.common_dir == repo / ".git"
    assert dirs.inode == (repo / ".git").stat().st_ino


def test_a_linked_worktree_is_followed_through_its_file_to_the_common_directory(repo: Path, tmp_path: Path) -> None:
    dirs = resolve(add_worktree(repo, tmp_path / "linked", "feature"))
    assert dirs.git_dir == repo / ".git/worktrees/linked"
    assert dirs.common_dir == repo / ".git"


def test_a_relative_pointer_counts_from_the_worktree(repo: Path, tmp_path: Path) -> None:
    linked = add_worktree(repo, tmp_path / "linked", "feature")
    (linked / ".git").write_text("gitdir: ../repo/.git/worktrees/linked\n")
    assert resolve(linked).git_dir == repo / ".git/worktrees/linked"


def test_a_git_directory_behind_a_symlink_is_named_by_its_real_path(repo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / ".git").symlink_to(repo / ".git")
    assert resolve(other).git_dir == repo / ".git"


def test_what_is_no_worktree_says_so(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "nowhere") == "gone"
    assert reason_of(tmp_path) == "not_a_repository"
    (tmp_path / ".git").mkdir()
    assert reason_of(tmp_path) == "not_a_repository"


@pytest.mark.parametrize("content", ["", "gitdir: \n", "gitdir: a\0b\n", "somewhere else\n", "gitdir: nowhere\n"])
def test_a_pointer_that_points_nowhere_is_no_repository(tmp_path: Path, content: str) -> None:
    (tmp_path / ".git").write_text(content)
    assert reason_of(tmp_path) == "not_a_repository"


def test_a_fifo_in_place_of_a_file_is_refused_and_not_waited_for(repo: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".git")
    assert reason_of(tmp_path) == "unsafe_file"
    (repo / ".git/HEAD").unlink()
    os.mkfifo(repo / ".git/HEAD")
    with pytest.raises(GitDirError) as caught:
        read_head(resolve(repo))
    assert caught.value.reason == "unsafe_file"


def test_neither_a_symlink_nor_a_socket_nor_a_directory_nor_a_huge_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path in (tmp_path / "link", tmp_path, Path("/dev/zero")):
        with pytest.raises(GitDirError, match="regular file"):
            read_regular(path)
    assert read_regular(tmp_path / "file", 5) == b"12345"
    with pytest.raises(GitDirError) as caught:
        read_regular(tmp_path / "file", 4)
    assert caught.value.reason == "too_large"
    assert read_regular(tmp_path / "file" / "below") is None
    assert identify(tmp_path / "none") is None


def test_a_worktree_is_pinned_to_its_git_directories_and_to_its_very_path(repo: Path, tmp_path: Path) -> None:
    linked = add_worktree(repo, tmp_path / "linked", "feature")
    dirs = resolve(linked)
    pinned(linked, dirs)
    for other in (dirs._replace(inode=dirs.inode + 1), dirs._replace(git_dir=repo), dirs._replace(common_dir=repo)):
        with pytest.raises(GitDirError, match="register it again") as caught:
            pinned(linked, other)
        assert caught.value.reason == "pinned_changed"
    linked.rename(tmp_path / "moved")
    linked.symlink_to(tmp_path / "moved")
    assert resolve(linked) == dirs, "the git directory is the same, and yet:"
    with pytest.raises(GitDirError, match="symbolic link"):
        pinned(linked, dirs)


def test_packs_are_looked_at_again_only_when_their_directory_changed(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(repo, "repack", "-adq")
    seen: dict[Path, Identity] = {}
    other = tmp_path / "other"
    (other / "pack").mkdir(parents=True)
    (other / "info").mkdir()
    (repo / ".git/objects/info/alternates").write_text(f"# a comment\n{other}\n")
    (other / "info/alternates").write_text(f"{repo}/.git/objects\n")
    assert check_packs(repo / ".git/objects", seen) == [repo / ".git/objects", other]
    listed: list[object] = []
    really = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), really(path))[1])
    check_packs(repo / ".git/objects", seen)
    assert listed == []
    os.mkfifo(other / "pack/pack-x.idx")
    with pytest.raises(GitDirError, match="not a regular file") as caught:
        check_packs(repo / ".git/objects", seen)
    assert caught.value.reason == "unsafe_file"
    assert listed == [other / "pack"]
    (other / "pack/pack-x.idx").unlink()
    (other / "info/alternates").unlink()
    os.mkfifo(other / "info/alternates")
    with pytest.raises(GitDirError, match="alternates"):
        check_packs(repo / ".git/objects", seen)


def test_an_object_store_without_packs_or_without_anything_is_well(tmp_path: Path) -> None:
    assert check_packs(tmp_path / "none", {}) == [tmp_path / "none"]


# ── refs ─────────────────────────────────────────────────────────────────────────────────────────


def test_head_is_read_as_git_reads_it_loose_packed_detached_and_unborn(repo: Path, tmp_path: Path) -> None:
    dirs = resolve(repo)
    first = git(repo, "rev-parse", "HEAD")
    assert read_head(dirs) == (first, "main")
    git(repo, "pack-refs", "--all")
    assert not (repo / ".git/refs/heads/main").exists()
    assert read_head(dirs) == (first, "main")
    second = commit(repo, {"b": "2\n"})
    assert read_head(dirs) == (second, "main"), "a loose ref stands above a packed one"
    git(repo, "checkout", "-q", "--detach", first)
    assert read_head(dirs) == (first, None)
    assert read_head(resolve(make_repo(tmp_path / "unborn", branch="trunk"))) == (None, "trunk")


def test_a_linked_worktree_has_its_own_head_and_shared_branches(repo: Path, tmp_path: Path) -> None:
    linked = add_worktree(repo, tmp_path / "linked", "team/feature")
    head = commit(linked, {"b": "2\n"})
    assert read_head(resolve(linked)) == (head, "team/feature")
    assert read_branch(repo / ".git", "team/feature") == head


def test_a_branch_that_is_a_symbolic_ref_is_followed_and_a_loop_is_not(repo: Path) -> None:
    git(repo, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
    assert read_branch(repo / ".git", "alias") == git(repo, "rev-parse", "HEAD")
    (repo / ".git/refs/heads/alias").write_text("ref: refs/heads/alias\n")
    with pytest.raises(GitDirError, match="too many"):
        read_branch(repo / ".git", "alias")


def test_a_non_utf8_branch_is_shown_with_replacements(repo: Path) -> None:
    git(repo, "checkout", "-q", "-b", b"caf\xe9")
    assert read_head(resolve(repo)) == (git(repo, "rev-parse", "HEAD"), "caf�")


@pytest.mark.parametrize("ref", ["refs/heads/../../HEAD", "../HEAD", "/etc/passwd", "refs/heads/", "refs/heads/a..b"])
def test_head_cannot_be_made_to_name_another_file(repo: Path, ref: str) -> None:
    (repo / ".git/HEAD").write_text(f"ref: {ref}\n")
    with pytest.raises(GitDirError) as caught:
        read_head(resolve(repo))
    assert caught.value.reason == "bad_ref"


def test_a_ref_that_holds_no_object_name_is_an_error_and_not_absent(repo: Path) -> None:
    (repo / ".git/refs/heads/main").write_text("secret\n")
    with pytest.raises(GitDirError) as caught:
        read_head(resolve(repo))
    assert caught.value.reason == "bad_ref"
    assert "secret" not in str(caught.value)


def test_refs_in_a_reftable_have_a_named_reason(repo: Path) -> None:
    (repo / ".git/reftable").mkdir()
    with pytest.raises(GitDirError) as caught:
        read_head(resolve(repo))
    assert caught.value.reason == "reftable"


def test_a_base_is_local_before_it_is_remote(repo: Path) -> None:
    common = repo / ".git"
    first = git(repo, "rev-parse", "HEAD")
    second = commit(repo, {"b": "2\n"})
    git(repo, "update-ref", "refs/remotes/origin/main", first)
    git(repo, "update-ref", "refs/remotes/origin/release", first)
    assert read_branch(common, "main") == second
    assert read_branch(common, "origin/main") == first
    assert read_branch(common, "release") == first
    assert read_branch(common, "none") is None
    assert read_branch(common, "") is None
    assert read_branch(common, "../../HEAD") is None


# ── the project's base ───────────────────────────────────────────────────────────────────────────


def test_the_base_is_what_origin_calls_its_head_if_there_is_such_a_branch(repo: Path) -> None:
    git(repo, "symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/develop")
    assert default_base(repo / ".git") == "main"
    git(repo, "branch", "develop")
    assert default_base(repo / ".git") == "develop"


@pytest.mark.parametrize(("branch", "base"), [("main", "main"), ("master", "master"), ("trunk", "trunk")])
def test_the_base_is_main_or_master_or_what_the_main_worktree_is_on(tmp_path: Path, branch: str, base: str) -> None:
    assert default_base(make_repo(tmp_path / "r", {"a": ""}, branch=branch) / ".git") == base


def test_before_the_first_commit_and_detached_there_is_no_base(tmp_path: Path) -> None:
    unborn = make_repo(tmp_path / "unborn")
    assert default_base(unborn / ".git") == ""
    detached = make_repo(tmp_path / "detached", {"a": ""}, branch="side")
    git(detached, "checkout", "-q", "--detach")
    git(detached, "branch", "-D", "side")
    assert default_base(detached / ".git") == ""


def test_replace_refs_and_grafts_are_noticed_loose_and_packed(repo: Path) -> None:
    common = repo / ".git"
    first = git(repo, "rev-parse", "HEAD")
    second = commit(repo, {"b": "2\n"})
    assert not has_replacements(common)
    git(repo, "replace", second, first)
    assert has_replacements(common)
    git(repo, "pack-refs", "--all")
    assert has_replacements(common)
    git(repo, "replace", "-d", second)
    assert not has_replacements(common)
    (common / "info/grafts").write_text(second + "\n")
    assert has_replacements(common)


# ── operations ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("start", "operation"),
    [
        (["merge", "other"], "merge"),
        (["rebase", "other"], "rebase"),
        (["rebase", "--apply", "other"], "rebase"),
        (["cherry-pick", "other"], "cherry-pick"),
        (["revert", "HEAD~1"], "revert"),
        (["bisect", "start"], "bisect"),
    ],
)
def test_an_operation_under_way_is_seen_in_its_own_worktree_only(
    repo: Path, tmp_path: Path, start: list[str], operation: str
) -> None:
    git(repo, "checkout", "-q", "-b", "other")
    commit(repo, {"a": "theirs\n"})
    git(repo, "checkout", "-q", "main")
    linked = add_worktree(repo, tmp_path / "linked", "feature")
    commit(linked, {"a": "ours\n"})
    commit(linked, {"a": "ours again\n"})
    git_dir = resolve(linked).git_dir
    assert read_operation(git_dir) is None
    git(linked, *start, check=False)
    assert read_operation(git_dir) == operation
    assert read_operation(repo / ".git") is None


def test_a_sequence_between_two_picks_is_still_a_cherry_pick(repo: Path) -> None:
    git(repo, "checkout", "-q", "-b", "other")
    for number in range(3):
        commit(repo, {"a": f"{number}\n"})
    git(repo, "checkout", "-q", "main")
    commit(repo, {"a": "ours\n"})
    git(repo, "cherry-pick", "main..other", check=False)
    commit(repo, {"a": "resolved\n"})
    assert not (repo / ".git/CHERRY_PICK_HEAD").exists()
    assert read_operation(repo / ".git") == "cherry-pick"
