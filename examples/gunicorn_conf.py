"""What gunicorn_app.py needs in gunicorn's configuration, and why."""

from typing import Any

workers = 4
threads = 8  # more than one makes it the gthread worker
preload_app = True  # works with and without: see post_worker_init


def post_worker_init(worker: Any) -> None:
    # In the worker, after the fork and after the application was imported, whichever came first. The database driver
    # has threads that a fork would leave behind, so nothing may connect before.
    from gunicorn_app import pool

    pool.start()


def worker_exit(server: Any, worker: Any) -> None:
    # Also at a reload and after --max-requests. Connections are given back at the end of the process anyway; stop()
    # lets those in use finish first.
    from gunicorn_app import pool

    if not pool.closed:
        pool.stop()
