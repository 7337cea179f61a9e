"""No program that a worktree names is ever run, and no file in it can hold a look up (G3, S5).

Each trap is first looked at, and must not spring. Then plain git is let into the same worktree, and the trap must
spring: so that a trap which git no longer steps into cannot pass for safety.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.domain.model import Git
from pipeline.gitdir import resolve
from pipeline.wire import Job
from tests.gitkit import add_worktree, commit, git, make_repo, write
from workers import spawn
from workers.git import GitError, measure

pytestmark = pytest.mark.timeout(60)

QUICK_MS = 400
SLACK_S = 4.0  # for a noisy machine; a look that hangs would take until the test's own limit


@pytest.fixture(autouse=True)
def closed_user_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    yield
    me = os.getpid()
    for task in os.listdir(f"/proc/{me}/task"):
        for child in Path(f"/proc/{me}/task/{task}/children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]
            assert not command.endswith((b"git", b"setpriv")), f"{command!r} is still running"


class Field:
    """A linked worktree with a submodule, everything committed, and a canary that hostile programs would make."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repo = make_repo(root / "repo", {"a.txt": "1\n2\n", "b.txt": "1\n"})
        self.tree = add_worktree(self.repo, root / "linked", "feature")
        self.dirs = resolve(self.tree)
        self.canary = root / "canary"
        self.program = root / "program"
        self.program.write_text(f"#!/bin/sh\ntouch {self.canary}\nexit 1\n")
        self.program.chmod(0o755)

    def config(self, *settings: str) -> None:
        for key, value in zip(settings[::2], settings[1::2], strict=True):
            git(self.tree, "config", key, value)

    def edit(self) -> None:
        write(self.tree, {"a.txt": "1\nthree\n", "new.txt": "1\n"})

    def job(self, deadline_ms: int = 20_000) -> Job:
        return Job(
            id=1,
            workspace="w1",
            worktree=str(self.tree),
            git_dir=str(self.dirs.git_dir),
            common_dir=str(self.dirs.common_dir),
            inode=self.dirs.inode,
            base="main",
            deadline_ms=deadline_ms,
        )

    def look(self, deadline_ms: int = 20_000) -> Git:
        return measure(self.job(deadline_ms), self.root / "cache")

    def reason(self, deadline_ms: int = 20_000) -> str:
        with pytest.raises(GitError) as caught:
            self.look(deadline_ms)
        return caught.value.reason


@pytest.fixture
def field(tmp_path: Path) -> Field:
    return Field(tmp_path)


# ── traps ────────────────────────────────────────────────────────────────────────────────────────

STATUS, DIFF, ADD = ("status",), ("diff",), ("add", "-A")


def fsmonitor(field: Field) -> None:
    field.config("core.fsmonitor", str(field.program))
    field.edit()


def filter_clean(field: Field) -> None:
    field.config("filter.evil.clean", str(field.program))
    field.edit()
    write(field.tree, {".gitattributes": "*.txt filter=evil\n"})


def filter_process(field: Field) -> None:
    field.config("filter.evil.process", str(field.program), "filter.evil.required", "true")
    field.edit()
    write(field.tree, {".gitattributes": "*.txt filter=evil\n"})


def filter_by_info_attributes(field: Field) -> None:
    field.config("filter.evil.clean", str(field.program))
    field.edit()
    (field.dirs.common_dir / "info/attributes").write_text("* filter=evil\n")


def filter_by_worktree_config(field: Field) -> None:
    field.config("extensions.worktreeConfig", "true")
    git(field.tree, "config", "--worktree", "filter.evil.clean", str(field.program))
    field.edit()
    write(field.tree, {".gitattributes": "*.txt filter=evil\n"})


def _filter_by(field: Field, key: str) -> None:
    (field.root / "more").write_text(f'[filter "evil"]\n\tclean = {field.program}\n')
    field.config(key, str(field.root / "more"))
    field.edit()
    write(field.tree, {".gitattributes": "*.txt filter=evil\n"})


def filter_by_include(field: Field) -> None:
    _filter_by(field, "include.path")


def filter_by_conditional_include(field: Field) -> None:
    _filter_by(field, "includeIf.onbranch:feature.path")


def filter_by_attributes_file(field: Field) -> None:
    (field.root / "attributes").write_text("* filter=evil\n")
    field.config("filter.evil.clean", str(field.program), "core.attributesFile", str(field.root / "attributes"))
    field.edit()


def hook(field: Field) -> None:
    shutil.copy(field.program, field.dirs.common_dir / "hooks/post-index-change")
    field.edit()


def hooks_path(field: Field) -> None:
    write(field.tree, {"hooks/post-index-change": field.program.read_bytes()})
    (field.tree / "hooks/post-index-change").chmod(0o755)
    field.config("core.hooksPath", str(field.tree / "hooks"))
    field.edit()


