"""One script per peer, each run in the peer's own virtual environment: `python -m workers.PEER CASE ...`.

What takes several processes has a script per question instead: `python -m workers.fleet_QUESTION PEER CASE ...`.

They run with `benchmarks/` as their working directory: from the root, `pysqlx_engine` would be this repository's source
for everybody. So they import nothing but each other and their peer.
"""
