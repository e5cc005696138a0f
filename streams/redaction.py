"""Sensitive features made unreadable on their way to Kafka: values of one event, or columns of many.

The rules and their exact bytes are those that serving processes apply (`palisade_client`, which stands alone):

- `drop`: absent, in a list None;
- `hash`: `r:` + the first 128 bits, in hex, of HMAC-SHA256 under the deployment's key over `s` + the UTF-8 of a text's
  first 4,096 characters, `n` + a number as big-endian float64 (-0 as 0), `b0`/`b1`, or `l` + the float64s of a list's
  first 4,096 numbers (None as NaN); missing stays missing;
- `bucket`: `floor(x / width) * width` of a number in float64; anything else becomes missing.

Nothing here raises on a value: what cannot be redacted becomes missing, never itself.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.arrow import is_text, values_of
from schemas.config import SENSITIVE_CALLER, Bucket, EndpointConfig, SensitiveRule
from schemas.errors import ConfigError, PalisadeError
from schemas.ids import clean_id

KEY_VARIABLE = "PALISADE_REDACTION_KEY"
ANONYMOUS = "anonymous"
"""The id of nobody: it is kept."""
MARK = "r:"
MAX_TEXT = 4_096
"""Characters of a text that are hashed."""
MAX_LIST = 4_096
"""Numbers of a list that are hashed."""
_BLOCK = 64
_TOO_LARGE = 1e308
_KEY = re.compile(r"[0-9a-fA-F]{64}\Z")
HOW_TO_MAKE_KEY = "make one for all services of this deployment with `openssl rand -hex 32 > redaction.key`"


class NotRedactable(PalisadeError):
    """Features in a form that the rules say nothing about: whoever holds them must not send them on."""


def redaction_key(file: Path | None, environment: Mapping[str, str] = os.environ) -> bytes | None:
    """The secret of `hash`: `file`, else what `PALISADE_REDACTION_KEY` holds: 64 hex digits, or the name of a file of them.

    None where neither is given. Raises ConfigError, which never shows what might be the key.
    """
    said = environment.get(KEY_VARIABLE, "").strip()
    if file is None and (not said or _KEY.match(said)):
        return bytes.fromhex(said) or None
    where = str(file or KEY_VARIABLE)
    try:
        content = (file or Path(said)).read_text().strip()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"holds no redaction key that can be read; {HOW_TO_MAKE_KEY}", where) from (
            error if file else None
        )
    if not _KEY.match(content):
        raise ConfigError(f"does not hold 64 hex digits, as a redaction key is; {HOW_TO_MAKE_KEY}", where)
    return bytes.fromhex(content)


def redactor_of(endpoint: EndpointConfig, key: bytes | None) -> Redactor | None:
    """What redacts the endpoint's events; None where it has no rules. Raises ConfigError if a rule needs a key."""
    return Redactor(endpoint.sensitive, key, endpoint.name) if endpoint.sensitive else None


class Pseudonyms:
    """HMAC-SHA256 (RFC 2104) with the key absorbed once: a third of the cost of `hmac.digest` for short values."""

    def __init__(self, key: bytes) -> None:
        padded = key.ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def of_bytes(self, message: bytes) -> str:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(message)
        outer.update(inner.digest())
        return MARK + outer.hexdigest()[:32]

    def of(self, value: Any) -> str | None:
        """The pseudonym of a plain value; None if it is missing or no plain value."""
        message = canonical(value)
        return None if message is None else self.of_bytes(message)


