"""Messages to webhook receivers in the form of Standard Webhooks 1.0.0: what is said, under which id, and its signatures.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md. Pure but for reading secrets.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from responders.state import Action, RespondState
from schemas.errors import ConfigError
from schemas.ids import stable_id
from schemas.webhooks import MAX_BODY_BYTES, WantedState, WebhookBody, WebhookLimit

SECRET_BYTES: Final = (24, 64)
"""Least and most bytes of a symmetric secret."""
MAX_SECRET_FILE: Final = 1_000
_ADVICE: Final = "; `openssl rand -base64 32` after `whsec_` makes one"


class Secret(Protocol):
    """Signs. Its repr shows nothing of it."""

    def sign(self, content: bytes) -> str:
        """One signature as it stands in the header: version, comma, base64."""
        ...


class SymmetricSecret:
    """`whsec_` and 24 to 64 bytes in base64: v1, HMAC-SHA256."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __repr__(self) -> str:
        return "SymmetricSecret(...)"

    def sign(self, content: bytes) -> str:
        return "v1," + base64.b64encode(hmac.new(self._key, content, hashlib.sha256).digest()).decode()


class PrivateSecret:
    """`whsk_` and an Ed25519 private key in base64 (the 32 bytes of RFC 8032, or these and the public key): v1a."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    def __repr__(self) -> str:
        return "PrivateSecret(...)"

    @property
    def public(self) -> str:
        """What the receiver verifies with: `whpk_` and base64."""
        return "whpk_" + base64.b64encode(self._key.public_key().public_bytes_raw()).decode()

    def sign(self, content: bytes) -> str:
        return "v1a," + base64.b64encode(self._key.sign(content)).decode()


def parse_secret(text: str) -> Secret:
    """The secret that `text` is. Raises ValueError that never repeats any of it."""
    prefix, _, encoded = text.strip().partition("_")
    if prefix not in ("whsec", "whsk"):
        raise ValueError(f"holds no webhook secret: it must begin with whsec_ (or whsk_ for Ed25519){_ADVICE}")
    try:
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        raw = None  # not raised here: the error would carry the text along
    if raw is None:
        raise ValueError(f"holds no webhook secret: what follows the prefix is no base64{_ADVICE}")
    if prefix == "whsec":
        if not SECRET_BYTES[0] <= len(raw) <= SECRET_BYTES[1]:
            raise ValueError(
                f"has a secret of {len(raw)} bytes; it must have {SECRET_BYTES[0]} to {SECRET_BYTES[1]}{_ADVICE}"
            )
        return SymmetricSecret(raw)
    if len(raw) not in (32, 64):
        raise ValueError(f"has a private key of {len(raw)} bytes; an Ed25519 key has 32, or 64 with its public key")
    key = Ed25519PrivateKey.from_private_bytes(raw[:32])
    if raw[32:] and raw[32:] != key.public_key().public_bytes_raw():
        raise ValueError("has a private key whose public half is of another key")
    return PrivateSecret(key)


def load_secrets(files: Iterable[Path]) -> tuple[Secret, ...]:
    """The secrets of these files, one each. Raises ConfigError that names the file and never what is in it."""
    return tuple(_load(file) for file in files)


def _load(file: Path) -> Secret:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_SECRET_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror}); name an existing file", str(file)) from error
    if len(content) > MAX_SECRET_FILE or not content.isascii():
        raise ConfigError(f"holds no webhook secret: one line that begins with whsec_{_ADVICE}", str(file))
    try:
        return parse_secret(content.decode("ascii"))
    except ValueError as error:
        raise ConfigError(str(error), str(file)) from None


@dataclass(frozen=True, slots=True)
class Message:
    """One state of one endpoint, ready to be sent any number of times.

    `id` is of the bytes of `body`: equal in each attempt, and no two bodies share one. `holds` names the actions that it
    carries (empty: back to normal), so that a renewal is told from a change.
    """

    id: str
    endpoint: str
    epoch: int
    body: bytes
    holds: tuple[str, ...]

    def headers(self, at_s: int, secrets: Sequence[Secret]) -> list[tuple[str, str]]:
        """The three headers of an attempt at `at_s` (Unix seconds), a signature by each secret."""
        content = b".".join((self.id.encode(), str(at_s).encode(), self.body))
        return [
            ("webhook-id", self.id),
            ("webhook-timestamp", str(at_s)),
            ("webhook-signature", " ".join(secret.sign(content) for secret in secrets)),
        ]


def message_for(state: RespondState, endpoint: str, now_ms: int) -> Message:
    """The endpoint's whole wanted state as its directive has it, with moments in place of times to live.

    Its time is that of the change, from the journal: whoever takes over says the same under the same id. Limits that would
    make the body larger than 20 kB are left out, the newest first, and counted in it.
    """
    record = state.record(endpoint)
    route = record.route
    if route is not None and (not route.enforced or route.expires_ms <= now_ms):
        route = None
    limits = [(caller, action) for caller, action in record.limits.items() if action.enforced]
    limits = sorted((each for each in limits if each[1].expires_ms > now_ms), key=_oldest_first)
    wanted = WantedState(
        endpoint=endpoint,
        epoch=record.epoch,
        route="primary" if route is None else "fallback",
        action_id=None if route is None else route.action_id,
        reason=None if route is None else route.reason,
        expires_at=None if route is None else iso_time(route.expires_ms),
    )
    body = _body(wanted, limits, iso_time(record.changed_ms or now_ms))
    holds = [] if route is None else [route.action_id]
    holds += [action.action_id for _, action in limits]
    return Message(stable_id("webhook", endpoint, body.decode()), endpoint, record.epoch, body, tuple(holds))


def iso_time(ms: int) -> str:
    """ISO 8601 in UTC of ms since the epoch."""
    moment = datetime.fromtimestamp(ms / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def _body(wanted: WantedState, limits: list[tuple[str, Action]], at: str) -> bytes:
    """The body with as many of the limits, in their order, as fit."""
    room = MAX_BODY_BYTES - len(WebhookBody(timestamp=at, data=wanted).to_bytes())
    room -= len(f'"limits_left_out":{len(limits)},')
    kept: list[WebhookLimit] = []
    for caller, action in limits:
        limit = _limit(caller, action)
        room -= len(limit.model_dump_json()) + 1
        if room < 0:
            break
        kept.append(limit)
    told = wanted.model_copy(update={"limits": kept, "limits_left_out": len(limits) - len(kept)})
    return WebhookBody(timestamp=at, data=told).to_bytes()


def _limit(caller: str, action: Action) -> WebhookLimit:
    return WebhookLimit(
        caller=caller,
        rate_per_s=action.rate_per_s or 0.0,
        expires_at=iso_time(action.expires_ms),
        action_id=action.action_id,
        reason=action.reason,
    )


def _oldest_first(limit: tuple[str, Action]) -> tuple[int, str]:
    return limit[1].since_ms, limit[0]
