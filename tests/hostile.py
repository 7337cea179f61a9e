"""A worktree that an agent has made hostile, every way in which treewire looks at it, and what must not happen then."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pty
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline.catalog import Project, Target
from pipeline.gitdir import resolve
from pipeline.runtime import spawn
from pipeline.runtime.landlock import elsewhere
from pipeline.runtime.log import setup
from pipeline.sources.discovery import Unreadable, find
from pipeline.wire import Done, Job
from tests.gitkit import IDENTITY, add_worktree, git, make_repo, write
from workers.git import Looker
from workers.trees import Trees
from workers.watch import GitWatch
from workers.worker import look_at

LOG = setup("test", level="error")
WATCHED_S = 0.3
SLACK_S = 6.0  # for a noisy machine; a look that hangs would take until the test's own limit
AMPLE_MS = 20_000


class Outcome(NamedTuple):
    """What a look came to: the numbers (files, insertions, deletions), or else the reason why there are none."""

    numbers: tuple[int, int, int] | None
    reason: str
    done: Done


class Field:
    """A linked worktree, everything committed, and a canary that hostile programs would make."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repo = make_repo(root / "repo", {"a.txt": "1\n2\n", "b.txt": "1\n"})
        self.settle(add_worktree(self.repo, root / "linked", "feature"))
        self.base = "main"
        self.cache = root / "cache"
        self.cache.mkdir()
        self.looker = Looker(self.cache)
        self.canary = self.cache / "canary"  # where even what stands behind the wall may write
        self.program = root / "program"
        self.program.write_text(f"#!/bin/sh\necho $0 $* >> {self.canary}\nexit 1\n")
        self.program.chmod(0o755)

    def settle(self, tree: Path) -> None:
        """Register this worktree, as it is now."""
        self.tree = tree
        self.dirs = resolve(tree)

    def config(self, *settings: str) -> None:
        """In the repository's own file, as any process that may write there could."""
        for key, value in zip(settings[::2], settings[1::2], strict=True):
            git(self.tree, "config", "--file", self.dirs.common_dir / "config", key, value)

    def edit(self) -> None:
        write(self.tree, {"a.txt": "1\nthree\n", "new.txt": "1\n"})

    def job(self, *paths: str | bytes, deadline_ms: int = AMPLE_MS) -> Job:
        return Job(
            id=1,
            workspace="w1",
            worktree=str(self.tree),
            git_dir=str(self.dirs.git_dir),
            common_dir=str(self.dirs.common_dir),
            inode=self.dirs.inode,
            base=self.base,
            deadline_ms=deadline_ms,
            full=not paths,
            paths=tuple(os.fsencode(path) for path in paths),
        )

    def look(self, *paths: str | bytes, deadline_ms: int = AMPLE_MS, walled: bool = False) -> Outcome:
        """A full look, or a scoped one at these paths: it must end in time."""
        job = self.job(*paths, deadline_ms=deadline_ms)

        def take() -> Done:
            if walled:
                assert spawn.enclose(self.cache) == ""
            return look_at(job, "tester", self.looker)

        began = time.monotonic()
        done = elsewhere(take) if walled else take()
        assert time.monotonic() - began < deadline_ms / 1000 + SLACK_S, "the look outlived its deadline"
        if done.git is None:
            reason, _, sentence = done.error.partition(": ")
            assert reason, f"no reason: {done.error!r}"
            assert sentence.endswith("."), f"no sentence: {done.error!r}"
            return Outcome(None, reason, done)
        return Outcome((done.git.files, done.git.insertions, done.git.deletions), "", done)

    @property
    def target(self) -> Target:
        dirs = self.dirs
        return Target("w1", "p", 1, str(self.tree), str(dirs.git_dir), str(dirs.common_dir), dirs.inode, "main")

    # ── the other ways in ────────────────────────────────────────────────────────────────────────

    def discover(self, deadline_s: float = AMPLE_MS / 1000) -> str:
        """List the worktrees; the complaint, or empty."""
        began = time.monotonic()
        try:
            find(Project("p", "p", str(self.repo), "", 0), deadline_s)
        except Unreadable as error:
            return str(error)
        finally:
            assert time.monotonic() - began < deadline_s + SLACK_S, "discovery outlived its deadline"
        return ""

    def watch(self) -> bool:
        """Set both watches, and keep them for a moment; whether the worktree was found fit to be watched.

        The loop must go on turning all the while.
        """
        began = time.monotonic()
        noticed = asyncio.run(self._watch())
        assert time.monotonic() - began < WATCHED_S + SLACK_S, "the watches held the loop up"
        return noticed

    async def _watch(self) -> bool:
        noticed = asyncio.Event()
        trees = Trees(10_000, _Listener(noticed), LOG)
        gits = GitWatch(lambda *_: None, lambda *_: None, LOG)
        running = [asyncio.create_task(trees.run()), asyncio.create_task(gits.run())]
        try:
            await gits.follow([self.target])
            trees.follow([self.target])
            trees.touch("w1")
            await asyncio.wait([asyncio.create_task(noticed.wait())], timeout=WATCHED_S)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            gits.close()
        return noticed.is_set()

    def sprung(self) -> str:
        return self.canary.read_text() if self.canary.exists() else ""


