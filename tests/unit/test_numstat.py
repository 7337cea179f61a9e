"""What git prints becomes totals and states, and anything else is refused."""

from __future__ import annotations

import pytest

from workers.numstat import Malformed, Status, Totals, parse_numstat, parse_pairs, parse_status

HASHES = b"1" * 40 + b" " + b"2" * 40


def test_no_output_is_no_change() -> None:
    assert parse_numstat(b"") == Totals(0, 0, 0)
    assert parse_status(b"") == Status(0, 0, [], [], [])
    assert parse_status(b"").clean


def test_lines_are_summed_and_a_binary_is_a_file_without_lines() -> None:
    assert parse_numstat(b"3\t1\ta.txt\x00-\t-\tlogo.png\x000\t0\tmode\x00") == Totals(3, 3, 1)


def test_a_rename_is_one_file_with_two_names() -> None:
    assert parse_numstat(b"1\t2\t\x00old name\x00new name\x005\t0\tother\x00") == Totals(2, 6, 2)


def test_names_may_hold_anything_but_a_nul() -> None:
    assert parse_numstat(b"1\t0\ttab\tand\nnewline \xff\x00") == Totals(1, 1, 0)
    assert parse_status(b"? 1 .M new\nline \xff\x00").untracked == [b"1 .M new\nline \xff"]


def test_a_file_changed_in_the_index_and_again_in_the_worktree_counts_on_both_sides() -> None:
    status = parse_status(b"1 MM N... 100644 100644 100644 " + HASHES + b" a b\x00")
    assert (status.staged, status.unstaged, status.edited) == (1, 1, [b"a b"])
    assert not status.clean


def test_a_deleted_file_has_no_content_to_read() -> None:
    status = parse_status(b"1 .D N... 100644 100644 000000 " + HASHES + b" gone\x00")
    assert (status.staged, status.unstaged, status.edited) == (0, 1, [])


def test_where_a_renamed_file_came_from_is_not_a_record_of_its_own() -> None:
    status = parse_status(b"2 R. N... 100644 100644 100644 " + HASHES + b" R100 new\x00? old\x00? real\x00")
    assert (status.staged, status.unstaged, status.untracked) == (1, 0, [b"real"])


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        (b"100644 100755 100644 100644", b"100755"),
        (b"100644 000000 120000 100644", b"120000"),
        (b"100644 000000 000000 000000", b"100644"),
    ],
)
def test_a_conflicted_file_starts_from_the_mode_of_ours_then_theirs_then_the_ancestor(
    modes: bytes, expected: bytes
) -> None:
    status = parse_status(b"u UU N... " + modes + b" " + HASHES + b" " + b"3" * 40 + b" a b\x00")
    assert status.unmerged == [(expected, b"a b")]
    assert (status.staged, status.unstaged) == (0, 0)


@pytest.mark.parametrize("out", [b"1\t2\ta", b"x\t2\ta\x00", b"1\t2\x00", b"1\t2\t\x00old\x00", b"\x00"])
def test_what_is_no_numstat_is_refused(out: bytes) -> None:
    with pytest.raises(Malformed):
        parse_numstat(out)


@pytest.mark.parametrize(
    "out",
    [
        b"? cut",
        b"1 MM too short\x00",
        b"1 MMM N... 1 1 1 1 1 a\x00",
        b"x what\x00",
        b"2 R. N... 1 1 1 1 1 R100 new\x00",
        b"u UU N... 000000 000000 000000 000000 1 2 3 a\x00",
    ],
)
def test_what_is_no_status_is_refused(out: bytes) -> None:
    with pytest.raises(Malformed):
        parse_status(out)


def test_a_setting_without_a_value_is_true_and_an_empty_one_is_empty() -> None:
    assert parse_pairs(b"core.bare\x00core.eol\n\x00a.b\nx\ny\x00") == [
        ("core.bare", "true"),
        ("core.eol", ""),
        ("a.b", "x\ny"),
    ]
