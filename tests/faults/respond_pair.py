"""Who of a stage's respond processes is active, what was decided, and what a Guard takes of the directives."""

from __future__ import annotations

import os
import signal
import time
from functools import cached_property
from typing import Self

from palisade_client._directives import DirectiveState
from palisade_client._keys import public_keys
from palisade_client._transport import KafkaTransport, Record

from schemas.actions import Decision, Directive, JournalEntry
from schemas.topics import ACTIONS, DIRECTIVES
from streams.admin import input_partitions
from streams.reading import read_to_end
from tests.faults.stage import Stage
from tests.support.waiting import until

ACTIVE = "respond is active"
WITHIN_S = 120.0


class Responders:
    """The respond processes of a stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @cached_property
    def names(self) -> list[str]:
        return [name for name in self._stage.supervisor.names if name.split("-")[0] == "respond"]

    def _lines(self, name: str) -> list[str]:
        log = self._stage.supervisor.log(name)
        return [line for line in log.read_text(errors="replace").splitlines() if ACTIVE in line]

    def takeovers(self) -> int:
        return sum(len(self._lines(name)) for name in self.names)

    def active(self) -> str:
        """Who took over last."""
        return max(self.names, key=lambda name: max((line[:23] for line in self._lines(name)), default=""))

    def await_takeover(self, after: int) -> str:
        """Waits until there were more than `after`; gives who is active then."""
        tails = "\n".join(self._stage.supervisor.tail(name) for name in self.names)
        until(lambda: self.takeovers() > after, f"a takeover\n{tails}", WITHIN_S)
        return self.active()

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self._stage.supervisor.pid(name), number)

    def journal(self) -> list[JournalEntry]:
        return [JournalEntry.from_bytes(m.value() or b"") for m in read_to_end(self._stage.connection, ACTIONS, 0)]

    def limits(self) -> list[Decision]:
        """New limits that were published."""
        return [
            each
            for entry in self.journal()
            for each in entry.decisions
            if (each.kind, each.outcome) == ("limit", "published") and each.reason != "evidence_renewed"
        ]

    def directives(self, endpoint: str) -> list[Directive]:
        """All that lie on the topic, in their order within a partition."""
        connection = self._stage.connection
        found = [
            Directive.from_bytes(message.value() or b"")
            for partition in range(input_partitions(connection, DIRECTIVES))
            for message in read_to_end(connection, DIRECTIVES, partition)
        ]
        return [directive for directive in found if directive.endpoint == endpoint]


class Follower:
    """Takes and refuses directives of an endpoint as its Guard does. `taken`: when, and its epoch, of each that was taken.

    At its end, AssertionError if an epoch was lower than one before it.
    """

    def __init__(self, stage: Stage, endpoint: str) -> None:
        env = stage.stack.client_env
        self.state = DirectiveState(endpoint, public_keys(env["PALISADE_DIRECTIVE_KEYS"]), "follower")
        self.taken: list[tuple[float, int]] = []
        self._transport = KafkaTransport(env["PALISADE_BOOTSTRAP"], {"log_level": 0})
        self._transport.follow(endpoint, self)

    @property
    def limited(self) -> set[str]:
        """Callers who are limited now."""
        now = time.monotonic()
        limits = dict(self.state.orders(may_fall_back=True).limits)
        return {caller for caller, limit in limits.items() if now < limit.until}

    def on_record(self, record: Record) -> None:
        if self.state.concerns(record) and self.state.accept(record, time.monotonic(), 0.0) is None:
            self.taken.append((time.monotonic(), self.state.epoch))

    def on_end(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._transport.close(1.0)
        epochs = [epoch for _, epoch in self.taken]
        assert kind is not None or epochs == sorted(epochs)
