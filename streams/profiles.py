"""Profiles as the compacted topic `palisade.profiles` holds them: bytes by hash, and which one is active from where.

A profile is named by the hash of its bytes, so whoever wrote it, it is the one that the signed activation meant.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition
from pydantic import ValidationError

from schemas.errors import PalisadeError
from schemas.events import ProfileActivated
from schemas.roles import READER_GROUP
from schemas.topics import PROFILES
from schemas.wire import KEY_ID_HEADER, KIND_HEADER, SIGNATURE_HEADER
from streams.records import Outgoing, RawHeaders, header_of, headers_of
from streams.transport.error_log import QUIET, ErrorLog
from streams.transport.log_ends import log_end
from streams.transport.run import TP
from streams.transport.settings import KafkaConnection, kafka_settings

log = logging.getLogger(__name__)

MAX_BYTES = 512 << 20
"""Profiles kept in memory (10-100 kB each)."""
MAX_ACTIVE = 100_000
"""Activations remembered, one an endpoint's version."""
WAIT_S = 10.0
ASK_S, RENEW_S = 20.0, 60.0
"""Between questions whether the broker is still there, while nothing comes; and without an answer before a new client asks."""
ANSWER_S = 5.0
PROFILE_KEY, ACTIVE_KEY = "profile|", "active|"
"""How keys begin: the profile's name follows, or endpoint and version."""
_SIGNED = frozenset({SIGNATURE_HEADER, KEY_ID_HEADER})


class ProfileMissing(PalisadeError):
    """An activation names a profile that the topic does not hold."""


@dataclass(frozen=True, slots=True)
class Active:
    """A profile active for a version of an endpoint since an offset of its partition of the predictions log.

    `value` and `headers` are the signed record itself, so that whoever relies on it can verify it again.
    """

    activation: ProfileActivated
    partition: int
    offset: int
    value: bytes
    headers: RawHeaders


def name_of(content: bytes) -> str:
    """What a profile is called: the hash of its bytes."""
    return hashlib.sha256(content).hexdigest()


def profile_record(content: bytes) -> tuple[str, Outgoing]:
    """The hash of a profile's bytes, and the record that publishes it."""
    name = name_of(content)
    return name, Outgoing(PROFILES, f"{PROFILE_KEY}{name}".encode(), content, ((KIND_HEADER, b"profile"),))


def active_record(active: Active) -> Outgoing:
    """The record that remembers an activation beyond the retention of the predictions log."""
    key = f"{ACTIVE_KEY}{active.activation.endpoint}|{active.activation.version}".encode()
    signature = tuple((name, value) for name, value in active.headers or () if name in _SIGNED and value is not None)
    place = (("partition", str(active.partition).encode()), ("offset", str(active.offset).encode()))
    return Outgoing(PROFILES, key, active.value, ((KIND_HEADER, b"profile_active"), *place, *signature), 0)


