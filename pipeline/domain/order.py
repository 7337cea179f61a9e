"""Which of two looks at the same group is newer: the merge rule, as one pure function.

A look replaces the current value only if it *began after the current value's look had ended*. Looks that
overlap and disagree prove nothing. Where the source itself orders its readings (a producer's sequence, a
row's revision), that order is better evidence than any clock and decides first.
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from pipeline.domain.model import Look, Stamp, Verdict


class Ruling(Struct, frozen=True, gc=False):
    """What became of a look, and why, in words for ``explain``."""

    verdict: Verdict
    cause: str


FIRST = Ruling("applied", "first look at this group")
NEWER_SEQ = Ruling("applied", "higher sequence of the same run")
SAME_SEQ = Ruling("confirmed", "the same sequence again")
OLDER_SEQ = Ruling("older", "no higher sequence of the same run")
NEWER_REVISION = Ruling("applied", "higher revision of the same row")
OLDER_REVISION = Ruling("older", "lower revision of the same row")
LATER = Ruling("applied", "began after the current look had ended")
EARLIER = Ruling("older", "ended before the current look began")
AGREES = Ruling("confirmed", "overlaps and agrees")
DISAGREES = Ruling("overlap", "overlaps and disagrees")
OTHER_CLOCK = Ruling("overlap", "another clock, and no common revision")


def weigh(current: Look | None, look: Look) -> Ruling:
    """Judge `look` against the `current` one of the same group. ``applied`` means that it takes its place."""
    if current is None:
        return FIRST
    if look.seq is not None and current.seq is not None and look.run == current.run and look.source == current.source:
        if look.seq > current.seq:
            return NEWER_SEQ
        if look.seq == current.seq and _agree(current, look):
            return SAME_SEQ
        return OLDER_SEQ
    if look.revision is not None and current.revision is not None and look.domain == current.domain:
        if look.revision > current.revision:
            return NEWER_REVISION
        if look.revision < current.revision:
            return OLDER_REVISION
    mine, theirs = current.stamp, look.stamp
    if theirs.clock != mine.clock:
        return AGREES if _agree(current, look) else OTHER_CLOCK
    if theirs.ended < mine.began:
        return EARLIER
    if theirs.began > mine.ended:
        return LATER
    return AGREES if _agree(current, look) else DISAGREES


def join(a: Stamp, b: Stamp) -> Stamp:
    """The interval that covers both, of one clock: where two looks that agree stand together."""
    if a.clock != b.clock:
        return a
    return Stamp(min(a.began, b.began), max(a.ended, b.ended), a.clock)


def confirm(current: Look, look: Look) -> Look:
    """`current` with a look that agrees as further evidence.

    It keeps only the order that both have: a sequence or revision that comes after one of them need not come
    after the other.
    """
    same_run = look.seq == current.seq and look.run == current.run and look.source == current.source
    revision = None
    if current.revision is not None and look.revision is not None and look.domain == current.domain:
        revision = max(current.revision, look.revision)
    stamp = join(current.stamp, look.stamp)
    return replace(current, stamp=stamp, seq=current.seq if same_run else None, revision=revision)


def _agree(a: Look, b: Look) -> bool:
    """Where a workspace belongs is part of what `life` says; other groups only pass it on."""
    return a.value == b.value and a.key == b.key and (a.project == b.project or a.group != "life")
