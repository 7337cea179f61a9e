"""What stands on each line of a card and of the strip, and how a line is fitted to a width. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style

from pipeline.cli.board.arrange import Row, moment
from pipeline.cli.board.words import (
    Entry,
    Tone,
    age,
    agent,
    branch_of,
    count,
    doing,
    number,
    part,
    plain,
    printable,
    sessions_of,
    status,
    title,
    tone,
)

AGENTS: Final = 3
AGE_WIDTH: Final = 6
KIND_WIDTH: Final = 18
LEAST: Final = 8  # cells of what is on the left, however much stands on the right
GLYPHS: Final[dict[Tone, str]] = {"fail": "✗", "call": "!", "work": "●", "good": "✓", "done": "✓", "calm": "○"}
_CHECKS: Final[dict[str, Tone]] = {"success": "good", "failure": "fail", "pending": "work"}
_PULLS: Final[dict[str, Tone]] = {"open": "good", "merged": "done", "closed": "fail"}
_REVIEWS: Final[dict[str, tuple[Tone, str]]] = {
    "approved": ("good", "approved"),
    "changes_requested": ("call", "changes requested"),
    "required": ("calm", "review required"),
}
_RUNS: Final[dict[str, Tone]] = {"running": "good", "starting": "work", "failed": "fail"}


class Bit(NamedTuple):
    """Some text in a style by its name; or, with `at`, how long ago that was, at least so wide."""

    text: str
    style: str = "ink"
    at: float | None = None
    width: int = 0


class Line(NamedTuple):
    """What is too long on the left is cut; on the right stands what is short."""

    left: tuple[Bit, ...] = ()
    right: tuple[Bit, ...] = ()


Styles = Callable[[str], Style]


def card(row: Row, project: str = "") -> list[Line]:
    """All lines of a card. Of which there are depends on the entry alone; only ages differ with time."""
    entry = row.entry
    name, branch = title(row.key[1], entry), branch_of(entry)
    now = part(entry, "status")
    colour = tone(now)
    lines = [Line((Bit(name, "strong"),), _ages(row.at))]
    if branch is not None and branch != name:
        lines.append(Line((Bit(branch, "quiet"),)))
    lines.append(
        Line(
            (Bit(f"{GLYPHS[colour]} {status(now.get('code'))[0]}", colour),),
            (Bit(printable(project), "quiet"),) if project else (),
        )
    )
    sessions = sessions_of(entry)
    lines += [_agent(session) for session in sessions[:AGENTS]]
    if len(sessions) > AGENTS:
        lines.append(Line((Bit(count(len(sessions) - AGENTS, "more agent"), "quiet"),)))
    lines += [line for line in (_numbers(part(entry, "git")), _chips(entry)) if line.left or line.right]
    return lines


def need(row: Row, project: str = "") -> Line:
    """Who needs the user: what for, and for how long already."""
    now = part(row.entry, "status")
    colour = tone(now)
    who = (
        Bit(title(row.key[1], row.entry), "strong"),
        *((Bit(f"  {printable(project)}", "quiet"),) if project else ()),
    )
    kind = f"{GLYPHS[colour]} {status(now.get('code'))[0]}"
    at = Bit(" " * AGE_WIDTH) if row.at is None else Bit("", "quiet", row.at, AGE_WIDTH)
    return Line((Bit(f"{kind:<{KIND_WIDTH}}", colour), at, Bit("  "), *who))


def _ages(at: float | None, style: str = "quiet") -> tuple[Bit, ...]:
    return () if at is None else (Bit("", style, at),)


def _agent(session: Entry) -> Line:
    what, colour = doing(session)
    model = session.get("model")
    who = (Bit(agent(session)), *((Bit(f" {printable(model)}", "quiet"),) if model is not None else ()))
    at = moment(session)
    return Line(who, (Bit(what, colour), *((Bit(" "), *_ages(at)) if at is not None else ())))


def _numbers(git: Entry) -> Line:
    plus, minus, files = (number(git, name) for name in ("insertions", "deletions", "files"))
    left: tuple[Bit, ...] = ()
    if (plus, minus, files) != (None, None, None):
        if not (plus or minus or files):
            left = (Bit("no changes", "quiet"),)
        else:
            left = (Bit(f"+{plus or 0:,}", "good"), Bit(f" −{minus or 0:,}", "fail" if minus else "quiet"))
            left += (Bit(f"  {count(files, 'file')}", "quiet"),) if files is not None else ()
    ahead, behind = number(git, "ahead"), number(git, "behind")
    away = [f"{arrow}{many}" for arrow, many in (("↑", ahead), ("↓", behind)) if many]
    return Line(left, (Bit(" ".join(away)),) if away else ())


def _chips(entry: Entry) -> Line:
    git, pr, ci, ratchet, run = (part(entry, name) for name in ("git", "pr", "ci", "ratchet", "run"))
    chips: list[Bit] = []
    if git.get("operation"):
        chips.append(Bit(plain(git["operation"]), "call"))
    if number(git, "conflicted"):
        chips.append(Bit(count(number(git, "conflicted") or 0, "conflict"), "fail"))
    if pr.get("number") is not None:
        state = pr.get("state")
        text = f"#{printable(pr['number'])}" + ("" if state in (None, "open") else f" {plain(state)}")
        chips.append(Bit(text, "fail" if pr.get("health") == "failing" else _PULLS.get(str(state), "calm")))
    if pr.get("mergeable") == "conflicting":
        chips.append(Bit("conflicts with base", "fail"))
    if ci.get("state") is not None:
        chips.append(_checks(ci))
    if pr.get("review") is not None:
        colour, text = _REVIEWS.get(str(pr["review"]), ("calm", plain(pr["review"])))
        chips.append(Bit(text, colour))
    if ratchet.get("enabled") is True:
        stalled = ratchet.get("stalled") is True
        chips.append(Bit("ratchet stalled" if stalled else "ratchet", "fail" if stalled else "calm"))
    if run.get("state") is not None or run.get("port") is not None:
        state = run.get("state")
        text = "run" if run.get("port") is None else f":{printable(run['port'])}"
        text += "" if state in (None, "running") else f" {plain(state)}"
        chips.append(Bit(text, _RUNS.get(str(state), "calm")))
    return Line(tuple(Bit(("· " if at else "") + chip.text + " ", chip.style) for at, chip in enumerate(chips)))


def _checks(ci: Entry) -> Bit:
    passed, failed, pending = (number(ci, name) or 0 for name in ("passed", "failed", "pending"))
    state, all_ = ci.get("state"), passed + failed + pending
    if state == "failure" and failed:
        text = f"CI {failed} failed"
    elif state == "success":
        text = "CI passed"
    else:
        text = f"CI {passed}/{all_}" if all_ else f"CI {plain(state)}"
    return Bit(text, _CHECKS.get(str(state), "calm"))


# ── to cells ──


def fit(line: Line, width: int, style: Styles, ground: Style) -> list[Segment]:
    """A line in exactly `width` cells. What stands on the right is whole, as long as it leaves the left some room."""
    now = time.time() * 1000
    right = _said(line.right, now)
    room = max(0, width - sum(cell_len(text) for text, _ in right) - bool(right))
    room = max(room, min(LEAST, width))
    left, used = _cut(_said(line.left, now), room)
    gap = width - used
    right, taken = _cut(right, gap - 1 if right else 0)
    segments = [Segment(text, ground + style(name)) for text, name in left]
    segments.append(Segment(" " * (gap - taken), ground))
    return segments + [Segment(text, ground + style(name)) for text, name in right]


def _said(bits: Iterable[Bit], now: float) -> list[tuple[str, str]]:
    return [(bit.text if bit.at is None else f"{age(bit.at, now):>{bit.width}}", bit.style) for bit in bits]


def _cut(bits: Sequence[tuple[str, str]], room: int) -> tuple[list[tuple[str, str]], int]:
    """As much as there is room for, and how many cells that takes."""
    whole = sum(cell_len(text) for text, _ in bits)
    if whole <= room:
        return [*bits], whole
    if room <= 0:
        return [], 0
    kept, left = [], room - 1
    for text, name in bits:
        size = cell_len(text)
        if size > left:
            kept.append((set_cell_size(text, left) + "…", name))
            break
        kept.append((text, name))
        left -= size
    return kept, room
