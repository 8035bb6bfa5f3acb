"""How fast the pool is, as ratios to its peers, and what a fleet of processes costs.

`make bench`, or `python -m benchmarks --help`.
"""
