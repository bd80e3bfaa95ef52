"""Nothing but the public internet is connected to, however an address is written or comes by."""

from __future__ import annotations

import asyncio
import io
import ipaddress
import socket
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from services.vetting.adapters.thumbnails import ThumbnailFetcher
from services.vetting.addresses import (
    SPECIAL_V4,
    SPECIAL_V6,
    is_near,
    is_public,
    parsed,
    why_not_public,
)
from services.vetting.pictures import PictureRefused, PictureUnavailable
from tests.services.vetting.connections import connections
from tests.services.vetting.picture_host import picture, redirect, serving

HOSTILE = tomllib.loads(Path(__file__).with_name("hostile_addresses.toml").read_text("utf-8"))
ANSWERS: list[str] = HOSTILE["answers"]
URLS: list[str] = HOSTILE["urls"]
THUMBNAIL = "https://i.ytimg.com/vi/dQw4w9WgXcQ/hqdefault.jpg"
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0",
    "126.255.255.255", "128.0.0.0", "142.250.196.110", "172.15.255.255", "172.32.0.0",
    "169.253.255.255", "169.255.0.0", "192.0.1.0", "192.0.3.0", "198.17.255.255", "198.20.0.0",
    "223.255.255.255", "2001:200::1", "2003::1", "2404:6800:4004:826::200e", "2606:4700::1111",
    "2a00:1450:4001:82b::200e", "2606:4700::5efe:8.8.8.8", "2600:1f18:4113:ab00::1",
]  # fmt: skip


