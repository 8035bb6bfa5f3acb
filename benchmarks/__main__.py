"""`python -m benchmarks`: the command line. Ends with 1 when a target is missed or something could not be run."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pysqlx_engine.workers.progress import reporting

from . import plots, results
from .cases import CASES
from .peers import ENVIRONMENTS, HERE
from .ratios import ratios
from .running import Plan, install, run
from .servers import Servers
from .table import table

EVERY = 10.0
"""Seconds between two lines of how far it is, where there is no terminal: it takes half an hour."""


def main() -> int:
    options = _options()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})  # all that is started from here on inherits it
    cases = [case for case in CASES if not options.only or case.name.startswith(tuple(options.only))]
    if options.quick:
        plan = Plan(cases, options.rounds or 3, slow_rounds=1, durable_rounds=1, seconds=0.25)
    else:
        slow, durable = (min(most, options.rounds or most) for most in (5, 3))
        plan = Plan(cases, options.rounds or 7, slow_rounds=slow, durable_rounds=durable, seconds=1.0)
    series = plan.series()
    with Servers(options.uri) as servers, reporting("bench", every=EVERY) as report:
        versions = install(series, report)
        about = results.about(servers.durable if all(case.durable for case in cases) else servers.fast, plan, versions)
        run(plan, series, servers, report)
    rows = ratios(series)
    print(table(rows))
    # What is committed comes from a whole run.
    whole = len(cases) == len(CASES) and not options.quick and options.cpu is None
    directory: Path = options.output or (HERE / "results" if whole else ENVIRONMENTS / "results")
    results.write(directory / "latest.json", about, series, rows)
    plots.write(directory, series)
    print(f"\nfigures and pictures: {directory}")
    return int(any(row.failed for row in rows))


def _options() -> argparse.Namespace:
    names = ", ".join(case.name for case in CASES)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, epilog=f"cases: {names}")
    parser.add_argument("--uri", help="a PostgreSQL to use; by default one is started and thrown away")
    parser.add_argument("--rounds", type=_positive, help="how often everybody is measured (7; with --quick 3)")
    parser.add_argument("--only", action="append", metavar="CASE", help="a case, or how its name begins; repeatable")
    parser.add_argument("--quick", action="store_true", help="a first look: fewer and shorter rounds")
    parser.add_argument("--cpu", type=int, help="everything on this one CPU, the server too: work, not waking up")
    parser.add_argument("--output", type=Path, help="where figures and pictures go")
    options = parser.parse_args()
    for name in options.only or []:
        if not any(case.name.startswith(name) for case in CASES):
            parser.error(f"there is no case {name!r}: there are {names}")
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
