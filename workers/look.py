"""One look at one worktree: everything, as git tells it, or single paths; and what is known afterwards.

A full look asks git, which sees a shadow of the worktree's git directory (see `workers.shadow`), never the real one:

    status     counts of staged, unstaged, untracked and conflicted files; refreshes our copy of the index
    lineage    merge base with the base branch, ahead and behind; remembered by (HEAD, base)
    diff       the worktree against the merge base, over a copy of the index to which untracked files were added

A scoped look first sees, by a stat for each, whether the git directory's own files changed: settings and rules make it
a full one, refs move what is ahead and behind, an index names further paths to look at. Neither writes in the
worktree, its git directory or its object store.
"""

from __future__ import annotations

import functools
import os
import re
import signal
from collections import OrderedDict
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pipeline.domain.model import Operation
from pipeline.gitdir import (
    PER_WORKTREE_REFS,
    GitDirs,
    Head,
    Identity,
    has_replacements,
    identify,
    open_regular,
    read_branch,
    read_head,
    read_operation,
    read_regular,
)
from pipeline.runtime import spawn
from pipeline.runtime.spawn import Deadline, Finished, GitError
from pipeline.wire import Job
from workers.files import Files, Together
from workers.numstat import (
    Change,
    Malformed,
    Status,
    parse_changes,
    parse_pairs,
    parse_staged,
    parse_status,
)
from workers.objects import Lineage, Objects
from workers.scoped import (
    ATTRIBUTES,
    Attributes,
    Core,
    Scope,
    ScopedLook,
    paths_worth,
    says_something,
    tiny_index,
    words_of,
)
from workers.shadow import (
    MAX_INDEX,
    MAX_RULES,
    ConfigReader,
    Pairs,
    Parse,
    Settings,
    Shadow,
    distil,
    is_true,
    user_configs,
)
from workers.table import Entry, Kind, State, Table
from workers.walk import Unfit, Walk

MAX_LINEAGES: Final = 4096
TRIES: Final = 5
TAIL: Final = 20

