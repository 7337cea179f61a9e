"""Names, numbers and shapes of files that nobody expects give exact numbers, or a reason, and in time (G3, S5)."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.gitkit import commit, git, write
from tests.hostile import MAKES, NUMBERS, Field, harmless, huge, none_left, oracle, put

pytestmark = pytest.mark.timeout(120)

QUICK_MS = 200
MANY = int(os.environ.get("TREEWIRE_MANY_FILES", "200000"))  # a million takes minutes: ask for it

# ── names ────────────────────────────────────────────────────────────────────────────────────────

ODD_NAMES = (
    b"--output=canary", b"-p", b"--", b"--help", b"a\nb", b"a\tb", b'"quoted"', b"back\\slash", b"caf\xe9", b"\xff\xfe",
    b":(top)x", b":!x", b"*", b"[a]", b" ", b"\x01\x1b[31m", b"sub/-p", b"?? ", b"1 .M N", b"x" * 255,
    b"$(touch canary)",
)  # fmt: skip


def test_names_that_look_like_options_patterns_or_output_are_names(field: Field) -> None:
    for name in ODD_NAMES[::2]:
        write(field.tree, {os.fsdecode(name): "1\n"})
    commit(field.tree)
    for name in ODD_NAMES:
        write(field.tree, {os.fsdecode(name): "1\n2\n"})
    field.edit()
    right = oracle(field)
    with harmless(field):
        assert field.look().numbers == right
        assert field.look(*ODD_NAMES, "a.txt").numbers == right
        field.watch()


@pytest.mark.parametrize(
    "branch", [b"-p", b"--output=canary", b"caf\xe9", b"a;b", b"$(touch${IFS}canary)", b"HEAD", b"@"]
)
def test_branches_that_look_like_options_are_branches(field: Field, branch: bytes) -> None:
    git(field.tree, "update-ref", b"refs/heads/" + branch, "HEAD")
    git(field.tree, "symbolic-ref", "HEAD", b"refs/heads/" + branch)
    field.edit()
    job = field.job()
    with harmless(field):
        assert field.look().numbers == NUMBERS
        assert field.discover() == ""
    del job


@pytest.mark.parametrize("base", ["-p", "--output=canary", "../../HEAD", "a..b", "@{-1}", "HEAD^{/x}", "main\n-p", ""])
def test_a_base_that_is_no_branch_counts_as_none(field: Field, base: str) -> None:
    field.edit()
    field.base = base
    with harmless(field):
        outcome = field.look()
        assert outcome.numbers == NUMBERS, "against HEAD, then"
        assert outcome.done.git is not None
        assert outcome.done.git.ahead is None


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def swept(path: Path) -> Iterator[None]:
    """Remove what Python would take long for, or could not."""
    try:
        yield
    finally:
        subprocess.run(["rm", "-rf", path], check=True)


def test_a_directory_with_very_many_files_gives_numbers_or_a_reason(closed_user_config: None) -> None:
    # In memory where there is such a place: the disk would be what takes the time.
    root = Path(tempfile.mkdtemp(prefix="treewire-", dir=next(filter(os.path.isdir, ("/dev/shm", "/tmp")))))
    with swept(root):
        field = Field(root)
        (field.tree / "many").mkdir()
        many = os.open(field.tree / "many", os.O_PATH)
        for number in range(MANY):
            os.close(os.open(f"{number:07}", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=many))
        os.close(many)
        field.edit()
        assert field.look(deadline_ms=QUICK_MS).reason == "timeout"
        ample = field.look(deadline_ms=600_000)
        assert ample.numbers == (MANY + 2, 2, 1) or ample.reason == "too_large"
        scoped = field.look("a.txt", "many/0000007", deadline_ms=600_000)
        assert scoped[:2] == ample[:2]
        field.watch()
        none_left(root)


def test_a_file_of_absurd_size_costs_the_deadline_and_no_more(field: Field) -> None:
    huge(field.tree / "huge.txt")
    with harmless(field):
        assert field.look(deadline_ms=QUICK_MS).reason in ("timeout", "too_large")
    (field.tree / "huge.txt").unlink()
    field.edit()
    field.look()
    put(field.tree / "a.txt", huge)
    with harmless(field):
        assert field.look(deadline_ms=QUICK_MS).reason in ("timeout", "too_large")
        assert field.look("a.txt", deadline_ms=QUICK_MS).reason in ("timeout", "too_large")


def test_directories_nested_deeper_than_a_path_can_name_are_left_out(field: Field) -> None:
    field.edit()
    with swept(field.tree / "d"):
        subprocess.run(
            ["sh", "-c", 'for n in 1 2 3 4 5; do mkdir -p "$D" && cd -P "$D" || exit 1; done; echo 1 > file'],
            cwd=field.tree, env={"PATH": os.defpath, "D": "/".join(["d", *["d" * 200] * 5])}, check=True,
        )  # fmt: skip
        outcome = field.look()
        assert outcome.reason or outcome.numbers == NUMBERS
        scoped = field.look("a.txt")
        assert scoped.numbers == outcome.numbers or scoped.reason
        field.watch()


def test_symbolic_links_are_counted_and_never_followed(field: Field) -> None:
    for name, target in {"up": "..", "self": "self", "b": "c", "c": "b", "root": "/", "proc": "/proc/self/fd"}.items():
        (field.tree / name).symlink_to(target)
    (field.root / "outside").mkdir()
    (field.root / "outside/secret").write_text("1\n2\n3\n")
    (field.tree / "out").symlink_to(field.root / "outside")
    field.edit()
    right = oracle(field)
    with harmless(field):
        assert field.look().numbers == field.look("up", "out/secret", "a.txt").numbers == right == (9, 9, 1)
        field.watch()


def test_sockets_and_fifos_beside_the_files_are_no_files(field: Field) -> None:
    field.edit()
    os.mkfifo(field.tree / "pipe")
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(field.tree)
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        assert oracle(field) == NUMBERS
        with harmless(field):
            assert field.look().numbers == field.look("a.txt", "pipe", "socket").numbers == NUMBERS


def test_files_that_turn_into_something_else_meanwhile_hold_nothing_up(field: Field) -> None:
    field.edit()
    field.look()
    stop = threading.Event()
    names = ("a.txt", "new.txt", "sub", ".gitattributes", ".gitignore", "b.txt")

    def play() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            path = field.tree / names[turn % len(names)]
            try:
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                else:
                    path.unlink(missing_ok=True)
                MAKES[turn % len(MAKES)](path)
            except OSError:
                pass

    player = threading.Thread(target=play)
    player.start()
    try:
        until = time.monotonic() + 1.5
        looks = 0
        while time.monotonic() < until:
            for outcome in (field.look(deadline_ms=QUICK_MS), field.look(*names, deadline_ms=QUICK_MS)):
                assert outcome.reason or outcome.numbers
                looks += 1
        assert looks > 3
    finally:
        stop.set()
        player.join()
