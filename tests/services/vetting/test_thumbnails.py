"""How a thumbnail is fetched: sizes in turn, over checked TLS, within its limits, or not at all."""

from __future__ import annotations

import asyncio
import datetime
import io
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpcore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

from services.shared.settings import ConfigurationError
from services.vetting.adapters.thumbnails import HOSTS, ThumbnailFetcher
from services.vetting.pictures import PictureRefused, PictureUnavailable, urls_to_try
from services.vetting.ports import Thumbnail
from tests.services.vetting.connections import connections
from tests.services.vetting.picture_host import (
    PictureHost,
    endless,
    picture,
    raw,
    redirect,
    serving,
    status,
)

FOLDER = "https://i.ytimg.com/vi/abc/"
SIZES = [FOLDER + name for name in ("maxresdefault.jpg", "sddefault.jpg", "hqdefault.jpg")]
BEST, STANDARD, HIGH = ("/vi/abc/" + url.removeprefix(FOLDER) for url in SIZES)


def drawn(width: int = 64, height: int = 36, kind: str = "JPEG", colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, kind)
    return file.getvalue()


@pytest.fixture
async def host() -> AsyncIterator[PictureHost]:
    async with serving() as served:
        yield served


@pytest.fixture
async def fetcher(host: PictureHost) -> AsyncIterator[ThumbnailFetcher]:
    made = ThumbnailFetcher(base_override=host.base)
    yield made
    await made.aclose()


async def refusal(fetcher: ThumbnailFetcher, urls: Sequence[str] = SIZES) -> str:
    with pytest.raises(PictureRefused) as refused:
        await fetcher.fetch(urls)
    return refused.value.reason


async def absence(fetcher: ThumbnailFetcher, urls: Sequence[str] = SIZES) -> str:
    with pytest.raises(PictureUnavailable) as missing:
        await fetcher.fetch(urls)
    return missing.value.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
async def test_a_picture_comes_out_clean(
    host: PictureHost, fetcher: ThumbnailFetcher, kind: str
) -> None:
    host.replies[BEST] = picture(drawn(kind=kind), f"image/{kind.lower()}")
    found = await fetcher.fetch(SIZES)
    assert (found.media_type, found.width, found.height) == ("image/jpeg", 64, 36)
    assert found.source_url == SIZES[0]
    assert len(found.sha256) == 64
    red, green, blue = Image.open(io.BytesIO(found.data)).getpixel((9, 9))  # type: ignore[misc]
    assert red > 240
    assert green + blue < 30


async def test_large_pictures_become_smaller_in_proportion(
    host: PictureHost, fetcher: ThumbnailFetcher
) -> None:
    host.replies[BEST] = picture(drawn(1920, 1080))
    found = await fetcher.fetch(SIZES)
    assert (found.width, found.height) == (1280, 720)


async def test_metadata_and_appended_files_do_not_survive(
    host: PictureHost, fetcher: ThumbnailFetcher
) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "SECRET"
    Image.new("RGB", (9, 9)).save(file, "JPEG", exif=exif, comment=b"SECRET")
    host.replies[BEST] = picture(file.getvalue() + b"PK\x03\x04SECRET<script>")
    assert b"SECRET" not in (await fetcher.fetch(SIZES)).data


async def test_a_missing_size_leads_to_the_next(
    host: PictureHost, fetcher: ThumbnailFetcher
) -> None:
    host.replies[HIGH] = picture(drawn(480, 360))
    found = await fetcher.fetch(SIZES)
    assert (found.source_url, found.width) == (SIZES[2], 480)
    assert host.paths() == [BEST, STANDARD, HIGH]


async def test_the_grey_placeholder_of_a_404_is_not_a_picture(
    host: PictureHost, fetcher: ThumbnailFetcher
) -> None:
    host.replies[BEST] = status(404, drawn(120, 90), "image/jpeg")
    assert await absence(fetcher, SIZES[:1]) == "not_found"


async def test_all_sizes_missing_is_not_found(fetcher: ThumbnailFetcher) -> None:
    assert await absence(fetcher) == "not_found"
    assert await absence(fetcher, []) == "no_url"


@pytest.mark.parametrize("code", [400, 403, 429, 500, 503])
async def test_only_a_missing_size_leads_to_the_next(
    host: PictureHost, fetcher: ThumbnailFetcher, code: int
) -> None:
    host.replies |= {BEST: status(code), STANDARD: picture(drawn())}
    assert await absence(fetcher) == "host_error"


async def test_a_refused_picture_is_not_replaced_by_a_smaller_one(
    host: PictureHost, fetcher: ThumbnailFetcher
) -> None:
    host.replies |= {BEST: picture(b"<svg/>"), STANDARD: picture(drawn())}
    assert await refusal(fetcher) == "not_a_picture"


