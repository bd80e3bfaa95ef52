"""Trains the sketch model from nothing: `python -m models.sketch.train all`.

Each stage has a verb, reads what the stage before left in the state folder, checkpoints once a
minute and goes on from its checkpoint. A stage ends when its minutes or its steps are spent. The
style LoRAs are trained as any other: `make loras`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import diffusers
import torch
import transformers
from diffusers import AutoencoderKL
from rich.console import Console

from models.sketch import flow, nets, vae
from models.sketch.distil import DistilTask
from models.sketch.flux import FluxTask
from models.sketch.loop import Budget, train
from models.sketch.scene import Aspect
from models.sketch.styles import STYLES

WEIGHTS = Path(__file__).with_name("weights")
DEFAULT_STATE = Path(".run/sketch")
MINUTES = {"vae": 17.5, "flux": 63.0, "distil": 12.0}
"""On two cores."""
STEPS = {"vae": 20_000, "flux": 40_000, "distil": 4_000}
"""More than the minutes allow on a CPU: a bound for faster machines."""
VAE_PANELS, FLUX_PANELS = 4_800, 12_000
_FIRST_SEED: dict[Aspect, int] = {"16:9": 0, "9:16": 1_000_000}
_CHECKPOINTS_PER_EXPORT = 5


@dataclass(frozen=True)
class Workplace:
    """Where stages read and write, and on which device they run."""

    state: Path
    out: Path
    device: str
    minutes: float | None

    def budget(self, stage: str) -> Budget:
        return Budget(STEPS[stage], self.minutes or MINUTES[stage])

    def checkpoint(self, stage: str) -> Path:
        return self.state / f"{stage}.pt"

    @property
    def vae_folder(self) -> Path:
        return self.state / "vae"


@click.group()
@click.option("--state", type=click.Path(path_type=Path), default=DEFAULT_STATE, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=WEIGHTS, help="The pipeline.")
@click.option("--minutes", type=float, help="The stage's budget, restarts included.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
@click.pass_context
def main(
    context: click.Context, state: Path, out: Path, minutes: float | None, device: str
) -> None:
    """Train the embedded image model."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    context.obj = Workplace(state, out, device, minutes)


@main.command("all")
@click.pass_context
def all_stages(context: click.Context) -> None:
    """Every stage, in order."""
    for stage in (train_vae, encode, train_flux, distil):
        context.invoke(stage)


@main.command("vae")
@click.pass_obj
def train_vae(place: Workplace) -> None:
    """The autoencoder."""
    task = vae.VaeTask(nets.build_vae(), vae.training_panels(VAE_PANELS), place.device)
    train(task, place.budget("vae"), place.checkpoint("vae"))
    task.vae.eval()
    vae.set_scaling(task.vae)
    task.vae.save_pretrained(place.vae_folder)
    values = {style: round(vae.psnr(task.vae, style), 2) for style in ("sketch", *STYLES)}
    Console().log(f"PSNR on held-out panels in dB: {values}")


@main.command()
@click.pass_obj
def encode(place: Workplace) -> None:
    """The panels that the transformer is trained on, as latents."""
    for aspect, first in _FIRST_SEED.items():
        seeds = range(first, first + FLUX_PANELS // len(_FIRST_SEED))
        flow.encode_panels(_vae(place), seeds, aspect).save(_panels_file(place, aspect))


@main.command("flux")
@click.pass_obj
def train_flux(place: Workplace) -> None:
    """The transformer and the text encoders, from nothing."""
    task = FluxTask(nets.build(vae=_vae(place)), _panels(place), place.device)
    train(
        task,
        place.budget("flux"),
        place.checkpoint("flux"),
        on_checkpoint=_every(
            _CHECKPOINTS_PER_EXPORT, lambda: nets.save(task.averaged(), place.out)
        ),
    )
    nets.save(task.averaged(), place.out)


@main.command()
@click.pass_obj
def distil(place: Workplace) -> None:
    """Guidance into the guidance embedding."""
    networks = nets.build(vae=_vae(place))
    networks.trained().load_state_dict(_saved(place, "flux")["average"])
    task = DistilTask(networks, _panels(place), place.device)
    train(task, place.budget("distil"), place.checkpoint("distil"))
    nets.save(task.averaged(), place.out)


def _vae(place: Workplace) -> Any:
    return AutoencoderKL.from_pretrained(place.vae_folder).to(
        place.device, memory_format=torch.channels_last
    )


def _saved(place: Workplace, stage: str) -> dict[str, Any]:
    task: dict[str, Any] = torch.load(place.checkpoint(stage), weights_only=True)["task"]
    return task


def _panels_file(place: Workplace, aspect: Aspect) -> Path:
    return place.state / f"panels-{aspect.replace(':', 'x')}.pt"


def _panels(place: Workplace) -> list[flow.Panels]:
    return [flow.Panels.load(_panels_file(place, aspect)) for aspect in _FIRST_SEED]


def _every(count: int, action: Callable[[], None]) -> Callable[[int], None]:
    calls = 0

    def maybe(_: int) -> None:
        nonlocal calls
        if calls % count == 0:
            action()
        calls += 1

    return maybe


if __name__ == "__main__":
    main()
