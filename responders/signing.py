"""Ed25519 signatures of records: who wrote this directive, this command, this kill switch?

Signed are the bytes `kind + b"\\n" + value`, so that a record of one kind cannot be passed off as another (RFC 8032).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from schemas.errors import ConfigError, SignatureRefused
from schemas.wire import KEY_ID_HEADER, SIGNATURE_HEADER

Headers = Iterable[tuple[str, bytes | str | None]]

_KEY_ID_DIGITS = 16
_SIGNATURE_BYTES = 64
_PUBLIC_BYTES = 32


def signed_bytes(kind: str, value: bytes) -> bytes:
    """What a signature covers."""
    return kind.encode() + b"\n" + value


def key_id(public_key: bytes) -> str:
    """The name of a key: the first 16 hex digits of the SHA-256 of its 32 raw public bytes."""
    return hashlib.sha256(public_key).hexdigest()[:_KEY_ID_DIGITS]


class SigningKey:
    """A private key. Never printed: its repr names the key by its id."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        raw = private.public_key().public_bytes_raw()
        self.key_id = key_id(raw)
        self.public_base64 = base64.b64encode(raw).decode()

    def __repr__(self) -> str:
        return f"SigningKey(key_id={self.key_id!r})"

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path | str) -> SigningKey:
        """The key of a PEM file (PKCS8, not encrypted); ConfigError if there is none."""
        try:
            private = serialization.load_pem_private_key(Path(path).read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"no Ed25519 private key can be read ({type(error).__name__})", str(path)) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise ConfigError("the private key is not Ed25519: make one with `palisade keys create`", str(path))
        return cls(private)

    def save(self, path: Path | str) -> None:
        """Writes the PEM file with mode 0600; ConfigError if it exists (a key is never overwritten) or cannot be made."""
        pem = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ConfigError(f"the key cannot be written ({error.strerror})", str(path)) from error
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(pem)

    def headers(self, kind: str, value: bytes) -> list[tuple[str, bytes]]:
        """The headers that sign a record of `kind` with exactly these value bytes."""
        signature = self._private.sign(signed_bytes(kind, value))
        return [(SIGNATURE_HEADER, base64.b64encode(signature)), (KEY_ID_HEADER, self.key_id.encode())]


class Keyring:
    """Public keys that are believed (base64 of 32 raw bytes each); ConfigError on anything else."""

    def __init__(self, public_keys: Iterable[str]) -> None:
        self._keys: dict[str, Ed25519PublicKey] = {}
        for text in public_keys:
            raw = _decoded(text.encode("utf-8", "surrogatepass"), _PUBLIC_BYTES)
            if raw is None:
                raise ConfigError("a public key is not the base64 of 32 bytes")
            self._keys[key_id(raw)] = Ed25519PublicKey.from_public_bytes(raw)

    @property
    def key_ids(self) -> frozenset[str]:
        return frozenset(self._keys)

    def verify(self, kind: str, value: bytes, headers: Headers | None) -> str:
        """The id of the key that signed this record.

        Raises SignatureRefused: `unsigned` (no signature), `malformed` (headers twice or not decodable), `unknown_key`,
        `bad_signature`.
        """
        signature_text = _only(headers, SIGNATURE_HEADER)
        if signature_text is None:
            raise SignatureRefused("unsigned")
        signature = _decoded(signature_text, _SIGNATURE_BYTES)
        signer = (_only(headers, KEY_ID_HEADER) or b"").decode("ascii", "replace")
        if signature is None or len(signer) != _KEY_ID_DIGITS:
            raise SignatureRefused("malformed")
        key = self._keys.get(signer)
        if key is None:
            raise SignatureRefused("unknown_key")
        try:
            key.verify(signature, signed_bytes(kind, value))
        except InvalidSignature as error:
            raise SignatureRefused("bad_signature") from error
        return signer


def _only(headers: Headers | None, name: str) -> bytes | None:
    """The one header of that name. Two of them could be read differently by two readers: refused."""
    found = [value for key, value in headers or () if key == name]
    if len(found) > 1:
        raise SignatureRefused("malformed")
    value = found[0] if found else None
    return value.encode("utf-8", "replace") if isinstance(value, str) else value


def _decoded(text: bytes, size: int) -> bytes | None:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if len(raw) == size else None
