"""The table of keys: what each does, in two languages, joined to the schema's types and defaults.

Types, defaults and hard limits are read from `schema`; words, usual numbers and other names from
`keys.toml`. A key that one of the two lacks is an error at import. Names begin at the process:
`train.lr`, `datasets.resolution`; only `job`, `config` and `meta` stand above it.
"""

import difflib
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from models.training.config.documents import KeyPath
from models.training.config.schema import Config, Process, TrainingFile

Language = Literal["ko", "en"]

_TABLE = Path(__file__).with_name("keys.toml")
_REQUIRED = object()
_CLOSE_ENOUGH = 0.72  # "learning_rat" finds "learning_rate", "lora" does not find "flux"

ELSEWHERE: Mapping[str, frozenset[str]] = {
    "": frozenset(
        "embedding adapter decorator guidance slider sqlite_db_path do_lorm lorm_extract_mode "
        "lorm_extract_mode_param".split()
    ),
    "network": frozenset("lorm split_multistage_loras normalize".split()),
    "datasets": frozenset(
        "random_triggers random_triggers_max control_transparent_color inpaint_path "
        "full_size_control_images unconditional_path poi use_short_captions "
        "cache_clip_vision_to_disk standardize_images guidance_type clip_image_path "
        "clip_image_from_same_folder clip_image_augmentations clip_image_shuffle_augmentations "
        "replacements extra_values replay_transforms num_frames shrink_video_to_frames fps debug "
        "controls fast_image_size do_i2v do_audio auto_frame_count pin_memory".split()
    ),
    "train": frozenset(
        "content_or_style_reg refiner_lr embedding_lr adapter_lr xformers sdp train_refiner "
        "train_turbo show_turbo_outputs learnable_snr_gos weight_jitter merge_network_on_save "
        "free_u adapter_assist_name_or_path adapter_assist_type match_adapter_assist "
        "match_adapter_chance short_and_long_captions short_and_long_captions_encoder_split "
        "switch_boundary_every next_sample_timesteps do_paramiter_swapping "
        "paramiter_swapping_factor max_negative_prompts prompt_saturation_chance".split()
    ),
    "model": frozenset(
        "is_v2 is_v3 is_xl is_pixart is_pixart_sigma is_auraflow is_lumina2 is_ssd is_vega "
        "is_v_pred refiner_name_or_path refiner_start_at latent_space_version use_text_encoder_1 "
        "use_text_encoder_2 experimental_xl text_encoder_bits unet_path unet_sample_size "
        "vae_device te_device quantize_kwargs accuracy_recovery_adapter auto_memory "
        "split_model_other_module_param_count_scale".split()
    ),
    "sample": frozenset(
        "adapter_conditioning_scale refiner_start_at extra_values num_frames fps".split()
    ),
    "sample.samples": frozenset("fps num_frames ctrl_img ctrl_idx".split()),
}
"""Keys that AI-Toolkit knows and a Flux LoRA does not need: read, and passed over on purpose."""


@dataclass(frozen=True)
class Key:
    """One key. `minimum` and `maximum` are hard and None where there is none."""

    name: str
    kind: str
    """bool, int, float, text, list or section."""
    default: object
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    is_open_below: bool
    """`minimum` itself is not allowed."""
    advised: tuple[float, float] | None
    also: tuple[str, ...]
    does: Mapping[Language, str]
    first: Mapping[Language, str]
    """What to change first, or when to."""

    @property
    def is_required(self) -> bool:
        return self.default is _REQUIRED

    @property
    def leaf(self) -> str:
        return self.name.rsplit(".", 1)[-1]

    @property
    def section(self) -> str:
        return self.name.rpartition(".")[0]


def name_of(path: KeyPath) -> str:
    """`train.lr` for config.process[0].train.lr; list positions drop out."""
    words = [step for step in path if isinstance(step, str)]
    if words[:2] == ["config", "process"] and len(words) > 2:
        words = words[2:]
    if words[:1] == ["first_sample"]:
        words = ["sample", *words[1:]] if len(words) > 1 else words
    return ".".join(words)


def find(wanted: str) -> list[Key]:
    """The keys that `wanted` means: a whole name, a full path, or the end of one or several."""
    name = wanted.replace("[0]", "").replace("[]", "").removeprefix("config.process.")
    if name in KEYS:
        return [KEYS[name]]
    ends = [key for key in KEYS.values() if key.name.endswith(f".{name}")]
    return ends or [key for key in KEYS.values() if name in key.also]


def nearest(wrong: str, section: str | None = None) -> list[Key]:
    """Keys that `wrong` may have been meant for, best first, by their names and other names.

    Those of `section` first where it is given; then the whole table.
    """
    leaf = wrong.rsplit(".", 1)[-1].lower()
    inside = [key for key in KEYS.values() if section is not None and key.section == section]
    return _alike(leaf, inside) or _alike(leaf, list(KEYS.values()))


