"""What is learnt: every picture in its bucket, as latents that are encoded once.

An item is one picture at one resolution, perhaps mirrored; AI-Toolkit's `num_repeats`, `flip_x`,
`flip_y` and lists of resolutions make several items of a file. Latents are the middle of the VAE's
distribution, not a sample of it, so that a run can be repeated. A latent on the disk is named by
what it depends on (picture, bucket, mirroring, VAE), so nothing stale is ever read.

Shapes: c latent channels, h x w latent pixels, L image tokens.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from models.training.config.schema import Dataset, Process
from models.training.dataset.buckets import Bucket, bucket_for, fit
from models.training.dataset.folder import PICTURE_SUFFIXES, Example, file_hash, read_examples
from models.training.errors import ConfigRefused, DatasetUnusable
from models.training.flux.captions import CaptionRules
from models.training.storage import write_whole

LATENT_CACHE = "_latent_cache"
"""AI-Toolkit's folder, beside the pictures. Its own files have other names and are left alone."""


@dataclass(frozen=True)
class Item:
    """One picture at one size, and how its data set wants it used."""

    example: Example
    bucket: Bucket
    rules: CaptionRules
    loss_multiplier: float
    mirror: tuple[bool, bool]
    """Left and right, top and bottom."""
    mask: Path | None
    mask_min_value: float
    invert_mask: bool
    cache_folder: Path | None
    """Where its latent lies on the disk."""
    is_kept: bool
    """Whether its latent is encoded once."""


def read_items(process: Process, patch_px: int) -> list[Item]:
    """Every item of every data set, in the configuration's order; `patch_px` is a token's side.

    Raises DatasetUnusable, and ConfigRefused for a data set without a folder.
    """
    return [
        item
        for number, dataset in enumerate(process.datasets)
        for item in _items_of(dataset, f"datasets[{number}]", process.trigger_word, patch_px)
    ]


def _items_of(dataset: Dataset, path: str, trigger: str | None, patch_px: int) -> Iterator[Item]:
    if not dataset.folder or dataset.folder.endswith(".json"):
        raise ConfigRefused(f"{path}.folder_path is {dataset.folder}: name a folder of pictures")
    if dataset.bucket_tolerance % patch_px:
        raise ConfigRefused(
            f"{path}.bucket_tolerance is {dataset.bucket_tolerance}: this model takes multiples of "
            f"{patch_px}"
        )
    folder = Path(dataset.folder).expanduser()
    rules = CaptionRules(
        trigger=dataset.trigger_word or trigger or "",
        dropout_rate=dataset.caption_dropout_rate,
        token_dropout_rate=dataset.token_dropout_rate,
        shuffle_tokens=dataset.shuffle_tokens,
        keep_tokens=dataset.keep_tokens,
    )
    examples = read_examples(
        folder, caption_ext=dataset.caption_ext, default_caption=dataset.default_caption
    )
    masks = [_mask_of(example.picture, folder, dataset.mask_path) for example in examples]
    sizes = [_size_of(example.picture) for example in examples]
    for resolution in dataset.resolutions:
        for example, size, mask in zip(examples, sizes, masks, strict=True):
            for mirror in _mirrors(dataset):
                yield from [
                    Item(
                        example=example,
                        bucket=bucket_for(
                            *size, resolution=resolution, multiple=dataset.bucket_tolerance
                        ),
                        rules=rules,
                        loss_multiplier=dataset.loss_multiplier,
                        mirror=mirror,
                        mask=mask,
                        mask_min_value=dataset.mask_min_value,
                        invert_mask=dataset.invert_mask,
                        cache_folder=_cache_folder(dataset, example),
                        is_kept=dataset.cache_latents or dataset.cache_latents_to_disk,
                    )
                ] * dataset.num_repeats


def _cache_folder(dataset: Dataset, example: Example) -> Path | None:
    return example.picture.parent / LATENT_CACHE if dataset.cache_latents_to_disk else None


def _mirrors(dataset: Dataset) -> list[tuple[bool, bool]]:
    """Each picture as it is and, as in AI-Toolkit, once more for every kind of mirroring."""
    across = (False, True) if dataset.flip_x else (False,)
    down = (False, True) if dataset.flip_y else (False,)
    return [(x, y) for y in down for x in across]


