"""The wire facts that the client needs: topics, headers, ids, signatures, the partition of a key, JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SCHEMA_VERSION = 1

PREDICTIONS = "palisade.predictions"
REPORTS = "palisade.reports"
DIRECTIVES = "palisade.directives"

KIND_HEADER = "palisade-kind"
SIGNATURE_HEADER = "palisade-signature"
KEY_ID_HEADER = "palisade-key-id"
CONTENT_TYPE_HEADER = "content-type"
JSON_TYPE = "application/json"
ARROW_TYPE = "application/vnd.apache.arrow.stream"

MAX_RECORD_BYTES = 1_048_576
"""A larger record would be dead-lettered unread."""
MAX_EVENT_BYTES = 65_536
"""A larger single JSON event would be dead-lettered."""

_PLAIN_ID = re.compile(r"[A-Za-z0-9._:@-]{1,128}\Z")


def clean_id(text: object) -> str:
    """`text` when it is 1-128 bytes of `[A-Za-z0-9._:@-]`, else `h:` + 32 hex digits of its BLAKE2b hash."""
    if not isinstance(text, str):
        text = str(text)
    if _PLAIN_ID.match(text) is not None:
        return text
    return "h:" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def murmur2(data: bytes) -> int:
    """Kafka's murmur2 (seed 0x9747b28c), 32 bits unsigned; the hash behind `partitioner=murmur2_random`."""
    length, mask = len(data), 0xFFFFFFFF
    h = 0x9747B28C ^ length
    whole = length - length % 4
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * 0x5BD1E995 & mask
        k = (k ^ k >> 24) * 0x5BD1E995 & mask
        h = (h * 0x5BD1E995 & mask) ^ k
    if length % 4:
        h = (h ^ int.from_bytes(data[whole:], "little")) * 0x5BD1E995 & mask
    h = (h ^ h >> 13) * 0x5BD1E995 & mask
    return h ^ h >> 15


def partition_of(key: str, partitions: int) -> int:
    """The partition where a record of `key` lies, out of `partitions`."""
    return (murmur2(key.encode()) & 0x7FFFFFFF) % partitions


def key_id(key: Ed25519PublicKey) -> str:
    """The first 16 hex digits of SHA-256 of the raw 32-byte public key."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def sign(key: Ed25519PrivateKey, kind: str, value: bytes) -> dict[str, bytes]:
    """The two headers that sign `value` as a record of `kind`."""
    signature = key.sign(kind.encode() + b"\n" + value)
    return {
        SIGNATURE_HEADER: base64.b64encode(signature),
        KEY_ID_HEADER: key_id(key.public_key()).encode(),
    }


def signature_holds(key: Ed25519PublicKey, kind: str, value: bytes, signature: bytes) -> bool:
    """True if `signature` (base64) is `key`'s over `value` as a record of `kind`."""
    try:
        key.verify(base64.b64decode(signature, validate=True), kind.encode() + b"\n" + value)
    except (InvalidSignature, ValueError):
        return False
    return True


def to_json(value: Any) -> bytes:
    """Compact strict JSON in UTF-8; ValueError on NaN, infinity and lone surrogates, TypeError on other objects."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
