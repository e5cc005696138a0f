"""What was written is read back from the broker: of this partition, since a time, and believed if it is signed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from responders.signing import Keyring, SigningKey
from schemas.topics import PREDICTIONS, REQUESTS, RESPONSES
from streams.embedded_broker import EmbeddedBroker
from streams.ingest.pieces import ROW_BITS
from streams.ingest.written import ReadBack, places_of
from streams.records import Outgoing
from streams.transport.settings import KafkaConnection
from tests.ingest.making import PARTITIONS, Pairing, request, response
from tests.streams.broker import produce

Broker = Callable[[Mapping[str, int]], EmbeddedBroker]


def written(signer: SigningKey | None = None) -> list[Outgoing]:
    """Three pairs, one of them with features in a list, which travel as JSON."""
    pairing = Pairing(signer=signer)
    pairing.ask(request("r0"), request("r1"), request("r2", features=[1.0]))
    pairing.answer(response("r2"), response("r0"))
    pairing.ask(request("r3"))
    return pairing.sent


def put(connection: KafkaConnection, records: list[Outgoing]) -> None:
    for record in records:
        assert record.partition is not None
        produce(connection, PREDICTIONS, (record.key, record.value, record.headers), partition=record.partition)


def places(read_back: ReadBack, partition: int = 0) -> dict[str, list[int]]:
    found = read_back.places(partition, 0)
    return {topic: (places >> ROW_BITS).tolist() for topic, places in found.places.items()}


def test_places_are_read_back_from_every_encoding(embedded_broker: Broker) -> None:
    connection = embedded_broker({PREDICTIONS: PARTITIONS}).connection
    put(connection, written())
    produce(connection, PREDICTIONS, (b"credit", b'{"endpoint":"credit","features":{}}', ()))

    assert places(ReadBack(connection, PARTITIONS, timed=False)) == {REQUESTS: [0, 2], RESPONSES: [0, 1]}
    assert places(ReadBack(connection, PARTITIONS, timed=False), partition=1) == {}


def test_an_empty_log_has_no_places(embedded_broker: Broker) -> None:
    connection = embedded_broker({PREDICTIONS: PARTITIONS}).connection

    assert places(ReadBack(connection, PARTITIONS, timed=False)) == {}


def test_who_signs_believes_no_stranger(embedded_broker: Broker) -> None:
    connection = embedded_broker({PREDICTIONS: PARTITIONS}).connection
    key = SigningKey.generate()
    put(connection, written())
    put(connection, written(SigningKey.generate()))
    read_back = ReadBack(connection, PARTITIONS, Keyring([key.public_base64]), timed=False)

    assert places(read_back) == {}
    put(connection, written(key))
    assert places(read_back) == {REQUESTS: [0, 2], RESPONSES: [0, 1]}


def test_no_bytes_of_a_stranger_stop_the_reading_back() -> None:
    strange = (b"", b"7", b"[7]", b"{", b"\xff\xff\xff\xff", b'[{"origin":"palisade.requests/0/x/0"}]',
               b'[{"origin":"palisade.requests/0/1"}]', b'[{"origin":"palisade.requests/0/99999999999999999999/0"}]')  # fmt: skip

    assert [places_of(value, 0) for value in strange] == [[]] * len(strange)
