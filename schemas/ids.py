"""Identifiers as they may appear in keys, metrics, logs and SQL.

An id is 1-128 bytes of `[A-Za-z0-9._:@-]`. Any other id is replaced by `h:` and a 128-bit hash of it: never dropped,
so that an odd id cannot make its sender invisible.
"""

from __future__ import annotations

import hashlib
import re

MAX_ID_BYTES = 128
_PLAIN = re.compile(r"[A-Za-z0-9._:@-]{1,128}\Z")
_HASHED = re.compile(r"h:[0-9a-f]{32}\Z")


def is_plain_id(text: str) -> bool:
    """True if `text` can be used as an id as it stands."""
    return _PLAIN.match(text) is not None


def clean_id(text: str) -> str:
    """`text` itself when it is plain, else `h:` + 32 hex digits of its BLAKE2b hash (lone surrogates included)."""
    if _PLAIN.match(text) is not None:
        return text
    return "h:" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def is_hashed_id(text: str) -> bool:
    """True if `text` looks like what stands for an id that is not plain."""
    return _HASHED.match(text) is not None


def stable_id(*parts: str | int) -> str:
    """32 hex digits that depend on nothing but `parts`: the same in each replay and on every machine."""
    joined = "\x1f".join(str(part) for part in parts)
    return hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
