"""A new configuration, every key with a comment that explains it, for one base model.

Values are what usually works for a style on that base; the comments are the table's. Numbers are
written without exponents, so that every YAML reader sees numbers. Knows no disk but the catalog.
"""

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from models.catalog import HubSource, ImageRow, load_catalog
from models.sketch import scene
from models.training.config.documents import written
from models.training.config.keys import KEYS, Key, Language
from models.training.config.korean import with_particles
from models.training.config.rules.structure import decimal

SCHNELL_ADAPTER = "ostris/FLUX.1-schnell-training-adapter"
DEFAULT_NAME = "my-style"
DEFAULT_TRIGGER = "st0ryb0ard"
DEFAULT_FOLDER = "data/pictures"

_WIDTH = 96
_HEADS: dict[Language, str] = {
    "en": "AI-Toolkit configuration of a LoRA for {model}. Check it: "
    "python -m models.training config check FILE",
    "ko": "{model}에 쓸 LoRA의 AI-Toolkit 학습 설정입니다. 검사하려면 "
    "python -m models.training config check FILE --lang ko",
}
_SCENES = (
    "[trigger] black and white color illustration, a woman pointing in an office, medium shot",
    "[trigger] black and white color illustration, two boys running in a park, wide shot",
    "[trigger] black and white color illustration, a man sitting in a kitchen, close-up, night",
    "black and white color illustration, a girl standing in a street, wide shot",
)
"""The storyboard's grammar. The last has no trigger: it shows what leaks."""

Tree = dict[str, object]


@dataclass(frozen=True)
class Choices:
    """What a person says of a new configuration. None: the usual."""

    model: str
    name: str = DEFAULT_NAME
    trigger: str | None = None
    folder: str = DEFAULT_FOLDER


def new_config(choices: Choices, language: Language) -> str:
    """The file's text, YAML. `model` is a catalog row, a hub id or a folder.

    Raises UnknownModel for anything else.
    """
    catalog = load_catalog()
    catalog.find_image(choices.model)
    rows = {row.name: row for row in catalog.images}
    by_id = {row.source.id: row for row in catalog.images if isinstance(row.source, HubSource)}
    row = rows.get(choices.model) or by_id.get(choices.model)
    tree = _tree(choices, row)
    head = _comment(_HEADS[language].format(model=choices.model), 0)
    return "\n".join(["---", *head, *_lines(tree, "", 0, language)]) + "\n"


def _tree(choices: Choices, row: ImageRow | None) -> Tree:
    is_small = row is not None and row.parameters_b < 1
    process: Tree = {
        "type": "sd_trainer",
        "training_folder": "output",
        "device": "cpu" if is_small else "cuda:0",
        "trigger_word": choices.trigger or _trigger(row),
        "training_seed": 42,
        "network": {"type": "lora", "linear": 16, "linear_alpha": 16},
        "save": {
            "dtype": "float16",
            "save_every": 100 if is_small else 250,
            "max_step_saves_to_keep": 8,
            "push_to_hub": False,
        },
        "datasets": [_dataset(choices, row)],
        "train": _train(is_small),
        "model": _model(choices, row),
        "sample": _sample(row, is_small),
    }
    meta: Tree = {"name": "[name]", "version": "1.0"}
    return {
        "job": "extension",
        "config": {"name": choices.name, "process": [process]},
        "meta": meta,
    }


def _trigger(row: ImageRow | None) -> str:
    """A base with a vocabulary has words of its own for styles."""
    is_limited = row is not None and row.vocabulary is not None
    return scene.TRIGGERS[1] if is_limited else DEFAULT_TRIGGER


def _dataset(choices: Choices, row: ImageRow | None) -> Tree:
    side = math.ceil(math.sqrt(row.width * row.height)) if row else 1024
    return {
        "folder_path": choices.folder,
        "caption_ext": "txt",
        "caption_dropout_rate": 0.05,
        "shuffle_tokens": False,
        "cache_latents_to_disk": True,
        "resolution": [512, 768, 1024] if side == 1024 else [side],
    }


def _train(is_small: bool) -> Tree:
    return {
        "batch_size": 4 if is_small else 1,
        "steps": 400 if is_small else 2000,
        "gradient_accumulation": 1,
        "train_unet": True,
        "train_text_encoder": False,
        "gradient_checkpointing": not is_small,
        "noise_scheduler": "flowmatch",
        "timestep_type": "sigmoid",
        "optimizer": "adamw" if is_small else "adamw8bit",
        "lr": 0.002 if is_small else 0.0001,
        "lr_scheduler": "constant",
        "max_grad_norm": 1.0,
        "ema_config": {"use_ema": True, "ema_decay": 0.98 if is_small else 0.99},
        "dtype": "fp32" if is_small else "bf16",
        "skip_first_sample": False,
        "disable_sampling": False,
    }


