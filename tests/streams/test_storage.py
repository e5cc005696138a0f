"""Snapshots, profiles and reading to the end: in a directory and on the embedded broker."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from detectors.profile import MAX_PROFILE_BYTES
from palisade.operate import send
from responders.signing import Keyring, SigningKey
from schemas.events import ProfileActivated
from schemas.topics import PROFILES, SNAPSHOTS
from schemas.wire import KIND_HEADER
from streams import reading, snapshots
from streams.embedded_broker import EmbeddedBroker
from streams.profiles import Active, ProfileMissing, ProfileTopic, active_record, profile_record
from streams.reading import read_newest, read_to_end, tail
from streams.records import Outgoing
from streams.snapshots import DirectoryStore, TopicStore
from streams.transport.outbox import Outbox
from streams.transport.settings import kafka_settings
from tests.streams.broker import produce, with_outbox
from tests.streams.log_of_predictions import profile
from tests.support.bombs import RECORDS, bomb

Start = Callable[[Mapping[str, int]], EmbeddedBroker]
OPERATOR = SigningKey.generate()


def directory(path: Path) -> DirectoryStore:
    return DirectoryStore(path)


def test_a_directory_gives_back_what_was_saved_last(tmp_path: Path) -> None:
    async def story() -> None:
        store = directory(tmp_path)
        assert (await store.load("predictions", 3)).start is None
        await store.save("predictions", 3, {"a@v1": b"\x00\n1", "b/../x@v1": b"2"}, 10)
        await store.save("predictions", 3, {"a@v1": b"\x00\n3"}, 20)
        await store.save("reports", 3, {"a@v1": b"other"}, 30)

        saved = await directory(tmp_path).load("predictions", 3)
        assert (saved.start, saved.parts) == (20, {"a@v1": b"\x00\n3", "b/../x@v1": b"2"})

    asyncio.run(story())


def test_a_crash_between_parts_and_manifest_leaves_the_older_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = snapshots._replace

    def crash(path: Path, content: bytes) -> None:
        if path.name == "manifest.json":
            raise OSError("power cut")
        replace(path, content)

    async def story() -> None:
        store = directory(tmp_path)
        await store.save("predictions", 0, {"a": b"1"}, 10)
        monkeypatch.setattr(snapshots, "_replace", crash)
        with pytest.raises(OSError, match="power cut"):
            await store.save("predictions", 0, {"a": b"2"}, 20)

        saved = await store.load("predictions", 0)
        assert (saved.start, saved.parts) == (10, {"a": b"2"})

    asyncio.run(story())


def test_a_crash_while_a_part_is_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: int) -> None:
        raise OSError("power cut")

    async def story() -> None:
        store = directory(tmp_path)
        await store.save("predictions", 0, {"a": b"old"}, 10)
        monkeypatch.setattr(os, "fsync", crash)
        with pytest.raises(OSError, match="power cut"):
            await store.save("predictions", 0, {"a": b"new"}, 20)

        saved = await store.load("predictions", 0)
        assert (saved.start, saved.parts) == (10, {"a": b"old"})

    asyncio.run(story())


def test_damaged_files_of_a_directory_are_left_out(tmp_path: Path) -> None:
    async def story() -> None:
        store = directory(tmp_path)
        await store.save("predictions", 0, {"a": b"1", "b": b"2"}, 10)
        folder = tmp_path / "predictions-0"
        (folder / "x.part").write_bytes(b"\xff\xfe\xfd")
        (folder / f"{hashlib.blake2b(b'b', digest_size=16).hexdigest()}.part").write_bytes(b"")
        (folder / "manifest.json").write_bytes(b"{")

        saved = await store.load("predictions", 0)
        assert (saved.start, saved.parts) == (None, {"a": b"1"})

    asyncio.run(story())


def test_a_topic_gives_back_the_newest_of_each_part_of_its_log_and_partition(embedded_broker: Start) -> None:
    broker = embedded_broker({SNAPSHOTS: 2})

    async def story(outbox: object) -> None:
        store = TopicStore(broker.connection, lambda: outbox)  # type: ignore[arg-type, return-value]
        assert (await store.load("predictions", 1)).start is None
        await store.save("predictions", 1, {"a": b"1", "b": b"2"}, 10)
        await store.save("predictions", 1, {"a": b"3"}, 20)
        await store.save("reports", 1, {"a": b"other"}, 30)
        await store.save("predictions", 0, {"a": b"other"}, 40)

        saved = await store.load("predictions", 1)
        assert (saved.start, saved.parts) == (20, {"a": b"3", "b": b"2"})
        messages = list(read_to_end(broker.connection, SNAPSHOTS, 1))
        assert [message.key() for message in messages][2] == b"predictions|#manifest"

    with_outbox(broker.connection, story)


def test_a_part_that_fits_no_record_is_cleared_and_the_others_are_saved(
    embedded_broker: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = embedded_broker({SNAPSHOTS: 1})
    monkeypatch.setattr(snapshots, "MAX_BLOB_BYTES", 10)

    async def story(outbox: object) -> None:
        store = TopicStore(broker.connection, lambda: outbox)  # type: ignore[arg-type, return-value]
        await store.save("predictions", 0, {"big": b"small yet", "other": b"1"}, 10)
        await store.save("predictions", 0, {"big": b"far too large", "other": b"2"}, 20)

        saved = await store.load("predictions", 0)
        assert (saved.start, saved.parts) == (20, {"other": b"2"})

    with_outbox(broker.connection, story)


def test_more_parts_than_the_outbox_has_room_for_are_saved_one_after_the_other(embedded_broker: Start) -> None:
    broker = embedded_broker({SNAPSHOTS: 1})
    parts = {f"p{number}": b"x" * 100 for number in range(40)}

    async def story() -> None:
        outbox = Outbox(kafka_settings(broker.connection, "producer") | {"queue.buffering.max.messages": 8})
        outbox.start()
        store = TopicStore(broker.connection, lambda: outbox)
        await store.save("predictions", 0, parts, 7)
        saved = await store.load("predictions", 0)
        assert (saved.start, saved.parts) == (7, parts)
        await outbox.close()

    asyncio.run(story())


def test_reading_to_the_end_gives_all_from_where_it_is_told_and_ends(embedded_broker: Start) -> None:
    broker = embedded_broker({"t": 2, "empty": 1})
    produce(broker.connection, "t", *((None, str(n).encode(), ()) for n in range(50)), partition=1)

    def values(**where: int) -> list[int]:
        return [int(message.value() or b"") for message in read_to_end(broker.connection, "t", 1, **where)]

    assert values() == list(range(50))
    assert values(start=48) == [48, 49]
    assert values(last=3) == [47, 48, 49]
    assert values(last=500) == list(range(50))
    assert list(read_to_end(broker.connection, "empty", 0)) == []


def test_reading_to_the_end_steps_over_what_cannot_be_unpacked_and_says_so(embedded_broker: Start) -> None:
    connection = embedded_broker({"t": 1}).connection
    for _ in range(2):
        produce(connection, "t", (None, b"", ()))
        bomb(connection.bootstrap, "t")
    first, second = 1, 2 + RECORDS
    told: list[tuple[int, int]] = []

    read = [
        message.offset() for message in read_to_end(connection, "t", 0, stepped_over=lambda *span: told.append(span))
    ]

    assert read == [0, second - 1]
    assert told == [(first, first + RECORDS), (second, second + RECORDS)]


def test_the_newest_of_each_key_wins_and_a_tombstone_removes_it(embedded_broker: Start) -> None:
    broker = embedded_broker({"t": 1})
    produce(
        broker.connection, "t", (b"x|a", b"1", ()), (b"x|a", b"2", ()), (b"y|a", b"3", ()), (b"x|b", b"4", ()),
        (b"x|b", None, ()), (None, b"5", ()),
    )  # fmt: skip

    newest = read_newest(broker.connection, "t", 0, "x|")

    assert {key: message.value() for key, message in newest.items()} == {"x|a": b"2"}


def test_the_tail_is_the_last_of_each_partition_and_nothing_of_a_topic_that_is_not_there(
    embedded_broker: Start,
) -> None:
    broker = embedded_broker({"t": 2})
    for partition in (0, 1):
        produce(broker.connection, "t", *((None, b"%d" % n, ()) for n in range(9)), partition=partition)

    assert [message.value() for message in tail(broker.connection, "t", 2)] == [b"7", b"8", b"7", b"8"]


def test_a_broker_that_is_away_ends_reading_with_an_error(
    embedded_broker: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from confluent_kafka import KafkaException

    broker = embedded_broker({"t": 1})
    broker.down()
    monkeypatch.setattr(reading, "TIMEOUT_S", 0.5)

    with pytest.raises(KafkaException):
        list(read_to_end(broker.connection, "t", 0))


# -- profiles


def _published(record: Outgoing) -> tuple[bytes | None, bytes, tuple[tuple[str, bytes], ...]]:
    return record.key, record.value, record.headers


def activation(offset: int, version: str = "v1") -> Active:
    name, _ = profile_record(profile().to_bytes())
    activated = ProfileActivated(endpoint="credit", version=version, profile_hash=name, actor="ann", at_ms=1)
    value = activated.to_bytes()
    headers = [(KIND_HEADER, b"profile_activated"), *OPERATOR.headers(ProfileActivated.KIND, value), ("x", b"y")]
    return Active(activated, 2, offset, value, headers)


def following(broker: EmbeddedBroker, story: Callable[[ProfileTopic], object]) -> None:
    topic = ProfileTopic(broker.connection)
    topic.start()
    try:
        asyncio.run(topic.caught_up())
        story(topic)
    finally:
        topic.close()


def test_a_profile_is_found_by_the_hash_of_its_bytes_and_one_under_another_name_is_ignored(
    embedded_broker: Start,
) -> None:
    broker = embedded_broker({PROFILES: 1})
    name, record = profile_record(profile().to_bytes())
    forged = b"profile|" + b"0" * 64
    produce(broker.connection, PROFILES, (forged, b"{}", ()), _published(record), (b"other|x", b"y", ()))

    def story(topic: ProfileTopic) -> None:
        assert topic.peek(name) == profile().to_bytes()
        assert topic.peek("0" * 64) is None
        assert asyncio.run(topic.get(name)) == profile().to_bytes()
        with pytest.raises(ProfileMissing, match="palisade profile activate"):
            asyncio.run(topic.get("0" * 64, timeout_s=0.01))

    following(broker, story)


def test_the_largest_profile_that_is_read_can_be_sent_and_kept(embedded_broker: Start) -> None:
    broker = embedded_broker({PROFILES: 1})
    name, record = profile_record(b"x" * MAX_PROFILE_BYTES)
    send(broker.connection, [record])

    def story(topic: ProfileTopic) -> None:
        assert len(topic.peek(name) or b"") == MAX_PROFILE_BYTES

    following(broker, story)


def test_a_profile_that_arrives_while_somebody_waits_is_handed_over(embedded_broker: Start) -> None:
    broker = embedded_broker({PROFILES: 1})
    name, record = profile_record(b"late")

    def story(topic: ProfileTopic) -> None:
        async def wait() -> bytes:
            waiting = asyncio.ensure_future(topic.get(name, timeout_s=20))
            await asyncio.to_thread(produce, broker.connection, PROFILES, _published(record))
            return await waiting

        assert asyncio.run(wait()) == b"late"

    following(broker, story)


def test_an_activation_is_remembered_with_its_place_and_signature_and_the_newest_of_a_version_holds(
    embedded_broker: Start,
) -> None:
    broker = embedded_broker({PROFILES: 1})
    records = [_published(active_record(activation(offset, version)))
               for offset, version in ((5, "v2"), (7, "v1"), (9, "v2"))]  # fmt: skip
    produce(broker.connection, PROFILES, *records, (b"active|x|y", b"{", ()), (b"active|x|y", b"{}", ()))

    def story(topic: ProfileTopic) -> None:
        assert topic.active(0) == []
        found = topic.active(2)
        assert [(active.activation.version, active.offset) for active in found] == [("v1", 7), ("v2", 9)]
        for active in found:
            keyring = Keyring([OPERATOR.public_base64])
            assert keyring.verify(ProfileActivated.KIND, active.value, active.headers) == OPERATOR.key_id

    following(broker, story)


def test_an_empty_topic_is_caught_up_with_at_once_and_a_missing_broker_is_said(embedded_broker: Start) -> None:
    broker = embedded_broker({PROFILES: 1})
    following(broker, lambda topic: None)

    unstarted = ProfileTopic(broker.connection)
    with pytest.raises(TimeoutError, match="is the broker there"):
        asyncio.run(unstarted.caught_up(timeout_s=0.01))


@pytest.mark.parametrize("start", [b"1e999", b"-1", b"[" * 5_000 + b"]" * 5_000, b"9" * 30, b"null", b'"x"'])
def test_a_manifest_that_names_no_offset_is_as_good_as_none(start: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "log-0"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(b'{"start": ' + start + b"}")
    assert asyncio.run(DirectoryStore(tmp_path).load("log", 0)).start is None
