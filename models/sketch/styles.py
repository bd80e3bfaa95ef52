"""Style sets: panels in one style with captions beside them, as any LoRA's training data lies.

`python -m models.sketch.styles STYLE FOLDER` draws them. Half are 192x112, half 112x192. A panel is
a function of the style and its number, so the folder can always be drawn again.
"""

import random
from pathlib import Path

import click

from models.sketch.data import scene_of
from models.sketch.panels import draw
from models.sketch.scene import ASPECTS, caption

STYLES = {
    "ink": "ink style",
    "blueprint": "blueprint style",
    "sepia": "sepia style",
}
"""Style and trigger."""

PANELS = 300
FIRST_SEED = 2_000_000
"""No seed of the model's own training set."""

SOURCES = "picture,source,licence\n*,drawn by models/sketch/panels.py,Apache-2.0\n"

_CAPTION_SEED = 8


def draw_set(style: str, folder: Path, panels: int = PANELS) -> None:
    """Writes `panels` pictures, their captions and where they come from into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(_CAPTION_SEED)  # noqa: S311  (data, no secret)
    for number in range(panels):
        seed, aspect = FIRST_SEED + number, ASPECTS[number % len(ASPECTS)]
        scene = scene_of(seed, aspect)
        picture = folder / f"{number:04}.png"
        draw(scene, seed, style).save(picture)
        text = caption(scene, rng, STYLES[style])
        picture.with_suffix(".txt").write_text(text + "\n", "utf-8")
    (folder / "sources.csv").write_text(SOURCES, "utf-8")


@click.command()
@click.argument("style", type=click.Choice(tuple(STYLES)))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--panels", type=click.IntRange(1), default=PANELS, show_default=True)
def main(style: str, folder: Path, panels: int) -> None:
    """Draw the training set of STYLE into FOLDER."""
    draw_set(style, folder, panels)


if __name__ == "__main__":
    main()
