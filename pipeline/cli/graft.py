"""Puts our hooks into the text of an agent's settings and takes them out again; every other byte stays as it is.

The settings are the user's: their order, indentation and comments too. So they are never written anew from what was
parsed; text is put in where it belongs, and cut out. Pure.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from msgspec import Struct

Hook = dict[str, Any]

HOOKS: Final = "hooks"
INDENT: Final = "  "
NOTIFY: Final = "notify"
MARK: Final = "# treewire"
_BLANK: Final = re.compile(r"[ \t\r\n]*")
_COMMENT: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_DECODER: Final = json.JSONDecoder()


class Unfit(ValueError):
    """The settings are not what they must be; the message ends a sentence that begins with the file's name."""


class Taken(NamedTuple):
    """The place is the user's own already."""

    value: Any


class _Part(Struct, frozen=True):
    """One element of an array, or one member of an object: from `begin` to `end`, its value from `value` on."""

    key: str
    begin: int
    value: int
    end: int


class _Text:
    """Settings as text, and beside it the same text with blanks for comments: what is where, is there in both."""

    def __init__(self, text: str, comments: bool) -> None:
        self.text = text
        self.plain = _COMMENT.sub(_blank, text) if comments else text
        try:
            self.value = json.loads(self.plain)
        except RecursionError:
            raise Unfit("is nested too deeply") from None
        except ValueError as error:
            raise Unfit(f"is not valid JSON: {error}") from None
        if not isinstance(self.value, dict):
            raise Unfit("does not hold a JSON object")
        self.start = self._skip(0)
        found = re.search(r"\n([ \t]+)\S", self.plain)
        self.unit = found[1] if found else INDENT
        self.line = "\r\n" if "\r\n" in text else "\n"

    def parts(self, start: int) -> list[_Part]:
        """What the object or array that starts there consists of."""
        named = self.plain[start] == "{"
        found, at = [], self._skip(start + 1)
        while self.plain[at] not in "]}":
            begin, key = at, ""
            if named:
                key, at = _DECODER.raw_decode(self.plain, at)
                at = self._skip(self._skip(at) + 1)
            _, end = _DECODER.raw_decode(self.plain, at)
            found.append(_Part(key, begin, at, end))
            at = self._skip(end)
            if self.plain[at] == ",":
                at = self._skip(at + 1)
        return found

    def member(self, start: int, key: str) -> _Part | None:
        """Of several of one name the last one counts, as everywhere."""
        return next((part for part in reversed(self.parts(start)) if part.key == key), None)

    def put(self, start: int, depth: int, value: Any, key: str | None = None) -> str:
        """The text with one more element at the end of the array, or object, that starts there."""
        parts = self.parts(start)
        outer = self.line + self.unit * (depth - 1)
        inner = outer + self.unit
        spread = not parts or "\n" in self.plain[start : parts[0].begin]
        if spread:
            told = json.dumps(value, indent=self.unit, ensure_ascii=False).replace("\n", inner)
        else:
            told = json.dumps(value, ensure_ascii=False)
        if key is not None:
            told = f"{json.dumps(key)}: {told}"
        if parts:
            return self._cut((parts[-1].end, parts[-1].end, f",{inner if spread else ' '}{told}"))
        closes = self._skip(start + 1)
        own_line = "\n" in self.text[start:closes]
        return self._cut((start + 1, start + 1, inner + told + ("" if own_line else outer)))

    def cut(self, start: int, part: _Part) -> str:
        """The text without this element of the array, or object, that starts there."""
        parts = self.parts(start)
        at = parts.index(part)
        if at > 0:
            comma = self.plain.index(",", parts[at - 1].end)
            blank = len(self.text[: part.begin].rstrip())
            return self._cut((comma, comma + 1, ""), (max(blank, comma + 1), part.end, ""))
        if len(parts) > 1:
            comma = self.plain.index(",", part.end)
            gap = _BLANK.match(self.text, comma + 1)
            assert gap is not None
            return self._cut((part.begin, part.end, ""), (comma, gap.end(), ""))
        before, after = len(self.text[: part.begin].rstrip()), self._skip(part.end)
        closes = self.plain[after] in "]}" and not self.text[part.end : after].strip()
        return self._cut((before, after if closes else part.end, ""))

    def _cut(self, *pieces: tuple[int, int, str]) -> str:
        text = self.text
        for begin, end, new in reversed(pieces):
            text = text[:begin] + new + text[end:]
        return text

    def _skip(self, at: int) -> int:
        found = _BLANK.match(self.plain, at)
        assert found is not None
        return found.end()


# ── JSON: hooks by event ─────────────────────────────────────────────────────────────────────────


