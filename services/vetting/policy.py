"""The rules that turn evidence into a verdict. Pure: no model, no network, no clock.

RULES is the table; the gravest verdict of the rules that apply is the channel's, and `pass` is what
is left when none does. Levels are KMRB's: 0 all ages, 1 12+, 2 15+, 3 19+, 4 restricted.

A rule that fails a channel rests on several places: one finding can be a model's mistake, or the
channel's one mistake, and is for a person to judge. It rests on recent ones: what the channel did
in the year before its newest upload. And on sure ones: what two looks disagree about, or what was
badly legible, is for a person. What is missing is never in a channel's favour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from services.vetting.schemas import HARMS, Finding, Unseen, Verdict

MODERATE, STRONG, GRAVE = 2, 3, 4
# A finding at one of these levels gets a second look: one level more or less changes what it
# leads to, and even 4 leads to nothing by itself.
BORDERLINE = frozenset({MODERATE, STRONG})
SECOND_LOOK_SEED = 2
SECOND_LOOK_TEMPERATURE = 0.7
# News that quotes hatred, a pharmacist who warns of a drug: 15+ at most.
REPORTED_AT_MOST = MODERATE
RECENT = timedelta(days=365)
# Two places with restricted content are a practice.
GRAVE_PLACES = 2
# Adult content, or an age restriction by YouTube, in most recent videos: the channel's subject. Two
# of three would be most, and too few to say so.
SUSTAINED_VIDEOS = 3
MOST = 0.5
# One video in fifty that is for 15 and over says nothing; one in five does.
MODERATE_SHARE = 0.2
SURE = 0.7
# Below, letters in a thumbnail are guessed rather than read.
READABLE = 0.5
# As the first Joing backend: fewer say nothing about a channel.
FEW_UPLOADS = 4


class Dated(NamedTuple):
    """A video that was looked at."""

    id: str
    published_at: datetime


@dataclass(frozen=True)
class Case:
    """All that is known about a channel. `disagreements` are the units (as in Unseen.what) that
    two looks disagree about. `may_lack_vision` is the operator's word that pictures may go unseen.
    """

    videos: Sequence[Dated]
    findings: Sequence[Finding]
    not_looked_at: Sequence[Unseen] = ()
    disagreements: Sequence[str] = ()
    may_lack_vision: bool = False

    def recent(self) -> set[str]:
        """Ids of the videos of the year before the newest upload."""
        if not self.videos:
            return set()
        newest = max(video.published_at for video in self.videos)
        return {video.id for video in self.videos if newest - video.published_at <= RECENT}

    def harms(self, level: int) -> list[Finding]:
        return [f for f in self.findings if f.category in HARMS and f.level >= level]

    def signals(self, category: str) -> list[Finding]:
        return [f for f in self.findings if f.category == category]


Values = Mapping[str, object]
"""What a rule's sentence (texts.toml) is filled with."""


@dataclass(frozen=True)
class Rule:
    """`applies` gives None, or the values of the rule's sentence."""

    code: str
    verdict: Verdict
    applies: Callable[[Case], Values | None]


@dataclass(frozen=True)
class Applied:
    code: str
    verdict: Verdict
    values: Values = field(default_factory=dict)


def decide(case: Case) -> tuple[Verdict, list[Applied]]:
    """The verdict, and the rules that it rests on; one that says so when none applies."""
    found = [(rule, rule.applies(case)) for rule in RULES]
    applied = [
        Applied(rule.code, rule.verdict, values) for rule, values in found if values is not None
    ]
    if not applied:
        applied = [Applied("nothing_found", "pass", {"videos": len(case.videos)})]
    return applied[0].verdict, applied


def is_borderline(levels: Iterable[int]) -> bool:
    return any(level in BORDERLINE for level in levels)


def _is_grave(case: Case) -> Values | None:
    recent = case.recent()
    sure = [f for f in case.harms(GRAVE) if f.confidence >= SURE]
    places = {f.video_id for f in sure if f.video_id is None or f.video_id in recent}
    if len(places) < GRAVE_PLACES:
        return None
    return {"places": len(places), "categories": _named(sure)}


def _is_sustained(case: Case) -> Values | None:
    recent = case.recent()
    sure = [f for f in case.harms(STRONG) if f.confidence >= SURE]
    for harm in HARMS:
        videos = {f.video_id for f in sure if f.category == harm} & recent
        if _are_most(videos, recent):
            return {"videos": len(videos), "of": len(recent), "category": harm}
    return None


def _is_mostly_age_restricted(case: Case) -> Values | None:
    recent = case.recent()
    videos = {f.video_id for f in case.signals("age_restricted")} & recent
    return {"videos": len(videos), "of": len(recent)} if _are_most(videos, recent) else None


def _is_strong(case: Case) -> Values | None:
    found = case.harms(STRONG)
    return {"findings": len(found), "categories": _named(found)} if found else None


def _is_moderate(case: Case) -> Values | None:
    found = case.harms(MODERATE) + [
        f for f in case.signals("content_rating") if f.level >= MODERATE
    ]
    videos = {f.video_id for f in found if f.video_id is not None}
    is_own = any(f.video_id is None for f in found)
    if not is_own and (not videos or len(videos) < MODERATE_SHARE * len(case.videos)):
        return None
    return {"places": len(videos) + is_own, "of": len(case.videos), "categories": _named(found)}


