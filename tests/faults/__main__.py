"""Break a whole deployment under load, at random, and say what was shown that should not have been.

    python -m tests.faults --faults 1000 --seed 1 [--only FAULT] [--events N] [--json] [--trace]

Exit status: 0 nothing was violated, 1 something was (its history is kept, and named), 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import sys

from tests.faults.campaign import LATENCIES, campaign
from tests.faults.inject import NAMES
from tests.faults.report import as_json, table
from tests.faults.wall import NoCompiler


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=_positive, default=50, help="how many; 50 if not given")
    parser.add_argument("--seed", type=int, default=1, help="decides which faults, when, and what the load does")
    parser.add_argument("--only", choices=NAMES, metavar="FAULT", default="", help=f"one of: {', '.join(NAMES)}")
    parser.add_argument(
        "--events",
        type=_positive,
        default=LATENCIES,
        help=f"how many are timed while git hangs, and as many without; {LATENCIES} if not given",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON instead of tables")
    parser.add_argument("--trace", action="store_true", help="say each fault as it begins")
    given = parser.parse_args(arguments)

    def say(line: str) -> None:
        if given.trace or not line.startswith(" "):
            print(line, file=sys.stderr, flush=True)

    try:
        outcome = campaign(given.faults, given.seed, given.only, say, events=given.events)
    except NoCompiler as why:
        parser.error(str(why))
    print(json.dumps(as_json(outcome), indent=2) if given.json else table(outcome))
    return 0 if outcome.well else 1


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
