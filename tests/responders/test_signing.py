"""Signatures: what is believed, and the reason for which anything else is not."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from responders.signing import Keyring, SigningKey
from schemas.errors import ConfigError, SignatureRefused
from schemas.wire import KEY_ID_HEADER, SIGNATURE_HEADER

VALUE = b'{"endpoint":"a"}'


def refused(ring: Keyring, kind: str, value: bytes, headers: list[tuple[str, bytes | str | None]] | None) -> str:
    with pytest.raises(SignatureRefused) as caught:
        ring.verify(kind, value, headers)
    return caught.value.reason


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


def test_a_signed_record_is_believed_and_names_its_key(key: SigningKey) -> None:
    ring = Keyring([SigningKey.generate().public_base64, key.public_base64])

    assert (
        ring.verify("directive", VALUE, [("palisade-kind", b"directive"), *key.headers("directive", VALUE)])
        == key.key_id
    )


def test_two_keys_are_believed_while_they_are_rotated(key: SigningKey) -> None:
    newer = SigningKey.generate()
    ring = Keyring([key.public_base64, newer.public_base64])

    assert ring.key_ids == {key.key_id, newer.key_id}
    assert ring.verify("kill", VALUE, newer.headers("kill", VALUE)) == newer.key_id


def test_an_altered_byte_is_a_bad_signature(key: SigningKey) -> None:
    ring = Keyring([key.public_base64])

    for at in range(len(VALUE)):
        altered = VALUE[:at] + bytes([VALUE[at] ^ 1]) + VALUE[at + 1 :]
        assert refused(ring, "directive", altered, [*key.headers("directive", VALUE)]) == "bad_signature"


def test_a_record_of_one_kind_cannot_be_passed_off_as_another(key: SigningKey) -> None:
    assert refused(Keyring([key.public_base64]), "kill", VALUE, [*key.headers("directive", VALUE)]) == "bad_signature"


def test_an_unknown_key_is_refused_by_name(key: SigningKey) -> None:
    stranger = SigningKey.generate()

    assert (
        refused(Keyring([key.public_base64]), "directive", VALUE, [*stranger.headers("directive", VALUE)])
        == "unknown_key"
    )
    assert refused(Keyring([]), "directive", VALUE, [*key.headers("directive", VALUE)]) == "unknown_key"


def test_a_key_id_does_not_vouch_for_another_keys_signature(key: SigningKey) -> None:
    stranger = SigningKey.generate()
    forged = [stranger.headers("directive", VALUE)[0], (KEY_ID_HEADER, key.key_id.encode())]

    assert refused(Keyring([key.public_base64]), "directive", VALUE, [*forged]) == "bad_signature"


@pytest.mark.parametrize("headers", [None, [], [("palisade-kind", b"directive")], [(SIGNATURE_HEADER, None)]])
def test_a_record_without_a_signature_is_unsigned(
    key: SigningKey, headers: list[tuple[str, bytes | None]] | None
) -> None:
    assert refused(Keyring([key.public_base64]), "directive", VALUE, headers) == "unsigned"  # type: ignore[arg-type]


def test_headers_that_two_readers_could_read_differently_are_malformed(key: SigningKey) -> None:
    ring = Keyring([key.public_base64])
    signature, name = key.headers("directive", VALUE)

    assert refused(ring, "directive", VALUE, [signature, signature, name]) == "malformed"
    assert refused(ring, "directive", VALUE, [signature, name, name]) == "malformed"
    assert refused(ring, "directive", VALUE, [signature]) == "malformed"
    assert refused(ring, "directive", VALUE, [(SIGNATURE_HEADER, b"not base64!"), name]) == "malformed"
    assert refused(ring, "directive", VALUE, [(SIGNATURE_HEADER, b"\xff\xfe"), name]) == "malformed"
    assert refused(ring, "directive", VALUE, [(SIGNATURE_HEADER, b"AAAA"), name]) == "malformed"


def test_a_saved_key_is_private_and_comes_back(tmp_path: Path, key: SigningKey) -> None:
    path = tmp_path / "responder.pem"
    key.save(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).public_base64 == key.public_base64


def test_a_key_is_never_overwritten(tmp_path: Path, key: SigningKey) -> None:
    path = tmp_path / "responder.pem"
    key.save(path)

    with pytest.raises(ConfigError, match="cannot be written"):
        SigningKey.generate().save(path)
    assert SigningKey.load(path).key_id == key.key_id


def test_what_is_no_key_says_so_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.pem"
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")

    with pytest.raises(ConfigError, match=r"broken\.pem"):
        SigningKey.load(path)
    with pytest.raises(ConfigError, match=r"absent\.pem"):
        SigningKey.load(tmp_path / "absent.pem")
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(other)
    with pytest.raises(ConfigError, match="not Ed25519"):
        SigningKey.load(path)
    with pytest.raises(ConfigError, match="32 bytes"):
        Keyring(["AAAA"])


def test_a_key_does_not_print_itself(key: SigningKey) -> None:
    assert repr(key) == f"SigningKey(key_id='{key.key_id}')"
