"""How fast the pool is, as ratios to its peers: `make bench`, or `python -m benchmarks --help`."""
