"""How features fit a profile: what an active one expects of rows, and what in a training table is hardly a feature."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from detectors.profile import Profile
from schemas.arrow import is_text, values_of
from schemas.errors import ConfigError
from schemas.events import ProfileActivated
from schemas.topics import PROFILES
from streams.profiles import ACTIVE_KEY, PROFILE_KEY, name_of
from streams.reading import read_newest
from streams.transport.settings import KafkaConnection

CLOCK_VALUES = 100
"""Rows in order of so many different values that never fall (or never rise) are a clock or a counter, not a measurement."""


def active_profiles(connection: KafkaConnection) -> dict[tuple[str, str], Profile]:
    """The profile that is active for each endpoint and version, as far as the broker holds it. Raises as `read_to_end`."""
    newest = read_newest(connection, PROFILES, 0)
    found = {}
    for key, message in newest.items():
        if not key.startswith(ACTIVE_KEY):
            continue
        try:
            active: ProfileActivated = ProfileActivated.from_bytes(message.value() or b"")
        except ValidationError:
            continue  # what strangers wrote there is no activation
        content = newest.get(f"{PROFILE_KEY}{active.profile_hash}")
        value = (content.value() if content is not None else None) or b""
        if name_of(value) != active.profile_hash:
            continue
        try:
            found[active.endpoint, active.version] = Profile.from_bytes(value)
        except ConfigError:
            continue  # of another release
    return found


def misfits(profile: Profile, features: pa.StructArray) -> list[str]:
    """What rows with these features would only look like drift for: sentences that end with the remedy."""
    columns = dict(zip((field.name for field in features.type), features.flatten(), strict=True))
    absent = [name for name in profile.order if name not in columns or columns[name].null_count == len(features)]
    kinds = {feature.name: "numbers" for feature in profile.numeric}
    kinds |= {feature.name: "categories" for feature in profile.categorical}
    other = [name for name in profile.order if name not in absent and not _is_kind(columns[name].type, kinds[name])]
    unknown = [name for name in columns if name not in kinds]
    said = []
    if len(absent) == len(profile.order):
        said.append(f"no row has any feature of the profile ({_named(absent)}): is it the profile of this endpoint?")
    elif absent:
        said.append(
            f"no row has {_named(absent)}, which the profile has: that counts as drift to missing. "
            f"If the model does not see it, build the profile again with --exclude {','.join(absent)}"
        )
    if other:
        wanted = ", ".join(f"{name} as {kinds[name]}" for name in other)
        said.append(f"the profile has {wanted}, these rows have not: give the column the type that it has in training")
    if unknown:
        said.append(f"the profile has no {_named(unknown)}: not judged; leave out what is no feature with --drop")
    return said


def unanswered(profile: Profile, predictions: pa.Table) -> list[str]:
    """What predictions without an answer would only look like drift for, as `misfits` says it."""
    absent = "prediction" not in predictions.column_names or predictions["prediction"].null_count == len(predictions)
    if profile.outputs is None or not absent:
        return []
    return [
        "no row has a prediction, and the profile knows what the model answers: that counts as drift to missing. "
        "Name the column of the answers with --field prediction=COLUMN, or build the profile again without --prediction"
    ]


def hardly_features(table: pa.Table, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Columns, in the order of the rows, that look like an identifier or a clock, and why: these never repeat in live
    data, so that they would be drift at once."""
    found = []
    for name in names:
        present = values_of(table[name].combine_chunks()).drop_null()
        if len(present) < CLOCK_VALUES:
            continue
        distinct = pc.count_distinct(present).as_py()
        if pa.types.is_integer(present.type) or pa.types.is_floating(present.type):
            if distinct >= CLOCK_VALUES and _one_way(present):
                found.append((name, "only rises or only falls from row to row, like a clock or a counter"))
            elif pa.types.is_integer(present.type) and distinct == len(present):
                found.append((name, "is another whole number in every row, like an identifier"))
        elif is_text(present.type) and distinct > len(present) / 2:
            found.append((name, "is another text in most rows, like an identifier"))
    return found


def _one_way(numbers: pa.Array) -> bool:
    before, after = numbers.slice(0, len(numbers) - 1), numbers.slice(1)
    rises = pc.all(pc.greater_equal(after, before)).as_py()
    return bool(rises or pc.all(pc.less_equal(after, before)).as_py())


def _is_kind(kind: pa.DataType, wanted: str) -> bool:
    if pa.types.is_null(kind) or pa.types.is_boolean(kind):
        return True
    return is_text(kind) == (wanted == "categories")


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
