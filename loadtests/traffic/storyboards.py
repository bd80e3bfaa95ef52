"""Storyboards: accepted, then followed by events or by asking again, to the last frame.

First is the acceptance (202). The end is `done`; a frame that could not be drawn is counted in the
detail. A client that gives up cancels the job, as a page that is left does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from random import Random
from typing import Any

import gevent
from pydantic import Field

from loadtests.traffic import texts
from loadtests.traffic.base import Attempt, Options, Wrong, chance, drawn, known
from loadtests.traffic.evaluation import LANGUAGES
from loadtests.traffic.wire import BROKEN, Connections, Message

PATH = "/v1/storyboards"
CANCEL_S = 2.0
ENDED = frozenset({"done", "failed", "cancelled"})


class StoryboardOptions(Options):
    """`scenes` is drawn between its ends; `followed` the share that listens to events, the others
    ask every `poll_s`.
    """

    languages: Mapping[str, float] = Field(default_factory=lambda: dict(LANGUAGES), min_length=1)
    scenes: tuple[int, int] = (3, 6)
    followed: float = Field(0.5, ge=0, le=1)
    poll_s: float = Field(1.0, gt=0, le=60)
    repeats: bool = False


class Storyboards:
    options = StoryboardOptions

    def __init__(
        self, name: str, options: StoryboardOptions, facts: Mapping[str, Any], seed: int
    ) -> None:
        self._name, self._options, self._seed = name, options, seed

    @staticmethod
    def discover(http: Connections, options: StoryboardOptions, arrivals: int) -> dict[str, Any]:
        return {}

    def prepare(self, http: Connections, item: int) -> Message:
        random = chance(self._seed, self._name, item)
        proposal = texts.proposal(
            item,
            drawn(self._options.languages, random),
            seed=self._seed,
            name=self._name,
            repeats=self._options.repeats,
        )
        body = {
            "proposal": proposal,
            "scenes": random.randint(*self._options.scenes),
            "seed": random.randrange(2**40),
        }
        return http.message("POST", PATH, body)

    def perform(self, http: Connections, message: Message, attempt: Attempt) -> None:
        with http.send(message) as reply:
            attempt.accept(reply, 202)
            attempt.first()
            job = str(known(reply).get("id") or "")
        if not job:
            raise Wrong("no id")
        is_ended = False
        try:
            listens = Random(message.body).random() < self._options.followed
            follow = self._listen if listens else self._poll
            board = follow(http, f"{PATH}/{job}", attempt)
            is_ended = True
        finally:
            if not is_ended:
                cancel(http, job)
        if board["state"] != "done":
            raise Wrong(f"{board['state']} {(board.get('error') or {}).get('code', '')}".strip())
        drawn_frames = [frame["state"] for frame in board["frames"]]
        attempt.detail["frames"] = drawn_frames.count("done")
        attempt.detail["frames_missing"] = len(drawn_frames) - drawn_frames.count("done")

    def _listen(self, http: Connections, url: str, attempt: Attempt) -> dict[str, Any]:
        with http.send(http.message("GET", f"{url}/events")) as reply:
            attempt.accept(reply, 200)
            for event, data in reply.events():
                if event == "frame" and json.loads(data)["state"] == "done":
                    attempt.detail.setdefault("first_frame_s", attempt.clock())
                elif event == "result":
                    board: dict[str, Any] = json.loads(data)
                    return board
                elif event == "error":
                    raise Wrong(f"failed {json.loads(data).get('code', '')}".strip())
        raise Wrong("events cut off")

    def _poll(self, http: Connections, url: str, attempt: Attempt) -> dict[str, Any]:
        while True:
            gevent.sleep(self._options.poll_s)
            with http.send(http.message("GET", url)) as reply:
                attempt.accept(reply, 200)
                board = known(reply)
            if board["state"] in ENDED:
                return board


def cancel(http: Connections, job: str) -> None:
    """Bounded; whether it worked is the server's affair."""
    message = http.message("DELETE", f"{PATH}/{job}")
    with gevent.Timeout(CANCEL_S, False), suppress(*BROKEN), http.send(message) as reply:
        reply.read()
