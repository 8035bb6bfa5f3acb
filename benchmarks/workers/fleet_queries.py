"""Queries per second of four processes: with one budget, with a fixed part of it each, and through PgBouncer."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from .fleet import FOLDER, Leader, main, running
from .leading import free_port, wait_for

PROCESSES = 4
CONNECTIONS = 20
"""All processes together."""
EACH = CONNECTIONS // PROCESSES
TASKS = 20
"""Each process."""
SCRIPT = str(FOLDER / "workers" / "fleet_script.py")


def one_budget(uri: str, seconds: float) -> float:
    with Leader() as leader:
        run = str(Path(sys.executable).with_name("pysqlx-run"))
        options = ["-w", str(PROCESSES), "--max-size", str(CONNECTIONS), "--restart", "never", "--no-prefix"]
        sizes = [str(EACH), str(CONNECTIONS)]
        leader.start(run, *options, "--name", f"bench-{os.getpid()}", SCRIPT, uri, *sizes, leader.path)
        return _queries(leader, seconds)


def fixed(uri: str, seconds: float) -> float:
    with Leader() as leader:
        for _ in range(PROCESSES):
            leader.start(sys.executable, SCRIPT, uri, str(EACH), str(EACH), leader.path)
        return _queries(leader, seconds)


def pgbouncer(uri: str, seconds: float) -> float:
    """Session mode: its transaction mode does not work with prepared statements in this version of either."""
    server = urlsplit(uri)
    with Leader() as leader, ExitStack() as stack:
        port = free_port()
        users, configuration = leader.directory / "users", leader.directory / "pgbouncer.ini"
        users.write_text(f'"{server.username}" "{server.password or ""}"\n')
        configuration.write_text(
            "[databases]\n"
            f"* = host={server.hostname} port={server.port}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {users}\n"
            f"pool_mode = session\ndefault_pool_size = {CONNECTIONS}\nmax_client_conn = 100\n"
            "log_connections = 0\nlog_disconnections = 0\nlog_stats = 0\n"
        )
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        assert program is not None, "pgbouncer is not installed"
        user = None
        if os.geteuid() == 0:  # it refuses to run as root
            user = "nobody"
            for path in (leader.directory, users, configuration):
                shutil.chown(path, pwd.getpwnam(user).pw_uid)
        stack.enter_context(running([program, "-q", str(configuration)], {}, user))
        wait_for(port)
        through = server._replace(netloc=f"{server.netloc.rpartition('@')[0]}@127.0.0.1:{port}").geturl()
        for _ in range(PROCESSES):
            leader.start(sys.executable, SCRIPT, through, str(EACH), str(EACH), leader.path)
        return _queries(leader, seconds)


def _queries(leader: Leader, seconds: float) -> float:
    members = leader.members(PROCESSES)
    since = time.monotonic() + 0.1 + seconds / 4  # first everybody warms up, and has opened what it may
    for member in members:
        member.say(do="query", tasks=TASKS, since=since, until=since + seconds)
    return float(sum(member.hear()["queries"] for member in members) / seconds)


if __name__ == "__main__":
    main(
        {
            ("ours", "fleet-queries"): one_budget,
            ("fixed", "fleet-queries"): fixed,
            ("pgbouncer", "fleet-queries"): pgbouncer,
        }
    )
