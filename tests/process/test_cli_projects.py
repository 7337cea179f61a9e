"""`treewire project` and `treewire workspace` where an operator errs, changes his mind, or is no person at all."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import deployment
from pipeline import bus
from pipeline import catalog as catalogs
from pipeline.catalog.ids import worktree_id
from pipeline.cli import main
from pipeline.cli.project import project, workspace
from pipeline.reconciler.readers.catalog import CatalogReader
from pipeline.runtime.beat import read_beats
from pipeline.runtime.clock import CLOCK, now_ns
from pipeline.runtime.settings import Settings
from tests.gitkit import add_worktree, git, make_repo

Treewire = Callable[..., str]


@pytest.fixture
def settings() -> Iterator[Settings]:
    # The usual temporary directory has a name too long for sockets.
    with tempfile.TemporaryDirectory(prefix="tw-", dir="/tmp") as home:
        yield Settings(home=Path(home))


@pytest.fixture
def treewire(settings: Settings) -> Treewire:
    def run(group: Any, *arguments: object, code: int = 0, **options: Any) -> str:
        result = CliRunner().invoke(group, [str(a) for a in arguments], obj=settings, **options)
        assert result.exit_code == code, (result.output, result.exception)
        return result.output

    return run


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return make_repo(tmp_path / "web", {"a": "1\n"})


def listed(treewire: Treewire) -> dict[str, Any]:
    [row] = json.loads(treewire(project, "list", "--json"))
    return dict(row)


def test_a_known_project_that_is_added_with_other_values_says_what_changed(treewire: Treewire, repo: Path) -> None:
    git(repo, "branch", "dev")
    treewire(project, "add", repo)
    told = treewire(project, "add", repo, "--name", "The web", "--base", "dev")
    assert told == f"Changed web ({repo}): name is The web now, and was web; base is dev now, and was (default).\n"
    assert (listed(treewire)["name"], listed(treewire)["base"]) == ("The web", "dev")
    assert "The web" in treewire(project, "list")
    assert "Already there" in treewire(project, "add", repo, "--name", "The web", "--base", "dev")
    [row] = json.loads(treewire(project, "add", repo, "--base", "main", "--json"))
    assert (row["new"], row["changed"], row["base"]) == (False, {"base": "dev"}, "main")


def test_an_empty_name_or_base_goes_back_to_the_default(treewire: Treewire, repo: Path) -> None:
    treewire(project, "add", repo, "--name", "The web", "--base", "main")
    treewire(project, "add", repo)
    assert (listed(treewire)["name"], listed(treewire)["base"]) == ("The web", "main")
    treewire(project, "add", repo, "--name", "", "--base", "")
    assert (listed(treewire)["name"], listed(treewire)["base"]) == ("web", "")


def test_a_base_that_is_no_branch_is_refused_before_anything_is_written(
    treewire: Treewire, repo: Path, tmp_path: Path
) -> None:
    make_repo(tmp_path / "api", {"a": "1\n"}, branch="trunk")
    assert "has no branch 'tpyo'" in treewire(project, "add", repo, "--base", "tpyo", code=1)
    assert "api has no branch 'main'" in treewire(project, "add", tmp_path, "--base", "main", code=1)
    assert json.loads(treewire(project, "list", "--json")) == []
    git(repo, "update-ref", "refs/remotes/origin/next", "HEAD")
    assert "Added web" in treewire(project, "add", repo, "--base", "next")
    (repo / ".git/refs/heads/odd").symlink_to("main")
    assert "--base cannot be checked" in treewire(project, "add", repo, "--base", "odd", code=1)


def test_what_was_archived_by_hand_stays_so_when_its_project_is_removed_and_added_again(
    treewire: Treewire, repo: Path, tmp_path: Path
) -> None:
    fix, kept = add_worktree(repo, tmp_path / "fix", "fix"), add_worktree(repo, tmp_path / "kept", "kept")
    treewire(project, "add", repo)
    treewire(workspace, "archive", fix)
    assert "Removed web with 2 workspaces" in treewire(project, "remove", "web", "--yes")
    treewire(project, "add", repo)
    assert {row["id"] for row in json.loads(treewire(workspace, "list", "--json"))} == {
        worktree_id(repo),
        worktree_id(kept),
    }
    git(repo, "worktree", "remove", fix)
    treewire(project, "add", repo)
    git(repo, "worktree", "add", "-q", fix, "fix")
    treewire(project, "add", repo)
    assert worktree_id(fix) in treewire(workspace, "list"), "made anew, it is another one"


def test_a_folder_inside_a_repository_is_told_which_one_it_belongs_to(treewire: Treewire, repo: Path) -> None:
    (repo / "src" / "deep").mkdir(parents=True)
    told = treewire(project, "add", repo / "src" / "deep", code=1)
    assert f"lies inside the repository {repo}" in told
    assert "git init" not in told
    (repo / ".git" / "HEAD").unlink()
    assert "is no sound git repository: " in treewire(project, "add", repo / "src", code=1)


def test_removing_where_nobody_can_be_asked_says_how_to_do_it(treewire: Treewire, repo: Path) -> None:
    treewire(project, "add", repo)
    assert "--yes" in treewire(project, "remove", "web", code=2, input="")
    assert listed(treewire)["id"] == "web"


def test_a_project_and_a_workspace_may_be_named_by_what_they_are_called(
    treewire: Treewire, repo: Path, tmp_path: Path
) -> None:
    fix = add_worktree(repo, tmp_path / "fix-login", "fix")
    treewire(project, "add", repo, "--name", "The web")
    assert "did you mean 'fix-login'" in treewire(workspace, "archive", "fix-lgoin", code=1)
    assert treewire(workspace, "archive", "fix-login") == f"Archived {worktree_id(fix)}.\n"
    assert "archived already" in treewire(workspace, "archive", "fix-login")
    assert "Removed web" in treewire(project, "remove", "The web", "--yes")


def test_a_name_that_several_have_is_not_guessed_and_a_live_one_goes_before_archived_ones(
    treewire: Treewire, repo: Path, tmp_path: Path
) -> None:
    one, other = (add_worktree(repo, tmp_path / side / "task", side) for side in ("one", "other"))
    treewire(project, "add", repo)
    told = treewire(workspace, "archive", "task", code=1)
    assert worktree_id(one) in told
    assert worktree_id(other) in told
    treewire(workspace, "archive", one)
    assert treewire(workspace, "archive", "task") == f"Archived {worktree_id(other)}.\n"


def test_what_is_removed_or_archived_on_purpose_leaves_a_running_aggregator_without_a_census(
    treewire: Treewire, settings: Settings, repo: Path, tmp_path: Path
) -> None:
    """No reconciler runs here: whatever leaves was told by the command itself."""
    for n in range(6):
        add_worktree(repo, tmp_path / f"task-{n}", f"task-{n}")
    treewire(project, "add", repo)

    def entries() -> int | None:
        found = next((b for b in read_beats(settings.run_dir) if b.name == "aggregator"), None)
        return None if found is None or "entries" not in found.figures else int(found.figures["entries"])

    with deployment.process("aggregator", settings):
        census(settings)
        deployment.until(lambda: entries() == 7, 20, "all workspaces")
        treewire(workspace, "archive", "task-0")
        deployment.until(lambda: entries() == 6, 20, "the archived one to leave")
        treewire(project, "remove", "web", "--yes")
        deployment.until(lambda: entries() == 0, 20, "all to leave")


def census(settings: Settings) -> None:
    """What a reconciler does once, at the start."""
    catalog = catalogs.open(settings)
    ingress = bus.Ingress(settings.run_dir)
    try:
        deployment.until((settings.run_dir / "ingress.sock").exists, 20, "the aggregator's sockets")
        reading = CatalogReader(catalog, now_ns, CLOCK).read()
        deployment.until(lambda: ingress.send(reading.census), 20, "the census to leave")
    finally:
        ingress.close()
        catalog.close()
        bus.close()


def test_a_command_keeps_to_the_settings_it_was_given_after_the_whole_program_was_used_in_this_process(
    treewire: Treewire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise whoever calls a command from Python would write to the user's own home."""
    monkeypatch.setenv("TREEWIRE_HOME", str(tmp_path / "another"))
    CliRunner().invoke(main, ["project", "list", "--help"])
    assert json.loads(treewire(project, "list", "--json")) == []
    assert not (tmp_path / "another").exists()
