"""Every kind of traffic that a mix may name."""

from __future__ import annotations

from loadtests.traffic.base import TrafficClass
from loadtests.traffic.chat import Chats
from loadtests.traffic.evaluation import Evaluations
from loadtests.traffic.images import Images
from loadtests.traffic.probe import Probes
from loadtests.traffic.storyboards import Storyboards
from loadtests.traffic.vetting import Vettings

TRAFFIC: dict[str, type[TrafficClass]] = {
    "evaluation": Evaluations,
    "vetting": Vettings,
    "images": Images,
    "storyboards": Storyboards,
    "chat": Chats,
    "probe": Probes,
}
