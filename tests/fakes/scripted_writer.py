"""A language model that writes storyboards by rule: the same proposal, the same scenes.

What it writes depends on what it is asked, never on when or how often: runs can be compared.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.scripted_llm import CLEAN, Act, ScriptedLLM

WHO = ("a man", "a woman", "a boy", "a girl", "a person")
PLACES = ("a kitchen", "a room", "a park", "a street", "an office")
DOING = ("standing", "walking", "sitting", "pointing", "waving", "talking", "holding")
SHOTS = ("wide shot", "medium shot", "close-up", "extreme close-up", "extreme wide shot")
SCENES_ASKED = re.compile(r"Write exactly (\d+) scenes")
SCENE_ASKED = re.compile(r"Write scene (\d+) with")
OBJECTED = "Its earlier version was not allowed"


@dataclass
class ScriptedWriter(ScriptedLLM):
    """Scenes whose number is in `violent` are over the limit until they are written again; those
    in `hopeless` stay so. `delay_s` is how long a scene takes.
    """

    violent: set[int] = field(default_factory=set)
    hopeless: set[int] = field(default_factory=set)
    delay_s: float = 0.0

    def reset(self) -> None:
        super().reset()
        self.violent, self.hopeless, self.delay_s = set(), set(), 0.0

    def act_for(self, body: dict[str, Any]) -> Act:
        name = body["response_format"]["json_schema"]["name"]
        if name in self.script:
            return super().act_for(body)
        turn = body["messages"][-1]["content"]
        if name == "OutlineAnswer":
            return Act(outline(int(SCENES_ASKED.search(turn)[1])), delay_s=self.delay_s)
        if name == "SceneAnswer":
            return Act(self._scene(turn), delay_s=self.delay_s)
        if name == "DeliberationAnswer":
            level = 4 if "피가 튀는" in turn else 0
            return Act({**CLEAN, "violence": {"passage": 2 if level else 0, "level": level}})
        return super().act_for(body)

    def _scene(self, turn: str) -> dict[str, Any]:
        n = int(SCENE_ASKED.search(turn)[1])
        is_violent = n in self.hopeless or (n in self.violent and OBJECTED not in turn)
        return scene(n, "피가 튀는" if is_violent else "조용한")


def outline(scenes: int) -> dict[str, Any]:
    return {
        "cast": [{"name": "민지", "look": WHO[1]}, {"name": "준호", "look": WHO[0]}],
        "settings": [{"name": "베란다", "look": PLACES[2]}, {"name": "부엌", "look": PLACES[0]}],
        "scenes": [
            {
                "happens": f"{n}번째 장면이 펼쳐진다.",
                "who": n % 3,
                "where": 1 + n % 2,
                "weight": n % 10 + 1,
            }
            for n in range(1, scenes + 1)
        ],
    }


def _beat(n: int) -> dict[str, Any]:
    happens = f"{n}번째 장면이 펼쳐진다."
    return {"happens": happens, "who": n % 3, "where": 1 + n % 2, "weight": n % 10 + 1}


def scene(n: int, how: str = "조용한") -> dict[str, Any]:
    return {
        "action": f"{how} {n}번째 장면: 화분에 물을 준다.",
        "dialogue": f"{n}번째 대사",
        "shot": SHOTS[n % len(SHOTS)],
        "angle": ("eye level", "high angle", "low angle")[n % 3],
        "time": ("day", "night")[n % 2],
        "doing": DOING[n % len(DOING)],
        "thing": "a cup" if n % 2 else "",
    }
