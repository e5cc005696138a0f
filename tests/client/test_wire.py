"""The client's own copies of wire facts equal the service's contracts and librdkafka's behaviour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st
from palisade_client import Guard, _counts, _encode, _wire
from palisade_client.testing import FakeTransport, ThrowawayKey, directive, kill_switch

from responders.signing import Keyring, SigningKey
from schemas import events, ids, topics, wire
from schemas.actions import MAX_LIMITS, MAX_TTL_MS, Directive, KillSwitch
from streams.embedded_broker import EmbeddedBroker


@given(st.text(max_size=200))
def test_an_id_is_cleaned_as_the_service_cleans_it(text: str) -> None:
    assert _wire.clean_id(text) == ids.clean_id(text)


def test_the_constants_are_those_of_the_contracts() -> None:
    from palisade_client import _directives

    assert (_wire.PREDICTIONS, _wire.REPORTS, _wire.DIRECTIVES) == (
        topics.PREDICTIONS,
        topics.REPORTS,
        topics.DIRECTIVES,
    )
    assert _wire.KIND_HEADER == wire.KIND_HEADER
    assert (_wire.SIGNATURE_HEADER, _wire.KEY_ID_HEADER) == (wire.SIGNATURE_HEADER, wire.KEY_ID_HEADER)
    assert (_wire.CONTENT_TYPE_HEADER, _wire.JSON_TYPE, _wire.ARROW_TYPE) == (
        wire.CONTENT_TYPE_HEADER,
        wire.JSON_TYPE,
        wire.ARROW_TYPE,
    )
    assert (_wire.MAX_RECORD_BYTES, _wire.MAX_EVENT_BYTES) == (events.MAX_RECORD_BYTES, events.MAX_EVENT_BYTES)
    assert _wire.SCHEMA_VERSION == wire.SCHEMA_VERSION
    assert _counts.LATENCY_BOUNDS_MS == events.LATENCY_BOUNDS_MS
    assert _counts.MAX_REPORT_CALLERS == events.MAX_REPORT_CALLERS
    assert _encode.MAX_FEATURES == events.MAX_FEATURES
    assert _encode.MAX_ROWS <= events.MAX_ROWS_PER_RECORD
    assert (_directives.MAX_LIMITS, _directives.MAX_TTL_MS) == (MAX_LIMITS, MAX_TTL_MS)


def test_an_event_has_the_fields_of_the_contract() -> None:
    assert set(_encode.Event._fields) <= set(events.Prediction.model_fields)


def test_a_key_lies_in_the_partition_where_librdkafka_puts_it(
    embedded_broker: Callable[..., EmbeddedBroker],
) -> None:
    broker = embedded_broker({"t": 7})
    producer = Producer({"bootstrap.servers": broker.bootstrap, "partitioner": "murmur2_random"})
    placed: dict[Any, Any] = {}
    keys = [
        "a",
        "ab",
        "abc",
        "abcd",
        "credit-risk",
        "EWR",
        "JFK",
        "LGA",
        "endpoint:1@eu",
        *(f"e{i}" for i in range(200)),
    ]
    for key in keys:
        producer.produce("t", b"x", key, on_delivery=lambda _, m: placed.__setitem__(m.key(), m.partition()))
    producer.flush(10)

    assert placed == {key.encode(): _wire.partition_of(key, 7) for key in keys}


def test_what_a_guard_signs_the_service_verifies(tmp_path: Path) -> None:
    signing = SigningKey.generate()
    signing.save(tmp_path / "producer.pem")
    transport = FakeTransport()
    Guard("credit", transport=transport, producer_key=tmp_path / "producer.pem").flush()
    sent = transport.sent[-1]

    assert Keyring([signing.public_base64]).verify("report", sent.value, list(sent.headers.items())) == signing.key_id


def test_a_directive_of_the_service_is_followed() -> None:
    signing = SigningKey.generate()
    transport = FakeTransport()
    guard = Guard("credit", fallback=0.5, transport=transport, directive_keys=signing.public_base64).start()
    wanted = Directive(endpoint="credit", epoch=3, issued_ms=1, ttl_ms=60_000, mode="enforce", route="fallback")
    value = wanted.to_bytes()
    record = ThrowawayKey().signed("directive", "credit", {})
    headers = {"palisade-kind": b"directive", **dict(signing.headers("directive", value))}
    transport.deliver(record._replace(value=value, headers=headers))

    assert guard.call(lambda features: 0.9, {}, caller="a") == 0.5


def test_the_builders_for_tests_write_records_of_the_contracts() -> None:
    key = ThrowawayKey()
    wanted = Directive.from_bytes(directive("credit", key, limits={"bob": 2.0}, route="fallback").value or b"")
    kill = KillSwitch.from_bytes(kill_switch(key).value or b"")

    assert (wanted.limits[0].caller, wanted.limits[0].rate_per_s, kill.kill) == ("bob", 2.0, True)


@pytest.mark.parametrize("form", ["lines", "pem", "commas"])
def test_directive_keys_are_read_from_files_too(tmp_path: Path, form: str) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from palisade_client._keys import public_keys

    keys = [ThrowawayKey(), ThrowawayKey()]
    pem = [k.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() for k in keys]
    contents = {
        "lines": "# rotation\n" + "\n".join(key.public for key in keys),
        "commas": ",".join(key.public for key in keys),
        "pem": "\n".join(pem),
    }
    path = tmp_path / "keys"
    path.write_text(contents[form])

    assert len(public_keys(str(path))) == 2


def test_a_key_that_is_none_is_an_error_at_construction() -> None:
    with pytest.raises(ValueError, match="neither a file nor the base64"):
        Guard("credit", directive_keys="no-key", transport=FakeTransport())
