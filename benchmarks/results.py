"""What a run leaves behind: every figure, and all that one has to know to read it."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg

from .peers import ROOT
from .ratios import Ratio
from .running import Plan, Series


def about(uri: str, plan: Plan, versions: dict[str, dict[str, str]]) -> dict[str, Any]:
    """When, what, where: taken at the start of a run."""
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "load_before": os.getloadavg()[0],
            "system": platform.platform(),
        },
        "python": platform.python_version(),
        "postgresql": _server_version(uri),
        "versions": versions,
    }


def write(path: Path, about: dict[str, Any], series: Sequence[Series], rows: Sequence[Ratio]) -> None:
    """Figures are the workers' own: seconds, or multiples of the bound."""
    document = {
        **about,
        "load_after": os.getloadavg()[0],
        "ratios": [asdict(row) | {"verdict": row.verdict} for row in rows],
        "figures": [
            {
                "case": one.case.name,
                "peer": one.peer.name,
                "rounds": {number + 1: figure for number, figure in sorted(one.figures.items())},
                "beside": {number + 1: beside for number, beside in sorted(one.beside.items()) if beside},
                "failures": one.failures,
            }
            for one in series
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def _server_version(uri: str) -> str:
    with psycopg.connect(uri) as connection:
        row = connection.execute("SHOW server_version").fetchone()
        return str(row[0]) if row else "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
