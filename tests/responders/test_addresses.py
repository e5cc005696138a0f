"""Which addresses may be connected to."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from responders.addresses import AddressPolicy, is_loopback
from schemas.weburl import WebUrl

STRICT = AddressPolicy()
PRIVATE = AddressPolicy(allow_private=True)

PUBLIC = [
    "1.1.1.1",
    "93.184.216.34",
    "100.63.255.255",
    "172.32.0.1",
    "2606:4700:4700::1111",
    "::ffff:1.1.1.1",
    "64:ff9b::101:101",
]
PRIVATE_ONES = [
    "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fc00::1", "fdff::1",
    "127.0.0.1", "127.255.255.254", "::1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::10.0.0.1", "64:ff9b::10.0.0.1",
]  # fmt: skip
SPECIAL_ONES = [
    "169.254.169.254", "169.254.170.2", "169.254.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254",
    "fe80::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "::a9fe:a9fe", "2002:a9fe:a9fe::1", "192.0.2.1", "198.18.0.1",
    "198.51.100.7", "203.0.113.9", "2001:db8::1", "2001:0:a9fe:a9fe::1", "100::1", "4000::1", "64:ff9b:1::1", "5f00::1",
]  # fmt: skip
NEVER_ONES = [
    "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "ff02::1", "fec0::1",
    "::ffff:0.0.0.0", "::ffff:224.0.0.1", "::ffff:255.255.255.255", "fe80::1%eth0", "localhost", "", "1.1.1", "0x7f.1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert STRICT.verdict(address) == "allowed"


@pytest.mark.parametrize("address", PRIVATE_ONES)
def test_private_ones_are_allowed_only_if_the_configuration_says_so(address: str) -> None:
    assert STRICT.verdict(address) == "private"
    assert PRIVATE.verdict(address) == "allowed"


@pytest.mark.parametrize("address", SPECIAL_ONES)
def test_link_local_metadata_and_the_like_are_not_allowed_with_private_ones(address: str) -> None:
    assert STRICT.verdict(address) == "special"
    assert PRIVATE.verdict(address) == "special"


@pytest.mark.parametrize("address", NEVER_ONES)
def test_nobodys_addresses_are_refused_whatever_the_configuration_says(address: str) -> None:
    everything = AddressPolicy.of(True, ["0.0.0.0/0", "::/0"])

    assert everything.verdict(address) == "never"


def test_a_network_that_is_named_is_allowed_and_its_neighbour_is_not() -> None:
    named = AddressPolicy.of(False, ["10.1.2.0/24", "169.254.10.0/24", "fd12::/32"])

    for address in ("10.1.2.3", "::ffff:10.1.2.3", "169.254.10.1", "fd12::1"):
        assert named.verdict(address) == "allowed"
    assert (named.verdict("10.1.3.3"), named.verdict("169.254.169.254")) == ("private", "special")


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_no_other_spelling_of_an_ipv4_address_is_judged_more_kindly(number: int, allow_private: bool) -> None:
    policy, plain = AddressPolicy(allow_private), IPv4Address(number)
    verdict = policy.verdict(str(plain))
    prefixes = [0xFFFF << 32, 0x64FF9B << 96]

    for prefix in prefixes if number > 1 else prefixes[:1]:
        assert policy.verdict(str(IPv6Address(prefix | number))) == verdict
    if verdict != "allowed":
        assert policy.verdict(str(IPv6Address((0x2002 << 112) | (number << 80)))) != "allowed"


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_whatever_python_calls_not_global_is_not_allowed_by_default(address: IPv4Address | IPv6Address) -> None:
    if STRICT.verdict(str(address)) == "allowed":
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        assert (mapped or address).is_global


def test_loopback_is_all_of_it_and_nothing_that_only_looks_like_it() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]))
    assert not any(map(is_loopback, ["10.0.0.1", "::ffff:10.0.0.1", "localhost", "::", "1.1.1.1"]))
    assert ip_address("127.0.0.1").is_loopback


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "target", "authority"),
    [
        ("https://hooks.example", "https", "hooks.example", 443, "/", "hooks.example"),
        ("https://hooks.example/a/b?c=d", "https", "hooks.example", 443, "/a/b?c=d", "hooks.example"),
        ("https://Hooks.Example:8443/", "https", "hooks.example", 8443, "/", "hooks.example:8443"),
        ("http://127.0.0.1:9000/flip", "http", "127.0.0.1", 9000, "/flip", "127.0.0.1:9000"),
        ("https://[2606:4700::1]:8443/x", "https", "2606:4700::1", 8443, "/x", "[2606:4700::1]:8443"),
    ],
)
def test_a_url_is_taken_apart(text: str, scheme: str, host: str, port: int, target: str, authority: str) -> None:
    url = WebUrl.parse(text)

    assert (url.scheme, url.host, url.port, url.target, url.authority) == (scheme, host, port, target, authority)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hooks.example", "https://"),
        ("ftp://hooks.example", "https://"),
        ("file:///etc/passwd", "https://"),
        ("gopher://x:70/_", "https://"),
        ("https://", "names no host"),
        ("https:///path", "names no host"),
        ("https://user@hooks.example", "user or password"),
        ("https://user:pass@hooks.example", "user or password"),
        ("https://a.example@b.example/", "user or password"),
        ("https://hooks.example/#x", "fragment"),
        ("https://hooks.example:22/", "port 22"),
        ("https://hooks.example:25/", "port 25"),
        ("https://hooks.example:0/", "port 0"),
        ("https://hooks.example:65536/", "URL"),
        ("https://hooks.example:x/", "URL"),
        ("https://[::1/", "URL"),
        ("https://hooks.example/\r\nX: y", "plain ASCII"),
        ("https://hooks.example/a b", "plain ASCII"),
        ("https://hooks.example\\@evil.example/", "plain ASCII"),
        ("https://höoks.example/", "plain ASCII"),
        ("https://hooks.example/" + "a" * 2_000, "2000"),
    ],
)
def test_a_url_that_hides_something_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        WebUrl.parse(text)
    assert "pass" not in str(caught.value).replace("password", "")


@given(st.text())
def test_any_text_is_a_url_or_a_value_error(text: str) -> None:
    for prefix in ("", "http://", "https://"):
        try:
            url = WebUrl.parse(prefix + text)
        except ValueError:
            continue
        assert "\r" not in url.target + url.authority
        assert " " not in url.target + url.authority
