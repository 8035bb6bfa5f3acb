"""A rule that is broken on purpose is noticed. All of them: `make mutants`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .mutants import MUTANTS, ROOT, Mutant, survives

SLOW = {
    "the same packet is taken once by the coordinator",
    "nothing is opened after the term",
    "what was to be said before a hello is not said after it",
    "a process that misses a packet says hello again",
    "what the coordinator has not heard of is closed when the term is over",
    "the journal is written before anything is said",
    "a grant is in the journal",
    "a hello to a former coordinator is not taken",
    "the sessions of a lost host are ended through a process that lives",
    "what a lost host was granted and has not named is waited for",
    "what a silent process held stays charged",
    "who does not yield is passed over",
    "an old hello is not taken",
    "a packet of an earlier session is not taken by a process",
    "a lease is for one connection",
    "what is claimed in a hello is charged",
}
"""These take a second to a minute."""


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
