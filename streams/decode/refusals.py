"""Refused rows of a segment: every one is an outcome, but not every one is worth a dead letter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from schemas.deadletter import DeadLetter
from streams.deadletters import MAX_DETAIL_CHARS
from streams.decode.columns import DeadRows

MAX_LETTERS_PER_RECORD = 64
"""Letters of rows of one record; one more stands for all others."""
MAX_LETTERS = 1_024
"""Letters of one run (each at most 20 kB); one more of each segment stands for all others."""
_OF_RUN = -1


@dataclass(slots=True, eq=False)
class Refusals:
    """What has been refused so far. `left`: letters that the run may still have."""

    left: int = MAX_LETTERS
    letters: list[DeadLetter] = field(default_factory=list)
    judged: dict[int, int] = field(default_factory=dict)
    _of_record: dict[int, int] = field(default_factory=dict)
    _rest: dict[int, tuple[int, int]] = field(default_factory=dict)
    _records: list[int] = field(default_factory=list)
    _rows: list[int] = field(default_factory=list)
    _endpoints: list[str] = field(default_factory=list)

    def lettered(self, record: int) -> bool:
        """Counts a refused row of the record; whether its letter must be written (then it is the next `letter`)."""
        count = self._of_record[record] = self._of_record.get(record, 0) + 1
        if count <= MAX_LETTERS_PER_RECORD and self.left > 0:
            self.left -= 1
            return True
        of = record if record in self._rest or self.left > 0 else _OF_RUN
        if of in self._rest:
            at, more = self._rest[of]
            self._rest[of] = (at, more + 1)
            return False
        self._rest[of] = (len(self.letters), 0)
        self.left -= of != _OF_RUN
        return True

    def judge_is_spent(self, record: int) -> bool:
        """Whether the judge has refused so many rows of the record that what decoders refuse is not shown to it."""
        return self.judged.get(record, 0) >= MAX_LETTERS_PER_RECORD

    def row(self, record: int, row: int, endpoint: str) -> None:
        self._records.append(record)
        self._rows.append(row)
        self._endpoints.append(endpoint)

    def dead_letters(self) -> tuple[DeadLetter, ...]:
        """In log order; those that stand for others say for how many."""
        letters = list(self.letters)
        for of, (at, more) in self._rest.items():
            if more:
                where = "run" if of == _OF_RUN else "record"
                detail = f"{more} more refused rows of this {where} have no letter of their own; {letters[at].detail}"
                letters[at] = letters[at].model_copy(update={"detail": detail[:MAX_DETAIL_CHARS]})
        return tuple(sorted(letters, key=lambda letter: (letter.log_offset, letter.log_row)))

    def dead_rows(self, offsets: Sequence[int]) -> DeadRows:
        """Every refused row; `offsets` are those of the run's records."""
        offset = np.array([offsets[record] for record in self._records], dtype=np.int64)
        return DeadRows(offset, np.array(self._rows, dtype=np.int32), self._endpoints)
