"""Run a deployment under load for a while, and say whether everything levels off.

    python -m tests.soak --minutes 10 [--out DIR] [--json]

Everything of treewire runs under supervisord in a home of its own; workspaces, sessions, worktrees, projects and
clients come and go all the time. Judged is the second half: see tests/soak/verdict.py. Exit status: 0 all levels off,
1 something grows or fell, 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.soak import draw
from tests.soak.run import EVERY_S, pictures, soak


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=_positive, default=10.0, help="how long; 10 if not given")
    parser.add_argument("--out", type=Path, help="a folder for figures, logs and a picture per group of figures")
    parser.add_argument("--every", type=_positive, default=EVERY_S, help="seconds between measurements; 3 if not given")
    parser.add_argument("--seed", type=int, default=1, help="decides what the load does")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    given = parser.parse_args(arguments)
    if given.out is not None:
        try:
            given.out.mkdir(parents=True, exist_ok=True)
            draw.check()
        except OSError as error:
            parser.error(f"--out {given.out} cannot be made: {error.strerror}")
        except draw.CannotDraw as why:
            parser.error(str(why))
    outcome = soak(given.minutes, given.out, given.seed, given.every)
    if given.out is not None:
        for path in pictures(outcome, given.out):
            print(path, file=sys.stderr)
    print(json.dumps(outcome.report(), indent=2) if given.json else outcome.table())
    return 0 if outcome.well else 1


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a time: say a number above 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
