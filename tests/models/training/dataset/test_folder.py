"""Examples are what AI-Toolkit reads from the same folder, or a refusal that names the file."""

from pathlib import Path

import pytest

from models.training.dataset.folder import Example, data_hash, read_examples
from models.training.errors import DatasetUnusable


def _write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder


def test_captions_lie_beside_the_pictures(tmp_path: Path) -> None:
    _write(tmp_path, b_dot_PNG="B", b_dot_txt="a dog,\n\n in  a park\r\n", sub__a_dot_jpg="A")
    _write(tmp_path, sub__a_dot_txt="\ufeff고양이", _dot_hidden__c_dot_png="C", _dot_d_dot_png="D")
    _write(tmp_path, sub___controls__e_dot_png="E", notes_dot_md="F")
    assert read_examples(tmp_path) == [
        Example(tmp_path / "b.PNG", "a dog, in  a park"),
        Example(tmp_path / "sub/a.jpg", "고양이"),
    ]


def test_defaults_stand_in_for_missing_and_empty_captions(tmp_path: Path) -> None:
    _write(tmp_path, a_dot_png="A", default_dot_txt="of the folder", sub__b_dot_png="B")
    _write(tmp_path, sub__c_dot_png="C", sub__c_dot_txt=" \n")
    captions = [e.caption for e in read_examples(tmp_path, default_caption="of the caller")]
    assert captions == ["of the folder", "of the caller", "of the caller"]
    with pytest.raises(DatasetUnusable, match=r"sub/b\.png.*write b\.txt"):
        read_examples(tmp_path)
    assert [e.caption for e in read_examples(tmp_path, default_caption="")][1:] == ["", ""]


def test_captions_may_be_json(tmp_path: Path) -> None:
    _write(tmp_path, a_dot_png="A", a_dot_json='{"caption": "a dog", "source": "us"}')
    assert read_examples(tmp_path, caption_ext=".json")[0].caption == "a dog"
    _write(tmp_path, a_dot_json="[]")
    with pytest.raises(DatasetUnusable, match=r"a\.json"):
        read_examples(tmp_path, caption_ext="json")


def test_what_is_not_utf8_is_named(tmp_path: Path) -> None:
    _write(tmp_path, a_dot_png="A")
    (tmp_path / "a.txt").write_bytes("고양이".encode("cp949"))
    with pytest.raises(DatasetUnusable, match=r"a\.txt is not UTF-8"):
        read_examples(tmp_path)


@pytest.mark.parametrize("target", ["secret.png", "elsewhere"])
def test_links_that_leave_the_folder_are_refused(tmp_path: Path, target: str) -> None:
    outside = _write(tmp_path / "outside", secret_dot_png="S", elsewhere__a_dot_png="A")
    folder = _write(tmp_path / "data", a_dot_png="A", a_dot_txt="a dog")
    (folder / f"link-{target}").symlink_to(outside / target)
    with pytest.raises(DatasetUnusable, match=f"link-{target}"):
        read_examples(folder)


def test_a_link_inside_of_the_folder_is_a_picture(tmp_path: Path) -> None:
    _write(tmp_path, a_dot_png="A", a_dot_txt="a dog", b_dot_txt="the same dog")
    (tmp_path / "b.png").symlink_to("a.png")
    assert len(read_examples(tmp_path)) == 2


@pytest.mark.parametrize("name", ["missing", "a.txt", "empty"])
def test_a_folder_without_pictures_is_refused(tmp_path: Path, name: str) -> None:
    _write(tmp_path, a_dot_txt="a dog")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetUnusable, match=name):
        read_examples(tmp_path / name)


def test_the_hash_is_of_names_pictures_and_captions(tmp_path: Path) -> None:
    def hashed(at: str, **files: str) -> str:
        return data_hash(read_examples(_write(tmp_path / at, **files), default_caption=""))

    first = hashed("first", a_dot_png="A", a_dot_txt="a dog", b_dot_png="B")
    assert first == hashed("moved", a_dot_png="A", a_dot_txt="a dog\n", b_dot_png="B")
    others = {
        hashed("picture", a_dot_png="A", a_dot_txt="a dog", b_dot_png="C"),
        hashed("caption", a_dot_png="A", a_dot_txt="a cat", b_dot_png="B"),
        hashed("name", a_dot_png="A", a_dot_txt="a dog", c_dot_png="B"),
        hashed("fewer", a_dot_png="A", a_dot_txt="a dog"),
    }
    assert len(others - {first}) == 4