def _has_age_restricted(case: Case) -> Values | None:
    found = case.signals("age_restricted")
    return {"videos": len(found)} if found else None


def _has_adult_ratings(case: Case) -> Values | None:
    found = {f.video_id for f in case.signals("content_rating") if f.level >= STRONG}
    return {"videos": len(found)} if found else None


def _is_made_for_kids(case: Case) -> Values | None:
    found = case.signals("made_for_kids")
    is_most = len(found) > MOST * len(case.videos)
    return {} if found and (is_most or any(f.video_id is None for f in found)) else None


def _is_mostly_synthetic(case: Case) -> Values | None:
    videos = len(case.signals("synthetic_media"))
    is_most = videos > MOST * len(case.videos)
    return {"videos": videos, "of": len(case.videos)} if is_most else None


def _has_few_uploads(case: Case) -> Values | None:
    return {"needed": FEW_UPLOADS} if case.signals("few_uploads") else None


def _is_disputed(case: Case) -> Values | None:
    return {"places": len(case.disagreements)} if case.disagreements else None


def _is_incomplete(case: Case) -> Values | None:
    missing = [unseen for unseen in case.not_looked_at if not is_blind(unseen)]
    return {"places": len(missing)} if missing else None


def _is_unseeing(case: Case) -> Values | None:
    is_unseeing = any(map(is_blind, case.not_looked_at))
    return {} if is_unseeing and not case.may_lack_vision else None


def is_blind(unseen: Unseen) -> bool:
    """True when this says that there is nothing that can see pictures."""
    return unseen.why == "no_vision_model"


def _are_most(videos: set[str | None], recent: set[str]) -> bool:
    return len(videos) >= SUSTAINED_VIDEOS and len(videos) > MOST * len(recent)


def _named(findings: Iterable[Finding]) -> list[str]:
    """Categories, the gravest first, each once."""
    ordered = sorted(findings, key=lambda f: -f.level)
    return list(dict.fromkeys(f.category for f in ordered))


RULES: tuple[Rule, ...] = (
    # Restricted content (4) at two places of the last year: a practice.
    Rule("grave", "fail", _is_grave),
    # One kind of adult content (3 or 4) in three or more videos, and most, of the last year.
    Rule("sustained", "fail", _is_sustained),
    # YouTube itself restricts most of the last year's videos, three at least.
    Rule("mostly_age_restricted", "fail", _is_mostly_age_restricted),
    # Any adult content, old or new, sure or not, that was not enough for a fail.
    Rule("strong", "review", _is_strong),
    # Content for 15 and over in a fifth of the videos, or on the channel's own page.
    Rule("moderate", "review", _is_moderate),
    # YouTube restricts a video: its reason is not told, so a person looks.
    Rule("age_restricted", "review", _has_age_restricted),
    # A rating body says adults only; the video may be a licensed film.
    Rule("rated_for_adults", "review", _has_adult_ratings),
    # Adverts and data about children are bound by law (COPPA; in Korea the PIPA).
    Rule("made_for_kids", "review", _is_made_for_kids),
    # A partner must know when most faces and voices are generated.
    Rule("mostly_synthetic", "review", _is_mostly_synthetic),
    Rule("few_uploads", "review", _has_few_uploads),
    # The model came to another level the second time.
    Rule("looks_disagree", "review", _is_disputed),
    # What could not be looked at might be anything.
    Rule("not_looked_at", "review", _is_incomplete),
    # Nothing here can see a picture, and the operator did not say that this is acceptable.
    Rule("no_vision_model", "review", _is_unseeing),
)

# Values of YouTube's contentDetails.contentRating that come near a level of ours. Other values
# are of bodies whose grades we have not mapped: UNKNOWN_RATING, which asks for a person's look
# where they are many. Source: YouTube Data API, videos resource, contentRating.
RATINGS: Mapping[str, int] = {
    "kmrbAll": 0, "kmrb12plus": 1, "kmrb15plus": 2, "kmrbTeenr": 3, "kmrbR": 4,
    "mpaaG": 0, "mpaaPg": 1, "mpaaPg13": 1, "mpaaR": 3, "mpaaNc17": 3, "mpaaX": 4,
    "tvpgY": 0, "tvpgY7": 0, "tvpgY7Fv": 0, "tvpgG": 0, "tvpgPg": 1, "pg14": 2, "tvpgMa": 3,
    "bbfcU": 0, "bbfcPg": 1, "bbfc12": 1, "bbfc12a": 1, "bbfc15": 2, "bbfc18": 3, "bbfcR18": 4,
    "fsk0": 0, "fsk6": 0, "fsk12": 1, "fsk16": 2, "fsk18": 3,
    "eirinG": 0, "eirinPg12": 1, "eirinR15plus": 2, "eirinR18plus": 3,
    "acbG": 0, "acbE": 0, "acbC": 0, "acbP": 0, "acbPg": 1, "acbM": 2, "acbMa15plus": 2,
    "acbR18plus": 3,
}  # fmt: skip
UNKNOWN_RATING = MODERATE


def rating_level(value: str) -> int:
    """The level of one body's rating. A missing rating says nothing: 0."""
    if value.endswith(("Unrated", "Exempt", "Unspecified")):
        return 0
    return RATINGS.get(value, UNKNOWN_RATING)


def level_of(level: int, *, is_reported: bool) -> int:
    return min(level, REPORTED_AT_MOST) if is_reported else level
