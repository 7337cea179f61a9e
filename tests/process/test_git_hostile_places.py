"""What was registered is what is looked at: no other directory, no other repository, however the path is bent (G3)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest

from pipeline.runtime import spawn
from tests.gitkit import add_worktree, git, make_repo, write
from tests.hostile import NUMBERS, Field, harmless

pytestmark = pytest.mark.timeout(60)


def rewritten_file(field: Field) -> None:
    other = make_repo(field.root / "elsewhere", {"secret": "1\n"})
    (field.tree / ".git").write_text(f"gitdir: {other}/.git\n")


def git_directory_made_anew(field: Field) -> None:
    shutil.copytree(field.dirs.git_dir, field.root / "copy", symlinks=True)
    shutil.rmtree(field.dirs.git_dir)
    shutil.move(field.root / "copy", field.dirs.git_dir)


def git_directory_behind_a_link(field: Field) -> None:
    shutil.move(field.dirs.git_dir, field.root / "moved")
    field.dirs.git_dir.symlink_to(field.root / "moved")
    (field.root / "moved/commondir").write_text(f"{field.dirs.common_dir}\n")


def common_directory_rewritten(field: Field) -> None:
    other = make_repo(field.root / "elsewhere", {"secret": "1\n"})
    (field.dirs.git_dir / "commondir").write_text(f"{other}/.git\n")


def worktree_behind_a_link(field: Field) -> None:
    """To a directory that points back, so that the git directory is the very same one."""
    elsewhere = field.root / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(field.tree / ".git", elsewhere / ".git")
    (elsewhere / "secret").write_text("1\n2\n3\n")
    shutil.rmtree(field.tree)
    field.tree.symlink_to(elsewhere)


def parent_behind_a_link(field: Field) -> None:
    inner = add_worktree(field.repo, field.root / "deep/inner", "inner")
    field.settle(inner)
    shutil.move(field.root / "deep", field.root / "moved")
    (field.root / "deep").symlink_to(field.root / "moved")


@pytest.mark.parametrize(
    "swap",
    [
        rewritten_file,
        git_directory_made_anew,
        git_directory_behind_a_link,
        common_directory_rewritten,
        worktree_behind_a_link,
        parent_behind_a_link,
    ],
)
def test_another_repository_in_place_of_the_registered_one_is_refused(
    field: Field, swap: Callable[[Field], None]
) -> None:
    field.edit()
    field.look()
    swap(field)
    for outcome in (field.look(), field.look("a.txt", "secret")):
        assert outcome.reason == "pinned_changed"
        assert "register it again" in outcome.done.error


@pytest.mark.parametrize("where", ["shared", "own"])
def test_a_worktree_that_is_said_to_be_elsewhere_is_not_counted_there(field: Field, where: str) -> None:
    elsewhere = field.root / "elsewhere"
    write(elsewhere, {"secret": "1\n"})
    if where == "own":
        field.config("extensions.worktreeConfig", "true")
        git(field.repo, "config", "--file", field.dirs.git_dir / "config.worktree", "core.worktree", str(elsewhere))
    else:
        field.settle(field.repo)
        field.config("core.worktree", str(elsewhere))
    with harmless(field):
        assert field.look().reason == field.look("a.txt").reason == "foreign_worktree"


def test_what_a_hostile_head_holds_is_not_in_the_error(field: Field) -> None:
    (field.dirs.git_dir / "HEAD").write_text("canary-secret\n")
    outcome = field.look()
    assert outcome.reason == "bad_ref"
    assert "canary-secret" not in outcome.done.error


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a worktree to somebody else")
def test_a_worktree_of_somebody_else_is_looked_at_as_any_other(field: Field) -> None:
    """git calls that dubious since the owner's programs might run. None do."""
    field.edit()
    field.config("core.fsmonitor", str(field.program))
    for top in (field.repo, field.tree):
        subprocess.run(["chown", "-R", "65534:65534", top], check=True)
    assert (
        "dubious"
        in subprocess.run(["git", "status"], cwd=field.tree, capture_output=True, text=True, env={**os.environ}).stderr
    )
    with harmless(field):
        assert field.look().numbers == field.look("a.txt").numbers == NUMBERS
        assert field.discover() == ""


def test_git_that_says_too_much_is_cut_off(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    write(field.tree, {f"generated/{number}": "" for number in range(200)})
    monkeypatch.setattr(spawn, "MAX_OUTPUT", 1000)
    with harmless(field):
        assert field.look().reason == "too_large"
