# import
from pysqlx_engine import PySQLXEnginePoolSync

def main():
    pool = PySQLXEnginePoolSync(uri="sqlite:./dev.db", min_size=5)
    pool.start() # Start the pool

    with pool.connection() as conn:
        # Use the connection
        resp = conn.query_first("SELECT 1 as a")
        print(resp) # Output: BaseRow(a=1)

    pool.stop() # Stop the pool

main()
