"""Four processes of multiprocessing that share ten connections. In two terminals:

    pysqlx-ctl coordinator --max-size 10
    PYSQLX_COORDINATOR=ipc://... python examples/multiprocessing_pool.py

The first prints the line that the second needs.
"""

import multiprocessing
import os

from pysqlx_engine import PySQLXEnginePoolSync

# Each process has one by its own import of this file, or by the fork. A pool cannot be sent from one to another.
pool = PySQLXEnginePoolSync(uri=os.environ.get("PYSQLX_URI", "sqlite:./dev.db"))


def start_pool() -> None:
    pool.start()


def square(number: int) -> int:
    with pool.connection() as conn:
        row = conn.query_first("SELECT CAST(:n AS integer) * CAST(:n AS integer) AS square", {"n": number})
    return int(row.square)


if __name__ == "__main__":
    # "fork" would do as well, as long as nothing has connected here before: the database driver has threads that a fork
    # would leave behind.
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes=4, initializer=start_pool) as processes:
        print(processes.map(square, range(20)))
        processes.close()  # without this the `with` kills them; their connections come back all the same
        processes.join()
