"""Records that confluent-kafka's producer refuses to write and every other client of Kafka can: header names of any bytes."""

from __future__ import annotations

import ctypes

from streams.embedded_broker import _load

_END, _TOPIC, _PARTITION, _VALUE, _KEY, _MSGFLAGS, _HEADER = 0, 1, 3, 4, 5, 7, 9  # rd_kafka_vtype_t
_COPY = 2  # RD_KAFKA_MSG_F_COPY


def produce_raw(bootstrap: str, topic: str, value: bytes, header: bytes, key: bytes = b"k", partition: int = 0) -> None:
    """One record with a header of that name; returns when it is delivered. librdkafka's C functions, by their varargs."""
    library, text, number, size = _load(), ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
    message = ctypes.create_string_buffer(512)
    conf = library.rd_kafka_conf_new()
    library.rd_kafka_conf_set(conf, b"bootstrap.servers", bootstrap.encode(), message, len(message))
    producer = ctypes.c_void_p(library.rd_kafka_new(0, conf, message, len(message)))
    failed = library.rd_kafka_producev(
        producer, number(_TOPIC), text(topic.encode()), number(_PARTITION), ctypes.c_int32(partition),
        number(_VALUE), text(value), size(len(value)), number(_KEY), text(key), size(len(key)),
        number(_HEADER), text(header), text(b"v"), ctypes.c_ssize_t(1),
        number(_MSGFLAGS), number(_COPY), number(_END),
    ) or library.rd_kafka_flush(producer, 10_000)  # fmt: skip
    library.rd_kafka_destroy(producer)
    if failed:
        raise RuntimeError(f"not delivered: {failed}")
