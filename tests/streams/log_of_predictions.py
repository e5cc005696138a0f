"""A small log of predictions for tests: a real profile, two endpoints, ticks, a shift planted late in one of them."""

from __future__ import annotations

import hashlib
import json
from functools import cache

import numpy as np
import pyarrow as pa

from detectors.bank import Bank, place_of_block
from detectors.base import Budget, part_of
from detectors.learning import Learning
from detectors.profile import Profile
from detectors.profile_build import build_profile
from detectors.registry import block_detectors, fit
from palisade.settings import default_policy
from responders.signing import Keyring, SigningKey
from schemas.events import ProfileActivated
from schemas.topics import PROFILES
from schemas.wire import KIND_HEADER
from streams.prediction_log import PredictionLog, ProfileSource
from streams.profiles import Active, ProfileMissing
from streams.records import Outgoing, RawHeaders, Records

ENDPOINTS = ("credit", "spam")
OPERATOR = SigningKey.generate()
ROWS = 4_000
SHIFT_FROM = 2_800


@cache
def profile() -> Profile:
    rng = np.random.default_rng(7)
    n = 6_000
    table = {
        "amount": rng.normal(100, 15, n),
        "age": rng.gamma(3, 12, n),
        "plan": rng.choice(["free", "basic", "pro"], n, p=[0.6, 0.3, 0.1]),
    }
    return build_profile(pa.table(table), seed=1)


def activation(endpoint: str, profile_hash: str | None = None) -> tuple[bytes, RawHeaders]:
    value = ProfileActivated(
        endpoint=endpoint, version="v1", profile_hash=profile_hash or profile().hash, actor="test", at_ms=1
    ).to_bytes()
    kind = ProfileActivated.KIND
    return value, [(KIND_HEADER, kind.encode()), *OPERATOR.headers(kind, value)]


@cache
def records() -> Records:
    """Activations, then rows of both endpoints with a tick every 40 ms of broker time or so."""
    rng = np.random.default_rng(11)
    values: list[bytes | None] = []
    headers: list[RawHeaders] = []
    keys: list[bytes | None] = []
    times: list[int] = []
    now = 1_000_000

    def add(key: bytes | None, value: bytes, header: RawHeaders) -> None:
        values.append(value)
        headers.append(header)
        keys.append(key)
        times.append(now)

    for endpoint in ENDPOINTS:
        value, header = activation(endpoint)
        add(endpoint.encode(), value, header)
    for row in range(ROWS):
        now += int(rng.integers(0, 12))
        endpoint = ENDPOINTS[int(rng.random() < 0.25)]
        factor = 2.54 if endpoint == "credit" and row >= SHIFT_FROM else 1.0
        event = {
            "endpoint": endpoint,
            "model_version": "v1",
            "caller": f"c{int(rng.integers(0, 40))}",
            "caller_auth": "verified",
            "features": {
                "amount": float(rng.normal(100, 15)) * factor,
                "age": float(rng.gamma(3, 12)),
                "plan": str(rng.choice(["free", "basic", "pro"], p=[0.6, 0.3, 0.1])),
            },
            "prediction": 0.5,
        }
        add(endpoint.encode(), json.dumps(event).encode(), None)
        if row % 40 == 0:
            add(None, b'{"worker":"w","at_ms":1}', [(KIND_HEADER, b"tick")])
    return Records(values, keys, headers, list(range(100, 100 + len(values))), times)


def content_of_log(out: list[Outgoing]) -> dict[str, bytes]:
    """The profiles that `out` published."""
    return {hashlib.sha256(record.value).hexdigest(): record.value for record in out if record.topic == PROFILES}


def open_log(
    active: list[Active] | None = None, *, learning: Learning | None = None, content: dict[str, bytes] | None = None
) -> PredictionLog:
    """A cold log of the partition, with the default bank; `learning` replaces its own, `content` are more profiles."""
    detectors = block_detectors(default_policy())
    if learning is not None:
        detectors = [learning if detector.name == learning.name else detector for detector in detectors]
    content = {profile().hash: profile().to_bytes()} | (content or {})

    async def get(name: str) -> bytes:
        if name not in content:
            raise ProfileMissing("no such profile")
        return content[name]

    return PredictionLog(
        0,
        1,
        Bank(detectors, place_of_block, 2_000),
        lambda endpoint, version, found, learned: fit(
            detectors, part_of(endpoint, version), found, Budget(1.0, 1_000_000.0), learned=learned
        ),
        ENDPOINTS.__contains__,
        ProfileSource(get, content.get, lambda: active or []),
        Keyring([OPERATOR.public_base64]),
    )
