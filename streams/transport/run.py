"""A run: the records of one partition that travel through the worker as one message."""

from __future__ import annotations

import marshal
from asyncio import CancelledError, Future
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from streams.records import RawHeaders, headers_of_all

if TYPE_CHECKING:
    from streams.transport.ledger import Ledger

RECORD_OVERHEAD = (
    256  # bytes a record takes in memory beside its value (message object, usual key and headers): an estimate
)


class RunLost(RuntimeError):
    """A run that was handed over never reached its agent: its partition would never be committed again."""


class TP(NamedTuple):
    """A partition of a topic. Equal to, and hashed as, the tuple of Faust and of confluent-kafka's names."""

    topic: str
    partition: int


class Record(Protocol):
    """What a run needs of a `confluent_kafka.Message`."""

    def __len__(self) -> int: ...  # bytes of the value, 0 for a tombstone
    def offset(self) -> int | None: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> list[tuple[str, bytes | None]] | None: ...
    def set_headers(self, headers: list[tuple[str, bytes | None]], /) -> object: ...
    def timestamp(self) -> tuple[int, int]: ...


def sizes_of(records: Sequence[Record]) -> list[int]:
    """Bytes of each of one or more records of one class: value, and key and headers where they are unusually large.

    Whoever may write a topic can send a value of two bytes under a megabyte of headers, and no bound may take it for two.
    """
    sizes = list(map(len, records))
    beside: list[Any] = list(zip(map(type(records[0]).key, records), headers_of_all(records), strict=True))
    if len(marshal.dumps(beside)) <= RECORD_OVERHEAD * len(records):  # one call in C: 0.3 us a record
        return sizes
    return [size + len(marshal.dumps(pair)) for size, pair in zip(sizes, beside, strict=True)]


class Run:
    """Records `[first, next)` of one partition, in offset order; offsets increase and may have gaps.

    A run is *open* while somebody works on it and *done* when its outcomes are safe; only then may its offsets be
    committed. `with run:` opens it and marks it done at a clean exit; an exception that leaves the block ends the
    process (`CancelledError` and `GeneratorExit` do not: they only leave the run unfinished, to be read again).
    `open()`, `done()` and `fail()` say the same without a block, from any task or thread; each counts once.
    """

    __slots__ = (
        "_ledger",
        "_records",
        "broker_ms",
        "failed",
        "finished",
        "first",
        "handed_at",
        "length",
        "lost",
        "next",
        "on_over",
        "opened",
        "read_at",
        "size",
        "tp",
    )

    def __init__(
        self,
        ledger: Ledger,
        tp: TP,
        records: Sequence[Record],
        read_at: float,
        lost: tuple[int, int] | None = None,
        size: int | None = None,
    ) -> None:
        """`lost`: offsets [first, next) before it that retention removed before they were read. `size`: the sum of the
        records' `sizes_of`, where it is known."""
        first, last = records[0].offset(), records[-1].offset()
        if first is None or last is None:
            raise ValueError(f"a record of {tp} has no offset")
        self.tp = tp
        self.first = first
        self.next = last + 1
        self.length = len(records)
        self.lost = lost
        self.size = (sum(sizes_of(records)) if size is None else size) + RECORD_OVERHEAD * len(records)
        self.read_at = read_at  # monotonic seconds
        self.broker_ms = records[0].timestamp()[1]  # of its first record
        self.handed_at = 0.0
        self.opened = False
        self.finished = False
        self.failed = False
        self.on_over: Callable[[], None] | None = None  # called once: done, failed, abandoned or stale; from any thread
        self._records = records
        self._ledger = ledger

    # -- columns; valid until the run is done

    @property
    def values(self) -> list[bytes | None]:
        """Value of each record; `None` is a tombstone."""
        return [record.value() for record in self._records]

    @property
    def keys(self) -> list[bytes | None]:
        return [record.key() for record in self._records]

    @property
    def headers(self) -> list[RawHeaders]:
        """Headers of each record, in order; a header may occur twice and may have the value `None`.
        None or [] of a record without any."""
        return headers_of_all(self._records)

    @property
    def offsets(self) -> list[int]:
        return [record.offset() for record in self._records]  # type: ignore[misc]  # a polled record has an offset

    @property
    def timestamps(self) -> list[int]:
        """Broker or producer time of each record, as the topic is configured: ms since epoch."""
        return [record.timestamp()[1] for record in self._records]

    def __len__(self) -> int:
        return self.length

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"Run({self.tp.topic}[{self.tp.partition}] {self.first}..{self.next - 1}, {self.length} records)"

    # -- life

    @property
    def stale(self) -> bool:
        """Its partition was revoked or reading was rewound: it will be read again, here or elsewhere."""
        return self._ledger.closed

    def begin(self) -> None:
        """Say that an agent has taken it up, in offset order. Raises RunLost when one before it never came."""
        self._ledger.begin(self)

    def sign(self) -> None:
        """Say that the handler is still at work: one that gives no sign for long is taken for stuck."""
        self._ledger.sign(self)

    def leave(self) -> None:
        """Say that the handler has returned."""
        self._ledger.leave(self)

    def open(self) -> Self:
        """Say that work on this run has begun. A rebalance or a stop waits for open runs, up to the drain bound."""
        self._ledger.open(self)
        return self

    def done(self) -> None:
        """Say that every outcome of this run is safe. Frees the records."""
        self._records = ()
        self._ledger.finish(self)

    def fail(self, error: BaseException) -> None:
        """Say that this run cannot be finished here: the process ends, its offsets stay uncommitted."""
        self._ledger.fail(self, error)

    def abandon(self) -> None:
        """Say that work on this run was cancelled: it stays unfinished and is read again."""
        self._ledger.abandon(self)

    def done_when(self, confirmations: Iterable[Future[Any]]) -> None:
        """Open the run now and mark it done when all of them have a result; the first exception fails it.

        For a handler that starts the next run while the outcomes of this one are on their way to the broker. Cancelled
        confirmations leave the run unfinished, to be read again.
        """
        self.open()
        waiting = set(confirmations)

        def settle(confirmation: Future[Any]) -> None:
            waiting.discard(confirmation)
            if confirmation.cancelled():
                self.abandon()
            elif (error := confirmation.exception()) is not None:
                self.fail(error)
            elif not waiting:
                self.done()

        if not waiting:
            self.done()
        for confirmation in list(waiting):
            confirmation.add_done_callback(settle)

    def end(self) -> None:
        """Tell whoever waits for this run's place; the ledger calls it outside its lock."""
        over, self.on_over = self.on_over, None
        if over is not None:
            over()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.done()
        elif isinstance(error, CancelledError | GeneratorExit):
            self.abandon()
        else:
            self.fail(error)
