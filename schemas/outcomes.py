"""What a model answered, as columns: the number, the label, and how sure it was.

| `prediction` on the wire | value | label | confidence |
|---|---|---|---|
| a number, also as a list or an object of one | the number | none | none |
| a boolean | 1 or 0 | `true`, `false` | none |
| text | none | the text | none |
| an object of numbers (probabilities by label) | none | that of the largest | the largest, if all are within 0 to 1 |
| a list of numbers (a vector) | none | position of the largest: `0`, `1`, ... | as above |

Of equal largest ones the first counts. An object or a vector with a number that is not finite has neither. In Arrow an
object is a struct, whose nulls are left out, and NaN with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from schemas.blocks import MISSING, Codes, Floats, Longs

_PLAIN = {float, int, type(None)}
TRUTH = ("false", "true")
LEAST_TOGETHER = 32
"""With fewer answers, columns cost more than rows."""


class Outcomes(NamedTuple):
    """n answers: value, confidence [n] float64, NaN = none; label [n] codes of `Words`, `MISSING` = none."""

    value: Floats
    label: Codes
    confidence: Floats


class Words:
    """Labels of a segment as they were sent, to codes in order of first sight. They live as long as the segment."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def code(self, word: str | None) -> int:
        return MISSING if word is None else self._codes.setdefault(word, len(self._codes))

    def codes(self, words: Iterable[str | None]) -> Codes:
        """Codes [words + 1] of words; `MISSING` comes last, so that it is its own index."""
        return np.array([*map(self.code, words), MISSING], dtype=np.int32)

    def all(self) -> list[str | None]:
        """Words by code, and None by `MISSING`."""
        return [*self._codes, None]


def nothing(rows: int) -> Outcomes:
    """Of rows that answered nothing."""
    return Outcomes(np.full(rows, np.nan), np.full(rows, MISSING, np.int32), np.full(rows, np.nan))


def outcomes(column: Sequence[Any], words: Words) -> Outcomes:
    """Of `prediction` as JSON decoders give it. Numbers beyond float64 become infinity."""
    kinds = set(map(type, column))
    if kinds <= _PLAIN:
        return nothing(len(column))._replace(value=numbers(column))
    if kinds <= {str, type(None)}:
        return nothing(len(column))._replace(label=np.array(list(map(words.code, column)), dtype=np.int32))
    if len(kinds) == 1 and len(column) >= LEAST_TOGETHER and (parts := _alike(column)) is not None:
        return of_matrix(*parts, words)
    value, label, confidence = zip(*map(_outcome, column), strict=True)
    return Outcomes(
        numbers(value), np.array(list(map(words.code, label)), dtype=np.int32), np.array(confidence, dtype=np.float64)
    )


def label_of(answer: Any) -> str | None:
    """The label of one answer as JSON decoders give it, if it has one."""
    return _outcome(answer)[1]


def _alike(column: Sequence[Any]) -> tuple[Floats, Sequence[str]] | None:
    """Objects of the same labels, or vectors of one length, as finite numbers [n, labels] and the labels; else None."""
    rows: Sequence[Any]
    if type(column[0]) is dict:
        names = list(column[0])
        if not all(list(answer) == names for answer in column):
            return None
        rows = [list(answer.values()) for answer in column]
    else:
        names, rows = [str(at) for at in range(len(column[0]))], column
        if not all(len(answer) == len(names) for answer in column):
            return None
    try:
        matrix = np.array(rows, dtype=np.float64).reshape(len(column), len(names))
    except OverflowError:
        return None
    return (matrix, names) if np.isfinite(matrix).all() else None


def numbers(column: Sequence[Any]) -> Floats:
    """float64 [n] of numbers, booleans and None (NaN); integers beyond float64 become infinity."""
    try:
        return np.fromiter(column, dtype=np.float64, count=len(column))
    except OverflowError:
        return np.array([_double(value) for value in column], dtype=np.float64)


def _double(value: Any) -> float:
    try:
        return np.nan if value is None else float(value)
    except OverflowError:
        return np.inf


def _outcome(answer: Any) -> tuple[float | int | None, str | None, float]:
    """Value, label and confidence of one answer; a loop a row, for objects and vectors have no columns in JSON."""
    kind = type(answer)
    if kind is str:
        return None, answer, math.nan
    if kind is bool:
        return int(answer), TRUTH[answer], math.nan
    if kind is not dict and kind is not list:
        return answer, None, math.nan
    parts = list(answer.values()) if kind is dict else answer
    if len(parts) < 2:
        return (parts[0] if parts else None), None, math.nan
    top, least = max(parts), min(parts)
    if not (-math.inf < least <= top < math.inf) or any(part != part for part in parts):
        return None, None, math.nan
    at = parts.index(top)
    label = next(name for k, name in enumerate(answer) if k == at) if kind is dict else str(at)
    return None, label, float(top) if least >= 0 and top <= 1 else math.nan


def of_matrix(matrix: Floats, names: Sequence[str], words: Words) -> Outcomes:
    """Of numbers [n, names] by label, NaN = not among what was answered."""
    rows, width = matrix.shape
    if width == 0:
        return nothing(rows)
    present = ~np.isnan(matrix)
    several = present.sum(axis=1) > 1
    top = np.where(present, matrix, -np.inf).argmax(axis=1)
    largest = matrix[np.arange(rows), top]
    least = np.where(present, matrix, np.inf).min(axis=1)
    answered = several & np.isfinite(largest) & np.isfinite(least)
    return Outcomes(
        np.where(several, np.nan, largest),
        np.where(answered, words.codes(names)[top], MISSING).astype(np.int32),
        np.where(answered & (least >= 0) & (largest <= 1), largest, np.nan),
    )


def of_vectors(flat: Floats, lengths: Longs, words: Words) -> Outcomes:
    """Of rows of `lengths` [n] numbers each, which lie end to end in `flat`."""
    found = nothing(len(lengths))
    value = found.value
    ends = np.cumsum(lengths)
    value[lengths == 1] = flat[ends[lengths == 1] - 1]
    rows = np.flatnonzero(lengths > 1)
    if len(rows) == 0:
        return found
    row = np.repeat(np.arange(len(lengths)), lengths)
    several = lengths[row] > 1
    parts, size = flat[several], lengths[rows]
    starts = np.cumsum(size) - size
    largest, least = np.maximum.reduceat(parts, starts), np.minimum.reduceat(parts, starts)
    place = np.arange(len(parts)) - np.repeat(starts, size)
    at = np.minimum.reduceat(np.where(parts == np.repeat(largest, size), place, len(parts)), starts)
    answered = np.isfinite(largest) & np.isfinite(least)  # NaN and infinity come through both
    codes = words.codes(map(str, range(int(at[answered].max(initial=-1)) + 1)))
    found.label[rows] = np.where(answered, codes[np.where(answered, at, -1)], MISSING)
    found.confidence[rows] = np.where(answered & (least >= 0) & (largest <= 1), largest, np.nan)
    return found
