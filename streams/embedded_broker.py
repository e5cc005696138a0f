"""An embedded Kafka broker: librdkafka's own mock cluster, from the library inside the confluent-kafka wheel.

The real protocol on loopback, without Docker and Java. Its limits: in memory and gone with its process, 5 MiB or 100,000
message sets a partition (the oldest go first), no compaction, no admin calls, no fencing of transactions, no TLS.

`python -m streams.embedded_broker --topics name:partitions,...` prints one line of JSON and runs until SIGTERM.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import confluent_kafka

from streams import lifeline
from streams.transport.settings import KafkaConnection

log = logging.getLogger(__name__)

REBALANCE_DELAY_MS = 300  # default 3 s: what a group waits for further members before its first assignment
PARTITION_BYTES = 5 << 20  # retention of the mock cluster, fixed in librdkafka
FETCH_WAIT_MS = 10  # an empty fetch waits its full time here, whatever arrives meanwhile: this is the latency
COMMAND_GAP_S = 0.001  # a command that comes as another is answered may not wake librdkafka's thread for a second
_PRODUCER = 0  # rd_kafka_type_t
Api = Literal["Produce", "ListOffsets", "OffsetCommit"]
API_KEYS: Mapping[Api, int] = {"Produce": 0, "ListOffsets": 2, "OffsetCommit": 8}


class EmbeddedBroker:
    """One broker on a free loopback port, with the given topics. A context manager; one per process is enough.

    Where the wheel's library does not offer the C functions, a plain mock cluster is started instead: its topics come
    into being on first use with four partitions, and `down`, `up` and `refuse` raise RuntimeError.
    """

    def __init__(self, topics: Mapping[str, int]) -> None:
        """topics: partitions of each topic."""
        if any(partitions < 1 for partitions in topics.values()):
            raise ValueError("a topic needs at least one partition")
        self._topics = dict(topics)
        self._library: ctypes.CDLL | None = None
        self._handle: int | None = None
        self._cluster: int | None = None
        self._plain: confluent_kafka.Producer | None = None
        self.bootstrap = ""  # host:port, once started

    def start(self) -> Self:
        """Raises RuntimeError when the library refuses a topic."""
        try:
            self._start_by_ctypes()
        except (OSError, AttributeError) as error:
            log.warning("plain mock cluster, topics get four partitions: %s", error)
            self._start_plain()
        return self

    def stop(self) -> None:
        library, self._library = self._library, None
        self._plain = None
        if library is not None and self._cluster is not None:
            library.rd_kafka_mock_cluster_destroy(self._cluster)
            library.rd_kafka_destroy(self._handle)
        self._cluster = self._handle = None

    def down(self) -> None:
        """Cut all connections and refuse new ones."""
        self._call("rd_kafka_mock_broker_set_down", 1)

    def up(self) -> None:
        self._call("rd_kafka_mock_broker_set_up", 1)

    def refuse(self, api: Api, errors: Sequence[int]) -> None:
        """The next requests of this kind, whoever sends them, are answered with these errors, one each, and not carried out.

        errors: codes of `confluent_kafka.KafkaError`, as the protocol numbers them.
        """
        listed = (ctypes.c_int * len(errors))(*errors)
        self._call("rd_kafka_mock_push_request_errors_array", API_KEYS[api], len(errors), listed)

    def create_topic(self, name: str, partitions: int) -> None:
        """Raises RuntimeError when it exists already."""
        self._call("rd_kafka_mock_topic_create", name.encode(), partitions, 1)

    @property
    def connection(self) -> KafkaConnection:
        """How our own clients should reach it: with short fetches."""
        return KafkaConnection(bootstrap=self.bootstrap, fetch_wait_ms=FETCH_WAIT_MS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def _call(self, function: str, *arguments: int | bytes | ctypes.Array[ctypes.c_int]) -> None:
        if self._library is None:
            raise RuntimeError("the embedded broker runs without the C functions, or not at all")
        time.sleep(COMMAND_GAP_S)
        if code := getattr(self._library, function)(self._cluster, *arguments):
            raise RuntimeError(f"{function}{arguments} failed with code {code}")

    def _start_by_ctypes(self) -> None:
        library = _load()
        message = ctypes.create_string_buffer(512)
        conf = library.rd_kafka_conf_new()
        library.rd_kafka_conf_set(conf, b"log_level", b"4", message, len(message))  # errors: a broker put down is noisy
        self._handle = library.rd_kafka_new(_PRODUCER, conf, message, len(message))
        if not self._handle:
            raise OSError(message.value.decode())
        self._cluster = library.rd_kafka_mock_cluster_new(self._handle, 1)
        if not self._cluster:
            library.rd_kafka_destroy(self._handle)
            raise OSError("rd_kafka_mock_cluster_new returned nothing")
        self._library = library
        self._call("rd_kafka_mock_group_initial_rebalance_delay_ms", REBALANCE_DELAY_MS)
        for name, partitions in self._topics.items():
            self.create_topic(name, partitions)
        self.bootstrap = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()

    def _start_plain(self) -> None:
        self._plain = confluent_kafka.Producer({"bootstrap.servers": "", "test.mock.num.brokers": 1})
        brokers = self._plain.list_topics(timeout=10).brokers.values()
        self.bootstrap = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)


def _load() -> ctypes.CDLL:
    """The library that the wheel brings; its name carries a hash. Raises OSError, AttributeError."""
    package = Path(confluent_kafka.__file__).parent
    found = sorted([*package.parent.glob("confluent_kafka.libs/librdkafka*"), *package.glob(".dylibs/librdkafka*")])
    if not found:
        raise OSError(f"no librdkafka beside {package}")
    library = ctypes.CDLL(str(found[0]))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("rd_kafka_conf_new", pointer, []),
        ("rd_kafka_conf_set", number, [pointer, text, text, text, ctypes.c_size_t]),
        ("rd_kafka_new", pointer, [number, pointer, text, ctypes.c_size_t]),
        ("rd_kafka_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_new", pointer, [pointer, number]),
        ("rd_kafka_mock_cluster_destroy", None, [pointer]),
        ("rd_kafka_mock_cluster_bootstraps", text, [pointer]),
        ("rd_kafka_mock_topic_create", number, [pointer, text, number, number]),
        ("rd_kafka_mock_group_initial_rebalance_delay_ms", None, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_down", number, [pointer, ctypes.c_int32]),
        ("rd_kafka_mock_broker_set_up", number, [pointer, ctypes.c_int32]),
        (
            "rd_kafka_mock_push_request_errors_array",
            None,
            [pointer, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(number)],
        ),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def parse_topics(text: str) -> dict[str, int]:
    """`name:partitions,...` to a mapping. Raises ValueError."""
    topics = {}
    for part in filter(None, text.split(",")):
        name, colon, partitions = part.rpartition(":")
        if not colon or not name or not partitions.isdigit() or int(partitions) < 1:
            raise ValueError(f"{part!r} is not name:partitions")
        topics[name] = int(partitions)
    return topics


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m streams.embedded_broker", description=__doc__.partition("\n")[0])
    parser.add_argument("--topics", type=parse_topics, required=True, metavar="NAME:PARTITIONS,...")
    topics = parser.parse_args().topics
    ending = threading.Event()
    lifeline.hold(ending.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with EmbeddedBroker(topics) as broker:
        said = {"bootstrap": broker.bootstrap, "fetch_wait_ms": FETCH_WAIT_MS, "topics": topics}
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()
        ending.wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