def present(text: str, ours: Callable[[Hook], bool], comments: bool = False) -> dict[str, list[Hook]]:
    """Our hooks in it, by event. Raises `Unfit`."""
    found: dict[str, list[Hook]] = {}
    for event, hook in _hooks(_Text(text, comments).value) if text.strip() else ():
        if ours(hook):
            found.setdefault(event, []).append(hook)
    return found


def put(text: str, hooks: Mapping[str, Hook], comments: bool = False) -> str:
    """The settings with these hooks, one for each event, after those that are there. Raises `Unfit`."""
    text = text if text.strip() else "{}\n"
    list(_hooks(_Text(text, comments).value))
    for event, hook in hooks.items():
        group = {"hooks": [hook]}
        now = _Text(text, comments)
        if (held := now.member(now.start, HOOKS)) is None:
            text = now.put(now.start, 1, {event: [group]}, HOOKS)
        elif (groups := now.member(held.value, event)) is None:
            text = now.put(held.value, 2, [group], event)
        else:
            text = now.put(groups.value, 3, group)
    return text


def take(text: str, ours: Callable[[Hook], bool], before: str = "", comments: bool = False) -> str:
    """The settings without our hooks, and without what they leave empty and was not there `before`. Raises `Unfit`."""
    if not text.strip():
        return text
    try:
        former = _Text(before, comments).value if before.strip() else {}
        kept = {event for event, _ in _groups(former)}
    except Unfit:
        former, kept = {}, set()
    touched = present(text, ours, comments)
    while (shorter := _less(_Text(text, comments), ours)) is not None:
        text = shorter
    groups = dict(_groups(_Text(text, comments).value))
    for event in [event for event in touched if not groups[event] and event not in kept]:
        now = _Text(text, comments)
        held = now.member(now.start, HOOKS)
        assert held is not None
        empty = now.member(held.value, event)
        assert empty is not None
        text = now.cut(held.value, empty)
    now = _Text(text, comments)
    if touched and now.value.get(HOOKS) == {} and HOOKS not in former:
        held = now.member(now.start, HOOKS)
        assert held is not None
        text = now.cut(now.start, held)
    return text


def _less(now: _Text, ours: Callable[[Hook], bool]) -> str | None:
    """The text without the first of our hooks, and without its group if that was all there was in it."""
    for event, groups in _groups(now.value):
        for n, group in enumerate(groups):
            for m, hook in enumerate(group["hooks"]):
                if ours(hook):
                    held = now.member(now.start, HOOKS)
                    assert held is not None
                    at = now.member(held.value, event)
                    assert at is not None
                    one = now.parts(at.value)[n]
                    if len(group["hooks"]) == 1:
                        return now.cut(at.value, one)
                    inside = now.member(one.value, "hooks")
                    assert inside is not None
                    return now.cut(inside.value, now.parts(inside.value)[m])
    return None


def _groups(settings: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    hooks = settings.get(HOOKS, {})
    if not isinstance(hooks, dict):
        raise Unfit("has `hooks` that are not an object")
    for event, groups in hooks.items():
        if not isinstance(groups, list):
            if isinstance(groups, dict):
                raise Unfit(f"has `hooks.{event}` that is not an array")
            continue  # a switch of the agent's own, as `hooks.enabled` was
        for group in groups:
            inside = group.get("hooks") if isinstance(group, dict) else None
            if not isinstance(inside, list) or not all(isinstance(hook, dict) for hook in inside):
                raise Unfit(f"has a group in `hooks.{event}` without an array of `hooks`")
        yield event, groups


def _hooks(settings: dict[str, Any]) -> Iterator[tuple[str, Hook]]:
    for event, groups in _groups(settings):
        for group in groups:
            for hook in group["hooks"]:
                yield event, hook


def _blank(found: re.Match[str]) -> str:
    return found[0] if found[0].startswith('"') else re.sub(r"[^\n]", " ", found[0])


# ── TOML: the one program that is notified ───────────────────────────────────────────────────────


def notify(text: str, command: list[str]) -> str | Taken:
    """The settings with this program as `notify`, in a line of its own at the top. Raises `Unfit`."""
    rest = silent(text)
    if (other := _toml(rest).get(NOTIFY)) is not None:
        return Taken(other)
    line = "\r\n" if "\r\n" in rest else "\n"
    told = ", ".join(json.dumps(word, ensure_ascii=False) for word in command)
    return f"{NOTIFY} = [{told}]  {MARK}{line}{rest}"


def silent(text: str) -> str:
    """The settings without our line."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not (line.startswith(NOTIFY) and line.rstrip().endswith(MARK)))


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Unfit(f"is not valid TOML: {error}") from None