@dataclass(frozen=True, slots=True)
class Redactor:
    """Rules applied. Names are those of features; digits are places, from 0, where features are a list.

    Raises ConfigError at construction for `hash` without a key.
    """

    rules: Mapping[str, SensitiveRule]
    pseudonyms: Pseudonyms

    def __init__(self, rules: Mapping[str, SensitiveRule], key: bytes | None, endpoint: str = "this endpoint") -> None:
        if key is None and "hash" in rules.values():
            raise ConfigError(
                f"sensitive: `hash` of {endpoint} needs a secret key, and there is none: {HOW_TO_MAKE_KEY}, and name the file as "
                f"redaction_key_file, or in {KEY_VARIABLE}"
            )
        object.__setattr__(self, "rules", dict(rules))
        object.__setattr__(self, "pseudonyms", Pseudonyms(key or bytes(_BLOCK)))

    def described(self) -> str:
        """The rules in one line."""
        each = [
            f"{name} {rule if isinstance(rule, str) else f'in buckets of {rule.bucket:g}'}"
            for name, rule in self.rules.items()
        ]
        return ", ".join(each)

    @property
    def hides_callers(self) -> bool:
        return SENSITIVE_CALLER in self.rules

    def caller(self, caller: str) -> str:
        """The id that a caller is known by; nobody stays nobody."""
        known = clean_id(caller)
        return known if not self.hides_callers or known == ANONYMOUS else self.pseudonyms.of(known) or ANONYMOUS

    def features(self, features: Mapping[str, Any] | list[Any]) -> dict[str, Any] | list[Any]:
        """One event's features, as JSON gives them, redacted. Raises NotRedactable."""
        self._check_form(isinstance(features, list), () if isinstance(features, list) else features)
        if isinstance(features, list):
            listed = list(features)
            for name, rule in self.rules.items():
                if _is_place(name) and int(name) < len(listed):
                    listed[int(name)] = None if rule == "drop" else self.value(listed[int(name)], rule)
            return listed
        named = dict(features)
        for name, rule in self.rules.items():
            if name in named:
                if rule == "drop":
                    del named[name]
                else:
                    named[name] = self.value(named[name], rule)
        return named

    def struct(self, features: pa.StructArray) -> pa.StructArray:
        """Features by name [n] redacted. Raises NotRedactable if they lose all of them, or as `features`."""
        try:
            names = [field.name for field in features.type]
        except UnicodeDecodeError:
            raise NotRedactable("sensitive: the name of a feature is no UTF-8: no rule can be found for it") from None
        self._check_form(False, names)
        kept = [at for at, name in enumerate(names) if self.rules.get(name) != "drop"]
        if not kept:
            raise NotRedactable("sensitive: no feature is left, all are dropped")
        columns = features.flatten()
        redacted = [self.column(names[at], columns[at]) for at in kept]
        return pa.StructArray.from_arrays(redacted, names=[names[at] for at in kept])

    def column(self, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """A column of the feature `name` [n] by its rule: itself without one, text if hashed, float64 in buckets.

        Dropped: all null. Values are hashed once each, however often they occur.
        """
        rule = self.rules.get(name)
        if rule is None:
            return column
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        column = values_of(column)
        if rule == "hash":
            return self._hashed(column)
        if rule == "drop" or not is_number(column.type):
            return pa.nulls(len(column), pa.float64())
        return _bucketed(column, rule)

    def callers(self, ids: pa.Array) -> pa.Array:
        """Clean ids of callers [n] by the rule of `@caller`; null stays null."""
        if not self.hides_callers:
            return ids
        coded = values_of(ids).dictionary_encode()
        names = [self.caller(name) for name in coded.dictionary.to_pylist()]
        return pa.array(names, pa.string()).take(coded.indices)

    def value(self, value: Any, rule: SensitiveRule) -> Any:
        """One value that is not dropped by `rule`."""
        if rule == "hash":
            return self.pseudonyms.of(value)
        return bucket(value, rule.bucket) if isinstance(rule, Bucket) else None

    def _check_form(self, listed: bool, names: Any) -> None:
        rules = [name for name in self.rules if name != SENSITIVE_CALLER]
        by_place = [name for name in rules if _is_place(name)]
        if listed and rules and not by_place:
            raise NotRedactable(
                'sensitive: features came as a list, and rules name them: give places, "0" is the first'
            )
        if not listed and rules and len(by_place) == len(rules) and not any(name in names for name in rules):
            raise NotRedactable("sensitive: features came by name, and rules give places in a list: name each feature")

    def _hashed(self, column: pa.Array) -> pa.Array:
        kind = column.type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            return pa.array(map(self.pseudonyms.of, column.to_pylist()), pa.string())
        if pa.types.is_boolean(kind):
            false, true = self.pseudonyms.of(False), self.pseudonyms.of(True)
            return pc.if_else(column, true, false).cast(pa.string())
        if is_number(kind):
            numbers = _doubles(column)
            coded = pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers).dictionary_encode()
            words = [self.pseudonyms.of(number) for number in coded.dictionary.to_pylist()]
        elif is_text(kind):
            coded = column.cast(pa.large_binary()).dictionary_encode()  # bytes: a stranger's text may be no UTF-8
            words = [self.pseudonyms.of_bytes(b"s" + _cut(word)) for word in coded.dictionary.to_pylist()]
        else:
            return pa.nulls(len(column), pa.string())
        return pa.array(words, pa.string()).take(coded.indices)


def canonical(value: Any) -> bytes | None:
    """The bytes of a plain value that are hashed; None if it is missing or no plain value."""
    if isinstance(value, str):
        return b"s" + value[:MAX_TEXT].encode("utf-8", "surrogatepass")
    if isinstance(value, bool):
        return b"b1" if value else b"b0"
    if isinstance(value, int | float):
        number = _double(value)
        return None if number != number else b"n" + struct.pack(">d", number)
    if isinstance(value, list):
        items = value[:MAX_LIST]
        if not all(item is None or (isinstance(item, int | float) and not isinstance(item, bool)) for item in items):
            return None
        numbers = [math.nan if item is None or item != item else _double(item) for item in items]
        return b"l" + struct.pack(f">{len(numbers)}d", *numbers)
    return None


def bucket(value: Any, width: float) -> float | None:
    """The lower edge of the number's bucket; None of what is no number. What is not finite stays so."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    quotient = _double(value) / width
    return math.floor(quotient) * width + 0.0 if math.isfinite(quotient) else quotient


def _bucketed(column: pa.Array, rule: Bucket) -> pa.Array:
    numbers = _doubles(column).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore", invalid="ignore"):
        edges = np.floor(numbers / rule.bucket) * rule.bucket + 0.0
    return pa.array(edges, pa.float64(), mask=np.asarray(column.is_null()))


def _doubles(column: pa.Array) -> pa.Array:
    """float64 of a column of numbers; -0 becomes 0."""
    return pc.add(column.cast(pa.float64(), safe=False), 0.0)


def is_number(kind: pa.DataType) -> bool:
    """Whether a column of this kind holds what `bucket` takes."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _double(value: float) -> float:
    try:
        return float(value) + 0.0  # -0 becomes 0
    except OverflowError:
        return _TOO_LARGE if value > 0 else -_TOO_LARGE


def _cut(text: bytes) -> bytes:
    """The first 4,096 characters of UTF-8."""
    return (
        text
        if len(text) <= MAX_TEXT
        else text.decode("utf-8", "surrogateescape")[:MAX_TEXT].encode("utf-8", "surrogateescape")
    )


def _is_place(name: str) -> bool:
    return name.isascii() and name.isdigit()
