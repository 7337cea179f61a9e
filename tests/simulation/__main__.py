"""`python -m tests.simulation SEED [--trace]`: one run again. `--seeds FROM TO`: many, and what was done in them."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.run import run


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int, nargs="?")
    parser.add_argument("--trace", action="store_true", help="print what happens, in simulated seconds")
    parser.add_argument("--seeds", type=int, nargs=2, metavar=("FROM", "TO"))
    given = parser.parse_args(arguments)
    if (given.seed is None) == (given.seeds is None):
        parser.error("give one seed, or --seeds FROM TO")
    if given.seed is not None:
        outcome = run(given.seed, print if given.trace else None)
        print(f"seed {given.seed}: well; {outcome.versions} states published in {outcome.epochs} epochs")
        return 0
    began, faults, bad, versions = time.perf_counter(), Counter[str](), 0, 0
    for seed in range(*given.seeds):
        try:
            outcome = run(seed)
        except Exception as error:
            bad += 1
            print(f"seed {seed}: {type(error).__name__}: {error}")
        else:
            faults += outcome.faults
            versions += outcome.versions
    took = time.perf_counter() - began
    for name, count in sorted(faults.items()):
        print(f"{name:<16}{count:>8}")
    runs = given.seeds[1] - given.seeds[0]
    print(f"{runs} runs, {sum(faults.values())} faults, {versions} states, {bad} violations, {took:.1f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
