"""Pictures in a folder and in S3: whole or not at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import boto3
import pytest
from moto.server import ThreadedMotoServer

from services.shared.settings import ConfigurationError
from services.storyboard.adapters.artifacts import FsspecArtifacts
from services.storyboard.errors import ArtifactMissing

JOB = "0" * 32
BUCKET = "pictures"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server on loopback; gives its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def artifacts(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> FsspecArtifacts:
    if request.param == "folder":
        return FsspecArtifacts(str(tmp_path / "pictures"))
    address = request.getfixturevalue("s3")
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"{BUCKET}-{uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return FsspecArtifacts(f"s3://{bucket}/storyboards")


async def test_what_was_put_is_there_and_can_be_put_again(artifacts: FsspecArtifacts) -> None:
    path = f"{JOB}/frame-1.png"
    assert not await artifacts.exists(path)
    for data in (b"first", b"second" * 100_000, b""):
        await artifacts.put(path, data)
        assert await artifacts.get(path) == data
    assert await artifacts.exists(path)


async def test_what_is_not_there_is_missing(artifacts: FsspecArtifacts) -> None:
    with pytest.raises(ArtifactMissing):
        await artifacts.get(f"{JOB}/sheet.pdf")
    await artifacts.delete_all(JOB)


async def test_deleting_a_job_leaves_others(artifacts: FsspecArtifacts) -> None:
    other = "1" * 32
    for job in (JOB, other):
        for name in ("frame-1.png", "sheet.png"):
            await artifacts.put(f"{job}/{name}", b"x")
    await artifacts.delete_all(JOB)
    assert not await artifacts.exists(f"{JOB}/frame-1.png")
    assert await artifacts.get(f"{other}/frame-1.png") == b"x"


async def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    artifacts = FsspecArtifacts(str(tmp_path))
    path, whole = f"{JOB}/frame-1.png", b"x" * 5_000_000
    await artifacts.put(path, whole)
    seen, stop = set[int](), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(len((tmp_path / path).read_bytes()))

    reader = threading.Thread(target=read)
    reader.start()
    await asyncio.gather(*(artifacts.put(path, whole) for _ in range(20)))
    stop.set()
    reader.join()
    assert seen == {len(whole)}
    assert [file.name for file in (tmp_path / JOB).iterdir()] == ["frame-1.png"]


@pytest.mark.parametrize("path", ["../x", JOB + "/../x", "/etc/passwd", "", JOB + "/a/b"])
async def test_places_outside_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="not a place"):
        await FsspecArtifacts(str(tmp_path)).put(path, b"x")


def test_an_address_that_nothing_can_open_is_the_operators_to_mend() -> None:
    with pytest.raises(ConfigurationError, match="JOING_ARTIFACTS_URL"):
        FsspecArtifacts("nonsense://x")
