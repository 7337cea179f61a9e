"""No file in a worktree or its git directory can hold treewire up, mislead it, or be changed by it (G3, S5).

Whatever lies there: every way in ends within its deadline, with exact numbers or a reason that has a name.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.gitkit import commit, git, make_repo, write
from tests.hostile import MAKES, NUMBERS, Field, Make, directory, endless, fifo, harmless, loop, none_left, oracle, put

pytestmark = pytest.mark.timeout(90)

QUICK_MS = 200


@contextmanager
def spoilt(path: Path) -> Iterator[Callable[[Make], None]]:
    """Put this and that in place of what is there, which is put back at the end."""
    aside = path.with_name(path.name + ".aside")
    had_parent = path.parent.exists()
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.rename(aside)

    def clear() -> None:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)

    def spoil(make: Make) -> None:
        clear()
        make(path)

    try:
        yield spoil
    finally:
        clear()
        if aside.exists():
            aside.rename(path)
        if not had_parent:
            path.parent.rmdir()


# ── what is no file, or no sane one ──────────────────────────────────────────────────────────────

OWN = (
    "HEAD",
    "index",
    "commondir",
    "gitdir",
    "config.worktree",
    "MERGE_HEAD",
    "sequencer/todo",
    "info/sparse-checkout",
)
COMMON = (
    "config", "packed-refs", "info/exclude", "info/attributes", "info/grafts", "shallow", "included", "refs",
    "refs/heads", "refs/heads/main", "refs/heads/feature", "refs/replace", "worktrees", "objects", "objects/pack",
    "objects/info/alternates", "objects/info/commit-graph",
)  # fmt: skip
TREE = (".git", ".gitignore", ".gitattributes", ".gitmodules", "sub/.gitignore", "sub/.gitattributes", "a.txt")


def visit(field: Field, name: str) -> None:
    """Every way in, each within its deadline and without consequences."""
    with harmless(field):
        for outcome in (field.look(deadline_ms=QUICK_MS), field.look("a.txt", name, deadline_ms=QUICK_MS)):
            assert outcome.reason or outcome.numbers
            assert "canary-secret" not in outcome.done.error, "what a file holds is nobody's business"
        field.discover(QUICK_MS / 1000)
        field.watch()


@pytest.mark.parametrize("place", [*(f"own:{name}" for name in OWN), *(f"common:{name}" for name in COMMON)])
def test_nothing_in_a_git_directory_holds_a_look_up(field: Field, place: str) -> None:
    whose, _, name = place.partition(":")
    field.edit()
    field.config("include.path", "included", "extensions.worktreeConfig", "true", "core.sparseCheckout", "true")
    assert field.look().numbers == NUMBERS
    with spoilt((field.dirs.git_dir if whose == "own" else field.dirs.common_dir) / name) as spoil:
        for make in MAKES:
            spoil(make)
            visit(field, "new.txt")
    assert field.look().numbers == NUMBERS, "and the next look is as good as ever"


@pytest.mark.parametrize("name", TREE)
def test_nothing_in_a_worktree_holds_a_look_up(field: Field, name: str) -> None:
    write(field.tree, {"sub/n.txt": "1\n"})
    field.edit()
    assert field.look().numbers == (3, 3, 1)
    with spoilt(field.tree / name) as spoil:
        for make in MAKES:
            spoil(make)
            visit(field, name)
    assert field.look().numbers == (3, 3, 1)


UNSAFE = ("own:HEAD", "own:index", "common:config", "common:packed-refs", "common:info/exclude", "common:included")


@pytest.mark.parametrize("make", [fifo, endless, loop, directory])
@pytest.mark.parametrize("place", UNSAFE)
def test_what_we_read_ourselves_is_refused_at_once_if_it_is_no_regular_file(
    field: Field, place: str, make: Make
) -> None:
    whose, _, name = place.partition(":")
    field.config("include.path", "included")
    put((field.dirs.git_dir if whose == "own" else field.dirs.common_dir) / name, make)
    outcome = field.look()
    assert outcome.reason == "unsafe_file"
    assert outcome.done.ended - outcome.done.began < 2e9


@pytest.mark.parametrize("name", [".gitignore", "sub/.gitignore", ".gitattributes", "nested/.git/HEAD"])
def test_a_fifo_that_git_would_wait_for_costs_the_deadline_and_no_more(field: Field, name: str) -> None:
    write(field.tree, {"sub/n.txt": "1\n"})
    if name.startswith("nested"):
        make_repo(field.tree / "nested", {"v.txt": "1\n"})
        (field.tree / name).unlink()
    fifo(field.tree / name)
    field.edit()
    with harmless(field):
        outcome = field.look(deadline_ms=QUICK_MS)
        assert outcome.reason == "timeout"
        assert outcome.done.ended - outcome.done.began >= QUICK_MS * 1e6
    (field.tree / name).unlink()
    if name.startswith("nested"):
        shutil.rmtree(field.tree / "nested")
    assert field.look().done.git.untracked == 2, "and the next look is as good as ever"  # type: ignore[union-attr]


def test_links_to_endless_devices_are_not_followed(field: Field) -> None:
    endless(field.tree / ".gitignore")
    endless(field.tree / ".gitattributes")
    field.edit()
    assert oracle(field) == (4, 4, 1)
    with harmless(field):
        assert field.look().numbers == field.look("a.txt").numbers == (4, 4, 1)


HANGING = """
import os, sys
from pathlib import Path
from tests.gitkit import git
from tests.hostile import Field

