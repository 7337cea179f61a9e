"""What git is shown in place of the real git directory: exactly what numbers depend on, and none of the rest (G3)."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gitkit import IDENTITY, add_worktree, commit, git, make_repo, write
from tests.hostile import NUMBERS, Field, harmless, oracle
from workers.shadow import CARRIED, shadow_name

pytestmark = pytest.mark.timeout(60)

ALWAYS = {"HEAD", "config", "index", "lock", "owner", "objects/info/alternates"}
SCRATCH = {"index.added"}  # untracked files are added to it


def shadow(field: Field) -> Path:
    return field.cache / shadow_name(field.dirs.git_dir)


def contents(field: Field) -> set[str]:
    return {str(path.relative_to(shadow(field))) for path in shadow(field).rglob("*") if not path.is_dir()}


def shown(field: Field) -> dict[str, str]:
    """The settings that git sees there."""
    listed = git(field.root, "config", "--file", shadow(field) / "config", "--no-includes", "--list", "-z")
    return dict(record.partition("\n")[::2] for record in listed.split("\0") if record)


def test_it_holds_what_it_must_and_nothing_else(field: Field) -> None:
    field.edit()
    (field.dirs.common_dir / "info").mkdir(exist_ok=True)
    (field.dirs.common_dir / "info/exclude").write_text("ignored\n")
    (field.dirs.common_dir / "info/attributes").write_text("*.bin binary\n")
    write(field.repo, {"hooks/x": "", "ignored": "1\n"})
    git(field.repo, "tag", "v1")
    git(field.repo, "remote", "add", "origin", "https://host.invalid/")
    assert field.look().numbers == NUMBERS
    assert contents(field) == ALWAYS | SCRATCH | {"info/exclude", "info/attributes"}
    assert (shadow(field) / "HEAD").read_text() == git(field.tree, "rev-parse", "HEAD") + "\n"
    assert (shadow(field) / "info/exclude").read_text() == "ignored\n"
    assert (shadow(field) / "objects/info/alternates").read_text() == f'"{field.dirs.common_dir}/objects"\n'
    assert not list((shadow(field) / "refs").iterdir())
    (field.dirs.common_dir / "info/exclude").unlink()
    field.look()
    assert "info/exclude" not in contents(field), "what is gone there is gone here"


def test_nobody_else_can_write_or_read_it(field: Field) -> None:
    before = os.umask(0)
    try:
        field.look()
    finally:
        os.umask(before)
    for path in (shadow(field), *shadow(field).rglob("*")):
        if path.is_dir():
            assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0, path
    assert stat.S_IMODE(shadow(field).stat().st_mode) == 0o700


# ── settings ─────────────────────────────────────────────────────────────────────────────────────

EVERY = re.compile(r"^[a-zA-Z][a-zA-Z0-9-]*(?:\.[^.\s]+)?\.[a-zA-Z][a-zA-Z0-9-]*$")
FITTING = {
    "core.checkstat": "minimal", "core.autocrlf": "input", "core.eol": "crlf", "core.excludesfile": "rules",
    "core.attributesfile": "attributes", "core.worktree": None, "core.repositoryformatversion": "1",
}  # fmt: skip


def every_setting_of_git() -> list[str]:
    """As git itself lists them, with a name where one may be chosen."""
    listed = subprocess.run(
        ["git", "help", "--config"], capture_output=True, text=True, check=True, env=IDENTITY
    ).stdout
    keys = [re.sub(r"<[^>]*>|\*", "evil", line.strip()) for line in listed.splitlines()]
    return [key for key in keys if EVERY.match(key) and not key.lower().startswith(("extensions.", "include"))]


def test_of_all_settings_that_git_knows_only_those_pass_that_are_on_the_list(field: Field) -> None:
    keys = every_setting_of_git()
    assert len(keys) > 400, "git no longer lists its settings in this way"
    lines = []
    for key in [*keys, "filter.evil.clean", "diff.evil.binary", "core.sparseCheckoutCone", "core.trustctime"]:
        value = FITTING.get(key.lower(), "true" if key.lower() in CARRIED else f"canary-{field.program}")
        if key == "diff.evil.binary":
            value = "true"
        if value is None:
            continue
        section, _, name = key.rpartition(".")
        head, dot, sub = section.partition(".")
        lines.append(f"[{head}{f' {chr(34)}{sub}{chr(34)}' if dot else ''}]\n\t{name} = {value}\n")
    config = field.dirs.common_dir / "config"
    config.write_text(config.read_text() + "".join(lines))
    field.edit()
    with harmless(field):
        outcome = field.look()
    assert outcome.numbers == NUMBERS, outcome.done.error
    found = shown(field)
    assert not [key for key, value in found.items() if "canary" in value]
    ours = {
        "core.bare": "false", "core.logallrefupdates": "false", "core.fsmonitor": "false",
        "core.hookspath": "/dev/null", "core.untrackedcache": "false", "core.splitindex": "false",
        "core.safecrlf": "false", "core.pager": "cat", "index.threads": "true", "gc.auto": "0",
        "maintenance.auto": "false", "protocol.allow": "never", "core.repositoryformatversion": "1",
        "extensions.objectformat": "sha1", "core.excludesfile": f"{shadow(field)}/excludes",
        "core.attributesfile": f"{shadow(field)}/attributes",
    }  # fmt: skip
    assert {key: found[key] for key in ours} == ours, "whatever the repository says"
    assert found.keys() - ours.keys() == CARRIED.keys() | {"diff.evil.binary"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("core.autocrlf", "input\n\tfsmonitor = /bin/evil"),
        ("core.eol", 'lf"\n[core]\n\tfsmonitor = /bin/evil'),
        ("core.filemode", "true # \n"),
        ("core.checkstat", "default\r\n"),
    ],
)
def test_a_value_cannot_bring_a_second_setting_with_it(field: Field, key: str, value: str) -> None:
    field.config(key, value)
    with harmless(field):
        assert field.look().reason == "bad_config"


@pytest.mark.parametrize("name", ['x"]\n[core]\n\tfsmonitor = /bin/evil', "x\x01", 'quote" and back\\slash'])
def test_nor_can_a_name(field: Field, name: str) -> None:
    """A config file cannot say most of these; what it can is quoted."""
    git(field.repo, "config", "--file", field.dirs.common_dir / "config", f"diff.{name}.binary", "true", check=False)
    field.edit()
    with harmless(field):
        outcome = field.look()
    assert outcome.reason == "bad_config" or outcome.numbers == NUMBERS
    if outcome.numbers:
        assert "/bin/evil" not in shown(field).values()


# ── repositories of other kinds ──────────────────────────────────────────────────────────────────


def test_a_split_index_is_shown_with_its_other_half(field: Field) -> None:
    git(field.tree, "update-index", "--split-index")
    field.edit()
    right = oracle(field)
    with harmless(field):
        assert field.look().numbers == field.look("a.txt").numbers == right == NUMBERS
    shared = {path.name for path in field.dirs.git_dir.glob("sharedindex.*")}
    assert shared
    assert {name for name in contents(field) if name.startswith("sharedindex.")} <= shared


def test_a_sparse_checkout_is_shown_with_its_rules(field: Field) -> None:
    commit(field.tree, {"in/x": "1\n", "out/y": "1\n"})
    git(field.tree, "sparse-checkout", "set", "in")
    field.edit()
    assert not (field.tree / "out").exists()
    with harmless(field):
        assert field.look().numbers == (4, 4, 1), "what is not checked out is not deleted"
    assert "info/sparse-checkout" in contents(field)


def _clone(field: Field, *words: str) -> None:
    commit(field.repo, {"more.txt": "1\n"})
    commit(field.repo, {"a.txt": "1\n2\n"})
    git(field.repo, "config", "uploadpack.allowFilter", "true")
    git(field.root, "clone", "-q", *words, f"file://{field.repo}", field.root / "clone")
    field.settle(add_worktree(field.root / "clone", field.root / "of-clone", "of-clone"))
    field.repo = field.root / "clone"


def alternates(field: Field) -> None:
    commit(field.repo, {"more.txt": "1\n"})
    git(field.root, "clone", "-q", "--shared", field.repo, field.root / "clone")
    field.settle(add_worktree(field.root / "clone", field.root / "of-clone", "of-clone"))


def partial(field: Field) -> None:
    _clone(field, "--filter=blob:none")


def shallow(field: Field) -> None:
    _clone(field, "--depth=1")


@pytest.mark.parametrize("kind", [alternates, partial, shallow])
def test_a_repository_that_lacks_objects_of_its_own_is_counted_from_what_there_is(
    field: Field, kind: Callable[[Field], None]
) -> None:
    kind(field)
    field.edit()
    with harmless(field):
        assert field.look().numbers == field.look("a.txt", "new.txt").numbers == NUMBERS
    assert ("shallow" in contents(field)) == (kind is shallow)
    assert (shadow(field) / "objects/info/alternates").read_text() == f'"{field.dirs.common_dir}/objects"\n'
    assert not list((shadow(field) / "objects").glob("[0-9a-f][0-9a-f]")), "no object is written, here or there"


def test_what_a_partial_clone_would_have_to_fetch_is_a_reason(field: Field) -> None:
    commit(field.repo, {"b.txt": "0\n1\n"})
    commit(field.repo, {"b.txt": "1\n"})
    partial(field)
    git(field.tree, "reset", "-q", "--hard", "HEAD")
    git(field.tree, "update-ref", "refs/heads/main", "HEAD~2")  # of which the blobs were never fetched
    git(field.tree, "reset", "-q", "--soft", "HEAD")
    git(field.repo, "checkout", "-q", "--detach", check=False)
    with harmless(field):
        outcome = field.look()
        assert outcome.reason == "missing_object" or outcome.numbers is not None
        assert "promis" not in outcome.done.error or "nothing is fetched from here" in outcome.done.error


@pytest.mark.parametrize("how", ["extension", "directory"])
def test_a_reftable_is_a_reason(field: Field, how: str) -> None:
    if how == "extension":
        field.config("core.repositoryFormatVersion", "1", "extensions.refStorage", "reftable")
    else:
        (field.dirs.common_dir / "reftable").mkdir()
    with harmless(field):
        assert field.look().reason == field.look("a.txt").reason == "reftable"


def test_a_repository_of_its_own_inside_is_not_entered(field: Field) -> None:
    make_repo(field.tree / "inner", {"secret": "1\n2\n"})
    field.edit()
    with harmless(field):
        assert field.look().numbers == field.look("inner/secret", "a.txt").numbers == (3, 3, 1)
