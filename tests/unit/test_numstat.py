"""What git prints becomes totals and states, and anything else is refused."""

from __future__ import annotations

import pytest

from workers.numstat import (
    Blob,
    Change,
    Malformed,
    Status,
    parse_changes,
    parse_pairs,
    parse_staged,
    parse_status,
)

HASHES = b"1" * 40 + b" " + b"2" * 40


def test_no_output_is_no_change() -> None:
    assert parse_changes(b"") == []
    assert parse_status(b"") == Status(0, 0, [], [], [])
    assert parse_status(b"").clean


def test_names_may_hold_anything_but_a_nul() -> None:
    odd = b"tab\tand\nnewline \xff"
    assert parse_changes(b":1 1 1 0 M\0" + odd + b"\x001\t0\t" + odd + b"\0")[0].path == odd
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


def test_a_change_has_its_kind_its_lines_and_where_it_came_from() -> None:
    raw = b":100644 100644 1 0 M\x00a b\x00:100644 100644 1 0 R090\x00old\x00new\x00:160000 160000 1 0 M\x00lib\x00"
    lines = b"3\t1\ta b\x001\t2\t\x00old\x00new\x00-\t-\tlib\x00"
    assert parse_changes(raw + lines) == [
        Change("M", b"a b", None, 3, 1, False),
        Change("R", b"new", b"old", 1, 2, False),
        Change("M", b"lib", None, 0, 0, True),
    ]
    assert parse_changes(raw) == [], "without lines nothing has changed"


def test_what_the_index_has_otherwise_than_head_is_known_by_path() -> None:
    one, two = "1" * 40, "2" * 40
    raw = f":100644 100755 {one} {two} M\0x\0:100644 000000 {one} {one} D\0y\0:100644 100644 {one} {one} R100\0a\0b\0"
    assert parse_staged(raw.encode()) == (
        3,
        {b"x": Blob(0o100755, two), b"y": None, b"a": None, b"b": Blob(0o100644, one)},
    )
    status = parse_status(b"1 MM N... 100644 100644 100644 " + HASHES + b" a b\x00")
    assert status.indexed == {b"a b": Blob(0o100644, two)}
    assert parse_status(b"1 .A N... 000000 000000 100644 " + HASHES + b" new\x00").intended


@pytest.mark.parametrize("out", [b"3\t1\tunknown\x00", b":1 2\x00a\x00", b":100644 100644 1 0 M\x00", b"x\x00"])
def test_what_is_no_diff_is_refused(out: bytes) -> None:
    with pytest.raises(Malformed):
        parse_changes(out)
    with pytest.raises(Malformed):
        parse_staged(out)


def test_a_setting_without_a_value_is_true_and_an_empty_one_is_empty() -> None:
    assert parse_pairs(b"core.bare\x00core.eol\n\x00a.b\nx\ny\x00") == [
        ("core.bare", "true"),
        ("core.eol", ""),
        ("a.b", "x\ny"),
    ]