def _model(choices: Choices, row: ImageRow | None) -> Tree:
    is_hub = row is not None and isinstance(row.source, HubSource)
    name = row.source.id if row and isinstance(row.source, HubSource) else choices.model
    model: Tree = {"name_or_path": name, "is_flux": True}
    if "schnell" in name.lower():
        model["assistant_lora_path"] = SCHNELL_ADAPTER
    return model | {"quantize": is_hub or row is None, "low_vram": False}


def _sample(row: ImageRow | None, is_small: bool) -> Tree:
    is_distilled = row is not None and row.guidance is None
    every = 100 if is_small else 250
    return {
        "sampler": "flowmatch",
        "sample_every": every,
        "width": row.width if row else 1024,
        "height": row.height if row else 1024,
        "prompts": list(_SCENES),
        "neg": "",
        "seed": 42,
        "walk_seed": True,
        "guidance_scale": 1 if is_distilled else (row.guidance if row else 3.5),
        "sample_steps": row.steps if row else 28,
    }


def _lines(tree: Tree, section: str, depth: int, language: Language) -> Iterator[str]:
    indent = "  " * depth
    for word, value in tree.items():
        name = f"{section}.{word}" if section else word
        key = KEYS.get(name)
        if key is not None:
            yield from _comment(key.does[language], depth)
            yield from _comment(f"{facts(key, language)} {key.first[language]}", depth)
        inner = "" if name == "config.process" else name
        if isinstance(value, dict):
            yield f"{indent}{word}:"
            yield from _lines(value, inner, depth + 1, language)
        elif _is_list_of_sections(value):
            yield f"{indent}{word}:"
            yield from _items(value, inner, depth + 1, language)
        elif isinstance(value, list) and isinstance(value[0], str):
            yield f"{indent}{word}:"
            yield from (f"{indent}  - {_scalar(item)}" for item in value)
        else:
            yield f"{indent}{word}: {_scalar(value)}"


def _is_list_of_sections(value: object) -> bool:
    return isinstance(value, list) and isinstance(value[0], dict)


def _items(value: object, section: str, depth: int, language: Language) -> Iterator[str]:
    """A dash on a line of its own, so that each key keeps its comment above it."""
    assert isinstance(value, list)
    for item in value:
        yield f"{'  ' * depth}-"
        yield from _lines(item, section, depth + 1, language)


def _scalar(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    assert value is None or isinstance(value, str | int | float)
    return written(value)


def _comment(text: str, depth: int) -> list[str]:
    indent = "  " * depth
    return [f"{indent}# {line}" for line in wrapped(text, _WIDTH - len(indent) - 2)]


def facts(key: Key, language: Language) -> str:
    """Default, choices, limits and usual numbers: `Default 4; 1 or more; usually 2 to 128.`"""
    if key.kind.startswith("section"):
        return ""
    found = [*_default(key, language), *_range(key, language), *_usual(key, language)]
    text = ("; " if language == "en" else ", ").join(found)
    return with_particles(f"{text[:1].upper()}{text[1:]}.") if text else ""


def _default(key: Key, language: Language) -> Iterator[str]:
    is_korean = language == "ko"
    if key.is_required:
        yield "꼭 적어야 합니다" if is_korean else "required"
    elif key.default in (None, "", ()):
        yield "기본값 없음" if is_korean else "default none"
    else:
        yield f"{'기본값' if is_korean else 'default'} {_shown(key.default)}"


def _range(key: Key, language: Language) -> Iterator[str]:
    is_korean = language == "ko"
    if key.choices:
        yield f"{'선택지' if is_korean else 'one of'} {', '.join(key.choices)}"
    low, high = key.minimum, key.maximum
    if low is not None and high is not None:
        middle = "~" if is_korean else " to "
        yield f"{'범위 ' if is_korean else ''}{_shown(low)}{middle}{_shown(high)}"
    elif low is not None and key.kind in ("int", "float") and key.is_open_below:
        yield f"{_shown(low)} 초과" if is_korean else f"above {_shown(low)}"
    elif low is not None and key.kind in ("int", "float"):
        yield f"{_shown(low)} 이상" if is_korean else f"{_shown(low)} or more"


def _usual(key: Key, language: Language) -> Iterator[str]:
    if key.advised is not None:
        low, high = (_shown(number) for number in key.advised)
        yield f"보통 {low}~{high}" if language == "ko" else f"usually {low} to {high}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return decimal(value) if isinstance(value, float) else str(value)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken at spaces; Hangul is two columns wide."""
    lines: list[str] = []
    for word in text.split():
        if lines and columns(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def columns(text: str) -> int:
    """What a terminal takes for it."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
