"""Which addresses Palisade may connect to: a configured URL must not become a door into its own network (SSRF).

Pure: addresses in, a verdict out. Every address that a name resolves to is judged, and the connection goes to one that was
(`responders.http`), so that a name server cannot answer otherwise a moment later. Ranges: IANA's registries of
special-purpose addresses (RFC 6890 and its updates), and the metadata services of clouds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, Literal

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


def _networks(*names: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, names))


NEVER: Final = _networks("0.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "::/128", "ff00::/8", "fec0::/10")
"""Nobody in particular, everybody, or reserved: refused whatever the configuration says."""
METADATA: Final = _networks(
    "169.254.169.254/32",
    "169.254.170.2/32",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "192.0.0.192/32",
    "fd00:ec2::/32",
)
"""Where clouds hand out credentials. Only `allow_networks` opens them, also where `allow_private` covers the range."""
LOOPBACK: Final = _networks("127.0.0.0/8", "::1/128")
PRIVATE: Final = (*_networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"), *LOOPBACK)
"""What `allow_private` opens."""
SPECIAL: Final = _networks(
    "169.254.0.0/16", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "fe80::/10", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20",
)  # fmt: skip
"""Link-local, documentation, benchmarks, protocols' own: only `allow_networks` opens them."""
_GLOBAL_V6: Final = IPv6Network("2000::/3")
"""All that is public in IPv6 today."""
_NAT64: Final = IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE: Final = IPv6Network("::/96")

Verdict = Literal["allowed", "private", "special", "never"]


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """What the operator's configuration opens beside public addresses."""

    allow_private: bool = False
    allow_networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, allow_private: bool, allow_networks: Iterable[str]) -> AddressPolicy:
        return cls(allow_private, tuple(map(ip_network, allow_networks)))

    def verdict(self, text: str) -> Verdict:
        """On one numeric address. An IPv6 address that stands for an IPv4 one is judged as that too."""
        verdicts = {self._one(address) for address in _meant(text)}
        for worst in ("never", "special", "private"):
            if worst in verdicts:
                return worst
        return "allowed"

    def _one(self, address: Address | None) -> Verdict:
        if address is None or _within(address, NEVER):
            return "never"
        if _within(address, self.allow_networks):
            return "allowed"
        if _within(address, METADATA) or _within(address, SPECIAL):
            return "special"
        if _within(address, PRIVATE):
            return "allowed" if self.allow_private else "private"
        if isinstance(address, IPv6Address) and address not in _GLOBAL_V6:
            return "special"
        return "allowed"


def is_loopback(text: str) -> bool:
    """Whether all that the address stands for is this machine itself."""
    return all(address is not None and _within(address, LOOPBACK) for address in _meant(text))


def _meant(text: str) -> Iterator[Address | None]:
    """The address; where it carries an IPv4 one (mapped, compatible, 6to4, NAT64), that one, and in place of it
    for those that are no more than another way to write it. None: no plain address (a zone, a word)."""
    try:
        address = ip_address(text)
    except ValueError:
        yield None
        return
    if isinstance(address, IPv4Address):
        yield address
        return
    if address.scope_id is not None:
        yield None
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
        return
    if address in _NAT64 or (address in _IPV4_COMPATIBLE and int(address) > 1):
        yield IPv4Address(int(address) & 0xFFFF_FFFF)
        return
    yield address
    if address.sixtofour is not None:
        yield address.sixtofour


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
