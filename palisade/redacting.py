"""Users' tables redacted as the events of their endpoint are, and what in them the rules cannot be applied to."""

from __future__ import annotations

from collections.abc import Container

import pyarrow as pa

from palisade.tables import UnusableFile
from schemas.config import SENSITIVE_CALLER, Bucket
from streams.redaction import Redactor, is_number


def redact_training(table: pa.Table, redactor: Redactor, aside: Container[str | None]) -> pa.Table:
    """A training table redacted, but for columns that are no features (`aside`). Raises UnusableFile."""
    names = [name for name in table.column_names if name not in aside]
    dropped = {name for name, rule in redactor.rules.items() if rule == "drop"}
    check_rules(redactor, {name: table.schema.field(name).type for name in names}, left_out=dropped)
    columns = {}
    for name in table.column_names:
        if name in aside:
            columns[name] = table[name]
        elif redactor.rules.get(name) != "drop":
            columns[name] = redactor.column(name, table[name])
    return pa.table(columns)


def redact_predictions(rows: pa.Table, redactor: Redactor) -> pa.Table:
    """Recorded predictions of one endpoint, redacted. Raises NotRedactable if no feature is left."""
    features = rows["features"].combine_chunks()
    at = rows.column_names.index("features")
    rows = rows.set_column(at, "features", redactor.struct(features))
    if redactor.hides_callers and "caller" in rows.column_names:
        at = rows.column_names.index("caller")
        rows = rows.set_column(at, "caller", redactor.callers(rows["caller"].combine_chunks()))
    return rows


def check_rules(redactor: Redactor, features: dict[str, pa.DataType], left_out: Container[str]) -> None:
    """Raises UnusableFile where a rule names no feature nor what was left out, or puts into buckets what is no number."""
    for name, rule in redactor.rules.items():
        if name == SENSITIVE_CALLER or (name in left_out and name not in features):
            continue
        if name not in features:
            raise UnusableFile(
                f"sensitive: there is no feature {name!r} in the file, but in the rules; correct its spelling, or leave "
                "the rule out if the model does not see it"
            )
        kind = features[name].value_type if pa.types.is_dictionary(features[name]) else features[name]
        if isinstance(rule, Bucket) and not (is_number(kind) or pa.types.is_null(kind)):
            raise UnusableFile(f"sensitive: buckets are for numbers, and {name!r} is {kind}: use hash or drop")