# By whether the repository is of SHA-256.
_EMPTY_BLOB: Final = {
    False: "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
    True: "473a0f4c3be8a93681a267e3b1e9a7dcda1185436fe141f7749120a303721813",
}
_EMPTY_TREE: Final = {
    False: "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    True: "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
_MISSING: Final = ("missing", "unable to read", "bad object", "could not read", "unable to find", "not a valid object")
_NO_FILE: Final = "unsupported file type"
_SUBMODULES: Final = "--ignore-submodules=dirty"  # their commits count; what is dirty inside them is not looked at
_NOTED: Final = re.compile(
    rb"([^\0\n][^\0]*)\0  ctime: [^\n]*\n  mtime: (\d+):(\d+)\n[^\n]*\n[^\n]*\n  size: (\d+)\t[^\n]*\n"
)
_VANISHED: Final = re.compile(r"^(?:error|fatal): (?:.*No such file or directory|short read while)", re.MULTILINE)
_ODD_TAG: Final = re.compile(rb"(?:^|\0)([^H\0]) ([^\0]+)")


@dataclass(slots=True)
class Known:
    """What was found of a worktree, and the files that tell whether that still holds."""

    dirs: GitDirs
    scope: Scope
    settings: Settings
    base_name: str
    head: Head
    base: str | None
    lineage: Lineage | None
    operation: Operation | None
    index_tail: bytes | None
    note: str
    pin: tuple[int, ...]
    settings_files: Files
    ref_files: Files
    index_file: Files
    operation_files: Files
    still: Together | None = None  # all of these and the pin, once they are settled

    @property
    def against(self) -> str | None:
        """The commit that is counted from; ``None``: from nothing."""
        return (self.lineage and self.lineage.merge_base) or self.head.head


class Configs(ConfigReader):
    """Remembers which files were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def read(self, path: Path, parse: Parse, depth: int = 0) -> Pairs:
        self.asked.append(os.fspath(path))
        return super().read(path, parse, depth)


class Memory(Protocol):
    """What a look makes use of that others have found before."""

    configs: Configs
    packs: dict[Path, Identity]
    lineages: OrderedDict[tuple[Path, Identity | None, str, str], Lineage]

    def objects(self, common_dir: Path) -> Objects: ...
    def shadow(self, dirs: GitDirs) -> Shadow: ...


class Look:
    """One look. A full one is taken while its shadow is held; a scoped one holds it only if git has to be asked."""

    def __init__(self, looker: Memory, job: Job, dirs: GitDirs, deadline: Deadline) -> None:
        self.looker = looker
        self.job = job
        self.dirs = dirs
        self.deadline = deadline
        self.spawned = 0
        self.moved = False  # whether more than files of the tree was seen to change
        self.told: Collection[bytes] = ()
        self._held: ExitStack | None = None
        self._ready = False
        self._shown_tail: bytes | None = None
        self._known: Known | None = None

    @functools.cached_property
    def shadow(self) -> Shadow:
        return self.looker.shadow(self.dirs)

    # ── everything ───────────────────────────────────────────────────────────────────────────────

    def full(self) -> Known:
        self.shadow.lay_out()
        operation_files, index_file = self._operation_files(), self._index_file()
        settings, settings_files = self._settings_and_files()
        if has_replacements(self.dirs.common_dir):
            raise GitError(
                "rewritten_history", "grafts or replace refs rewrite the history as git shows it; remove them."
            )
        self.shadow.furnish(settings)
        head, base, ref_files, tail = self._refs_and_index()
        lineage = None if head.head is None or base is None else self._lineage(head.head, base)
        status = self._status()
        filtered = self._filtered(status, settings)
        untouched = self._untouched(filtered & {*status.edited})
        status = _without(status, untouched)
        filtered -= untouched
        against = (lineage and lineage.merge_base) or head.head
        changes: list[Change] = []
        if against != head.head or not status.clean or against is None:
            start, some_blob = against or _EMPTY_TREE[settings.sha256], _EMPTY_BLOB[settings.sha256]
            changes = self._changes(start, status, some_blob, untouched)
        scope = Scope(Core.of(settings.text, settings.drivers, settings.sha256), _table(changes, status, filtered))
        scope.staged_count, scope.staged = status.staged, status.indexed
        scope.unmerged = {path: int(mode, 8) for mode, path in status.unmerged}
        scope.repositories = {change.path for change in changes if change.link}
        scope.repositories |= {path[:-1] for path in status.untracked if path.endswith(b"/")}
        scope.excluding = any(says_something(self._shown(name)) for name in ("info/exclude", "excludes"))
        scope.naming = words_of(self._shown("info/attributes")) | words_of(self._shown("attributes"))
        scope.limit = paths_worth(self._index_header()[1])
        if status.intended:
            scope.unfit = scope.unfit or "flags"
        note = f"filtered: {len(filtered)} paths have a filter, which is never run" if filtered else ""
        operation = read_operation(self.dirs.git_dir)
        return Known(
            self.dirs, scope, settings, self.job.base, head, base, lineage, operation, tail, note,
            pin_of(self.job), settings_files, ref_files, index_file, operation_files,
        )  # fmt: skip

    # ── single paths ─────────────────────────────────────────────────────────────────────────────

    def scoped(self, known: Known) -> None:
        """Look at the paths of the job, and at what the git directory's own files say has changed.

        Raises `Unfit`, `Lacking`, and what a full look raises; what is known is then not to be used again.
        """
        self._known = known
        try:
            if self.job.base != known.base_name:
                raise Unfit("base changed")
            objects = self.looker.objects(self.dirs.common_dir)
            paths = set(self.job.paths)
            if known.still is None or not known.still.same():
                paths |= self._follow(known, objects)
            if paths:
                with Walk(self.job.worktree) as walk:
                    look = ScopedLook(known.scope, walk, self)
                    self.told = look.told
                    look.take(paths)
        finally:
            if self._held is not None:
                self._held.close()

    def _follow(self, known: Known, objects: Objects) -> set[bytes]:
        """Take up what the git directory's files say; returns the paths that these concern."""
        known.still = None
        pinned = Files([f"{self.job.worktree}/.git"], [self.job.git_dir])
        if pin_of(self.job) != known.pin:
            raise Unfit("pinned changed")
        if not known.settings_files.same():
            raise Unfit("settings")
        scope = known.scope
        objects.check(self.looker.packs)
        if not scope.opened:
            scope.open(objects, known.against, known.head.head)
        paths = self._follow_index(known, self._follow_refs(known))
        if not known.operation_files.same():
            known.operation_files = self._operation_files()
            known.operation = read_operation(self.dirs.git_dir)
        if scope.hidden is not None and objects.store_files is not None:
            files = known.settings_files, known.ref_files, known.index_file, known.operation_files
            known.still = Together.of((pinned, *files, objects.store_files))
        return paths

    def _follow_refs(self, known: Known) -> bool:
        """Whether HEAD's commit is another one. As long as the merge base is not, no line counts differently."""
        if known.ref_files.same():
            return False
        if has_replacements(self.dirs.common_dir):
            raise Unfit("settings")
        before = known.head.head, known.base, known.against
        known.head, known.base, known.ref_files = self._refs()
        if (known.head.head, known.base) == before[:2]:
            return False
        self.moved = True
        known.lineage = None
        if known.head.head is not None and known.base is not None:
            known.lineage = self._lineage(known.head.head, known.base, known.scope.objects)
        if known.against != before[2]:
            raise Unfit("new merge base")
        return known.head.head != before[0]

    def _follow_index(self, known: Known, moved: bool) -> set[bytes]:
        """The paths that may be otherwise in the index than they were, or than HEAD now has them."""
        scope = known.scope
        if not known.index_file.same():
            known.index_file, tail = self._index_file(), self._tail()
            moved = moved or tail != known.index_tail or not any(tail or b"x")
        if not moved:
            if scope.hidden is None and self.job.paths:
                self._prepare()
            return set()
        self.moved = True
        self._prepare()
        if self._index_header()[0] not in (0, 2):
            raise Unfit("index format")
        against = known.head.head or _EMPTY_TREE[False]
        flags = "--cached", "--raw", "-z", "-M", "--no-ext-diff", "--ita-invisible-in-index"
        count, staged = parse_staged(self._checked(self._git("diff-index", *flags, against, "--")))
        hidden, unmerged = self._tags()
        if unmerged or scope.unmerged:
            raise Unfit("conflicts")
        paths = scope.dirty() | staged.keys() | ((scope.hidden or frozenset()) - hidden)
        top = scope.objects.at(known.head.head)
        changed = scope.objects.changed(scope.top, top, scope.limit)
        if changed is None:
            raise Unfit("too many paths")
        scope.top, scope.staged_count, scope.staged, scope.hidden = top, count, staged, hidden
        scope.limit = paths_worth(self._index_header()[1])
        known.index_tail = self._shown_tail
        return paths | changed

    def _tags(self) -> tuple[frozenset[bytes], bool]:
        """The paths that git was told not to look at, and whether there are conflicts, by our index as it is."""
        hidden, unmerged = set(), False
        for tag, path in _ODD_TAG.findall(self._checked(self._git("ls-files", "-v", "-z"))):
            if tag == b"M":
                unmerged = True
            else:
                hidden.add(path)
        return frozenset(hidden), unmerged

    def _prepare(self) -> None:
        """Let git see what is known, and the index as it is now. What it was before may still tell what was hidden."""
        known = self._known
        if self._ready or known is None:
            return
        if self._held is None:
            self._held = ExitStack()
            self._held.enter_context(self.shadow.held(self.deadline))
        self.shadow.lay_out()
        self.shadow.furnish(known.settings)
        if known.scope.hidden is None:
            known.scope.hidden = self._tags()[0]
        self._shown_tail = self._show(known.head)
        if read_head(self.dirs) != known.head:
            raise Unfit("moving")
        self._ready = True

    # what `ScopedLook` asks

    def ignored(self, paths: Collection[bytes]) -> set[bytes]:
        self._prepare()
        flags = () if self._known is not None and self._known.scope.hidden else ("--no-index",)
        # The one command that refuses literal pathspecs: what starts with a dot is taken as it is.
        given = _listed(b"./" + path for path in paths)
        done = self._git("check-ignore", "-z", "--stdin", *flags, given=given, literal=False)
        return set() if done.code == 1 else {path[2:] for path in self._checked(done).split(b"\0")[:-1]}

    def attributes(self, paths: Collection[bytes]) -> dict[bytes, Attributes]:
        self._prepare()
        done = self._checked(self._git("check-attr", "-z", "--stdin", *ATTRIBUTES, given=_listed(paths)))
        fields = done.split(b"\0")
        found: dict[bytes, dict[str, str]] = {path: {} for path in paths}
        for path, name, value in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
            found[path][os.fsdecode(name)] = os.fsdecode(value)
        return dict(found)

    def renames(self, added: Collection[bytes], deleted: Collection[bytes]) -> list[Change]:
        self._prepare()
        assert self._known is not None
        index = self.shadow.path / "index.pairs"
        index.unlink(missing_ok=True)
        index.write_bytes(tiny_index(added, _EMPTY_BLOB[False]))
        return self._diff(self._known.against or _EMPTY_TREE[False], index, sorted([*added, *deleted]))

    # ── what git is shown ────────────────────────────────────────────────────────────────────────

    def _settings_and_files(self) -> tuple[Settings, Files]:
        """The settings, and the files that they, and the rules that hold everywhere, are from."""
        for _ in range(TRIES):
            self.looker.configs.asked.clear()
            settings = self._settings()
            common, own = f"{self.dirs.common_dir}/", f"{self.dirs.git_dir}/"
            names = [
                *self.looker.configs.asked,
                *(f"{own}{name}" for name in ("config.worktree", "commondir", "info/sparse-checkout")),
                *(f"{common}{name}" for name in ("info/exclude", "info/attributes", "info/grafts")),
                *(f"{common}{name}" for name in ("shallow", "refs/replace", "objects/info/alternates")),
                os.fspath(settings.excludes),
                os.fspath(settings.attributes),
            ]
            files = Files(name for name in names if name != os.devnull)
            if self._settings() == settings:
                return settings, files
        raise GitError("busy", "git's configuration changes all the time; it is looked at again later.")

    def _settings(self) -> Settings:
        configs = self.looker.configs
        outside = [pair for path in user_configs() for pair in configs.read(path, self._parse)]
        inside = configs.read(self.dirs.common_dir / "config", self._parse)
        main = self.dirs.common_dir == self.dirs.git_dir
        if is_true(dict(inside).get("extensions.worktreeconfig", "")):
            inside = inside + configs.read(self.dirs.git_dir / "config.worktree", self._parse)
            main = True
        settings = distil(outside, inside)
        if main and settings.worktree:  # git ignores it for a linked worktree
            meant = os.path.realpath(self.dirs.git_dir / settings.worktree)
            if meant != os.path.realpath(self.job.worktree):
                raise GitError("foreign_worktree", f"core.worktree points to {meant}; register that directory instead.")
        return settings

    def _parse(self, content: bytes) -> Pairs:
        done = self._git("config", "--file", "-", "--no-includes", "-z", "--list", given=content or b"\n")
        if done.code:
            raise GitError("bad_config", f"a git config file is malformed{_because(done)}; correct it.")
        return parse_pairs(done.out)

    def _refs(self) -> tuple[Head, str | None, Files]:
        """HEAD, the base branch's commit, and the files that tell them."""
        own, common = self.dirs.git_dir, self.dirs.common_dir
        for _ in range(TRIES):
            pointer = read_regular(own / "HEAD") or b""
            names = [own / "HEAD", common / "packed-refs"]
            ref = os.fsdecode(pointer.strip()).removeprefix("ref: ")
            if ref.startswith("refs/"):
                names.append((own if ref.startswith(PER_WORKTREE_REFS) else common) / ref)
            if self.job.base:
                names += [common / prefix / self.job.base for prefix in ("refs/heads", "refs/remotes")]
                names.append(common / "refs/remotes/origin" / self.job.base)
            files = Files(map(os.fspath, names))
            head, base = read_head(self.dirs), read_branch(common, self.job.base)
            if read_regular(own / "HEAD") == pointer:
                if any(_leads_on(name) for name in names[2:]):
                    files.seen = None  # to refs that are not among these
                return head, base, files
        raise GitError("busy", "HEAD moves faster than it can be read; the worktree is looked at again later.")

    def _refs_and_index(self) -> tuple[Head, str | None, Files, bytes | None]:
        """All of one moment, so that nothing counts as staged that is being committed."""
        for _ in range(TRIES):
            head, base, files = self._refs()
            tail = self._show(head)
            if read_head(self.dirs) == head:
                return head, base, files, tail
        raise GitError("busy", "HEAD moves faster than it can be read; the worktree is looked at again later.")

    def _show(self, head: Head) -> bytes | None:
        """Let git see this HEAD and the index as it is; the end of the index, by which to know it."""
        tail = self._tail()
        self.shadow.copy_index()
        self.shadow.write("HEAD", f"{head.head or 'ref: refs/heads/unborn'}\n")
        return tail

    def _tail(self) -> bytes | None:
        fd = open_regular(self.dirs.git_dir / "index", MAX_INDEX)
        if fd is None:
            return None
        try:
            return os.pread(fd, TAIL, max(0, os.fstat(fd).st_size - TAIL))
        finally:
            os.close(fd)

    def _index_header(self) -> tuple[int, int]:
        """Format and number of entries of our index; zeros if there is none."""
        fd = open_regular(self.shadow.index, MAX_INDEX)
        if fd is None:
            return 0, 0
        try:
            header = os.pread(fd, 12, 0)
        finally:
            os.close(fd)
        return int.from_bytes(header[4:8], "big"), int.from_bytes(header[8:12], "big")

    def _index_file(self) -> Files:
        return Files([f"{self.dirs.git_dir}/index"])

    def _operation_files(self) -> Files:
        # Whatever begins or ends one makes or removes a name in the git directory.
        own = os.fspath(self.dirs.git_dir)
        return Files([f"{own}/sequencer/todo", f"{own}/rebase-apply"], [own])

    def _shown(self, name: str) -> bytes:
        """A rule file as git is shown it."""
        return read_regular(self.shadow.path / name, MAX_RULES) or b""

    # ── what git is asked ────────────────────────────────────────────────────────────────────────

    def _status(self) -> Status:
        done = self._git("status", "--porcelain=v2", "-z", "--untracked-files=all", "--no-ahead-behind", _SUBMODULES)
        return parse_status(self._checked(done))

    def _lineage(self, head: str, base: str, objects: Objects | None = None) -> Lineage:
        """Where the two part; by `objects`, if they tell it for sure, and else by git."""
        if head == base:
            return Lineage(head, 0, 0)
        shallow = identify(self.dirs.common_dir / "shallow")
        key = self.dirs.common_dir, shallow, head, base
        lineages = self.looker.lineages
        known = lineages.get(key)
        if known is None and objects is not None and shallow is None:
            known = objects.lineage(head, base)
        if known is None:
            if objects is not None:
                self._prepare()
            known = self._trace(head, base, shallow is not None)
        lineages[key] = known
        lineages.move_to_end(key)
        while len(lineages) > MAX_LINEAGES:
            lineages.popitem(last=False)
        return known

    def _trace(self, head: str, base: str, shallow: bool) -> Lineage:
        found = self._git("merge-base", base, head)
        if found.code == 1 and not found.complaint and shallow:
            raise GitError("shallow", "the merge base lies beyond this shallow clone; run git fetch --unshallow.")
        none = found.code == 1 and not found.complaint
        merge_base = None if none else self._checked(found).decode("ascii").strip()
        counted = self._checked(self._git("rev-list", "--count", "--left-right", f"{base}...{head}"))
        behind, ahead = counted.split()
        return Lineage(merge_base, int(ahead), int(behind))

    def _filtered(self, status: Status, settings: Settings) -> set[bytes]:
        """The changed files that a filter would make something else of. Only the filter knows what, and it is not run:
        they count as files without lines."""
        paths = status.edited + status.untracked + [path for _, path in status.unmerged]
        if not paths or not settings.drivers:
            return set()
        answer = self._checked(self._git("check-attr", "-z", "--stdin", "filter", given=_listed(paths))).split(b"\0")
        found = zip(answer[::3], answer[2::3], strict=False)
        return {path for path, driver in found if os.fsdecode(driver) in settings.drivers}

    def _untouched(self, paths: Collection[bytes]) -> set[bytes]:
        """Those that have the size and the time that the real index noted. git looks into files written in the same
        moment as the index, and what it finds in filtered ones is never what the index has."""
        if not paths:
            return set()
        self.shadow.start_added_index(real=True)
        noting = "ls-files", "--debug", "-z", "--", *map(os.fsdecode, paths)
        noted = {
            path: (int(seconds) * 1_000_000_000 + int(rest), int(size))
            for path, seconds, rest, size in _NOTED.findall(
                self._checked(self._git(*noting, index=self.shadow.added_index))
            )
        }
        return {path for path in paths if path in noted and noted[path] == _time_and_size(self.job.worktree, path)}

    def _changes(self, against: str, status: Status, some_blob: str, untouched: Collection[bytes]) -> list[Change]:
        index = self.shadow.index
        if untouched:
            self.shadow.start_added_index()
            index = self.shadow.added_index
            believed = "update-index", "--assume-unchanged", "-z", "--stdin"
            self._checked(self._git(*believed, given=_listed(untouched), index=index))
        if status.untracked or status.unmerged:
            # As `git add -A` would: these paths become entries that differ from their file, whatever it holds, so
            # that diff reads the file. No object is written.
            if index == self.shadow.index:
                self.shadow.start_added_index()
                index = self.shadow.added_index
            given = bytearray()
            for mode, path in status.unmerged + [_entry(path) for path in status.untracked]:
                given += b"%s %s\t%s\0" % (mode, some_blob.encode(), path)
            self._checked(self._git("update-index", "-z", "--index-info", given=bytes(given), index=index))
        return self._diff(against, index)

    def _diff(self, against: str, index: Path, paths: Iterable[bytes] = ()) -> list[Change]:
        done = self._git(
            "diff", "--raw", "--numstat", "-z", "-M", "--abbrev=40", "--no-ext-diff", "--no-textconv", "--no-color",
            _SUBMODULES, against, "--", *map(os.fsdecode, paths),
            index=index,
        )  # fmt: skip
        return parse_changes(self._checked(done))

    def _git(self, *args: str, given: bytes = b"", index: Path | None = None, literal: bool = True) -> Finished:
        env = {
            "PATH": os.defpath,
            "LC_ALL": "C",
            "GIT_DIR": os.fspath(self.shadow.path),
            "GIT_WORK_TREE": self.job.worktree,
            "GIT_INDEX_FILE": os.fspath(index or self.shadow.index),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_SYSTEM": os.devnull,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ALLOW_PROTOCOL": "none",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSH_COMMAND": "false",
            "GIT_LITERAL_PATHSPECS": str(int(literal)),
            # Optional locks are those on the index, and this one is ours: let git refresh it.
            "GIT_OPTIONAL_LOCKS": "1",
        }
        flags = ("--no-pager", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
        for _ in range(TRIES):
            self.spawned += 1
            done = spawn.git([*flags, *args], env=env, cwd=self.shadow.path, deadline=self.deadline, given=given)
            if done.code != -signal.SIGBUS:
                return done
        raise GitError(
            "busy", "files are cut off faster than git can read them; the worktree is looked at again later."
        )

    def _checked(self, done: Finished) -> bytes:
        if done.code == 0:
            return done.out
        if _NO_FILE in done.complaint:
            raise GitError(
                "special_file",
                f"what git tracks was replaced by something that is no file{_because(done)}; restore or remove it.",
            )
        if any(sign in done.complaint for sign in _MISSING):
            raise GitError(
                "missing_object",
                f"the repository lacks objects{_because(done)}; fetch them, since nothing is fetched from here.",
            )
        if _VANISHED.search(done.complaint):
            raise GitError("busy", "files go while git reads them; the worktree is looked at again later.")
        raise GitError("git_failed", f"git failed with code {done.code}{_because(done)}; run git fsck in the worktree.")


def pin_of(job: Job) -> tuple[int, ...]:
    """What changes if the worktree's way to its git directory does."""
    try:
        pointer, git_dir = os.lstat(f"{job.worktree}/.git"), os.stat(job.git_dir)
    except OSError as error:
        raise Unfit("pinned changed") from error
    pin = pointer.st_dev, pointer.st_ino, pointer.st_mode, git_dir.st_dev, git_dir.st_ino
    if pointer.st_ino == git_dir.st_ino:
        return pin
    return *pin, pointer.st_size, pointer.st_mtime_ns, pointer.st_ctime_ns


_KINDS: Final[dict[str, Kind]] = {"A": "added", "D": "deleted", "M": "modified", "T": "modified"}


def _table(changes: Iterable[Change], status: Status, filtered: Collection[bytes]) -> Table:
    """What a full look found, path by path."""
    states: dict[bytes, State] = dict.fromkeys([*status.edited, *status.lost], "unstaged")
    states.update(dict.fromkeys((path.removesuffix(b"/") for path in status.untracked), "untracked"))
    states.update(dict.fromkeys((path for _, path in status.unmerged), "conflicted"))
    table = Table()
    for path, state in states.items():
        table.put(path, Entry(state=state))
    for change in changes:
        lines = (0, 0) if change.path in filtered else (change.insertions, change.deletions)
        if change.source is not None:
            table.pair(change.source, change.path, *lines)
        elif change.kind in _KINDS:
            table.put(change.path, Entry(_KINDS[change.kind], *lines, states.get(change.path, "")))
        else:
            raise Malformed(f"a change of an unknown kind: {change.kind!r}")
    return table


def _without(status: Status, untouched: Collection[bytes]) -> Status:
    edited = [path for path in status.edited if path not in untouched]
    return status._replace(edited=edited, unstaged=status.unstaged - len(untouched))


def _time_and_size(worktree: str, path: bytes) -> tuple[int, int] | None:
    try:
        found = os.lstat(os.path.join(os.fsencode(worktree), path))
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _listed(paths: Iterable[bytes]) -> bytes:
    return b"".join(path + b"\0" for path in paths)


def _leads_on(ref: Path) -> bool:
    """Whether a ref is only the name of another one."""
    return (b"" if os.path.isdir(ref) else read_regular(ref) or b"").startswith(b"ref:")


def _entry(path: bytes) -> tuple[bytes, bytes]:
    """The mode to start from: a nested repository is a commit, and whether a file is executable its stat will tell."""
    return (b"160000", path[:-1]) if path.endswith(b"/") else (b"100644", path)


def _because(done: Finished) -> str:
    lines = [line for line in done.complaint.splitlines() if line.startswith(("fatal: ", "error: "))]
    return f" ({lines[0][:200]!a})" if lines else ""
