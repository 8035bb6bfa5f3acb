# import
from pysqlx_engine import PySQLXEnginePoolSync

def main():
    pool = PySQLXEnginePoolSync(uri="sqlite:./dev.db", min_size=5)
    pool.start() # Start the pool

    # Use the pool

    pool.stop() # Stop the pool

main()
