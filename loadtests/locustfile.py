"""Locust as an open loop: one user a process sends that process's part of the schedule.

Locust brings the processes, the machines, the web page and the statistics; when each request goes
out is the schedule's (loadtests/open_loop.py). The master makes the plan and sends it to every
worker, workers send their records back, and the master judges the run. Without workers one process
is both.

`python -m loadtests run` starts this; so does Locust's own command, with its web page:
`locust -f loadtests/locustfile.py --host http://127.0.0.1:3000 [--processes N] [--mix NAME]`
"""

from __future__ import annotations

import signal
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
from locust import LoadTestShape, User, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtests import outcomes, plans
from loadtests.mixes.reading import MixError
from loadtests.open_loop import OpenLoop
from loadtests.outcomes import Outcome, Record
from loadtests.plans import Asked, Plan, Unreachable
from loadtests.run import tell_verdict
from loadtests.schedules import ScheduleError
from loadtests.traffic.base import Unavailable
from loadtests.traffic.wire import BadAddress

CANNOT_BEGIN = (MixError, ScheduleError, BadAddress, Unreachable, Unavailable)
INVALID = 2
GRACE_S = 15.0  # beyond the last patience, until a silent process counts as lost
STOPPING_S = 20.0
PLAN, RECORDS, DONE, STOP = "joing_plan", "joing_records", "joing_done", "joing_stop"


class NotGood(Exception):
    """What Locust's page shows as a failure: an outcome and its reason."""


@dataclass
class Conductor:
    """The master's side of one run after another."""

    environment: Environment
    plan: Plan | None = None
    records: list[Record] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    last_moment: float = 0.0

    def begin(self) -> Plan:
        """Makes the plan and hands it out. Raises one of CANNOT_BEGIN."""
        runner = self.environment.runner
        is_master = isinstance(runner, MasterRunner)
        clients = [client.id for client in runner.clients.ready] if is_master else ["local"]
        if not clients:
            raise Unreachable("no worker is connected: start one with locust --worker")
        plan = plans.make(asked_by(self.environment), clients)
        starts_in_s = plan.starts_at - time.time()
        self.last_moment = time.monotonic() + starts_in_s + plan.last_moment_s() + GRACE_S
        self.plan, self.records, self.done = plan, [], set()
        for client in clients:
            runner.send_message(PLAN, plan.as_json(), client)
        return plan

    def take_records(self, environment: Environment, msg: Any) -> None:
        if self.plan is not None and msg.data["plan"] == self.plan.id:
            self.records += map(Record.from_json, msg.data["records"])

    def take_done(self, environment: Environment, msg: Any) -> None:
        if self.plan is not None and msg.data["plan"] == self.plan.id:
            self.done.add(msg.data["process"])

    def is_over(self, plan: Plan) -> bool:
        """True once every process that lives has sent everything, or nobody can be waited for."""
        waited_for = set(plan.processes) - self.done
        if isinstance(self.environment.runner, MasterRunner):
            clients = self.environment.runner.clients
            waited_for &= {client.id for client in clients.all if client not in clients.missing}
        return not waited_for or time.monotonic() > self.last_moment

    def stop(self) -> None:
        """When Locust begins to stop, for whatever reason: before it sends its users away, which
        lets it end without hearing from anybody, the last records are fetched.
        """
        if self.plan is None:
            return
        until = time.monotonic() + STOPPING_S
        if not self.is_over(self.plan):
            self.environment.runner.send_message(STOP, {"plan": self.plan.id})
        while self.plan and not self.is_over(self.plan) and time.monotonic() < until:
            gevent.sleep(0.05)
        self.conclude()

    def conclude(self) -> None:
        """Judges what there is, writes it down and shows it, once."""
        plan, self.plan = self.plan, None
        if plan is None:
            return
        run = plan.run()
        settled = outcomes.settled(plan.schedule(), self.records)
        verdict = outcomes.judge(run, settled)
        folder = folder_of(self.environment, run)
        outcomes.write(folder, verdict, settled)
        tell_verdict(verdict, folder)
        self.environment.process_exit_code = verdict.exit_code


