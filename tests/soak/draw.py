"""One picture per group of figures. Only this module knows matplotlib, and only when there is something to draw."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Final

from tests.soak.verdict import Verdict

HOW: Final = "pictures need matplotlib: python -m pip install --group soak, or `make soak`, which does it"


class CannotDraw(Exception):
    """There is no matplotlib; the message says how to get it."""


def check() -> None:
    """Raises `CannotDraw`."""
    try:
        missing = find_spec("matplotlib") is None
    except ValueError:  # it is there by name only
        missing = True
    if missing:
        raise CannotDraw(HOW)


def draw(verdicts: Sequence[Verdict], folder: Path) -> list[Path]:
    """Write `folder`/GROUP.png for each group: a panel per sort of figure, a line per process, growth dashed and red.

    Raises `CannotDraw`.
    """
    check()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []
    for group, of_group in groupby(sorted(verdicts, key=_group), key=_group):
        panels = [(kind, list(found)) for kind, found in groupby(sorted(of_group, key=_kind), key=_kind)]
        figure, axes = pyplot.subplots(
            len(panels), 1, figsize=(11, 3.2 * len(panels)), sharex=True, squeeze=False, layout="constrained"
        )
        for (kind, found), axis in zip(panels, axes[:, 0], strict=True):
            for verdict in found:
                times, values = zip(*verdict.series.points, strict=True)
                name = verdict.series.name.removesuffix(kind).strip() or kind
                style = {"linestyle": "--", "color": "red"} if verdict.word == "grows" else {}
                label = f"{name} ({verdict.per_hour:+.1f} {verdict.series.unit}/h)"
                axis.plot([at / 60 for at in times], values, label=label, linewidth=1, **style)
            axis.set_ylim(bottom=0)
            axis.set_ylabel(f"{kind} [{found[0].series.unit}]" if found[0].series.unit else kind)
            axis.grid(alpha=0.3)
            axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
        axes[-1, 0].set_xlabel("minutes")
        figure.suptitle(group)
        path = folder / f"{group}.png"
        figure.savefig(path, dpi=90)
        pyplot.close(figure)
        made.append(path)
    return made


def _group(verdict: Verdict) -> str:
    return verdict.series.group


def _kind(verdict: Verdict) -> str:
    """A panel for what has the same sort of figure: the same last word for processes, each by itself otherwise."""
    name = verdict.series.name
    return name.rsplit(" ", 1)[-1] if verdict.series.group in ("memory", "descriptors", "threads") else name