async def test_redirects_on_the_list_are_followed_twice(
    host: PictureHost, fetcher: ThumbnailFetcher
) -> None:
    host.replies |= {
        BEST: redirect("/vi/abc/once.jpg"),
        "/vi/abc/once.jpg": redirect("https://i4.ytimg.com/vi/abc/twice.jpg", 301),
        "/vi/abc/twice.jpg": picture(drawn()),
    }
    assert (await fetcher.fetch(SIZES)).width == 64
    host.replies["/vi/abc/twice.jpg"] = redirect("/vi/abc/thrice.jpg", 307)
    assert await refusal(fetcher) == "redirect_refused"


async def test_a_redirect_to_itself_ends(host: PictureHost, fetcher: ThumbnailFetcher) -> None:
    host.replies[BEST] = redirect(SIZES[0])
    assert await refusal(fetcher) == "redirect_refused"
    assert len(host.asked) == 3


async def test_a_redirect_out_of_the_mirror_is_refused(
    host: PictureHost, fetcher: ThumbnailFetcher
) -> None:
    async with serving() as other:
        host.replies[BEST] = redirect(other.base + "/vi/abc/x.jpg")
        assert await refusal(fetcher) == "redirect_refused"
        assert other.asked == []


@pytest.mark.parametrize(
    ("media_type", "reason"),
    [
        ("text/html", "type_not_allowed"),
        ("image/svg+xml", "type_not_allowed"),
        ("image/gif", "type_not_allowed"),
        ("application/octet-stream", "type_not_allowed"),
        ("", "type_not_allowed"),
        ("image/png", "type_mismatch"),
        ("IMAGE/WEBP; q=1", "type_mismatch"),
    ],
)
async def test_a_type_that_is_not_what_came_is_refused(
    host: PictureHost, fetcher: ThumbnailFetcher, media_type: str, reason: str
) -> None:
    host.replies[BEST] = picture(drawn(), media_type)
    assert await refusal(fetcher) == reason


async def test_a_content_encoding_is_refused(host: PictureHost, fetcher: ThumbnailFetcher) -> None:
    host.replies[BEST] = picture(drawn(), "image/jpeg", ("Content-Encoding", "gzip"))
    assert await refusal(fetcher) == "encoded"


@pytest.mark.parametrize("length", ["5000001", "99999999999999999999"])
async def test_a_declared_length_over_the_cap_is_refused_unread(
    host: PictureHost, fetcher: ThumbnailFetcher, length: str
) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {length}\r\n\r\n"
    host.replies[BEST] = raw(head.encode())
    assert await refusal(fetcher) == "too_large"


async def test_an_endless_body_is_cut_off_at_the_cap(host: PictureHost) -> None:
    host.replies[BEST] = endless(drawn(), every_s=0, chunk=bytes(65_536))
    fetcher = ThumbnailFetcher(base_override=host.base, max_bytes=1_000_000)
    assert await refusal(fetcher) == "too_large"
    await host.no_connections()


async def test_a_slow_drip_ends_at_the_deadline_and_frees_its_connection(host: PictureHost) -> None:
    host.replies[BEST] = endless(drawn()[:20], every_s=0.01, chunk=b"\0")
    fetcher = ThumbnailFetcher(base_override=host.base, timeout_s=0.3)
    assert await absence(fetcher) == "timeout"
    await host.no_connections()


