"""Sensitive features made unreadable before anything leaves the process: dropped, hashed with a key, or bucketed.

What each rule makes of a value is fixed, so that a service in any language and Palisade's own ingest give the same bytes:

- `drop`: the feature is absent; in a list its place holds None. The profile must be built without it.
- `hash`: `r:` and the first 128 bits, in hex, of HMAC-SHA256 under the deployment's key over a letter for the kind and
  the value: `s` and the UTF-8 of a text's first 4,096 characters; `n` and a number as a big-endian float64 (an integer
  too, -0 as 0); `b0` or `b1`; `l` and the float64s of a list (its first 4,096; None as NaN). Equal values stay equal, and who has
  no key cannot try them all. None and NaN stay missing.
- `{"bucket": width}`: the lower edge of a number's bucket, `floor(x / width) * width` in float64. What is no number
  becomes None: it could not be bucketed, and must not be told.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from palisade_client._log import logger
from palisade_client._wire import clean_id

Rule = Literal["drop", "hash"] | Mapping[Literal["bucket"], float]
Rules = Mapping[str | int, Rule]

CALLER = "@caller"
"""Stands in rules for the caller's id."""
ANONYMOUS = "anonymous"
"""The id of nobody: it is kept."""
MARK = "r:"
MAX_TEXT = 4_096
"""Characters of a text that are hashed: as many as are kept of a text that is sent."""
NAME_ROWS = 1_000
"""After so many rows a rule that met no feature is told about: its name may be misspelt."""
MAX_LIST = 4_096
"""Numbers of a list that are hashed, likewise."""
_BLOCK = 64
_TOO_LARGE = 1e308
_KEY = re.compile(r"[0-9a-fA-F]{64}\Z")
_HOW = "make one for all services of this deployment with `openssl rand -hex 32 > redaction.key`"


class UnreadableFeatures(ValueError):
    """Features that rules cannot be applied to: they are not sent."""


def redaction_key(path: str | os.PathLike[str] | None) -> bytes | None:
    """The key of `hash`: the file at `path`, else what `PALISADE_REDACTION_KEY` holds: 64 hex digits, or a file of them.

    None where neither is given. ValueError or OSError on anything else.
    """
    if not path:
        said = os.environ.get("PALISADE_REDACTION_KEY", "").strip()
        if not said or _KEY.match(said):
            return bytes.fromhex(said) or None
        if not os.path.isfile(said):  # said, not shown: it may be a key with a slip
            raise ValueError("PALISADE_REDACTION_KEY holds neither 64 hex digits nor the name of a file that is there")
        path = said
    content = Path(path).read_text().strip()
    if not _KEY.match(content):
        raise ValueError(f"{os.fspath(path)} does not hold 64 hex digits, as a redaction key is: {_HOW}")
    return bytes.fromhex(content)


