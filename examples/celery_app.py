"""Tasks in four processes of Celery that share ten connections; the broker is Redis on this host. In two terminals:

    pysqlx-ctl coordinator --max-size 10
    PYSQLX_COORDINATOR=ipc://... celery --app celery_app --workdir examples worker --concurrency 4

The first prints the line that the second needs. Then, to have forty tasks done: python examples/celery_app.py
"""

import os
import sys
from typing import Any

from celery import Celery
from celery.signals import worker_process_init, worker_process_shutdown

from pysqlx_engine import PySQLXEnginePoolSync
from pysqlx_engine.errors import PoolError

# The environment variables CELERY_BROKER_URL and CELERY_RESULT_BACKEND override these.
app = Celery("celery_app", broker="redis://127.0.0.1:6379/0", backend="redis://127.0.0.1:6379/0")

# Celery gives a new process 4 s to come up: one that cannot connect has to say so before that.
pool = PySQLXEnginePoolSync(uri=os.environ.get("PYSQLX_URI", "sqlite:./dev.db"), conn_timeout=3)


@worker_process_init.connect
def start_pool(**_: Any) -> None:
    # In each process, after the fork. The database driver has threads that a fork would leave behind, so nothing may
    # connect in the parent: not at import, not in worker_init.
    try:
        pool.start()
    except PoolError as error:  # Celery would log it and go on with a process whose every task fails
        sys.exit(f"{error}; Celery starts the process again")


@worker_process_shutdown.connect
def stop_pool(**_: Any) -> None:
    if not pool.closed:
        pool.stop()


@app.task
def add(a: int, b: int) -> int:
    with pool.connection(timeout=30) as conn:  # a task may wait for its turn longer than a start
        row = conn.query_first("SELECT CAST(:a AS integer) + CAST(:b AS integer) AS answer", {"a": a, "b": b})
    return int(row.answer)


if __name__ == "__main__":
    results = [add.delay(number, 1) for number in range(40)]
    print([result.get(timeout=30) for result in results])
