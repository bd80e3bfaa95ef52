"""Vettings of creators. Which channels there are to vet is the operator's to say: a file with one
id, @handle or address a line (`--channels`), of YouTube or of whatever stands for it.

A vetting that is kept is answered at once, so a channel is not asked for twice unless the mix says
`repeats`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from pydantic import Field

from loadtests.traffic.base import Attempt, Options, Unavailable, Wrong, known
from loadtests.traffic.wire import Connections, Message

PATH = "/v1/creators/vet"
VERDICTS = frozenset({"pass", "fail", "review"})


class VettingOptions(Options):
    """`channels` in the mix itself, or the name of a file that has them."""

    channels: tuple[str, ...] = ()
    channels_file: str | None = Field(None, min_length=1)
    repeats: bool = False


class Vettings:
    options = VettingOptions

    def __init__(
        self, name: str, options: VettingOptions, facts: Mapping[str, Any], seed: int
    ) -> None:
        self._channels: list[str] = list(facts["channels"])
        Random(f"{seed}/{name}").shuffle(self._channels)

    @staticmethod
    def discover(http: Connections, options: VettingOptions, arrivals: int) -> dict[str, Any]:
        channels = [*options.channels]
        if options.channels_file is not None:
            channels += read_channels(Path(options.channels_file))
        channels = list(dict.fromkeys(channels))
        if not channels:
            raise Unavailable(
                "there are no channels to vet: give a file with --channels, or leave the class out "
                "with --without"
            )
        if len(channels) < arrivals and not options.repeats:
            raise Unavailable(
                f"{arrivals} vettings are due and there are {len(channels)} channels: give more, "
                "or set repeats = true (a kept vetting is then answered at once)"
            )
        return {"channels": channels}

    def prepare(self, http: Connections, item: int) -> Message:
        channel = self._channels[item % len(self._channels)]
        return http.message("POST", PATH, {"channel": channel})

    def perform(self, http: Connections, message: Message, attempt: Attempt) -> None:
        with http.send(message, within_ms=attempt.within_ms) as reply:
            attempt.accept(reply, 200)
            vetting = known(reply)
        if vetting.get("verdict") not in VERDICTS:
            raise Wrong("no verdict")
        attempt.service_s = vetting["duration_ms"] / 1e3
        attempt.detail["verdict"] = vetting["verdict"]


def read_channels(path: Path) -> list[str]:
    """Raises Unavailable."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(f"the channels' file {path} cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
