"""Which IP addresses a fetcher may connect to: those of the public internet, and nothing else.

Pure: knows no names, sockets or settings. `ipaddress.is_global` is no help: Python 3.11 calls
NAT64, 6to4 and multicast addresses global, and its answers differ between patch releases.

Sources: IANA's IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890 and its successors), its
IPv4 and IPv6 address space registries, and RFC 5214 for ISATAP. Everything that they list is
refused, also what they call globally reachable: relays and name servers' sinks serve no pictures.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network

Network = IPv4Network | IPv6Network

SPECIAL_V4: dict[str, str] = {
    "0.0.0.0/8": "this network (RFC 791)",
    "10.0.0.0/8": "private use (RFC 1918)",
    "100.64.0.0/10": "shared address space of carriers (RFC 6598)",
    "127.0.0.0/8": "loopback (RFC 1122)",
    "168.63.129.16/32": "Azure's host agent, which answers on a public address",
    "169.254.0.0/16": "link-local, metadata services among them (RFC 3927)",
    "172.16.0.0/12": "private use (RFC 1918)",
    "192.0.0.0/24": "IETF protocol assignments (RFC 6890)",
    "192.0.2.0/24": "documentation (RFC 5737)",
    "192.31.196.0/24": "AS112 (RFC 7535)",
    "192.52.193.0/24": "multicast tunnels (RFC 7450)",
    "192.88.99.0/24": "6to4 relays (RFC 7526)",
    "192.168.0.0/16": "private use (RFC 1918)",
    "192.175.48.0/24": "AS112 (RFC 7534)",
    "198.18.0.0/15": "benchmarking (RFC 2544)",
    "198.51.100.0/24": "documentation (RFC 5737)",
    "203.0.113.0/24": "documentation (RFC 5737)",
    "224.0.0.0/4": "multicast (RFC 5771)",
    "240.0.0.0/4": "reserved, and limited broadcast (RFC 1112, RFC 919)",
}
# The longest names first where blocks nest: the first match is the reason that is given.
SPECIAL_V6: dict[str, str] = {
    "::/128": "unspecified (RFC 4291)",
    "::1/128": "loopback (RFC 4291)",
    "::ffff:0:0/96": "IPv4-mapped (RFC 4291)",
    "::ffff:0:0:0/96": "IPv4-translated (RFC 7915)",
    "::/96": "IPv4-compatible (RFC 4291)",
    "64:ff9b::/96": "NAT64 (RFC 6052)",
    "64:ff9b:1::/48": "NAT64 for local use (RFC 8215)",
    "100::/64": "discard only (RFC 6666)",
    "100:0:0:1::/64": "dummy prefix (RFC 9780)",
    "2001::/32": "Teredo (RFC 4380)",
    "2001:2::/48": "benchmarking (RFC 5180)",
    "2001:10::/28": "ORCHID (RFC 4843)",
    "2001:20::/28": "ORCHIDv2 (RFC 7343)",
    "2001::/23": "IETF protocol assignments (RFC 2928)",
    "2001:db8::/32": "documentation (RFC 3849)",
    "2002::/16": "6to4 (RFC 3056)",
    "2620:4f:8000::/48": "AS112 (RFC 7534)",
    "3ffe::/16": "6bone, given back (RFC 3701)",
    "3fff::/20": "documentation (RFC 9637)",
    "5f00::/16": "segment routing (RFC 9602)",
    "fc00::/7": "unique local (RFC 4193)",
    "fe80::/10": "link-local (RFC 4291)",
    "fec0::/10": "site-local (RFC 3879)",
    "ff00::/8": "multicast (RFC 4291)",
}
GLOBAL_UNICAST_V6 = IPv6Network("2000::/3")
NEAR: tuple[Network, ...] = (
    IPv4Network("127.0.0.0/8"), IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"), IPv6Network("::1/128"), IPv6Network("fc00::/7"),
)  # fmt: skip

_V4 = tuple((IPv4Network(block), name) for block, name in SPECIAL_V4.items())
_V6 = tuple((IPv6Network(block), name) for block, name in SPECIAL_V6.items())


def is_public(text: str) -> bool:
    """True when `text` is one address of the public internet, in its usual notation."""
    return why_not_public(text) is None


def is_near(text: str) -> bool:
    """True for loopback and for networks of one's own: where a mirror may stand, never a link-local
    address, where metadata services answer.
    """
    address = parsed(text)
    return address is not None and any(address in block for block in NEAR)


def why_not_public(text: str) -> str | None:
    """Why this address must not be connected to; None when it may be."""
    address = parsed(text)
    if address is None:
        return "not one address in its usual notation"
    if isinstance(address, IPv4Address):
        return _special_v4(address)
    return _special_v6(address)


def parsed(text: str) -> IPv4Address | IPv6Address | None:
    """None for what is not dotted decimal or RFC 4291 text: no octal, hexadecimal or short IPv4, no
    brackets, and no zone, which would choose an interface of ours.
    """
    if not text.isascii() or "%" in text:
        return None
    for kind in (IPv4Address, IPv6Address):
        try:
            return kind(text)
        except AddressValueError:
            continue
    return None


def _special_v4(address: IPv4Address) -> str | None:
    return next((name for block, name in _V4 if address in block), None)


def _special_v6(address: IPv6Address) -> str | None:
    reason = next((name for block, name in _V6 if address in block), None)
    if reason is None and address not in GLOBAL_UNICAST_V6:
        return "not allocated as global unicast (RFC 4291)"
    if reason is None and (inner := _isatap(address)) is not None:
        reason = _special_v4(inner)
        return reason and f"ISATAP to an IPv4 address of {reason}"
    return reason


def _isatap(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address in an ISATAP interface identifier: the last 32 of its 64 bits."""
    identifier = int(address) & (2**64 - 1)
    if identifier >> 32 in (0x0000_5EFE, 0x0200_5EFE):
        return IPv4Address(identifier & (2**32 - 1))
    return None