def _submodule(field: Field) -> Path:
    make_repo(field.root / "lib", {"v.txt": "1\n"})
    git(field.tree, "submodule", "add", "-q", str(field.root / "lib"), "lib")
    commit(field.tree)
    return field.tree / "lib"


def submodule_fsmonitor(field: Field) -> None:
    git(_submodule(field), "config", "core.fsmonitor", str(field.program))


def submodule_filter(field: Field) -> None:
    lib = _submodule(field)
    git(lib, "config", "filter.evil.clean", str(field.program))
    write(lib, {".gitattributes": "* filter=evil\n", "v.txt": "2\n"})


def nested_repository(field: Field) -> None:
    nested = make_repo(field.tree / "nested", {"v.txt": "1\n"})
    git(field.tree, "add", "nested")
    git(nested, "config", "core.fsmonitor", str(field.program))


def _promisor(field: Field, url: str, *settings: str) -> None:
    """The blob of a.txt is missing, and the remote that promises it is a trap."""
    blob = git(field.tree, "rev-parse", "HEAD:a.txt")
    field.config("core.repositoryFormatVersion", "1", "extensions.partialClone", "origin")
    field.config("remote.origin.url", url, "remote.origin.promisor", "true", *settings)
    (field.dirs.common_dir / "objects" / blob[:2] / blob[2:]).unlink()
    field.edit()


def promisor_ext(field: Field) -> None:
    _promisor(field, f"ext::{field.program}", "protocol.ext.allow", "always")


def promisor_ssh(field: Field) -> None:
    _promisor(field, "ssh://host.invalid/x", "core.sshCommand", str(field.program))


def promisor_uploadpack(field: Field) -> None:
    _promisor(field, str(field.repo), "remote.origin.uploadpack", str(field.program))


def diff_external(field: Field) -> None:
    field.config("diff.external", str(field.program))
    field.edit()


def diff_driver(field: Field) -> None:
    field.config("diff.evil.command", str(field.program))
    field.edit()
    write(field.tree, {".gitattributes": "*.txt diff=evil\n"})


def textconv(field: Field) -> None:
    field.config("diff.evil.textconv", str(field.program))
    field.edit()
    write(field.tree, {".gitattributes": "*.txt diff=evil\n"})


NUMBERS = (2, 2, 1)
TRAPS: dict[Callable[[Field], None], tuple[tuple[str, ...], tuple[int, int, int] | str]] = {
    fsmonitor: (STATUS, NUMBERS),
    filter_clean: (ADD, "filtered"),
    filter_process: (ADD, "filtered"),
    filter_by_info_attributes: (ADD, "filtered"),
    filter_by_worktree_config: (ADD, "filtered"),
    filter_by_include: (ADD, "filtered"),
    filter_by_conditional_include: (ADD, "filtered"),
    filter_by_attributes_file: (ADD, "filtered"),
    hook: (ADD, NUMBERS),
    hooks_path: (ADD, (3, 5, 1)),
    submodule_fsmonitor: (STATUS, (2, 4, 0)),
    submodule_filter: (STATUS, (2, 4, 0)),
    nested_repository: (STATUS, (1, 1, 0)),
    promisor_ext: (DIFF, "missing_object"),
    promisor_ssh: (DIFF, "missing_object"),
    promisor_uploadpack: (DIFF, "missing_object"),
    diff_external: (DIFF, NUMBERS),
    diff_driver: (DIFF, (3, 3, 1)),
    textconv: (DIFF, (3, 3, 1)),
}


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_a_trap_does_not_spring_for_a_look_although_it_does_for_plain_git(
    field: Field, trap: Callable[[Field], None]
) -> None:
    control, expected = TRAPS[trap]
    field.look()  # a first look, so that later ones come with warm caches
    trap(field)
    for _ in range(2):
        if isinstance(expected, str):
            assert field.reason() == expected
        else:
            found = field.look()
            assert (found.files, found.insertions, found.deletions) == expected
        assert not field.canary.exists()
    git(field.tree, *control, check=False)
    assert field.canary.exists(), "the trap is not armed, so this test says nothing"


def test_a_filter_that_touches_no_changed_file_does_not_matter(field: Field) -> None:
    write(field.tree, {"big.bin": "pointer\n", ".gitattributes": "*.bin filter=evil\n"})
    commit(field.tree)
    field.config("filter.evil.clean", str(field.program))
    field.edit()
    found = field.look()
    assert (found.files, found.insertions, found.deletions) == (4, 4, 1)
    assert not field.canary.exists()


def test_the_environment_of_the_worker_does_not_reach_git(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    field.edit()
    for name in ("GIT_EXTERNAL_DIFF", "GIT_SSH_COMMAND", "GIT_PAGER", "GIT_ASKPASS"):
        monkeypatch.setenv(name, str(field.program))
    for name in ("GIT_TRACE", "GIT_TRACE2_EVENT"):
        monkeypatch.setenv(name, str(field.canary))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(field.program))
    monkeypatch.setenv("GIT_DIR", str(field.root))
    monkeypatch.setenv("GIT_INDEX_FILE", str(field.root / "none"))
    found = field.look()
    assert (found.files, found.insertions, found.deletions) == NUMBERS
    assert not field.canary.exists()


