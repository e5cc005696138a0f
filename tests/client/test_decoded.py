"""What the client writes the service's decoder reads: nothing is dead-lettered, each encoding says the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from palisade_client import Emitter, _encode
from palisade_client.testing import START_MS, FakeTransport

from schemas.topics import PREDICTIONS
from streams.decode import Decoder

ROWS: dict[str, list[tuple[Any, Any]]] = {
    "numbers": [({"a": float(n), "b": n}, n / 10) for n in range(8)],
    "texts and gaps": [({"a": 1.0, "c": "x"} if n % 2 else {"a": None, "d": True}, "yes") for n in range(8)],
    "labels of bool": [({"a": 1.0}, n % 2 == 0) for n in range(8)],
    "lists": [({"a": [1.0, 2.0, None]}, [0.1, 0.9]) for n in range(8)],
    "objects": [({"a": 1.0}, {"yes": 0.9, "no": 0.1}) for n in range(8)],
    "mixed": [({"a": 1.0 if n % 2 else "one"}, 1 if n % 2 else None) for n in range(8)],
    "profile order": [([1.0, "x", None], 0.5) for n in range(8)],
    "no outcome": [({"a": 1.0}, None) for n in range(8)],
    "not finite": [({"a": float("nan"), "b": float("inf")}, float("-inf")) for n in range(8)],
    "odd texts": [({"a": "\ud800", "naïve": "\x00"}, "\ud800") for n in range(8)],
}


def emitted(rows: list[tuple[Any, Any]], *, at_once: bool) -> FakeTransport:
    transport = FakeTransport()
    emitter = Emitter(transport=transport)
    for number, (features, outcome) in enumerate(rows):
        emitter.emit(
            "credit", features, outcome, caller=f"c{number % 2}", caller_auth="verified", ts=START_MS, latency_ms=2.0
        )
        if not at_once:
            emitter.flush()
    emitter.flush()
    return transport


def decoded(transport: FakeTransport) -> Any:
    decoder = Decoder(PREDICTIONS, 0, 1, schema_of=lambda endpoint, version: None)
    sent, count = transport.sent, len(transport.sent)
    segments = list(
        decoder.segments(
            [record.value for record in sent],
            [record.key.encode() for record in sent],
            [list(record.headers.items()) for record in sent],
            list(range(count)),
            [START_MS] * count,
        )
    )
    assert [segment.dead_letters for segment in segments] == [()]
    return segments[0].columns


@pytest.mark.parametrize("arrow", [True, False], ids=["with pyarrow", "without"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_batches_and_single_events_are_decoded_alike(
    rows: list[tuple[Any, Any]], arrow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not arrow:
        monkeypatch.setattr(_encode, "pa", None)
    batch, singles = decoded(emitted(rows, at_once=True)), decoded(emitted(rows, at_once=False))

    assert len(batch) == len(singles) == len(rows)
    for name in ("ts", "latency_ms", "status", "value", "weight", "verified"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(singles, name), err_msg=name)
    assert [batch.callers[code] for code in batch.caller] == [singles.callers[code] for code in singles.caller]
    assert batch.verified.all()
    assert len(batch.groups) == len(singles.groups) == 1
    np.testing.assert_array_equal(batch.groups[0].numeric, singles.groups[0].numeric)
