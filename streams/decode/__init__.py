"""Bytes of records to columns: JSON events, JSON arrays, Arrow IPC streams; what cannot be decoded becomes a dead letter."""

from streams.decode.columns import Columns, Control, DeadRows, Group, SchemaLookup, Segment
from streams.decode.partitioner import partition_of
from streams.decode.records import Decoder

__all__ = ["Columns", "Control", "DeadRows", "Decoder", "Group", "SchemaLookup", "Segment", "partition_of"]
