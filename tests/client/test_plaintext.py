"""A Guard and an Emitter send nothing readable off this machine unless the service says so by name: the rule of the roles."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from palisade_client import Emitter, Guard, PlaintextRefused
from palisade_client import _log as client_log
from palisade_client._transport import KafkaTransport
from pydantic import ValidationError

from streams.transport.settings import KafkaConnection

AWAY = "kafka.example:9092"
Make = Callable[..., object]
MAKERS: tuple[Make, ...] = (
    lambda bootstrap, **options: Guard("credit", bootstrap=bootstrap, **options),
    lambda bootstrap, **options: Emitter(bootstrap, **options),
)
made_by_each = pytest.mark.parametrize("make", MAKERS, ids=["guard", "emitter"])


@pytest.fixture(autouse=True)
def nothing_said_yet() -> Iterator[None]:
    """A message is logged once in 5 s, whatever the test before logged."""
    client_log._last.clear()
    yield
    client_log._last.clear()


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


@made_by_each
@pytest.mark.parametrize("settings", [{}, {"security.protocol": "plaintext"}, {"security.protocol": "SASL_PLAINTEXT"}])
def test_plaintext_off_this_machine_is_an_error_at_construction_that_says_what_to_set(
    make: Make, settings: dict[str, str]
) -> None:
    with pytest.raises(PlaintextRefused) as refused:
        make(AWAY, kafka_settings=settings)
    assert {"security.protocol", "allow_plaintext=True", "PALISADE_ALLOW_PLAINTEXT=1"} <= set(
        str(refused.value).split()
    )


@made_by_each
@pytest.mark.parametrize("name", ["bootstrap.servers", "metadata.broker.list"])
def test_brokers_that_the_settings_name_are_judged_too(make: Make, name: str) -> None:
    with pytest.raises(PlaintextRefused, match=AWAY):
        make("127.0.0.1:1", kafka_settings={name: AWAY})


@made_by_each
def test_an_address_of_the_environment_is_judged_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALISADE_BOOTSTRAP", AWAY)
    with pytest.raises(PlaintextRefused, match=AWAY):
        make(None)


@made_by_each
@pytest.mark.parametrize("protocol", ["SSL", "sasl_ssl"])
def test_tls_is_fine_anywhere(make: Make, protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    make(AWAY, kafka_settings={"security.protocol": protocol})
    assert "TLS" not in said(caplog)


@made_by_each
def test_plaintext_that_is_allowed_by_name_is_used_and_said_loudly(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    make(AWAY, allow_plaintext=True)
    assert f"WITHOUT TLS at {AWAY}" in said(caplog)


@made_by_each
def test_the_environment_may_allow_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALISADE_ALLOW_PLAINTEXT", "0")
    with pytest.raises(PlaintextRefused):
        make(AWAY)
    monkeypatch.setenv("PALISADE_ALLOW_PLAINTEXT", "1")
    make(AWAY)


@made_by_each
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable.ssl.certificate.verification", False),
        ("enable.ssl.certificate.verification", "False"),
        ("enable.ssl.certificate.verification", 0),
        ("ssl.endpoint.identification.algorithm", "none"),
    ],
)
def test_tls_that_verifies_nobody_is_said_loudly(
    make: Make, name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    make(AWAY, kafka_settings={"security.protocol": "SSL", name: value})
    assert f"{name} IS {value}" in said(caplog)


def test_an_address_that_turns_up_after_construction_is_refused_without_failing_a_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    guard = Guard("credit")
    monkeypatch.setenv("PALISADE_BOOTSTRAP", AWAY)

    assert guard.call(lambda features: 0.9, {}, caller="a") == 0.9
    assert "KAFKA SETTINGS ARE REFUSED" in said(caplog)
    guard.close()


@pytest.mark.parametrize(
    "bootstrap",
    [
        "localhost",
        "localhost:9092",
        "127.0.0.2:1, 127.0.0.1:9092",
        "[::1]:9092",
        "PLAINTEXT://127.0.0.1:9092",
        "kafka",
        AWAY,
        f"127.0.0.1:9092,{AWAY}",
        "0.0.0.0:9092",
        "[2001:db8::1]:9092",
        "127.0.0.1.example:9092",
        f"PLAINTEXT://{AWAY}/://127.0.0.1:9092",
    ],
)
def test_client_and_roles_judge_an_address_alike(bootstrap: str) -> None:
    def refused(make: Callable[[], object], by: type[Exception]) -> bool:
        try:
            make()
        except by:
            return True
        return False

    by_roles = refused(lambda: KafkaConnection(bootstrap=bootstrap), ValidationError)
    assert refused(lambda: KafkaTransport(bootstrap, {"log_level": 0}), PlaintextRefused) == by_roles
