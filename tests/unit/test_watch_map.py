"""Whom a changed path concerns, and which directories are worth a watch."""

from __future__ import annotations

import pytest

from workers.ignored import Rules
from workers.watch import Hit, Map, Site, refs_of

COMMON = "/r/.git"


def site(name: str, branch: str | None, base: str = "main", known: tuple[str, ...] = ("refs/heads/main",)) -> Site:
    refs = refs_of(branch, base, lambda ref: "1" * 40 if ref in known else None)
    return Site(name, f"{COMMON}/worktrees/{name}", COMMON, refs)


MAIN = Site("main", COMMON, COMMON, refs_of("main", "main", lambda _: "1" * 40))
MAP = Map([MAIN, site("a", "feature/a"), site("b", "feature/b"), site("off", None)])


def hits(path: str) -> set[tuple[str, str]]:
    return {(hit.workspace, hit.kind) for hit in MAP.hits(f"{COMMON}/{path}")}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("index", "index"),
        ("HEAD", "head"),
        ("MERGE_HEAD", "operation"),
        ("CHERRY_PICK_HEAD", "operation"),
        ("REVERT_HEAD", "operation"),
        ("BISECT_LOG", "operation"),
        ("rebase-merge", "operation"),
        ("rebase-apply", "operation"),
        ("sequencer", "operation"),
        ("config.worktree", "config"),
    ],
)
def test_a_file_of_a_worktrees_own_git_directory_concerns_that_worktree_alone(path: str, kind: str) -> None:
    assert hits(f"worktrees/a/{path}") == {("a", kind)}
    assert hits(path) == {("main", kind)}


@pytest.mark.parametrize(
    "path",
    [
        "index.lock",
        "HEAD.lock",
        "COMMIT_EDITMSG",
        "MERGE_MSG",
        "SQUASH_MSG",
        "ORIG_HEAD",
        "FETCH_HEAD",
        "AUTO_MERGE",
        "gc.pid",
        "logs/HEAD",
        "logs",
        "objects",
        "objects/ab",
        "packed-refs.lock",
        "refs/heads/main.lock",
        "refs/heads/feature/a.lock",
        "description",
        "config",
        "sharedindex.1234",
        "hooks/index",
        "info/HEAD",
    ],
)
def test_noise_concerns_nobody(path: str) -> None:
    assert hits(path) == set()
    assert hits(f"worktrees/a/{path}") == set()


def test_a_commit_in_one_worktree_does_not_concern_its_siblings() -> None:
    assert hits("refs/heads/feature/a") == {("a", "ref")}


def test_the_base_branch_concerns_all_that_are_measured_against_it() -> None:
    assert hits("refs/heads/main") == {("main", "ref"), ("a", "ref"), ("b", "ref"), ("off", "ref")}


def test_a_directory_of_refs_that_comes_or_goes_concerns_the_branches_in_it() -> None:
    assert hits("refs/heads/feature") == {("a", "ref"), ("b", "ref")}
    assert hits("refs/heads/feat") == set()


def test_a_fetch_of_a_remote_branch_with_a_local_namesake_concerns_nobody() -> None:
    assert hits("refs/remotes/origin/main") == set()


def test_a_base_that_is_only_there_remotely_concerns_those_that_are_measured_against_it() -> None:
    known = ("refs/remotes/origin/next",)
    remote = Map([site("a", "x", "next", known), site("b", "y", "origin/next", known), site("c", "z")])
    assert remote.hits(f"{COMMON}/refs/remotes/origin/next") == {Hit("a", "ref"), Hit("b", "ref")}
    assert remote.hits(f"{COMMON}/refs/heads/next") == {Hit("a", "ref")}, "a local one would be preferred"


def test_rules_in_the_common_directory_concern_all_that_share_it() -> None:
    everybody = {(name, "rules") for name in ("main", "a", "b", "off")}
    assert hits("info/exclude") == hits("info/attributes") == hits("info") == everybody
    assert hits("worktrees/a/info/exclude") == hits("info/sparse-checkout") == set()


