"""Which directories are not worth a watch, by name and by plain .gitignore lines. Pure.

Not git's rules, but a part of them that errs on one side: what is not understood is not ignored, and so is watched.
What counts is decided by git alone.
"""

from __future__ import annotations

import re
from fnmatch import translate
from typing import Final, NamedTuple

MAX_LINES: Final = 500
MAX_REMEMBERED: Final = 2048

# Made by tools, large, and of no interest, unless git tracks something in them.
HEAVY: Final = frozenset(
    b"node_modules bower_components .venv venv __pycache__ .tox .nox .mypy_cache .pytest_cache .ruff_cache .hypothesis "
    b"target dist build .next .nuxt .svelte-kit .turbo .parcel-cache .gradle .terraform .cache .pnpm-store Pods "
    b"DerivedData .direnv coverage".split()
)


class Line(NamedTuple):
    """``here``: it speaks of direct children only."""

    pattern: re.Pattern[str]
    directories: bool
    keeps: bool
    here: bool


class Rules:
    """The lines that hold in one directory, and those of the directories above it."""

    __slots__ = ("_known", "above", "lines")

    def __init__(self, lines: list[Line], above: Rules | None = None) -> None:
        self.lines = lines
        self.above = above
        self._known: dict[tuple[bytes, bool], bool] = {}

    def below(self, content: bytes | None) -> Rules:
        """The rules of a subdirectory with this .gitignore."""
        return Rules(parse(content) if content else [], self)

    def ignore(self, name: bytes, directory: bool) -> bool:
        """Whether a child of this name is ignored: the last line that speaks of it in the nearest file decides."""
        key = name, directory
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            known = self._known[key] = self._decide(name.decode("latin-1"), directory)
        return known

    def _decide(self, name: str, directory: bool) -> bool:
        rules: Rules | None = self
        while rules is not None:
            for line in reversed(rules.lines):
                if line.directories and not directory:
                    continue
                if line.here and rules is not self:
                    continue
                if line.pattern.match(name):
                    return not line.keeps
            rules = rules.above
        return False


def parse(content: bytes) -> list[Line]:
    """The lines of a .gitignore that are understood."""
    lines = []
    for raw in content.split(b"\n")[:MAX_LINES]:
        text = raw.decode("latin-1").rstrip("\r").rstrip(" ")
        if not text or text.startswith("#"):
            continue
        keeps = text.startswith("!")
        text = text[keeps:].removeprefix("**/")
        directories = text.endswith("/")
        text = text.rstrip("/")
        here = text.startswith("/")
        text = text.lstrip("/")
        if "/" in text or "\\" in text:
            if not keeps:
                continue
            # What is kept may be kept anywhere: that is the side to err on.
            text, here = text.rpartition("/")[2] if "\\" not in text else "*", False
        if text:
            lines.append(Line(re.compile(translate(text), re.DOTALL), directories and not keeps, keeps, here))
    return lines
