"""A git process has its share and no more, and ends with its deadline, its worker, or its place to write (G3, S5)."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.cli.doctor import Finding, examine
from pipeline.runtime import landlock, spawn
from pipeline.runtime.landlock import elsewhere
from pipeline.runtime.settings import Settings
from pipeline.runtime.spawn import Deadline, Finished, GitError
from pipeline.wire import encode
from tests.hostile import NUMBERS, Field, fifo, none_left

pytestmark = pytest.mark.timeout(60)

needs_wall = pytest.mark.skipif(bool(spawn.wall()), reason=spawn.wall())


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Put a script in git's place, to see what a git would be given."""

    def put(script: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "git").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "git").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    yield put
    none_left(tmp_path)


def run(tmp_path: Path, ms: int = 20_000, given: bytes = b"") -> Finished:
    env = {"PATH": os.defpath, "ONLY": "this"}
    return spawn.git(["status"], env=env, cwd=tmp_path, deadline=Deadline.after(ms), given=given)


def reason(tmp_path: Path, ms: int = 20_000) -> str:
    with pytest.raises(GitError) as caught:
        run(tmp_path, ms)
    assert str(caught.value).endswith(".")
    return caught.value.reason


# ── what it is given ─────────────────────────────────────────────────────────────────────────────


def test_nothing_is_inherited_but_what_is_handed_in(tmp_path: Path, pretend: Callable[[str], None]) -> None:
    pretend("env; readlink /proc/self/fd/0; ls /proc/$$/fd")
    os.environ["SECRET"] = "of the worker"
    kept = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(kept, True)
    try:
        said = run(tmp_path).out.decode()
    finally:
        os.close(kept)
        del os.environ["SECRET"]
    assert "ONLY=this" in said
    assert "SECRET" not in said
    assert "/dev/null" in said, "there is no input"
    assert set(said.split("/dev/null\n")[1].split()) <= {"0", "1", "2", "10", "255"}, "the shell's own, and no other"


def test_input_is_a_file_that_ends(tmp_path: Path, pretend: Callable[[str], None]) -> None:
    pretend("cat")
    assert run(tmp_path, given=b"x" * 300_000).out == b"x" * 300_000


def test_its_share_is_limited_before_it_can_do_much(tmp_path: Path, pretend: Callable[[str], None]) -> None:
    pretend("sleep 0.2; cat /proc/$$/limits")
    said = run(tmp_path).out.decode()
    limits = {line[:26].strip(): line[26:].split()[0] for line in said.splitlines()[1:]}
    assert limits["Max core file size"] == "0"
    assert limits["Max data size"] == str(spawn.MAX_MEMORY)
    assert limits["Max file size"] == str(spawn.MAX_WRITTEN)
    assert int(limits["Max open files"]) <= spawn.MAX_FILES
    assert int(limits["Max cpu time"]) <= 23 * (os.cpu_count() or 1)
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != spawn.MAX_MEMORY, "ours stays what it was"


# ── when it ends ─────────────────────────────────────────────────────────────────────────────────


def test_at_the_deadline_its_whole_group_is_killed(tmp_path: Path, pretend: Callable[[str], None]) -> None:
    pretend("trap '' TERM INT HUP; (trap '' TERM HUP; cat /dev/zero >/dev/null) & sleep 300 & wait")
    began = time.monotonic()
    assert reason(tmp_path, 300) == "timeout"
    assert time.monotonic() - began < 10
    none_left(tmp_path)


def test_whoever_it_leaves_behind_is_killed_after_a_good_end(tmp_path: Path, pretend: Callable[[str], None]) -> None:
    pretend("sleep 300 >/dev/null 2>&1 </dev/null & echo well")
    assert run(tmp_path).out == b"well\n"
    none_left(tmp_path)


