"""Lines are counted as libgit2 and git count them, mostly without either; what was read is held in bounds (G1)."""

from __future__ import annotations

from pathlib import Path

import pygit2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.gitkit import git, make_repo
from workers import objects
from workers.objects import Lines, Objects, compare
from workers.walk import Unfit

WORDS = st.sampled_from([b"a", b"b", b"c", b"", b"\r", b"aa"])
TEXTS = st.builds(
    lambda lines, end: b"\n".join(lines) + end, st.lists(WORDS, max_size=12), st.sampled_from([b"", b"\n"])
)


@settings(max_examples=2000, deadline=None)
@given(TEXTS, TEXTS)
@example(b"a\nb", b"a\nb\n")
@example(b"b\n", b"x\nb\n")
@example(b"aa\n", b"a\n")
@example(b"a\n" * 3, b"a\n" * 5)
@example(b"", b"a")
def test_lines_are_counted_as_libgit2_counts_them(old: bytes, new: bytes) -> None:
    flag = pygit2.enums.DiffOption.FORCE_TEXT
    _, insertions, deletions = pygit2.Patch.create_from(old, new, flag=flag).line_stats
    assert compare(old, new) == Lines(insertions, deletions)


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        (b"1\n2\n3\n", b"1\n2\n3\n4\n", (1, 0)),
        (b"1\n2\n3\n", b"1\nx\ny\n3\n", (2, 1)),
        (b"1\n2\n3\n", b"1\n3\n", (0, 1)),
        (b"1\n2\n3", b"1\n2\n3\n", (1, 1)),
        (b"1\n" * 50_000, b"1\n" * 60_000, (10_000, 0)),
    ],
)
def test_most_edits_are_counted_without_libgit2(
    monkeypatch: pytest.MonkeyPatch, old: bytes, new: bytes, lines: tuple[int, int]
) -> None:
    monkeypatch.setattr(objects, "_library", lambda: pytest.fail("asked"))
    assert compare(old, new) == lines


def test_a_blob_is_read_once_while_it_is_held_and_no_more_is_held_than_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo(tmp_path / "repo", {f"{n}": f"{n}" * 100 for n in range(10)})
    store = Objects(repo / ".git", {})
    names = [git(repo, "rev-parse", f"HEAD:{n}") for n in range(10)]
    monkeypatch.setattr(objects, "MAX_HELD", 250)
    for n, name in enumerate(names):
        assert store.held(name) is None
        assert store.data(name, 100) == b"%d" % n * 100
    assert [store.held(name) is not None for name in names] == [False] * 8 + [True] * 2
    (repo / ".git/objects" / names[9][:2] / names[9][2:]).unlink()
    assert store.data(names[9], 100) == b"9" * 100, "a name stands for one content for ever"
    with pytest.raises(Unfit, match="large file"):
        store.data(names[0], 99)


def test_stores_and_packs_are_asked_about_again_only_when_they_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo(tmp_path / "repo", {"a": "1\n"})
    store = Objects(repo / ".git", {})
    asked: list[Path] = []
    really = objects.check_packs
    monkeypatch.setattr(objects, "check_packs", lambda path, seen: (asked.append(path), really(path, seen))[1])
    monkeypatch.setattr("workers.files.SETTLED_NS", 0)
    store.check({})
    asked.clear()
    store.check({})
    assert asked == []
    other = tmp_path / "other"
    (other / "pack").mkdir(parents=True)
    (repo / ".git/objects/info/alternates").write_text(f"{other}\n")
    store.check({})
    assert asked
    asked.clear()
    store.check({})
    assert asked == []
    (other / "pack/pack-x.idx").write_text("")
    store.check({})
    assert asked