class _Listener:
    """What a watch of trees tells, all the same to us."""

    def __init__(self, noticed: asyncio.Event) -> None:
        self._noticed = noticed

    def edited(self, workspace: str, news: object) -> None:
        self._noticed.set()

    def watching(self, workspace: str, watched: bool, why: str) -> None:
        self._noticed.set()


# ── what must not happen ─────────────────────────────────────────────────────────────────────────


def image(*tops: Path) -> dict[str, tuple[object, ...]]:
    """Everything under these directories: inode, mode, size, both times that are of change, and the bytes."""
    found: dict[str, tuple[object, ...]] = {}
    waiting = [os.fsencode(top) for top in tops]
    while waiting:
        path = waiting.pop()
        state = os.lstat(path)
        content: object = None
        if stat.S_ISLNK(state.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(state.st_mode) and state.st_size < 1 << 22:
            with open(path, "rb") as file:
                content = hashlib.sha256(file.read()).hexdigest()
        elif stat.S_ISDIR(state.st_mode):
            waiting += [path + b"/" + name for name in os.listdir(path)]
        found[os.fsdecode(path)] = (
            state.st_ino, stat.filemode(state.st_mode), state.st_nlink, state.st_uid, state.st_size,
            state.st_mtime_ns, state.st_ctime_ns, content,
        )  # fmt: skip
    return found


def oracle(field: Field) -> tuple[int, int, int]:
    """What `git add -A` and `git diff --cached` would say, in an index and an object store beside the real ones."""
    scratch = field.root / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    if (index := field.dirs.git_dir / "index").exists():
        shutil.copy2(index, scratch / "index")
    aside = {
        "GIT_INDEX_FILE": str(scratch / "index"),
        "GIT_OBJECT_DIRECTORY": str(scratch),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(field.dirs.common_dir / "objects"),
    }
    git(field.tree, "add", "-A", env=aside)
    base = git(field.tree, "merge-base", "main", "HEAD")
    told = git(field.tree, "diff", "--cached", "--shortstat", base, env=aside)
    shutil.rmtree(scratch)
    files, insertions, deletions = (
        int(found[1]) if (found := re.search(rf"(\d+) {what}", told)) else 0
        for what in ("file", "insertion", "deletion")
    )
    return files, insertions, deletions


@contextmanager
def undisturbed(*tops: Path) -> Iterator[None]:
    """Nothing below these directories comes, goes or changes meanwhile, down to the times of directories."""
    before = image(*tops)
    yield
    after = image(*tops)
    assert after.keys() == before.keys(), f"came or went: {sorted(after.keys() ^ before.keys())}"
    changed = {path: (before[path], after[path]) for path in before if before[path] != after[path]}
    assert not changed, f"changed: {changed}"


def processes_at(root: Path) -> list[str]:
    """Every process but this one that has anything to do with this directory: by its words, variables or place."""
    needle = os.fsencode(root)
    found = []
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) == os.getpid():
            continue
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if needle in words + Path(f"/proc/{pid}/environ").read_bytes() + os.fsencode(
                os.readlink(f"/proc/{pid}/cwd")
            ):
                found.append(f"{pid} {words!r}")
        except OSError:
            continue  # ended meanwhile, or a thread of the kernel
    return found


