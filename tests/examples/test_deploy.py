"""The files of examples/deploy: what reads them takes them, and what they say fits together."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pysqlx_engine import PySQLXEngine
from pysqlx_engine.settings import load_standalone_settings
from pysqlx_engine.workers import ctl, run
from pysqlx_engine.workers.jobs.schema import migrate
from tests.servers import Database

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"


def documents(kind: str) -> dict[str, Any]:
    """The documents of this kind, by name."""
    found = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {one["metadata"]["name"]: one for one in found if one["kind"] == kind}


def unit() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(DEPLOY / "pysqlx-workers.service")
    return parsed


def understood(command: list[str]) -> None:
    """Our commands take these options; SystemExit if not."""
    program, *arguments = command
    parser = {"pysqlx-run": run._parser, "pysqlx-ctl": ctl._parser}[Path(program).name]()
    parser.parse_args(arguments)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    text = (DEPLOY / "pysqlx-workers.service").read_text()
    copy = tmp_path / "pysqlx-workers.service"
    copy.write_text(text.replace("/srv/app/.venv/bin/pysqlx-run", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_units_command_and_times_fit_together() -> None:
    service = unit()["Service"]
    command = shlex.split(service["ExecStart"])
    understood(command)
    graceful = float(command[command.index("--graceful-timeout") + 1])
    assert graceful < float(service["TimeoutStopSec"]), "or systemd kills before the supervisor has ended"
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed"


def test_the_containers_commands_are_understood() -> None:
    lines = re.findall(r"^(ENTRYPOINT|CMD|HEALTHCHECK .*?CMD) (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.M)
    said = {name.split()[0]: yaml.safe_load(arguments) for name, arguments in lines}
    understood(said["ENTRYPOINT"] + said["CMD"])
    understood(said["HEALTHCHECK"])


def test_every_command_and_probe_in_kubernetes_is_understood_and_has_time_to_end() -> None:
    for deployment in documents("Deployment").values():
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        understood(container["command"])
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            match container.get(probe):
                case {"exec": {"command": command}}:
                    understood(command)
                case {"httpGet": {"path": "/readyz" | "/healthz", "port": port}}:  # see tests/observer/test_metrics.py
                    (where,) = container["ports"]
                    assert where["name"] == port
                    listens = run._parser().parse_args(container["command"][1:]).metrics
                    assert listens == f"*:{where['containerPort']}"
                case None:
                    assert (probe, deployment["metadata"]["name"]) == ("startupProbe", "pysqlx-coordinator")
                case other:
                    raise AssertionError(other)
        environment = {one["name"]: one.get("value") for one in container["env"]}
        graceful = environment.get("PYSQLX_GRACEFUL_TIMEOUT") or 5
        assert float(graceful) < pod["terminationGracePeriodSeconds"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for one in (container, *pod["initContainers"]):
            assert {mount["name"] for mount in one["volumeMounts"]} <= volumes
        assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_the_workers_join_where_the_coordinator_listens() -> None:
    deployments = documents("Deployment")
    (coordinator,) = deployments["pysqlx-coordinator"]["spec"]["template"]["spec"]["containers"]
    options = ctl._parser().parse_args(coordinator["command"][1:])
    settings = load_standalone_settings(None, bind=options.bind, max_size=options.max_size)
    (workers,) = deployments["app-workers"]["spec"]["template"]["spec"]["containers"]
    environment = {one["name"]: one.get("value") for one in workers["env"]}
    (port,) = documents("Service")["pysqlx-coordinator"]["spec"]["ports"]
    assert settings.bind is not None
    assert settings.bind.endswith(f":{port['targetPort']}")
    assert environment["PYSQLX_COORDINATOR"] == f"tcp://pysqlx-coordinator:{port['port']}"
    assert deployments["pysqlx-coordinator"]["spec"]["strategy"]["type"] == "Recreate"


async def test_kedas_query_counts_the_jobs_that_wait(postgresql_db: Database) -> None:
    (trigger,) = documents("ScaledObject")["app-workers"]["spec"]["triggers"]
    async with PySQLXEngine(postgresql_db.uri) as connection:
        await migrate(connection)
        assert await connection.query_as_dict(trigger["metadata"]["query"]) == [{"count": 0}]