kind, root = sys.argv[1], Path(sys.argv[2])
field = Field(root)
objects = field.dirs.common_dir / "objects"
if kind in ("idx", "pack"):
    git(field.tree, "repack", "-adq")
field.look()
name = git(field.tree, "rev-parse", "HEAD:a.txt")
if kind in ("idx", "pack"):
    (path,) = objects.glob(f"pack/*.{kind}")
elif kind == "loose":
    path = objects / name[:2] / name[2:]
elif kind == "multi-pack-index":
    path = objects / "pack/multi-pack-index"
elif kind == "further store":
    (root / "other/pack").mkdir(parents=True)
    (objects / "info/alternates").write_text(f"{root}/other\\n")
    path = root / "other/pack/pack-x.idx"
path.unlink(missing_ok=True)
os.mkfifo(path)
field.edit()
outcome = field.look("a.txt", "new.txt", deadline_ms=300)
print(outcome.reason or outcome.numbers, outcome.done.scoped)
"""


@pytest.mark.parametrize("kind", ["idx", "pack", "loose", "multi-pack-index", "further store"])
def test_a_fifo_among_the_objects_does_not_freeze_the_process_that_reads_them(
    tmp_path: Path, closed_user_config: None, kind: str
) -> None:
    """In a process of its own: a library that waits there would keep the interpreter, the deadline's too."""
    done = subprocess.run(
        [sys.executable, "-c", HANGING, kind, str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("timeout False\n", "missing_object False\n", f"{NUMBERS} False\n")
    none_left(tmp_path)


def test_a_small_object_that_unpacks_to_a_huge_one_is_not_unpacked(field: Field) -> None:
    (field.tree / "bomb.txt").write_bytes(b"0\n" * (60 << 20))
    git(field.tree, "-c", "core.compression=1", "add", "-A")
    git(field.tree, "commit", "-qm", "bomb")
    git(field.repo, "merge", "-q", "feature")
    field.look()
    write(field.tree, {"bomb.txt": "small\n"})
    before = _peak()
    outcome = field.look("bomb.txt", deadline_ms=3000)
    assert not outcome.done.scoped, "git is asked, which has limits of its own"
    assert _peak() - before < 60 << 20


def _peak() -> int:
    """The most memory that this process ever had at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def test_two_texts_made_to_be_slow_to_compare_are_left_to_a_process_that_can_be_killed(field: Field) -> None:
    chance = random.Random(1)
    one, other = ("".join(f"{chance.randrange(3)}\n" for _ in range(300_000)) for _ in range(2))
    commit(field.tree, {"slow.txt": one})
    git(field.repo, "merge", "-q", "feature")
    field.look()
    write(field.tree, {"slow.txt": other})
    outcome = field.look("slow.txt", deadline_ms=500)
    assert outcome.reason == "timeout" or outcome.numbers
    assert not outcome.done.scoped


def test_an_index_that_lies_is_a_reason_or_does_not_matter(field: Field) -> None:
    index = field.dirs.git_dir / "index"
    sound = index.read_bytes()
    field.edit()
    field.look()
    for content in (
        sound[:8] + b"\xff\xff\xff\xff" + sound[12:],  # four thousand million entries
        sound[:8] + b"\x00\x00\x00\x00" + sound[12:],
        sound[: len(sound) // 2],
        sound[:-20] + bytes(range(20)),
        sound[:4] + b"\x00\x00\x00\x63" + sound[8:],  # a version of the future
        sound[:12] + b"\xff" * 200 + sound[212:],
        sound[:-20] + b"link" + b"\xff\xff\xff\xff" + sound[-20:],  # a split index that is not there
        sound + sound,
        b"",
    ):
        index.write_bytes(content)
        with harmless(field):
            for outcome in (field.look(), field.look("a.txt")):
                # git itself minds neither a wrong checksum nor an extension that it may leave alone.
                assert outcome.reason or outcome.numbers == NUMBERS
    index.write_bytes(sound)
    assert field.look().numbers == NUMBERS


def test_a_pack_that_is_corrupt_is_a_reason_or_does_not_matter(field: Field) -> None:
    for number in range(30):
        commit(field.tree, {"a.txt": f"{number}\n" * 200})
    git(field.tree, "repack", "-adq")
    field.edit()
    write(field.tree, {"b.txt": "changed\n"})
    right = field.look().numbers
    packs = field.dirs.common_dir / "objects/pack"
    for suffix in ("pack", "idx"):
        (path,) = packs.glob(f"*.{suffix}")
        sound = path.read_bytes()
        path.chmod(0o644)
        for spoil in (sound[: len(sound) // 2], b"", b"\xff" * len(sound), sound[:100] + os.urandom(400) + sound[500:]):
            path.write_bytes(spoil)
            with harmless(field):
                for outcome in (field.look(), field.look("b.txt")):
                    assert outcome.reason or outcome.numbers == right
        path.write_bytes(sound)
    assert field.look().numbers == right


def test_a_loose_object_that_lies_is_a_reason(field: Field) -> None:
    field.edit()
    write(field.tree, {"b.txt": "changed\n"})
    field.look()
    for name in ("HEAD", "HEAD^{tree}", "HEAD:b.txt"):
        object_name = git(field.tree, "rev-parse", name)
        path = field.dirs.common_dir / "objects" / object_name[:2] / object_name[2:]
        sound = path.read_bytes()
        path.chmod(0o644)
        for spoil in (b"", b"garbage", sound[:10]):
            path.write_bytes(spoil)
            with harmless(field):
                assert field.look().reason
                assert field.look("b.txt").reason or name != "HEAD:b.txt"
        path.write_bytes(sound)
    assert field.look().reason == ""


@pytest.mark.parametrize("kind", ["self", "chain", "dangling"])
def test_alternates_that_lead_in_circles_do_not_matter(field: Field, kind: str) -> None:
    objects = field.dirs.common_dir / "objects"
    target = {"self": objects, "chain": field.root / "other", "dangling": field.root / "nowhere"}[kind]
    if kind == "chain":
        (target / "info").mkdir(parents=True)
        (target / "info/alternates").write_text(f"{objects}\n")
    (objects / "info/alternates").write_text(f"{target}\n")
    field.edit()
    with harmless(field):
        assert field.look().numbers == field.look("a.txt").numbers == NUMBERS
