"""Load tests and benchmarks: how much a running Joing holds, and what its parts cost.

`python -m loadtests run MIX` sends a mix of traffic (mixes/) to a running system, each request when
its schedule says (schedules.py), whatever became of those before, and judges what came back
(outcomes.py). Locust (locustfile.py) brings processes, machines and its web page. `self-test` holds
the instrument against a server whose answers can be worked out (analytic.py). Benchmarks of single
parts, each a ratio against its alternative, are in benchmarks/.
"""
