"""Keys from arguments, environment and files. A key that cannot be read is an error at construction, never later."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from palisade_client._wire import key_id

_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)

PublicKeys = dict[str, Ed25519PublicKey]
KeySpec = str | os.PathLike[str] | Iterable[str]


def public_keys(spec: KeySpec | None) -> PublicKeys:
    """Trusted keys by key id, from base64 keys separated by commas, an iterable of such, or a file of them.

    A file holds base64 keys separated by commas or white space (`#` starts a comment), or PEM public keys. Two or more
    keys are valid at once, so that they can be rotated. ValueError on anything that is not an Ed25519 public key.
    """
    if not spec:
        return {}
    if isinstance(spec, os.PathLike) or (isinstance(spec, str) and os.path.isfile(spec)):
        return _from_file(Path(spec))
    words = spec.split(",") if isinstance(spec, str) else list(spec)
    return _by_id(_from_base64(word) for word in words if word.strip())


def producer_key(path: str | os.PathLike[str] | None) -> Ed25519PrivateKey | None:
    """The Ed25519 private key (PEM, unencrypted) that signs reports; ValueError or OSError if it cannot be read."""
    if not path:
        return None
    key = load_pem_private_key(Path(path).read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{path}: not an Ed25519 private key")
    return key


def _from_file(path: Path) -> PublicKeys:
    content = path.read_bytes()
    if blocks := _PEM.findall(content):
        return _by_id(_from_pem(block) for block in blocks)
    lines = (line.split("#")[0] for line in content.decode().splitlines())
    return _by_id(_from_base64(word) for line in lines for word in line.replace(",", " ").split())


def _from_pem(block: bytes) -> Ed25519PublicKey:
    key = load_pem_public_key(block)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("a directive key is not an Ed25519 public key")
    return key


def _from_base64(word: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(word.strip(), validate=True))
    except (binascii.Error, ValueError) as error:
        raise ValueError("a directive key is neither a file nor the base64 of a 32-byte Ed25519 public key") from error


def _by_id(keys: Iterable[Ed25519PublicKey]) -> PublicKeys:
    return {key_id(key): key for key in keys}
