"""A style's training set: pictures, captions, licences; and that it is the same again."""

from pathlib import Path

from PIL import Image

from models.sketch.panels import SIZES_PX
from models.sketch.styles import STYLES, draw_set
from models.training.dataset.folder import data_hash, read_examples
from models.training.dataset.sources import read_sources


def test_a_set_is_pictures_with_captions_and_their_licence(tmp_path: Path) -> None:
    draw_set("ink", tmp_path, panels=6)
    examples = read_examples(tmp_path)
    assert len(examples) == 6
    assert all(example.caption.startswith(STYLES["ink"]) for example in examples)
    assert {Image.open(example.picture).size for example in examples} == set(SIZES_PX.values())
    assert read_sources(tmp_path).find("0001.png").licence == "Apache-2.0"


def test_a_set_can_be_drawn_again(tmp_path: Path) -> None:
    once, again, other = (tmp_path / name for name in ("once", "again", "other"))
    draw_set("sepia", once, panels=4)
    draw_set("sepia", again, panels=4)
    draw_set("blueprint", other, panels=4)
    hashes = [data_hash(read_examples(folder)) for folder in (once, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]
