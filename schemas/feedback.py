"""Feedback: what was true after all; and labelled: a feedback joined with the prediction that it is about."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from schemas.events import MAX_COUNT, MAX_NUMBER, CallerAuth, Outcome
from schemas.wire import Column, Id, Millis, Wire, Word

MAX_LABEL_CHARS = 256
_LowCardinality = Column("LowCardinality(String)")
_Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
_Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER, allow_inf_nan=False)]
_Text = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]
Label = _Whole | _Number | bool | _Text
"""A class (text, whole number, boolean) or an amount; finite."""


class Feedback(Wire):
    """What came of one prediction, often weeks later: `label` is what `prediction` should have been.

    `request_id` is that of the prediction; it must be the service's own, never one that a caller can choose: an id that
    two predictions share labels neither. `source` says who knows; `source_auth` is `verified` only where the record says
    so and a producer key listed for the endpoint signed it, whatever a sender claims. `ts` is when it became known;
    without it the broker's time stands in.
    """

    KIND: ClassVar[str] = "feedback"

    endpoint: Word
    request_id: Id
    label: Annotated[Label, Column("String")]
    ts: Millis | None = None
    source: Id = "unknown"
    source_auth: Annotated[CallerAuth, _LowCardinality] = "claimed"


class Labelled(Wire):
    """A feedback and the one prediction of its endpoint that has its request id, joined by the audit.

    `feedback_*` is where the feedback lies, and what this record is told by: a crash may repeat a record, and the
    positions of a partition never fall but by such a repetition. `prediction_*` is where the prediction lies. `ts` is the
    feedback's time, `delay_ms` what passed since the prediction's.
    """

    KIND: ClassVar[str] = "labelled"

    endpoint: Word
    request_id: Id
    model_version: Word = "default"
    caller: Id = "anonymous"
    caller_auth: Annotated[CallerAuth, _LowCardinality] = "claimed"
    served_by: Word = "primary"
    prediction: Annotated[Outcome | None, Column("String")] = None
    label: Annotated[Label, Column("String")]
    ts: Millis
    prediction_ts: Millis
    delay_ms: int = Field(ge=-MAX_COUNT, le=MAX_COUNT)
    source: Id = "unknown"
    source_auth: Annotated[CallerAuth, _LowCardinality] = "claimed"
    weight: float = 1.0
    prediction_topic: Word
    prediction_partition: int
    prediction_offset: int
    prediction_row: int
    feedback_partition: int
    feedback_offset: int
    feedback_row: int