class Names:
    """A resolver that gives `answers` one after another, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Recorder(httpcore.AsyncNetworkBackend):
    """Notes what was to be dialled, and dials nothing."""

    def __init__(self) -> None:
        self.dialled: list[str] = []

    async def connect_tcp(self, host: str, port: int, *rest: Any, **options: Any) -> Any:
        self.dialled.append(host)
        raise httpcore.ConnectError("nobody is there")


def one_pixel() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "JPEG")
    return file.getvalue()


def fits_a_header(url: str) -> bool:
    """True for what arrives as it was sent: without line breaks, or white space at its ends."""
    return url == url.strip() and not {"\n", "\r", "\0"} & set(url)


def test_there_are_enough_hostile_addresses() -> None:
    assert len(set(ANSWERS)) + len(set(URLS)) >= 350


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_may_be_connected_to(address: str) -> None:
    assert why_not_public(address) is None


@pytest.mark.parametrize("block", [*SPECIAL_V4, *SPECIAL_V6])
def test_special_blocks_are_refused_from_their_first_to_their_last_address(block: str) -> None:
    network = ipaddress.ip_network(block)
    ends = [network[0], network[-1], network[network.num_addresses // 2]]
    assert not [str(address) for address in ends if is_public(str(address))]


@given(st.ip_addresses())
def test_whatever_python_calls_special_is_special(address: ipaddress.IPv4Address) -> None:
    if not address.is_global or address.is_multicast:
        assert not is_public(str(address))


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:", "::", "64:ff9b::", "64:ff9b:1::"]))
def test_no_ipv4_address_passes_in_disguise(inner: ipaddress.IPv4Address, before: str) -> None:
    assert not is_public(f"{before}{inner}")


@given(st.text(max_size=40))
def test_any_text_is_judged_without_an_error(text: str) -> None:
    assert is_public(text) is (why_not_public(text) is None)
    assert parsed(text) is not None or not is_public(text)


def test_a_mirror_may_stand_near_but_never_on_a_link_local_address() -> None:
    assert all(
        map(is_near, ["127.0.0.1", "10.1.2.3", "172.18.0.2", "192.168.1.9", "::1", "fd00::9"])
    )
    assert not any(map(is_near, ["169.254.169.254", "fe80::1", "0.0.0.0", "100.64.0.1", "8.8.8.8"]))


async def test_no_connection_leaves_for_a_forbidden_answer_of_a_name_server() -> None:
    fetcher = ThumbnailFetcher(resolver=Names(*([answer] for answer in ANSWERS)))
    for answer in ANSWERS:
        with connections() as seen, pytest.raises(PictureRefused) as refused:
            await fetcher.fetch([THUMBNAIL])
        assert refused.value.reason == "address_not_allowed", answer
        assert seen == [], answer


async def test_one_forbidden_answer_among_public_ones_condemns_all() -> None:
    names, dialler = Names(*(["142.250.196.110", answer] for answer in ANSWERS)), Recorder()
    fetcher = ThumbnailFetcher(resolver=names, dialler=dialler)
    for answer in ANSWERS:
        with pytest.raises(PictureRefused, match="address_not_allowed"):
            await fetcher.fetch([THUMBNAIL])
        assert dialler.dialled == [], answer


async def test_hostile_urls_are_refused_before_a_name_is_looked_up() -> None:
    names = Names(["142.250.196.110"])
    fetcher = ThumbnailFetcher(resolver=names)
    with connections() as seen:
        for url in URLS:
            with pytest.raises(PictureRefused) as refused:
                await fetcher.fetch([url])
            assert refused.value.reason in ("url_not_allowed", "host_not_allowed"), url
    assert (names.asked, seen) == ([], [])


async def test_hostile_redirects_are_not_followed() -> None:
    async with serving() as host:
        fetcher = ThumbnailFetcher(base_override=host.base)
        for url in filter(fits_a_header, URLS):
            host.replies["/vi/dQw4w9WgXcQ/hqdefault.jpg"] = redirect(url)
            with connections() as seen, pytest.raises(PictureRefused) as refused:
                await fetcher.fetch([THUMBNAIL])
            assert refused.value.reason == "redirect_refused", url
            assert set(seen) <= {("127.0.0.1", host.port)}, url
        await fetcher.aclose()
        assert set(host.paths()) == {"/vi/dQw4w9WgXcQ/hqdefault.jpg"}


async def test_the_hook_sees_a_connection_that_is_allowed() -> None:
    """Otherwise an empty list would prove nothing."""
    async with serving() as host:
        host.replies["/vi/dQw4w9WgXcQ/hqdefault.jpg"] = picture(one_pixel())
        fetcher = ThumbnailFetcher(base_override=host.base)
        with connections() as seen:
            await fetcher.fetch([THUMBNAIL])
        await fetcher.aclose()
        assert seen == [("127.0.0.1", host.port)]


async def test_an_answer_that_changes_is_judged_anew_for_every_connection() -> None:
    names, dialler = Names(["142.250.196.110"], ["127.0.0.1"]), Recorder()
    fetcher = ThumbnailFetcher(resolver=names, dialler=dialler)
    with pytest.raises(PictureUnavailable, match="unreachable"):
        await fetcher.fetch([THUMBNAIL])
    with pytest.raises(PictureRefused, match="address_not_allowed"):
        await fetcher.fetch([THUMBNAIL])
    assert dialler.dialled == ["142.250.196.110"]
    assert names.asked == ["i.ytimg.com"] * 2


async def test_what_is_dialled_is_what_was_judged_and_no_name() -> None:
    names, dialler = Names(["142.250.196.110", "2404:6800:4004:826::200e"]), Recorder()
    fetcher = ThumbnailFetcher(resolver=names, dialler=dialler)
    with pytest.raises(PictureUnavailable, match="unreachable"):
        await fetcher.fetch([THUMBNAIL])
    assert dialler.dialled == ["142.250.196.110", "2404:6800:4004:826::200e"]
    assert names.asked == ["i.ytimg.com"]


async def test_a_name_without_an_address_is_unavailable() -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    for resolver in (unknown, Names([])):
        with pytest.raises(PictureUnavailable, match="not_resolved"):
            await ThumbnailFetcher(resolver=resolver).fetch([THUMBNAIL])


async def test_a_name_server_that_does_not_answer_costs_the_deadline() -> None:
    async def silent(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(PictureUnavailable, match="timeout"):
        await ThumbnailFetcher(resolver=silent, timeout_s=0.1).fetch([THUMBNAIL])