def _mask_of(picture: Path, folder: Path, masks: str | None) -> Path | None:
    """The picture of the same path and stem below the folder of masks."""
    if masks is None:
        return None
    place = Path(masks).expanduser() / picture.relative_to(folder)
    for suffix in PICTURE_SUFFIXES:
        if (file := place.with_suffix(suffix)).is_file():
            return file
    raise DatasetUnusable(f"{picture} has no mask: {place.with_suffix('.png')} is missing")


def _size_of(picture: Path) -> tuple[int, int]:
    """Upright, pixels. Raises DatasetUnusable."""
    try:
        with Image.open(picture) as opened:
            size: tuple[int, int] = ImageOps.exif_transpose(opened).size
    except (OSError, SyntaxError, Image.DecompressionBombError) as broken:
        raise DatasetUnusable(f"{picture} cannot be read: {broken}") from broken
    return size


def open_fitted(picture: Path, bucket: Bucket, mode: str, mirror: tuple[bool, bool]) -> Image.Image:
    """The picture upright in its bucket. Raises DatasetUnusable."""
    try:
        with Image.open(picture) as opened:
            fitted = fit(ImageOps.exif_transpose(opened).convert(mode), bucket)
    except (OSError, SyntaxError, Image.DecompressionBombError) as broken:
        raise DatasetUnusable(f"{picture} cannot be read: {broken}") from broken
    if mirror[0]:
        fitted = ImageOps.mirror(fitted)
    return ImageOps.flip(fitted) if mirror[1] else fitted


class Latents:
    """Latents of items [c, h, w], float32 on the CPU: normalised as the transformer takes them."""

    def __init__(self, vae: Any, vae_digest: str, items: Sequence[Item]) -> None:
        self._vae = vae
        self._vae_digest = vae_digest
        self._items = items
        self._held: dict[Item, Tensor] = {}

    def of(self, number: int) -> Tensor:
        """Item `number`'s: kept, from the disk, or encoded now."""
        item = self._items[number]
        if not item.is_kept:
            return self._encode(item)
        if item not in self._held:
            self._held[item] = self._from_disk(item)
        return self._held[item]

    def _from_disk(self, item: Item) -> Tensor:
        """Encodes and writes what is not there or not whole."""
        if item.cache_folder is None:
            return self._encode(item)
        file = item.cache_folder / f"{self._key(item)}.safetensors"
        try:
            found: Tensor = load(file.read_bytes())["latent"]
        except (FileNotFoundError, SafetensorError, KeyError):
            found = self._encode(item)
            write_whole(file, save({"latent": found}))
        return found

    def _key(self, item: Item) -> str:
        width, height = item.bucket
        picture = file_hash(item.example.picture)
        what = f"{picture} {width}x{height} {item.mirror} {self._vae_digest}"
        return hashlib.sha256(what.encode()).hexdigest()

    @torch.no_grad()
    def _encode(self, item: Item) -> Tensor:
        assert self._vae is not None, "let go only when every latent is held"
        image = open_fitted(item.example.picture, item.bucket, "RGB", item.mirror)
        pixels_1chw = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        config = self._vae.config
        mean = self._vae.encode(pixels_1chw.to(self._vae.device)).latent_dist.mean
        latent: Tensor = (
            ((mean - config.shift_factor) * config.scaling_factor)[0].cpu().contiguous()
        )
        return latent

    def prepare(self, progress: Callable[[int, int], None] = lambda done, total: None) -> bool:
        """Encodes everything that is kept, telling how many are done; then lets the VAE go.

        False when it stays, because not everything is kept.
        """
        kept = [number for number, item in enumerate(self._items) if item.is_kept]
        for done, number in enumerate(kept):
            progress(done, len(kept))
            self.of(number)
        if len(kept) < len(self._items):
            return False
        self._vae = None
        return True


def token_weights(item: Item, columns: int, rows: int) -> Tensor:
    """[L] of mean 1: how much each token counts, by the item's mask; all 1 without one.

    White counts fully and black `mask_min_value`, times the data set's loss_multiplier.
    """
    if item.mask is None:
        return torch.full((rows * columns,), item.loss_multiplier)
    mask = open_fitted(item.mask, item.bucket, "L", item.mirror).resize(
        (columns, rows), Image.Resampling.BOX
    )
    white = torch.from_numpy(np.array(mask)).float().flatten() / 255
    if item.invert_mask:
        white = 1 - white
    counted = item.mask_min_value + (1 - item.mask_min_value) * white
    if not counted.any():
        raise DatasetUnusable(f"{item.mask} is black all over, so nothing of its picture counts")
    return counted / counted.mean() * item.loss_multiplier
