"""`python -m tests.simulation`: run for as long as you like, and print the seed of the first failure.

python -m tests.simulation                    without end
python -m tests.simulation --minutes 10
python -m tests.simulation --seed 4711        one world, with what was wrong with it
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time

from .running import WEATHERS, run_many, run_one


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, help="run this world only")
    parser.add_argument("--first", type=int, default=random.randrange(10**9), help="begin with this seed")
    parser.add_argument("--events", type=int, default=sys.maxsize, help="stop after so many")
    parser.add_argument("--weather", choices=WEATHERS, help="only worlds with this weather")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.seed is not None:
        outcome = run_one(options.seed)
    else:
        print(f"first seed {options.first}", flush=True)
        until = time.monotonic() + options.minutes * 60
        outcome = run_many(
            options.first, events=options.events, processes=options.processes, until=until, weather=options.weather
        )
    print(outcome.table())
    for seed, problem in outcome.broken.items():
        print(f"BROKEN: seed {seed}: {problem}\nagain: python -m tests.simulation --seed {seed}")
    return int(bool(outcome.broken))


if __name__ == "__main__":
    sys.exit(main())
