"""Dead letters go back to where they came from: whole ones, once, a bounded number of times, and never unsaid."""

from __future__ import annotations

from pathlib import Path

import pytest

from palisade.redrive import Plan, filters_of, plans, read_letters, redrive
from schemas.deadletter import KEPT_BYTES, MAX_REDRIVES, REDRIVEN_HEADER, DeadLetter, DeadReason
from schemas.errors import ConfigError
from schemas.topics import COMMANDS, DEAD_LETTERS, PREDICTIONS
from schemas.wire import KIND_HEADER
from streams.deadletters import Place, dead_letter
from streams.decode import partition_of
from streams.outgoing import dead
from streams.reading import read_to_end
from streams.records import RawHeaders, headers_of
from streams.transport.settings import KafkaConnection
from tests.palisade.conftest import Run
from tests.streams.broker import produce
from tests.transport.test_embedded import Start

EVENT = b'{"endpoint":"credit","caller":"eve","features":{"amount":1}}'


@pytest.fixture
def connection(embedded_broker: Start) -> KafkaConnection:
    broker = embedded_broker({PREDICTIONS: 3, DEAD_LETTERS: 3, COMMANDS: 1})
    return KafkaConnection(bootstrap=broker.bootstrap, fetch_wait_ms=10)


def letter(
    reason: DeadReason = "handler_failed",
    offset: int = 7,
    value: bytes = EVENT,
    headers: RawHeaders = None,
    topic: str = PREDICTIONS,
    partition: int = 0,
    row: int = 0,
) -> DeadLetter:
    at = Place(topic, partition, offset, 1, row)
    return dead_letter(at, reason, "why", value, headers)


def bury(connection: KafkaConnection, *letters: DeadLetter) -> None:
    for each in letters:
        record = dead(each)
        produce(connection, DEAD_LETTERS, (record.key, record.value, record.headers), partition=record.partition or 0)


def planned(connection: KafkaConnection, *, again: bool = False, signatures: bool = False, **wanted: str) -> list[Plan]:
    return list(plans(read_letters(connection, 1_000), wanted, again=again, signatures=signatures))


def on(
    connection: KafkaConnection, topic: str, partition: int = 0
) -> list[tuple[bytes | None, dict[str, bytes | None]]]:
    return [(message.value(), dict(headers_of(message))) for message in read_to_end(connection, topic, partition)]


def test_a_letter_goes_back_with_its_bytes_and_headers_once(connection: KafkaConnection) -> None:
    headers = [(KIND_HEADER, b"prediction"), ("content-type", b"application/json")]
    bury(connection, letter(headers=headers, partition=1), letter("not_json", offset=8))

    assert redrive(connection, planned(connection, reason="handler_failed")) == 1
    assert on(connection, PREDICTIONS, 1) == [(EVENT, dict(headers) | {REDRIVEN_HEADER: b"1"})]

    (second,) = planned(connection, reason="handler_failed")
    assert second.refused.startswith("it was redriven before")
    assert redrive(connection, [second]) == 0
    assert redrive(connection, planned(connection, reason="handler_failed", again=True)) == 1
    assert len(on(connection, PREDICTIONS, 1)) == 2


def test_a_letter_that_was_written_twice_is_sent_once(connection: KafkaConnection) -> None:
    bury(connection, letter(), letter())

    assert redrive(connection, planned(connection)) == 1


def test_a_redrive_of_a_redrive_counts_and_is_bounded(connection: KafkaConnection) -> None:
    times = [letter(offset=at, headers=[(REDRIVEN_HEADER, str(at).encode())]) for at in range(1, MAX_REDRIVES + 1)]
    bury(connection, *times)

    found = planned(connection, again=True)
    assert [bool(plan.refused) for plan in found] == [False] * (MAX_REDRIVES - 1) + [True]
    assert f"redriven {MAX_REDRIVES} times" in found[-1].refused
    redrive(connection, found)
    assert [headers[REDRIVEN_HEADER] for _, headers in on(connection, PREDICTIONS)] == [b"2", b"3"]


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (letter(value=b"x" * (KEPT_BYTES + 1)), "not kept whole"),
        (letter(value=b""), "no bytes"),
        (letter(headers=[("x", b"a" * 300)]), "headers were not kept whole"),
        (letter(headers=[("x", b"\x00")]), "headers were not kept whole"),
        (letter("not_audited"), "would count twice"),
        (letter(topic="somebody.elses"), "none of Palisade's"),
        (letter("wrong_partition", value=b"{}"), "its endpoint"),
        (letter("wrong_partition", value=b'{"endpoint":"","caller":"eve"}'), "only a hash of it was kept"),
    ],
)
def test_what_cannot_be_sent_as_it_was_is_refused_with_the_reason(
    connection: KafkaConnection, refused: DeadLetter, why: str
) -> None:
    bury(connection, refused)

    (plan,) = planned(connection, again=True, signatures=True)
    assert why in plan.refused
    assert redrive(connection, [plan]) == 0


def test_what_a_signature_failed_goes_only_by_name(connection: KafkaConnection) -> None:
    bury(connection, letter("bad_signature", topic=COMMANDS))

    (plan,) = planned(connection, reason="bad_signature")
    assert "signature was refused" in plan.refused
    (wished,) = planned(connection, reason="bad_signature", signatures=True)
    assert redrive(connection, [wished]) == 1


def test_what_lay_on_a_wrong_partition_goes_where_its_endpoint_belongs(connection: KafkaConnection) -> None:
    home = partition_of(b"credit", 3)
    bury(connection, letter("wrong_partition", partition=(home + 1) % 3))

    redrive(connection, planned(connection))
    assert [value for value, _ in on(connection, PREDICTIONS, home)] == [EVENT]


def test_a_row_of_many_goes_without_what_was_said_of_the_whole(connection: KafkaConnection) -> None:
    headers = [(KIND_HEADER, b"prediction"), ("content-type", b"application/vnd.apache.arrow.stream")]
    bury(connection, letter(row=3, headers=headers))

    redrive(connection, planned(connection))
    assert on(connection, PREDICTIONS) == [(EVENT, {KIND_HEADER: b"prediction", REDRIVEN_HEADER: b"1"})]


def test_the_command_says_what_it_would_do_and_then_does_it(
    connection: KafkaConnection, palisade: Run, tmp_path: Path
) -> None:
    config = tmp_path / "palisade.yaml"
    config.write_text(f"kafka:\n  bootstrap: {connection.bootstrap}\nendpoints:\n  - name: credit\n")
    bury(connection, letter(), letter(offset=8, value=b"x" * (KEPT_BYTES + 1)))
    ask = ("deadletter", "redrive", "--filter", "reason=handler_failed", "--config", config)

    status, out, _ = palisade(*ask, "--dry-run")
    assert status == 0
    assert "would be sent" in out
    assert on(connection, PREDICTIONS) == []

    status, out, _ = palisade(*ask)
    assert "1 of 2 sent again" in out
    assert len(on(connection, PREDICTIONS)) == 1
    status, out, _ = palisade(*ask)
    assert "redriven before" in " ".join(out.split())
    assert len(on(connection, PREDICTIONS)) == 1
    assert palisade("deadletter", "redrive", "--config", config)[0] == 2


@pytest.mark.parametrize("wrong", ["reason", "colour=red", "reason=nonsense"])
def test_a_filter_that_says_nothing_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError):
        filters_of([wrong])