def test_what_holds_its_output_open_does_not_hold_us(tmp_path: Path, pretend: Callable[[str], None]) -> None:
    pretend("sleep 300 & exit 0")
    assert reason(tmp_path, 300) == "timeout"
    none_left(tmp_path)


def test_endless_output_and_endless_complaints_are_cut_off(tmp_path: Path, pretend: Callable[[str], None]) -> None:
    pretend(
        'test -f loud && exec cat /dev/zero; i=0; while [ $i -lt 3000 ]; do echo "complaint $i" >&2; i=$((i+1)); done'
    )
    found = run(tmp_path)
    assert len(found.complaint) <= spawn.MAX_COMPLAINT + (1 << 16)
    (tmp_path / "loud").touch()
    assert reason(tmp_path) == "too_large"


def test_who_is_killed_or_writes_too_much_is_named(
    tmp_path: Path, pretend: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend("sleep 0.3; test -f big && exec head -c 100000 /dev/zero > written; kill -9 $$")
    assert reason(tmp_path) == "killed"
    monkeypatch.setattr(spawn, "MAX_WRITTEN", 1000)
    (tmp_path / "big").touch()
    assert reason(tmp_path) == "too_large"


def test_without_git_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reason(tmp_path) == "no_git"
    assert "install it" in spawn.wall()


WORKER = """
import sys
from pathlib import Path
from pipeline.runtime import spawn
from pipeline.wire import decode_job
from workers.git import Looker
if sys.argv[3] == "walled":
    why = spawn.enclose(Path(sys.argv[2]))
    assert not why, why
Looker(Path(sys.argv[2])).look(decode_job(bytes.fromhex(sys.argv[1])))
"""


@pytest.mark.parametrize("walled", [pytest.param("walled", marks=needs_wall), "open"])
def test_git_dies_with_a_worker_that_is_killed(field: Field, walled: str) -> None:
    """S5: git hangs on a FIFO, the worker gets SIGKILL, and the kernel takes git along; also through the wall."""
    if shutil.which("setpriv") is None:
        pytest.skip("there is no setpriv to ask the kernel for it")
    field.edit()
    fifo(field.tree / ".gitignore")
    job = encode(field.job(deadline_ms=60_000)).hex()
    worker = subprocess.Popen([sys.executable, "-c", WORKER, job, str(field.cache), walled])
    try:
        until = time.monotonic() + 20
        while not (hung := _git_of(worker.pid)):
            assert time.monotonic() < until, "git was never started"
            assert worker.poll() is None
            time.sleep(0.01)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        none_left(field.root)
        assert not _words_of(hung), "nothing is left of it but, until init comes by, its number"
    finally:
        worker.kill()
        worker.wait()


def _git_of(parent: int) -> str:
    """The git of this process, past the program that asked the kernel for its death."""
    for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        words = _words_of(pid)
        if words and words[0].endswith(b"git") and b"status" in words:
            return pid
    return ""


def _words_of(pid: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


# ── no room ──────────────────────────────────────────────────────────────────────────────────────

FULL = """
set -e
mount -t tmpfs -o size=256k tmpfs "$1"
exec "$2" -c "$3" "$4" "$1" open
"""
TELLS = WORKER.replace(
    "Looker(Path(sys.argv[2])).look(decode_job(bytes.fromhex(sys.argv[1])))",
    """
import os
from workers.git import GitError
looker = Looker(Path(sys.argv[2]))
job = decode_job(bytes.fromhex(sys.argv[1]))
print("before:", looker.look(job).git.files)
try:
    with open(Path(sys.argv[2]) / "ballast", "wb") as ballast:
        while True:
            ballast.write(b"x" * 512)
            ballast.flush()
except OSError:
    pass
for _ in range(2):
    try:
        print("numbers:", looker.full(job).git.files)
    except GitError as error:
        print(f"{error.reason}: {error}")
    os.utime(Path(job.git_dir) / "index")  # so that it has to be copied again
(Path(sys.argv[2]) / "ballast").unlink()
print("after:", looker.look(job).git.files)
""",
)


def test_a_full_disk_is_named_and_not_blamed_on_the_repository(field: Field) -> None:
    field.edit()
    job = encode(field.job()).hex()
    command = ["sh", "-c", FULL, "sh", str(field.cache), sys.executable, TELLS, job]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *command], capture_output=True, text=True, timeout=50
    )
    if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "before: 2"
    assert lines[-1] == "after: 2", "freed, it goes on"
    told = [line for line in lines[1:-1] if not line.startswith("numbers: 2")]
    assert told, "the disk was not full enough to matter"
    for line in told:
        assert line.startswith(f"cache_full: the disk mounted at {field.cache}, ")
        assert "free space" in line


