"""The table's totals are the sums of its entries, whatever is put in; and renames are known where they may change."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.scoped import Core, paths_worth, says_something, tiny_index, words_of
from workers.table import NOTHING, Entry, Table, leaves_pairs_alone, may_pair

paths = st.sampled_from([b"a", b"b", b"x/a", b"y/b", b"z"])
entries = st.builds(
    Entry,
    st.sampled_from(["", "added", "deleted", "modified"]),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from(["", "unstaged", "untracked", "conflicted"]),
    st.none(),
    st.integers(0, 100),
)


@given(st.lists(st.one_of(st.tuples(paths, entries), st.tuples(paths, paths, st.integers(0, 9)))))
def test_totals_are_the_sums_of_the_entries(steps: list[tuple[bytes, Entry] | tuple[bytes, bytes, int]]) -> None:
    table = Table()
    for step in steps:
        if len(step) == 2:
            table.put(*step)
        elif step[0] != step[1]:
            table.pair(step[0], step[1], step[2], 0)
    found = table.entries.values()
    assert table.files == sum(entry.files for entry in found)
    assert (table.insertions, table.deletions) == (sum(e.insertions for e in found), sum(e.deletions for e in found))
    for state in ("unstaged", "untracked", "conflicted"):
        assert table.states[state] == sum(entry.state == state for entry in found)
    assert table.added == {path for path, entry in table.entries.items() if entry.kind == "added"}
    assert table.deleted == {path for path, entry in table.entries.items() if entry.kind == "deleted"}
    for path in list(table.entries):
        table.put(path, NOTHING)
    assert (table.files, table.insertions, table.deletions, table.pairs, table.weight) == (0, 0, 0, 0, 0)


def test_a_rename_is_one_file_and_its_other_half_is_widowed_when_it_goes() -> None:
    table = Table()
    table.put(b"old", Entry("deleted", 0, 40))
    table.put(b"new", Entry("added", 41, 0, "untracked"))
    table.pair(b"old", b"new", 2, 1)
    assert (table.files, table.insertions, table.deletions, table.pairs) == (1, 2, 1, 1)
    assert table.states["untracked"] == 1
    table.put(b"new", NOTHING)
    assert (table.widowed, table.pairs) == ({b"old"}, 0)


def test_two_tables_differ_in_what_counts_and_not_in_sizes() -> None:
    one, other = Table(), Table()
    one.put(b"a", Entry("added", 1, 0, size=3))
    other.put(b"a", Entry("added", 1, 0, size=4))
    other.put(b"b", Entry(state="unstaged"))
    assert one.differ(other) == other.differ(one) == [b"b"]


def test_git_compares_only_contents_of_which_half_could_be_alike() -> None:
    assert may_pair(0, 0)
    assert may_pair(50, 100)
    assert not may_pair(49, 100)
    assert not may_pair(0, 1)


def test_what_cannot_be_paired_leaves_pairs_alone_unless_it_takes_a_name() -> None:
    table = Table()
    table.put(b"dir/a", Entry("deleted", 0, 9, size=1000))
    sizes = {b"dir/a": 1000}.copy
    for path, size, alone in ((b"n", 3, True), (b"n", 900, False), (b"a", 3, False)):
        table.put(path, Entry("added", 1, 0, size=size))
        assert leaves_pairs_alone(table, path, NOTHING, lambda _: sizes()) is alone
        table.put(path, NOTHING)
    table.put(b"n", Entry("added", 1, 0, size=3))
    assert not leaves_pairs_alone(table, b"n", Entry("added", 1, 0, partner=b"dir/a"), lambda _: sizes())
    assert not leaves_pairs_alone(table, b"n", NOTHING, lambda _: None), "too many to tell"


def test_attributes_that_matter_are_found_wherever_a_line_names_them() -> None:
    assert words_of(b"*.txt -diff merge=union\n[attr]x filter=lfs !text\n# binary\n") == {"diff", "filter", "text"}
    assert words_of(b"*.md linguist-documentation\n\n") == frozenset()


def test_ignore_rules_may_say_nothing() -> None:
    assert not says_something(b"# comment\n\n  \n")
    assert says_something(b"\n*.log")


def test_more_paths_are_worth_a_single_look_in_larger_worktrees() -> None:
    assert [round(paths_worth(files), -1) for files in (0, 1000, 10_000, 100_000)] == [50, 50, 220, 1000]


def test_an_index_of_some_paths_is_sorted_and_padded_as_git_wants_it() -> None:
    index = tiny_index([b"b", b"a" * 5000], "ab" * 20)
    assert index[:12] == b"DIRC\0\0\0\2\0\0\0\2"
    assert index.index(b"a" * 5000) < index.index(b"b\0")
    assert (len(index) - 12 - 20) % 8 == 0


def test_settings_that_libgit2_would_not_follow_are_named() -> None:
    core = Core.of('[core]\n\tfilemode = false\n[diff "x"]\n\tbinary = true\n', frozenset(), sha256=False)
    assert (core.file_mode, core.convert, dict(core.binaries), core.unfit) == (False, False, {"x": True}, "")
    for line, unfit in (
        ("ignorecase = true", "case"),
        ("symlinks = false", "symlinks"),
        ("sparsecheckout = true", "sparse"),
    ):
        assert Core.of(f"[core]\n\t{line}\n", frozenset(), sha256=False).unfit == unfit
    assert Core.of("", frozenset(), sha256=True).unfit == "sha256"
