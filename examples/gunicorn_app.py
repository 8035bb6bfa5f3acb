"""A WSGI application in four processes of gunicorn that share ten connections. In two terminals:

    pysqlx-ctl coordinator --max-size 10
    PYSQLX_COORDINATOR=ipc://... gunicorn -c examples/gunicorn_conf.py --chdir examples gunicorn_app:app

The first prints the line that the second needs. Then: curl http://127.0.0.1:8000/
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

from pysqlx_engine import PySQLXEnginePoolSync

# Made here and started by gunicorn_conf.py in each worker: a pool that no one has started may be forked (preload_app).
pool = PySQLXEnginePoolSync(uri=os.environ.get("PYSQLX_URI", "sqlite:./dev.db"))


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    # The worker has no connection that another could have: it waits here for its turn, at most conn_timeout (30 s).
    with pool.connection() as conn:
        row = conn.query_first("SELECT 41 + 1 AS answer")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{row} from process {os.getpid()}\n".encode()]