class Redactor:
    """The rules of one endpoint. Names are those of features; digits are places, counted from 0, of features in a list.

    Raises ValueError for a rule that is none, and for `hash` without a key: nothing is ever sent as it is instead.
    """

    def __init__(self, rules: Rules, key: bytes | None) -> None:
        self.rules: dict[str, Rule] = {str(name): rule for name, rule in rules.items()}
        for name, rule in self.rules.items():
            _check(name, rule)
        if "hash" in self.rules.values() and key is None:
            raise ValueError(
                f"sensitive: `hash` needs a secret key, and there is none: {_HOW}, and name the file in "
                "sensitive_key_file or PALISADE_REDACTION_KEY"
            )
        self._pseudonym = pseudonymiser(key or bytes(_BLOCK))
        self.hides_callers = CALLER in self.rules
        features = {name: rule for name, rule in self.rules.items() if name != CALLER}
        self._dropped = [name for name, rule in features.items() if rule == "drop"]
        self._hashed = [name for name, rule in features.items() if rule == "hash"]
        self._bucketed = [(name, float(rule["bucket"])) for name, rule in features.items() if not isinstance(rule, str)]
        self._places = {int(name): rule for name, rule in features.items() if _is_place(name)}
        self._named = bool(features) and len(self._places) < len(features)
        self._unmet, self._rows = set(features), 0

    def row(self, features: dict[str, Any] | list[Any]) -> None:
        """Redacts plain features in place. UnreadableFeatures if the rules say nothing about features of their form."""
        if isinstance(features, list):
            self._list(features)
            return
        if self._unmet:
            self._look_for_names(features)
        for name in self._dropped:
            features.pop(name, None)
        for name in self._hashed:
            value = features.get(name)
            if value is not None:
                features[name] = self._pseudonym(value)
        for name, width in self._bucketed:
            value = features.get(name)
            if value is not None:
                features[name] = bucket(value, width)

    def caller(self, caller: object) -> str:
        """The id that a caller is known by: of a clean id, as features are; nobody stays nobody."""
        known = clean_id(caller)
        if not self.hides_callers or known == ANONYMOUS:
            return known
        return self._pseudonym(known) or ANONYMOUS

    def _list(self, features: list[Any]) -> None:
        if self._named and not self._places:
            raise UnreadableFeatures(
                "features came as a list, and rules name them: give the place of each, 0 is the first"
            )
        for place, rule in self._places.items():
            if place < len(features):
                features[place] = self._redacted(features[place], rule)

    def _redacted(self, value: Any, rule: Rule) -> Any:
        if rule == "drop" or value is None:
            return None
        return self._pseudonym(value) if isinstance(rule, str) else bucket(value, float(rule["bucket"]))

    def _look_for_names(self, features: dict[str, Any]) -> None:
        self._unmet.difference_update(features)
        if self._places and not self._named and len(self._unmet) == len(self._places):
            raise UnreadableFeatures("features came by name, and rules give places in a list: name each feature")
        self._rows += 1
        if self._rows >= NAME_ROWS and self._unmet:
            names = ", ".join(sorted(self._unmet))
            logger.warning("sensitive: %d predictions had no feature named %s: is that its name?", self._rows, names)
            self._unmet = set()


def pseudonymiser(key: bytes) -> Callable[[Any], str | None]:
    """A function from a plain value to its pseudonym; None for what is missing.

    HMAC (RFC 2104) with the key absorbed once, which is a third of the cost of `hmac.digest` for short values.
    """
    padded = key.ljust(_BLOCK, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def pseudonym(value: Any) -> str | None:
        message = canonical(value)
        if message is None:
            return None
        first, second = inner.copy(), outer.copy()
        first.update(message)
        second.update(first.digest())
        return MARK + second.hexdigest()[:32]

    return pseudonym


def canonical(value: Any) -> bytes | None:
    """The bytes of a plain value that are hashed; None if it is missing."""
    kind = type(value)
    if isinstance(value, str):
        return b"s" + value[:MAX_TEXT].encode("utf-8", "surrogatepass")
    if kind is float or kind is int:
        number = _double(value)
        return None if number != number else b"n" + struct.pack(">d", number)
    if kind is bool:
        return b"b1" if value else b"b0"
    if kind is list:
        numbers = [math.nan if item is None or item != item else _double(item) for item in value[:MAX_LIST]]
        return b"l" + struct.pack(f">{len(numbers)}d", *numbers)
    return None


def bucket(value: Any, width: float) -> float | None:
    """The lower edge of the number's bucket; None of what is no number. What is not finite stays so."""
    if type(value) is not float and type(value) is not int:
        return None
    quotient = _double(value) / width
    return math.floor(quotient) * width + 0.0 if math.isfinite(quotient) else quotient


def _double(value: float) -> float:
    try:
        return float(value) + 0.0  # -0 becomes 0
    except OverflowError:
        return _TOO_LARGE if value > 0 else -_TOO_LARGE


def _is_place(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _check(name: str, rule: Any) -> None:
    if name == CALLER:
        if rule != "hash":
            raise ValueError(f"sensitive: {CALLER} can be hashed, nothing else: limits need to know who asks")
        return
    if rule in ("drop", "hash"):
        return
    width = rule.get("bucket") if isinstance(rule, Mapping) and len(rule) == 1 else None
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < math.inf:
        raise ValueError(f'sensitive: the rule of {name!r} must be "drop", "hash" or {{"bucket": width above 0}}')
