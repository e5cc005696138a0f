"""What is collected where retention or compaction took something: only what is whole is claimed to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palisade.verify import collect
from palisade.verify.balance import every_event_ends_once
from palisade.verify.collect import _audit, _Gathering, _Window
from palisade.verify.history import History, HistoryWriter, Run, table_of
from palisade.verify.logs import DETECT
from palisade.verify.records import TAKEN, Read, Reader
from schemas.actions import Directive
from schemas.deadletter import DeadLetter
from schemas.topics import DEAD_LETTERS, DIRECTIVES, PREDICTIONS, VERDICTS
from schemas.wire import KIND_HEADER
from streams.audit.engine import Unavailable
from streams.deadletters import Place, dead_letter
from streams.decode import Decoder
from streams.embedded_broker import EmbeddedBroker
from streams.outgoing import lost_record
from streams.records import Outgoing
from streams.transport.settings import KafkaConnection
from streams.verdicts import row_verdicts
from tests.decode.cases import as_json, schema_of
from tests.streams.broker import produce
from tests.support.bombs import RECORDS, bomb

T0 = 1_000_000


def verdict(*offsets: int) -> Outgoing:
    count = len(offsets)
    segments = Decoder(PREDICTIONS, 0, 1, schema_of).segments(
        [as_json()] * count, [b"credit"] * count, [None] * count, offsets, [T0] * count
    )
    found = row_verdicts(PREDICTIONS, 0, [segment.columns for segment in segments], [], 0, "bank")
    assert found is not None
    return found


def read(topic: str, offset: int, value: bytes, kind: str = "") -> Read:
    return Read(topic, 0, offset, T0 + offset, None, {KIND_HEADER: kind.encode()} if kind else {}, value)


class Topics(_Gathering):
    """One partition each, with what is left on it."""

    left: dict[str, list[Read]]

    def _read(self, topic: str, partition: int, unreadable: object = None) -> Iterator[Read]:
        return (each for each in self.left.get(topic, []) if each.at_ms >= self.since_ms)

    def _low(self, topic: str, partition: int) -> int:
        return self.left[topic][0].offset if self.left.get(topic) else 0


def gathered(folder: Path, left: dict[str, list[Read]], since_ms: int = 0) -> History:
    partitions = dict.fromkeys((PREDICTIONS, VERDICTS, *TAKEN), 1)
    with HistoryWriter(folder) as writer:
        topics = Topics(KafkaConnection(bootstrap="127.0.0.1:1"), partitions, since_ms, writer, lambda _: None)
        topics.left = left
        topics.logs()
        topics.others(Reader({}, None))
        writer.finish(Run())
    return History.load(folder)


def window(found: History, topic: str = PREDICTIONS) -> dict[str, Any]:
    return next(row for row in found["windows"].to_pylist() if row["topic"] == topic)


def predictions(*offsets: int) -> list[Read]:
    return [read(PREDICTIONS, offset, as_json()) for offset in offsets]


def verdicts(first: int, *runs: tuple[int, ...]) -> list[Read]:
    return [read(VERDICTS, first + n, verdict(*offsets).value, "verdict_rows") for n, offsets in enumerate(runs)]


def test_without_losses_all_of_a_log_is_judged(tmp_path: Path):
    found = gathered(tmp_path, {PREDICTIONS: predictions(3, 4, 5, 6), VERDICTS: verdicts(0, (3, 4), (5, 6))})

    assert (window(found)["first"], window(found)["end"]) == (3, 7)
    assert found["outcomes"]["offset"].to_pylist() == [3, 4, 5, 6]
    assert {"dead_letters", "orders", "journal"} <= found.names


def test_records_whose_verdicts_are_gone_are_not_judged(tmp_path: Path):
    found = gathered(tmp_path, {PREDICTIONS: predictions(3, 4, 5, 6), VERDICTS: verdicts(9, (5, 6))})

    assert (window(found)["first"], window(found)["end"]) == (5, 7)


def test_where_no_verdict_is_kept_nothing_is_judged(tmp_path: Path):
    other = read(VERDICTS, 9, b"", "verdict_blocks")
    found = gathered(tmp_path, {PREDICTIONS: predictions(3, 4), VERDICTS: [other]})

    assert window(found)["first"] == window(found)["end"] == 5


def test_a_window_of_time_begins_with_its_first_record_whose_verdict_lies_in_it(tmp_path: Path):
    told = verdicts(0, (3,), (4,), (5,), (6,), (7, 8))
    found = gathered(tmp_path, {PREDICTIONS: predictions(3, 4, 5, 6, 7, 8), VERDICTS: told}, since_ms=T0 + 4)

    assert (window(found)["first"], window(found)["end"]) == (7, 9)
    assert found["records"]["offset"].to_pylist() == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("told", [True, False])
def test_a_batch_that_cannot_be_unpacked_is_stepped_over_and_must_have_been_told_as_lost(
    embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker], tmp_path: Path, told: bool
):
    connection = embedded_broker(dict.fromkeys((PREDICTIONS, VERDICTS), 1)).connection
    behind = 1 + RECORDS
    produce(connection, PREDICTIONS, (None, as_json(), ()))
    bomb(connection.bootstrap, PREDICTIONS)
    produce(connection, PREDICTIONS, (None, as_json(), ()))
    bomb(connection.bootstrap, PREDICTIONS)  # with nothing behind it: nobody was told yet, nor need be
    said = [verdict(0), lost_record(PREDICTIONS, 0, 1, RECORDS, T0), verdict(behind)]
    produce(connection, VERDICTS, *[(None, each.value, each.headers) for each in (said if told else said[::2])])
    with HistoryWriter(tmp_path) as writer:
        _Gathering(connection, {PREDICTIONS: 1, VERDICTS: 1}, 0, writer, lambda _: None).logs()
        committed = {"at_ms": T0, "group": DETECT, "topic": PREDICTIONS, "partition": 0, "committed": behind + 1}
        writer.add_rows("commits", [committed])
        writer.finish(Run())
    found = every_event_ends_once(History.load(tmp_path))

    assert found.seen == f"2 events: 2 scored, 0 dead-lettered, 0 in flight; {2 * RECORDS} offsets lost"
    untold = f"{PREDICTIONS}[0] lost offsets 1 to {RECORDS}, and nobody was told"
    assert [each.words for each in found.broken] == ([] if told else [untold])


def test_dead_letters_of_which_some_are_gone_are_no_evidence(tmp_path: Path):
    letter = dead_letter(Place(PREDICTIONS, 0, 4, T0), "not_json", "", b"x").to_bytes()
    whole, rest = ([read(DEAD_LETTERS, offset, letter, DeadLetter.KIND)] for offset in (0, 7))

    assert gathered(tmp_path, {DEAD_LETTERS: whole})["dead_letters"].num_rows == 1
    assert "dead_letters" not in gathered(tmp_path, {DEAD_LETTERS: rest})


@pytest.mark.parametrize(("offsets", "whole_from"), [((0, 1, 2), 0), ((0, 2, 3), 2), ((5, 6, 7), 5), ((5, 7, 8), 7)])
def test_directives_are_whole_from_the_last_gap_on(tmp_path: Path, offsets: tuple[int, ...], whole_from: int):
    value = Directive(endpoint="e", epoch=1, issued_ms=1, ttl_ms=1, mode="enforce").to_bytes()
    found = gathered(tmp_path, {DIRECTIVES: [read(DIRECTIVES, offset, value, "directive") for offset in offsets]})

    assert window(found, DIRECTIVES)["from_ms"] == (T0 + whole_from if whole_from else 0)
    assert found["orders"].num_rows == 3


def test_an_audit_that_answers_only_half_is_no_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Engine:
        def close(self) -> None: ...

    asked: list[str] = []

    def view(_: object, name: str, *rest: object) -> Any:
        asked.append(name)
        if len(asked) == 2:
            raise Unavailable("gone")
        return table_of("audit", [{"table": name, "offset": 3}])

    monkeypatch.setattr(collect, "reader", lambda settings: Engine())
    monkeypatch.setattr(collect, "_view", view)
    monkeypatch.setattr(HistoryWriter, "PART_ROWS", 1)
    with HistoryWriter(tmp_path) as writer:
        windows = {(PREDICTIONS, 0): _Window(3, 4, np.array([3]), np.array([1]))}
        notes = _audit(None, windows, (0, 0), writer)  # type: ignore[arg-type]
        writer.finish(Run(notes=notes))

    assert "audit" not in History.load(tmp_path)
    assert History.load(tmp_path).run.notes == ["the audit did not answer: gone"]
