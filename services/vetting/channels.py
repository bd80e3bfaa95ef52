"""Which channel a text means: an id, a handle, or an address of a channel on youtube.com.

Pure: knows nothing of the network. What it cannot say is whether the channel exists.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

from services.vetting.errors import InvalidChannel

Kind = Literal["id", "handle", "username", "custom"]

HOSTS = frozenset({"youtube.com", "www.youtube.com", "m.youtube.com", "music.youtube.com"})
MAX_CHARACTERS = 500
SHOWN_CHARACTERS = 80
ID = re.compile(r"UC[A-Za-z0-9_-]{22}")
USERNAME = re.compile(r"[A-Za-z0-9_-]{1,50}")
MAX_HANDLE_CHARACTERS = 30
HANDLE_MARKS = frozenset("_-.·")
HANDLE_CATEGORIES = frozenset({"L", "M", "N"})
SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
RIGHT = (
    "give a channel's id (UC and 22 more characters), its @handle, or its address, such as "
    "https://www.youtube.com/@handle"
)
NO_CHANNEL = {
    "watch": "a video",
    "shorts": "a video",
    "live": "a video",
    "embed": "a video",
    "v": "a video",
    "clip": "a video",
    "playlist": "a playlist",
    "hashtag": "a hashtag",
    "results": "a search",
}


@dataclass(frozen=True)
class ChannelRef:
    """One way to name a channel. `value` is without its `@`, in NFC, as it was written otherwise.

    - `id`: 24 characters, for channels.list's `id`
    - `handle`: for `forHandle`
    - `username`: an old user name, for `forUsername`
    - `custom`: the name in /c/name. The API has no parameter for these; most became handles, so it
      is asked for as one, and may be somebody else's by now: show whom it led to.
    """

    kind: Kind
    value: str

    @property
    def key(self) -> str:
        """The same for every spelling of the same name: YouTube's names ignore case, its ids do
        not.
        """
        if self.kind == "id":
            return f"id:{self.value}"
        kind = "handle" if self.kind == "custom" else self.kind
        return f"{kind}:{self.value.casefold()}"

    def __str__(self) -> str:
        return f"@{self.value}" if self.kind == "handle" else self.value


def parse_channel(text: str) -> ChannelRef:
    """Raises InvalidChannel, which says what would be right."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidChannel(f"{len(text)} characters name no channel; {RIGHT}")
    wanted = unicodedata.normalize("NFC", text).strip()
    if ID.fullmatch(wanted):
        return ChannelRef("id", wanted)
    if wanted.startswith("@"):
        return _handle("handle", wanted[1:], wanted)
    return _from_address(wanted)


def _from_address(text: str) -> ChannelRef:
    address = _split(text)
    parts = [_decoded(part, text) for part in address.path.split("/") if part]
    first, second = (*parts, "", "")[:2]
    if first.startswith("@"):
        return _handle("handle", first[1:], text)
    match first.casefold():
        case "channel" if ID.fullmatch(second):
            return ChannelRef("id", second)
        case "c" if second:
            return _handle("custom", second.removeprefix("@"), text)
        case "user" if USERNAME.fullmatch(second):
            return ChannelRef("username", second)
        case kind if kind in NO_CHANNEL:
            raise _invalid(text, f"is {NO_CHANNEL[kind]}, not a channel")
    raise _invalid(text, "is not a channel's address")


def _split(text: str) -> SplitResult:
    """`text` as an address on YouTube; a scheme may be missing."""
    if any(c.isspace() or c == "\\" or unicodedata.category(c)[0] == "C" for c in text):
        raise _invalid(text, "holds characters that no channel's name or address has")
    with_scheme = text if SCHEME.match(text) else f"https://{text.removeprefix('//')}"
    try:
        address = urlsplit(with_scheme)
        host, port = address.hostname, address.port
    except ValueError:
        raise _invalid(text, "is not an address") from None
    is_plain = "@" not in address.netloc and port in (None, 80, 443)
    if address.scheme not in ("http", "https") or not is_plain or host not in HOSTS:
        raise _invalid(text, "is no id, no @handle and no address on youtube.com")
    return address


def _decoded(part: str, text: str) -> str:
    try:
        return unicodedata.normalize("NFC", unquote(part, errors="strict"))
    except UnicodeDecodeError:
        raise _invalid(text, "is percent-encoded, but not as UTF-8") from None


def _handle(kind: Kind, name: str, text: str) -> ChannelRef:
    """Letters and digits of any script; how few are allowed depends on the script, so YouTube is
    left to say.
    """
    is_one = 0 < len(name) <= MAX_HANDLE_CHARACTERS and all(map(_may_stand_in_a_handle, name))
    if not is_one or not any(map(str.isalnum, name)):
        raise _invalid(text, "holds no handle: letters, digits and _ - . · only, at most 30")
    return ChannelRef(kind, name)


def _may_stand_in_a_handle(character: str) -> bool:
    return character in HANDLE_MARKS or unicodedata.category(character)[0] in HANDLE_CATEGORIES


def _invalid(text: str, what: str) -> InvalidChannel:
    shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
    return InvalidChannel(f"{shown!r} {what}; {RIGHT}")
