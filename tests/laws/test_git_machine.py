"""Whatever is done to a worktree, both looks say what git says, and a full look never corrects a scoped one (G1, G2).

The machine works in a main worktree and a linked one as people and agents do, and names the changed paths as a watch
would. After each step both looks are compared with git's own commands. ``TREEWIRE_EXAMPLES`` makes it run longer.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline.domain.model import Git
from tests.gitkit import add_worktree, commit, git, make_repo, write
from tests.oracle import changed, expected, job_for, snapshot
from workers.git import Looker

EXAMPLES = int(os.environ.get("TREEWIRE_EXAMPLES", "10"))

TEXT = "".join(f"line {number}\n" for number in range(24))
CONTENTS = [
    "", "1\n", "1\n2\n3", TEXT, TEXT + "more\n", "less\n" + TEXT[40:], TEXT.replace("line 3", "LINE"),
    TEXT.replace("\n", "\r\n"), "\0\1\2", "\0" * 90 + TEXT, "1\r\n2\n", "$Id$\n",
]  # fmt: skip
FILES = [
    b"a.txt", b"b.txt", b"dir/c.txt", b"dir/d.txt", b"dir/sub/e.txt", b"new/f.txt", b"g.log", b"build/h.txt", b"A.txt",
    b"caf\xe9", b"other/a.txt", b"dir", b"new",
]  # fmt: skip
IGNORES = ["*.log\nbuild/\n", "", "*.log\n!g.log\n", "new/\n", "/a.txt\n", "*\n!*.txt\n!*/\n"]
RULES = ["", "*.txt text\n", "*.txt -diff\n", "* text=auto\n", "b.txt binary\n", "*.txt ident\n", "dir/** eol=lf\n"]
BRANCHES = ["feature", "other"]

worktrees = st.sampled_from(["linked", "linked", "main"])
names = st.sampled_from(FILES)
contents = st.sampled_from(CONTENTS)


class Worktrees(RuleBasedStateMachine):
    looks: ClassVar[Counter[str]] = Counter()

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="treewire-law-"))
        self.home = self.root / "home"
        self.home.mkdir()
        os.environ["HOME"] = str(self.home)
        files = {"a.txt": TEXT, "b.txt": "one\ntwo\n", "dir/c.txt": TEXT.upper(), "dir/d.txt": "d\n"}
        repo = make_repo(self.root / "main", {**files, ".gitignore": IGNORES[0], "bin": b"\0\1"})
        linked = add_worktree(repo, self.root / "linked", "feature")
        commit(linked, {"b.txt": "one\ntwo\nthree\n"})
        git(repo, "branch", "other")
        self.at = {"main": repo, "linked": linked}
        self.scoped, self.full = Looker(self.root / "scoped", young_s=0), Looker(self.root / "full")
        self.before = {name: snapshot(path) for name, path in self.at.items()}
        self.touched = {"main", "linked"}
        for path in self.at.values():
            self.scoped.look(job_for(path, why="first sight"))

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root)

    def git(self, where: str, *args: str | bytes) -> None:
        git(self.at[where], *args, check=False)
        self.touched |= {where}

    def path(self, where: str, name: bytes) -> Path:
        self.touched |= {where}
        return self.at[where] / os.fsdecode(name)

    # ── what is done ─────────────────────────────────────────────────────────────────────────────

    @rule(where=worktrees, name=names, content=contents)
    def edit(self, where: str, name: bytes, content: str) -> None:
        path = self.path(where, name)
        if path.is_symlink():
            path.unlink()
        if path.is_dir() or any(parent.is_file() or parent.is_symlink() for parent in path.parents if parent != path):
            return
        write(path.parent, {path.name: content})

    @rule(where=worktrees, name=names)
    def append(self, where: str, name: bytes) -> None:
        path = self.path(where, name)
        if path.is_file() and not path.is_symlink():
            path.write_bytes(path.read_bytes() + b"appended\n")

    @rule(where=worktrees, name=names)
    def delete(self, where: str, name: bytes) -> None:
        path = self.path(where, name)
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)

    @rule(where=worktrees, name=names, to=names)
    def rename(self, where: str, name: bytes, to: bytes) -> None:
        source, there = self.path(where, name), self.path(where, to)
        if os.path.lexists(source) and there.parent.is_dir() and source not in (there, *there.parents):
            if os.path.lexists(there):
                return
            source.rename(there)

    @rule(where=worktrees, name=names)
    def chmod(self, where: str, name: bytes) -> None:
        path = self.path(where, name)
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode ^ 0o111)

    @rule(where=worktrees, name=names, to=st.sampled_from(["b.txt", "nowhere", "dir", "."]))
    def symlink(self, where: str, name: bytes, to: str) -> None:
        path = self.path(where, name)
        if path.is_file() and not path.is_symlink():
            path.unlink()
        if not os.path.lexists(path) and path.parent.is_dir():
            path.symlink_to(to)

    @rule(where=worktrees, name=st.sampled_from([".gitignore", "dir/.gitignore"]), content=st.sampled_from(IGNORES))
    def ignore(self, where: str, name: str, content: str) -> None:
        if self.path(where, name.encode()).parent.is_dir():
            self.edit(where, name.encode(), content)

    @rule(
        where=worktrees, name=st.sampled_from([".gitattributes", "dir/.gitattributes"]), content=st.sampled_from(RULES)
    )
    def attribute(self, where: str, name: str, content: str) -> None:
        if self.path(where, name.encode()).parent.is_dir():
            self.edit(where, name.encode(), content)

    @rule(content=st.sampled_from(["", "*.txt\n", "new/\n"]))
    def exclude(self, content: str) -> None:
        write(self.at["main"] / ".git/info", {"exclude": content})
        self.touched |= {"main", "linked"}

    @rule(value=st.sampled_from(["true", "false", "input"]))
    def convert(self, value: str) -> None:
        self.git("main", "config", "core.autocrlf", value)
        self.touched |= {"main", "linked"}

    @rule(where=worktrees, name=names, how=st.sampled_from(["", "no-"]))
    def hide(self, where: str, name: bytes, how: str) -> None:
        self.git(where, "update-index", f"--{how}assume-unchanged", "--", name)

    @rule(where=worktrees, name=names, to=names)
    def move(self, where: str, name: bytes, to: bytes) -> None:
        self.git(where, "mv", name, to)

    @rule(where=worktrees, name=names)
    def stage(self, where: str, name: bytes) -> None:
        self.git(where, "add", "-A", "--", name)

    @rule(where=worktrees)
    def stage_everything(self, where: str) -> None:
        self.git(where, "add", "-A")

    @rule(where=worktrees, name=names)
    def unstage(self, where: str, name: bytes) -> None:
        self.git(where, "reset", "-q", "--", name)

    @rule(where=worktrees, name=names)
    def forget(self, where: str, name: bytes) -> None:
        self.git(where, "rm", "-q", "-r", "--cached", "--", name)

    @rule(where=worktrees, name=names)
    def restore(self, where: str, name: bytes) -> None:
        self.git(where, "checkout", "-q", "--", name)

    @rule(where=worktrees)
    def commit(self, where: str) -> None:
        self.git(where, "commit", "-q", "--allow-empty", "-m", "work")
        self.touched |= {"linked"} if where == "main" else set()

    @rule(where=worktrees)
    def commit_everything(self, where: str) -> None:
        self.git(where, "commit", "-q", "-a", "-m", "work")
        self.touched |= {"linked"} if where == "main" else set()

    @rule(where=worktrees)
    def amend(self, where: str) -> None:
        self.git(where, "commit", "-q", "--amend", "-m", "amended")
        self.touched |= {"main", "linked"}

    @rule(where=worktrees, how=st.sampled_from(["--soft", "--mixed", "--hard"]), to=st.sampled_from(["HEAD", "HEAD~1"]))
    def reset(self, where: str, how: str, to: str) -> None:
        self.git(where, "reset", "-q", how, to)
        self.touched |= {"main", "linked"}

    @rule(where=worktrees, back=st.booleans())
    def stash(self, where: str, back: bool) -> None:
        self.git(where, "stash", *(["pop", "-q"] if back else ["push", "-q", "-u"]))

    @rule(where=worktrees, branch=st.sampled_from([*BRANCHES, "main", "HEAD~1"]))
    def switch(self, where: str, branch: str) -> None:
        self.git(where, "checkout", "-q", branch, *(["--detach"] if branch == "HEAD~1" else []))

    @rule(
        where=worktrees,
        how=st.sampled_from(["merge", "rebase", "cherry-pick"]),
        branch=st.sampled_from([*BRANCHES, "main"]),
    )
    def join(self, where: str, how: str, branch: str) -> None:
        self.git(where, how, *(["--no-edit"] if how == "merge" else []), branch)
        self.touched |= {"main", "linked"}

    @rule(where=worktrees, how=st.sampled_from(["merge", "rebase", "cherry-pick"]))
    def abort(self, where: str, how: str) -> None:
        self.git(where, how, "--abort")
        self.touched |= {"main", "linked"}

    @rule(where=worktrees)
    def refresh(self, where: str) -> None:
        self.git(where, "status")

    @rule()
    def pack(self) -> None:
        self.git("main", "gc", "-q", "--prune=now")
        self.touched |= {"main", "linked"}

    @rule(where=worktrees)
    def look_at_everything(self, where: str) -> None:
        """The cadence: nothing may turn out to be otherwise than the scoped looks had it."""
        self.look(where)
        seen = self.scoped.look(job_for(self.at[where], why="cadence"))
        assert seen.drift == 0

    # ── what is seen ─────────────────────────────────────────────────────────────────────────────

    @invariant()
    def both_looks_say_what_git_says(self) -> None:
        for where in sorted(self.touched):
            git_says = expected(self.at[where], self.root / "scratch")
            assert without_operation(self.full.look(job_for(self.at[where])).git) == git_says, "the full look"
            assert without_operation(self.look(where)) == git_says, "the scoped look"
        self.touched.clear()

    def look(self, where: str) -> Git:
        now = snapshot(self.at[where])
        named = changed(self.before[where], now)
        self.before[where] = now
        seen = self.scoped.look(job_for(self.at[where], full=False, why="tree", paths=named))
        assert seen.drift == 0
        self.looks["scoped" if seen.scoped else seen.why] += 1
        return seen.git


def without_operation(git: Git) -> Git:
    values = {name: getattr(git, name) for name in git.__struct_fields__}
    return Git(**{**values, "operation": None})


@pytest.mark.timeout(max(120, 15 * EXAMPLES))
def test_both_looks_say_what_git_says_whatever_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIT_CONFIG_GLOBAL", "XDG_CONFIG_HOME", "GIT_CONFIG_SYSTEM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")  # each run has its own
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    Worktrees.looks.clear()
    Machine = Worktrees.TestCase
    Machine.settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=30,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),  # to shrink takes many minutes, and the steps tell enough
        print_blob=True,
    )
    Machine().runTest()
    print(f"looks: {dict(Worktrees.looks.most_common())}")
    assert Worktrees.looks["scoped"] > sum(Worktrees.looks.values()) // 3, "most steps need no full look"
