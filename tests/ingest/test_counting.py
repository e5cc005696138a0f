"""Reports of ingest: what was asked and served, each second of the log's time, of constant size, signed."""

from __future__ import annotations

import pytest

from responders.signing import Keyring, SigningKey
from schemas.config import EndpointConfig
from schemas.events import LATENCY_BUCKETS, MAX_REPORT_CALLERS, MAX_REPORT_ROUTES, Report
from schemas.ingest import MAX_WAIT_MS
from schemas.topics import REPORTS
from streams.ingest.predictions import SIGNED_KIND, signed_part
from streams.ingest.written import Already, places_of
from streams.records import Outgoing, Records
from streams.report_log import ReportLog
from tests.ingest.making import NOW, PARTITIONS, Pairing, as_json, records, request, response
from tests.streams.fakes import no_pause


def test_a_report_says_what_was_asked_and_how_it_was_answered() -> None:
    pairing = Pairing(vouched=True, fallback_ok=lambda endpoint: endpoint == "credit")
    pairing.ask(
        *(request(f"r{number}", caller="ann", caller_auth="verified") for number in range(3)),
        request("r3", caller="bob"),
        request("r4", caller="bob"),
        request("f1", endpoint="fraud"),
    )
    pairing.answer(
        response("r0", latency_ms=0.2), response("r1", latency_ms=1e9), response("r2", served_by="fallback"),
        response("r3", status="error"),
    )  # fmt: skip

    credit, fraud = sorted(pairing.reports(NOW + 1_000), key=lambda report: report["endpoint"])

    assert (credit["asked"], credit["in_flight"], credit["fallback_ok"]) == (5, 1, True)
    assert (fraud["asked"], fraud["in_flight"], fraud["fallback_ok"]) == (1, 1, False)
    assert (credit["guard_id"], credit["seq"], credit["from_ms"], credit["to_ms"]) == ("ingest-0", 0, NOW, NOW + 1_000)
    routes = {route["route"]: (route["served"], route["errors"], route["timeouts"]) for route in credit["routes"]}
    assert routes == {"primary": (2, 1, 0), "fallback": (1, 0, 0)}
    assert [(c["caller"], c["caller_auth"], c["asked"], c["served"]) for c in credit["callers"]] == [
        ("ann", "verified", 3, 3), ("bob", "claimed", 2, 1),
    ]  # fmt: skip
    latency = next(route["latency"] for route in credit["routes"] if route["route"] == "primary")
    assert (len(latency), latency[0], latency[-1], sum(latency)) == (LATENCY_BUCKETS, 1, 1, 2)


def test_a_report_comes_each_second_also_when_nothing_is_asked() -> None:
    pairing = Pairing()
    pairing.ask(request("r0"))
    pairing.answer(response("r0"))

    asked = []
    for ms in range(0, 3_001, 250):
        asked += [(report["seq"], report["asked"]) for report in pairing.reports(NOW + ms)]

    assert asked == [(0, 1), (1, 0), (2, 0)]


def test_what_was_never_answered_is_a_timeout() -> None:
    pairing = Pairing()
    pairing.ask(request("r0"))
    pairing.expire(NOW + MAX_WAIT_MS)

    (report,) = pairing.reports(NOW + MAX_WAIT_MS)

    assert [(route["served"], route["timeouts"]) for route in report["routes"]] == [(0, 1)]
    assert report["in_flight"] == 0


def test_timeouts_are_those_of_the_version_that_answers() -> None:
    """Only responses name it, and what was never answered has none; health judges the live version alone."""
    pairing = Pairing()
    pairing.ask(request("r0"), request("r1"))
    pairing.answer(response("r0", model_version="v3"))
    pairing.expire(NOW + MAX_WAIT_MS)

    (report,) = pairing.reports(NOW + MAX_WAIT_MS)

    assert report["live_version"] == "v3"
    assert [(route["version"], route["served"], route["timeouts"]) for route in report["routes"]] == [("v3", 1, 1)]


def test_what_the_fallback_answers_says_nothing_of_the_live_version() -> None:
    pairing = Pairing()
    pairing.ask(request("r0"), request("r1"))
    pairing.answer(response("r0", model_version="v3", served_by="probe"), response("r1", served_by="fallback"))

    (report,) = pairing.reports(NOW + 1_000)

    assert report["live_version"] == "v3"


