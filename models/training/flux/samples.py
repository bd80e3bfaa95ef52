"""Pictures drawn on a schedule, to see what the LoRA has learnt: stock FluxPipeline, PNG files."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.flux.text import TextEmbedding
from models.training.config.schema import Sample, SampleItem, Train
from models.training.dataset.captions import fill
from models.training.storage import full_disk

SAMPLES = "samples"


@dataclass(frozen=True)
class Schedule:
    """At which steps which pictures are drawn."""

    items: tuple[SampleItem, ...]
    """Complete, `[trigger]` replaced."""
    every: int
    start: int
    steps: int
    skip_first: bool
    suffix: str

    def is_due(self, step: int) -> bool:
        """After `step` steps; 0 is before the first. The last step is always due."""
        if not self.items or step < self.start:
            return False
        if step == 0:
            return not self.skip_first
        return step % self.every == 0 or step == self.steps


def schedule_of(sample: Sample, train: Train, trigger: str) -> Schedule:
    """PNG unless `format` is written: lines suffer as JPEG, which is AI-Toolkit's default."""
    filled = [sample.filled(number) for number in range(len(sample.items))]
    items = [item.model_copy(update={"prompt": fill(item.prompt, trigger)}) for item in filled]
    return Schedule(
        items=() if train.disable_sampling else tuple(items),
        every=sample.sample_every,
        start=sample.sample_start_step,
        steps=train.steps,
        skip_first=train.skip_first_sample,
        suffix=sample.format if "format" in sample.model_fields_set else "png",
    )


@torch.no_grad()
def draw(
    pipeline: Any, items: tuple[SampleItem, ...], embeddings: Mapping[str, TextEmbedding]
) -> Iterator[Any]:
    """A PIL image for each, with the weights as they are; the VAE comes to the device meanwhile."""
    device, dtype = pipeline.transformer.device, pipeline.transformer.dtype
    pipeline.vae.to(device)
    for item in items:
        embedding = embeddings[item.prompt]
        latents_1LC = pipeline(
            prompt_embeds=embedding.tokens_TE[None].to(device, dtype),
            pooled_prompt_embeds=embedding.pooled_P[None].to(device, dtype),
            width=item.width,
            height=item.height,
            num_inference_steps=item.sample_steps,
            guidance_scale=item.guidance_scale,
            joint_attention_kwargs={"scale": item.network_multiplier},
            generator=torch.Generator().manual_seed(item.seed or 0),
            output_type="latent",
        ).images
        yield _decoded(pipeline, latents_1LC, item)
    pipeline.vae.to("cpu")


def _decoded(pipeline: Any, latents_1LC: torch.Tensor, item: SampleItem) -> Any:
    """In float32, whatever the transformer is in."""
    vae, config = pipeline.vae, pipeline.vae.config
    latents = pipeline._unpack_latents(
        latents_1LC.float(), item.height, item.width, pipeline.vae_scale_factor
    )
    pixels = vae.decode(latents / config.scaling_factor + config.shift_factor).sample
    return pipeline.image_processor.postprocess(pixels)[0]


def save_samples(folder: Path, step: int, suffix: str, images: Iterable[Any]) -> list[Path]:
    """`samples/000000250_0.png` and so on. Raises OutOfDisk."""
    files = []
    for number, image in enumerate(images):
        file = folder / SAMPLES / f"{step:09d}_{number}.{suffix}"
        with full_disk(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
        files.append(file)
    return files
