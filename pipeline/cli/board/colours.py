"""The board's colours, dark and light: those of the page."""

from __future__ import annotations

from typing import Final

from textual.theme import Theme


def _theme(name: str, dark: bool, own: dict[str, str]) -> Theme:
    return Theme(
        name=name,
        dark=dark,
        primary=own["work"],
        secondary=own["done"],
        success=own["good"],
        warning=own["call"],
        error=own["fail"],
        foreground=own["ink"],
        background=own["ground"],
        surface=own["card"],
        panel=own["sunk"],
        variables={**own, "footer-key-foreground": own["call"], "footer-background": own["sunk"]},
    )


DARK: Final = _theme(
    "treewire-dark",
    True,
    {
        "ground": "#0e1013",
        "sunk": "#1a1d22",
        "card": "#1a1d22",
        "line": "#3a414c",
        "lit": "#2a3441",
        "ink": "#eceef2",
        "quiet": "#9aa3af",
        "call": "#ffb454",
        "call-wash": "#2c2115",
        "fail": "#ff8a80",
        "work": "#7db8ff",
        "good": "#68d391",
        "done": "#c4a1ff",
    },
)
LIGHT: Final = _theme(
    "treewire-light",
    False,
    {
        "ground": "#ffffff",
        "sunk": "#ebedf0",
        "card": "#f4f5f7",
        "line": "#c9ced6",
        "lit": "#dce8fa",
        "ink": "#14181f",
        "quiet": "#57606c",
        "call": "#9a4a00",
        "call-wash": "#fff1e0",
        "fail": "#b3201a",
        "work": "#1557b8",
        "good": "#116334",
        "done": "#6b34b8",
    },
)
