"""A rule that is broken on purpose is noticed. All of them: `make mutants`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .mutants import MUTANTS, ROOT, Mutant, survives

SLOW = {
    "what a lost host was granted and has not named is waited for",
    "the same packet is taken once by a process",
    "an old hello is not taken",
    "a process that misses a packet says hello again",
    "what a silent process held stays charged",
    "a grant is in the journal",
    "the journal is written before anything is said",
}
"""These take 5 to 50 s."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_the_source_has_the_rule_that_is_broken(mutant: Mutant, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pysqlx_engine", tmp_path / "pysqlx_engine")
    mutant.apply(tmp_path)
    compile((tmp_path / "pysqlx_engine" / mutant.file).read_text(), mutant.file, "exec")


@pytest.mark.parametrize("mutant", [one for one in MUTANTS if one.name not in SLOW], ids=lambda mutant: mutant.name)
def test_the_simulation_notices(mutant: Mutant) -> None:
    assert survives(mutant) is None


def test_the_slow_ones_exist() -> None:
    assert {mutant.name for mutant in MUTANTS} >= SLOW
