"""How detectors of reports save a part: a JSON of plain values and named number columns under one hash, never pickle.

Layout: magic, parameter hash (32 hex bytes), SHA-256 of the body; body = length of the header (u32), header (JSON), columns.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.errors import StateRefused

MAGIC = b"PALISADE-REPORTS-1\n"
MAX_STATE_BYTES = 262_144
_START = len(MAGIC) + 32 + 32

Columns = Mapping[str, npt.NDArray[Any]]


def pack(parameter_hash: str, values: Mapping[str, Any], columns: Columns) -> bytes:
    """`values`: JSON without NaN; `columns`: 1-d or 2-d arrays of numbers. Equal input gives equal bytes."""
    shapes = {name: [column.dtype.str, list(column.shape)] for name, column in columns.items()}
    header = json.dumps({"values": dict(values), "columns": shapes}, allow_nan=False, separators=(",", ":")).encode()
    body = struct.pack("<I", len(header)) + header + b"".join(column.tobytes() for column in columns.values())
    return MAGIC + parameter_hash.encode() + hashlib.sha256(body).digest() + body


def unpack(parameter_hash: str, state: bytes, dtypes: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values and columns of `pack`. Raises StateRefused unless format, parameters, hash and `dtypes` all agree."""
    if len(state) > MAX_STATE_BYTES or not state.startswith(MAGIC):
        raise StateRefused("saved state has another format or is too large")
    if state[len(MAGIC) : len(MAGIC) + 32] != parameter_hash.encode():
        raise StateRefused("saved state is of other parameters or another version of the detector")
    body = state[_START:]
    if hashlib.sha256(body).digest() != state[_START - 32 : _START]:
        raise StateRefused("saved state is damaged: its hash does not match")
    try:
        (size,) = struct.unpack_from("<I", body)
        header = json.loads(body[4 : 4 + size], parse_constant=_finite, parse_float=_finite)
        return dict(header["values"].items()), _columns(body[4 + size :], header["columns"], dtypes)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        raise StateRefused(f"saved state cannot be read: {error}") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number")
    return number


def _columns(body: bytes, shapes: Mapping[str, Any], dtypes: Mapping[str, str]) -> dict[str, Any]:
    if {name: shape[0] for name, shape in shapes.items()} != dict(dtypes):
        raise StateRefused("saved state has other columns than this version reads")
    columns, position = {}, 0
    for name, (dtype, shape) in shapes.items():
        count = math.prod(shape)
        columns[name] = np.frombuffer(body, dtype, count, position).reshape(shape).copy()
        position += columns[name].nbytes
    if position != len(body):
        raise StateRefused("saved state has bytes left over")
    return columns
