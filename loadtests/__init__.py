"""Load tests and benchmarks: how much a running Joing holds, and what its parts cost."""
