"""A git directory of our own beside a worktree's real one: same commits, same index, none of its programs.

git runs what a repository's config, attributes and hooks name, and an agent can write all of these. So git is
shown a directory that the agent cannot write: our config, with only those of the real settings that change
numbers and run nothing; HEAD as we read it; copies of the ignore and attribute rules; the real objects as
alternates; and a private copy of the index, which git may refresh without anybody noticing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from pipeline.gitdir import (
    GitDirs,
    Identity,
    identify,
    identity_of,
    open_regular,
    read_regular,
)
from pipeline.runtime.spawn import Deadline, GitError, full, mount_of

Pairs: TypeAlias = list[tuple[str, str]]
Parse: TypeAlias = Callable[[bytes], Pairs]

MAX_RULES: Final = 1 << 22
MAX_INDEX: Final = 1 << 30
MAX_SHADOWS: Final = 2048
MAX_KNOWN: Final = 512
MAX_INCLUDES: Final = 10
PRUNE_S: Final = 120.0
BUSY_S: Final = 0.01
_TAIL: Final = 20

# Names this process's run in a shadow's lock file: what we remember of a shadow holds only if nobody else used it.
_RUN: Final = os.urandom(16).hex().encode()

# ── settings ─────────────────────────────────────────────────────────────────────────────────────

_BOOLEANS: Final = {"true": "true", "yes": "true", "on": "true", "1": "true"} | {
    "false": "false", "no": "false", "off": "false", "0": "false", "": "false"
}  # fmt: skip
_OBJECT_FORMATS: Final = {"sha1": "sha1", "sha256": "sha256"}
CARRIED: Final = {
    "core.filemode": _BOOLEANS,
    "core.symlinks": _BOOLEANS,
    "core.ignorecase": _BOOLEANS,
    "core.trustctime": _BOOLEANS,
    "core.checkstat": {"default": "default", "minimal": "minimal"},
    "core.autocrlf": _BOOLEANS | {"input": "input"},
    "core.eol": {"lf": "lf", "crlf": "crlf", "native": "native"},
    "core.sparsecheckout": _BOOLEANS,
    "core.sparsecheckoutcone": _BOOLEANS,
}
EXTENSIONS: Final = {"objectformat", "partialclone", "worktreeconfig", "preciousobjects", "noop", "noop-v1"} | {
    "refstorage", "relativeworktrees"
}  # fmt: skip
OURS: Final = """\
[core]
\tbare = false
\tlogAllRefUpdates = false
\tfsmonitor = false
\thooksPath = /dev/null
\tuntrackedCache = false
\tsplitIndex = false
\tsafecrlf = false
\tpager = cat
[index]
\tthreads = true
[gc]
\tauto = 0
[maintenance]
\tauto = false
[protocol]
\tallow = never
"""


class Settings(NamedTuple):
    """What a worktree's real configuration comes to, as far as numbers depend on it.

    ``text``: our config file. ``drivers``: names of the filters that git would run. ``excludes``, ``attributes``:
    the user's own rule files. ``worktree``: where ``core.worktree`` points, if it is set. ``sha256``: whether object
    names are of that hash.
    """

    text: str
    drivers: frozenset[str]
    excludes: Path
    attributes: Path
    worktree: str
    sha256: bool


class ConfigReader:
    """Reads git configuration as data: regular files only, includes followed by us, parsed once per content."""

    def __init__(self) -> None:
        self._parsed: OrderedDict[Path, tuple[Identity, Pairs]] = OrderedDict()

    def read(self, path: Path, parse: Parse, depth: int = 0) -> Pairs:
        """A file's settings in order, those of its includes in their place; `parse` turns content into settings.

        A conditional include is not decided but must not matter: its filters count as defined, and a setting that
        changes numbers raises `GitError` (``conditional_config``).
        """
        found = identify(path)
        if found is None:
            return []
        if depth > MAX_INCLUDES:
            raise GitError("bad_config", f"{path} is included too deeply; see whether it includes itself.")
        known = self._parsed.get(path)
        if known is None or known[0] != found:
            known = found, parse(read_regular(path, MAX_RULES) or b"")
            self._parsed[path] = known
            while len(self._parsed) > MAX_KNOWN:
                self._parsed.popitem(last=False)
        self._parsed.move_to_end(path)
        pairs: Pairs = []
        for key, value in known[1]:
            pairs.append((key, value))
            if key == "include.path":
                pairs += self.read(_expand(value, path.parent), parse, depth + 1)
            elif key.startswith("includeif.") and key.endswith(".path"):
                pairs += self._conditional(_expand(value, path.parent), parse, depth + 1)
        return pairs

    def _conditional(self, path: Path, parse: Parse, depth: int) -> Pairs:
        pairs = self.read(path, parse, depth)
        for key, _ in pairs:
            if key in CARRIED or key in ("core.excludesfile", "core.attributesfile", "core.worktree"):
                raise GitError(
                    "conditional_config",
                    f"{path} sets {key} behind includeIf, which is not evaluated; set it in the repository's config.",
                )
        return [(key, value) for key, value in pairs if key.startswith("filter.")]


def user_configs() -> list[Path]:
    """The configuration files outside the repository, the weakest first, where git itself looks for them."""
    paths = []
    if os.environ.get("GIT_CONFIG_NOSYSTEM", "") in ("", "0", "false"):
        paths.append(Path(os.environ.get("GIT_CONFIG_SYSTEM", "/etc/gitconfig")))
    if "GIT_CONFIG_GLOBAL" in os.environ:
        paths.append(Path(os.environ["GIT_CONFIG_GLOBAL"]))
    else:
        paths += [_user_home() / "git/config", Path("~/.gitconfig").expanduser()]
    return [path for path in paths if path != Path(os.devnull)]


def distil(outside: Pairs, inside: Pairs) -> Settings:
    """Pick from the user's settings and the repository's those that count, and write our config. Pure but for ``~``.

    Raises `GitError`: ``bad_config``, ``unsupported_format``, ``reftable``.
    """
    merged: dict[str, str] = {}
    drivers: set[str] = set()
    binaries: dict[str, str] = {}
    for key, value in [*outside, *inside]:
        merged[key] = value
        section, _, rest = key.partition(".")
        name, _, leaf = rest.rpartition(".")
        if section == "filter" and leaf in ("clean", "process", "required"):
            drivers.add(name)
        elif section == "diff" and name and leaf == "binary":
            binaries[name] = _enum(key, value, _BOOLEANS)
    lines = [OURS, "[core]\n"]
    for key, allowed in CARRIED.items():
        if key in merged:
            lines.append(f"\t{key.removeprefix('core.')} = {_enum(key, merged[key], allowed)}\n")
    object_format = _object_format(dict(inside))
    lines.append(f"\trepositoryFormatVersion = 1\n[extensions]\n\tobjectFormat = {object_format}\n")
    lines += [f'[diff "{_quoted(name)}"]\n\tbinary = {value}\n' for name, value in binaries.items()]
    return Settings(
        "".join(lines),
        frozenset(drivers),
        _rules(merged.get("core.excludesfile"), "git/ignore"),
        _rules(merged.get("core.attributesfile"), "git/attributes"),
        dict(inside).get("core.worktree", ""),
        object_format == "sha256",
    )


def _object_format(inside: dict[str, str]) -> str:
    version = inside.get("core.repositoryformatversion", "0")
    if version not in ("0", "1"):
        raise GitError("unsupported_format", f"repository format {version[:8]} is not known; update treewire.")
    if version == "0":
        return "sha1"
    for key, value in inside.items():
        section, _, name = key.partition(".")
        if section == "extensions" and name not in EXTENSIONS:
            raise GitError("unsupported_format", f"the repository uses the extension {name[:40]}, which is not known.")
        if key == "extensions.refstorage" and value != "files":
            raise GitError("reftable", "the repository keeps its refs in a reftable, which is not read yet.")
    return _enum("extensions.objectformat", inside.get("extensions.objectformat", "sha1"), _OBJECT_FORMATS)


def is_true(value: str) -> bool:
    return _BOOLEANS.get(value.lower()) == "true"


def _enum(key: str, value: str, allowed: dict[str, str]) -> str:
    found = allowed.get(value.lower())
    if found is None:
        raise GitError("bad_config", f"{key} is set to {value[:40]!r}, which is not a value that git documents for it.")
    return found


def _quoted(name: str) -> str:
    if not name.isprintable():
        raise GitError("bad_config", "a diff driver has an unprintable name; rename it.")
    return name.replace("\\", "\\\\").replace('"', '\\"')


def _rules(named: str | None, default: str) -> Path:
    if named is None:
        return _user_home() / default
    return _expand(named, Path("/")) if named else Path(os.devnull)


def _user_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser())


def _expand(value: str, directory: Path) -> Path:
    try:
        return directory / Path(value).expanduser()
    except RuntimeError:
        raise GitError("bad_config", f"{value[:80]!r} names the home of an unknown user.") from None


# ── the directory ────────────────────────────────────────────────────────────────────────────────


class Shadow:
    """The shadow of one worktree, as a directory under `cache_dir`. Use it only while it is `held`."""

    def __init__(self, cache_dir: Path, dirs: GitDirs) -> None:
        self.dirs = dirs
        self.path = cache_dir / shadow_name(dirs.git_dir)
        self.index = self.path / "index"
        self.added_index = self.path / "index.added"
        self._written: dict[str, str] = {}
        self._copied: dict[str, tuple[Path, Identity | None]] = {}
        self._index_seen: tuple[Identity, bytes] | None = None

    @contextmanager
    def held(self, deadline: Deadline) -> Iterator[None]:
        """Keep every other process out; what one that was killed left half done is cleared away."""
        fd = -1
        try:
            fd = self._lock(deadline)
            if os.pread(fd, len(_RUN) + 1, 0) != _RUN:
                self._forget()
                os.pwrite(fd, _RUN, 0)
            for left_over in self.path.glob("*.lock"):
                left_over.unlink()
            os.utime(fd)
            yield
        except OSError as error:
            self._forget()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise full(mount_of(self.path.parent)) from error
            raise GitError(
                "cache_failed",
                f"the git cache cannot be kept: {error.strerror}; see who owns {self.path.parent}, and whether it is "
                "mounted read-only.",
            ) from error
        finally:
            if fd >= 0:
                os.close(fd)

    def _lock(self, deadline: Deadline) -> int:
        while True:
            self._make("", "info")
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            while not _locked(fd):
                if deadline.left() <= BUSY_S:
                    os.close(fd)
                    raise GitError("busy", "another worker is looking at this worktree; it is looked at again later.")
                time.sleep(BUSY_S)
            if os.fstat(fd).st_nlink:
                return fd
            os.close(fd)  # pruned between opening and locking

    def _make(self, *names: str) -> None:
        # One by one: a parent that is made in passing would have the mode that the process's umask leaves it.
        for name in names:
            (self.path / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def _forget(self) -> None:
        self._written.clear()
        self._copied.clear()
        self._index_seen = None

    def lay_out(self) -> None:
        """The least that git takes for a repository, with the real objects behind it."""
        if "owner" in self._written:
            return
        self._make("objects", "objects/info", "refs")
        self.write("objects/info/alternates", _c_quoted(self.dirs.common_dir / "objects") + "\n")
        self.write("config", OURS)
        self.write("HEAD", "ref: refs/heads/unborn\n")
        self.write("owner", os.fspath(self.dirs.git_dir))

    def furnish(self, settings: Settings) -> None:
        """Our config, and copies of the rules that decide what is ignored and what has lines."""
        rules = {"excludes": settings.excludes, "attributes": settings.attributes}
        files = "".join(f"\t{name}File = {_config_quoted(self.path / name)}\n" for name in rules)
        self.write("config", settings.text + "[core]\n" + files)
        common, own = self.dirs.common_dir, self.dirs.git_dir
        self.copy("info/exclude", common / "info/exclude")
        self.copy("info/attributes", common / "info/attributes")
        self.copy("info/sparse-checkout", own / "info/sparse-checkout")
        self.copy("shallow", common / "shallow")
        for name, source in rules.items():
            self.copy(name, source)

    def write(self, name: str, text: str) -> None:
        if self._written.get(name) != text:
            self._written.pop(name, None)
            (self.path / name).write_bytes(os.fsencode(text))
            self._written[name] = text

    def copy(self, name: str, source: Path) -> None:
        """Carry a rule file over as data, again only when it changed. Raises `GitDirError` if it is no regular file."""
        found = identify(source) if source != Path(os.devnull) else None
        if self._copied.get(name) == (source, found):
            return
        self._copied.pop(name, None)
        content = None if found is None else read_regular(source, MAX_RULES)
        if content is None:
            (self.path / name).unlink(missing_ok=True)
        else:
            (self.path / name).write_bytes(content)
        self._copied[name] = (source, found)

    def copy_index(self) -> None:
        """Take the real index over if it is another one than last time; else keep ours, which is refreshed.

        The copy keeps the time of its original: git trusts a file's stat data only if it is older than the index.
        """
        fd = open_regular(self.dirs.git_dir / "index", MAX_INDEX)
        if fd is None:
            self._index_seen = None
            self.index.unlink(missing_ok=True)
            return
        try:
            found = os.fstat(fd)
            seen = identity_of(found), os.pread(fd, _TAIL, max(0, found.st_size - _TAIL))
            if seen == self._index_seen:
                return
            self._index_seen = None
            self._copy_shared_indexes()
            _copy(fd, self.index, found)
            self._index_seen = seen
        finally:
            os.close(fd)

    def _copy_shared_indexes(self) -> None:
        # A split index names its larger half, which lies beside it and is never rewritten.
        wanted = {name for name in os.listdir(self.dirs.git_dir) if name.startswith("sharedindex.")}
        for name in os.listdir(self.path):
            if name.startswith("sharedindex.") and name not in wanted:
                (self.path / name).unlink()
        for name in wanted:
            source = self.dirs.git_dir / name
            fd = open_regular(source, MAX_INDEX)
            if fd is not None:
                try:
                    _copy(fd, self.path / name, os.fstat(fd))
                finally:
                    os.close(fd)

    def start_added_index(self, real: bool = False) -> None:
        """A second copy, of our refreshed index or of the real one, to which paths may be added without ours knowing
        them."""
        self.added_index.unlink(missing_ok=True)
        fd = open_regular(self.dirs.git_dir / "index" if real else self.index, MAX_INDEX)
        if fd is None:
            return
        try:
            _copy(fd, self.added_index, os.fstat(fd))
        finally:
            os.close(fd)


def shadow_name(git_dir: Path) -> str:
    return hashlib.sha256(os.fsencode(git_dir)).hexdigest()[:32]


def prune(cache_dir: Path, most: int = MAX_SHADOWS) -> int:
    """Remove the shadows of git directories that are gone, and the longest unused beyond `most`; how many it were."""
    ages: list[tuple[float, Path]] = []
    removed = 0
    for shadow in cache_dir.iterdir() if os.path.isdir(cache_dir) else ():
        try:
            used = (shadow / "lock").stat().st_mtime
            owner = os.fsdecode(read_regular(shadow / "owner") or b"")
        except OSError:
            continue  # not a shadow, or one that is being made
        if owner and not os.path.isdir(owner):
            removed += _remove(shadow)
        else:
            ages.append((used, shadow))
    for _, shadow in sorted(ages)[: max(0, len(ages) - most)]:
        removed += _remove(shadow)
    return removed


def _remove(shadow: Path) -> bool:
    try:
        fd = os.open(shadow / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if not _locked(fd):
            return False
        os.ftruncate(fd, 0)  # whoever remembers this shadow must not believe it any more
        shutil.rmtree(shadow, ignore_errors=True)
        return True
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _copy(fd: int, target: Path, found: os.stat_result) -> None:
    target.unlink(missing_ok=True)
    left = found.st_size
    with open(target, "xb", buffering=0) as copy:
        offset = 0
        while left > 0:
            done = os.sendfile(copy.fileno(), fd, offset, left)
            if done == 0:
                raise GitError("busy", "the index shrank while it was copied; it is looked at again later.")
            offset += done
            left -= done
        os.utime(copy.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))


def _c_quoted(path: Path) -> str:
    plain = b"/._-abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in os.fsencode(path)) + '"'


def _config_quoted(path: Path) -> str:
    text = os.fspath(path).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
