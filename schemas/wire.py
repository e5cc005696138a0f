"""What all contracts share: a frozen pydantic base, column types for ClickHouse, header names, encodings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict

from schemas.ids import clean_id

SCHEMA_VERSION = 1

KIND_HEADER = "palisade-kind"
SIGNATURE_HEADER = "palisade-signature"
"""Ed25519 over `kind + b"\\n" + the record's exact value bytes`, base64."""
KEY_ID_HEADER = "palisade-key-id"
CONTENT_TYPE_HEADER = "content-type"
JSON_TYPE = "application/json"
ARROW_TYPE = "application/vnd.apache.arrow.stream"


@dataclass(frozen=True, slots=True)
class Column:
    """The ClickHouse type of a field, where it is not the obvious one."""

    clickhouse: str


Millis = Annotated[int, Column("DateTime64(3, 'UTC')")]
"""Milliseconds since the epoch, UTC."""
Id = Annotated[str, AfterValidator(clean_id)]
"""An identifier after `clean_id`."""
Word = Annotated[str, AfterValidator(clean_id), Column("LowCardinality(String)")]
"""An identifier that takes few values: endpoint, version, kind."""


class Wire(BaseModel):
    """A record of ours: frozen, unknown fields ignored, types not coerced."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, ser_json_inf_nan="null")
    KIND: ClassVar[str] = ""

    schema_version: int = SCHEMA_VERSION

    def to_bytes(self) -> bytes:
        """The record's value on Kafka: compact JSON, UTF-8."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def from_bytes(cls, value: bytes) -> Any:
        """The record of `value`; raises pydantic's ValidationError on anything else."""
        return cls.model_validate_json(value)