def _alike(leaf: str, keys: list[Key]) -> list[Key]:
    spelt: dict[str, list[Key]] = {}
    for key in keys:
        for name in (key.leaf, *key.also):
            spelt.setdefault(name, []).append(key)
    close = difflib.get_close_matches(leaf, spelt, n=3, cutoff=_CLOSE_ENOUGH)
    return [key for name in close for key in sorted(spelt[name], key=_depth)]


def _depth(key: Key) -> int:
    return key.name.count(".")


def without_elsewhere(plain: Any, section: str = "", *, is_process: bool = False) -> Any:
    """The tree without the keys of `ELSEWHERE`."""
    if isinstance(plain, tuple):
        return tuple(without_elsewhere(item, section, is_process=is_process) for item in plain)
    if not isinstance(plain, dict):
        return plain
    if not is_process and section == "":
        return {key: _below_top(key, value) for key, value in plain.items()}
    passed_over = ELSEWHERE.get(section, frozenset())
    return {
        key: without_elsewhere(value, _inner(section, key), is_process=True)
        for key, value in plain.items()
        if key not in passed_over
    }


def _below_top(key: str, value: Any) -> Any:
    if key != "config" or not isinstance(value, dict) or "process" not in value:
        return value
    return value | {"process": without_elsewhere(value["process"], is_process=True)}


def _inner(section: str, key: str) -> str:
    name = f"{section}.{key}" if section else key
    return "sample" if name == "first_sample" else name


def _fields(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        if name == "first_sample":
            continue
        for inner in _sections(field.annotation):
            yield from _fields(inner, f"{prefix}{name}.")


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The section that a field holds, alone or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for argument in typing.get_args(annotation):
        found += _sections(argument)
    return found


def _all_fields() -> Iterator[tuple[str, FieldInfo]]:
    top = TrainingFile.model_fields
    yield from (("job", top["job"]), ("config", top["config"]), ("meta", top["meta"]))
    for name in ("name", "process"):
        yield f"config.{name}", Config.model_fields[name]
    yield from _fields(Process, "")


def _key(name: str, field: FieldInfo, entry: Mapping[str, Any]) -> Key:
    facts = _Facts()
    facts.take(field.annotation, field.metadata)
    advised = entry.get("advised")
    return Key(
        name=name,
        kind=facts.kind,
        default=_REQUIRED if field.is_required() else field.get_default(call_default_factory=True),
        choices=facts.choices,
        minimum=facts.minimum,
        maximum=facts.maximum,
        is_open_below=facts.is_open_below,
        advised=(advised[0], advised[1]) if advised else None,
        also=tuple(entry.get("also", ())),
        does={"en": entry["en"][0], "ko": entry["ko"][0]},
        first={"en": entry["en"][1], "ko": entry["ko"][1]},
    )


class _Facts:
    """What an annotation says: the kind of value, choices, limits."""

    _KINDS: typing.ClassVar = {bool: "bool", int: "int", float: "float", str: "text"}

    def __init__(self) -> None:
        self.kind = "text"
        self.choices: tuple[str, ...] = ()
        self.minimum: float | None = None
        self.maximum: float | None = None
        self.is_open_below = False
        self._is_known = False

    def take(self, annotation: Any, metadata: list[Any]) -> None:
        for limit in metadata:
            for one in (limit, *getattr(limit, "metadata", ())):
                self._limit(one)
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Annotated:
            self.take(arguments[0], list(arguments[1:]))
        elif origin is Literal:
            self.choices = tuple(arguments)
            self._name("text")
        elif origin in (typing.Union, types.UnionType):
            for argument in arguments:
                self.take(argument, [])
        elif origin is tuple:
            self._name("section list" if _sections(annotation) else "list")
            self.take(arguments[0], [])
        elif origin is dict or _sections(annotation):
            self._name("section")
        elif annotation in self._KINDS:
            self._name(self._KINDS[annotation])

    def _name(self, kind: str) -> None:
        if not self._is_known:
            self.kind, self._is_known = kind, True

    def _limit(self, limit: Any) -> None:
        for name in ("ge", "gt"):
            if (value := getattr(limit, name, None)) is not None and self.minimum is None:
                self.minimum = value
                self.is_open_below = name == "gt"
        for name in ("le", "lt"):
            if (value := getattr(limit, name, None)) is not None and self.maximum is None:
                self.maximum = value


def _load() -> dict[str, Key]:
    entries = tomllib.loads(_TABLE.read_text(encoding="utf-8"))
    fields = dict(_all_fields())
    if wrong := set(entries) ^ set(fields):
        raise RuntimeError(f"keys.toml and schema.py differ in: {', '.join(sorted(wrong))}")
    return {name: _key(name, field, entries[name]) for name, field in fields.items()}


KEYS: Mapping[str, Key] = types.MappingProxyType(_load())
"""By name, in the schema's order."""