@dataclass
class Sender:
    """A worker's side: its part of one run after another."""

    environment: Environment
    plan: Plan | None = None
    process: str = ""
    loop: OpenLoop | None = None

    def take_plan(self, environment: Environment, msg: Any) -> None:
        plan = Plan.from_json(msg.data)
        # A worker is named by Locust; in a single process there is but one.
        runner = environment.runner
        self.process = runner.client_id if isinstance(runner, WorkerRunner) else "local"
        self.plan = plan

    def take_stop(self, environment: Environment, msg: Any) -> None:
        if self.loop is not None:
            self.loop.stop()

    def send_all(self) -> None:
        """This process's part, once; a second user of the same process has nothing to do."""
        plan, self.plan = self.plan, None
        if plan is None:
            return
        index = list(plan.processes).index(self.process)
        self.loop = OpenLoop(
            plan.part_of(self.process),
            plan.classes(),
            plan.mix.levels,
            plans.connections(plan.url),
            tell=lambda records: self._send(RECORDS, plan, [r.as_json() for r in records]),
            seen=self._seen,
            process=index,
        )
        try:
            self.loop.run(time.monotonic() + plan.starts_at - time.time())
        finally:
            self.loop = None
            self._send(DONE, plan)

    def _send(self, kind: str, plan: Plan, records: list[dict[str, Any]] | None = None) -> None:
        data = {"plan": plan.id, "process": self.process, "records": records or []}
        self.environment.runner.send_message(kind, data)

    def _seen(self, record: Record) -> None:
        """For Locust's own statistics and page; what was never sent is no request there."""
        if record.outcome is Outcome.UNSENT:
            return
        is_good = record.outcome is Outcome.GOOD
        self.environment.events.request.fire(
            request_type="open loop",
            name=record.traffic_class,
            response_time=1e3 * (record.latency_s or 0.0),
            response_length=0,
            exception=None if is_good else NotGood(f"{record.outcome}: {record.reason}"),
            context=record.as_json(),
        )


class OpenLoopUser(User):
    """Sends its process's part of the schedule, then waits until Locust stops it."""

    @task
    def send(self) -> None:
        SENDERS[self.environment].send_all()
        while True:
            gevent.sleep(3_600)


class OnePerProcess(LoadTestShape):
    """One user in each process, from the plan to the last record."""

    def tick(self) -> tuple[int, float] | None:
        conductor = CONDUCTORS[self.runner.environment]
        try:
            plan = conductor.plan or conductor.begin()
        except CANNOT_BEGIN as error:
            print(error, file=sys.stderr)
            conductor.environment.process_exit_code = INVALID
            return None
        return None if conductor.is_over(plan) else (len(plan.processes), len(plan.processes))


CONDUCTORS: dict[Environment, Conductor] = {}
SENDERS: dict[Environment, Sender] = {}


@events.init_command_line_parser.add_listener
def _arguments(parser: LocustArgumentParser) -> None:
    parser.add_argument("--mix", default="platform-day", help="A mix's name, or a .toml file.")
    parser.add_argument("--rate", default="", help="Requests a second; empty: the mix's.")
    parser.add_argument("--duration", default="", help="Seconds; empty: the mix's.")
    parser.add_argument("--seed", type=int, default=1, help="Another one, other texts and times.")
    parser.add_argument("--only", default="", help="Classes of the mix, with commas; empty: all.")
    parser.add_argument("--without", default="", help="Classes to leave out, with commas.")
    parser.add_argument("--channels", default="", help="File with channels to vet, one a line.")
    parser.add_argument("--out", default=".run/load", help="Folder for the run's files.")


@events.init.add_listener
def _init(environment: Environment, **_: Any) -> None:
    runner = environment.runner
    if not isinstance(runner, WorkerRunner):
        conductor = CONDUCTORS[environment] = Conductor(environment)
        runner.register_message(RECORDS, conductor.take_records)
        runner.register_message(DONE, conductor.take_done)
        environment.events.test_stopping.add_listener(lambda **_: conductor.stop())
        # Locust heeds it only after a headless run.
        gevent.signal_handler(signal.SIGTERM, runner.quit)
    if not isinstance(runner, MasterRunner):
        sender = SENDERS[environment] = Sender(environment)
        runner.register_message(PLAN, sender.take_plan)
        runner.register_message(STOP, sender.take_stop)
    # Told to quit in the middle of a run, stop it first.
    environment.events.quitting.add_listener(lambda **_: runner.stop())


def asked_by(environment: Environment) -> Asked:
    """Raises MixError."""
    options: Namespace = environment.parsed_options
    return Asked(
        mix=options.mix,
        url=environment.host or "",
        rate=_number("rate", options.rate),
        duration_s=_number("duration", options.duration),
        seed=int(options.seed),
        only=_names(options.only),
        without=_names(options.without),
        channels_file=options.channels or None,
    )


def folder_of(environment: Environment, run: outcomes.Run) -> Path:
    """The one that was asked for; of the web page, where many runs may follow, one in it."""
    folder = Path(environment.parsed_options.out)
    if environment.parsed_options.headless:
        return folder
    return folder / f"{run.mix}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(run.started_at))}"


def _number(name: str, value: str) -> float | None:
    try:
        return float(value) if str(value).strip() else None
    except ValueError:
        raise MixError(f"--{name} is {value!r}: give a number") from None


def _names(value: str) -> frozenset[str]:
    return frozenset(filter(None, (name.strip() for name in value.split(","))))
