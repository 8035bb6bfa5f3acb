import concurrent.futures
import logging
import random
import time

from pysqlx_engine import PySQLXEnginePoolSync, LOG_CONFIG

LOG_CONFIG.PYSQLX_DEV_MODE = True
LOG_CONFIG.PYSQLX_SQL_LOG = True
LOG_CONFIG.PYSQLX_USE_COLOR = True
LOG_CONFIG.PYSQLX_ERROR_JSON_FMT = True

logging.basicConfig(level=logging.DEBUG)

MAX_CONCURRENT_WORKERS = 50
#


def simulate_work(pool: PySQLXEnginePoolSync):
    try:
        with pool.connection() as conn:
            # Simulate some work with the connection
            resp = conn.query_first("SELECT 1 as a")
            assert resp.a == 1
            time.sleep(random.uniform(0.1, 0.5))
    except Exception as e:
        logging.error(f"Error occurred: {e}")


def stress_test_sync_pool(pool, num_requests=1000):
    with concurrent.futures.ThreadPoolExecutor(max_workers=MAX_CONCURRENT_WORKERS) as executor:
        # Submit multiple tasks to simulate concurrent connections
        futures = [executor.submit(simulate_work, pool) for _ in range(num_requests)]
        concurrent.futures.wait(futures)


if __name__ == "__main__":
    # Initialize your pool here
    start = time.monotonic()
    pool = PySQLXEnginePoolSync(
        uri="sqlite:./dev.db", min_size=5, max_size=30, conn_timeout=60, check_interval=0.5
    )  # Adjust parameters as needed
    pool.start()
    stress_test_sync_pool(pool)
    pool.stop()
    end = time.monotonic()
    logging.info(f"Time taken: {end - start:.2f} seconds")
