"""Why a workspace shows what it shows, as a story: of each group its value, who said it, what was rejected. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pipeline.cli.board.arrange import moment
from pipeline.cli.board.words import Entry, age, agent, count, number, part, plain, printable, status
from pipeline.domain.model import SESSION_PREFIX

GROUPS: Final = {
    "life": "Workspace",
    "git": "Git",
    "pr": "Pull request",
    "ci": "Checks",
    "ratchet": "Ratchet",
    "terminal": "Terminal",
    "run": "Run script",
}
SOURCES: Final = {"catalog": "the catalog", "git": "git", "live": "a live report"}
HEAD_DIGITS: Final = 10
_BELIEVED: Final = ("applied", "confirmed")

# A paragraph is a list of (text, style name).
Paragraph = list[tuple[str, str]]


def story(told: Entry, now_ms: float) -> list[Paragraph]:
    """The answer of `explain` over HTTP, in paragraphs; an empty one is a break."""
    state, groups = part(told, "state"), part(told, "groups")
    now = part(state, "status")
    follows: tuple[str, ...] = ()
    said: list[Paragraph] = []
    if now.get("code") is not None:
        label, why, follows = status(now["code"])
        names = ["the agents" if name == "session" else GROUPS[name].lower() for name in follows]
        at = moment(now)
        ago = "" if at is None else f", {age(at, now_ms)} ago"
        said += [
            [(f"Why “{label}”", "strong")],
            [(f"Because {why}.", "ink")],
            [(f"Derived from {' and '.join(names) or 'what is below'}{ago}.", "quiet")],
        ]
    for group in sorted(groups, key=lambda name: (_kind(name) not in follows, _place(name), name)):
        rulings = groups[group]
        said += [[], *_chapter(group, _value(state, group), rulings if isinstance(rulings, list) else [], now_ms)]
    if not groups:
        said += [[], [("Nobody has reported anything yet.", "quiet")]]
    return [*said, [], [(f"Told at version {printable(told.get('version'))}.", "quiet")]]


def _kind(group: str) -> str:
    return "session" if group.startswith(SESSION_PREFIX) else group


def _place(group: str) -> int:
    order = ["life", "session", *list(GROUPS)[1:]]
    return order.index(_kind(group)) if _kind(group) in order else len(order)


def _value(state: Entry, group: str) -> Entry:
    if group.startswith(SESSION_PREFIX):
        return part(part(state, "sessions"), group.removeprefix(SESSION_PREFIX))
    return part(state, group)


def _chapter(group: str, value: Entry, rulings: list[Any], now_ms: float) -> list[Paragraph]:
    newest = [one for one in reversed(rulings) if isinstance(one, Mapping)]
    applied = [one for one in newest if one.get("verdict") == "applied"]
    confirmed = next((one for one in newest if one.get("verdict") == "confirmed"), None)
    told: list[Paragraph] = [[(_heading(group, value), "strong")], _fields(value, now_ms)]
    if applied:
        told.append(
            [(_who(applied[0]), "ink"), (f" said so {_ago(applied[0], now_ms)}: {_cause(applied[0])}.", "quiet")]
        )
        if took := _took(applied[0]):
            told[-1].append((took, "quiet"))
    elif value:
        told.append([("Who said so is no longer remembered.", "quiet")])
    if confirmed is not None:
        often = f" {_times(confirmed)} times" if _times(confirmed) > 1 else ""
        text = f" Confirmed{often}, last by {_who(confirmed)} {_ago(confirmed, now_ms)}: {_cause(confirmed)}."
        told.append([("✓", "good"), (text, "quiet")])
    for one in newest:
        if one.get("verdict") in _BELIEVED:
            continue
        often = f" {_times(one)} times" if _times(one) > 1 else ""
        text = f" {_who(one)} was not believed{often}, {_ago(one, now_ms)}: {_cause(one)}. "
        told.append([(f"✗ {plain(one.get('verdict'))}", "call"), (text, "ink"), *_said(one, now_ms)])
    if applied[1:]:
        told.append([(f"{count(len(applied) - 1, 'earlier value')}:", "quiet")])
        told += [
            [(f"  {_who(one)}, {_ago(one, now_ms)}: {_cause(one)}. ", "quiet"), *_said(one, now_ms)]
            for one in applied[1:]
        ]
    return told


def _heading(group: str, value: Entry) -> str:
    if group.startswith(SESSION_PREFIX):
        return f"Agent {agent(value or {'provider': group.removeprefix(SESSION_PREFIX)})}"
    return GROUPS.get(group, plain(group))


def _who(one: Entry) -> str:
    source = one.get("source")
    return printable(one.get("producer") or SOURCES.get(str(source), plain(source)))


def _cause(one: Entry) -> str:
    return printable(one.get("cause") or "no cause was told")


def _times(one: Entry) -> int:
    return number(one, "times") or 1


def _ago(one: Entry, now_ms: float) -> str:
    at = moment({"changed_at": one.get("at_ms")})
    return "at some time" if at is None else f"{age(at, now_ms)} ago"


def _took(one: Entry) -> str:
    interval = part(one, "interval")
    try:
        took = float(interval["began_ms_ago"]) - float(interval["ended_ms_ago"])
    except (KeyError, TypeError, ValueError):
        return ""
    return f" The look took {took:.1f} ms." if took > 0 else ""


def _fields(value: Entry, now_ms: float) -> Paragraph:
    told: Paragraph = []
    for name, one in _known(value):
        told += [(f"{', ' if told else ''}{plain(name)} ", "quiet"), (_shown(name, one, now_ms), "ink")]
    return told or [("Nothing is known.", "quiet")]


def _said(one: Entry, now_ms: float) -> Paragraph:
    value = one.get("value")
    if value is None:
        return [("It said: gone.", "quiet")]
    return [("It said: ", "quiet"), *_fields(part(one, "value"), now_ms)] if _known(part(one, "value")) else []


def _known(value: Entry) -> list[tuple[str, Any]]:
    return [(name, one) for name, one in value.items() if name not in ("changed_at", "kind") and one is not None]


def _shown(name: str, one: Any, now_ms: float) -> str:
    if isinstance(one, bool):
        return "yes" if one else "no"
    if name == "last_output" and isinstance(one, int | float):
        return f"{age(one, now_ms)} ago"
    if isinstance(one, int) and name not in ("number", "port"):
        return f"{one:,}"
    return printable(one)[:HEAD_DIGITS] if name == "head" else printable(one)
