"""Labelled proposals on disk: `proposals/<split>.<language>.jsonl`, one JSON object a line.

Labels have the shapes of the evaluation service's answers. Whether a cited passage exists, the
service says when it writes the chats: how a proposal is cut into passages is its business.
Pure but for reading files.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.training.errors import DatasetUnusable

FOLDER = Path(__file__).with_name("proposals")
Split = Literal["train", "development", "test"]
SPLITS: tuple[Split, ...] = ("train", "development", "test")
LANGUAGES = ("ko", "en")

_Passage = Annotated[int, Field(ge=0, le=60)]
_Reason = Annotated[str, Field(min_length=1, max_length=100)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Points30(_Strict):
    reason: _Reason
    passage: _Passage
    score: int = Field(ge=0, le=30)


class _Points40(_Strict):
    reason: _Reason
    passage: _Passage
    score: int = Field(ge=0, le=40)


class ContentLabel(_Strict):
    message: _Points30
    target: _Points30
    relevance: _Points40

    @property
    def total(self) -> int:
        """0 to 100."""
        return self.message.score + self.target.score + self.relevance.score


class _Claim(_Strict):
    passage: _Passage
    level: int = Field(ge=0, le=4)


class DeliberationLabel(_Strict):
    theme: _Claim
    sexuality: _Claim
    violence: _Claim
    horror: _Claim
    swearing: _Claim
    drugs: _Claim
    imitation: _Claim

    @property
    def levels(self) -> dict[str, int]:
        return {name: getattr(self, name).level for name in type(self).model_fields}

    @property
    def grade(self) -> int:
        """The highest level, 0 to 4."""
        return max(self.levels.values())


class Labelled(_Strict):
    """One proposal and what a careful judge would answer. `topic` decides the split."""

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    topic: str = Field(min_length=1)
    language: Literal["ko", "en"]
    media_type: Literal["long_form", "short_form"]
    category: str = Field(min_length=1)
    title: str = Field(min_length=1, max_length=100)
    content: str = Field(min_length=1, max_length=2500)
    content_label: ContentLabel
    deliberation_label: DeliberationLabel


def read_labelled(file: Path) -> list[Labelled]:
    """Raises DatasetUnusable naming the first line that is none; OSError without the file."""
    found = []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        try:
            found.append(Labelled.model_validate_json(line))
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, fault["loc"])) or "line"
            raise DatasetUnusable(f"{file.name}:{number}: {where}: {fault['msg']}") from None
    return found


def read_splits(folder: Path = FOLDER) -> dict[Split, list[Labelled]]:
    """Every split, both languages, in the files' order; a file that is missing counts as empty."""
    return {
        split: [
            labelled
            for language in LANGUAGES
            if (file := folder / f"{split}.{language}.jsonl").exists()
            for labelled in read_labelled(file)
        ]
        for split in SPLITS
    }