# ── files that hold up ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [".gitignore", "sub/.gitignore", ".gitattributes", "nested/.git/HEAD"])
def test_a_fifo_that_git_would_wait_for_costs_the_deadline_and_no_more(field: Field, name: str) -> None:
    write(field.tree, {"sub/n.txt": "1\n"})
    if name.startswith("nested"):
        make_repo(field.tree / "nested", {"v.txt": "1\n"})
        (field.tree / name).unlink()
    os.mkfifo(field.tree / name)
    field.edit()
    began = time.monotonic()
    assert field.reason(QUICK_MS) == "timeout"
    assert QUICK_MS / 1000 <= time.monotonic() - began < QUICK_MS / 1000 + SLACK_S
    (field.tree / name).unlink()
    if name.startswith("nested"):
        shutil.rmtree(field.tree / "nested")
    assert field.look().untracked == 2, "and the next look is as good as ever"


@pytest.mark.parametrize(
    "name",
    [
        "HEAD",
        "config",
        "index",
        "packed-refs",
        "commondir",
        "info/exclude",
        "info/attributes",
        "info/grafts",
        "shallow",
        "refs/heads/main",
        "refs/heads/feature",
        "included",
    ],
)
@pytest.mark.parametrize("kind", ["fifo", "symlink", "directory"])
def test_what_is_no_regular_file_in_the_git_directory_is_refused_at_once(field: Field, name: str, kind: str) -> None:
    field.edit()
    field.look()
    field.config("include.path", "included")
    own = {"HEAD", "index", "commondir"}
    path = (field.dirs.git_dir if name in own else field.dirs.common_dir) / name
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "symlink":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    began = time.monotonic()
    expected = {"unsafe_file"}
    if name == "info/grafts":
        expected = {"rewritten_history"}
    if kind == "directory" and name.startswith("refs/"):
        field.look()  # git, too, takes an empty directory for no ref
    else:
        assert field.reason() in expected
    assert time.monotonic() - began < SLACK_S


def test_alternates_that_never_end_cost_the_deadline_and_no_more(field: Field) -> None:
    os.mkfifo(field.dirs.common_dir / "objects/info/alternates")
    began = time.monotonic()
    assert field.reason(QUICK_MS) == "timeout"
    assert time.monotonic() - began < QUICK_MS / 1000 + SLACK_S


def test_a_symlink_to_an_endless_device_is_not_followed(field: Field) -> None:
    (field.tree / ".gitignore").symlink_to("/dev/zero")
    (field.tree / ".gitattributes").symlink_to("/dev/zero")
    field.edit()
    found = field.look()
    assert (found.files, found.untracked) == (4, 3)


def test_a_file_of_absurd_size_costs_the_deadline_and_no_more(field: Field) -> None:
    with open(field.tree / "huge.txt", "wb") as file:
        file.truncate(1 << 38)
    began = time.monotonic()
    assert field.reason(QUICK_MS) == "timeout"
    assert time.monotonic() - began < QUICK_MS / 1000 + SLACK_S


def test_git_that_says_too_much_is_cut_off(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    write(field.tree, {f"generated/{number}": "" for number in range(200)})
    monkeypatch.setattr(spawn, "MAX_OUTPUT", 1000)
    assert field.reason() == "too_large"


# ── another repository in place of this one ──────────────────────────────────────────────────────


def test_a_git_file_that_points_elsewhere_since_registration_is_refused(field: Field) -> None:
    other = make_repo(field.root / "other", {"secret": "1\n"})
    (field.tree / ".git").write_text(f"gitdir: {other}/.git\n")
    assert field.reason() == "pinned_changed"


def test_a_git_directory_made_anew_at_the_same_place_is_refused(field: Field) -> None:
    field.look()
    shutil.copytree(field.dirs.git_dir, field.root / "copy")
    shutil.rmtree(field.dirs.git_dir)
    shutil.move(field.root / "copy", field.dirs.git_dir)
    assert field.dirs.git_dir.stat().st_ino != field.dirs.inode
    assert field.reason() == "pinned_changed"


def test_a_common_directory_rewritten_since_registration_is_refused(field: Field) -> None:
    other = make_repo(field.root / "other", {"secret": "1\n"})
    (field.dirs.git_dir / "commondir").write_text(f"{other}/.git\n")
    assert field.reason() == "pinned_changed"


def test_what_a_hostile_head_holds_is_not_in_the_error(field: Field) -> None:
    (field.dirs.git_dir / "HEAD").write_text("canary-secret\n")
    with pytest.raises(GitError) as caught:
        field.look()
    assert caught.value.reason == "bad_ref"
    assert "canary-secret" not in str(caught.value)