async def test_the_deadline_is_for_all_sizes_together(host: PictureHost) -> None:
    async def late(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        await status(404)(writer)

    host.replies |= {BEST: late, STANDARD: late, HIGH: late}
    fetcher = ThumbnailFetcher(base_override=host.base, timeout_s=0.3)
    assert await absence(fetcher) == "timeout"
    assert HIGH not in host.paths()


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\x01garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 9000\r\n\r\n\xff\xd8\xff",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 30_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: image/jpeg\r\n\r\nZZ\r\n",
    ],
)
async def test_broken_http_is_unavailable(
    host: PictureHost, fetcher: ThumbnailFetcher, answer: bytes
) -> None:
    async def send(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        writer.close()

    host.replies[BEST] = send
    assert await absence(fetcher) in ("host_error", "unreachable")


async def test_a_host_that_is_not_there_is_unreachable() -> None:
    async with serving() as host:
        gone = host.base
    assert await absence(ThumbnailFetcher(base_override=gone)) == "unreachable"


async def test_cancelling_frees_the_connection_and_the_turn(host: PictureHost) -> None:
    host.replies |= {BEST: host.held(picture(drawn())), STANDARD: picture(drawn())}
    fetcher = ThumbnailFetcher(base_override=host.base, concurrency=1)
    task = asyncio.create_task(fetcher.fetch(SIZES))
    while not host.asked:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await host.no_connections()
    assert (await fetcher.fetch(SIZES[1:])).width == 64
    await fetcher.aclose()


async def test_no_more_pictures_are_on_their_way_than_allowed(host: PictureHost) -> None:
    host.replies[BEST] = host.held(picture(drawn()))
    fetcher = ThumbnailFetcher(base_override=host.base, concurrency=2, timeout_s=10)
    tasks = [asyncio.create_task(fetcher.fetch(SIZES)) for _ in range(8)]
    while len(host.asked) < 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert len(host.asked) == 2
    host.gate.set()
    assert len(await asyncio.gather(*tasks)) == 8
    assert host.most_connections == 2
    await fetcher.aclose()


async def test_more_than_may_wait_are_turned_away(host: PictureHost) -> None:
    host.replies[BEST] = host.held(picture(drawn()))
    fetcher = ThumbnailFetcher(
        base_override=host.base, concurrency=1, max_waiting=1, wait_s=0.2, timeout_s=10
    )
    first = asyncio.create_task(fetcher.fetch(SIZES))
    while not host.asked:
        await asyncio.sleep(0.01)
    waits = asyncio.create_task(absence(fetcher))
    await asyncio.sleep(0)
    assert await absence(fetcher) == "busy"
    assert await waits == "busy"
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first


@pytest.mark.parametrize(
    "base",
    ["127.0.0.1:8000", "ftp://127.0.0.1/", "http://", "http://user:word@127.0.0.1/", "",
     "http://127.0.0.1/?a=b", "http://127.0.0.1:99999/", "file:///srv/pictures"],
)  # fmt: skip
def test_an_override_that_is_no_base_url_is_refused_by_its_variable(base: str) -> None:
    with pytest.raises(ConfigurationError, match="JOING_VETTING_PICTURES_URL"):
        ThumbnailFetcher(base_override=base)


async def test_an_override_on_a_link_local_address_is_not_connected_to() -> None:
    fetcher = ThumbnailFetcher(base_override="http://169.254.169.254/latest/")
    with connections() as seen:
        assert await refusal(fetcher) == "address_not_allowed"
    assert seen == []


async def test_a_mirror_has_a_path_and_the_same_allow_list(host: PictureHost) -> None:
    host.replies["/mirror" + BEST] = picture(drawn())
    fetcher = ThumbnailFetcher(base_override=f"{host.base}/mirror/")
    assert (await fetcher.fetch(SIZES)).width == 64
    assert await refusal(fetcher, ["https://example.com/a.jpg"]) == "host_not_allowed"
    assert await refusal(fetcher, [f"{host.base}/mirror{BEST}"]) == "url_not_allowed"
    await fetcher.aclose()


class Elsewhere(httpcore.AsyncNetworkBackend):
    """Notes what was to be dialled, and dials a port of loopback instead."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.dialled: list[tuple[str, int]] = []

    async def connect_tcp(self, host: str, port: int, *rest: Any, **options: Any) -> Any:
        self.dialled.append((host, port))
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", self.port, *rest, **options)


async def youtube(host: str, port: int) -> Sequence[str]:
    return ["142.250.196.110"]


def certified(name: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's side of a certificate for `name`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now.replace(year=2099))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "both.pem").write_bytes(
        pem
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "both.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


async def test_tls_and_host_name_the_host_while_the_connection_goes_to_the_checked_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    server, client = certified("i.ytimg.com", tmp_path)
    async with serving(server) as host:
        host.replies[BEST] = picture(drawn())
        dialler = Elsewhere(host.port)
        fetcher = ThumbnailFetcher(resolver=youtube, dialler=dialler, ssl_context=client)
        assert (await fetcher.fetch(SIZES)).width == 64
        await fetcher.aclose()
        assert dialler.dialled == [("142.250.196.110", 443)]
        assert [(a.server_name, a.host) for a in host.asked] == [("i.ytimg.com", "i.ytimg.com")]


async def test_a_certificate_of_another_name_or_an_unknown_one_is_not_accepted(
    tmp_path: Path,
) -> None:
    server, client = certified("i.ytimg.com.evil.example", tmp_path)
    async with serving(server) as host:
        host.replies[BEST] = picture(drawn())
        for context in (client, None):
            fetcher = ThumbnailFetcher(
                resolver=youtube, dialler=Elsewhere(host.port), ssl_context=context
            )
            assert await absence(fetcher) == "unreachable"
        assert host.asked == []


def test_sizes_that_say_they_are_too_large_are_not_asked_for() -> None:
    sizes = [
        Thumbnail("uhd", 3840, 2160),
        Thumbnail("fhd", 1920, 1080),
        Thumbnail("unknown", None, None),
        Thumbnail("default", 120, 90),
    ]
    assert urls_to_try(sizes) == ["fhd", "unknown", "default"]


def test_the_allow_list_holds_youtubes_picture_hosts_and_no_more() -> None:
    assert all(
        name.endswith((".ytimg.com", ".youtube.com", ".ggpht.com", ".googleusercontent.com"))
        for name in HOSTS
    )