def test_a_report_hurries_when_a_caller_jumps_and_at_the_first_error() -> None:
    pairing = Pairing()
    pairing.ask(*(request(f"r{number}") for number in range(20)))
    assert not pairing.reports(NOW + 250)
    pairing.ask(request("r20"))
    assert not pairing.reports(NOW + 249)
    assert [report["asked"] for report in pairing.reports(NOW + 250)] == [21]

    pairing.answer(response("r0", status="error"), ms=NOW + 300)
    assert len(pairing.reports(NOW + 500)) == 1
    pairing.answer(response("r1", status="error"), ms=NOW + 600)
    assert not pairing.reports(NOW + 800)


def test_an_endpoint_with_a_guard_is_not_counted_twice() -> None:
    pairing = Pairing(guarded=True)
    pairing.ask(request("r0"))
    pairing.answer(response("r0"))

    assert not pairing.reports(NOW + 5_000)
    assert len(pairing.predictions) == 1


def test_a_report_is_of_constant_size_whatever_the_load() -> None:
    pairing = Pairing()
    for turn in range(4):
        names = [f"{turn}-{number}" for number in range(2_500)]
        pairing.ask(*(request(name, caller=f"c{name}") for name in names))
        pairing.answer(*(response(name, model_version=f"v{name}") for name in names))

    (report,) = pairing.reports(NOW + 1_000)

    assert len(report["callers"]) == MAX_REPORT_CALLERS
    assert len(report["routes"]) <= MAX_REPORT_ROUTES
    assert sum(route["served"] for route in report["routes"]) == 10_000
    assert report["asked"] == 10_000 == report["rest_asked"] + sum(each["asked"] for each in report["callers"])
    assert report["distinct_callers"] == pytest.approx(10_000, rel=0.03)
    assert report["rest_callers"] == report["distinct_callers"] - MAX_REPORT_CALLERS
    assert len(Report(**report).to_bytes()) < 40_000


def test_requests_that_are_read_again_after_a_restart_are_not_counted_again() -> None:
    before, after = Pairing(), Pairing()
    events = [request(f"r{number}") for number in range(6)]
    before.ask(*events)
    before.answer(response("r1"), response("r4"))

    after.log.recall(Already.of([found for record in before.sent for found in places_of(record.value, 0)]))
    after.ask(*events, request("r6"))
    after.answer(response("r1"), response("r4"), response("r0"))

    (report,) = after.reports(NOW + 1_000)
    assert report["asked"] == 2  # r5, whose count was not on record yet, and r6
    assert sum(route["served"] for route in report["routes"]) == 1
    assert report["in_flight"] == 4


@pytest.mark.anyio
@pytest.mark.parametrize("signs", [True, False])
async def test_the_detect_role_believes_the_reports_that_a_listed_key_signed(signs: bool) -> None:
    key = SigningKey.generate()
    pairing = Pairing(signer=key if signs else None)
    await take_one(pairing)
    (record,) = pairing.log.reports(NOW + 1_000)

    assert trusted(record, key) == signs
    assert not trusted(record, SigningKey.generate())


async def take_one(pairing: Pairing) -> None:
    await pairing.log.take("palisade.requests", records(as_json(request("r0"))), NOW, no_pause)


def trusted(record: Outgoing, listed: SigningKey) -> bool:
    """Whether role detect takes the report for a signed one."""
    endpoint = EndpointConfig(name="credit", guard=False, producer_keys=(listed.public_base64,))
    log = ReportLog(2, PARTITIONS, {"credit": endpoint}, lambda _: None)  # type: ignore[arg-type, return-value]
    event = log._event(Records([record.value], [record.key], [record.headers], [0], [NOW]), 0, None)  # type: ignore[arg-type]
    assert not isinstance(event, Outgoing)
    return bool(event.trusted)  # type: ignore[union-attr]


def test_predictions_are_signed_too_so_that_a_stranger_cannot_say_what_was_written() -> None:
    key = SigningKey.generate()
    pairing = Pairing(signer=key)
    pairing.ask(request("r0"))
    pairing.answer(response("r0"))

    (record,) = pairing.sent
    assert Keyring([key.public_base64]).verify(SIGNED_KIND, signed_part(record.value), record.headers) == key.key_id
    assert record.topic != REPORTS
