"""Sends a schedule, each request when it is due, however many are still unanswered.

Every arrival leaves exactly one record. Latency, level and patience count from the instant that it
was due. Requests run in greenlets without a bound of their own but the system's on open files; one
more than those is recorded as unsent, never made to wait. Knows nothing of Locust.
"""

from __future__ import annotations

import gc
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import gevent
from gevent.pool import Group
from geventhttpclient.response import HTTPParseError

from loadtests.outcomes import Level, Outcome, Record, outcome_of, unsent
from loadtests.schedules import Arrival
from loadtests.traffic.base import Attempt, Refused, TrafficClass, Wrong
from loadtests.traffic.wire import BROKEN, Connections, Message

TELL_EVERY_S = 1.0
TELL_AT = 50
OTHER_FILES = 200  # open beside the requests
STOP_S = 10.0
PRIORITY = -10  # where the system lets us
MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError)
"""What a class stumbles over in an answer that has not the form of the contract."""


class OpenLoop:
    """One process's part of a run. `tell` is given each record once, soon after it is there;
    `seen` each at once.
    """

    def __init__(
        self,
        arrivals: Sequence[Arrival],
        classes: Mapping[str, TrafficClass],
        levels: Mapping[str, Level],
        http: Connections,
        *,
        tell: Callable[[list[Record]], None],
        seen: Callable[[Record], None] = lambda record: None,
        process: int = 0,
    ) -> None:
        self._arrivals = arrivals
        self._classes = classes
        self._levels = levels
        self._http = http
        self._tell = tell
        self._seen = seen
        self._process = process
        self._group = Group()
        self._unsettled = {arrival.number: arrival for arrival in arrivals}
        self._told: list[Record] = []
        self._told_at = 0.0
        self._starts_at = 0.0
        self._walk: gevent.Greenlet | None = None
        self._room = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OTHER_FILES)

    def run(self, starts_at: float) -> None:
        """Returns when every arrival has its record, killed or not. `starts_at` is on the
        monotonic clock.
        """
        self._starts_at = starts_at
        for name in {arrival.traffic_class for arrival in self._arrivals}:
            self._classes[name].prepare(self._http, 0)  # reads its texts, which takes a while
        # What is there by now stays; a collection need not look at it while requests are due.
        gc.collect()
        gc.freeze()
        # A client that waits for a processor would add its own wait to every figure.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
        self._walk = gevent.spawn(self._walk_through)
        try:
            self._walk.get()
        finally:
            self._walk.kill()
            self._settle_rest()
            gc.unfreeze()

    def stop(self) -> None:
        """Lets `run` return soon; what is left is unsent, what is under way cancelled."""
        if self._walk is not None:
            self._walk.kill(block=False)

    def _walk_through(self) -> None:
        for arrival in self._arrivals:
            self._send_when_due(arrival)
        self._group.join()

    def _clock(self) -> float:
        return time.monotonic() - self._starts_at

    def _send_when_due(self, arrival: Arrival) -> None:
        message = self._classes[arrival.traffic_class].prepare(self._http, arrival.item)
        # Also when it is late already: those before it have to begin.
        gevent.sleep(max(0.0, arrival.due_s - self._clock()))
        if len(self._group) >= self._room:
            self._record(unsent(arrival, "no room", self._process))
            return
        self._group.start(gevent.Greenlet(self._send, arrival, message))

    def _send(self, arrival: Arrival, message: Message) -> None:
        sent_s = self._clock()
        level = self._levels[arrival.traffic_class]
        patience_s = level.patience_s - (sent_s - arrival.due_s)
        if patience_s <= 0:
            self._record(unsent(arrival, "patience over", self._process))
            return
        left_s = level.within_s - (sent_s - arrival.due_s)
        attempt = Attempt(self._clock, within_ms=max(1, int(left_s * 1_000)))
        outcome, reason = self._perform(arrival, message, attempt, patience_s)
        record = Record(
            arrival.number,
            arrival.traffic_class,
            arrival.item,
            outcome,
            arrival.due_s,
            sent_s=sent_s,
            first_s=attempt.first_s,
            end_s=self._clock(),
            status=attempt.status,
            reason=reason,
            retry_after_s=attempt.retry_after_s,
            service_s=attempt.service_s,
            tokens=attempt.tokens or None,
            writing_s=_between(attempt.first_token_s, attempt.last_token_s),
            process=self._process,
            detail=attempt.detail,
        )
        if outcome is Outcome.GOOD:
            record = record.as_judged(*outcome_of(level, record))
        self._record(record)

    def _perform(
        self, arrival: Arrival, message: Message, attempt: Attempt, patience_s: float
    ) -> tuple[Outcome, str | None]:
        """GOOD means a right answer, in time or not."""
        patience = gevent.Timeout.start_new(patience_s)
        try:
            self._classes[arrival.traffic_class].perform(self._http, message, attempt)
        except gevent.Timeout as over:
            if over is not patience:
                raise
            return Outcome.CANCELLED, "patience"
        except gevent.GreenletExit:
            return Outcome.CANCELLED, "stopped"
        except (Refused, Wrong, *BROKEN, *MALFORMED) as error:
            return _ending(error)
        finally:
            patience.close()
        return Outcome.GOOD, None

    def _record(self, record: Record) -> None:
        if self._unsettled.pop(record.number, None) is None:
            return
        self._seen(record)
        self._told.append(record)
        if len(self._told) >= TELL_AT or self._clock() - self._told_at >= TELL_EVERY_S:
            self._flush()

    def _flush(self) -> None:
        told, self._told, self._told_at = self._told, [], self._clock()
        if told:
            self._tell(told)

    def _settle_rest(self) -> None:
        """After a stop: what is under way is cancelled, what is left was never sent."""
        self._group.kill(timeout=STOP_S)
        for arrival in list(self._unsettled.values()):
            self._record(unsent(arrival, "stopped", self._process))
        self._flush()
        self._http.close()


def _ending(error: Exception) -> tuple[Outcome, str]:
    match error:
        case Refused():
            return Outcome.REJECTED, str(error)
        case Wrong():
            return Outcome.FAILED, str(error)
        # ValueError is malformed, and the parser's error is one.
        case OSError() | HTTPParseError():
            return Outcome.FAILED, type(error).__name__
    return Outcome.FAILED, f"malformed answer ({type(error).__name__})"


def _between(first_s: float | None, last_s: float | None) -> float | None:
    return None if first_s is None or last_s is None else last_s - first_s