def none_left(root: Path, seconds: float = 5.0) -> None:
    """No process is left over; what was killed a moment ago may take one."""
    until = time.monotonic() + seconds
    while found := processes_at(root):
        assert time.monotonic() < until, f"still running: {found}"
        time.sleep(0.01)


@contextmanager
def harmless(field: Field) -> Iterator[None]:
    """No canary, no process left over, and nothing changed in the worktree or its repository."""
    with undisturbed(field.tree, field.repo):
        yield
    assert not field.sprung()
    none_left(field.root)


# ── traps ────────────────────────────────────────────────────────────────────────────────────────

NUMBERS = (2, 2, 1)
FILTERED = "filtered"
Control = tuple[str, ...] | Callable[[Field], None]


class Trap(NamedTuple):
    """How to arm it, how plain git springs it, and what a look has to say: numbers, or a reason."""

    arm: Callable[[Field], None]
    control: Control
    expected: tuple[int, int, int] | str

    def spring(self, field: Field) -> None:
        """Let plain git step in, so that a trap which git no longer steps into cannot pass for safety."""
        if callable(self.control):
            self.control(field)
        else:
            git(field.tree, *self.control, check=False)


STATUS: Control = ("status",)
DIFF: Control = ("diff",)
ADD: Control = ("add", "-A")
TRAPS: dict[str, Trap] = {}


def trap(control: Control, expected: tuple[int, int, int] | str = NUMBERS) -> Callable[..., Callable[[Field], None]]:
    def enter(arm: Callable[[Field], None]) -> Callable[[Field], None]:
        TRAPS[arm.__name__] = Trap(arm, control, expected)
        return arm

    return enter


def _attribute(field: Field, line: str) -> None:
    field.edit()
    write(field.tree, {".gitattributes": line + "\n"})


# What plain git does.


def _as_the_user(field: Field, *words: str) -> None:
    open_environment = {"HOME": os.environ["HOME"], "GIT_CONFIG_GLOBAL": f"{os.environ['HOME']}/.gitconfig"}
    git(field.tree, *words, check=False, env=open_environment)


