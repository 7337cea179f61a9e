"""Which branch each worktree is on and where it goes, read from real repositories, whatever goes on in them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import catalog as catalogs
from pipeline.catalog import Catalog, Worktree
from pipeline.domain.model import Stamp
from pipeline.gitdir import resolve
from pipeline.sources.github.plan import Branch
from pipeline.sources.github.survey import Home, Survey
from tests.gitkit import git
from tests.sourcekit import made

REPO = "acme/web"


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("GIT_CONFIG_GLOBAL", raising=False)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    path = made(tmp_path)
    git(path, "remote", "add", "origin", f"git@github.com:{REPO}.git")
    git(path, "checkout", "-q", "-b", "feature")
    return path


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    catalog = catalogs.open_url(f"sqlite:///{tmp_path}/treewire.db")
    yield catalog
    catalog.close()


def surveyed(catalog: Catalog, *paths: Path) -> Survey:
    project = catalog.add_project(paths[0], 1).project
    found = []
    for path in paths:
        dirs = resolve(path)
        found.append(Worktree(str(path), "", str(dirs.git_dir), str(dirs.common_dir), dirs.inode, "main"))
    catalog.upsert_worktrees(project.id, found, Stamp(1, 2, "clock"), 1)
    survey = Survey("github.com")
    survey.places(catalog)
    return survey


def one(survey: Survey) -> Home:
    (home,) = survey.look()
    return home


def goes(name: str) -> Branch:
    return Branch(REPO, REPO, name)


def test_a_switch_a_push_and_another_remote_show_at_the_next_look(catalog: Catalog, repo: Path) -> None:
    survey = surveyed(catalog, repo)
    assert (one(survey).branch, one(survey).tip) == (goes("feature"), "")
    git(repo, "update-ref", "refs/remotes/origin/feature", "HEAD")
    first = one(survey).tip
    assert first == git(repo, "rev-parse", "HEAD").strip()
    git(repo, "commit", "-q", "--allow-empty", "-m", "more")
    assert one(survey).tip == first  # a commit is no push
    git(repo, "update-ref", "refs/remotes/origin/feature", "HEAD")
    second = one(survey).tip
    assert second not in ("", first)
    git(repo, "pack-refs", "--all")
    assert one(survey).tip == second
    git(repo, "checkout", "-q", "-b", "other")
    assert (one(survey).branch, one(survey).tip) == (goes("other"), "")
    git(repo, "remote", "set-url", "origin", "https://github.com/acme/site")
    assert one(survey).branch == Branch("acme/site", "acme/site", "other")
    git(repo, "remote", "remove", "origin")
    assert one(survey).branch is None


def test_worktrees_of_one_repository_each_have_their_branch(catalog: Catalog, repo: Path, tmp_path: Path) -> None:
    beside = Path(os.path.realpath(tmp_path)) / "beside"
    git(repo, "worktree", "add", "-q", "-b", "second", str(beside))
    survey = surveyed(catalog, repo, beside)
    assert {home.where.path: home.branch for home in survey.look()} == {
        str(repo): goes("feature"),
        str(beside): goes("second"),
    }


def test_a_rebase_a_bisection_and_a_detour_do_not_leave_the_branch(catalog: Catalog, repo: Path) -> None:
    for n in range(3):
        (repo / "file").write_text(f"{n}\n")
        git(repo, "add", "file")
        git(repo, "commit", "-q", "-m", f"{n}")
    survey = surveyed(catalog, repo)
    assert one(survey).branch == goes("feature")
    git(repo, "checkout", "-q", "--detach", "HEAD~1")
    assert one(survey).branch == goes("feature")
    git(repo, "checkout", "-q", "feature")
    git(repo, "-c", "sequence.editor=sed -i s/pick/edit/", "rebase", "-q", "-i", "HEAD~2")
    assert "ref:" not in (repo / ".git/HEAD").read_text()
    # Somebody who starts just now knows nothing from before.
    assert one(surveyed(catalog, repo)).branch == goes("feature")
    git(repo, "rebase", "--abort")
    assert one(survey).branch == goes("feature")


def test_the_users_own_configuration_counts_and_the_repositorys_over_it(
    catalog: Catalog, repo: Path, tmp_path: Path
) -> None:
    git(repo, "remote", "add", "fork", "gh:me/web")
    survey = surveyed(catalog, repo)
    assert one(survey).branch == goes("feature")
    (tmp_path / ".gitconfig").write_text(
        '[url "https://github.com/"]\n\tinsteadOf = gh:\n[remote]\n\tpushDefault = fork\n'
    )
    assert one(survey).branch == Branch("me/web", "me/web", "feature")
    git(repo, "config", "remote.pushDefault", "origin")
    assert one(survey).branch == goes("feature")


@pytest.mark.parametrize("name", ["config", "HEAD"])
def test_what_cannot_be_read_is_as_it_was_and_holds_nobody_up(catalog: Catalog, repo: Path, name: str) -> None:
    survey = surveyed(catalog, repo)
    assert one(survey).branch == goes("feature")
    path = repo / ".git" / name
    path.rename(path.with_suffix(".away"))
    os.mkfifo(path)
    began = time.monotonic()
    assert one(survey).branch == goes("feature")
    assert one(surveyed_again(catalog)).branch is None
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert one(survey).branch == goes("feature")
    assert time.monotonic() - began < 10


def surveyed_again(catalog: Catalog) -> Survey:
    survey = Survey("github.com")
    survey.places(catalog)
    return survey