class ProfileTopic:
    """Follows the topic in a thread of its own. `start` returns at once; `caught_up` waits for the first full read."""

    def __init__(self, connection: KafkaConnection, *, ask_s: float = ASK_S, renew_s: float = RENEW_S) -> None:
        self._connection = connection
        self._ask_s, self._renew_s = ask_s, renew_s
        self._profiles: dict[str, bytes] = {}
        self._bytes = 0
        self._active: dict[tuple[str, str], Active] = {}
        self._changed = threading.Condition()
        self._caught_up = False
        self._halt = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to read."""
        self._thread = threading.Thread(target=self._follow, name="profiles", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops reading; returns when the thread is gone."""
        self._halt.set()
        if self._thread is not None:
            self._thread.join()

    async def caught_up(self, timeout_s: float = 30.0) -> None:
        """Returns when the topic was read to its end once. Raises TimeoutError."""
        if not await asyncio.to_thread(self._wait, lambda: self._caught_up, timeout_s):
            raise TimeoutError(f"{PROFILES} could not be read to its end in {timeout_s:.0f} s: is the broker there?")

    async def get(self, profile_hash: str, timeout_s: float = WAIT_S) -> bytes:
        """A profile's bytes. Raises ProfileMissing if it does not arrive in time."""
        if profile_hash not in self._profiles:
            await asyncio.to_thread(self._wait, lambda: profile_hash in self._profiles, timeout_s)
        content = self._profiles.get(profile_hash)
        if content is None:
            raise ProfileMissing(
                f"no profile {profile_hash[:12]} on {PROFILES}; activate it with `palisade profile activate`"
            )
        return content

    def peek(self, profile_hash: str) -> bytes | None:
        """A profile's bytes if they are here already."""
        return self._profiles.get(profile_hash)

    def active(self, partition: int) -> list[Active]:
        """Activations on that partition of the predictions log, oldest first."""
        with self._changed:
            found = [active for active in self._active.values() if active.partition == partition]
        return sorted(found, key=lambda active: active.offset)

    def _wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(ready, timeout_s)

    def _follow(self) -> None:
        settings = kafka_settings(
            self._connection, "consumer", group=READER_GROUP, overrides={"enable.partition.eof": True}
        )
        place = TopicPartition(PROFILES, 0, OFFSET_BEGINNING)
        while not self._halt.is_set():
            try:
                consumer = Consumer({**QUIET, **settings, "error_cb": ErrorLog("profiles").say})
                try:
                    consumer.assign([place])
                    self._read(consumer, place)
                finally:
                    consumer.close()
            except KafkaException as error:
                log.warning("%s is followed again in a second: %s", PROFILES, error)
                self._halt.wait(1.0)

    def _read(self, consumer: Consumer, place: TopicPartition) -> None:
        """Until the end, or until nobody has answered for long: librdkafka can forget every broker (its issue 5301), and says
        nothing then. `place.offset` is what comes next."""
        answered_at = asked_at = monotonic()
        while not self._halt.is_set() and asked_at - answered_at <= self._renew_s:
            message = consumer.poll(0.2)
            if message is not None:
                self._look_at(message)
                if message.error() is None:
                    place.offset, answered_at = int(message.offset() or 0) + 1, monotonic()
            elif monotonic() - max(asked_at, answered_at) > self._ask_s:
                asked_at = monotonic()
                with suppress(KafkaException):
                    log_end(consumer, TP(PROFILES, 0), ANSWER_S)
                    answered_at = asked_at

    def _look_at(self, message: Message) -> None:
        error = message.error()
        if error is None:
            self._take(message.key() or b"", message.value(), headers_of(message))
        elif error.name() == "_PARTITION_EOF":
            self._tell_caught_up()
        else:
            log.warning("reading %s: %s", PROFILES, error.str())

    def _tell_caught_up(self) -> None:
        with self._changed:
            self._caught_up = True
            self._changed.notify_all()

    def _take(self, key: bytes, value: bytes | None, headers: RawHeaders) -> None:
        name = key.decode("utf-8", "replace")
        if value is None:
            return
        with self._changed:
            if name.startswith(PROFILE_KEY) and name_of(value) == name.removeprefix(PROFILE_KEY):
                self._keep(name.removeprefix(PROFILE_KEY), value)
            elif name.startswith(ACTIVE_KEY):
                self._take_active(value, headers)
            self._changed.notify_all()

    def _keep(self, name: str, value: bytes) -> None:
        """Keeps a profile; above the bound the oldest goes that no activation names."""
        self._bytes += len(value) - len(self._profiles.get(name, b""))
        self._profiles[name] = value
        if self._bytes <= MAX_BYTES:
            return
        named = {active.activation.profile_hash for active in self._active.values()} | {name}
        for other in [other for other in self._profiles if other not in named]:
            self._bytes -= len(self._profiles.pop(other))
            if self._bytes <= MAX_BYTES:
                return

    def _take_active(self, value: bytes, headers: RawHeaders) -> None:
        try:
            activation: ProfileActivated = ProfileActivated.from_bytes(value)
            partition, offset = (int(header_of(headers, name) or b"") for name in ("partition", "offset"))
        except (ValidationError, ValueError):
            log.warning("a record on %s that is no activation was ignored", PROFILES)
            return
        key = (activation.endpoint, activation.version)
        if key not in self._active and len(self._active) >= MAX_ACTIVE:
            log.warning("more than %d activations: %s@%s is not remembered", MAX_ACTIVE, *key)
            return
        self._active[key] = Active(activation, partition, offset, value, headers)
