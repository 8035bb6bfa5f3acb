"""The names of the package: there when they are asked for, and not imported before."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import pysqlx_engine
from pysqlx_engine import workers


@pytest.mark.parametrize("package", [pysqlx_engine, workers])
def test_each_public_name_is_there_and_no_other(package: ModuleType):
    for name in package.__all__:
        assert getattr(package, name) is getattr(package, name)
        assert name in dir(package)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'Typo'"):
        package.Typo


@pytest.mark.parametrize("module", ["supervisor", "coordinator", "ctl", "worker"])
def test_what_opens_no_connection_loads_neither_the_driver_nor_pydantic(module: str):
    program = (
        f"import sys, pysqlx_engine.workers.{module}\n"
        "def loaded(): return {'pydantic', 'pysqlx_core', 'pysqlx_engine.pool.aio'} & sys.modules.keys()\n"
        "print(sorted(loaded()))\n"
        "from pysqlx_engine import PySQLXEnginePool\n"
        "print(len(loaded()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.split("\n") == ["[]", "3", ""]
