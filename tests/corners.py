"""Everything that may become of a worktree and that git counts in a way of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.gitdir import resolve
from tests.gitkit import commit, git, make_repo, write

TEXT = "".join(f"line {number}\n" for number in range(40))
FILES: dict[str, str | bytes] = {
    "a.txt": TEXT,
    "b.txt": "one\ntwo\n",
    "dir/c.txt": "deep\n",
    "dir/d.txt": TEXT.replace("line", "row"),
    "logo.png": bytes(range(256)),
    ".gitignore": "*.log\nbuild/\n",
}


Change = Callable[[Path], object]
CHANGES: dict[str, Change] = {
    "nothing": lambda w: None,
    "edit": lambda w: write(w, {"a.txt": TEXT + "more\n"}),
    "edit and stage": lambda w: (write(w, {"a.txt": "x\n"}), git(w, "add", "a.txt")),
    "stage and edit back": lambda w: (
        write(w, {"b.txt": "x\n"}),
        git(w, "add", "-A"),
        write(w, {"b.txt": "one\ntwo\n"}),
    ),
    "commit": lambda w: commit(w, {"new.txt": "1\n2\n"}),
    "undo what was committed": lambda w: write(w, {"b.txt": "one\ntwo\n"}),
    "delete": lambda w: (w / "a.txt").unlink(),
    "delete and stage": lambda w: git(w, "rm", "-q", "a.txt"),
    "forget but keep": lambda w: git(w, "rm", "-q", "--cached", "a.txt"),
    "forget, keep and edit": lambda w: (git(w, "rm", "-q", "--cached", "a.txt"), write(w, {"a.txt": "x\n"})),
    "rename and stage": lambda w: git(w, "mv", "a.txt", "moved.txt"),
    "rename onto an untracked name": lambda w: (w / "a.txt").rename(w / "moved.txt"),
    "rename into an untracked directory and edit": lambda w: (
        write(w, {"far/away/moved.txt": TEXT + "more\n"}),
        (w / "a.txt").unlink(),
    ),
    "two renames and a copy": lambda w: (
        write(w, {"copy.txt": TEXT}),
        (w / "a.txt").rename(w / "z.txt"),
        (w / "dir/d.txt").rename(w / "d.txt"),
    ),
    "untracked, nested": lambda w: write(w, {"n/e/s/t.txt": "1\n", "n/u.txt": "2\n3\n"}),
    "ignored": lambda w: write(w, {"x.log": "1\n", "build/out.txt": "1\n"}),
    "ignored but tracked": lambda w: (
        write(w, {"kept.log": "1\n"}),
        git(w, "add", "-f", "kept.log"),
        write(w, {"kept.log": "2\n3\n"}),
    ),
    "ignored since just now": lambda w: write(w, {"n.tmp": "1\n", ".gitignore": "*.log\n*.tmp\n"}),
    "ignored by info/exclude": lambda w: (
        (resolve(w).common_dir / "info/exclude").write_text("*.tmp\n"),
        write(w, {"n.tmp": "1\n", "n.txt": "1\n"}),
    ),
    "binary edited": lambda w: write(w, {"logo.png": bytes(range(255))}),
    "binary untracked": lambda w: write(w, {"new.png": b"\0\1\2"}),
    "binary by info/attributes": lambda w: (
        (resolve(w).common_dir / "info/attributes").write_text("*.dat -diff\n"),
        write(w, {"n.dat": "1\n2\n"}),
    ),
    "binary by .gitattributes": lambda w: write(w, {".gitattributes": "b.txt binary\n", "b.txt": "x\n"}),
    "binary by diff driver": lambda w: (
        write(w, {".gitattributes": "*.txt diff=opaque\n", "b.txt": "x\n"}),
        git(w, "config", "diff.opaque.binary", "true"),
    ),
    "executable": lambda w: (w / "a.txt").chmod(0o755),
    "executable, where modes do not count": lambda w: (
        git(w, "config", "core.fileMode", "false"),
        (w / "a.txt").chmod(0o755),
        write(w, {"run.sh": "#!\n"}),
        (w / "run.sh").chmod(0o755),
    ),
    "symlink for a file": lambda w: ((w / "a.txt").unlink(), (w / "a.txt").symlink_to("b.txt")),
    "symlink, untracked": lambda w: (w / "link").symlink_to("nowhere"),
    "symlink for a directory": lambda w: (shutil.rmtree(w / "dir"), (w / "dir").symlink_to(w / ".git")),
    "directory for a file": lambda w: ((w / "a.txt").unlink(), write(w, {"a.txt/in.txt": "1\n"})),
    "file for a directory": lambda w: (shutil.rmtree(w / "dir"), write(w, {"dir": "1\n"})),
    "empty file": lambda w: write(w, {"empty": ""}),
    "emptied file": lambda w: write(w, {"a.txt": ""}),
    "no newline at the end": lambda w: write(w, {"a.txt": TEXT.rstrip("\n"), "n.txt": "1\n2"}),
    "only touched": lambda w: os.utime(w / "a.txt", (1, 1)),
    "intent to add": lambda w: (write(w, {"n.txt": "1\n"}), git(w, "add", "-N", "n.txt")),
    "assumed unchanged": lambda w: (git(w, "update-index", "--assume-unchanged", "a.txt"), write(w, {"a.txt": "x\n"})),
    "skipped in the worktree": lambda w: (git(w, "update-index", "--skip-worktree", "a.txt"), (w / "a.txt").unlink()),
    "detached": lambda w: (git(w, "checkout", "-q", "--detach"), write(w, {"a.txt": "x\n"})),
    "case-only rename": lambda w: (w / "a.txt").rename(w / "A.TXT"),
    "odd names": lambda w: write(
        w, {"-rf": "1\n", "--help": "1\n", ":(top)x": "1\n", "new\nline\t\"quoted\"": "1\n", "*": "1\n", " ": "1\n"}
    ),
    "CRLF by .gitattributes": lambda w: write(w, {".gitattributes": "* text=auto\n", "b.txt": "one\r\ntwo\r\n"}),
    "CRLF by configuration": lambda w: (
        git(w, "config", "core.autocrlf", "true"),
        write(w, {"b.txt": "one\r\ntwo\r\nthree\r\n", "n.txt": "1\r\n"}),
    ),
    "encoded by .gitattributes": lambda w: write(
        w, {".gitattributes": "*.u16 text working-tree-encoding=UTF-16\n", "n.u16": "1\n2\n".encode("utf-16")}
    ),
    "ident keyword": lambda w: write(w, {".gitattributes": "*.txt ident\n", "n.txt": "$Id: whatever $\n"}),
    "merge conflict": lambda w: clash(w, "merge", "other"),
    "merge conflict, resolved but not staged": lambda w: (clash(w, "merge", "other"), write(w, {"b.txt": "both\n"})),
    "merge conflict, resolved as the base": lambda w: (
        clash(w, "merge", "other"),
        write(w, {"b.txt": "one\ntwo\n"}),
    ),
    "merge conflict, resolved by deleting": lambda w: (clash(w, "merge", "other"), (w / "b.txt").unlink()),
    "merge conflict, resolved as the base but for our mode, which only the index knows": lambda w: (
        (w / "b.txt").chmod(0o755),
        commit(w),
        clash(w, "merge", "other"),
        git(w, "config", "core.fileMode", "false"),
        write(w, {"b.txt": "one\ntwo\n"}),
    ),
    "rebase conflict": lambda w: clash(w, "rebase", "other"),
    "cherry-pick conflict": lambda w: clash(w, "cherry-pick", "other"),
    "nested repository": lambda w: make_repo(w / "vendored", {"v": "1\n"}),
    "submodule, moved": lambda w: (
        make_repo(w.parent / "lib", {"v": "1\n"}),
        git(w, "submodule", "add", "-q", str(w.parent / "lib"), "lib"),
        commit(w),
        commit(w / "lib", {"v": "2\n"}),
        write(w / "lib", {"dirty": "1\n"}),
    ),
    "fifo beside the files": lambda w: os.mkfifo(w / "pipe"),
    "packed": lambda w: (git(w, "gc", "-q"), write(w, {"a.txt": "x\n"})),
    "split index": lambda w: (
        git(w, "update-index", "--split-index"),
        commit(w, {"s.txt": "1\n"}),
        write(w, {"a.txt": "x\n", "n.txt": "1\n"}),
    ),
    "sparse checkout": lambda w: (git(w, "sparse-checkout", "set", "dir"), write(w, {"dir/c.txt": "x\n"})),
    "sparse index": lambda w: (
        git(w, "sparse-checkout", "set", "--cone", "--sparse-index", "other"),
        write(w, {"other/n.txt": "x\n", "b.txt": "x\n"}),
    ),
    "worktree configuration": lambda w: (
        git(w, "config", "extensions.worktreeConfig", "true"),
        git(w, "config", "--worktree", "core.autocrlf", "input"),
        write(w, {"n.txt": "1\r\n"}),
    ),
}  # fmt: skip


def clash(worktree: Path, *command: str) -> None:
    """A conflict in b.txt (changed on both sides) and in dir/c.txt (deleted here, changed there)."""
    git(worktree, "checkout", "-q", "-b", "other", git(worktree, "merge-base", "main", "HEAD"))
    commit(worktree, {"b.txt": "one\nTWO\n", "dir/c.txt": "deeper\n", "theirs.txt": "1\n"})
    git(worktree, "checkout", "-q", "feature")
    git(worktree, "rm", "-q", "dir/c.txt")
    commit(worktree)
    git(worktree, *command, check=False)
