"""`palisade feedback publish`: which rows become labels, who vouches for them, and what is said of a file that will not do."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palisade.feedback_file import LabelColumns, publish_labels, read_labels
from palisade.tables import UnusableFile
from responders.signing import SigningKey
from schemas.config import EndpointConfig
from schemas.topics import FEEDBACK
from streams.embedded_broker import EmbeddedBroker
from streams.feedback import FeedbackReader
from streams.reading import read_to_end
from streams.records import Records, listed

COLUMNS = LabelColumns("booking", "cancelled", "known")


def write(folder: Path, **columns: Any) -> Path:
    path = folder / "labels.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_each_row_with_a_label_is_sent_signed_and_rows_without_one_are_left_out(
    embedded_broker: Callable[[Mapping[str, int]], EmbeddedBroker], tmp_path: Path
) -> None:
    broker, signer = embedded_broker({FEEDBACK: 1}), SigningKey.generate()
    days = [dt.date(2026, 1, 1) + dt.timedelta(days=n) for n in range(1_200)]
    path = write(
        tmp_path,
        booking=list(range(1_200)),
        cancelled=[None if n % 3 == 0 else n % 2 == 1 for n in range(1_200)],
        known=days,
    )
    labels = read_labels(path, COLUMNS)

    assert publish_labels(labels, "hotel", "desk", broker.connection, signer) == ""
    assert (labels.table.num_rows, labels.unlabelled) == (800, 400)
    messages = list(read_to_end(broker.connection, FEEDBACK, 0))
    records = Records([m.value() for m in messages], [m.key() for m in messages],
                      [listed(m.headers()) for m in messages], [m.offset() or 0 for m in messages],
                      [0] * len(messages))  # fmt: skip
    endpoints = {"hotel": EndpointConfig(name="hotel", producer_keys=(signer.public_base64,))}
    found, dead = FeedbackReader(endpoints, 1).read(0, records)
    assert dead == []
    assert [int(one.feedback.request_id) for one in found] == [n for n in range(1_200) if n % 3]
    assert [one.feedback.label for one in found] == [n % 2 == 1 for n in range(1_200) if n % 3]
    assert {(one.auth, one.feedback.source) for one in found} == {("verified", "desk")}
    assert found[0].feedback.ts == 1_767_312_000_000


@pytest.mark.parametrize(
    ("columns", "label"),
    [({"cancelled": [1, None]}, [1]), ({"cancelled": [0.5, float("nan")]}, [0.5]), ({"cancelled": ["yes", ""]}, ["yes"]),
     ({"cancelled": pa.array(["a", None]).dictionary_encode()}, ["a"])],
)  # fmt: skip
def test_labels_keep_what_they_are(columns: dict[str, Any], label: list[Any], tmp_path: Path) -> None:
    path = write(tmp_path, booking=["x", "y"], **columns)

    assert read_labels(path, LabelColumns("booking", "cancelled")).table["label"].to_pylist() == label


@pytest.mark.parametrize(
    ("columns", "said"),
    [({"booking": [1], "known": [1]}, "no column 'cancelled'"),
     ({"booking": [1], "cancelled": pa.nulls(1), "known": [1]}, "nothing to publish"),
     ({"booking": pa.nulls(1, pa.string()), "cancelled": [1], "known": [1]}, "have no request id"),
     ({"booking": [[1]], "cancelled": [1], "known": [1]}, "no request ids"),
     ({"booking": [1], "cancelled": [[1]], "known": [1]}, "a label is a number, text or a boolean"),
     ({"booking": [1], "cancelled": [1], "known": ["noon"]}, "is no time")],
)  # fmt: skip
def test_a_file_that_will_not_do_says_why(columns: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableFile, match=said):
        read_labels(write(tmp_path, **columns), COLUMNS)
