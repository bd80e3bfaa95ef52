"""Locust as it is usually written: users who wait for each answer before they ask again.

For comparison only (loadtests/self_test.py): under a stall its users wait, send less, and so meet
the stall less often than anybody else would. Prints what Locust itself reports, as JSON.
"""

from __future__ import annotations

import json
import os
from typing import Any

from locust import FastHttpUser, constant_throughput, events, task
from locust.env import Environment

LIMIT_S = float(os.environ.get("LOADTESTS_LIMIT_S", "0.5"))
RATE_OF_ONE = float(os.environ.get("LOADTESTS_RATE_OF_ONE", "1"))


class Visitor(FastHttpUser):
    wait_time = constant_throughput(RATE_OF_ONE)
    within = 0

    @task
    def visit(self) -> None:
        self.client.get("/stalled")


@events.request.add_listener
def _count(response_time: float, exception: Exception | None, **_: Any) -> None:
    if exception is None and response_time <= 1e3 * LIMIT_S:
        Visitor.within += 1


@events.quitting.add_listener
def _report(environment: Environment, **_: Any) -> None:
    total = environment.stats.total
    reported = {
        "requests": total.num_requests,
        "p95_s": total.get_response_time_percentile(0.95) / 1e3,
        "share_within": Visitor.within / max(1, total.num_requests),
    }
    print(json.dumps(reported))