# ── the wall ─────────────────────────────────────────────────────────────────────────────────────


def test_every_version_of_the_interface_is_asked_only_for_what_it_knows() -> None:
    assert landlock.rights(1).files == 0x1FFF & ~0b1100
    assert landlock.rights(2).files - landlock.rights(1).files == landlock.REFER
    assert landlock.rights(3).files - landlock.rights(2).files == landlock.TRUNCATE
    assert landlock.rights(5).files - landlock.rights(4).files == landlock.IOCTL_DEV
    assert [len(landlock.rights(version).packed(version)) for version in range(1, 8)] == [8, 8, 8, 16, 16, 24, 24]
    assert landlock.rights(3).network == 0
    assert landlock.rights(4).network == 3
    assert landlock.rights(5).scopes == 0
    assert landlock.rights(6).scopes == 3
    assert all(not landlock.rights(version).files & 0b1100 for version in range(1, 8)), "reading stays open"


@pytest.mark.parametrize(
    ("code", "says"), [("ENOSYS", "no Landlock"), ("EOPNOTSUPP", "lsm="), ("E2BIG", "walls"), ("EPERM", "refused")]
)
def test_a_kernel_without_the_wall_says_why_and_git_runs_all_the_same(
    field: Field, monkeypatch: pytest.MonkeyPatch, code: str, says: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(landlock, "_call", refuse)
    spawn._try_out.cache_clear()
    try:
        with pytest.raises(landlock.NoWall, match=says):
            landlock.version()
        why = elsewhere(lambda: spawn.enclose(field.cache))
        assert says in why
        assert why.endswith(".")
        field.edit()
        assert field.look().numbers == NUMBERS
    finally:
        spawn._try_out.cache_clear()


def test_the_doctor_tells_whether_the_wall_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def findings() -> dict[str, Finding]:
        return {found.check: found for found in examine(Settings.load(tmp_path / "home"))}

    found = findings()["landlock"]
    assert found.level == ("warn" if spawn.wall() else "ok")
    assert "setpriv" not in findings() or shutil.which("setpriv") is None
    git = shutil.which("git")
    assert git is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").symlink_to(git)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(spawn, "wall", lambda: "this kernel has no Landlock.")
    assert findings()["landlock"].level == "warn"
    assert "hold alone" in findings()["landlock"].remedy
    assert "util-linux" in findings()["setpriv"].remedy


@needs_wall
def test_a_git_that_is_a_script_cannot_stand_behind_the_wall(tmp_path: Path, pretend: Callable[[str], None]) -> None:
    pretend('exec /usr/bin/git "$@"')
    assert "own binary first on the PATH" in spawn.wall()
    assert elsewhere(lambda: spawn.enclose(tmp_path)) == spawn.wall()
    assert run(tmp_path).complaint, "it is run all the same"


@needs_wall
def test_behind_the_wall_there_is_git_and_the_cache_and_nothing_else(tmp_path: Path) -> None:
    cache, outside = tmp_path / "cache", tmp_path / "outside"
    cache.mkdir()
    outside.mkdir()
    (outside / "file").write_text("as it was")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refused(what: Callable[[], object]) -> bool:
            try:
                what()
            except OSError as error:
                return error.errno in (errno.EACCES, errno.EXDEV)  # the latter where a link would lead out
            return False

        def look_around() -> dict[str, bool]:
            assert spawn.enclose(cache) == ""
            return {
                "run": refused(lambda: subprocess.run(["/bin/true"], check=False)),
                "write": refused(lambda: (outside / "file").write_text("otherwise")),
                "truncate": refused(lambda: os.truncate(outside / "file", 0)) or landlock.version() < 3,
                "make": refused((outside / "new").touch),
                "remove": refused((outside / "file").unlink),
                "rename": refused(lambda: (outside / "file").rename(cache / "file")),
                "link": refused(lambda: os.link(outside / "file", cache / "link")),
                "connect": refused(lambda: socket.create_connection(listener.getsockname(), 5).close())
                or landlock.version() < 4,
                "run from the cache": refused(lambda: _run_copied(cache)),
                "read": not refused((outside / "file").read_text),
                "write in the cache": not refused(lambda: (cache / "x").write_text("1")),
            }

        found = elsewhere(look_around)
    assert all(found.values()), found
    assert (outside / "file").read_text() == "as it was"
    subprocess.run(["/bin/true"], check=True)  # other threads keep their rights


def _run_copied(cache: Path) -> None:
    shutil.copyfile("/bin/true", cache / "program")
    os.chmod(cache / "program", 0o755)
    subprocess.run([cache / "program"], check=False)


SUBVERTED = """
import errno, json, os, socket, subprocess, sys, threading
from pathlib import Path
from pipeline.runtime.process import run
from pipeline.runtime.settings import Settings
from workers import worker
from workers.worker import Worker

home, outside = Path(sys.argv[1]), Path(sys.argv[2])
cache = home / "cache/worker-0"


def refused(what):
    try:
        what()
    except OSError as error:
        return error.errno == errno.EACCES
    return False


def subvert():
    return {
        "run": refused(lambda: subprocess.run(["/bin/true"], check=False)),
        "write": refused(lambda: (outside / "file").write_text("otherwise")),
        "make": refused((outside / "new").touch),
        "make in the home": refused((home / "new").touch),
        "remove": refused((outside / "file").unlink),
        "another's cache": refused((home / "cache/worker-1").mkdir),
        "git": subprocess.run(["git", "--version"], capture_output=True, check=False).returncode == 0,
        "write in the cache": not refused((cache / "x").touch),
        "read": not refused((outside / "file").read_text),
    }


async def serve(self):
    found = {"main": subvert()}
    for name in ("new", "git"):
        thread = threading.Thread(target=lambda: found.update({name: subvert()}))
        thread.start()
        thread.join()
    print(json.dumps(found), flush=True)


Worker.serve = serve
if len(sys.argv) > 3:
    worker.spawn.enclose = lambda *_: ""
run("worker", worker.main, Settings.load(home, environ={}), 0)
"""


@needs_wall
@pytest.mark.parametrize("walled", [True, False])
def test_a_worker_that_was_subverted_is_behind_the_wall_with_all_its_threads(tmp_path: Path, walled: bool) -> None:
    """S5: a flaw in what reads objects in the worker itself gets no further; without the wall the trap springs."""
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir(mode=0o700)
    outside.mkdir()
    (outside / "file").write_text("as it was")
    done = subprocess.run(
        [sys.executable, "-c", SUBVERTED, home, outside, *([] if walled else ["open"])],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"main"')))
    assert found.keys() == {"main", "new", "git"}
    for where, tried in found.items():
        assert all(tried.values()) == walled, (where, tried)
    assert (outside / "file").exists() == walled


@needs_wall
def test_the_deadline_and_its_kill_reach_through_the_wall(field: Field) -> None:
    field.edit()
    fifo(field.tree / ".gitignore")
    assert field.look(deadline_ms=300, walled=True).reason == "timeout"
    none_left(field.root)
