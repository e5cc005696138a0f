"""Was a prediction wrong, now that its label is here? One stated rule for each kind of outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from schemas.events import Outcome
from schemas.feedback import Label

CUT = 0.5
"""A probability of at least this much says 1 (true)."""


def is_wrong(prediction: Outcome | None, label: Label, tolerance: float | None) -> bool | None:
    """Whether `prediction` is wrong by `label`; None where no rule says so, and nothing may be counted.

    Probabilities by class (object: the likeliest name; list: the likeliest index) are wrong if the likeliest is another.
    Two numbers: with a `tolerance` (the owner's word) wrong if further apart than that; else a number from 0 to 1 is a
    probability where the label is 0 or 1 (or a boolean), and whole numbers are classes. Text is a class; a class may be
    text on one side and a whole number or boolean on the other. An amount without a tolerance is never judged.
    """
    if isinstance(prediction, Mapping):
        return _of_classes(prediction, label)
    if isinstance(prediction, Sequence) and not isinstance(prediction, str):
        return _of_classes({str(index): value for index, value in enumerate(prediction)}, label)
    if prediction is None:
        return None
    if isinstance(prediction, str) or isinstance(label, str):
        return _of_text(prediction, label)
    said, true = _float(prediction), _float(label)
    if not math.isfinite(said):
        return True
    if tolerance is not None and not isinstance(label, bool):
        return abs(said - true) > tolerance
    if true in (0.0, 1.0) and 0.0 <= said <= 1.0:
        return (said >= CUT) != bool(true)
    if said.is_integer() and true.is_integer():
        return said != true
    return None


def _of_classes(values: Mapping[str, float], label: Label) -> bool | None:
    """Ties go to the first name, as argmax does."""
    numbers = {name: _float(value) for name, value in values.items()}
    name = _class_name(label)
    if not numbers or name is None or not all(map(math.isfinite, numbers.values())):
        return None
    return max(numbers, key=lambda each: numbers[each]) != name


def _of_text(prediction: float | int | str | bool, label: Label) -> bool | None:
    said, true = _class_name(prediction), _class_name(label)
    return None if said is None or true is None else said != true


def _class_name(value: float | int | str | bool) -> str | None:
    """The name of a class; None of an amount."""
    if isinstance(value, str):
        return value
    number = _float(value) if abs(value) <= 2**53 else math.inf
    return str(int(number)) if math.isfinite(number) and number.is_integer() else None


def _float(value: float | int | bool) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number beyond all floats
        return math.inf
