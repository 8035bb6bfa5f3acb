"""Stands in for programs that a page's commands cannot really start on the machine of the tests: what they are told is
checked as far as it concerns us. Called as `python -m tests.docs.unrun PROGRAM ARGS...`; status 0 when it makes sense.

- files that they read are there, of the page or of the repository;
- our own commands in their arguments are understood by our own parsers;
- what `pip` installs of ours has these extras.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAMS = {
    "pip": {"install"},
    "make": None,
    "kubectl": {"apply", "create", "exec", "get", "logs", "rollout", "scale"},
    "docker": {"build", "run", "compose"},
    "systemctl": {"daemon-reload", "enable", "reload", "start", "status", "stop"},
    "scp": None,
}
"""Each with the words that may come first."""


def understood(words: list[str]) -> None:
    """Our command in a command line, if there is one. SystemExit when its parser does not take it."""
    for place, word in enumerate(words):
        program = os.path.basename(word)
        if program in ("pysqlx-run", "pysqlx-ctl"):
            from pysqlx_engine.workers import ctl, run

            parser = run._parser() if program == "pysqlx-run" else ctl._parser()
            arguments = words[place + 1 :]
            parser.parse_args(run._with_address(parser, arguments) if program == "pysqlx-run" else arguments)
            return


def main(program: str, *words: str) -> None:
    known = PROGRAMS[program]
    if known is not None and (not words or words[0] not in known):
        sys.exit(f"{program} {words[:1]}: not one of {sorted(known)}")
    if program == "pip":
        for word in words[1:]:
            _installable(word)
    elif program == "scp" and len(words) < 2:
        sys.exit("scp: from where to where?")
    for word in words:
        _, given, file = word.partition("--from-file=")
        if given and not os.path.exists(file):
            sys.exit(f"{program}: there is no {file}")
    for option, file in itertools.pairwise(words):
        if option in ("-f", "--filename", "--file") and not os.path.exists(file):
            sys.exit(f"{program}: there is no {file}")
    understood(list(words))


def _installable(word: str) -> None:
    if word.startswith("-"):
        return
    import tomllib  # delayed, as the others: each call is a process

    from packaging.requirements import Requirement

    requirement = Requirement(word)
    if requirement.name == "pysqlx-engine":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        missing = requirement.extras - set(project["optional-dependencies"])
        if missing:
            sys.exit(f"pip: pysqlx-engine has no extras {missing}")


if __name__ == "__main__":
    main(*sys.argv[1:])
