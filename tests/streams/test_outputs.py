"""What a model answers, from the record to the signal: probabilities by label that change places, in JSON and in Arrow."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detectors.profile import Profile
from detectors.profile_build import build_profile
from schemas.signals import Signal
from schemas.topics import SIGNALS
from schemas.wire import ARROW_TYPE, CONTENT_TYPE_HEADER
from streams.records import Outgoing, RawHeaders, Records
from tests.streams.fakes import no_pause
from tests.streams.log_of_predictions import activation, open_log

LABELS = ("approve", "review", "reject")
ROWS, CHANGE_AT = 3_000, 1_500


def answers(rng: np.random.Generator, rows: int) -> list[dict[str, float]]:
    """Mostly sure that it approves."""
    chances = rng.dirichlet((6.0, 2.0, 1.0), rows)
    return [dict(zip(LABELS, row, strict=True)) for row in chances.tolist()]


@cache
def profile() -> Profile:
    rng = np.random.default_rng(1)
    table = pa.table({"amount": rng.normal(100, 15, 6_000), "answer": answers(rng, 6_000)})
    return build_profile(table, prediction=["answer"])


def changed(answer: dict[str, float]) -> dict[str, float]:
    """The model's labels in the wrong order."""
    return dict(zip(LABELS, reversed(answer.values()), strict=True))


def events(*, change: bool = True, **fields: Any) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(2)
    for row, answer in enumerate(answers(rng, ROWS)):
        yield {
            "endpoint": "credit",
            "model_version": "v1",
            "caller": f"c{row % 40}",
            "caller_auth": "verified",
            "features": {"amount": float(rng.normal(100, 15))},
            "prediction": changed(answer) if change and row >= CHANGE_AT else answer,
        } | fields


def in_json(rows: Sequence[dict[str, Any]]) -> list[tuple[bytes, RawHeaders]]:
    return [(json.dumps(row).encode(), None) for row in rows]


def in_arrow(rows: Sequence[dict[str, Any]]) -> list[tuple[bytes, RawHeaders]]:
    found: list[tuple[bytes, RawHeaders]] = []
    for at in range(0, len(rows), 50):
        table, sink = pa.Table.from_pylist(rows[at : at + 50]), io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        found.append((sink.getvalue(), [(CONTENT_TYPE_HEADER, ARROW_TYPE.encode())]))
    return found


def signals(sent: Sequence[tuple[bytes, RawHeaders]]) -> list[Signal]:
    """What the log says of the outputs of the endpoint, whose profile is active from the first record on."""
    values, headers = zip(activation("credit", profile().hash), *sent, strict=True)
    n = len(values)
    records = Records(
        list(values), [b"credit"] * n, list(headers), list(range(n)), [k * ROWS * 10 // n for k in range(n)]
    )
    log = open_log(content={profile().hash: profile().to_bytes()})
    out: list[Outgoing] = asyncio.run(log.take(records, 0, no_pause))
    said = [Signal.from_bytes(record.value) for record in out if record.topic == SIGNALS]
    return [signal for signal in said if signal.kind == "prediction_drift"]


@pytest.mark.parametrize("encoded", [in_json, in_arrow])
def test_labels_in_the_wrong_order_open_an_incident_within_two_blocks(encoded: Any) -> None:
    said = signals(encoded(list(events())))

    opened = said[0]
    assert (opened.state, opened.endpoint, opened.subject_kind) == ("opened", "credit", "endpoint")
    assert CHANGE_AT * 10 < opened.at_ms <= (CHANGE_AT + 2 * 256) * 10
    observed = dict(zip(opened.evidence["labels"], opened.evidence["observed_shares"], strict=True))  # type: ignore[arg-type]
    expected = dict(zip(opened.evidence["labels"], opened.evidence["expected_shares"], strict=True))  # type: ignore[arg-type]
    assert observed["reject"] > expected["reject"] + 0.1


@pytest.mark.parametrize("encoded", [in_json, in_arrow])
def test_a_model_that_goes_on_as_it_was_is_nothing_to_tell(encoded: Any) -> None:
    assert not signals(encoded(list(events(change=False))))


def test_what_a_fallback_answers_meanwhile_is_not_the_versions() -> None:
    rows = list(events())
    for row in rows[CHANGE_AT:]:
        row["served_by"] = "fallback"

    said = signals(in_json(rows))

    assert {signal.state for signal in said} <= {"unknown"}


def test_answers_of_another_kind_than_on_the_table_are_told() -> None:
    said = signals(in_json(list(events(prediction="approve", change=False))))

    assert said[0].state == "opened"
    assert said[0].evidence["outputs"][0] == "confidence"  # type: ignore[index]
    assert said[0].evidence["observed_missing"][0] == 1.0  # type: ignore[index]