def test_a_directory_of_the_repository_is_known_by_whom_it_belongs_to() -> None:
    assert MAP.beside(f"{COMMON}/info") == ["main", "a", "b", "off"]
    assert MAP.beside(f"{COMMON}/worktrees/a") == ["a"]
    assert MAP.beside("/elsewhere") == []


def test_packed_refs_may_have_moved_any_ref_of_the_repository_and_none_of_another() -> None:
    assert set(MAP.sharing(f"{COMMON}/packed-refs")) == {"main", "a", "b", "off"}
    assert MAP.sharing("/other/.git/packed-refs") == []


def test_what_moved_is_told_by_comparing_what_refs_stand_for() -> None:
    later = Map([MAIN, site("a", "feature/a", known=()), site("b", "feature/b"), site("new", "n")])
    assert later.moved(MAP) == {"a"}


def test_repositories_inside_a_directory_called_refs_are_told_apart() -> None:
    inner = "/x/refs/y/.git"
    nested = Map([Site("n", inner, inner, {"refs/heads/main": None})])
    assert nested.hits(f"{inner}/refs/heads/main") == {Hit("n", "ref")}
    assert nested.hits("/x/refs/heads/main") == set()


def test_paths_of_nobody_concern_nobody() -> None:
    assert MAP.hits("/elsewhere/.git/HEAD") == set()
    assert MAP.hits("HEAD") == set()
    assert Map([]).hits(f"{COMMON}/HEAD") == set()


def test_two_workspaces_on_one_git_directory_are_both_concerned() -> None:
    twins = Map([Site(name, COMMON, COMMON, {}) for name in ("x", "y")])
    assert twins.hits(f"{COMMON}/index") == {Hit("x", "index"), Hit("y", "index")}


# ── ignored directories ──────────────────────────────────────────────────────────────────────────


def ignores(lines: str, name: str, directory: bool = True) -> bool:
    return Rules([]).below(lines.encode()).ignore(name.encode(), directory)


@pytest.mark.parametrize(
    ("lines", "name", "expected"),
    [
        ("out", "out", True),
        ("out/", "out", True),
        ("/out", "out", True),
        ("**/out", "out", True),
        ("*.egg-info", "x.egg-info", True),
        ("out\n!out", "out", False),
        ("!out\nout", "out", True),
        ("# out", "out", False),
        ("", "out", False),
        ("outer", "out", False),
        ("out  ", "out", True),
        ("out\r", "out", True),
        ("[ab]*", "apple", True),
        ("a/out", "out", False),
        ("out\n!a/out", "out", False),
        ("o\\ut", "out", False),
        ("out\n!o\\ut", "out", False),
    ],
)
def test_plain_lines_are_understood_and_others_never_ignore(lines: str, name: str, expected: bool) -> None:
    assert ignores(lines, name) is expected


def test_a_line_for_directories_does_not_speak_of_files() -> None:
    assert not ignores("out/", "out", directory=False)
    assert ignores("*.log", "x.log", directory=False)


def test_the_nearest_file_decides_and_anchored_lines_do_not_reach_down() -> None:
    top = Rules([]).below(b"/build\n*.gen\nlogs/")
    below = top.below(b"!keep.gen")
    assert not below.ignore(b"build", True)
    assert below.ignore(b"logs", True)
    assert below.ignore(b"x.gen", False)
    assert not below.ignore(b"keep.gen", False)
    assert top.ignore(b"keep.gen", False)


def test_names_that_are_no_text_are_no_trouble() -> None:
    assert Rules([]).below(b"\xff*\n[z-a]\n[").ignore(b"\xfe\xff", True) is False
    assert Rules([]).below(b"\xff*").ignore(b"\xff\xfe", True) is True