def _with_a_terminal(field: Field, *words: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(field.tree)
        os.execvpe("git", ["git", *words], {**IDENTITY, "TERM": "dumb"})
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    os.waitpid(pid, 0)


def _gc(field: Field) -> None:
    _plain(field, IDENTITY, "gc", "--auto", stdin=b"")  # not with the setting that tests have otherwise


def _edit(field: Field) -> None:
    environment = {key: value for key, value in IDENTITY.items() if key != "GIT_EDITOR"}
    _plain(field, environment, "commit", "-a", stdin=b"")


def _fill(field: Field) -> None:
    _plain(field, IDENTITY, "credential", "fill", stdin=b"url=https://host.invalid\n\n")


def _plain(field: Field, environment: dict[str, str], *words: str, stdin: bytes) -> None:
    subprocess.run(["git", *words], cwd=field.tree, env=environment, input=stdin, capture_output=True, check=False)


# Programs that git runs to learn what changed.


@trap(STATUS)
def fsmonitor(field: Field) -> None:
    field.config("core.fsmonitor", str(field.program))
    field.edit()


@trap(STATUS)
def fsmonitor_in_an_index_that_already_has_its_mark(field: Field) -> None:
    git(field.tree, "update-index", "--fsmonitor", check=False)
    field.config("core.fsmonitor", str(field.program))
    field.edit()


@trap(STATUS)
def fsmonitor_of_the_main_worktree_through_a_relative_path(field: Field) -> None:
    shutil.copy(field.program, field.tree / "a.sh")
    field.config("core.fsmonitor", "./a.sh")
    field.edit()
    (field.dirs.common_dir / "info").mkdir(exist_ok=True)
    (field.dirs.common_dir / "info/exclude").write_text("a.sh\n")


@trap(ADD, FILTERED)
def filter_clean(field: Field) -> None:
    field.config("filter.evil.clean", str(field.program))
    _attribute(field, "*.txt filter=evil")


@trap(ADD, FILTERED)
def filter_process(field: Field) -> None:
    field.config("filter.evil.process", str(field.program), "filter.evil.required", "true")
    _attribute(field, "*.txt filter=evil")


@trap(ADD, FILTERED)
def filter_by_a_macro(field: Field) -> None:
    field.config("filter.evil.clean", str(field.program))
    _attribute(field, "[attr]plain filter=evil\n*.txt plain")


@trap(ADD, FILTERED)
def filter_by_info_attributes(field: Field) -> None:
    field.config("filter.evil.clean", str(field.program))
    field.edit()
    (field.dirs.common_dir / "info/attributes").write_text("* filter=evil\n")


@trap(ADD, FILTERED)
def filter_by_attributes_in_a_subdirectory(field: Field) -> None:
    field.config("filter.evil.clean", str(field.program))
    write(field.tree, {"deep/er/.gitattributes": "* filter=evil\n", "deep/er/x": "1\n"})


@trap(ADD, FILTERED)
def filter_by_worktree_config(field: Field) -> None:
    field.config("extensions.worktreeConfig", "true")
    git(field.tree, "config", "--worktree", "filter.evil.clean", str(field.program))
    _attribute(field, "*.txt filter=evil")


def _filter_by(field: Field, key: str) -> None:
    (field.root / "more").write_text(f'[filter "evil"]\n\tclean = {field.program}\n')
    field.config(key, str(field.root / "more"))
    _attribute(field, "*.txt filter=evil")


@trap(ADD, FILTERED)
def filter_by_include(field: Field) -> None:
    _filter_by(field, "include.path")


@trap(ADD, FILTERED)
def filter_by_an_include_within_an_include(field: Field) -> None:
    _filter_by(field, "include.path")
    (field.root / "more").rename(field.root / "further")
    (field.root / "more").write_text("[include]\n\tpath = further\n")


@trap(ADD, FILTERED)
def filter_by_include_if_on_branch(field: Field) -> None:
    _filter_by(field, "includeIf.onbranch:feature.path")


@trap(ADD, FILTERED)
def filter_by_include_if_in_git_directory(field: Field) -> None:
    _filter_by(field, f"includeIf.gitdir:{field.repo}/.path")


@trap(ADD, FILTERED)
def filter_by_attributes_file(field: Field) -> None:
    (field.root / "attributes").write_text("* filter=evil\n")
    field.config("filter.evil.clean", str(field.program), "core.attributesFile", str(field.root / "attributes"))
    field.edit()


@trap(lambda field: _as_the_user(field, "add", "-A"), FILTERED)
def filter_of_the_user(field: Field) -> None:
    home = Path(os.environ["HOME"])
    write(
        home,
        {".gitconfig": f'[filter "evil"]\n\tclean = {field.program}\n', ".config/git/attributes": "* filter=evil\n"},
    )
    field.edit()


@trap(lambda field: _as_the_user(field, "status"))
def fsmonitor_of_the_user(field: Field) -> None:
    write(Path(os.environ["HOME"]), {".gitconfig": f"[core]\n\tfsmonitor = {field.program}\n"})
    field.edit()


# Hooks.

HOOKS = (
    "applypatch-msg", "commit-msg", "fsmonitor-watchman", "p4-changelist", "post-applypatch", "post-checkout",
    "post-commit", "post-index-change", "post-merge", "post-receive", "post-rewrite", "post-update", "pre-applypatch",
    "pre-auto-gc", "pre-commit", "pre-merge-commit", "pre-push", "pre-rebase", "pre-receive", "prepare-commit-msg",
    "proc-receive", "push-to-checkout", "reference-transaction", "sendemail-validate", "update",
)  # fmt: skip


@trap(ADD)
def hooks_of_every_name(field: Field) -> None:
    (field.dirs.common_dir / "hooks").mkdir(exist_ok=True)
    for name in HOOKS:
        shutil.copy(field.program, field.dirs.common_dir / "hooks" / name)
    field.edit()


@trap(ADD, (3, 5, 1))
def hooks_path(field: Field) -> None:
    write(field.tree, {"hooks/post-index-change": field.program.read_bytes()})
    (field.tree / "hooks/post-index-change").chmod(0o755)
    field.config("core.hooksPath", "hooks")
    field.edit()


# Repositories inside.


def _submodule(field: Field) -> Path:
    make_repo(field.root / "lib", {"v.txt": "1\n"})
    git(field.tree, "submodule", "add", "-q", str(field.root / "lib"), "lib")
    git(field.tree, "commit", "-q", "-m", "lib")
    return field.tree / "lib"


@trap(STATUS, (2, 4, 0))
def submodule_fsmonitor(field: Field) -> None:
    git(_submodule(field), "config", "core.fsmonitor", str(field.program))


@trap(STATUS, (2, 4, 0))
def submodule_filter(field: Field) -> None:
    lib = _submodule(field)
    git(lib, "config", "filter.evil.clean", str(field.program))
    write(lib, {".gitattributes": "* filter=evil\n", "v.txt": "2\n"})


@trap(STATUS, (2, 4, 0))
def submodule_that_asks_not_to_be_ignored(field: Field) -> None:
    lib = _submodule(field)
    git(lib, "config", "core.fsmonitor", str(field.program))
    field.config("submodule.lib.ignore", "none", "diff.ignoreSubmodules", "none", "status.submoduleSummary", "true")


@trap(STATUS, (1, 1, 0))
def nested_repository(field: Field) -> None:
    nested = make_repo(field.tree / "nested", {"v.txt": "1\n"})
    git(field.tree, "add", "nested")
    git(nested, "config", "core.fsmonitor", str(field.program))


# Remotes that promise what is missing.


def _promisor(field: Field, url: str, *settings: str) -> None:
    blob = git(field.tree, "rev-parse", "HEAD:a.txt")
    field.config("core.repositoryFormatVersion", "1", "extensions.partialClone", "origin")
    field.config("remote.origin.url", url, "remote.origin.promisor", "true", *settings)
    (field.dirs.common_dir / "objects" / blob[:2] / blob[2:]).unlink()
    field.edit()


@trap(DIFF, "missing_object")
def promisor_ext(field: Field) -> None:
    _promisor(field, f"ext::{field.program}", "protocol.ext.allow", "always")


@trap(DIFF, "missing_object")
def promisor_ssh(field: Field) -> None:
    _promisor(field, "ssh://host.invalid/x", "core.sshCommand", str(field.program))


@trap(DIFF, "missing_object")
def promisor_uploadpack(field: Field) -> None:
    _promisor(field, str(field.repo), "remote.origin.uploadpack", str(field.program))


@trap(DIFF, "missing_object")
def promisor_proxy(field: Field) -> None:
    _promisor(field, "git://host.invalid/x", "core.gitProxy", str(field.program))


@trap(DIFF, "missing_object")
def promisor_behind_another_name(field: Field) -> None:
    _promisor(field, "https://host.invalid/x", "protocol.ext.allow", "always")
    field.config(f"url.ext::{field.program} .insteadOf", "https://host.invalid/")


@trap(DIFF, "missing_object")
def promisor_of_the_old_kind(field: Field) -> None:
    _promisor(field, f"ext::{field.program}", "protocol.allow", "always", "core.partialCloneFilter", "blob:none")


# Programs that show or edit.


@trap(DIFF)
def diff_external(field: Field) -> None:
    field.config("diff.external", str(field.program))
    field.edit()


@trap(DIFF, (3, 3, 1))
def diff_driver(field: Field) -> None:
    field.config("diff.evil.command", str(field.program))
    _attribute(field, "*.txt diff=evil")


@trap(DIFF, (3, 3, 1))
def textconv(field: Field) -> None:
    field.config("diff.evil.textconv", str(field.program), "diff.evil.cachetextconv", "true")
    _attribute(field, "*.txt diff=evil")


@trap(("merge", "theirs"), (3, 3, 0))
def merge_driver(field: Field) -> None:
    git(field.repo, "branch", "theirs")
    other = add_worktree(field.repo, field.root / "other", "others", "theirs")
    write(other, {"b.txt": "1\n2\n"})
    git(other, "commit", "-qam", "theirs")
    git(field.repo, "branch", "-f", "theirs", "others")
    field.config("merge.evil.driver", str(field.program))
    write(field.tree, {"b.txt": "0\n1\n", ".gitattributes": "* merge=evil\n"})
    git(field.tree, "add", "-A")
    git(field.tree, "commit", "-qm", "ours")
    write(field.tree, {"new.txt": "1\n"})


@trap(lambda field: _with_a_terminal(field, "status"))
def pager(field: Field) -> None:
    field.config("core.pager", str(field.program), "pager.status", "true", "pager.diff", "true", "pager.config", "true")
    field.config("pager.worktree", str(field.program), "pager.merge-base", "true", "pager.rev-list", "true")
    field.edit()


@trap(_edit)
def editor(field: Field) -> None:
    field.config("core.editor", str(field.program), "sequence.editor", str(field.program))
    field.edit()


@trap(("s",))
def alias(field: Field) -> None:
    own = ("status", "diff", "config", "merge-base", "rev-list", "update-index", "check-attr", "worktree", "s")
    field.config(*(word for name in own for word in (f"alias.{name}", f"!{field.program}")))
    field.edit()


@trap(_fill)
def credential_helper(field: Field) -> None:
    field.config("credential.helper", str(field.program), "core.askPass", str(field.program))
    field.edit()


@trap(("commit", "-S", "--allow-empty", "-m", "signed"))
def gpg(field: Field) -> None:
    field.config("gpg.program", str(field.program), "commit.gpgSign", "true", "log.showSignature", "true")
    field.edit()


@trap(_gc)
def housekeeping(field: Field) -> None:
    field.config("core.alternateRefsCommand", str(field.program), "gc.auto", "1", "gc.autoDetach", "false")
    shutil.copy(field.program, field.dirs.common_dir / "hooks/pre-auto-gc")
    write(field.dirs.common_dir / "objects/17", {f"{number:038x}": b"" for number in range(30)})  # looks like many
    field.edit()


# ── what may lie in place of a file ──────────────────────────────────────────────────────────────

Make = Callable[[Path], None]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def directory(path: Path) -> None:
    path.mkdir()


def huge(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\x00canary-secret\n" * 50)


def empty(path: Path) -> None:
    path.touch()


MAKES: tuple[Make, ...] = (fifo, endless, loop, directory, huge, garbage, empty)


def put(path: Path, make: Make) -> None:
    """This, in place of the file that is there."""
    path.unlink(missing_ok=True)
    make(path)
