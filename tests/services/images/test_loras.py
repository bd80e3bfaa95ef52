"""LoRAs over HTTP: from the catalog, uploaded, replaced, removed, and found after a restart."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save

from tests.services.images.conftest import Serve, Served, until
from tests.services.images.test_images import differ_by

Files = dict[str, Path]


@pytest.fixture
def mine(service: Served) -> Iterator[Served]:
    """Uploads are gone afterwards."""
    yield service
    until(lambda: service.live() == 0)
    for name, lora in service.loras().items():
        if lora["source"] == "upload":
            assert service.client.delete(f"/v1/loras/{name}").status_code == 204
    assert not stored(service), "a file without a name is left"


def stored(service: Served) -> list[str]:
    folder = service.app.state.settings.home / "loras" / "tiny"
    return sorted(file.name for file in folder.glob("*")) if folder.exists() else []


def start_drawing(service: Served, **body: Any) -> threading.Thread:
    """Begins a call that takes a while; returns when it is in the batch."""
    thread = threading.Thread(target=lambda: service.post(**body), daemon=True)
    thread.start()
    until(lambda: service.engine.snapshot().running)
    return thread


def drawn(service: Served, model: str) -> dict[str, Any]:
    answer = service.post(model=model, seed=3)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]


def test_the_catalogs_loras_that_are_fetched_are_there(service: Served) -> None:
    drawn(service, "red")
    lora = service.loras()["red"]
    assert lora == {
        "name": "red",
        "base": "tiny",
        "rank": 4,
        "digest": lora["digest"],
        "resident": True,
        "in_use": False,
        "trigger": "red style",
        "licence": "Apache-2.0",
        "source": "catalog",
    }
    assert "blue" not in service.loras()


def test_an_upload_is_drawn_with(mine: Served, lora_files: Files) -> None:
    answer = mine.put("my.style-1", lora_files["green"], trigger="그림체", licence="CC0-1.0")
    assert answer.status_code == 201
    lora = answer.json()
    assert (lora["source"], lora["rank"], lora["resident"]) == ("upload", 4, False)
    assert (lora["trigger"], lora["licence"]) == ("그림체", "CC0-1.0")
    assert mine.loras()["my.style-1"] == lora
    assert differ_by(drawn(mine, "my.style-1"), drawn(mine, "tiny")) > 1
    assert mine.put("my.style-1", lora_files["green"]).status_code == 200


def test_a_file_may_be_larger_than_a_json_body(mine: Served, lora_files: Files) -> None:
    padded = save(load_file(lora_files["green"]), metadata={"notes": "a" * 600_000})
    assert mine.put("large", padded).status_code == 201


def bad_files(good: bytes) -> dict[str, bytes]:
    tensors = {name: tensor.clone() for name, tensor in _tensors(good).items()}
    name = next(iter(tensors))
    return {
        "empty": b"",
        "noise": bytes(range(256)) * 40,
        "truncated": good[:-1_000],
        "header_only": good[:200],
        "a_pickle": pickle.dumps({"a": 1}),
        "torch_save": _torch_saved(tensors),
        "another_model": save({"transformer.nowhere.lora_A.weight": torch.ones(2, 2)}),
        "half_a_layer": save({name: tensors[name]}),
        "not_finite": save({**tensors, name: torch.full_like(tensors[name], float("nan"))}),
    }


def _tensors(file: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(file)


def _torch_saved(tensors: dict[str, torch.Tensor]) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def test_files_that_would_not_load_are_refused_with_the_reason(
    mine: Served, lora_files: Files
) -> None:
    for why, file in bad_files(lora_files["green"].read_bytes()).items():
        answer = mine.put("bad", file)
        assert (answer.status_code, answer.json()["code"]) == (422, "lora_refused"), why
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(answer.json()["errors"][0]["message"]) > 20
        assert "/" not in answer.json()["errors"][0]["message"].replace("alpha / rank", "")
    assert "bad" not in mine.loras()
    assert mine.post(model="bad").status_code == 404


def test_a_refused_file_changes_nothing_under_its_name(mine: Served, lora_files: Files) -> None:
    before = mine.put("kept", lora_files["green"]).json()
    files = stored(mine)
    assert mine.put("kept", b"noise").status_code == 422
    assert (mine.loras()["kept"], stored(mine)) == (before, files)


@pytest.mark.parametrize("is_declared", [True, False])
def test_too_many_bytes(mine: Served, is_declared: bool) -> None:
    content = b"a" * (2**20 + 1)
    pieces: Any = content if is_declared else iter([content[:1_000], content[1_000:]])
    answer = mine.client.put(
        "/v1/loras/big", content=pieces, headers={"Content-Type": "application/octet-stream"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "name", ["A", "-a", ".a", "a" * 65, "a b", "%2e%2e", "a%2Fb", "a%00", "ㄱ", "a;b", "a%0A"]
)
def test_bad_names(mine: Served, lora_files: Files, name: str) -> None:
    answer = mine.put(name, lora_files["green"])
    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("name", ["tiny", "red", "blue"])
def test_names_that_are_taken(mine: Served, lora_files: Files, name: str) -> None:
    before = mine.loras()
    answer = mine.put(name, lora_files["green"])
    assert (answer.status_code, answer.json()["code"]) == (409, "name_taken")
    assert mine.loras() == before


@pytest.mark.parametrize(
    ("name", "content", "kind", "told"),
    [
        ("red", b'{"from_catalog": true}', "application/json", (200, None)),
        ("red", b'{"from_catalog": true}', "application/json; charset=utf-8", (200, None)),
        ("blue", b'{"from_catalog": true}', "application/json", (409, "lora_not_fetched")),
        ("nobody", b'{"from_catalog": true}', "application/json", (404, "lora_not_found")),
        ("red", b'{"from_catalog": false}', "application/json", (422, "invalid")),
        ("red", b'{"from_catalog": true, "url": "http://x"}', "application/json", (422, "invalid")),
        ("red", b"{}", "application/json", (422, "invalid")),
        ("red", b"[]", "application/json", (422, "invalid")),
        ("red", b"{", "application/json", (400, "invalid_json")),
        ("red", b" " * 300_000, "application/json", (413, "too_large")),
        ("red", b"x", "multipart/form-data", (400, "content_type")),
        ("red", b"", None, (400, "content_type")),
    ],
)
def test_from_the_catalog(
    mine: Served, name: str, content: bytes, kind: str | None, told: tuple[int, str | None]
) -> None:
    status, code = told
    headers = {"Content-Type": kind} if kind else {}
    answer = mine.client.put(f"/v1/loras/{name}", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json().get("code") == code
    if code == "lora_not_fetched":
        assert "python -m models pull blue" in answer.json()["detail"]


def test_a_catalog_lora_can_be_removed_and_taken_again(mine: Served) -> None:
    before = mine.loras()["red"]
    assert mine.client.delete("/v1/loras/red").status_code == 204
    assert mine.post(model="red").status_code == 404
    answer = mine.client.put("/v1/loras/red", json={"from_catalog": True})
    assert answer.status_code == 201
    assert answer.json()["digest"] == before["digest"]


def test_unknown_names_cannot_be_removed(mine: Served) -> None:
    for name in ("nobody", "tiny"):
        answer = mine.client.delete(f"/v1/loras/{name}")
        assert (answer.status_code, answer.json()["code"]) == (404, "lora_not_found")


def test_what_is_in_use_cannot_be_removed(mine: Served, lora_files: Files) -> None:
    mine.put("busy", lora_files["green"])
    drawing = start_drawing(mine, model="busy", steps=60)
    answer = mine.client.delete("/v1/loras/busy")
    assert (answer.status_code, answer.json()["code"]) == (409, "lora_in_use")
    assert mine.loras()["busy"]["in_use"]
    drawing.join(30)
    assert mine.client.delete("/v1/loras/busy").status_code == 204
    assert mine.post(model="busy").status_code == 404


def test_uploads_arrive_while_others_are_drawn(mine: Served, lora_files: Files) -> None:
    drawing = start_drawing(mine, steps=200)
    assert mine.put("meanwhile", lora_files["grey"]).status_code == 201
    assert drawing.is_alive(), "the upload waited for the image, or the image was too short"
    drawn(mine, "meanwhile")
    drawing.join(30)


def test_a_replaced_name_is_the_new_file_for_later_images(mine: Served, lora_files: Files) -> None:
    mine.put("style", lora_files["green"])
    old = drawn(mine, "style")
    answers: list[httpx.Response] = []
    asked = {"prompt": "a street at night", "model": "style", "seed": 3, "steps": 100}
    post = threading.Thread(target=lambda: answers.append(mine.post(**asked)))
    post.start()
    until(lambda: mine.engine.snapshot().running)
    replaced = mine.put("style", lora_files["grey"])
    assert (replaced.status_code, post.is_alive()) == (200, True)
    assert len([name for name in stored(mine) if name.endswith(".safetensors")]) == 2
    new = drawn(mine, "style")
    post.join(60)
    assert differ_by(old, new) > 1
    mine.put("before", lora_files["green"])
    again = mine.post(**{**asked, "model": "before"}).json()["data"][0]
    assert differ_by(answers[0].json()["data"][0], again) <= 1, "it was drawn with both"
    mine.put("before", lora_files["blue"])
    assert len([name for name in stored(mine) if name.endswith(".safetensors")]) == 2


def test_an_upload_that_breaks_off_leaves_nothing(mine: Served, lora_files: Files) -> None:
    def pieces() -> Iterator[bytes]:
        yield lora_files["green"].read_bytes()[:5_000]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        mine.client.put(
            "/v1/loras/half",
            content=pieces(),
            headers={"Content-Type": "application/octet-stream", "Content-Length": "20000"},
        )
    until(lambda: not stored(mine))
    assert "half" not in mine.loras()


def test_a_restart_finds_the_uploads(serve: Serve, lora_files: Files, tmp_path: Path) -> None:
    folder = tmp_path / "loras" / "tiny"
    with serve(tmp_path) as service:
        for name in ("kept", "broken", "gone", "rewritten"):
            service.put(name, lora_files["green"], trigger=f"{name} 풍")
        before, picture = service.loras(), drawn(service, "kept")
    for file in folder.glob("broken.*.safetensors"):
        file.write_bytes(file.read_bytes()[:-10])
    for file in folder.glob("gone.*.safetensors"):
        file.unlink()
    (folder / "rewritten.json").write_text(json.dumps({"name": "../x", "file": "../../y"}))
    (folder / "orphan.0123456789abcdef.safetensors").write_bytes(b"no card names it")
    (folder / "operators-own.safetensors").write_bytes(b"not ours")
    with serve(tmp_path) as service:
        assert service.loras().keys() == {"red", "kept"}
        assert service.loras()["kept"] == {**before["kept"], "resident": False}
        assert differ_by(picture, drawn(service, "kept")) <= 1
        names = {file.name.split(".")[0] for file in folder.glob("*.safetensors")}
        assert names == {"kept", "broken", "rewritten", "operators-own"}
        assert service.put("broken", lora_files["blue"]).status_code == 201


def test_as_many_uploads_as_are_allowed(serve: Serve, lora_files: Files, tmp_path: Path) -> None:
    with serve(tmp_path, max_uploads=2) as service:
        assert service.put("one", lora_files["green"]).status_code == 201
        assert service.put("two", lora_files["blue"]).status_code == 201
        answer = service.put("three", lora_files["grey"])
        assert (answer.status_code, answer.json()["code"]) == (409, "too_many_loras")
        assert service.put("two", lora_files["grey"]).status_code == 200
        assert service.client.delete("/v1/loras/one").status_code == 204
        assert service.put("three", lora_files["grey"]).status_code == 201


def test_a_lora_that_is_too_large_in_rank_is_refused(
    serve: Serve, lora_files: Files, tmp_path: Path
) -> None:
    with serve(tmp_path, lora_max_rank=2) as service:
        assert not service.loras(), "the catalog's is left out, and the service starts"
        answer = service.put("four", lora_files["green"])
        assert answer.status_code == 422
        assert "rank 4" in answer.json()["errors"][0]["message"]
