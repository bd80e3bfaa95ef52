"""Which channel a text means."""

from __future__ import annotations

import unicodedata
from itertools import product
from urllib.parse import quote

import pytest
from googleapiclient.discovery import build
from hypothesis import given
from hypothesis import strategies as st

from services.vetting.adapters.youtube import FILTERS
from services.vetting.channels import HOSTS, ID, ChannelRef, parse_channel
from services.vetting.errors import InvalidChannel

UC = "UCabcdefghijKLMNOPQR_-19"
KOREAN = "@칠판앞십분"
NFD = unicodedata.normalize("NFD", KOREAN)
SCHEMES = ("https://", "http://", "HTTPS://", "//", "")
TAILS = ("", "/", "/videos", "/shorts?view=0&sort=dd", "?si=a%26b#top")
HANDLE = ChannelRef("handle", "slow.ridge-walks_1")


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        (UC, ChannelRef("id", UC)),
        (f"  {UC}\n", ChannelRef("id", UC)),
        ("@slow.ridge-walks_1", HANDLE),
        (KOREAN, ChannelRef("handle", "칠판앞십분")),
        (NFD, ChannelRef("handle", "칠판앞십분")),
        ("@l·l", ChannelRef("handle", "l·l")),
        ("@हिन्दी", ChannelRef("handle", "हिन्दी")),
    ],
)
def test_an_id_and_a_handle_mean_themselves(text: str, ref: ChannelRef) -> None:
    assert parse_channel(text) == ref


@pytest.mark.parametrize(
    ("path", "ref"),
    [
        (f"/channel/{UC}", ChannelRef("id", UC)),
        ("/@slow.ridge-walks_1", HANDLE),
        (f"/{KOREAN}", ChannelRef("handle", "칠판앞십분")),
        (f"/{quote(KOREAN)}", ChannelRef("handle", "칠판앞십분")),
        (f"/{quote(NFD)}", ChannelRef("handle", "칠판앞십분")),
        (f"/{quote(KOREAN).lower()}", ChannelRef("handle", "칠판앞십분")),
        ("/c/OldName", ChannelRef("custom", "OldName")),
        (f"/c/{quote('옛이름')}", ChannelRef("custom", "옛이름")),
        ("/user/SecondShed", ChannelRef("username", "SecondShed")),
    ],
)
def test_every_address_form_means_its_channel(path: str, ref: ChannelRef) -> None:
    for scheme, host, tail in product(
        SCHEMES, [*HOSTS, "WWW.YouTube.COM", "m.youtube.com:443"], TAILS
    ):
        assert parse_channel(f"{scheme}{host}{path}{tail}") == ref


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "@",
        "@.",
        "@" + "a" * 31,
        "@two words",
        "@a/b",
        "@a‮b",
        "@a\u200bb",
        "@a\x00b",
        "@<script>",
        "slowridge",
        UC[:-1],
        UC + "A",
        UC.lower(),
        f"https://www.youtube.com/channel/{UC[:-1]}",
        "https://www.youtube.com/channel/",
        "https://www.youtube.com/",
        "https://www.youtube.com/trending",
        "https://www.youtube.com/user/",
        "https://www.youtube.com/user/a%20b",
        "https://www.youtube.com/c/",
        "https://www.youtube.com/@",
        "https://www.youtube.com/%FF%FE",
        "https://www.youtube.com/@%00",
        "https://www.youtube.com/@a%2F..%2Fb",
        "https://youtu.be/dQw4w9WgXcQ",
        "https://youtu.be/@slowridge",
        "https://youtube.com.evil.example/@slowridge",
        "https://evil.example/youtube.com/@slowridge",
        "https://evilyoutube.com/@slowridge",
        "https://youtube.com@evil.example/@slowridge",
        "https://user:pass@youtube.com/@slowridge",
        "https://youtube.com\\@evil.example/@slowridge",
        "https://youtube.com:8443/@slowridge",
        "https://youtube.com:port/@slowridge",
        "https://studio.youtube.com/channel/" + UC,
        "https://ｙoutube.com/@slowridge",
        "https://[::1]/@slowridge",
        "https://[youtube.com/@slowridge",
        "ftp://youtube.com/@slowridge",
        "javascript:alert(1)//youtube.com/@slowridge",
        "data:text/html,youtube.com",
        "file:///youtube.com/@slowridge",
        f"{UC}\n{UC}",
        "a" * 10_000,
        "@" + "가" * 10_000,
        "https://www.youtube.com/@" + "%EC%B9%A0" * 4_000,
    ],
)
def test_anything_else_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(InvalidChannel, match=r"give a channel's id .* @handle") as caught:
        parse_channel(text)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("watch?v=dQw4w9WgXcQ", "a video"),
        ("shorts/dQw4w9WgXcQ", "a video"),
        ("live/dQw4w9WgXcQ", "a video"),
        ("embed/dQw4w9WgXcQ", "a video"),
        ("playlist?list=PL123", "a playlist"),
        ("results?search_query=a", "a search"),
        ("hashtag/cats", "a hashtag"),
    ],
)
def test_an_address_of_something_else_is_called_by_its_name(path: str, what: str) -> None:
    with pytest.raises(InvalidChannel, match=f"is {what}, not a channel"):
        parse_channel(f"https://m.youtube.com/{path}")


@given(
    st.text(max_size=600) | st.from_regex(r"(https?://)?(www\.)?youtube\.com/.*", fullmatch=True)
)
def test_no_text_is_met_with_anything_but_a_channel_or_a_refusal(text: str) -> None:
    try:
        ref = parse_channel(text)
    except InvalidChannel:
        return
    assert ref.value == unicodedata.normalize("NFC", ref.value)
    assert not any(c.isspace() or c in "/?#&%<>\"'\\" for c in ref.value)
    assert ID.fullmatch(ref.value) if ref.kind == "id" else 0 < len(ref.value) <= 50


def test_names_ignore_case_and_ids_do_not() -> None:
    assert parse_channel("@SlowRidge").key == parse_channel("youtube.com/@slowridge").key
    assert parse_channel("youtube.com/c/slowridge").key == parse_channel("@slowridge").key
    assert parse_channel("youtube.com/user/slowridge").key != parse_channel("@slowridge").key
    assert ChannelRef("id", UC).key != ChannelRef("id", f"UC{UC[2:].swapcase()}").key


def test_the_api_has_a_parameter_for_every_kind() -> None:
    youtube = build("youtube", "v3", developerKey="none", static_discovery=True)
    for parameter in FILTERS.values():
        youtube.channels().list(part="id", **{parameter: "x"})  # a TypeError for what it lacks
    with pytest.raises(TypeError):
        youtube.channels().list(part="id", forCustomUrl="x")
