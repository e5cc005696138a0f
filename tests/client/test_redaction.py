"""Guard and Emitter with sensitive features: nothing of them leaves the process, whatever becomes of the call."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from palisade_client import CallerLimited, Emitter, Guard, _log
from palisade_client import _redact as redact
from palisade_client.testing import FakeTransport, directive

from tests.client.conftest import ENDPOINT, Bench

KEY = "5e" * 32
SSN, EMAIL, CALLER = "078-05-1120", "canary@example.com", "carol@canary.example"
RULES: Any = {"ssn": "drop", "email": "hash", "age": {"bucket": 10}, "@caller": "hash"}
FEATURES = {"ssn": SSN, "email": EMAIL, "age": 37, "income": 1.5}


@pytest.fixture(autouse=True)
def _key_and_fresh_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALISADE_REDACTION_KEY", KEY)
    monkeypatch.setattr(_log, "_last", {})  # what one test logged would keep the next from logging it


def pseudonym(value: Any) -> str | None:
    return redact.pseudonymiser(bytes.fromhex(KEY))(value)


def everything(transport: FakeTransport) -> str:
    """All that was sent, readable: JSON as it is, Arrow decoded as well as raw."""
    parts = []
    for sent in transport.sent:
        parts += [sent.key, repr(sent.value), repr(dict(sent.headers))]
        if sent.value.startswith(b"\xff\xff\xff\xff"):
            parts.append(str(pa.ipc.open_stream(io.BytesIO(sent.value)).read_all().to_pylist()))
    return "\n".join(parts)


@pytest.mark.parametrize("calls", [1, 50], ids=["alone as JSON", "many as Arrow"])
def test_the_model_sees_what_was_sent_and_kafka_what_the_rules_leave(bench: Bench, calls: int) -> None:
    guard, seen = bench.guard(sensitive=RULES), []

    @guard
    def predict(features: dict[str, Any], *, caller: str) -> float:
        seen.append((features, caller))
        return 0.5

    for _ in range(calls):
        predict(FEATURES, caller=CALLER)
    guard.flush()

    assert seen == [(FEATURES, CALLER)] * calls
    assert FEATURES["ssn"] == SSN  # the service's own object is as it was
    for prediction in bench.predictions:
        assert prediction.features == {"email": pseudonym(EMAIL), "age": 30.0, "income": 1.5}
        assert prediction.caller == pseudonym(CALLER)
    assert len(bench.predictions) == calls
    assert [each.caller for each in bench.report.callers] == [pseudonym(CALLER)]


def odd(**features: Any) -> dict[str, Any]:
    return FEATURES | features


class Stubborn:
    """A value that nobody can read, and whose error shows what it holds."""

    def __str__(self) -> str:
        raise ValueError(f"cannot show {SSN}")


def deep(levels: int) -> Any:
    return {"x": deep(levels - 1)} if levels else EMAIL


ODD: dict[str, Any] = {
    "too deep": odd(ssn=deep(900), email=deep(30)),
    "not a number": odd(age=math.nan, email=math.nan, income=math.inf),
    "numbers as text": odd(age="37 canary@example.com"),
    "too large": {f"f{k}": "x" * 4096 for k in range(40)} | FEATURES,
    "too many": FEATURES | {f"f{k}": 1.0 for k in range(5000)},
    "lists": odd(ssn=[SSN, EMAIL], email=[EMAIL], age=[37]),
    "bytes": odd(ssn=SSN.encode(), email=EMAIL.encode()),
    "lone surrogates": odd(email=EMAIL + "\ud800", ssn=SSN + "\ud800"),
    "unreadable": odd(other=Stubborn()),
    "a list": [SSN, EMAIL, 37],
    "a text": SSN,
    "mixed types": odd(income="text"),
}


@pytest.mark.parametrize("calls", [1, 5], ids=["alone", "together"])
@pytest.mark.parametrize("features", ODD.values(), ids=ODD)
def test_nothing_sensitive_leaves_by_an_odd_event_nor_by_the_log_about_it(
    bench: Bench, features: Any, calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def failing(features: Any) -> float:
        raise ValueError(f"the fallback cannot read {features}")

    guard = bench.guard(sensitive=RULES, fallback=failing)
    for _ in range(calls):
        guard.call(lambda features: 0.5, features, caller=CALLER)
        with pytest.raises(RuntimeError, match="model"):
            guard.call(broken, features, caller=CALLER)
    guard.flush()
    guard.flush()  # what is dropped is told in the next report

    for secret in (SSN, "canary"):
        assert secret not in everything(bench.transport)
        assert secret not in caplog.text
    assert len(bench.predictions) + sum(report.dropped for report in bench.reports) == 2 * calls


def broken(features: Any) -> float:
    raise RuntimeError("the model is broken")


def test_the_canary_is_found_where_no_rule_holds(bench: Bench) -> None:
    guard = bench.guard()
    guard.call(lambda features: 0.5, FEATURES, caller=CALLER)
    guard.flush()
    assert SSN in everything(bench.transport)
    assert CALLER in everything(bench.transport)


def test_a_list_under_rules_that_name_features_is_not_sent_and_told_about(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    guard = bench.guard(sensitive={"ssn": "drop"})
    guard.call(lambda features: 0.5, [SSN, 1.5])
    guard.flush()
    assert bench.predictions == []
    guard.flush()
    assert bench.report.dropped == 1
    assert "give the place of each" in caplog.text


def test_a_rule_that_meets_no_feature_is_told_about(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    guard = bench.guard(sensitive={"SSN": "drop", "age": {"bucket": 10}})
    for _ in range(redact.NAME_ROWS):
        guard.call(lambda features: 0.5, {"ssn": 1, "age": 37})
    guard.flush()
    assert "no feature named SSN" in caplog.text


def test_without_a_key_a_hash_is_refused_at_construction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PALISADE_REDACTION_KEY")
    with pytest.raises(ValueError, match=r"openssl rand -hex 32 .*sensitive_key_file or PALISADE_REDACTION_KEY"):
        Guard(ENDPOINT, sensitive={"email": "hash"}, transport=FakeTransport())
    with pytest.raises(ValueError, match="openssl"):
        Emitter(sensitive={ENDPOINT: {"email": "hash"}}, transport=FakeTransport())


def test_a_limit_on_a_pseudonym_limits_the_caller_behind_it(bench: Bench) -> None:
    guard = bench.guard(sensitive=RULES).start()
    name = pseudonym(CALLER)
    assert name is not None
    bench.transport.deliver(directive(ENDPOINT, bench.key, limits={name: 1e-3}))
    guard.call(lambda features: 0.5, FEATURES, caller=CALLER)
    with pytest.raises(CallerLimited) as refused:
        guard.call(lambda features: 0.5, FEATURES, caller=CALLER)
    assert refused.value.caller == name
    assert guard.call(lambda features: 0.5, FEATURES, caller="somebody else") == 0.5


def test_an_emitter_without_guard_redacts_by_endpoint() -> None:
    transport = FakeTransport()
    emitter = Emitter(transport=transport, sensitive={"credit": RULES})
    emitter.emit("credit", FEATURES, caller=CALLER)
    emitter.emit("other", {"age": 37})
    emitter.flush()
    assert [row["features"] for row in transport.predictions] == [
        {"email": pseudonym(EMAIL), "age": 30.0, "income": 1.5},
        {"age": 37},
    ]
    assert transport.predictions[0]["caller"] == pseudonym(CALLER)


def test_guards_that_share_an_emitter_must_agree_on_an_endpoints_rules(bench: Bench) -> None:
    emitter = Emitter(transport=bench.transport)
    bench.guard(emitter=emitter, sensitive={"ssn": "drop"})
    bench.guard(emitter=emitter, sensitive={"ssn": "drop"})
    with pytest.raises(ValueError, match="give both the same"):
        bench.guard(emitter=emitter, sensitive={"email": "drop"})


def test_the_call_itself_waits_for_none_of_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    guard, redacted = bench.guard(sensitive=RULES), []
    real: Callable[..., None] = redact.Redactor.row
    monkeypatch.setattr(redact.Redactor, "row", lambda self, row: (redacted.append(row), real(self, row)))
    guard.call(lambda features: 0.5, FEATURES)
    assert redacted == []
    guard.flush()
    assert len(redacted) == 1
    assert json.loads(bench.sent("prediction")[0].value)["features"]["age"] == 30.0
